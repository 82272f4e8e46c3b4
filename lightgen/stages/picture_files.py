"""Pictures in files that remember how they were made, and contact sheets of them."""

import hashlib
import io
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from lightgen.core.directory import whole_file
from lightgen.core.errors import UserError

MAX_SHEET_SIDE_PX = 16384
MAX_SHEET_PX = 100_000_000
_STEM = 60
_EXIF_IFD, _USER_COMMENT = 0x8769, 0x9286
_MAX_EXIF_BYTES = 60_000  # of a JPEG's 65,535


def picture_paths(prompts: Sequence[str], seeds: Sequence[int], out: str | Path | None) -> list[list[Path]]:
    """One path for each prompt and seed, no two the same.

    Args:
        prompts: no two the same.
        seeds: of each prompt's pictures.
        out: file name, numbered where there are several pictures; directory (existing, or ending in a slash);
            or None for files here; in the last two, files are named after their prompts.

    Raises:
        UserError: the file name does not end in .png.
    """
    if out is None or Path(out).is_dir() or str(out).endswith(("/", "\\")):
        folder = Path() if out is None else Path(out)
        return [[folder / f"{stem}-{seed}.png" for seed in seeds] for stem in _stems(prompts)]
    target = Path(out)
    if target.suffix.lower() != ".png":
        allowed = "a name ending in .png, or a directory ending in /"
        raise UserError(f"--out: got {str(out)!r}, allowed: {allowed}")
    if len(prompts) == len(seeds) == 1:
        return [[target]]
    bases = [target.stem] if len(prompts) == 1 else [f"{target.stem}-{n + 1}" for n in range(len(prompts))]
    return [[target.with_name(f"{base}-{seed}.png") for seed in seeds] for base in bases]


def write_picture(path: Path, image: np.ndarray, facts: Mapping[str, Any]) -> None:
    """Write an image uint8 [H, W, 3] whole as a PNG file, as `picture_bytes` makes it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as temporary:
        temporary.write_bytes(picture_bytes(image, facts))


def picture_bytes(
    image: np.ndarray,
    facts: Mapping[str, Any],
    kind: Literal["png", "jpeg", "webp"] = "png",
    quality: int = 95,
) -> bytes:
    """File of an image uint8 [H, W, 3] that says how it was made.

    In a PNG, text chunks hold each fact, and `lightgen` all, as JSON; in the others that JSON is the comment
    of EXIF, unless it is too long for a JPEG.

    Args:
        image: the picture.
        facts: JSON-able, by name.
        kind: of file.
        quality: 0 to 100; a PNG has none.
    """
    made, buffer = Image.fromarray(image), io.BytesIO()
    if kind == "png":
        info = PngInfo()
        for name, value in facts.items():
            info.add_itxt(name, value if isinstance(value, str) else json.dumps(value))
        if facts:
            info.add_itxt("lightgen", json.dumps(dict(facts), ensure_ascii=False, allow_nan=False))
        made.save(buffer, "PNG", pnginfo=info)
    else:
        made.save(buffer, kind.upper(), quality=quality, exif=_exif(facts))
    return buffer.getvalue()


class ContactSheet:
    """One image [rows * height, columns * width, 3] of many, filled as they come.

    Raises:
        UserError: it would be too large.
    """

    def __init__(self, rows: int, columns: int, height: int, width: int) -> None:
        tall, wide = rows * height, columns * width
        if max(tall, wide) > MAX_SHEET_SIDE_PX or tall * wide > MAX_SHEET_PX:
            allowed = f"{MAX_SHEET_SIDE_PX} px a side and {MAX_SHEET_PX // 1_000_000} megapixels"
            raise UserError(f"--grid: got {wide}x{tall} px, allowed: at most {allowed}")
        self._height, self._width = height, width
        self.image = np.full((tall, wide, 3), 255, np.uint8)

    def put(self, row: int, column: int, image: np.ndarray) -> None:
        """Place an image uint8 [height, width, 3]."""
        top, left = row * self._height, column * self._width
        self.image[top : top + self._height, left : left + self._width] = image


def _exif(facts: Mapping[str, Any]) -> bytes:
    """EXIF whose comment holds the facts as JSON; nothing of none or of too many."""
    comment = b"ASCII\0\0\0" + json.dumps(dict(facts), allow_nan=False).encode("ascii")
    exif = Image.Exif()
    exif.get_ifd(_EXIF_IFD)[_USER_COMMENT] = comment
    return exif.tobytes() if facts and len(comment) <= _MAX_EXIF_BYTES else b""


def _stems(prompts: Sequence[str]) -> list[str]:
    """A file name for each prompt; those that read alike get a piece of the prompt's digest."""
    plain = [re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:_STEM] or "picture" for text in prompts]
    digests = [hashlib.sha256(text.encode()).hexdigest()[:8] for text in prompts]
    return [
        stem if plain.count(stem) == 1 else f"{stem}-{digest}"
        for stem, digest in zip(plain, digests, strict=True)
    ]
