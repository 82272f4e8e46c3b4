"""Diversity as numbers: of embeddings by their spectrum, their angles and the cells they fall into.

Every number is of the rows' directions alone, is found in one pass over chunks of them, and takes the memory
of a chunk and of a table [D, D]: a memory map of ten million rows is as good as an array.
"""

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from lightgen.core.errors import UserError

# Shapes: N rows, D dimensions, K cells.

_CHUNK_BYTES = 64 << 20  # of rows in float32


@dataclass(frozen=True, kw_only=True)
class Diversity:
    """How diverse a set of rows is; every number grows with diversity, and is to be compared at equal N.

    Attributes:
        num: rows N.
        vendi: Vendi score of order 1, in [1, min(N, D)]: as how many rows that have nothing in common.
        vendi_inf: that of infinite order, which sees only the largest crowd.
        mean_distance: mean of 1 - cosine over all pairs, in [0, 2]; 0 for one row.
        num_cells: cells K that were looked at, 0 where none were.
        coverage: share of the cells with a row in them, or None.
        entropy: of the rows' shares of the cells, over log K: 1 where all hold as many; None without cells.
        effective_cells: exp of that entropy: as how many cells of one size, in [1, K]; or None.
    """

    num: int
    vendi: float
    vendi_inf: float
    mean_distance: float
    num_cells: int = 0
    coverage: float | None = None
    entropy: float | None = None
    effective_cells: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Record of these numbers."""
        return asdict(self)


def diversity(embeddings: np.ndarray, cells: np.ndarray | None = None, num_cells: int = 0) -> Diversity:
    """Diversity of rows.

    Args:
        embeddings: float [N, D], N from 1, compared by direction; an array or a memory map.
        cells: int [N], the cell of each row among 0 .. num_cells - 1, as k-means of these rows or of a
            reference finds it; None leaves coverage and entropy out.
        num_cells: of the clusters.

    Raises:
        UserError: there are no rows, or one has no direction.
    """
    gram, total = _moments(embeddings)
    size = len(embeddings)
    spectrum = _spectrum(gram, size)
    # Of N unit vectors, |sum|^2 is N and twice the cosine of every pair.
    pairs = (float(total @ total) - size) / (size * (size - 1)) if size > 1 else 1.0
    found = Diversity(
        num=size,
        vendi=_effective(spectrum, 1),
        vendi_inf=_effective(spectrum, math.inf),
        mean_distance=max(0.0, 1 - pairs),
    )
    if cells is None:
        return found
    assert len(cells) == size and num_cells > 0, (len(cells), size, num_cells)
    counts = np.bincount(cells, minlength=num_cells)
    assert len(counts) == num_cells, (len(counts), num_cells)
    effective = _effective(counts / size, 1)
    return Diversity(
        **{
            **asdict(found),
            "num_cells": num_cells,
            "coverage": float((counts > 0).mean()),
            "entropy": math.log(effective) / math.log(num_cells) if num_cells > 1 else 1.0,
            "effective_cells": effective,
        }
    )


def vendi_score(embeddings: np.ndarray, order: float = 1.0) -> float:
    """Vendi score of rows by cosine, in [1, min(N, D)]: 1 for equal rows, N for orthogonal ones.

    The table of all N x N cosines over N has the same eigenvalues but zeros as that of the D x D sums of
    products, which one pass finds.

    Args:
        embeddings: float [N, D], N from 1, compared by direction.
        order: q >= 0; a low one sees rare rows, 1 is exp of the entropy, inf sees only the largest crowd.

    Raises:
        UserError: there are no rows, or one has no direction.

    Source: arXiv 2210.02410 (order 1); arXiv 2310.12952 (any order).
    """
    assert order >= 0, order
    return _effective(_spectrum(_moments(embeddings)[0], len(embeddings)), order)


def _moments(embeddings: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sum of outer products float64 [D, D] and sum float64 [D] of the rows at unit length."""
    if embeddings.ndim != 2 or embeddings.dtype.kind != "f" or not embeddings.size:
        shape = "x".join(map(str, embeddings.shape))
        raise UserError(
            f"diversity: got {embeddings.dtype} of shape {shape}, allowed: floats of shape NxD, N from 1"
        )
    size, dim = embeddings.shape
    gram, total = np.zeros((dim, dim)), np.zeros(dim)
    step = max(1, _CHUNK_BYTES // (4 * dim))
    for start in range(0, size, step):
        rows = np.array(embeddings[start : start + step], dtype=np.float64)
        # by the largest entry first: squares of very large or small ones would leave the range
        with np.errstate(invalid="ignore"):  # infinite ones, which are told below
            rows /= np.abs(rows).max(axis=1, keepdims=True).clip(5e-324)
        lengths = np.sqrt(np.einsum("nd,nd->n", rows, rows))
        bad = np.flatnonzero(~(lengths >= 1))  # NaN, or 0: the largest entry is 1 now
        if len(bad):
            raise UserError(
                f"diversity: row {start + int(bad[0])} is zero or not finite, allowed: rows with a direction"
            )
        unit = (rows / lengths[:, None]).astype(np.float32)
        gram += unit.T @ unit
        total += unit.sum(axis=0, dtype=np.float64)
    return gram, total


def _spectrum(gram: np.ndarray, size: int) -> np.ndarray:
    """Eigenvalues float64 [min(N, D)], not negative, of sum 1, the largest last."""
    values = np.linalg.eigvalsh(gram).clip(0)[-min(size, len(gram)) :]
    return values / values.sum()


def _effective(shares: np.ndarray, order: float) -> float:
    """Hill number of shares that add up to 1: as how many equal shares."""
    shares = shares[shares > 1e-12]  # what rounding left of zeros, which would count at order 0
    if math.isinf(order):
        return float(1 / shares.max())
    if order == 1:
        return float(np.exp(-(shares * np.log(shares)).sum()))
    return float((shares**order).sum() ** (1 / (1 - order)))
