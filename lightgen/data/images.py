"""Image shards: tar files of `KEY.png|jpg|webp` + `KEY.json`, `KEY.txt` or both (WebDataset), read in place.

Shards may come from strangers: nothing is ever extracted, only regular files under relative names count, and
what is left out is listed in `ImageShards.skipped`. No file stays open between reads and reading changes no
state, so any number of threads may read one ImageShards.
"""

import io
import json
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from PIL import Image

from lightgen.core.directory import whole_file
from lightgen.core.errors import UserError
from lightgen.data.names import Names, has_twins
from lightgen.data.picture import decode_image
from lightgen.data.sidecar import read_sidecar
from lightgen.data.tar import BLOCK, read_span, scan_members, split_name

Format = Literal["png", "jpg", "webp"]
MAX_IMAGE_BYTES = 64 << 20
MAX_JSON_BYTES = 1 << 20

IMAGE_SUFFIXES = ("png", "jpg", "jpeg", "webp")
_MAX_TAR_BYTES = 1 << 41
_ABSENT = -1
# Where a record lies, 28 bytes: offsets are counted in blocks of 512 bytes, sizes in bytes or _ABSENT.
_SPAN = np.dtype([("shard", np.uint32), ("blocks", np.uint32, 3), ("sizes", np.int32, 3)])
_PARTS = ("image", "json", "txt")


class CorruptRecord(UserError):
    """A record whose image or JSON cannot be read; the text is `place: reason`.

    Attributes:
        reason: what is wrong, without the place: shard and key, file, or row.
    """

    def __init__(self, place: str, reason: str) -> None:
        super().__init__(place, reason)  # both, so that it can be sent to another process
        self.reason = reason

    def __str__(self) -> str:
        """Return the place and the reason."""
        return ": ".join(self.args)


