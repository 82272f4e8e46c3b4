"""A folder of images with their captions beside them: `a/b.jpg` + `a/b.txt`, `a/b.json` or both.

Folders within count too. Links are never followed, to files as to folders, so nothing outside is read; what
they and other files are left out for is listed in `FolderPairs.skipped`.
"""

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lightgen.core.errors import UserError
from lightgen.data.images import (
    IMAGE_SUFFIXES,
    MAX_IMAGE_BYTES,
    MAX_JSON_BYTES,
    CorruptRecord,
    EncodedRecord,
    ImageRecord,
    Skipped,
    decoded,
    suffix_of,
)
from lightgen.data.names import Names
from lightgen.data.sidecar import read_sidecar
from lightgen.data.tar import split_name

_TOLD = {"json": 1, "txt": 2}  # bits of what is beside an image


class FolderPairs:
    """All images of a folder that have a caption beside them, folder by folder, in order of their names.

    Attributes:
        skipped: every other file, with the reason.
        size: bytes of all files of the records.
        digest: SHA-256 [64 hex digits] of their names and sizes.

    Args:
        place: the folder.
        caption: where captions are, as of `read_sidecar`.

    Raises:
        UserError: it is no folder, or holds no image with a caption.
    """

    def __init__(self, place: Path, caption: str | None = None) -> None:
        """Index of the folder, from names and sizes alone."""
        if not place.is_dir():
            raise UserError(f"{place}: no such directory, allowed: a folder of images and their captions")
        self._place, self._caption = place, caption
        self.skipped: list[Skipped] = []
        self.size = 0
        self._names = Names()
        told, hashed = bytearray(), hashlib.sha256()
        for files in self._walk():
            for name, bits in self._pair_up(files):
                self._names.append(name)
                told.append(bits)
                sizes = [files[each] for each in (name, *_beside(name, bits).values())]
                self.size += sum(sizes)
                hashed.update(f"{name!r} {sizes}\n".encode())
        self.digest = hashed.hexdigest()
        if not told:
            raise UserError(
                f"{place}: got no image with a caption beside it ({len(self.skipped)} files skipped), "
                "allowed: NAME.png|jpg|webp with NAME.txt or NAME.json"
            )
        self._told = bytes(told)

    def __len__(self) -> int:
        """Number of records."""
        return len(self._names)

    def __getitem__(self, i: int) -> ImageRecord:
        """Record i, decoded; raises CorruptRecord, and IndexError outside [0, len)."""
        record = self.encoded(i)
        return ImageRecord(record.key, decoded(record, self._names[i]), record.meta)

    def key(self, i: int) -> str:
        """Path of record i without suffix; its last part has %2E for a dot and %25 for a percent sign."""
        return _key(self._names[i])

    def meta(self, i: int) -> dict[str, Any]:
        """What is told of record i, read without its image; raises CorruptRecord."""
        beside = _beside(self._names[i], self._told[i])
        parts = {suffix: self._read(name, MAX_JSON_BYTES) for suffix, name in beside.items()}
        try:
            return read_sidecar(parts.get("json"), parts.get("txt"), self._caption)
        except ValueError as error:
            raise CorruptRecord(self._names[i], str(error)) from error

    def encoded(self, i: int) -> EncodedRecord:
        """Record i with its image as stored, not decoded; raises CorruptRecord."""
        data = self._read(self._names[i], MAX_IMAGE_BYTES)
        return EncodedRecord(self.key(i), data, suffix_of(data), self.meta(i))

    def _read(self, name: str, limit: int) -> bytes:
        path = self._place / name
        try:
            if path.is_symlink() or not path.is_file():  # it was replaced since
                raise CorruptRecord(name, "no plain file any more")
            with path.open("rb") as file:
                data = file.read(limit + 1)
        except OSError as error:
            raise CorruptRecord(name, f"not readable ({error.strerror})") from error
        if len(data) > limit:
            raise CorruptRecord(name, f"more than {limit} bytes")
        return data

    def _walk(self) -> Iterator[dict[str, int]]:
        """Sizes of the plain files of each folder, by their names within the place."""
        folders = [""]
        while folders:
            folder, files, inner = folders.pop(), {}, []
            try:
                with os.scandir(self._place / folder) as entries:
                    found = sorted(entries, key=lambda each: each.name)
            except OSError as error:
                self._skip(folder, f"not readable ({error.strerror})")
                continue
            for entry in found:
                name = f"{folder}/{entry.name}" if folder else entry.name
                if entry.name.startswith("."):
                    self._skip(name, "hidden")
                elif entry.is_symlink():
                    self._skip(name, "link")
                elif entry.is_file(follow_symlinks=False):
                    files[name] = entry.stat(follow_symlinks=False).st_size
                elif not entry.is_dir(follow_symlinks=False):
                    self._skip(name, "device or unknown kind")
                elif _is_unsafe(f"{name}/x.x"):
                    self._skip(name, "unsafe name")
                else:
                    inner.append(name)
            folders += reversed(inner)
            yield files

    def _pair_up(self, files: dict[str, int]) -> Iterator[tuple[str, int]]:
        """Name of each image of a folder and the bits of what is beside it; all else is skipped."""
        told: dict[str, int] = {}
        images: dict[str, str] = {}
        for name, size in files.items():
            stem, dot, suffix = name.rpartition(".")
            is_image = suffix.lower() in IMAGE_SUFFIXES
            limit = MAX_IMAGE_BYTES if is_image else MAX_JSON_BYTES
            if not dot or not (is_image or suffix in _TOLD):
                self._skip(name, "neither image, JSON nor txt")
            elif _is_unsafe(name):
                self._skip(name, "unsafe name")
            elif size > limit:
                self._skip(name, f"{size} bytes, allowed: up to {limit}")
            elif not is_image:
                told[stem] = told.get(stem, 0) | _TOLD[suffix]
            elif stem in images:
                self._skip(name, "duplicate")
            else:
                images[stem] = name
        for stem, name in images.items():
            if stem in told:
                yield name, told[stem]
            else:
                self._skip(name, "no JSON or txt")
        for stem in sorted(told.keys() - images.keys()):
            self._skip(stem, "no image")

    def _skip(self, name: str, reason: str) -> None:
        told = name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
        self.skipped.append(Skipped(self._place.name, told, reason))


def _beside(name: str, bits: int) -> dict[str, str]:
    """Names of the files beside an image, by suffix."""
    stem = name.rpartition(".")[0]
    return {suffix: f"{stem}.{suffix}" for suffix, bit in _TOLD.items() if bits & bit}


def _key(name: str) -> str:
    folder, slash, last = name.rpartition("/")
    return folder + slash + last.rpartition(".")[0].replace("%", "%25").replace(".", "%2E")


def _is_unsafe(name: str) -> bool:
    """Whether no record can have the key of a file, or the name is no text."""
    try:
        name.encode()
        return split_name(f"{_key(name)}.x")[0] != _key(name)
    except ValueError:  # UnicodeEncodeError too
        return True
