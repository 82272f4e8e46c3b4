"""What all routes share: the worker, a few threads for pictures' bytes, and how one request is drawn."""

import asyncio
import base64
import contextlib
import json
from collections.abc import Callable, Coroutine, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, ParamSpec, TypeVar
from weakref import WeakValueDictionary

import numpy as np
from starlette.types import Receive

from lightgen.core.errors import UserError
from lightgen.serve.answers import Problem
from lightgen.serve.batches import Live
from lightgen.serve.config import ServeConfig
from lightgen.serve.orders import Order, PromptCheck
from lightgen.serve.provenance import Kind, Signer, provenance_bytes
from lightgen.serve.ticket import Cancelled, DeadlinePassed, Ticket, WorkFailed
from lightgen.serve.worker import Refused, Worker

_P = ParamSpec("_P")
_T = TypeVar("_T")
# Whether a picture, uint8 [H, W, 3], may be shown; called in a thread.
PictureCheck = Callable[[np.ndarray], bool]
# How drawing may end otherwise than with a picture.
ENDS = (Refused, DeadlinePassed, Cancelled, WorkFailed, UserError, Problem)
_READING_THREADS, _WRITING_THREADS = 4, 2
_READ_AT_A_TIME = 2  # requests of one owner, so that none has all threads


class ClientGone(Exception):
    """Whoever asked is not there any more."""


@dataclass(frozen=True, kw_only=True)
class Checks:
    """What is not drawn or not shown.

    Attributes:
        prompt: says why a prompt is refused, or None.
        picture: whether a picture may be shown.
    """

    prompt: PromptCheck | None = None
    picture: PictureCheck | None = None


class Service:
    """The worker and what belongs to it, for the routes.

    Args:
        config: of the server.
        worker: that draws.
        models: by name.
        checks: what is not drawn or not shown.
        signer: of files, or None.
    """

    def __init__(
        self,
        config: ServeConfig,
        worker: Worker,
        models: Mapping[str, Live],
        checks: Checks,
        signer: Signer | None,
    ) -> None:
        self.config, self.worker, self.models = config, worker, models
        self.checks, self._signer = checks, signer
        self._reading = ThreadPoolExecutor(_READING_THREADS, "lightgen-reading")
        self._writing = ThreadPoolExecutor(_WRITING_THREADS, "lightgen-writing")
        self._turns: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()

    def close(self) -> None:
        """End the threads, once they are through with what they do."""
        for pool in (self._reading, self._writing):
            pool.shutdown(wait=False, cancel_futures=True)

    async def read(self, owner: str, function: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        """What a function returns that is called in a thread, when it is the owner's turn.

        A thread goes on when nobody waits for it any more, and its turn lasts until it is through.
        """
        loop = asyncio.get_running_loop()
        turn = self._turns.setdefault(owner, asyncio.Semaphore(_READ_AT_A_TIME))
        await turn.acquire()
        work = self._reading.submit(function, *args, **kwargs)

        def done(_: object) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed, and nobody waits
                loop.call_soon_threadsafe(turn.release)

        work.add_done_callback(done)
        return await asyncio.wrap_future(work)

    async def _write(self, function: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        """What a function returns that is called in a thread."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._writing, lambda: function(*args, **kwargs))

    def check_room(self, owner: str, count: int) -> None:
        """Check that there is room for so many pictures now, before anything is done for them.

        Raises:
            Refused: there is none.
        """
        self.worker.room(owner, min(count, self.config.limits.max_pictures))

    def submit(self, order: Order, owner: str) -> list[Ticket]:
        """Tickets of an order's pictures, all or none.

        Raises:
            Refused: there is no room.
        """
        return self.worker.submit(order.requests, order.model, owner, order.deadline_s, order.partial_images)

    async def file(self, order: Order, number: int, image: np.ndarray) -> str:
        """File of a picture of the order, in base64.

        Raises:
            Problem: 400, if the picture may not be shown.
        """
        return await self._write(self._file, order.kind, order.quality, order.facts[number], image)

    async def preview(self, order: Order, image: np.ndarray) -> str | None:
        """File of a picture on the way, in base64; None if it may not be shown."""
        try:
            return await self._write(self._file, order.kind, order.quality, {}, image)
        except Problem:
            return None

    async def draw(self, order: Order, tickets: list[Ticket]) -> bytes:
        """JSON answer with the pictures of the tickets; whatever happens, these have ended then.

        Raises:
            DeadlinePassed, Cancelled, WorkFailed, UserError, Problem: what became of the first picture that
                there is not.
        """

        async def one(number: int) -> dict[str, Any]:
            image = await tickets[number].result()
            return {
                "b64_json": await self.file(order, number, image),
                "seed": order.requests[number].seed,
            }

        try:
            found = await asyncio.gather(*map(one, range(len(tickets))))
        finally:
            for ticket in tickets:
                ticket.cancel()
        answer = {
            "created": order.created,
            "data": found,
            **order.common(),
            "usage": order.usage(len(found)),
            "preset": order.preset,
            "model": order.model,
        }
        return await self._write(lambda: json.dumps(answer).encode())

    def _file(self, kind: Kind, quality: int, facts: Mapping[str, Any], image: np.ndarray) -> str:
        if self.checks.picture is not None and not self.checks.picture(image):
            raise Problem(
                400, "picture: refused, it is not one that this server shows", code="content_policy_violation"
            )
        signer = self._signer if facts else None  # what is on the way is not signed
        return base64.b64encode(provenance_bytes(image, facts, kind, quality, signer)).decode("ascii")


def as_problem(error: Exception) -> Problem:
    """What is told of one of ENDS."""
    if isinstance(error, Problem):
        return error
    if isinstance(error, Refused):
        return Problem(error.status, f"server: {error.text}", retry_after_s=error.retry_after_s)
    if isinstance(error, UserError):
        name = str(error).partition(":")[0]
        return Problem(400, str(error), param=name if name.isidentifier() else None)
    if isinstance(error, DeadlinePassed):
        return Problem(504, f"server: {error}")
    if isinstance(error, Cancelled):
        return Problem(503, f"server: {error}", retry_after_s=1)
    return Problem(500, f"server: {error}")


async def while_there(receive: Receive, work: Coroutine[Any, Any, _T]) -> _T:
    """What the work returns; it is cancelled when the client goes.

    Raises:
        ClientGone: it went.
    """
    working = asyncio.ensure_future(work)
    going = asyncio.ensure_future(_gone(receive))
    try:
        await asyncio.wait({working, going}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise ClientGone
    finally:
        working.cancel()
        going.cancel()
        await asyncio.gather(working, going, return_exceptions=True)


async def _gone(receive: Receive) -> None:
    """Wait until the client is gone; its request was read."""
    while (await receive())["type"] != "http.disconnect":
        pass
