"""How far one set of images is from another, by kernels of pairs of their features: KID and CMMD."""

from dataclasses import dataclass

import numpy as np

from lightgen.core.draws import numpy_draws
from lightgen.core.errors import UserError
from lightgen.evals.fidelity import check_pair

# Shapes: N and M images of the two sets, D features.

_BLOCK = 2048  # rows of a block of pairs: 32 MiB of float64, whatever N is
_CMMD_SIGMA, _CMMD_SCALE = 10.0, 1000.0


@dataclass(frozen=True, kw_only=True)
class KernelDistance:
    """KID.

    Attributes:
        value: mean over subsets of the unbiased squared distance; may be below 0 for equal distributions.
        std: deviation over the subsets; None where a single one was looked at.
        subset_size, subsets: images of each side in a subset; how many subsets.
    """

    value: float
    std: float | None
    subset_size: int
    subsets: int


@dataclass(frozen=True, kw_only=True)
class MeanDiscrepancy:
    """CMMD.

    Attributes:
        value: squared distance times 1000, not below 0; on average it is the true one plus the floor.
        standard_error: of the value, to first order in how both sets were drawn. In simulations, intervals of
            95 % around value - floor held the true one in 93 to 99 % of draws; for equal distributions they
            are too wide.
        floor: value that as many images of one distribution have on average.
    """

    value: float
    standard_error: float
    floor: float


def kernel_distance(
    a: np.ndarray, b: np.ndarray, subsets: int = 100, subset_size: int = 1000, seed: int = 0
) -> KernelDistance:
    """KID of features [N, D] and [M, D]: squared mean discrepancy by the kernel (x . y / D + 1)^3.

    Subsets hold min(subset_size, N, M) images of each side, drawn without replacement by the seed. Where that
    is all images of both sides, one subset is all there is. Unlike the Fréchet distance it has no bias by N.

    Raises:
        UserError: fewer than two images on a side, or different widths.

    Source: arXiv 1801.01401, section 4; subsets as in torch-fidelity and torchmetrics.
    """
    assert subsets > 0 and subset_size > 1, (subsets, subset_size)
    first, second = check_pair(a, b, 2, "kernel distance")
    size = min(subset_size, len(first), len(second))
    if size == len(first) == len(second):
        return KernelDistance(value=_unbiased(first, second), std=None, subset_size=size, subsets=1)
    values = np.empty(subsets)
    for number in range(subsets):
        random = numpy_draws(seed, "kernel subset", number)
        chosen = [rows[random.choice(len(rows), size, replace=False)] for rows in (first, second)]
        values[number] = _unbiased(*chosen)
    std = float(values.std()) if subsets > 1 else None
    return KernelDistance(value=float(values.mean()), std=std, subset_size=size, subsets=subsets)


def cmmd(a: np.ndarray, b: np.ndarray) -> MeanDiscrepancy:
    """CMMD of CLIP's features [N, D] and [M, D]: 1000 times the squared mean discrepancy, at unit length.

    The kernel is exp(-|x - y|^2 / 200), and means are over all pairs, each image with itself included.

    Raises:
        UserError: fewer than two images on a side, different widths, or a feature of length 0.

    Source: arXiv 2401.09603 and github google-research/google-research `cmmd/distance.py` (the estimator with
    the least variance, Gretton et al. 2012, eq. 5). The standard error is that of a U-statistic, Serfling
    1980, section 5.5: images count by how near they are to their own set, less how near to the other.
    """
    first, second = (_unit(rows) for rows in check_pair(a, b, 2, "cmmd"))
    num, other = len(first), len(second)
    own, theirs = _row_sums(first), _row_sums(second)
    across, back = _cross_sums(first, second)
    value = own.sum() / num**2 + theirs.sum() / other**2 - 2 * across.sum() / (num * other)
    pull = own / num - across / other, theirs / other - back / num
    error = np.sqrt(4 * (pull[0].var() / num + pull[1].var() / other))
    # an image meets itself once among its N pairs, at a kernel of 1: less 1, nothing
    floor = -sum(sums.sum() / (n * n * (n - 1)) for sums, n in ((own, num), (theirs, other)))
    return MeanDiscrepancy(
        value=max(0.0, float(_CMMD_SCALE * value)),
        standard_error=float(_CMMD_SCALE * error),
        floor=float(_CMMD_SCALE * floor),
    )


def _unbiased(a: np.ndarray, b: np.ndarray) -> float:
    """Unbiased squared mean discrepancy of rows [n, D] and [n, D] by the cubic kernel."""
    num = len(a)
    own = sum((_cubic(rows, rows).sum() - _cubic_self(rows).sum()) for rows in (a, b))
    return float(own / (num * (num - 1)) - 2 * _cubic(a, b).mean())


def _cubic(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    kernel = a @ b.T / a.shape[1] + 1
    return kernel * kernel * kernel


def _cubic_self(rows: np.ndarray) -> np.ndarray:
    return (np.einsum("nd,nd->n", rows, rows) / rows.shape[1] + 1) ** 3


def _gaussian(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Kernel less 1, [n, m], of rows at unit length, whose squared distance is 2 - 2 x . y.

    All kernels are near 1, and a constant leaves the discrepancy as it is: the digits are kept for the rest.
    """
    return np.expm1((a @ b.T - 1) / _CMMD_SIGMA**2)


def _unit(rows: np.ndarray) -> np.ndarray:
    """The rows, brought to unit length where they lie."""
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    if not lengths.all():
        raise UserError("cmmd: got a feature of length 0, allowed: features with a direction")
    rows /= lengths
    return rows


def _row_sums(rows: np.ndarray) -> np.ndarray:
    """Sums [N] of each row's kernel, less 1, with all rows; a block of pairs is looked at for both sides."""
    sums = np.zeros(len(rows))
    for i in range(0, len(rows), _BLOCK):
        for j in range(i, len(rows), _BLOCK):
            block = _gaussian(rows[i : i + _BLOCK], rows[j : j + _BLOCK])
            sums[i : i + _BLOCK] += block.sum(1)
            if j > i:
                sums[j : j + _BLOCK] += block.sum(0)
    return sums


def _cross_sums(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sums [N] and [M] of each row's kernel, less 1, with all rows of the other side."""
    sums, back = np.zeros(len(a)), np.zeros(len(b))
    for i in range(0, len(a), _BLOCK):
        for j in range(0, len(b), _BLOCK):
            block = _gaussian(a[i : i + _BLOCK], b[j : j + _BLOCK])
            sums[i : i + _BLOCK] += block.sum(1)
            back[j : j + _BLOCK] += block.sum(0)
    return sums, back
