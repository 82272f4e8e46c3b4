"""Interruptions that wait for a good moment."""

import signal
import threading
from types import FrameType, TracebackType
from typing import Self


class Terminated(KeyboardInterrupt):
    """The process was asked to terminate (SIGTERM), not interrupted by its user."""


class Interrupts:
    """Context in which SIGINT and SIGTERM only set `pending`; leaving it brings back what they did before.

    A second SIGINT interrupts at once. Outside the main thread, which alone may handle signals, nothing
    changes.
    """

    def __init__(self) -> None:
        self.pending: int | None = None
        self._before: dict[int, signal._HANDLER] = {}

    def __enter__(self) -> Self:
        """Take over the signals."""
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give the signals back."""
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.pending and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.pending = number


def interruption(number: int) -> KeyboardInterrupt:
    """The exception that stands for a signal."""
    return Terminated() if number == signal.SIGTERM else KeyboardInterrupt()
