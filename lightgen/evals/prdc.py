"""Precision and recall of a set of images, density and coverage, by the nearest neighbours of their features.

Pairs are looked at in blocks, so that memory grows with the number of images and never with that of pairs.
"""

from dataclasses import dataclass

import numpy as np

from lightgen.core.errors import UserError
from lightgen.evals.fidelity import check_pair

# Shapes: N real images, M generated ones, D features, k neighbours.

_BLOCK = 2048  # rows of a block of pairs: 32 MiB of float64, whatever N is


@dataclass(frozen=True, kw_only=True)
class Prdc:
    """How two sets lie in each other; every number grows with quality.

    An image's ball reaches to its k-th nearest neighbour in its own set, the border not counted.

    Attributes:
        precision: share of generated images in the ball of a real one: how many look real.
        recall: share of real images in the ball of a generated one: how many could have been generated.
        density: real balls that a generated image lies in, on average, over k; may exceed 1.
        coverage: share of real images with a generated one in their ball.
        balls: int64 [M], real balls that each generated image lies in.
    """

    precision: float
    recall: float
    density: float
    coverage: float
    balls: np.ndarray


def prdc(real: np.ndarray, fake: np.ndarray, k: int = 5) -> Prdc:
    """Precision, recall, density and coverage of features [M, D] of generated images against real [N, D].

    Args:
        real: of the reference.
        fake: of the generated images.
        k: neighbours, from 1, fewer than the images of either side.

    Raises:
        UserError: too few images on a side for k, or different widths.

    Source: arXiv 1904.06991, section 2 (precision, recall); arXiv 2002.09797, section 3 (density, coverage).
    """
    if k < 1:
        raise UserError(f"prdc: got k {k}, allowed: a whole number from 1")
    first, second = check_pair(real, fake, k + 1, f"prdc with k {k}")
    middle = first.mean(0)  # near the origin, products lose fewer digits
    first -= middle
    second -= middle
    reach, other = _reach(first, k), _reach(second, k)
    balls, recalled = np.zeros(len(second), np.int64), np.zeros(len(first), bool)
    nearest = np.full(len(first), np.inf)
    for i in range(0, len(first), _BLOCK):
        own = slice(i, i + _BLOCK)
        for j in range(0, len(second), _BLOCK):
            theirs = slice(j, j + _BLOCK)
            block = _distances(first[own], second[theirs])
            balls[theirs] += (block < reach[own, None]).sum(0)
            recalled[own] |= (block < other[theirs]).any(1)
            nearest[own] = np.minimum(nearest[own], block.min(1))
    return Prdc(
        precision=float((balls > 0).mean()),
        recall=float(recalled.mean()),
        density=float(balls.mean() / k),
        coverage=float((nearest < reach).mean()),
        balls=balls,
    )


def _reach(rows: np.ndarray, k: int) -> np.ndarray:
    """Squared distance [N] from each row to its k-th nearest other one."""
    nearest = np.full((len(rows), k), np.inf)
    for i in range(0, len(rows), _BLOCK):
        own = slice(i, i + _BLOCK)
        for j in range(i, len(rows), _BLOCK):
            theirs = slice(j, j + _BLOCK)
            block = _distances(rows[own], rows[theirs])
            if i == j:
                np.fill_diagonal(block, np.inf)  # no row is its own neighbour
            nearest[own] = _smallest(nearest[own], block, k)
            if j > i:
                nearest[theirs] = _smallest(nearest[theirs], np.ascontiguousarray(block.T), k)
    return nearest.max(1)


def _smallest(known: np.ndarray, block: np.ndarray, k: int) -> np.ndarray:
    """The k smallest [n, k] of each row of both, in any order."""
    if block.shape[1] > k:
        block = np.partition(block, k - 1, axis=1)[:, :k]
    return np.partition(np.concatenate([known, block], axis=1), k - 1, axis=1)[:, :k]


def _distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Squared distances [n, m] of rows; rounding makes none of them negative."""
    found = a @ b.T
    found *= -2
    found += np.einsum("nd,nd->n", a, a)[:, None]
    found += np.einsum("nd,nd->n", b, b)
    return np.maximum(found, 0, out=found)
