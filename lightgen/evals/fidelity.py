"""How far one set of images is from another, by the mean and covariance of their features.

All of it is NumPy in float64, in one order, so that the digits follow from the features alone.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from lightgen.core.draws import numpy_draws
from lightgen.core.errors import UserError

# Shapes: N and M images of the two sets, D features.

_CHUNK_BYTES = 64 << 20  # of rows in float64


@dataclass(frozen=True, kw_only=True)
class FeatureStatistics:
    """Moments of features: `num` rows, their `mean` float64 [D] and unbiased `cov` float64 [D, D]."""

    num: int
    mean: np.ndarray
    cov: np.ndarray


def check_features(features: np.ndarray, least: int, what: str) -> np.ndarray:
    """The features as float64 [N, D].

    Raises:
        UserError: no finite floats of this shape, or fewer rows than `least`.
    """
    if features.ndim != 2 or features.dtype.kind != "f" or not features.shape[1]:
        raise UserError(f"{what}: got {features.dtype} {features.shape}, allowed: floats of shape [N, D]")
    if len(features) < least:
        raise UserError(f"{what}: got features of {len(features)} images, allowed: {least} or more")
    rows = features.astype(np.float64)
    if not np.isfinite(rows).all():
        raise UserError(f"{what}: got features that are not finite, allowed: finite ones")
    return rows


def check_pair(a: np.ndarray, b: np.ndarray, least: int, what: str) -> tuple[np.ndarray, np.ndarray]:
    """Both sides' features as float64; raises UserError as `check_features`, or for different widths."""
    if a.ndim == b.ndim == 2 and a.shape[1] != b.shape[1]:
        raise UserError(f"{what}: got features of width {a.shape[1]} and {b.shape[1]}, allowed: one width")
    return check_features(a, least, what), check_features(b, least, what)


def feature_statistics(parts: Iterable[np.ndarray]) -> FeatureStatistics:
    """Moments of the rows [n, D] of all parts, such as shards, merged in their order.

    Raises:
        UserError: fewer than two rows in all, or parts of different widths.

    Source: Chan, Golub, LeVeque 1979, updating formulae for sample variances, here for covariances.
    """
    num, mean, scatter = 0, np.zeros(0), np.zeros((0, 0))
    for part in parts:
        step = max(1, _CHUNK_BYTES // (8 * max(1, part.shape[-1])))
        for start in range(0, len(part), step):
            rows = check_features(part[start : start + step], 1, "feature statistics")
            if not num:
                mean, scatter = np.zeros(rows.shape[1]), np.zeros((rows.shape[1], rows.shape[1]))
            if rows.shape[1] != len(mean):
                raise UserError(
                    f"feature statistics: got widths {len(mean)} and {rows.shape[1]}, allowed: one width"
                )
            count, middle = len(rows), rows.mean(0)
            rows -= middle
            apart = middle - mean
            scatter += rows.T @ rows + np.outer(apart, apart) * (num * count / (num + count))
            mean = mean + apart * (count / (num + count))
            num += count
    if num < 2:
        raise UserError(f"feature statistics: got features of {num} images, allowed: 2 or more")
    return FeatureStatistics(num=num, mean=mean, cov=scatter / (num - 1))


def frechet_distance(mean1: np.ndarray, cov1: np.ndarray, mean2: np.ndarray, cov2: np.ndarray) -> float:
    """Squared Fréchet distance of two Gaussians, not below 0.

    The trace of the root of the product of both covariances is the sum of the singular values of the product
    of their roots. So no root of a rounding error is ever taken, however many of their directions are empty.

    Args:
        mean1: float [D], of the first.
        cov1: float [D, D], symmetric, of the first.
        mean2: of the second.
        cov2: of the second.

    Source: Dowson and Landau 1982; arXiv 1706.08500, eq. 6 (FID); arXiv 2306.04675 (with DINOv2).
    """
    root1, root2 = _root(cov1), _root(cov2)
    shared = np.linalg.svd(root1.T @ root2, compute_uv=False).sum() if root1.size and root2.size else 0.0
    apart = np.asarray(mean1, np.float64) - np.asarray(mean2, np.float64)
    return max(0.0, float(apart @ apart + np.trace(cov1) + np.trace(cov2) - 2 * shared))


def frechet(a: np.ndarray, b: np.ndarray) -> float:
    """Squared Fréchet distance of features [N, D] and [M, D]; see `frechet_distance`.

    It is too large by about a term in 1 / N + 1 / M, so that only distances of equal N compare.

    Raises:
        UserError: fewer than two images on a side, or different widths.
    """
    if a.ndim == b.ndim == 2 and a.shape[1] != b.shape[1]:
        raise UserError(f"frechet: got features of width {a.shape[1]} and {b.shape[1]}, allowed: one width")
    first, second = feature_statistics([a]), feature_statistics([b])
    return frechet_distance(first.mean, first.cov, second.mean, second.cov)


def halves_distance(features: np.ndarray, seed: int = 0) -> float:
    """Fréchet distance of two halves of one set, drawn by chance: what no difference looks like at N / 2.

    Raises:
        UserError: fewer than four images.
    """
    if len(features) < 4:
        raise UserError(f"frechet: got {len(features)} images to halve, allowed: 4 or more")
    order = numpy_draws(seed, "halves of features").permutation(len(features))
    middle = len(features) // 2
    return frechet(features[order[:middle]], features[order[middle : 2 * middle]])


def normal_interval(value: float, standard_error: float, coverage: float) -> tuple[float, float]:
    """Middle `coverage` of a normal distribution with this mean and deviation."""
    reach = NormalDist().inv_cdf((1 + coverage) / 2) * standard_error
    return value - reach, value + reach


def _root(cov: np.ndarray) -> np.ndarray:
    """Matrix R float64 [D, r] with R R^T = cov, without the directions that only rounding fills."""
    values, vectors = np.linalg.eigh(np.asarray(cov, np.float64))
    kept = values > values[-1:].clip(0) * len(values) * np.finfo(np.float64).eps
    return vectors[:, kept] * np.sqrt(values[kept])
