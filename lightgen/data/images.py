"""Image shards: tar files of `KEY.png|jpg|webp` + `KEY.json` (WebDataset), read in place by offset.

Shards may come from strangers: nothing is ever extracted, only regular files under relative names count, and
what is left out is listed in `ImageShards.skipped`. No file stays open between reads and reading changes no
state, so any number of threads may read one ImageShards.
"""

import io
import json
import re
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from lightgen.core.directory import whole_file
from lightgen.core.errors import UserError
from lightgen.data.picture import decode_image
from lightgen.data.tar import read_span, scan_members

Format = Literal["png", "jpg", "webp"]
MAX_IMAGE_BYTES = 64 << 20
MAX_JSON_BYTES = 1 << 20

_IMAGE_SUFFIXES = ("png", "jpg", "jpeg", "webp")
_UNSAFE = re.compile(r"[\x00-\x1f\x7f\\]")


class CorruptRecord(UserError):
    """A record whose image or JSON cannot be read; names the shard and the key."""


@dataclass(frozen=True)
class ImageRecord:
    """One image.

    Attributes:
        key: name within its shard, without suffix.
        image: uint8 [H, W, 3].
        meta: at least `prompt`; seed, generator, score and the like where known.
    """

    key: str
    image: np.ndarray
    meta: Mapping[str, Any]


@dataclass(frozen=True)
class EncodedRecord:
    """One image as the bytes of its file, so that copying it loses nothing; suffix without dot."""

    key: str
    data: bytes
    suffix: str
    meta: Mapping[str, Any]


@dataclass(frozen=True)
class Skipped:
    """A member of a shard that is in no record, and why; name is empty where the shard itself is damaged."""

    shard: str
    name: str
    reason: str


def encode_image(image: np.ndarray, format: Format = "png") -> bytes:
    """File bytes of an image uint8 [H, W, 3], the same for the same pixels; png is lossless."""
    assert image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3, (image.dtype, image.shape)
    buffer, picture = io.BytesIO(), Image.fromarray(np.ascontiguousarray(image))
    if format == "png":
        picture.save(buffer, "PNG", compress_level=1)  # 1 is as quick to read and far quicker to write than 6
    elif format == "jpg":
        picture.save(buffer, "JPEG", quality=95, subsampling=0)
    else:
        assert format == "webp", format
        picture.save(buffer, "WEBP", quality=95)
    return buffer.getvalue()


def write_image_shard(path: Path, records: Iterable[ImageRecord], format: Format = "png") -> int:
    """Shard at path, whole or not at all, and its number of records; the same records give the same bytes."""
    encoded = (EncodedRecord(r.key, encode_image(r.image, format), format, r.meta) for r in records)
    return write_encoded_shard(path, encoded)


def write_encoded_shard(path: Path, records: Iterable[EncodedRecord]) -> int:
    """As write_image_shard, of images that are files already.

    Raises:
        UserError: two records of one key.
    """
    keys: set[str] = set()
    with whole_file(path) as temporary, tarfile.open(temporary, "w", format=tarfile.PAX_FORMAT) as tar:
        for record in records:
            key, suffix = record.key, record.suffix
            assert _split(f"{key}.{suffix}") == (key, suffix) and suffix in _IMAGE_SUFFIXES, (key, suffix)
            assert isinstance(record.meta.get("prompt"), str), key
            if key in keys:
                raise UserError(f"{path.name}: got two records of key {key!r}, allowed: one")
            keys.add(key)
            text = json.dumps(dict(record.meta), sort_keys=True, allow_nan=False)
            for name, data in ((f"{key}.{suffix}", record.data), (f"{key}.json", text.encode())):
                member = tarfile.TarInfo(name)  # time, owner and group are 0
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return len(keys)


