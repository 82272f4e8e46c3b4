"""What leaves every detector of others: finite numbers, boxes inside the image, scores that say something."""

from collections.abc import Iterator

import numpy as np
import torch

Box = tuple[float, float, float, float]

# Thresholds belong to the verdict; what is below this, no threshold would let through.
LEAST_SCORE = 0.05


def in_batches(images: np.ndarray, size: int) -> Iterator[np.ndarray]:
    """Images uint8 [B, H, W, 3] in consecutive batches of at most `size`."""
    for start in range(0, len(images), size):
        yield images[start : start + size]


def finite(kind: str, numbers: torch.Tensor) -> torch.Tensor:
    """The numbers in float32; a comparison would drop those that are none, and the image seem empty.

    Raises:
        ValueError: one is infinite or not a number, so the detector is broken.
    """
    if not bool(numbers.isfinite().all()):
        raise ValueError(f"detector {kind} answers with numbers that are not finite")
    return numbers.float()


def corners(boxes: torch.Tensor, scale: tuple[float, float]) -> list[Box]:
    """Boxes (x0, y0, x1, y1) in pixels of boxes float [N, 4] (centre x, centre y, width, height) in [0, 1].

    Args:
        boxes: as shares of what the model was shown.
        scale: (width, height) in pixels of what the model was shown.
    """
    center, half = boxes[:, :2].double().cpu(), boxes[:, 2:].double().cpu() / 2
    across = torch.tensor(scale, dtype=torch.float64)
    pixels = torch.cat([(center - half) * across, (center + half) * across], 1)
    return [(x0, y0, x1, y1) for x0, y0, x1, y1 in pixels.tolist()]


def inside(box: Box, size: tuple[int, int]) -> Box | None:
    """The part of a box that lies in an image of (height, width) `size`; None where there is none."""
    height, width = size
    x0, x1 = (min(max(x, 0.0), float(width)) for x in box[::2])
    y0, y1 = (min(max(y, 0.0), float(height)) for y in box[1::2])
    return (x0, y0, x1, y1) if x0 < x1 and y0 < y1 else None
