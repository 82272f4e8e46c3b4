"""Sprites: emoji glyphs sized, turned and tinted, with their masks."""

import json
from collections import OrderedDict
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

from lightgen.ports.nano.font import draw_glyph
from lightgen.ports.nano.world import COLORS

_CACHE_BYTES = 192 * 2**20
# Luminance of Rec. 601.
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)


@dataclass(frozen=True)
class Sprite:
    """One object ready to be pasted, cropped to its mask.

    Attributes:
        rgb: float32 [h, w, 3] in 0..255, already multiplied by alpha.
        clear: float32 [h, w, 1] in 0..1, the share of the background that shows through (1 - alpha).
        mask: bool [h, w], alpha of at least one half.
    """

    rgb: np.ndarray
    clear: np.ndarray
    mask: np.ndarray


@dataclass(frozen=True)
class _Shape:
    """A sized and turned glyph before its colour; tone: 0 dark, 128 body, 255 light; rim: the outline."""

    rgb: np.ndarray
    alpha: np.ndarray
    tone: np.ndarray
    rim: np.ndarray

    @property
    def bytes(self) -> int:
        return self.rgb.nbytes + self.alpha.nbytes + self.tone.nbytes + self.rim.nbytes


@lru_cache(maxsize=1)
def emoji_table() -> dict[str, list[str]]:
    """Emoji of each class, the main one first."""
    return json.loads(Path(__file__).with_name("emoji.json").read_text(encoding="utf-8"))


@lru_cache(maxsize=256)
def _glyph(name: str, variant: int) -> tuple[Image.Image, np.ndarray]:
    """Glyph of a class as an RGBA image, and the table [256] uint8 from its luminance to its tone."""
    pixels = draw_glyph(emoji_table()[name][variant])
    if name == "skis" and variant == 0:
        pixels = _without_snow(pixels)
    luma = pixels[..., :3].astype(np.float32) @ _LUMA
    body = luma[pixels[..., 3] > 128]
    middle = max(float(np.quantile(body, 0.5)), 48.0)
    light = max(float(np.quantile(body, 0.97)), middle + 48.0)
    level = np.arange(256, dtype=np.float32)
    # A glyph's median luminance becomes the target colour, so that dark and pale glyphs take it alike.
    tone = np.where(level < middle, level / middle, 1.0 + (level - middle) / (light - middle)) * 127.5
    return Image.fromarray(pixels, "RGBA"), np.clip(tone, 0, 255).astype(np.uint8)


