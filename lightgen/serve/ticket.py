"""One accepted picture as the event loop sees it, and how news of it come over from the worker's thread."""

import asyncio
import contextlib
import threading
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:
    from lightgen.stages.live import PictureRequest

State = Literal["waiting", "running", "done", "failed", "cancelled"]


class DeadlinePassed(Exception):
    """The picture was not done in time."""


class Cancelled(Exception):
    """Whoever asked for the picture wants it no more."""


class WorkFailed(Exception):
    """The picture could not be drawn; the text holds nothing of the server's insides."""


@dataclass(frozen=True, kw_only=True)
class Update:
    """How far a picture is.

    Attributes:
        iteration: of the decoder, those that are done.
        num_iterations: in all.
        grid: (rows, columns) of tokens.
        known: bool [rows, columns], True = decoded or given.
        preview: uint8 [H, W, 3], the picture so far, where one was due since the reader's last update.
    """

    iteration: int
    num_iterations: int
    grid: tuple[int, int]
    known: np.ndarray
    preview: np.ndarray | None = None


Outcome = np.ndarray | Exception


class Ticket:
    """One accepted picture; all but `has_ended` is for the event loop's thread alone.

    Attributes:
        request: what is wanted.
        model: which draws it.
        key: whose share of the queue it takes.
        previews: how many partial pictures are wanted.
        cost: work that it is expected to take, 1 = a usual picture of the model.
        accepted: when, by the monotonic clock, seconds.
        state: where it is; a passed deadline counts as failed.
        has_ended: whether there is a result or an error.
    """

    def __init__(
        self,
        request: "PictureRequest",
        model: str,
        key: str,
        previews: int,
        place: Callable[["Ticket"], int],
        on_end: Callable[["Ticket", Outcome], None],
        cost: float = 1.0,
    ) -> None:
        self.request, self.model, self.key, self.previews = request, model, key, previews
        self.cost, self.accepted = cost, time.monotonic()
        self.state: State = "waiting"
        self.has_ended = False
        self._place, self._on_end = place, on_end
        self._outcome: Outcome | None = None
        self._newest: Update | None = None
        self._preview: np.ndarray | None = None
        self._num_updates = self._num_previews = 0
        self._changed = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None

    @property
    def position(self) -> int:
        """Pictures that are taken from the queue before it; 0 once it has left the queue."""
        return self._place(self)

    async def updates(self) -> AsyncIterator[Update]:
        """Each update until the end, for any number of readers; one who is slow gets the newest alone."""
        updates = previews = 0
        while True:
            changed = self._changed
            if self._newest is not None and self._num_updates > updates:
                is_fresh = self._num_previews > previews
                updates, previews = self._num_updates, self._num_previews
                yield replace(self._newest, preview=self._preview if is_fresh else None)
            elif self.has_ended:
                return
            else:
                await changed.wait()

    async def result(self) -> np.ndarray:
        """The picture, uint8 [H, W, 3].

        Raises:
            DeadlinePassed: it was not done in time.
            Cancelled: `cancel` was called.
            WorkFailed: the model failed, or the server ended.
            UserError: the model refused the request when it was about to begin.
        """
        while self._outcome is None:
            await self._changed.wait()
        if isinstance(self._outcome, Exception):
            # A new one for each reader: a raised error holds on to its frames, and so to this ticket.
            raise type(self._outcome)(*self._outcome.args)
        return self._outcome

    def cancel(self) -> None:
        """End it as cancelled; it is computed for one iteration more at most."""
        self.end(Cancelled("the picture was cancelled"))

    def expire_after(self, seconds: float) -> None:
        """End it as late once so many seconds have passed, however long an iteration takes."""
        error = DeadlinePassed("the picture was not done in time")
        self._timer = asyncio.get_running_loop().call_later(seconds, self.end, error)

    def tell(self, update: Update) -> None:
        """Take an update in, unless the ticket has ended."""
        if self.has_ended:
            return
        self.state, self._newest = "running", update
        self._num_updates += 1
        if update.preview is not None:
            self._preview = update.preview
            self._num_previews += 1
        self._wake()

    def end(self, outcome: Outcome) -> None:
        """Take the picture or an error as the end; of several ends the first counts."""
        if self.has_ended:
            return
        self.has_ended, self._outcome = True, outcome
        if isinstance(outcome, np.ndarray):
            self.state = "done"
        else:
            self.state = "cancelled" if isinstance(outcome, Cancelled) else "failed"
        if self._timer is not None:
            self._timer.cancel()
        self._on_end(self, outcome)
        self._wake()

    def _wake(self) -> None:
        """Wake all who wait now; who comes later waits for the next change."""
        self._changed.set()
        self._changed = asyncio.Event()


class Outbox:
    """Hands news of tickets from the worker's thread over to an event loop.

    While the loop is busy, the newest update and the end of each ticket wait here, and nothing else.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop, self._lock = loop, threading.Lock()
        self._updates: dict[Ticket, Update] = {}
        self._ends: dict[Ticket, Outcome] = {}

    @property
    def is_closed(self) -> bool:
        """Whether the loop is gone, and with it everybody who could be told."""
        return self._loop.is_closed()

    def post(self, updates: Mapping[Ticket, Update], ends: Mapping[Ticket, Outcome]) -> None:
        """Have the tickets told, soon, on the loop; updates come before ends."""
        with self._lock:
            is_asked = bool(self._updates or self._ends)
            for ticket, update in updates.items():
                unread = self._updates.get(ticket)
                if unread is not None and update.preview is None:
                    update = replace(update, preview=unread.preview)
                self._updates[ticket] = update
            self._ends.update(ends)
            is_needed = bool(self._updates or self._ends) and not is_asked
        if is_needed:
            self.call(self._hand_over)

    def call(self, function: Callable[[], None]) -> None:
        """Have the function called, soon, on the loop."""
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(function)

    def _hand_over(self) -> None:
        with self._lock:
            updates, ends = self._updates, self._ends
            self._updates, self._ends = {}, {}
        for ticket, update in updates.items():
            ticket.tell(update)
        for ticket, outcome in ends.items():
            ticket.end(outcome)
