"""Crowds: a picture with more objects than it had, all copies of one of its own."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.nn import functional

_MOST_COPIES = 4
# Longer sides of copies, as shares of the picture's shorter side; objects are never enlarged.
_SIZES = (0.2, 0.38)
_SPREAD = 0.08
_MARGIN_PX, _LEAST_PX = 2, 6
# Share of the smaller of two boxes that may lie in the other, in every second crowd; in the others none may.
_OVERLAP = 0.25
_TRIES = 12


def crowd(
    image: torch.Tensor, records: Sequence[dict[str, Any]], random: np.random.Generator
) -> tuple[torch.Tensor, list[dict[str, Any]]]:
    """Image [3, H, W] with up to four copies of one object where there is room, and all objects' records.

    Args:
        image: of any range.
        records: at least one; `box`, and `mask` (bool [H, W], True on the object) where it is known: without
            one the whole box is copied.
        random: of all draws.
    """
    height, width = image.shape[1:]
    source = records[int(random.integers(len(records)))]
    x0, y0, x1, y1 = source["box"]
    patch, alpha = image[:, y0:y1, x0:x1].clone(), torch.ones(1, y1 - y0, x1 - x0)
    if source.get("mask") is not None:
        alpha = torch.from_numpy(source["mask"][y0:y1, x0:x1].copy())[None].float()
    alpha = alpha.to(image.device)
    copies = 1 + int(random.integers(_MOST_COPIES))
    side = min(height, width) * random.uniform(*_SIZES)
    overlap = _OVERLAP if random.random() < 0.5 else 0.0
    image, kept = image.clone(), list(records)
    for _ in range(copies):
        scale = min(1.0, side * (1 + _SPREAD * random.uniform(-1, 1)) / max(x1 - x0, y1 - y0))
        size = max(_LEAST_PX, round(scale * (y1 - y0))), max(_LEAST_PX, round(scale * (x1 - x0)))
        box = _find_room([record["box"] for record in kept], size, (height, width), overlap, random)
        if box is None:
            break
        small, opaque = _resized(patch, size), _resized(alpha, size)
        window = image[:, box[1] : box[3], box[0] : box[2]]
        window.copy_(opaque * small + (1 - opaque) * window)
        kept.append({"class": source["class"], "color": source["color"], "box": box})
    return image, kept


def _find_room(
    boxes: Sequence[Sequence[int]],
    size: tuple[int, int],
    canvas: tuple[int, int],
    overlap: float,
    random: np.random.Generator,
) -> list[int] | None:
    """Box of a (height, width) that covers no other by more than a share of the smaller one, or None."""
    (h, w), (height, width) = size, canvas
    low = _MARGIN_PX
    if h + 2 * low > height or w + 2 * low > width:
        return None
    for _ in range(_TRIES):
        x, y = int(random.integers(low, width - low - w + 1)), int(random.integers(low, height - low - h + 1))
        box = [x, y, x + w, y + h]
        if all(_shared(box, other) <= overlap for other in boxes):
            return box
    return None


def _shared(box: Sequence[int], other: Sequence[int]) -> float:
    """Area that two boxes share, in parts of the smaller one."""
    across = min(box[2], other[2]) - max(box[0], other[0])
    down = min(box[3], other[3]) - max(box[1], other[1])
    areas = [(b[2] - b[0]) * (b[3] - b[1]) for b in (box, other)]
    return max(0, across) * max(0, down) / max(1, min(areas))


def _resized(image: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    return functional.interpolate(image[None], size, mode="bilinear", antialias=True)[0]
