"""The models' batches as the worker's thread runs them: tickets join, are told how far they are, and end."""

import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Protocol

import numpy as np

from lightgen.core.errors import UserError
from lightgen.serve.metrics import Metrics
from lightgen.serve.ticket import Outcome, Ticket, Update, WorkFailed

if TYPE_CHECKING:
    from lightgen.stages.decoding import DecodeConfig, DecodeOverrides
    from lightgen.stages.live import LivePicture, PictureRequest

_LOG = logging.getLogger(__name__)
_NEWEST = 0.1  # least weight of the newest picture in the mean
_GUESS_S = 1.0


class Live(Protocol):
    """A model as a batch that pictures join and leave; `lightgen.stages.live.LiveBatch` is one.

    All methods but `resolve` and `check` are called from the worker's thread alone.
    """

    @property
    def facts(self) -> Mapping[str, str]:
        """What a picture notes of its model: `model` and `model_digest`."""
        ...

    @property
    def unit(self) -> int:
        """Px that a token covers on each side."""
        ...

    @property
    def default_size(self) -> tuple[int, int]:
        """(Height, width) in px that the model is made for."""
        ...

    @property
    def running(self) -> int:
        """Pictures in the batch."""
        ...

    def resolve(self, preset: str | None, overrides: "DecodeOverrides") -> "DecodeConfig":
        """Every setting of the decoder; raises UserError."""
        ...

    def check(self, request: "PictureRequest") -> None:
        """Raise UserError where a request cannot be drawn."""
        ...

    def join(self, requests: "Sequence[PictureRequest]") -> "Sequence[LivePicture | UserError]":
        """Handles of pictures that take part from the next step on, or why one cannot."""
        ...

    def leave(self, picture: "LivePicture") -> None:
        """Take a picture out; it may have left before."""
        ...

    def step(self) -> "Sequence[LivePicture]":
        """Do one iteration of every picture; those that are done have left and are returned."""
        ...

    def preview(self, pictures: "Sequence[LivePicture]") -> Sequence[np.ndarray]:
        """Pictures so far, uint8 [H, W, 3] each."""
        ...

    def finish(self, pictures: "Sequence[LivePicture]") -> Sequence[np.ndarray]:
        """Pictures that are done, uint8 [H, W, 3] each."""
        ...

    def reset(self) -> None:
        """Drop every picture, also after an error."""
        ...


@dataclass
class News:
    """What became of tickets: how far they are, and the end of some, which then have left their batch."""

    updates: dict[Ticket, Update] = field(default_factory=dict)
    ends: dict[Ticket, Outcome] = field(default_factory=dict)


@dataclass
class _Run:
    """A picture in its batch, when it began, and its share of the seconds spent."""

    picture: "LivePicture"
    began: float
    spent_s: float


