"""Images in GenEval's own layout: a folder per prompt, `00000/metadata.jsonl` and `00000/samples/0000.png`.

Source: djghosh13/geneval:generation/diffusers_generate.py and evaluation/evaluate_images.py @16f1681.
"""

import hashlib
import json
import re
from pathlib import Path
from typing import Any

from lightgen.core.errors import UserError
from lightgen.data.images import (
    MAX_IMAGE_BYTES,
    MAX_JSON_BYTES,
    CorruptRecord,
    EncodedRecord,
    ImageRecord,
    Skipped,
    decoded,
    suffix_of,
)

METADATA, SAMPLES = "metadata.jsonl", "samples"
_FOLDER = re.compile(r"\d{1,12}")
# GenEval takes PNG alone; others write JPEG or WebP into the same layout.
_SAMPLE = re.compile(r"\d{1,12}\.(?:png|jpg|jpeg|webp)", re.IGNORECASE)


def is_geneval_folder(place: Path) -> bool:
    """Whether a directory holds at least one numbered folder with metadata and samples."""
    return place.is_dir() and any(
        _FOLDER.fullmatch(each.name) and (each / METADATA).is_file() and (each / SAMPLES).is_dir()
        for each in place.iterdir()
    )


class GenEvalFolder:
    """All images of all prompts, prompt by prompt, both in order of their numbers; links are never followed.

    Attributes:
        skipped: folders and files that GenEval would not judge either, with the reason.
        size: bytes of all images.
        digest: SHA-256 [64 hex digits] of their names and sizes and of all metadata.
        collated: how many folders had metadata whose fields were wrapped in lists (see `unwrapped`).

    Args:
        place: the directory.

    Raises:
        UserError: it holds no image in this layout, or metadata that cannot be read.
    """

    def __init__(self, place: Path) -> None:
        """Index of the directory; all metadata is read, images are not."""
        self._place = place
        self.skipped: list[Skipped] = []
        self.size = self.collated = 0
        self._metas: list[dict[str, Any]] = []
        self._found: list[tuple[str, int]] = []  # name of an image, number of its metadata
        hashed = hashlib.sha256()
        folders = [each for each in place.iterdir() if _FOLDER.fullmatch(each.name)]
        for folder in sorted(folders, key=lambda each: (int(each.name), each.name)):
            if folder.is_symlink() or not (folder / METADATA).is_file():
                self._skip(folder.name, "link" if folder.is_symlink() else f"no {METADATA}")
                continue
            data, names = self._metadata(folder), self._samples(folder)
            hashed.update(data)
            for name in names:
                size = (place / name).stat().st_size
                self.size += size
                hashed.update(f"{name!r} {size}\n".encode())
                self._found.append((name, len(self._metas) - 1))
        self.digest = hashed.hexdigest()
        if not self._found:
            raise UserError(
                f"{place}: got no images in GenEval's layout, allowed: 00000/{SAMPLES}/0000.png and so on, "
                f"with 00000/{METADATA}"
            )

    def __len__(self) -> int:
        """Number of images."""
        return len(self._found)

    def __getitem__(self, i: int) -> ImageRecord:
        """Record i, decoded; raises CorruptRecord, and IndexError outside [0, len)."""
        record = self.encoded(i)
        return ImageRecord(record.key, decoded(record, self._found[i][0]), record.meta)

    def key(self, i: int) -> str:
        """Path of image i without its suffix, as 00000/samples/0000."""
        return self._at(i)[0].rpartition(".")[0]

    def meta(self, i: int) -> dict[str, Any]:
        """Metadata of the prompt of image i, and its path as `filename`."""
        name, number = self._at(i)
        return {**self._metas[number], "filename": name}

    def encoded(self, i: int) -> EncodedRecord:
        """Record i with its image as stored, not decoded; raises CorruptRecord."""
        name = self._at(i)[0]
        path = self._place / name
        try:
            if path.is_symlink():
                raise CorruptRecord(name, "a link")
            with path.open("rb") as file:
                data = file.read(MAX_IMAGE_BYTES + 1)
        except OSError as error:
            raise CorruptRecord(name, f"not readable ({error.strerror})") from error
        if len(data) > MAX_IMAGE_BYTES:
            raise CorruptRecord(name, f"more than {MAX_IMAGE_BYTES} bytes")
        return EncodedRecord(self.key(i), data, suffix_of(data), self.meta(i))

    def _at(self, i: int) -> tuple[str, int]:
        if not 0 <= i < len(self):
            raise IndexError(f"record {i} of {len(self)}")
        return self._found[i]

    def _metadata(self, folder: Path) -> bytes:
        """Bytes of the metadata of a folder, which is noted as read."""
        place = f"{folder.name}/{METADATA}"
        try:
            with (folder / METADATA).open("rb") as file:
                data = file.read(MAX_JSON_BYTES + 1)
            read = json.loads(data) if len(data) <= MAX_JSON_BYTES else None
        except (OSError, ValueError, RecursionError):
            read = None
        if not isinstance(read, dict):
            raise UserError(f"{self._place.name}/{place}: got no JSON object, allowed: GenEval's metadata")
        meta = unwrapped(read)
        self.collated += meta != read
        self._metas.append(meta)
        return data

    def _samples(self, folder: Path) -> list[str]:
        """Names of the images of a folder, in order of their numbers."""
        names = []
        samples = folder / SAMPLES
        for path in samples.iterdir() if samples.is_dir() and not samples.is_symlink() else ():
            name = f"{folder.name}/{SAMPLES}/{path.name}"
            if path.is_symlink() or not path.is_file():
                self._skip(name, "no plain file")
            elif not _SAMPLE.fullmatch(path.name):
                self._skip(name, "not named by a number")
            else:
                names.append(name)
        if not names:
            self._skip(folder.name, "no samples")
        return sorted(names, key=lambda name: (int(Path(name).stem), name))

    def _skip(self, name: str, reason: str) -> None:
        told = name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
        self.skipped.append(Skipped(self._place.name, told, reason))


def unwrapped(meta: dict[str, Any]) -> dict[str, Any]:
    """Metadata whose fields a data loader wrapped in lists of one, as GenEval means it.

    The released script of LightGen saves what its loader collated: `"tag": ["counting"]`. GenEval's own code
    then compares a list with a word, and judges counts by the threshold of the other tasks.
    """
    found = {key: _only(value) if key in ("tag", "prompt") else value for key, value in meta.items()}
    for key in ("include", "exclude"):
        listed = meta.get(key)
        if isinstance(listed, list):
            found[key] = [_requirement(each) if isinstance(each, dict) else each for each in listed]
    return found


def _requirement(record: dict[str, Any]) -> dict[str, Any]:
    found = {
        key: _only(value) if key in ("class", "count", "color") else value for key, value in record.items()
    }
    position = record.get("position")
    if isinstance(position, list) and len(position) == 2:
        found["position"] = [_only(part) for part in position]
    return found


def _only(value: Any) -> Any:  # noqa: ANN401  (any JSON value)
    return value[0] if isinstance(value, list) and len(value) == 1 else value
