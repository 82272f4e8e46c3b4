"""Pictures in PNG files that remember how they were made, and contact sheets of them."""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from lightgen.core.directory import whole_file
from lightgen.core.errors import UserError

MAX_SHEET_SIDE_PX = 16384
MAX_SHEET_PX = 100_000_000
_STEM = 60


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
    """Write an image uint8 [H, W, 3] whole; text chunks hold each fact, and `lightgen` all, as JSON."""
    info = PngInfo()
    for name, value in facts.items():
        info.add_itxt(name, value if isinstance(value, str) else json.dumps(value))
    info.add_itxt("lightgen", json.dumps(dict(facts), ensure_ascii=False, allow_nan=False))
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as temporary:
        Image.fromarray(image).save(temporary, "PNG", pnginfo=info)


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


def _stems(prompts: Sequence[str]) -> list[str]:
    """A file name for each prompt; those that read alike get a piece of the prompt's digest."""
    plain = [re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:_STEM] or "picture" for text in prompts]
    digests = [hashlib.sha256(text.encode()).hexdigest()[:8] for text in prompts]
    return [
        stem if plain.count(stem) == 1 else f"{stem}-{digest}"
        for stem, digest in zip(plain, digests, strict=True)
    ]
