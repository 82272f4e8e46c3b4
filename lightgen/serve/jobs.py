"""Jobs: requests that nobody waits for, kept in memory for a while, bounded in number, bytes and age."""

import asyncio
import json
import secrets
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from typing import Any

from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from lightgen.serve.answers import Problem, error_body, error_response
from lightgen.serve.config import JobConfig
from lightgen.serve.orders import Order
from lightgen.serve.service import ENDS, Service, as_problem
from lightgen.serve.ticket import Ticket

_NAME_BYTES = 16
_SLICE_BYTES = 64 << 10
_MAX_READERS = 4  # of one owner, of results that are larger than a slice


class Job:
    """One request, its tickets, and what came of it.

    Attributes:
        name: that it is asked for by; nobody can guess it.
        owner: whose it is; for others it is not there.
        result: JSON of the answer, once there is one.
        error: in OpenAI's shape, once there is one.
    """

    def __init__(self, owner: str, tickets: list[Ticket]) -> None:
        self.name, self.owner = f"job_{secrets.token_hex(_NAME_BYTES)}", owner
        self.result: bytes | None = None
        self.error: dict[str, Any] | None = None
        self.created = int(time.time())
        self.tickets = tickets
        self.iterations = [0] * len(tickets)
        self.tasks: list[asyncio.Task[None]] = []
        self.timer: asyncio.TimerHandle | None = None
        self._pictures: list[dict[str, Any]] = []

    @property
    def has_ended(self) -> bool:
        """Whether there is a result or an error."""
        return self.result is not None or self.error is not None

    def status(self) -> str:
        """In a word."""
        if self.has_ended:
            return "failed" if self.result is None else "succeeded"
        return "queued" if all(each.state == "waiting" for each in self.tickets) else "running"

    def answer(self) -> bytes:
        """JSON of how far it is, with the result if there is one."""
        return b"".join(self.parts())

    def parts(self) -> tuple[bytes, bytes, bytes]:
        """The answer in three parts; the second is the result, as it is kept."""
        head = {
            "id": self.name,
            "object": "image.job",
            "created_at": self.created,
            "status": self.status(),
            "pictures": self._pictures or self._looked(),
            "error": self.error,
        }
        # the result is large and is JSON already
        return json.dumps(head).encode()[:-1] + b', "result": ', self.result or b"null", b"}"

    def let_go(self) -> None:
        """Keep what is said of the pictures, and no more of them than that."""
        self._pictures, self.tickets = self._looked(), []

    def _looked(self) -> list[dict[str, Any]]:
        """How far the pictures are."""
        return [
            {
                "status": ticket.state,
                "iteration": iteration,
                "num_iterations": ticket.request.config.num_iterations,
                "position": ticket.position,
            }
            for ticket, iteration in zip(self.tickets, self.iterations, strict=True)
        ]