class Batches:
    """Batches of several models, each in turn; for one thread.

    An exception of a model fails all its pictures, whose batch is emptied; the next may join at once. But one
    at a join that left nothing behind fails the picture alone that cannot join, and one at a preview costs
    the previews of that moment.

    Args:
        models: by name.
        metrics: where iterations and pictures are counted.

    Attributes:
        mean_s: seconds of the thread's time that a picture of cost 1 takes, mean of the latest; a guess at
            first.
    """

    def __init__(self, models: Mapping[str, Live], metrics: Metrics) -> None:
        self.mean_s, self._num_done = _GUESS_S, 0
        self._models, self._metrics = models, metrics
        self._runs: dict[str, dict[Ticket, _Run]] = {name: {} for name in models}
        self._turns = deque(models)

    @property
    def is_measured(self) -> bool:
        """Whether `mean_s` is more than a guess."""
        return self._num_done > 0

    def leave(self, tickets: Iterable[Ticket]) -> News:
        """Take pictures out, those in no batch aside; the news are of a model that fails at it."""
        news = News()
        for ticket in tickets:
            run = self._runs[ticket.model].pop(ticket, None)
            if run is not None:
                self._try(ticket.model, partial(self._models[ticket.model].leave, run.picture), news)
        return news

    def join(self, tickets: Sequence[Ticket]) -> News:
        """Have pictures take part, all of a model in one call."""
        news = News()
        for name in self._models:
            group = [ticket for ticket in tickets if ticket.model == name]
            if group:
                self._try(name, partial(self._join_all, name, group, news), news, group)
        return news

    def step(self) -> News:
        """Do one iteration of the model whose turn it is, of those with pictures."""
        news = News()
        for _ in range(len(self._turns)):
            name = self._turns[0]
            self._turns.rotate(-1)
            if self._runs[name]:
                self._try(name, partial(self._step, name, news), news)
                break
        return news

    def _try(self, name: str, work: Callable[[], object], news: News, joining: Sequence[Ticket] = ()) -> None:
        """Do work of a model; where it raises, all tickets of the model fail that have not ended yet."""
        try:
            work()
        except Exception:
            _LOG.exception("model %s failed; its pictures are dropped", name)
            self._metrics.count_error()
            failed = {**dict.fromkeys(joining), **self._runs[name]}
            self._runs[name].clear()
            for ticket in failed:
                news.ends.setdefault(ticket, WorkFailed("the picture could not be drawn"))
            self._models[name].reset()

    def _join_all(self, name: str, group: Sequence[Ticket], news: News) -> None:
        """Have pictures join together or, where that fails, one by one; if it raises, some may be in."""
        before = self._models[name].running
        try:
            self._join(name, group, news)
        except Exception:
            if self._models[name].running != before:
                raise
            _LOG.exception("model %s failed at a join of %d", name, len(group))
            self._metrics.count_error()
            if len(group) == 1:
                news.ends[group[0]] = WorkFailed("the picture could not be drawn")
                return
            for ticket in group:
                self._join_all(name, [ticket], news)

    def _join(self, name: str, group: Sequence[Ticket], news: News) -> None:
        began = time.monotonic()
        found = self._models[name].join([ticket.request for ticket in group])
        now = time.monotonic()
        for ticket, picture in zip(group, found, strict=True):
            if isinstance(picture, UserError):
                news.ends[ticket] = picture
                continue
            self._runs[name][ticket] = _Run(picture, began, (now - began) / len(group))
            self._metrics.see_start(began - ticket.accepted)
            news.updates[ticket] = _update(picture)

    def _step(self, name: str, news: News) -> None:
        model, runs = self._models[name], self._runs[name]
        began, size = time.monotonic(), len(runs)
        done = set(map(id, model.step()))
        self._metrics.see_iteration(time.monotonic() - began, size)
        finished = {ticket: run for ticket, run in runs.items() if id(run.picture) in done}
        wanted = [ticket for ticket in finished if not ticket.has_ended]
        pictures = model.finish([runs[ticket].picture for ticket in wanted]) if wanted else []
        news.ends.update(zip(wanted, pictures, strict=True))
        for ticket in finished:
            del runs[ticket]
            # The end of one who left meanwhile is known already; its place in the queue is free again.
            news.ends.setdefault(ticket, WorkFailed("the picture was not wanted any more"))
        for ticket in wanted:
            news.updates[ticket] = _update(finished[ticket].picture)
        self._tell(name, news)
        now = time.monotonic()
        for run in (*runs.values(), *finished.values()):
            run.spent_s += (now - began) / size
        for ticket in wanted:
            self._metrics.see_end(now - finished[ticket].began)
            self._num_done += 1
            weight = max(_NEWEST, 1 / self._num_done)
            self.mean_s += weight * (finished[ticket].spent_s / ticket.cost - self.mean_s)

    def _tell(self, name: str, news: News) -> None:
        """Note how far pictures are, with a preview of those that are due."""
        runs = self._runs[name]
        due = {
            ticket: run.picture
            for ticket, run in runs.items()
            if not ticket.has_ended
            and is_due(run.picture.iteration, run.picture.num_iterations, ticket.previews)
        }
        previews = self._previews(name, due) if due else {}
        for ticket, run in runs.items():
            news.updates[ticket] = _update(run.picture, previews.get(ticket))

    def _previews(self, name: str, due: "Mapping[Ticket, LivePicture]") -> dict[Ticket, np.ndarray]:
        """Pictures so far; none where the model fails at it, since the pictures themselves are untouched."""
        try:
            return dict(zip(due, self._models[name].preview(list(due.values())), strict=True))
        except Exception:
            _LOG.exception("model %s failed at previews", name)
            self._metrics.count_error()
            return {}


def is_due(iteration: int, num_iterations: int, previews: int) -> bool:
    """Whether a preview follows an iteration, of so many spread evenly; the last shows the picture itself."""
    parts = previews + 1
    return iteration < num_iterations and (
        iteration * parts // num_iterations > (iteration - 1) * parts // num_iterations
    )


def _update(picture: "LivePicture", preview: np.ndarray | None = None) -> Update:
    return Update(
        iteration=picture.iteration,
        num_iterations=picture.num_iterations,
        grid=picture.grid,
        known=picture.known(),
        preview=preview,
    )
