"""Latent shards: the autoencoder's mean and std in safetensors, and beside each shard a table of JSON lines.

Shards are memory-mapped: opening costs the headers and the line offsets of the tables, a row costs the pages
that it lies on, and all processes of a machine share what the system has cached. No file stays open between
reads and reading changes no state, so any number of threads may read one LatentShards.
Letters: N rows of a shard, B rows of a batch, C channels, h w grid.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from lightgen.core.directory import whole_file
from lightgen.core.errors import UserError

_MAX_HEADER_BYTES = 1 << 20
_COLUMNS: dict[str, type] = {"caption": str, "height": int, "width": int, "key": str}


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
    mean: Tensor  # [N, C, h, w] bfloat16, mapped
    std: Tensor | None
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
        self._ends = np.cumsum([len(shard.mean) for shard in self._shards])
        first = self._shards[0]
        for shard in self._shards:
            if shard.mean.shape[1] != first.mean.shape[1] or (shard.std is None) != (first.std is None):
                raise UserError(f"{shard.path.name}: channels or std differ from those of {first.path.name}")
        self.channels: int = first.mean.shape[1]
        self.has_std: bool = first.std is not None

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
        channels, height, width = self._shards[int(shard[0])].mean.shape[1:]
        return channels, height, width

    def row(self, i: int) -> dict[str, Any]:
        """Line of the table of row i, without touching its latents."""
        shard, at = self._locate([i])
        return _read_rows(self._shards[int(shard[0])], at)[0]

    def rows(self) -> list[dict[str, Any]]:
        """The whole table: every row in order."""
        return [row for shard in self._shards for row in _read_rows(shard, np.arange(len(shard.mean)))]

    def gather(self, ids: Sequence[int]) -> tuple[Tensor, Tensor | None, list[dict[str, Any]]]:
        """Mean [B, C, h, w] and std (or None), float32, and the table's rows of the ids, in their order.

        Raises:
            UserError: the ids hold latents of more than one grid size, or a line of the table is not a row.
        """
        shards, at = self._locate(ids)
        grids = {self._shards[s].mean.shape[1:] for s in set(shards.tolist())}
        if len(grids) != 1:
            raise UserError(
                f"latents: got a batch of {len(grids)} sizes {sorted(map(tuple, grids))}, allowed: one"
            )
        mean = torch.empty(len(ids), *grids.pop())
        std = torch.empty_like(mean) if self.has_std else None
        rows: list[dict[str, Any]] = [{}] * len(ids)
        for s in sorted(set(shards.tolist())):
            shard, places = self._shards[s], np.flatnonzero(shards == s)
            source, target = torch.from_numpy(at[places]), torch.from_numpy(places)
            mean[target] = shard.mean[source].float()
            if std is not None and shard.std is not None:
                std[target] = shard.std[source].float()
            for place, row in zip(places.tolist(), _read_rows(shard, at[places]), strict=True):
                rows[place] = row
        return mean, std, rows

    def _locate(self, ids: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """Shard number and row within the shard, [B] int64 each."""
        wanted = np.asarray(ids, dtype=np.int64)
        if wanted.size and (wanted.min() < 0 or wanted.max() >= len(self)):
            raise IndexError(f"row {wanted.min()} or {wanted.max()} of {len(self)}")
        shards = np.searchsorted(self._ends, wanted, side="right")
        return shards, wanted - np.concatenate([[0], self._ends])[shards]


def _open_shard(path: Path) -> _Shard:
    tensors = _map_tensors(path)
    table = path.with_suffix(".jsonl")
    if not table.is_file():
        raise UserError(f"{path.name}: its table {table.name} is missing")
    data = np.frombuffer(table.read_bytes(), dtype=np.uint8)
    lines = np.concatenate([[0], np.flatnonzero(data == ord("\n")) + 1]).astype(np.int64)
    count = len(tensors["mean"])
    if len(lines) - 1 != count or lines[-1] != len(data):
        raise UserError(f"{table.name}: got {len(lines) - 1} whole lines, expected {count} as in {path.name}")
    return _Shard(path, tensors["mean"], tensors.get("std"), lines)


def _map_tensors(path: Path) -> dict[str, Tensor]:
    """Mapped tensors of a shard, after its header is found to be of a fair size and of our layout."""
    with path.open("rb") as file:
        header_bytes = int.from_bytes(file.read(8), "little")
    if header_bytes > _MAX_HEADER_BYTES:
        raise UserError(f"{path.name}: header of {header_bytes} bytes, allowed: up to {_MAX_HEADER_BYTES}")
    try:
        with safe_open(path, framework="pt") as file:
            names = sorted(file.keys())
            if names not in (["mean"], ["mean", "std"]):
                raise UserError(f"{path.name}: got tensors {', '.join(names)[:80]!r}, allowed: mean and std")
            tensors = {name: file.get_tensor(name) for name in names}
    except SafetensorError as error:
        reason = str(error).partition("\n")[0]
        raise UserError(f"{path.name}: not a whole safetensors file ({reason})") from error
    shape = tensors["mean"].shape
    for name, tensor in tensors.items():
        if tensor.dtype != torch.bfloat16 or tensor.ndim != 4 or tensor.shape != shape or tensor.numel() == 0:
            got = f"{tensor.dtype} {list(tensor.shape)}"
            raise UserError(
                f"{path.name}: {name} is {got}, allowed: bfloat16 [N, C, h, w], as mean and as std"
            )
    return tensors


def _read_rows(shard: _Shard, at: np.ndarray) -> list[dict[str, Any]]:
    """Rows of the table at the given lines; the file is open no longer than that."""
    rows = []
    table = shard.path.with_suffix(".jsonl")
    with table.open("rb", buffering=0) as file:
        for line in at.tolist():
            start, end = int(shard.lines[line]), int(shard.lines[line + 1])
            try:
                file.seek(start)
                row = json.loads(file.read(end - start))
            except (ValueError, RecursionError) as error:
                raise UserError(f"{table.name}, line {line + 1}: not JSON") from error
            if not isinstance(row, dict) or not isinstance(row.get("caption"), str):
                raise UserError(f"{table.name}, line {line + 1}: expected an object with a 'caption' string")
            rows.append(row)
    return rows