def _without_snow(pixels: np.ndarray) -> np.ndarray:
    """The glyph without its pale pixels: the ski stands in a patch of snow, which no tint should reach."""
    pale = np.clip((pixels[..., :3].min(-1).astype(np.float32) - 180) / 20, 0, 1)
    kept_alpha = Image.fromarray((pixels[..., 3] * (1 - pale)).astype(np.uint8))
    alpha = np.asarray(kept_alpha.filter(ImageFilter.MedianFilter(3)))
    rows, columns = np.flatnonzero(alpha.any(1)), np.flatnonzero(alpha.any(0))
    kept = np.dstack([pixels[..., :3], alpha])
    return kept[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


@lru_cache(maxsize=512)
def _turned(name: str, variant: int, degrees: float, mirror: bool) -> Image.Image:
    """Glyph of a class mirrored and turned, RGBA, cropped."""
    glyph = _glyph(name, variant)[0]
    if mirror:
        glyph = glyph.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if degrees:
        glyph = glyph.rotate(degrees, Image.Resampling.BICUBIC, expand=True)
        alpha = np.asarray(glyph.getchannel("A")) >= 8
        rows, columns = np.flatnonzero(alpha.any(1)), np.flatnonzero(alpha.any(0))
        glyph = glyph.crop((int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1))
    return glyph


@lru_cache(maxsize=32)
def _tint_table(color: str) -> np.ndarray:
    """RGB [256, 3] float32 of each tone: near-black outline, darker shades, the colour, towards white."""
    target = np.array(COLORS[color], np.float32)
    tone = np.arange(256, dtype=np.float32)[:, None] / 127.5
    shade = target * np.clip(0.42 + 0.58 * tone, 0.0, 1.0) * np.clip(tone / 0.25, 0.15, 1.0)
    lights = 0.35 if color == "black" else 0.45
    lift = lights * np.clip(tone - 1.0, 0.0, 1.0)
    return shade + (255.0 - shade) * lift


# Colour of the one thin outline that keeps white objects apart from snow and black ones from the night.
_RIMS = {"white": np.array((128, 130, 140), np.float32), "black": np.array((96, 98, 108), np.float32)}


@lru_cache(maxsize=2048)
def mean_color(name: str, color: str | None) -> tuple[float, float, float]:
    """Mean RGB (0..255) of an object, to keep backgrounds apart from it."""
    if color is not None:
        red, green, blue = COLORS[color]
        return float(red), float(green), float(blue)
    pixels = np.asarray(_glyph(name, 0)[0]).astype(np.float32)
    weights = pixels[..., 3:] / 255.0
    red, green, blue = (pixels[..., :3] * weights).sum((0, 1)) / weights.sum()
    return float(red), float(green), float(blue)


class SpriteCache:
    """Sprites on demand; the least recently used shapes are dropped beyond a bound in bytes."""

    def __init__(self, limit_bytes: int = _CACHE_BYTES) -> None:
        self._limit = limit_bytes
        self._held = 0
        self._shapes: OrderedDict[tuple[str, int, int, float, bool], _Shape] = OrderedDict()

    def sprite(
        self,
        name: str,
        color: str | None,
        size: int,
        degrees: float = 0.0,
        mirror: bool = False,
        variant: int = 0,
    ) -> Sprite:
        """Sprite turned by `degrees` (counter-clockwise), at most `size` px a side."""
        shape = self._shape(name, size, degrees, mirror, variant)
        alpha = shape.alpha.astype(np.float32)[..., None] * (1.0 / 255.0)
        if color is None:
            rgb = shape.rgb.astype(np.float32)
        else:
            rgb = _tint_table(color)[shape.tone]
            if color in _RIMS:
                rim = shape.rim.astype(np.float32)[..., None] * (1.0 / 255.0)
                rgb += (_RIMS[color] - rgb) * rim
        # Half a level more, since drawing on a uint8 picture cuts off what follows the point.
        return Sprite(rgb * alpha + 0.5, 1.0 - alpha, shape.alpha >= 128)

    def extent(
        self, name: str, size: int, degrees: float = 0.0, mirror: bool = False, variant: int = 0
    ) -> tuple[int, int]:
        """Height and width in px of the sprite with these arguments."""
        height, width = self._shape(name, size, degrees, mirror, variant).alpha.shape
        return height, width

    def _shape(self, name: str, size: int, degrees: float, mirror: bool, variant: int) -> _Shape:
        key = (name, variant, size, degrees, mirror)
        shape = self._shapes.get(key)
        if shape is not None:
            self._shapes.move_to_end(key)
            return shape
        shape = _make_shape(name, size, degrees, mirror, variant)
        self._shapes[key] = shape
        self._held += shape.bytes
        while self._held > self._limit and len(self._shapes) > 1:
            self._held -= self._shapes.popitem(last=False)[1].bytes
        return shape


def _make_shape(name: str, size: int, degrees: float, mirror: bool, variant: int) -> _Shape:
    glyph = _turned(name, variant, degrees, mirror)
    tones = _glyph(name, variant)[1]
    scale = size / max(glyph.size)
    width, height = (max(2, round(side * scale)) for side in glyph.size)
    small = glyph.resize((width, height), Image.Resampling.LANCZOS)
    opaque = np.asarray(small.getchannel("A")) >= 128
    rows, columns = np.flatnonzero(opaque.any(1)), np.flatnonzero(opaque.any(0))
    small = small.crop((int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1))
    pixels = np.array(small)
    alpha = small.getchannel("A")
    thick = 3 if size < 160 else 5
    framed = Image.new("L", (alpha.width + 8, alpha.height + 8), 0)
    framed.paste(alpha, (4, 4))
    inner = framed.filter(ImageFilter.MinFilter(thick)).crop((4, 4, 4 + alpha.width, 4 + alpha.height))
    rim = (np.asarray(alpha).astype(np.float32) - np.asarray(inner)).clip(0)
    # Thin shapes are nearly all rim, which must not hide their colour.
    rim *= min(1.0, 0.4 * float(np.asarray(alpha).sum()) / max(1.0, float(rim.sum())))
    luma = (pixels[..., :3].astype(np.float32) @ _LUMA).astype(np.uint8)
    return _Shape(pixels[..., :3].copy(), pixels[..., 3].copy(), tones[luma], rim.astype(np.uint8))


def encode_mask(mask: np.ndarray) -> dict[str, list[int]]:
    """COCO's run lengths of a mask, column by column, zeros first: {"size": [H, W], "counts": [...]}."""
    flat = mask.ravel(order="F")
    edges = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    counts = np.diff(np.concatenate(([0], edges, [flat.size]))).tolist()
    return {"size": [int(side) for side in mask.shape], "counts": [0, *counts] if flat[0] else counts}


def decode_mask(rle: dict[str, list[int]]) -> np.ndarray:
    """Mask [H, W] bool of the run lengths that `encode_mask` gives."""
    height, width = rle["size"]
    values = np.arange(len(rle["counts"])) % 2 == 1
    return np.repeat(values, rle["counts"]).reshape((width, height)).T
