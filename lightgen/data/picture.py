"""Pictures from strangers: format and size are read from a file's header before anything is decoded."""

import io
import math
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image, ImageFile, ImageOps
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

from lightgen.core.errors import UserError
from lightgen.core.webp import webp_size

MAX_SIDE = 4096
MAX_PIXELS = MAX_SIDE**2
MAX_FILE_BYTES = 10 << 20
_ORIENTATION = 0x0112  # of EXIF; from 5 on, sides are exchanged
_PNG_EXIF = (b"eXIf", b"Raw profile type", b"tiff:Orientation", b"iTXt")
_PNG, _JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"

_DECODE_ERRORS = (
    OSError, SyntaxError, ValueError, EOFError, TypeError, LookupError, OverflowError, struct.error,
    zlib.error, Image.DecompressionBombError, Image.DecompressionBombWarning,
)  # fmt: skip


class TooManyPixels(UserError):
    """A picture of more than MAX_PIXELS, as its header says."""


def decode_image(data: bytes, background: str = "white") -> np.ndarray:
    """Image uint8 [H, W, 3] of a PNG, JPEG or WebP file: upright, first frame only, over a background.

    Raises:
        UserError: another format, more than MAX_PIXELS (seen before decoding), or damaged bytes.
    """
    return np.array(flatten(decode_layers(data), background))


def decode_layers(data: bytes) -> Image.Image:
    """RGB picture of a PNG, JPEG or WebP file, RGBA where it may be transparent: upright, first frame only.

    Raises:
        UserError: as of decode_image.
    """
    try:
        picture = _open(data)
        pixels = picture.width * picture.height
        if pixels <= MAX_PIXELS:
            return _layers(ImageOps.exif_transpose(picture))
    except _DECODE_ERRORS as error:
        if isinstance(error, UserError):
            raise
        raise _damaged(error) from error
    raise _too_many(pixels)


def read_picture(path: Path) -> np.ndarray:
    """Image uint8 [H, W, 3] of a PNG, JPEG or WebP file: upright, transparent parts over white.

    Raises:
        UserError: the file is missing, larger than MAX_FILE_BYTES, animated, larger than MAX_SIDE on a side,
            damaged, or no such picture; all but damage is seen before decoding.
    """
    return _read(path, "white")


def read_mask(path: Path) -> np.ndarray:
    """Mask bool [H, W], True where a picture file is half white or more; its transparent parts are not.

    Raises:
        UserError: as of read_picture.
    """
    return np.array(Image.fromarray(_read(path, "black")).convert("L")) >= 128


def flatten(picture: Image.Image, background: str) -> Image.Image:
    """RGB picture of one of any mode, its transparent parts over a background colour.

    Raises:
        UserError: a picture of floats, whose range nobody knows.
    """
    picture = _layers(picture)
    if picture.mode == "RGB":
        return picture
    return Image.alpha_composite(Image.new("RGBA", picture.size, background), picture).convert("RGB")


def _layers(picture: Image.Image) -> Image.Image:
    """RGB picture of one of any mode, or RGBA where it may be transparent.

    Raises:
        UserError: a picture of floats, whose range nobody knows.
    """
    if picture.mode == "F":
        raise UserError("image: got a PIL image of floats (mode F), allowed: 8 or 16 bits a channel")
    if picture.mode.startswith("I"):  # 16-bit grey, which convert would clip at 255 and not scale
        values, clear = np.asarray(picture).astype(np.uint32), picture.info.get("transparency")
        picture = Image.fromarray((values >> 8).astype(np.uint8))
        if isinstance(clear, int):  # the one grey that is transparent, of 16 bits too
            picture.putalpha(Image.fromarray((values != clear).astype(np.uint8) * 255))
    is_clear = picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info
    mode = "RGBA" if is_clear else "RGB"
    return picture if picture.mode == mode else picture.convert(mode)