class _LargeAnswer(StreamingResponse):
    """Answer of a job whose result is sent in slices of what is kept, as fast as the client reads.

    Args:
        job: that has ended.
        readers: such answers that are being sent, by owner.
    """

    def __init__(self, job: Job, readers: Counter[str]) -> None:
        self._owner, self._readers = job.owner, readers
        parts = job.parts()
        headers = {"Content-Length": str(sum(map(len, parts)))}
        super().__init__(_slices(parts), headers=headers, media_type="application/json")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it, unless its owner reads too many already."""
        if self._readers[self._owner] >= _MAX_READERS:
            problem = Problem(429, f"job: {_MAX_READERS} large results are being read", retry_after_s=1)
            return await error_response(problem)(scope, receive, send)
        self._readers[self._owner] += 1
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._readers[self._owner] -= 1
            if not self._readers[self._owner]:
                del self._readers[self._owner]


class Jobs:
    """The jobs of a server, for its event loop alone.

    Args:
        service: of the server.
        config: how many are kept, and for how long.
    """

    def __init__(self, service: Service, config: JobConfig) -> None:
        self._service, self._config = service, config
        self._jobs: dict[str, Job] = {}
        self._readers: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self._jobs)

    def start(self, order: Order, owner: str) -> Job:
        """A job that is being drawn from now on.

        Raises:
            Problem: 429, if as many are not done as are kept.
            Refused: there is no room in the queue.
        """
        is_full = len(self._jobs) >= self._config.max_jobs
        if is_full and not any(job.has_ended for job in self._jobs.values()):
            raise Problem(429, "jobs: too many that are not done", retry_after_s=10)
        job = Job(owner, self._service.submit(order, owner))
        if is_full:  # only now: who is refused pushes nothing out
            self._drop_oldest(owner, lambda job: 1)
        job.tasks = [asyncio.ensure_future(self._run(job, order))]
        job.tasks += [asyncio.ensure_future(_watch(job, *each)) for each in enumerate(job.tickets)]
        self._jobs[job.name] = job
        return job

    def find(self, name: str, owner: str) -> Job:
        """The owner's job of this name.

        Raises:
            Problem: 404, if there is none.
        """
        job = self._jobs.get(name)
        if job is None or job.owner != owner:
            raise Problem(404, "job: there is none of this name, or no more")
        return job

    def answer(self, name: str, owner: str) -> Response:
        """How far the owner's job of this name is, with the result if there is one.

        Raises:
            Problem: 404, if there is none.
        """
        job = self.find(name, owner)
        if _size(job) > _SLICE_BYTES:
            return _LargeAnswer(job, self._readers)
        return Response(job.answer(), media_type="application/json")

    def forget(self, job: Job) -> None:
        """Drop a job, and stop drawing it."""
        self._jobs.pop(job.name, None)
        if job.timer is not None:
            job.timer.cancel()
        for ticket in job.tickets:
            ticket.cancel()

    async def close(self) -> None:
        """Forget all."""
        jobs = list(self._jobs.values())
        for job in jobs:
            self.forget(job)
        await asyncio.gather(*(task for job in jobs for task in job.tasks), return_exceptions=True)

    async def _run(self, job: Job, order: Order) -> None:
        """Draw a job to its end."""
        try:
            result = await self._service.draw(order, job.tickets)
            if len(result) > self._config.max_bytes:
                raise Problem(413, "job: its pictures are too large to be kept")
            job.result = result
        except ENDS as error:
            job.error = error_body(as_problem(error))["error"]
        except BaseException:
            job.error = error_body(Problem(500, "server: something broke"))["error"]
            raise
        finally:
            job.let_go()
            job.timer = asyncio.get_running_loop().call_later(self._config.max_age_s, self.forget, job)
        if job.name not in self._jobs:
            job.timer.cancel()
        while sum(map(_size, self._jobs.values())) > self._config.max_bytes:
            self._drop_oldest(job.owner, _size)

    def _drop_oldest(self, owner: str, measure: Callable[[Job], int]) -> None:
        """Forget the oldest ended job of whoever keeps most by a measure; of equals, of the one who adds."""
        ended = [job for job in self._jobs.values() if job.has_ended]
        kept: Counter[str] = Counter()
        for job in ended:
            kept[job.owner] += measure(job)
        most = max(kept, key=lambda each: (kept[each], each == owner))
        self.forget(next(job for job in ended if job.owner == most))


def _size(job: Job) -> int:
    """Bytes of its result."""
    return len(job.result or b"")


async def _slices(parts: tuple[bytes, ...]) -> AsyncIterator[memoryview]:
    """Views of the parts that copy nothing."""
    for part in parts:
        view = memoryview(part)
        for start in range(0, len(view), _SLICE_BYTES):
            yield view[start : start + _SLICE_BYTES]


async def _watch(job: Job, number: int, ticket: Ticket) -> None:
    """Note how far a picture is."""
    async for update in ticket.updates():
        job.iterations[number] = update.iteration
