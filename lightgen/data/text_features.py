"""Features of texts: what a text encoder says of each distinct caption, in safetensors, found by the caption.

A shard holds `features` [sum of tokens, D], and for each of its N captions its `hashes` uint8 [N, 16], its
real tokens `lengths` int64 [N], and `cut` uint8 [N], 1 = it has more tokens than there are features of. As
for latents, nothing is mapped into memory, no file stays open, and any number of threads may read.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from lightgen.core.directory import whole_file
from lightgen.core.errors import UserError
from lightgen.data.latents import CorruptSample, damage
from lightgen.data.tensor_file import read_entries

_HASH_BYTES = 16
_DTYPES = {"BF16": torch.bfloat16, "F32": torch.float32}
_NAMES = ["cut", "features", "hashes", "lengths"]


@dataclass(frozen=True)
class TextRow:
    """What is kept of one caption.

    Attributes:
        caption: the text.
        features: [t, D], bfloat16 or float32.
        length: real tokens; features of padding may follow them.
        is_cut: whether the caption has more tokens.
    """

    caption: str
    features: torch.Tensor
    length: int
    is_cut: bool


@dataclass(frozen=True)
class _Shard:
    path: Path
    start: int  # first byte of the features
    width: int
    dtype: torch.dtype


def caption_hash(caption: str) -> bytes:
    """Hash [16 bytes] by which a caption is found."""
    return hashlib.blake2b(caption.encode("utf-8", "surrogatepass"), digest_size=_HASH_BYTES).digest()


def write_text_shard(path: Path, rows: Sequence[TextRow]) -> None:
    """Shard of one or more captions, whole or not at all; the same rows give the same bytes."""
    assert rows and len({row.features.dtype for row in rows}) == 1, path
    hashes = np.frombuffer(b"".join(caption_hash(row.caption) for row in rows), dtype=np.uint8)
    tensors = {
        "features": torch.cat([row.features for row in rows]).contiguous(),
        "hashes": torch.from_numpy(hashes.reshape(-1, _HASH_BYTES).copy()),
        "lengths": torch.tensor([row.length for row in rows]),
        "cut": torch.tensor([row.is_cut for row in rows], dtype=torch.uint8),
    }
    with whole_file(path) as temporary:
        save_file(tensors, temporary)


class TextFeatures:
    """Features of the captions of a directory of text shards.

    Attributes:
        num_cut: captions that have more tokens.
        longest: most real tokens of a caption.
        width: D.

    Args:
        folder: of the shards.
        padded_to: tokens that there are features of for each caption, padding included; None = real ones.

    Raises:
        UserError: no shards, or one that is torn, of another layout, or at odds with the others.
    """

    def __init__(self, folder: Path, padded_to: int | None = None) -> None:
        """Table of all captions; no features are read."""
        self._padded_to = padded_to
        paths = sorted(path for path in folder.glob("*.safetensors") if path.is_file())
        if not paths:
            raise UserError(f"{folder}: got no text features, expected NAME.safetensors")
        self._shards: list[_Shard] = []
        hashes, lengths, starts, shards, cut = [], [], [], [], 0
        for number, path in enumerate(paths):
            shard, table = _open_shard(path, padded_to)
            self._shards.append(shard)
            count = table["lengths"].numpy()
            kept = count if padded_to is None else np.full_like(count, padded_to)
            hashes.append(table["hashes"].numpy().tobytes())
            lengths.append(count.astype(np.int32))
            starts.append(np.cumsum(kept) - kept)
            shards.append(np.full(len(count), number, dtype=np.int32))
            cut += int(table["cut"].sum())
        first = self._shards[0]
        for shard in self._shards:
            if (shard.width, shard.dtype) != (first.width, first.dtype):
                raise UserError(f"{shard.path.name}: width or type differ from those of {first.path.name}")
        keys = np.frombuffer(b"".join(hashes), dtype=f"S{_HASH_BYTES}")
        order = np.argsort(keys, kind="stable")
        self._keys, self._shard = keys[order], np.concatenate(shards)[order]
        self._lengths, self._starts = np.concatenate(lengths)[order], np.concatenate(starts)[order]
        self.num_cut, self.width, self.longest = cut, first.width, int(self._lengths.max())

    def __len__(self) -> int:
        """Number of captions."""
        return len(self._keys)

    def gather(
        self, captions: Sequence[str], ids: Sequence[int], padded_to: int | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Features [B, T, D] and mask bool [B, T], True = real token; zeros where there are none.

        Args:
            captions: one or more.
            ids: sample of each, for the error.
            padded_to: T; None = the next multiple of 8 of the longest caption.

        Raises:
            CorruptSample: a caption without features, or features that cannot be read or are not finite.
        """
        places = [self._find(caption, i) for caption, i in zip(captions, ids, strict=True)]
        lengths = self._lengths[places]
        length = padded_to or max(8, math.ceil(int(lengths.max()) / 8) * 8)
        features = torch.zeros(len(places), length, self.width, dtype=self._shards[0].dtype)
        for row, (place, i) in enumerate(zip(places, ids, strict=True)):
            tokens = min(length, self._padded_to or int(lengths[row]))
            features[row, :tokens] = self._read(place, tokens, i)
        mask = torch.arange(length) < torch.from_numpy(lengths.astype(np.int64))[:, None]
        return features, mask

    def _find(self, caption: str, i: int) -> int:
        wanted = np.frombuffer(caption_hash(caption), dtype=self._keys.dtype)
        place = int(np.searchsorted(self._keys, wanted)[0])
        if place == len(self._keys) or self._keys[place] != wanted[0]:
            raise CorruptSample(i, f"no text features of its caption {caption[:60]!r}")
        return place

    def _read(self, place: int, tokens: int, i: int) -> torch.Tensor:
        """Features [tokens, D] of the first tokens of a caption."""
        shard = self._shards[self._shard[place]]
        row_bytes = shard.width * shard.dtype.itemsize
        found = bytearray(tokens * row_bytes)
        try:
            with shard.path.open("rb", buffering=0) as file:
                file.seek(shard.start + int(self._starts[place]) * row_bytes)
                read = file.readinto(found)
        except OSError as error:
            raise CorruptSample(i, f"{shard.path.name}: {damage(error)}") from error
        if read != len(found):
            raise CorruptSample(i, f"{shard.path.name}: the file is cut short")
        features = torch.frombuffer(found, dtype=shard.dtype).view(tokens, shard.width)
        if not bool(features.isfinite().all()):
            raise CorruptSample(i, f"{shard.path.name}: features that are not finite")
        return features


def _open_shard(path: Path, padded_to: int | None) -> tuple[_Shard, dict[str, torch.Tensor]]:
    """Where the features of a shard begin, and its other tensors."""
    entry = read_entries(path, _NAMES)["features"]
    with safe_open(path, framework="pt") as file:
        table = {name: file.get_tensor(name) for name in _NAMES if name != "features"}
    lengths = table["lengths"]
    tokens = len(lengths) * padded_to if padded_to else int(lengths.sum())
    is_fit = entry.dtype in _DTYPES and len(entry.shape) == 2 and entry.shape[0] == tokens
    longest = int(lengths.max()) if len(lengths) else 0
    if not is_fit or not len(lengths) or int(lengths.min()) < 1 or longest > (padded_to or longest):
        raise UserError(
            f"{path.name}: features {entry.dtype} {entry.shape} of {len(lengths)} captions, "
            f"allowed: BF16 or F32 [{tokens}, D], from one token for each"
        )
    if table["hashes"].shape != (len(lengths), _HASH_BYTES) or len(table["cut"]) != len(lengths):
        raise UserError(f"{path.name}: tables of different lengths, allowed: one row for each caption")
    return _Shard(path, entry.start, entry.shape[1], _DTYPES[entry.dtype]), table
