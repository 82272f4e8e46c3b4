"""Latent shards: the autoencoder's mean and std in safetensors, and beside each shard a table of JSON lines.

Opening costs the headers and the line offsets of the tables; a row is read in place, and all processes of a
machine share what the system has cached. Nothing is mapped into memory: a mapped file that gets shorter or
fails kills the process, where a read says what happened. No file stays open between reads and reading changes
no state, so any number of threads may read one LatentShards.
Letters: N rows of a shard, B rows of a batch, C channels, h w grid.
"""

import contextlib
import errno
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from lightgen.core.directory import whole_file
from lightgen.core.errors import UserError
from lightgen.data.tensor_file import read_entries

_COLUMNS: dict[str, type] = {"caption": str, "height": int, "width": int, "key": str}
_NO_DAMAGE = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)  # the system is short of something; the file is fine


class CorruptSample(UserError):
    """A sample that cannot be used.

    Attributes:
        sample: its id.
        reason: what is wrong with it, and in which file.
    """

    def __init__(self, sample: int, reason: str) -> None:
        super().__init__(f"sample {sample}: {reason}")
        self.sample, self.reason = sample, reason


@dataclass(frozen=True)
class LatentRecord:
    """One row.

    Attributes:
        mean, std: [C, h, w] float32; std None where the shards hold none.
        row: its line of the table: caption, height and width (of the image, px), key, extras such as score.
    """

    mean: Tensor
    std: Tensor | None
    caption: str
    row: dict[str, Any]


@dataclass(frozen=True)
class _Shard:
    path: Path
    count: int
    shape: tuple[int, int, int]  # (C, h, w)
    starts: dict[str, int]  # first byte of mean and, where there is one, of std: [N, C, h, w] bfloat16
    lines: np.ndarray  # [N + 1] int64: where each line of the table begins, and the end


def write_latent_shard(
    path: Path, mean: Tensor, std: Tensor | None, rows: Sequence[Mapping[str, Any]]
) -> None:
    """Shard `NAME.safetensors` and its table `NAME.jsonl`; where the shard has its name, both are whole.

    Args:
        path: final path; must end in .safetensors, as the table is named after it.
        mean: [N, C, h, w] of any float dtype, stored as bfloat16.
        std: as mean and at least 0, or None.
        rows: N lines of the table, each with caption, height, width and key.

    Raises:
        UserError: a value that bfloat16 cannot hold as a finite number, or a negative std.
    """
    assert path.suffix == ".safetensors", path
    assert mean.ndim == 4 and len(mean) == len(rows) >= 1, (mean.shape, len(rows))
    assert std is None or std.shape == mean.shape, (std.shape, mean.shape)
    for row in rows:
        wrong = [name for name, kind in _COLUMNS.items() if not isinstance(row.get(name), kind)]
        assert not wrong, f"columns {wrong} of row {row}"
    tensors = {"mean": mean} if std is None else {"mean": mean, "std": std}
    tensors = {name: t.detach().to("cpu", torch.bfloat16).contiguous() for name, t in tensors.items()}
    for name, tensor in tensors.items():
        good = torch.isfinite(tensor) & (tensor >= 0) if name == "std" else torch.isfinite(tensor)
        bad = (~good.flatten(1).all(1)).nonzero().flatten().tolist()
        if bad:
            key = rows[bad[0]]["key"]
            raise UserError(f"{path.name}: {name} of {key!r}, allowed: finite in bfloat16, and std from 0")

    text = "".join(json.dumps(dict(row), allow_nan=False) + "\n" for row in rows)
    with whole_file(path.with_suffix(".jsonl")) as temporary:
        temporary.write_bytes(text.encode())
    with whole_file(path) as temporary:
        save_file(tensors, temporary)


