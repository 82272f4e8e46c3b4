"""What a chain of stages has cost so far: seconds of clock and processors, interrupted runs included."""

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

from lightgen.core.metrics import MetricsLog, read_metrics
from lightgen.core.progress import duration


class Journal:
    """File of JSON lines, one per run of a stage."""

    def __init__(self, path: Path) -> None:
        self._path = path

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Context whose cost is noted under the name, also where it ends early."""
        clock, processor = time.monotonic(), time.process_time()
        try:
            yield
        finally:
            seconds, cpu = time.monotonic() - clock, time.process_time() - processor
            self.note(name, seconds, cpu)

    def note(self, name: str, seconds: float, cpu_seconds: float) -> None:
        """Note a cost under a name, beside what is noted there already."""
        log = MetricsLog(self._path)
        log.write(len(read_metrics(self._path)), stage=name, seconds=seconds, cpu_seconds=cpu_seconds)

    def costs(self) -> dict[str, tuple[float, float]]:
        """(Seconds, processor seconds) of each stage, in order of first appearance."""
        found: dict[str, tuple[float, float]] = {}
        for record in read_metrics(self._path):
            seconds, cpu = found.get(record["stage"], (0.0, 0.0))
            found[record["stage"]] = (seconds + record["seconds"], cpu + record["cpu_seconds"])
        return found

    def rows(self) -> list[tuple[str, float, str]]:
        """Stage, seconds and cost in words, as a report's timeline takes them."""
        return [
            (name, seconds, f"{duration(cpu)} of processor") for name, (seconds, cpu) in self.costs().items()
        ]
