"""Jobs: requests that nobody waits for, kept in memory for a while, bounded in number, bytes and age."""

import asyncio
import json
import secrets
import time
from typing import Any

from lightgen.serve.answers import Problem, error_body
from lightgen.serve.config import JobConfig
from lightgen.serve.orders import Order
from lightgen.serve.service import ENDS, Service, as_problem
from lightgen.serve.ticket import Ticket

_NAME_BYTES = 16


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
        head = {
            "id": self.name,
            "object": "image.job",
            "created_at": self.created,
            "status": self.status(),
            "pictures": self._pictures or self._looked(),
            "error": self.error,
        }
        # the result is large and is JSON already
        return json.dumps(head).encode()[:-1] + b', "result": ' + (self.result or b"null") + b"}"

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


class Jobs:
    """The jobs of a server, for its event loop alone.

    Args:
        service: of the server.
        config: how many are kept, and for how long.
    """

    def __init__(self, service: Service, config: JobConfig) -> None:
        self._service, self._config = service, config
        self._jobs: dict[str, Job] = {}

    def __len__(self) -> int:
        return len(self._jobs)

    def start(self, order: Order, owner: str) -> Job:
        """A job that is being drawn from now on.

        Raises:
            Problem: 429, if as many are not done as are kept.
            Refused: there is no room in the queue.
        """
        if len(self._jobs) >= self._config.max_jobs and not self._drop_oldest():
            raise Problem(429, "jobs: too many that are not done", retry_after_s=10)
        job = Job(owner, self._service.submit(order, owner))
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
        while sum(len(each.result or b"") for each in self._jobs.values()) > self._config.max_bytes:
            self._drop_oldest()

    def _drop_oldest(self) -> bool:
        """Whether there was a job that has ended, to be forgotten."""
        oldest = next((job for job in self._jobs.values() if job.has_ended), None)
        if oldest is not None:
            self.forget(oldest)
        return oldest is not None


async def _watch(job: Job, number: int, ticket: Ticket) -> None:
    """Note how far a picture is."""
    async for update in ticket.updates():
        job.iterations[number] = update.iteration
