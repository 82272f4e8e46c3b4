"""What a contact sheet is made of: thumbnails, pairs of them, and which rows are the nearest."""

import io
from collections.abc import Callable, Iterable

import numpy as np
from PIL import Image

SIDE = 192
_GAP = 4
_FITTING_SIDES = (128, 96, 64, 48)


def thumbnail(image: np.ndarray, side: int = SIDE) -> bytes:
    """JPEG of an image uint8 [H, W, 3], whole, at most `side` px on a side; the same bytes each time."""
    return _jpeg(_small(image, side))


def fitting_thumbnails(images: Callable[[], Iterable[np.ndarray]], max_bytes: int) -> list[bytes]:
    """WebPs of whole images, small enough to weigh at most `max_bytes` in all; the same bytes each time.

    Args:
        images: gives the images uint8 [H, W, 3] anew at each call, since they may be too many to keep.
        max_bytes: of all together; below what 48 px a side take, there is none.
    """
    for side in _FITTING_SIDES:
        made, spent = [], 0
        for image in images():
            made.append(_webp(_small(image, side)))
            spent += len(made[-1])
            if spent > max_bytes:
                break
        else:
            return made
    return []


def side_by_side(left: np.ndarray, right: np.ndarray, side: int = SIDE) -> bytes:
    """JPEG of two images uint8 [H, W, 3] next to each other, each at most `side` px on a side."""
    one, two = _small(left, side), _small(right, side)
    both = Image.new("RGB", (one.width + _GAP + two.width, max(one.height, two.height)), "white")
    both.paste(one, (0, 0))
    both.paste(two, (one.width + _GAP, 0))
    return _jpeg(both)


def nearest_pairs(embeddings: np.ndarray, num: int) -> list[tuple[int, int, float]]:
    """(Earlier row, later row, cosine) of the nearest pairs of unit rows float [N, D], nearest first.

    A row is in one pair at most, so that one crowd does not fill the list. It takes N * N * 4 bytes.
    """
    cosines = np.triu(embeddings @ embeddings.T, 1)
    cosines[np.tril_indices(len(cosines))] = -np.inf
    found: list[tuple[int, int, float]] = []
    while len(found) < num and cosines.size:
        row, other = divmod(int(cosines.argmax()), len(cosines))
        cosine = float(cosines[row, other])
        if not np.isfinite(cosine):
            break
        found.append((row, other, min(1.0, cosine)))
        cosines[[row, other]] = cosines[:, [row, other]] = -np.inf
    return found


def _small(image: np.ndarray, side: int) -> Image.Image:
    picture = Image.fromarray(np.ascontiguousarray(image))
    picture.thumbnail((side, side), Image.Resampling.LANCZOS)
    return picture


def _webp(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "WEBP", quality=70, method=3)
    return buffer.getvalue()


def _jpeg(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=82)
    return buffer.getvalue()