class LatentShards:
    """All rows of a directory of latent shards, by order of shard name, then of row.

    Raises:
        UserError: no shards, or a shard or table that is torn, of another layout, or at odds with the others.
    """

    def __init__(self, directory: Path) -> None:
        """Map of the directory; no latents are read."""
        paths = sorted(path for path in directory.glob("*.safetensors") if path.is_file())
        if not paths:
            raise UserError(f"{directory}: got no latent shards, expected NAME.safetensors and NAME.jsonl")
        self._shards = [_open_shard(path) for path in paths]
        self._ends = np.cumsum([shard.count for shard in self._shards])
        first = self._shards[0]
        for shard in self._shards:
            if shard.shape[0] != first.shape[0] or shard.starts.keys() != first.starts.keys():
                raise UserError(f"{shard.path.name}: channels or std differ from those of {first.path.name}")
        self.channels: int = first.shape[0]
        self.has_std: bool = "std" in first.starts

    def __len__(self) -> int:
        """Number of rows."""
        return int(self._ends[-1])

    def __getitem__(self, i: int) -> LatentRecord:
        """Row i as float32; IndexError outside [0, len)."""
        mean, std, rows = self.gather([i])
        return LatentRecord(mean[0], None if std is None else std[0], rows[0]["caption"], rows[0])

    def shape(self, i: int) -> tuple[int, int, int]:
        """(C, h, w) of row i."""
        shard, _ = self._locate([i])
        return self._shards[int(shard[0])].shape

    def groups(self) -> list[list[range]]:
        """Rows of each grid size (h, w), by order of first appearance: ranges that do not touch."""
        found: dict[tuple[int, int, int], list[range]] = {}
        for shard, end in zip(self._shards, self._ends.tolist(), strict=True):
            ranges, start = found.setdefault(shard.shape, []), end - shard.count
            if ranges and ranges[-1].stop == start:
                start = ranges.pop().start
            ranges.append(range(start, end))
        return list(found.values())

    def row(self, i: int) -> dict[str, Any]:
        """Line of the table of row i, without touching its latents; raises CorruptSample."""
        shard, at = self._locate([i])
        return _whole([i], *_read_rows(self._shards[int(shard[0])], at))[0]

    def rows(self) -> list[dict[str, Any]]:
        """The whole table: every row in order; raises CorruptSample."""
        return list(self.each_row())

    def each_row(self) -> Iterator[dict[str, Any]]:
        """As `rows`, with the table of one shard in memory at a time."""
        for shard, end in zip(self._shards, self._ends.tolist(), strict=True):
            yield from _whole(range(end - shard.count, end), *_read_rows(shard, np.arange(shard.count)))

    def gather(self, ids: Sequence[int]) -> tuple[Tensor, Tensor | None, list[dict[str, Any]]]:
        """Mean [B, C, h, w] and std (or None), float32, and the table's rows of the ids, in their order.

        Raises:
            CorruptSample: latents that are not finite, a negative std, a line of the table without a caption,
                or a file that cannot be read any more; the first such id is named.
            UserError: the ids hold latents of more than one grid size.
        """
        shards, at = self._locate(ids)
        grids = {self._shards[s].shape for s in set(shards.tolist())}
        if len(grids) != 1:
            raise UserError(f"latents: got a batch of {len(grids)} sizes {sorted(grids)}, allowed: one")
        shape = grids.pop()
        raw = {name: np.zeros((len(ids), *shape), dtype=np.int16) for name in self._shards[0].starts}
        rows: list[dict[str, Any]] = [{}] * len(ids)
        bad: dict[int, str] = {}  # what is wrong, by place in the batch
        for s in sorted(set(shards.tolist())):
            shard, places = self._shards[s], np.flatnonzero(shards == s).tolist()
            found, wrong = _read_rows(shard, at[places])
            bad |= {places[j]: reason for j, reason in wrong.items()} | _read_latents(shard, at, places, raw)
            for place, row in zip(places, found, strict=True):
                rows[place] = row
                if place not in bad and not row["caption"].strip():
                    bad[place] = f"{_line_of(shard, at[place])}: its caption is blank"
        batch = {name: torch.from_numpy(bits).view(torch.bfloat16).float() for name, bits in raw.items()}
        for name, tensor in batch.items():
            low, high = tensor.flatten(1).amin(1), tensor.flatten(1).amax(1)  # NaN where there is one
            good = (low >= 0 if name == "std" else low > -torch.inf) & (high < torch.inf)
            for place in (~good).nonzero().flatten().tolist():
                file, fault = self._shards[shards[place]].path.name, "negative or " if name == "std" else ""
                bad.setdefault(place, f"{file}, row {int(at[place]) + 1}: its {name} is {fault}not finite")
        return batch["mean"], batch.get("std"), _whole(ids, rows, bad)

    def _locate(self, ids: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """Shard number and row within the shard, [B] int64 each."""
        wanted = np.asarray(ids, dtype=np.int64)
        if wanted.size and (wanted.min() < 0 or wanted.max() >= len(self)):
            raise IndexError(f"row {wanted.min()} or {wanted.max()} of {len(self)}")
        shards = np.searchsorted(self._ends, wanted, side="right")
        return shards, wanted - np.concatenate([[0], self._ends])[shards]


def _open_shard(path: Path) -> _Shard:
    (count, *shape), starts = _read_header(path)
    table = path.with_suffix(".jsonl")
    if not table.is_file():
        raise UserError(f"{path.name}: its table {table.name} is missing")
    data = np.frombuffer(table.read_bytes(), dtype=np.uint8)
    lines = np.concatenate([[0], np.flatnonzero(data == ord("\n")) + 1]).astype(np.int64)
    if len(lines) - 1 != count or lines[-1] != len(data):
        raise UserError(f"{table.name}: got {len(lines) - 1} whole lines, expected {count} as in {path.name}")
    return _Shard(path, count, (shape[0], shape[1], shape[2]), starts, lines)


def _read_header(path: Path) -> tuple[list[int], dict[str, int]]:
    """Shape [N, C, h, w] and first byte of each tensor, of a file of our layout."""
    tensors = read_entries(path, ["mean"], ["mean", "std"])
    shape = tensors["mean"].shape
    for name, tensor in tensors.items():
        if tensor.dtype != "BF16" or len(shape) != 4 or tensor.shape != shape or 0 in shape:
            raise UserError(
                f"{path.name}: {name} is {tensor.dtype} {tensor.shape}, "
                "allowed: BF16 [N, C, h, w], as mean and as std"
            )
    return shape, {name: each.start for name, each in tensors.items()}


def _read_latents(
    shard: _Shard, at: np.ndarray, places: Sequence[int], raw: Mapping[str, np.ndarray]
) -> dict[int, str]:
    """Fill the places of the batch [B, C, h, w] with the bits of rows `at` [B]; what is wrong, by place."""
    wrong: dict[int, str] = {}
    name = shard.path.name
    with _noting(wrong, places, name), shard.path.open("rb", buffering=0) as file:
        for column, start in shard.starts.items():
            for place in places:
                bits = raw[column][place]
                with _noting(wrong, [place], name):
                    file.seek(start + int(at[place]) * bits.nbytes)
                    if file.readinto(memoryview(bits).cast("B")) != bits.nbytes:
                        wrong[place] = f"{name}, row {int(at[place]) + 1}: the file is cut short"
    return wrong


def _read_rows(shard: _Shard, at: np.ndarray) -> tuple[list[dict[str, Any]], dict[int, str]]:
    """Rows of the table at the given lines [K], and what is wrong, by place in them."""
    rows: list[dict[str, Any]] = [{}] * len(at)
    wrong: dict[int, str] = {}
    table = shard.path.with_suffix(".jsonl")
    with _noting(wrong, range(len(at)), table.name), table.open("rb", buffering=0) as file:
        for place, line in enumerate(at.tolist()):
            start, end = int(shard.lines[line]), int(shard.lines[line + 1])
            with _noting(wrong, [place], table.name):
                file.seek(start)
                text = file.read(end - start)
                try:
                    rows[place] = json.loads(text)
                except (ValueError, RecursionError):
                    wrong[place] = f"{_line_of(shard, line)}: not JSON"
                    continue
                if not isinstance(rows[place], dict) or not isinstance(rows[place].get("caption"), str):
                    wrong[place] = f"{_line_of(shard, line)}: expected an object with a 'caption' string"
    return rows, wrong


@contextlib.contextmanager
def _noting(wrong: dict[int, str], places: Sequence[int], name: str) -> Iterator[None]:
    """Context in which a failure to read the file `name` is what is wrong with the places."""
    try:
        yield
    except OSError as error:
        wrong.update(dict.fromkeys(places, f"{name}: {damage(error)}"))


def _line_of(shard: _Shard, line: int) -> str:
    return f"{shard.path.stem}.jsonl, line {int(line) + 1}"


def _whole(ids: Sequence[int], rows: list[dict[str, Any]], bad: Mapping[int, str]) -> list[dict[str, Any]]:
    """The rows of the ids, if none is bad; raises CorruptSample of the first."""
    if bad:
        raise CorruptSample(ids[min(bad)], bad[min(bad)])
    return rows


def damage(error: OSError) -> str:
    """Why a file cannot be read, in a few words; raises the error again where the file is not to blame."""
    if error.errno in _NO_DAMAGE:
        raise error
    return error.strerror or type(error).__name__
