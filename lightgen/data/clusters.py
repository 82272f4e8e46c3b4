"""Clusters of embeddings: k-means by faiss on a sample, and its cells, in bounded memory.

Rows may lie in a memory map of any length: they are read in chunks of some megabytes, and only small whole
numbers are kept for each row. Rows are compared by direction; they need not be of unit length.

All is drawn from the seed, so the same rows give the same cells. Only the number of threads and the kind of
processor can change that: they decide the order in which a matrix product adds, so sums differ in the last
bit, and a row half-way between two centroids may change sides. One thread on one machine repeats to the bit.
"""

import importlib
from typing import Any

import numpy as np

from lightgen.core.draws import draw_key, numpy_draws, permuted
from lightgen.core.errors import UserError

# Shapes: N rows, D dimensions, K cells.

CHUNK_BYTES = 64 << 20  # of rows in float32 that are worked on at once
_SAMPLE_PER_CELL = 32  # more rows move a centroid by less than cells differ anyway
_ROUNDS = 8
_FAN = 256  # parts that are cut at once: then the work is linear in the number of rows


def load_faiss() -> Any:  # noqa: ANN401  (the library has no types)
    """The library faiss.

    Raises:
        UserError: it is not installed.
    """
    try:
        return importlib.import_module("faiss")
    except ImportError as error:
        raise UserError(
            "clusters: faiss is not installed, allowed: after `pip install 'lightgen[curate]'`"
        ) from error


def checked_rows(embeddings: np.ndarray) -> np.ndarray:
    """The embeddings themselves, where they are float16, float32 or float64 [N, D] with D from 1.

    Raises:
        UserError: they are not.
    """
    if embeddings.ndim != 2 or embeddings.dtype.kind != "f" or embeddings.shape[1] < 1:
        shape = "x".join(map(str, embeddings.shape))
        raise UserError(f"embeddings: got {embeddings.dtype} of shape {shape}, allowed: floats of shape NxD")
    return embeddings