@dataclass(frozen=True)
class ImageRecord:
    """One image.

    Attributes:
        key: name of the record, the same as of the reader's `key(i)`.
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


@dataclass(frozen=True, slots=True)
class Skipped:
    """A member of a shard that is in no record, and why; name is empty where the shard itself is damaged."""

    shard: str
    name: str
    reason: str


class ImageReader(Protocol):
    """Records of images as they lie on disk; reading changes nothing, and any number of threads may read.

    Attributes:
        skipped: what is left out, with the reason.
    """

    skipped: list[Skipped]

    def __len__(self) -> int:
        """Number of records."""
        ...

    def __getitem__(self, i: int) -> ImageRecord:
        """Record i, decoded; raises CorruptRecord."""
        ...

    def key(self, i: int) -> str:
        """Name of record i, unlike that of any other."""
        ...

    def meta(self, i: int) -> dict[str, Any]:
        """What is told of record i, at least `prompt`; raises CorruptRecord."""
        ...

    def encoded(self, i: int) -> EncodedRecord:
        """Record i with its image as stored, not decoded; raises CorruptRecord."""
        ...


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
            assert split_name(f"{key}.{suffix}") == (key, suffix) and suffix in IMAGE_SUFFIXES, (key, suffix)
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

    Args:
        place: the directory, or one tar file; hidden files are none of them.
        caption: where captions are, as of `read_sidecar`.

    Raises:
        UserError: no shards, or no whole record in any of them.
    """

    def __init__(self, place: Path, caption: str | None = None) -> None:
        """Index of the shards, from their headers alone."""
        self._paths = [path for path in sorted(place.glob("*.tar")) if path.is_file() and path.name[0] != "."]
        self._paths = [place] if place.is_file() else self._paths
        if not self._paths:
            raise UserError(f"{place}: got no image shards, expected *.tar files")
        self._caption = caption
        self.skipped: list[Skipped] = []
        self._keys = Names()
        spans: list[np.ndarray] = []
        unreadable: list[UserError] = []
        for number, path in enumerate(self._paths):
            try:
                records = self._scan_shard(path)
            except UserError as error:
                unreadable.append(error)
                self.skipped.append(Skipped(path.name, "", str(error).removeprefix(f"{path.name}: ")))
                continue
            for key in records:
                self._keys.append(key)
            rows = [(number, blocks, sizes) for blocks, sizes in records.values()]
            spans.append(np.array(rows, dtype=_SPAN))
        if not len(self._keys):
            if unreadable:
                raise unreadable[0]
            raise UserError(f"{place}: got no record of image and JSON ({len(self.skipped)} members skipped)")
        self._spans = np.concatenate(spans)
        self._is_led = len(spans) > 1 and has_twins(self._keys)

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
        return ImageRecord(record.key, decoded(record, self._place(i)), record.meta)

    def key(self, i: int) -> str:
        """Name of record i within its shard; led by the shard's number where shards share names."""
        key = self._keys[self._checked(i)]
        return f"{self._spans[i]['shard']:05d}/{key}" if self._is_led else key

    def meta(self, i: int) -> dict[str, Any]:
        """JSON of record i with its caption as `prompt`, read without its image; raises CorruptRecord."""
        with self._open(i) as file:
            return self._read_meta(i, file)

    def encoded(self, i: int) -> EncodedRecord:
        """Record i with its image as stored, not decoded; raises CorruptRecord."""
        with self._open(i) as file:
            data, meta = self._read(i, file, "image"), self._read_meta(i, file)
        assert data is not None
        return EncodedRecord(self.key(i), data, suffix_of(data), meta)

    def _checked(self, i: int) -> int:
        if not 0 <= i < len(self):
            raise IndexError(f"record {i} of {len(self)}")
        return i

    def _open(self, i: int) -> io.FileIO:
        return self._paths[self._spans[self._checked(i)]["shard"]].open("rb", buffering=0)

    def _read(self, i: int, file: io.FileIO, part: str) -> bytes | None:
        place, span = _PARTS.index(part), self._spans[i]
        size = int(span["sizes"][place])
        return None if size == _ABSENT else read_span(file, int(span["blocks"][place]) * BLOCK, size)

    def _read_meta(self, i: int, file: io.FileIO) -> dict[str, Any]:
        try:
            return read_sidecar(self._read(i, file, "json"), self._read(i, file, "txt"), self._caption)
        except ValueError as error:
            raise CorruptRecord(self._place(i), str(error)) from error

    def _place(self, i: int) -> str:
        return f"{self._paths[self._spans[i]['shard']].name}: record {self._keys[i]!r}"

    def _scan_shard(self, path: Path) -> dict[str, tuple[list[int], list[int]]]:
        """First blocks [3] and sizes [3] of image, JSON and txt per key; all else goes to skipped."""
        found: dict[str, tuple[list[int], list[int]]] = {}
        if path.stat().st_size > _MAX_TAR_BYTES:
            raise UserError(f"{path.name}: got {path.stat().st_size} bytes, allowed: up to {_MAX_TAR_BYTES}")
        with path.open("rb", buffering=0) as file:
            for name, offset, size, reason in scan_members(file, path.name):
                key, part = "", ""
                if not reason:
                    try:
                        key, suffix = split_name(name)
                        part = "image" if suffix in IMAGE_SUFFIXES else suffix
                    except ValueError as error:
                        reason = str(error)
                limit = MAX_IMAGE_BYTES if part == "image" else MAX_JSON_BYTES
                if not reason and part not in _PARTS:
                    reason = "neither image, JSON nor txt"
                elif not reason and size > limit:
                    reason = f"{size} bytes, allowed: up to {limit}"
                elif not reason:
                    blocks, sizes = found.setdefault(key, ([0] * 3, [_ABSENT] * 3))
                    place = _PARTS.index(part)
                    if sizes[place] == _ABSENT:
                        blocks[place], sizes[place] = offset // BLOCK, size
                    else:
                        reason = "duplicate"
                if reason:
                    self.skipped.append(Skipped(path.name, name, reason))
        for key in sorted(found):
            image, *told = (size != _ABSENT for size in found[key][1])
            if not (image and any(told)):
                self.skipped.append(Skipped(path.name, key, "no JSON or txt" if image else "no image"))
                del found[key]
        return found


def decoded(record: EncodedRecord, place: str) -> np.ndarray:
    """Image uint8 [H, W, 3] of a record; CorruptRecord, led by its place, where it cannot be decoded."""
    try:
        return decode_image(record.data)
    except UserError as error:
        raise CorruptRecord(place, str(error)) from error


def suffix_of(data: bytes) -> Format:
    """Suffix of a picture file, by its first bytes."""
    return "png" if data[:4] == b"\x89PNG" else "webp" if data[:4] == b"RIFF" else "jpg"
