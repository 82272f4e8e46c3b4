"""Features of the pictures behind latents: for each shard of latents one of the same name, in a folder.

A shard holds `representation` [N, L, D] bfloat16, of the same N rows in the same order. As for latents,
nothing is mapped into memory, no file stays open, and any number of threads may read.
Letters: N rows of a shard, B rows of a batch, L tokens of a picture, D features.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from lightgen.core.directory import whole_file
from lightgen.core.errors import UserError
from lightgen.data.latents import CorruptSample, damage
from lightgen.data.tensor_file import read_entries

FOLDER = "representation"
_NAME = "representation"


@dataclass(frozen=True)
class _Shard:
    path: Path
    start: int  # first byte of the features
    shape: tuple[int, int, int]  # (N, L, D)


def write_representation_shard(path: Path, features: torch.Tensor) -> None:
    """Shard of features [N, L, D] of any float dtype, whole or not at all.

    Raises:
        UserError: a value that bfloat16 cannot hold as a finite number.
    """
    assert path.suffix == ".safetensors" and features.ndim == 3, (path, features.shape)
    stored = features.detach().to("cpu", torch.bfloat16).contiguous()
    if not bool(stored.isfinite().all()):
        raise UserError(f"{path.name}: got features that are not finite in bfloat16, allowed: finite ones")
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as temporary:
        save_file({_NAME: stored}, temporary)


class Representation:
    """Features of all rows of a directory of latents.

    Attributes:
        dim: D.

    Args:
        directory: of the latents.

    Raises:
        UserError: no shards, or one that is torn, of another layout, or at odds with the others.
    """

    def __init__(self, directory: Path) -> None:
        """Map of the shards; no features are read."""
        folder = directory / FOLDER
        paths = sorted(path for path in folder.glob("*.safetensors") if path.is_file())
        if not paths:
            raise UserError(f"{folder}: got no features of pictures, expected NAME.safetensors")
        self._shards = [_open_shard(path) for path in paths]
        self._ends = np.cumsum([shard.shape[0] for shard in self._shards])
        self.dim: int = self._shards[0].shape[2]
        for shard in self._shards:
            if shard.shape[2] != self.dim:
                raise UserError(f"{shard.path.name}: width differs from that of {paths[0].name}")

    def __len__(self) -> int:
        """Number of rows."""
        return int(self._ends[-1])

    def length(self, i: int) -> int:
        """L of row i."""
        return self._locate(i)[0].shape[1]

    def gather(self, ids: Sequence[int]) -> torch.Tensor:
        """Features bfloat16 [B, L, D] of rows of one size, in their order.

        Raises:
            CorruptSample: features that cannot be read or are not finite; the first such id is named.
        """
        return torch.stack([self._read(i) for i in ids])

    def _locate(self, i: int) -> tuple[_Shard, int]:
        """Shard and row in it; IndexError outside [0, len)."""
        if not 0 <= i < len(self):
            raise IndexError(f"row {i} of {len(self)}")
        number = int(np.searchsorted(self._ends, i, side="right"))
        return self._shards[number], i - int(self._ends[number]) + self._shards[number].shape[0]

    def _read(self, i: int) -> torch.Tensor:
        shard, row = self._locate(i)
        _, length, dim = shard.shape
        found = bytearray(2 * length * dim)
        try:
            with shard.path.open("rb", buffering=0) as file:
                file.seek(shard.start + row * len(found))
                read = file.readinto(found)
        except OSError as error:
            raise CorruptSample(i, f"{FOLDER}/{shard.path.name}: {damage(error)}") from error
        if read != len(found):
            raise CorruptSample(i, f"{FOLDER}/{shard.path.name}: the file is cut short")
        features = torch.frombuffer(found, dtype=torch.bfloat16).view(length, dim)
        if not bool(features.isfinite().all()):
            raise CorruptSample(i, f"{FOLDER}/{shard.path.name}: features that are not finite")
        return features


def _open_shard(path: Path) -> _Shard:
    entry = read_entries(path, [_NAME])[_NAME]
    shape = entry.shape
    if entry.dtype != "BF16" or len(shape) != 3 or 0 in shape:
        raise UserError(f"{path.name}: {_NAME} is {entry.dtype} {shape}, allowed: BF16 [N, L, D]")
    return _Shard(path, entry.start, (shape[0], shape[1], shape[2]))
