"""One thread that runs the models, so that the event loop never waits for them.

Pictures join between two iterations and leave when they are done. The two sides share the queue, behind a
lock that nobody holds while a model runs. Tickets end on the event loop, and the thread sees it before the
next iteration; what the thread has to say goes the other way through an outbox.
"""

import asyncio
import threading
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

from lightgen.serve.batches import Batches, Live, News
from lightgen.serve.config import QueueConfig
from lightgen.serve.cost import picture_costs
from lightgen.serve.metrics import Fate, Metrics
from lightgen.serve.queue import FairQueue
from lightgen.serve.ticket import Cancelled, DeadlinePassed, Outbox, Outcome, Ticket, WorkFailed

if TYPE_CHECKING:
    from lightgen.stages.live import PictureRequest

Obstacle = Literal["key", "share", "queue", "late", "ending"]
_FATES: dict[Obstacle, Fate] = {
    "key": "refused_key",
    "share": "refused_key",
    "queue": "refused_queue",
    "late": "refused_late",
    "ending": "refused_ending",
}
_GRACE_S = 5.0  # for the iteration in progress, once nobody waits for it


class Refused(Exception):
    """No picture of a request is accepted.

    Attributes:
        status: of HTTP: 429 where the key has its share already, 503 where the server has no room or ends.
        retry_after_s: seconds, at least 1, after which there may be room.
        text: why.
    """

    def __init__(self, status: int, retry_after_s: float, text: str) -> None:
        super().__init__(text)
        self.status, self.retry_after_s, self.text = status, retry_after_s, text