class ImageShards:
    """All records of a directory of `*.tar`, by order of shard name, then of first appearance in the shard.

    Attributes:
        skipped: every member that is left out, with the reason.

    Raises:
        UserError: no shards, a file that is no plain tar, or no whole record in any of them.
    """

    def __init__(self, directory: Path) -> None:
        """Index of the directory, from the headers of its shards alone."""
        self._paths = sorted(path for path in directory.glob("*.tar") if path.is_file())
        if not self._paths:
            raise UserError(f"{directory}: got no image shards, expected *.tar files")
        self.skipped: list[Skipped] = []
        self._keys: list[str] = []
        spans: list[tuple[int, int, int, int, int]] = []
        for number, path in enumerate(self._paths):
            for key, (image, meta) in self._scan_shard(path).items():
                self._keys.append(key)
                spans.append((number, *image, *meta))
        if not spans:
            raise UserError(
                f"{directory}: got no record of image and JSON ({len(self.skipped)} members skipped)"
            )
        # [N, 5] shard; offset and size of the image; offset and size of the JSON
        self._spans = np.array(spans, dtype=np.int64)

    def __len__(self) -> int:
        """Number of records."""
        return len(self._keys)

    def __iter__(self) -> Iterator[ImageRecord]:
        """All records in order, decoded."""
        return (self[i] for i in range(len(self)))

    def __getitem__(self, i: int) -> ImageRecord:
        """Record i, decoded; IndexError outside [0, len).

        Raises:
            CorruptRecord: its image or JSON cannot be read.
        """
        record = self.encoded(i)
        try:
            return ImageRecord(record.key, decode_image(record.data), record.meta)
        except UserError as error:
            raise self._corrupt(i, str(error)) from error

    def key(self, i: int) -> str:
        """Name of record i within its shard."""
        return self._keys[self._checked(i)]

    def meta(self, i: int) -> dict[str, Any]:
        """JSON of record i, read without its image; raises CorruptRecord."""
        shard, _, _, offset, size = self._spans[self._checked(i)].tolist()
        with self._paths[shard].open("rb", buffering=0) as file:
            return self._parse(i, read_span(file, offset, size))

    def encoded(self, i: int) -> EncodedRecord:
        """Record i with its image as stored, not decoded; raises CorruptRecord."""
        shard, offset, size, meta_offset, meta_size = self._spans[self._checked(i)].tolist()
        with self._paths[shard].open("rb", buffering=0) as file:
            data = read_span(file, offset, size)
            meta = self._parse(i, read_span(file, meta_offset, meta_size))
        suffix = "png" if data[:4] == b"\x89PNG" else "webp" if data[:4] == b"RIFF" else "jpg"
        return EncodedRecord(self._keys[i], data, suffix, meta)

    def _checked(self, i: int) -> int:
        if not 0 <= i < len(self):
            raise IndexError(f"record {i} of {len(self)}")
        return i

    def _corrupt(self, i: int, reason: str) -> CorruptRecord:
        shard = self._paths[int(self._spans[i, 0])].name
        return CorruptRecord(f"{shard}: record {self._keys[i]!r}: {reason}")

    def _parse(self, i: int, data: bytes) -> dict[str, Any]:
        try:
            meta = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise self._corrupt(i, "its JSON cannot be read") from error
        if not isinstance(meta, dict) or not isinstance(meta.get("prompt"), str):
            raise self._corrupt(i, "its JSON is not an object with a 'prompt' string")
        return meta

    def _scan_shard(self, path: Path) -> dict[str, tuple[tuple[int, int], tuple[int, int]]]:
        """(offset, size) of image and of JSON per key; everything else goes to skipped."""
        images: dict[str, tuple[int, int]] = {}
        metas: dict[str, tuple[int, int]] = {}
        with path.open("rb", buffering=0) as file:
            for name, offset, size, reason in scan_members(file, path.name):
                key = suffix = ""
                if not reason:
                    try:
                        key, suffix = _split(name)
                    except ValueError as error:
                        reason = str(error)
                spans, limit = (metas, MAX_JSON_BYTES) if suffix == "json" else (images, MAX_IMAGE_BYTES)
                if not reason and suffix != "json" and suffix not in _IMAGE_SUFFIXES:
                    reason = "neither image nor JSON"
                elif not reason and size > limit:
                    reason = f"{size} bytes, allowed: up to {limit}"
                elif not reason and key in spans:
                    reason = "duplicate"
                if reason:
                    self.skipped.append(Skipped(path.name, name, reason))
                else:
                    spans[key] = (offset, size)
        for key in sorted(images.keys() ^ metas.keys()):
            self.skipped.append(Skipped(path.name, key, "no JSON" if key in images else "no image"))
        return {key: (span, metas[key]) for key, span in images.items() if key in metas}


def _split(name: str) -> tuple[str, str]:
    """(key, suffix in lower case) of a member's name, cut at the first dot of its last part as in WebDataset.

    Raises:
        ValueError: a name that points outside, or that no record can have.
    """
    parts = name.split("/")
    if name.startswith("/") or ".." in parts or _UNSAFE.search(name):
        raise ValueError("unsafe name")
    parts = [part for part in parts if part not in ("", ".")]
    stem, dot, suffix = parts[-1].partition(".") if parts else ("", "", "")
    if not stem or not dot:
        raise ValueError("hidden or without suffix")
    return "/".join([*parts[:-1], stem]), suffix.lower()
