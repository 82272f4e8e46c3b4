"""Streams of server-sent events: pictures on the way, how far they are, and the pictures."""

import asyncio
import base64
import json
from collections.abc import AsyncGenerator
from typing import Any

import numpy as np
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from lightgen.serve.answers import error_body
from lightgen.serve.orders import Order
from lightgen.serve.service import ENDS, ClientGone, Service, as_problem, while_there
from lightgen.serve.ticket import Ticket, Update

_HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
_HEARTBEAT = b": still drawing\n\n"
_PLACE_S = 0.5  # from one look at the queue to the next


class PictureStream(StreamingResponse):
    """Answer that tells of the tickets of an order as they go, and ends them when the client goes.

    Each event is sent at once. A client that reads slowly is told less: the newest state of each picture.

    Args:
        service: of the server.
        order: of the request.
        tickets: of its pictures.
    """

    def __init__(self, service: Service, order: Order, tickets: list[Ticket]) -> None:
        self._service, self._order, self._tickets = service, order, tickets
        self._name = "image_edit" if order.is_edit else "image_generation"
        self._queue: asyncio.Queue[bytes | None] = asyncio.Queue()
        self._made = self._events()
        super().__init__(self._made, media_type="text/event-stream", headers=_HEADERS)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send events until the last, or until the client is gone."""
        try:
            await while_there(receive, self.stream_response(send))
        except ClientGone:
            pass
        finally:
            for ticket in self._tickets:
                ticket.cancel()
            await self._made.aclose()  # if it was not asked for more, its tasks still wait

    async def _events(self) -> AsyncGenerator[bytes, None]:
        tasks = [asyncio.ensure_future(self._follow(n)) for n in range(len(self._tickets))]
        left = len(tasks)
        try:
            while left:
                try:
                    async with asyncio.timeout(self._service.config.connections.heartbeat_s):
                        event = await self._queue.get()
                except TimeoutError:
                    yield _HEARTBEAT
                    continue
                if event is None:
                    left -= 1
                else:
                    yield event
                self._queue.task_done()
            for task in tasks:
                await task  # raises what nobody thought of
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _follow(self, number: int) -> None:
        """Put events of a picture into the queue, each once the one before has been sent."""
        ticket, index = self._tickets[number], 0
        place = asyncio.ensure_future(self._follow_place(number))
        try:
            async for update in ticket.updates():
                if update.preview is not None and await self._put_preview(number, index, update):
                    index += 1
                elif self._order.progress:
                    await self._put("lightgen.progress", {"index": number, **_progress(update)})
            await self._put_picture(number, await ticket.result())
        except ENDS as error:
            await self._put("error", {"index": number, **error_body(as_problem(error))})
        finally:
            place.cancel()
            self._queue.put_nowait(None)

    async def _follow_place(self, number: int) -> None:
        """Tell how many pictures are before one, as long as it waits and whenever that changes."""
        ticket, told = self._tickets[number], -1
        while self._order.progress and ticket.state == "waiting":
            if (position := ticket.position) != told:
                told = position
                await self._put("lightgen.progress", {"index": number, "position": position})
            await asyncio.sleep(_PLACE_S)

    async def _put_preview(self, number: int, index: int, update: Update) -> bool:
        """Whether a picture on the way may be shown; then it is."""
        assert update.preview is not None
        file = await self._service.preview(self._order, update.preview)
        if file is None:
            return False
        more = {"partial_image_index": index, "index": number, "progress": _progress(update)}
        await self._put(f"{self._name}.partial_image", {"b64_json": file, **more, **self._facts()})
        return True

    async def _put_picture(self, number: int, image: np.ndarray) -> None:
        more = {
            "index": number,
            "seed": self._order.requests[number].seed,
            "usage": self._order.usage(),
            "preset": self._order.preset,
            "model": self._order.model,
        }
        file = await self._service.file(self._order, number, image)
        await self._put(f"{self._name}.completed", {"b64_json": file, **more, **self._facts()})

    def _facts(self) -> dict[str, Any]:
        return {"created_at": self._order.created, **self._order.common()}

    async def _put(self, name: str, values: dict[str, Any]) -> None:
        data = json.dumps({"type": name, **values})
        self._queue.put_nowait(f"event: {name}\ndata: {data}\n\n".encode())
        await self._queue.join()


def _progress(update: Update) -> dict[str, Any]:
    """How far a picture is; `known` is a bit for each token, by rows, the first the highest of its byte."""
    return {
        "iteration": update.iteration,
        "num_iterations": update.num_iterations,
        "grid": list(update.grid),
        "known": base64.b64encode(np.packbits(update.known).tobytes()).decode("ascii"),
    }