def chunk_rows(dim: int) -> int:
    """Rows of D dimensions that are worked on at once."""
    return max(1, CHUNK_BYTES // (4 * dim))


def unit_rows(embeddings: np.ndarray, rows: np.ndarray | slice) -> np.ndarray:
    """Float32 [n, D], contiguous: some rows at unit length; a row of zeros stays one.

    Raises:
        UserError: a row holds what is no finite number.
    """
    wide = np.asarray(embeddings[rows], dtype=np.float64)
    # by the largest entry first: squares of very large or small ones would leave the range
    scale = np.abs(wide).max(axis=1, keepdims=True, initial=0.0)
    if not np.isfinite(scale).all():
        bad = int(np.flatnonzero(~np.isfinite(scale[:, 0]))[0])
        row = int(np.arange(len(embeddings))[rows][bad] if isinstance(rows, slice) else rows[bad])
        raise UserError(f"embeddings: row {row} holds no finite number, allowed: finite ones")
    wide /= np.where(scale > 0, scale, 1)
    length = np.sqrt(np.einsum("nd,nd->n", wide, wide))[:, None]
    return np.ascontiguousarray(wide / np.where(length > 0, length, 1), dtype=np.float32)


def find_centroids(
    embeddings: np.ndarray,
    num: int,
    seed: int,
    rows: np.ndarray | None = None,
    *,
    by_spread: bool = False,
) -> np.ndarray:
    """Centroids float32 [K, D] at unit length of k-means by cosine on a keyed sample; K = min(num, N).

    Args:
        embeddings: float [N, D].
        num: cells, from 1.
        seed: of the sample and of the first centroids.
        rows: int64 [n], the rows that are meant, in increasing order; None = all.
        by_spread: begin with centroids far from each other (k-means++), so that cells share out what there is
            to see and not the rows; without, dense regions get as many cells as their rows. It takes a pass
            over the sample for each cell: for some thousand cells at most.

    Raises:
        UserError: faiss is missing, there are no rows, or a row is not finite.

    Source: D. Arthur and S. Vassilvitskii 2007 (k-means++).
    """
    assert num >= 1, num
    size = len(embeddings) if rows is None else len(rows)
    if not size:
        raise UserError("clusters: got no rows, allowed: at least one")
    faiss, num = load_faiss(), min(num, size)
    taken = np.sort(permuted(seed, "k-means sample", num, np.arange(min(size, _SAMPLE_PER_CELL * num)), size))
    sample = unit_rows(embeddings, taken if rows is None else rows[taken])
    kmeans = faiss.Kmeans(
        sample.shape[1],
        num,
        niter=_ROUNDS,
        seed=draw_key(seed, "k-means", num) % 2**31,
        spherical=True,
        min_points_per_centroid=1,
        max_points_per_centroid=2 * _SAMPLE_PER_CELL,
    )
    kmeans.train(sample, init_centroids=_far_apart(sample, num, seed) if by_spread else None)
    return np.ascontiguousarray(kmeans.centroids, dtype=np.float32)


def _far_apart(sample: np.ndarray, num: int, seed: int) -> np.ndarray:
    """Rows float32 [num, D] of a sample of unit rows, each drawn by its squared distance to those before."""
    draws = numpy_draws(seed, "k-means++", num).random(num)
    chosen = [int(draws[0] * len(sample))]
    left = np.full(len(sample), np.inf, np.float32)  # 1 - cosine, half the squared distance
    for draw in draws[1:].tolist():
        np.minimum(left, (1 - sample @ sample[chosen[-1]]).clip(0), out=left)
        left[chosen[-1]] = 0
        total = np.cumsum(left, dtype=np.float64)
        chosen.append(min(int(np.searchsorted(total, draw * total[-1], side="right")), len(sample) - 1))
    return sample[chosen]


def nearest_cells(
    embeddings: np.ndarray, centroids: np.ndarray, num: int = 1, rows: np.ndarray | None = None
) -> np.ndarray:
    """Cells int32 [n, num] of each row, the nearest first, by cosine; num <= K."""
    faiss, (cells, dim) = load_faiss(), centroids.shape
    assert 1 <= num <= cells, (num, cells)
    index = faiss.IndexFlatIP(dim)
    index.add(centroids)
    size = len(embeddings) if rows is None else len(rows)
    found = np.empty((size, num), np.int32)
    step = chunk_rows(dim)
    for start in range(0, size, step):
        part = slice(start, min(start + step, size))
        found[part] = index.search(unit_rows(embeddings, part if rows is None else rows[part]), num)[1]
    return found


def members(cells: np.ndarray, num: int) -> list[np.ndarray]:
    """Positions int64, increasing, of the entries of each cell 0 .. num-1; cells int [N]."""
    order = np.argsort(cells, kind="stable")
    return np.split(order, np.cumsum(np.bincount(cells, minlength=num))[:-1])


def partition(embeddings: np.ndarray, max_rows: int, seed: int, rows: np.ndarray) -> list[np.ndarray]:
    """Positions int64 in `rows` of parts of at most max_rows that lie together, none of them empty.

    Cells of k-means that are too large are cut again; what k-means cannot cut, as equal rows, by number.
    """
    parts: list[np.ndarray] = []
    waiting = [np.arange(len(rows))]
    while waiting:
        part = waiting.pop()
        if len(part) <= max_rows:
            parts.append(part)
            continue
        num = min(_FAN, -(-2 * len(part) // max_rows))
        centroids = find_centroids(embeddings, num, seed, rows[part])
        cells = nearest_cells(embeddings, centroids, 1, rows[part])[:, 0]
        found = [part[each] for each in members(cells, len(centroids)) if len(each)]
        if max(len(each) for each in found) > 0.9 * len(part):
            found = [part[i : i + max_rows] for i in range(0, len(part), max_rows)]
        waiting.extend(reversed(found))
    return parts
