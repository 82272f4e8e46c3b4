"""How a picture looks, in numbers that tell blank, blurred and stretched ones from the rest."""

from dataclasses import dataclass

import numpy as np
from PIL import Image


@dataclass(frozen=True)
class Looks:
    """What the pixels of one picture say.

    Attributes:
        height, width: px.
        contrast: standard deviation of the luma, 0 (one grey) to 127.5 (half black, half white).
        entropy: of the histogram of the luma in bits, 0 (one grey) to 8 (all greys alike).
        sharpness: variance of the Laplacian of the luma, from 0; low where nothing has an edge.
    """

    height: int
    width: int
    contrast: float
    entropy: float
    sharpness: float


def looks(image: np.ndarray) -> Looks:
    """Looks of an image uint8 [H, W, 3]; the same pixels give the same numbers on any machine."""
    assert image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3, (image.dtype, image.shape)
    luma = np.asarray(Image.fromarray(np.ascontiguousarray(image)).convert("L"))
    counts = np.bincount(luma.ravel(), minlength=256)
    height, width = luma.shape
    return Looks(height, width, contrast(counts), entropy(counts), sharpness(luma))


def contrast(counts: np.ndarray) -> float:
    """Standard deviation, 0 to 127.5, of the greys that a histogram [256] counts."""
    greys, total = np.arange(256), int(counts.sum())
    mean = float(counts @ greys) / total
    return float(np.sqrt(counts @ np.square(greys - mean) / total))


def entropy(counts: np.ndarray) -> float:
    """Entropy in bits, 0 to 8, of a histogram [256]."""
    shares = counts[counts > 0] / counts.sum()
    return float(-(shares * np.log2(shares)).sum()) + 0.0  # not -0.0


def sharpness(luma: np.ndarray) -> float:
    """Variance of the Laplacian of a luma uint8 [H, W], its border left out; 0 where nothing is inside.

    It grows with noise as well as with edges, and falls as the same picture is enlarged.

    Source: Pech-Pacheco et al., "Diatom autofocusing in brightfield microscopy: a comparative study" (2000).
    """
    if min(luma.shape) < 3:
        return 0.0
    grey = luma.astype(np.int32)
    laplacian = grey[:-2, 1:-1] + grey[2:, 1:-1] + grey[1:-1, :-2] + grey[1:-1, 2:] - 4 * grey[1:-1, 1:-1]
    mean = int(laplacian.sum(dtype=np.int64)) / laplacian.size  # sums of integers have no order
    return max(0.0, int(np.square(laplacian).sum(dtype=np.int64)) / laplacian.size - mean * mean)