def _read(path: Path, background: str) -> np.ndarray:
    if not path.is_file():  # a pipe would be waited for
        raise UserError(f"{path}: no such file, allowed: a PNG, JPEG or WebP picture")
    size = path.stat().st_size
    if size > MAX_FILE_BYTES:
        raise UserError(f"{path}: got {size} bytes, allowed: up to {MAX_FILE_BYTES}")
    with path.open("rb") as file:
        data = file.read(size)
    try:
        picture = _open(data)
        if max(picture.size) > MAX_SIDE:
            raise UserError(
                f"got {picture.width}x{picture.height} px, allowed: up to {MAX_SIDE} px on a side"
            )
        if isinstance(picture, PngImageFile | WebPImageFile) and picture.n_frames > 1:
            raise UserError(f"got an animation of {picture.n_frames} frames, allowed: a still picture")
        return decode_image(data, background)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def _open(data: bytes) -> ImageFile.ImageFile:
    """Picture of which only the header is read.

    Pillow's own `open` warns on standard error about large pictures, and is asked for nothing here.

    Raises:
        UserError: another format, a damaged header, or a WebP picture of too many pixels.
    """
    try:
        if data.startswith(_PNG):
            return PngImageFile(io.BytesIO(data))
        if data.startswith(_JPEG):
            return JpegImageFile(io.BytesIO(data))
        if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
            width, height = webp_size(data)
            if width * height > MAX_PIXELS:  # opening it would allocate them
                raise _too_many(width * height)
            return WebPImageFile(io.BytesIO(data))
    except _DECODE_ERRORS as error:
        if isinstance(error, UserError):
            raise
        raise _damaged(error) from error
    raise UserError("not a whole PNG, JPEG or WebP image")


def _orientation(picture: ImageFile.ImageFile, data: bytes) -> int:
    """EXIF orientation, 1 (upright) to 8.

    Pillow decodes all of a PNG to look for it behind the pixels, so a PNG is asked only if it speaks of one.
    """
    if isinstance(picture, PngImageFile) and "exif" not in picture.info:
        is_bomb = picture.width * picture.height > MAX_PIXELS
        if is_bomb or not any(mark in data for mark in _PNG_EXIF):
            return 1
    found = picture.getexif().get(_ORIENTATION, 1)
    return found if found in range(1, 9) else 1


def _damaged(error: BaseException) -> UserError:
    return UserError(f"not a whole PNG, JPEG or WebP image ({type(error).__name__})")


def _too_many(pixels: int) -> UserError:
    return TooManyPixels(f"image of {pixels} pixels, allowed: up to {MAX_PIXELS}")


def picture_size(data: bytes) -> tuple[int, int]:
    """(Height, width) of a PNG, JPEG or WebP file, upright; read from its header.

    Raises:
        UserError: another format or a damaged header.
    """
    picture = _open(data)
    try:
        turned = _orientation(picture, data) >= 5
    except _DECODE_ERRORS as error:
        raise _damaged(error) from error
    return (picture.width, picture.height) if turned else (picture.height, picture.width)


def oddity(data: bytes) -> str | None:
    """What is unusual about a picture file, in a word or two, by its header alone; None where nothing is.

    The worst of: `no picture` (none of PNG, JPEG, WebP), `damaged` (its header), `bomb` (more pixels than
    MAX_PIXELS), `animated`, `CMYK`, `16 bits` (a channel), `rotated` (by its EXIF orientation, mirrored too).
    `decode_image` refuses the first three and makes of the others what a viewer shows.
    """
    if data[:8] != _PNG and data[:3] != _JPEG and (data[:4] != b"RIFF" or data[8:12] != b"WEBP"):
        return "no picture"
    try:
        picture = _open(data)
        if picture.width * picture.height > MAX_PIXELS:
            return "bomb"
        if isinstance(picture, PngImageFile | WebPImageFile) and picture.n_frames > 1:
            return "animated"
        if picture.mode == "CMYK":
            return "CMYK"
        if isinstance(picture, PngImageFile) and data[24] == 16:  # which is not told by the mode
            return "16 bits"
        return "rotated" if _orientation(picture, data) != 1 else None
    except TooManyPixels:
        return "bomb"
    except (UserError, *_DECODE_ERRORS):
        return "damaged"


def fit(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Image uint8 [height, width, 3]: the largest middle part of these proportions, scaled; or the image."""
    if image.shape[:2] == (height, width):
        return image
    scale = min(image.shape[0] / height, image.shape[1] / width)
    tall, wide = (max(1, round(scale * side)) for side in (height, width))
    top, left = (image.shape[0] - tall) // 2, (image.shape[1] - wide) // 2
    part = Image.fromarray(image[top : top + tall, left : left + wide])
    return np.asarray(part.resize((width, height), Image.Resampling.LANCZOS))


def bucket_of(height: int, width: int, size: int) -> tuple[int, int]:
    """(Height, width) in steps of size / 8, of about size x size pixels, whose proportions are the nearest.

    Proportions end at 1:2 and 2:1.
    """
    unit = size // 8
    found = [(round(64 / wide) * unit, wide * unit) for wide in range(4, 13)]
    allowed = [each for each in found if max(each) <= 2 * min(each)]
    return min(allowed, key=lambda each: abs(math.log(each[1] / each[0]) - math.log(width / height)))
