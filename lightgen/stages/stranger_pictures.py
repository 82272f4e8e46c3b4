"""Pictures that strangers send: their bytes become a picture and what to paint of it."""

import numpy as np
from PIL import Image

from lightgen.core.errors import UserError
from lightgen.data.picture import decode_image, oddity, picture_size

_REFUSED = ("no picture", "damaged", "bomb", "animated")


def stranger_picture(name: str, data: bytes, max_side: int) -> tuple[np.ndarray, np.ndarray | None]:
    """Picture uint8 [H, W, 3], transparent parts over white, and where it is transparent, bool [H, W].

    The second is None where it is transparent nowhere. What is half transparent or more counts.

    Args:
        name: what messages call it.
        data: PNG, JPEG or WebP file.
        max_side: px; a larger picture is refused by its header, before it is decoded.

    Raises:
        UserError: the bytes are no such picture, damaged, animated, or too large.
    """
    try:
        strange = oddity(data)
        if strange in _REFUSED:
            raise UserError(f"got {strange}, allowed: a still PNG, JPEG or WebP picture")
        height, width = picture_size(data)
        if max(height, width) > max_side:
            raise UserError(f"got {width}x{height} px, allowed: up to {max_side} px on a side")
        on_white, on_black = decode_image(data), decode_image(data, "black")
    except UserError as error:
        raise UserError(f"{name}: {error}") from error
    # where the background shows, it makes a difference
    clear = (on_white.astype(np.int16) - on_black).max(-1) >= 128
    return on_white, clear if clear.any() else None


def stranger_mask(name: str, data: bytes, max_side: int) -> np.ndarray:
    """Mask bool [H, W], True = paint: where it is transparent, or if nowhere, where it is half white or more.

    Raises:
        UserError: as of stranger_picture.
    """
    picture, clear = stranger_picture(name, data, max_side)
    return np.array(Image.fromarray(picture).convert("L")) >= 128 if clear is None else clear
