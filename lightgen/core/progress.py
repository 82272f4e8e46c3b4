"""What a person sees while waiting: a bar with the time left on a terminal, elsewhere a line now and then."""

import functools
import sys
import time
from typing import TYPE_CHECKING, Self

from lightgen.core.config import environment

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress as Bar
    from rich.progress import TaskID

_LINE_EVERY_S = 5.0


class Progress:
    """Context that shows how much of `total` is done, how fast, and how long is left, on standard error.

    Of several ranks only the first shows anything.

    Args:
        description: what is being done.
        total: how many units there are, or None where that is not known.
        unit: plural noun of what is counted.
        done: units done by an earlier, interrupted run; they count as done, but not towards the speed.
        lines: whether there are lines where there is no terminal, between the first and the last.
    """

    def __init__(
        self, description: str, total: int | None, unit: str, done: int = 0, *, lines: bool = True
    ) -> None:
        self.description, self.total, self.unit, self.done = description, total, unit, done
        self._before, self._lines = done, lines
        self._is_first = environment("RANK") in (None, "", "0")
        self._shown: dict[str, object] = {}
        self._bar: Bar | None = None
        self._task: TaskID | None = None
        self._started = self._last_line = time.monotonic()

    def __enter__(self) -> Self:
        """Start the clock and show the beginning."""
        self._started = self._last_line = time.monotonic()
        if self._is_first and sys.stderr.isatty():
            self._bar = _new_bar()
            self._bar.start()
            self._task = self._bar.add_task(
                self.description, total=self.total, completed=self.done, unit=self.unit, shown=""
            )
        else:
            self._line()
        return self

    def advance(self, n: int = 1, **shown: object) -> None:
        """Count n more units as done and show the named values beside them."""
        self.done += n
        self._shown.update(shown)
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, advance=n, shown=_named(self._shown))
        elif self._lines and time.monotonic() - self._last_line >= _LINE_EVERY_S:
            self._last_line = time.monotonic()
            self._line()

    def __exit__(self, *exception: object) -> None:
        """Show the end."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = self._task = None
        elif self.done > self._before or self._shown:
            self._line(ended=True)

    def _line(self, *, ended: bool = False) -> None:
        if not self._is_first:
            return
        elapsed = time.monotonic() - self._started
        count = f"{self.done:,}" if self.total is None else f"{self.done:,}/{self.total:,}"
        parts = [f"{self.description}: {count} {self.unit}"]
        fresh = self.done - self._before
        if fresh and elapsed > 0:
            rate = fresh / elapsed
            parts.append(f"{rate:.3g} {self.unit}/s")
            if not ended and self.total is not None:
                parts.append(f"{duration(max(0, self.total - self.done) / rate)} left")
        if ended:
            parts.append(f"took {duration(elapsed)}")
        if self._shown:
            parts.append(_named(self._shown))
        sys.stderr.write(", ".join(parts) + "\n")
        sys.stderr.flush()


def printable(text: str) -> str:
    """Text of which nothing moves a terminal's cursor or sets its colours: names may be strangers'."""
    return "".join(each if each.isprintable() else "\N{REPLACEMENT CHARACTER}" for each in text)


def say(text: str) -> None:
    """Show one line of text on standard error, above a bar where one is running."""
    text = printable(text)
    if sys.stderr.isatty():
        _console().print(text, markup=False, highlight=False, soft_wrap=True)
    else:
        sys.stderr.write(text + "\n")
        sys.stderr.flush()


def duration(seconds: float) -> str:
    """Time as `42s`, `3:05` or `1:02:03`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    minutes, left = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{left:02}" if hours else f"{minutes}:{left:02}"


@functools.cache
def _console() -> "Console":
    # rich is imported only when a terminal needs it: it is a tenth of a second of `lightgen --help`
    from rich.console import Console

    return Console(stderr=True)


def _new_bar() -> "Bar":
    from rich import progress

    return progress.Progress(
        progress.TextColumn("{task.description}", markup=False),
        progress.BarColumn(bar_width=28),
        progress.MofNCompleteColumn(),
        progress.TextColumn("{task.fields[unit]}", markup=False),
        progress.TimeElapsedColumn(),
        progress.TextColumn("left"),
        progress.TimeRemainingColumn(),
        progress.TextColumn("{task.fields[shown]}", markup=False),
        console=_console(),
        speed_estimate_period=60,
    )


def _named(values: dict[str, object]) -> str:
    texts = {
        name: f"{value:.4g}" if isinstance(value, float) else str(value) for name, value in values.items()
    }
    return " ".join(f"{name} {text}" for name, text in texts.items())
