"""Pictures that strangers send: their bytes become a picture and what to paint of it."""

from collections.abc import Callable

import numpy as np
from PIL import Image

from lightgen.core.errors import UserError
from lightgen.data.lean_picture import lean_picture
from lightgen.data.picture import decode_layers, flatten

# Is told (height, width) of an upright picture before it is decoded, and raises what speaks against it.
SizeCheck = Callable[[int, int], None]
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def stranger_picture(
    name: str, data: bytes, max_side: int, check: SizeCheck | None = None
) -> tuple[np.ndarray, np.ndarray | None]:
    """Picture uint8 [H, W, 3], transparent parts over white, and where it is transparent, bool [H, W].

    The second is None where it is transparent nowhere. What is half transparent or more counts.

    Args:
        name: what messages call it.
        data: PNG, JPEG or WebP file.
        max_side: px; a larger picture is refused by its header, before it is decoded.
        check: may refuse other sizes as well.

    Raises:
        UserError: the bytes are no such picture, damaged, animated, too large, or made to be slow.
    """
    try:
        lean = lean_picture(data)
        height, width = (lean.height, lean.width) if lean.orientation < 5 else (lean.width, lean.height)
        if max(height, width) > max_side:
            raise UserError(f"got {width}x{height} px, allowed: up to {max_side} px on a side")
    except UserError as error:
        raise UserError(f"{name}: {error}") from error
    if check is not None:
        check(height, width)
    try:
        picture = decode_layers(lean.data)
    except UserError as error:
        raise UserError(f"{name}: {error}") from error
    if lean.orientation in _TURNS:
        picture = picture.transpose(_TURNS[lean.orientation])
    clear = np.asarray(picture)[..., 3] < 128 if picture.mode == "RGBA" else None
    return np.array(flatten(picture, "white")), clear if clear is not None and clear.any() else None


def stranger_mask(name: str, data: bytes, max_side: int, check: SizeCheck | None = None) -> np.ndarray:
    """Mask bool [H, W], True = paint: where it is transparent, or if nowhere, where it is half white or more.

    Raises:
        UserError: as of stranger_picture.
    """
    picture, clear = stranger_picture(name, data, max_side, check)
    return np.array(Image.fromarray(picture).convert("L")) >= 128 if clear is None else clear
