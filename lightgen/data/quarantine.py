"""Bad samples of a run: noted once, replaced by others, and fatal where they are too many.

Which sample stands in for a bad one follows from the data alone: the first good one of the chain of
`Order.stand_in`. What is known already only spares reading the bad ones again, so ranks, threads and resumed
runs agree, whatever each has seen.
"""

import contextlib
import json
import math
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from lightgen.core.errors import UserError
from lightgen.core.progress import say
from lightgen.data.images import CorruptRecord
from lightgen.data.latents import CorruptSample, damage
from lightgen.data.order import Order

_T = TypeVar("_T")


class Quarantine:
    """Known bad samples of a run; any number of threads may read through it.

    Each rank appends what it finds to a file of its own, `RANK.jsonl`, and reads those of all.

    Args:
        folder: of the files; None keeps the knowledge in memory.
        order: what stands in for what.
        total: samples that `max_share` is a share of.
        max_share: share of bad samples, 0 to 1, above which the run is aborted.
        rank: of this process.

    Raises:
        UserError: more samples are known to be bad than allowed.
    """

    def __init__(
        self, folder: Path | None, order: Order, total: int, max_share: float, rank: int = 0
    ) -> None:
        self._folder, self._order, self._total, self._max_share = folder, order, total, max_share
        self._allowed = math.floor(max_share * total + 1e-6)  # 0.29 * 100 is below 29
        self._lock = threading.Lock()
        self._bad: set[int] = set()
        self._seen: dict[Path, int] = {}  # bytes of each file that are read
        self._own: Path | None = None
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            self._own = folder / f"{rank}.jsonl"
            _drop_torn_line(self._own)
        self._read_files()
        self._check_share()

    @property
    def count(self) -> int:
        """Number of samples that are known to be bad, on all ranks as far as this one has looked."""
        with self._lock:
            return len(self._bad)

    def read(self, ids: Sequence[int], gather: Callable[[list[int]], _T]) -> tuple[list[int], _T]:
        """Ids [B] with the bad ones replaced, and what `gather` returns for them.

        Args:
            ids: of one group of the order.
            gather: reads samples; raises CorruptSample of one of them (see `blaming` and `renaming`).

        Raises:
            UserError: too many samples are bad, or all that could stand in for one.
        """
        while True:  # each round finds a bad sample that no later round reads
            with self._lock:
                chosen = [self._choose(sample) for sample in ids]
            try:
                return chosen, gather(chosen)
            except CorruptSample as error:
                assert error.sample in chosen, f"gather was not asked for sample {error.sample}"
                if self._note(error.sample, error.reason):
                    stand_in = self._choose(ids[chosen.index(error.sample)])
                    say(f"{error}; it is left out, sample {stand_in} takes its place")

    def _choose(self, sample: int) -> int:
        """The sample itself, or the first of its chain that is not known to be bad."""
        chosen, attempt = sample, 0
        while chosen in self._bad:
            attempt += 1
            chosen = self._order.stand_in(sample, attempt)
        return chosen

    def _note(self, sample: int, reason: str) -> bool:
        """Add a bad sample for all ranks to see; False where it is known already."""
        with self._lock:
            if sample in self._bad:  # another thread was faster
                return False
            self._bad.add(sample)
            if self._own is not None:
                line = json.dumps({"sample": sample, "reason": reason}) + "\n"
                with self._own.open("ab", buffering=0) as file:
                    file.write(line.encode())
            self._read_files()
            self._check_share()
            return True

    def _check_share(self) -> None:
        if len(self._bad) > self._allowed:
            where = "" if self._folder is None else f" (listed in {self._folder})"
            raise UserError(
                f"samples: got {len(self._bad)} bad of {self._total}{where}, "
                f"allowed: {self._allowed}, a share of {self._max_share:g}"
            )

    def _read_files(self) -> None:
        """Add what all ranks have noted since; a line that is not whole yet is left for the next time."""
        for path in sorted(self._folder.glob("*.jsonl")) if self._folder is not None else []:
            start = self._seen.get(path, 0)
            with path.open("rb") as file:
                file.seek(start)
                data = file.read()
            whole = data[: data.rfind(b"\n") + 1]
            self._seen[path] = start + len(whole)
            self._bad.update(_samples(whole))


@contextlib.contextmanager
def blaming(sample: int) -> Iterator[None]:
    """Context in which a record or a file that cannot be read makes this sample a bad one.

    Raises:
        CorruptSample: naming the sample, for a CorruptRecord or an OSError of the block.
    """
    try:
        yield
    except CorruptRecord as error:
        raise CorruptSample(sample, str(error)) from error
    except OSError as error:
        where = f"{Path(error.filename).name}: " if isinstance(error.filename, str) else ""
        raise CorruptSample(sample, where + damage(error)) from error


@contextlib.contextmanager
def renaming(names: Mapping[int, int]) -> Iterator[None]:
    """Context in which a bad part, such as a row, counts as the sample that it is part of, such as a pair.

    Raises:
        CorruptSample: naming `names[part]`, for one of the block that names the part.
    """
    try:
        yield
    except CorruptSample as error:
        raise CorruptSample(names[error.sample], error.reason) from error


def _drop_torn_line(path: Path) -> None:
    """Cut off what a killed run left of its last line, so that the next one starts afresh."""
    if path.is_file():
        with path.open("r+b") as file:
            file.truncate(file.read().rfind(b"\n") + 1)


def _samples(lines: bytes) -> Iterator[int]:
    """Samples of whole lines; one that is damaged counts as never written, as its sample is found again."""
    for line in lines.splitlines():
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(record, dict) and type(record.get("sample")) is int:
            yield record["sample"]
