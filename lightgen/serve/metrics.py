"""What the server counts and measures, in the words of Prometheus."""

import asyncio
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

# What became of a picture that was asked for.
Fate = Literal[
    "done", "failed", "late", "cancelled", "refused_key", "refused_queue", "refused_late", "refused_ending"
]

_BATCHES = (1, 2, 4, 8, 16, 32, 64, 128)
_STEP_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
_PICTURE_S = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 60, 120, 300)
_LAG_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)
_STATM = Path("/proc/self/statm")


class Metrics:
    """Counters and histograms of one server; safe to count from any thread.

    Every label takes few values: routes are named by their template, never by what a stranger sent.

    Attributes:
        registry: of this server alone.
        content_type: of `text`.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.content_type = CONTENT_TYPE_LATEST
        made = {"namespace": "lightgen", "registry": self.registry}
        self._requests = Counter("requests", "HTTP requests", ("route", "status"), **made)
        self._pictures = Counter("pictures", "Pictures asked for, by what became of them", ("fate",), **made)
        self._waiting = Gauge("queue_length", "Pictures that wait", **made)
        self._running = Gauge("running", "Pictures that are decoded", **made)
        self._batch = Histogram("batch_size", "Pictures per iteration", buckets=_BATCHES, **made)
        self._step_s = Histogram("iteration_seconds", "Seconds per iteration", buckets=_STEP_S, **made)
        self._wait_s = Histogram("wait_seconds", "From acceptance to the start", buckets=_PICTURE_S, **made)
        self._decode_s = Histogram("decode_seconds", "From the start to the end", buckets=_PICTURE_S, **made)
        self._lag_s = Histogram("event_loop_lag_seconds", "How late it wakes", buckets=_LAG_S, **made)
        self._errors = Counter("worker_errors", "Exceptions of models", **made)
        rss = Gauge("resident_memory_bytes", "Memory of the process", **made)
        rss.set_function(resident_bytes)

    def watch_queue(self, num_waiting: Callable[[], int], num_running: Callable[[], int]) -> None:
        """Read the queue's length and the running pictures from these whenever the metrics are asked for."""
        self._waiting.set_function(num_waiting)
        self._running.set_function(num_running)

    def count_request(self, route: str, status: int) -> None:
        """Count an answered request; `route` is the template, such as /v1/images/jobs/{id}."""
        self._requests.labels(route, str(status)).inc()

    def count_pictures(self, fate: Fate, count: int = 1) -> None:
        """Count what became of pictures."""
        self._pictures.labels(fate).inc(count)

    def count_error(self) -> None:
        """Count an exception that a model raised."""
        self._errors.inc()

    def see_iteration(self, seconds: float, batch_size: int) -> None:
        """Note an iteration of a batch."""
        self._step_s.observe(seconds)
        self._batch.observe(batch_size)

    def see_start(self, wait_s: float) -> None:
        """Note that a picture begins after so many seconds in the queue."""
        self._wait_s.observe(wait_s)

    def see_end(self, decode_s: float) -> None:
        """Note that a picture is done so many seconds after it began."""
        self._decode_s.observe(decode_s)

    def see_lag(self, seconds: float) -> None:
        """Note how late the event loop woke."""
        self._lag_s.observe(seconds)

    def text(self) -> bytes:
        """All of it, as Prometheus reads it."""
        return generate_latest(self.registry)


class EventLoopLag:
    """A task that notes, again and again, how late the running event loop wakes it.

    Args:
        metrics: where it is noted.
        every_s: seconds between two looks.

    Attributes:
        last_s: seconds of the last look.
    """

    def __init__(self, metrics: Metrics, every_s: float = 0.5) -> None:
        self.last_s = 0.0
        self._metrics, self._every_s = metrics, every_s
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin on the running event loop."""
        self._task = asyncio.get_running_loop().create_task(self._look(), name="event-loop-lag")

    async def stop(self) -> None:
        """End, and wait for the end."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None

    async def _look(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + self._every_s
            await asyncio.sleep(self._every_s)
            self.last_s = max(0.0, loop.time() - due)
            self._metrics.see_lag(self.last_s)


def resident_bytes() -> float:
    """Memory of this process that is in RAM; where the system does not say, the most that it ever was."""
    if _STATM.is_file():
        return int(_STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    if sys.platform == "win32":
        return 0.0
    import resource

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return float(most if sys.platform == "darwin" else most * 1024)