class Worker:
    """Runs models in a thread of its own, for tickets of one event loop.

    Args:
        models: by name.
        config: how many pictures are accepted, and for how long.
        metrics: where all of it is counted.
    """

    def __init__(self, models: Mapping[str, Live], config: QueueConfig, metrics: Metrics) -> None:
        self.models, self.config, self.metrics = models, config, metrics
        self._changed = threading.Condition()  # guards the queue and the two flags, for moments
        self._queue: FairQueue[Ticket] = FairQueue(config.max_waiting, config.max_per_key)
        self._is_draining = self._is_over = False
        self._batches = Batches(models, metrics)  # the thread's own
        self._thread = threading.Thread(target=self._work, name="lightgen-worker", daemon=True)
        self._outbox: Outbox | None = None
        self._stopped, self._is_drained = asyncio.Event(), False
        metrics.watch_queue(lambda: self._queue.num_waiting, lambda: self._queue.num_running)

    @property
    def is_ready(self) -> bool:
        """Whether pictures are accepted and there is a thread to draw them."""
        return self._thread.is_alive() and not self._is_over and not self._is_draining

    def start(self) -> None:
        """Begin; called once."""
        self._thread.start()

    def room(self, key: str, count: int) -> None:
        """Look whether `submit` could take so many pictures of a key, before any work is put into them.

        Raises:
            Refused: it could not, whatever they cost.
        """
        with self._changed:
            self._check_room(key, [0.0] * count, self.config.deadline_s)

    def submit(
        self,
        requests: "Sequence[PictureRequest]",
        model: str,
        key: str,
        deadline_s: float | None = None,
        previews: int = 0,
    ) -> list[Ticket]:
        """A ticket for each picture, for all or none; called on the event loop, and done in a moment.

        Args:
            requests: what is wanted; the model's `check` let them pass.
            model: a name in `models`.
            key: whose share of the queue they take.
            deadline_s: seconds from now, where that is less than the server's own.
            previews: partial pictures of each, spread evenly over its iterations.

        Raises:
            Refused: there is no room for all of them, or the server ends.
        """
        assert model in self.models, model
        limit_s = min(self.config.deadline_s, self.config.deadline_s if deadline_s is None else deadline_s)
        costs = picture_costs(requests, self.models[model], previews)
        tickets = [
            Ticket(each, model, key, previews, self._place, self._ended, cost)
            for each, cost in zip(requests, costs, strict=True)
        ]
        with self._changed:
            self._check_room(key, costs, limit_s)
            if self._outbox is None:
                self._outbox = Outbox(asyncio.get_running_loop())
            for ticket in tickets:
                self._queue.put(ticket, key, ticket.accepted + limit_s, ticket.cost)
            self._changed.notify()
        for ticket in tickets:
            ticket.expire_after(limit_s)
        return tickets

    async def drain(self, timeout_s: float) -> None:
        """Refuse what is new, finish what is accepted, and stop the thread.

        What is not done after so many seconds fails; the iteration in progress may take a few seconds more.
        Once this is over it is at once, also where that iteration never ended.
        """
        if self._is_drained:
            return
        with self._changed:
            self._is_draining = True
            self._outbox = self._outbox or Outbox(asyncio.get_running_loop())
            self._changed.notify()
        if self._thread.is_alive() and not await self._has_stopped(timeout_s):
            with self._changed:
                rest = self._queue.items()
            for ticket in rest:
                ticket.end(WorkFailed("the server ended before the picture was done"))
            await self._has_stopped(_GRACE_S)
        self._is_drained = True

    async def _has_stopped(self, timeout_s: float) -> bool:
        try:
            await asyncio.wait_for(self._stopped.wait(), timeout_s)
        except TimeoutError:
            return False
        self._thread.join(1.0)  # all it has to do is return
        return True

    def _check_room(self, key: str, costs: Sequence[float], limit_s: float) -> None:
        """Raise Refused where there is no room for new pictures of these costs."""
        obstacle = self._obstacle(key, costs, limit_s)
        if obstacle is not None:
            self.metrics.count_pictures(_FATES[obstacle], len(costs))
            raise self._refusal(obstacle, len(costs))

    def _obstacle(self, key: str, costs: Sequence[float], limit_s: float) -> Obstacle | None:
        """What keeps new pictures out; work that would be thrown away undone is not begun."""
        if not self.is_ready:
            return "ending"
        queue = self._queue
        full = queue.obstacle(key, len(costs))
        if full is None and queue.num_waiting:
            took_s = self._batches.mean_s * (queue.waiting_cost + queue.running_cost + sum(costs))
            return "late" if self._batches.is_measured and took_s > limit_s else None
        return full

    def _refusal(self, obstacle: Obstacle, count: int) -> Refused:
        after_s = max(1.0, self._batches.mean_s * self._queue.waiting_cost)
        if obstacle in ("key", "share"):
            most = f"{self.config.max_per_key} of one key at a time"
            allowed = most if obstacle == "key" else "as many waiting as there are places left for others"
            return Refused(429, after_s, f"n: got {count} more pictures, allowed: {allowed}")
        if obstacle == "queue":
            return Refused(503, after_s, "the queue is full")
        if obstacle == "late":
            return Refused(503, after_s, "the queue is too long for the picture to be done in time")
        return Refused(503, after_s, "the server takes no pictures now")

    def _place(self, ticket: Ticket) -> int:
        with self._changed:
            return self._queue.position(ticket)

    def _ended(self, ticket: Ticket, outcome: Outcome) -> None:
        """Forget a ticket that ended while it waited; one that runs is let go by the thread."""
        with self._changed:
            if self._queue.is_waiting(ticket):
                self._queue.drop([ticket])
        fate: Fate = "failed" if isinstance(outcome, Exception) else "done"
        if isinstance(outcome, DeadlinePassed | Cancelled):
            fate = "late" if isinstance(outcome, DeadlinePassed) else "cancelled"
        self.metrics.count_pictures(fate)

    def _work(self) -> None:
        """The thread: turns until it is drained, nobody is left to tell, or a model cannot be reset."""
        try:
            while self._has_work():
                self._turn()  # a call, so that no name here holds on to a ticket while the thread waits
        finally:
            with self._changed:
                self._is_over = True
                rest = self._queue.items()
            self._report(News(ends=dict.fromkeys(rest, WorkFailed("the server cannot draw any more"))))
            if self._outbox is not None:
                self._outbox.call(self._stopped.set)

    def _has_work(self) -> bool:
        """Whether there are tickets; waits for some, unless there will be none."""
        with self._changed:
            while not len(self._queue) and not self._is_draining:
                self._changed.wait()
            is_heard = self._outbox is not None and not self._outbox.is_closed
            return is_heard and bool(len(self._queue))

    def _turn(self) -> None:
        """Fill the free places, and do one iteration of one model."""
        self._let_go()
        with self._changed:
            most = self.config.max_running
            taken = self._queue.take(most - self._queue.num_running, budget=most)
        self._report(self._batches.join(taken))
        self._report(self._batches.step())

    def _let_go(self) -> None:
        """Have those leave who ended on the event loop, or whose deadline has come."""
        with self._changed:
            late = self._queue.expired(time.monotonic())
            gone = [ticket for ticket in self._queue.items() if ticket.has_ended]
        news = self._batches.leave([*gone, *late])
        for ticket in late:
            news.ends.setdefault(ticket, DeadlinePassed("the picture was not done in time"))
        self._report(news, gone)

    def _report(self, news: News, gone: Sequence[Ticket] = ()) -> None:
        """Forget those who ended, and have the event loop told."""
        with self._changed:
            self._queue.drop([*news.ends, *gone])
        if self._outbox is not None:
            self._outbox.post(news.updates, news.ends)
