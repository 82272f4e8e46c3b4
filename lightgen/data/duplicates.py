"""Near-duplicates: which earlier row stands for a row, by perceptual hashes or by embeddings.

One rule for both: rows are looked at in order, and a row is dropped only where a KEPT earlier one is its
twin; the earliest such stands for it. So what is dropped always resembles what stands for it, and no chain of
small steps joins what has nothing in common.
"""

import functools
from itertools import combinations

import numpy as np
from PIL import Image

from lightgen.core.errors import UserError
from lightgen.data.clusters import (
    checked_rows,
    find_centroids,
    load_faiss,
    nearest_cells,
    unit_rows,
)

MAX_BITS = 11
EXACT_ROWS = 16_384  # up to here every pair of embeddings is compared

_SIDE = 32
_BANDS, _WIDTH = 4, 16
_BATCH = 1024  # rows that are compared with each other at once
_PAIRS = 1 << 22  # candidates that are compared at once
_CELLS_SEEN = 4
_ROUNDING = 2e-6  # of a cosine in float32
INDEX_BYTES = 512 << 20  # of kept rows that are searched at once

# Shapes: N rows, M different hashes.


def perceptual_hash(image: np.ndarray) -> int:
    """Hash in [0, 2**64) of an image uint8 [H, W, 3]: near ones differ in few bits.

    Bits: whether each of the 64 lowest frequencies of the grey picture at 32 x 32 px, its mean left out, is
    above their median.
    """
    assert image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3, (image.dtype, image.shape)
    grey = Image.fromarray(image).convert("L").resize((_SIDE, _SIDE), Image.Resampling.LANCZOS)
    pixels = np.asarray(grey, dtype=np.float64)
    basis, places = _cosines()
    low = (basis @ (pixels - pixels.mean()) @ basis.T)[places]
    low = np.round(low, 6)  # so that a blank picture is 0 and not what rounding left
    return int.from_bytes(np.packbits(low > np.median(low)).tobytes(), "big")


@functools.cache
def _cosines() -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray]]:
    """Basis [12, 32] of the cosine transform, and the places of its 64 lowest frequencies but the mean."""
    count = 12
    angles = np.pi * (np.arange(_SIDE) + 0.5) / _SIDE
    order = sorted(
        ((u, v) for u in range(count) for v in range(count) if u or v), key=lambda p: (p[0] + p[1], p)
    )
    rows, columns = np.array(order[:64]).T
    return np.cos(np.arange(count)[:, None] * angles), (rows, columns)


def hash_duplicates(hashes: np.ndarray, max_bits: int = 4) -> np.ndarray:
    """Row int64 [N] that stands for each: the earliest kept one within max_bits, or itself where it is kept.

    Exact. Equal hashes are one from the start, so any number of them costs nothing; different ones are found
    by bands of bits, of which two near hashes agree in at least one, but for few bits.

    Args:
        hashes: uint64 [N].
        max_bits: most bits in which twins differ, 0 .. 11; above 7 it is slow.

    Raises:
        UserError: max_bits is out of range, or the hashes are no uint64 [N].

    Source: M. Norouzi et al., arXiv 1307.2982 (search by several bands).
    """
    if hashes.ndim != 1 or hashes.dtype != np.uint64:
        raise UserError(f"hashes: got {hashes.dtype} of {hashes.ndim} axes, allowed: uint64 of shape N")
    if not 0 <= max_bits <= MAX_BITS:
        raise UserError(f"duplicates: got {max_bits} bits, allowed: 0 to {MAX_BITS}")
    different, first, group = np.unique(hashes, return_index=True, return_inverse=True)
    order = np.argsort(first)  # the rule holds for the first of equals as for all of them
    stands = np.arange(len(different))
    if max_bits and len(different):
        stands[order] = order[_hash_pass(different[order], max_bits)]
    return first[stands[group]].astype(np.int64)


def _hash_pass(hashes: np.ndarray, max_bits: int) -> np.ndarray:
    """As hash_duplicates, of hashes of which no two are equal."""
    stands = np.arange(len(hashes))
    kept = _KeptHashes(hashes, max_bits)
    for start in range(0, len(hashes), _BATCH):
        rows = np.arange(start, min(start + _BATCH, len(hashes)))
        found = kept.earliest(rows)
        stands[rows[found >= 0]] = found[found >= 0]
        left = rows[found < 0]
        near = np.bitwise_count(hashes[left, None] ^ hashes[left]) <= max_bits
        chosen = _in_order(near)
        stands[left] = left[chosen]
        kept.add(left[chosen == np.arange(len(left))])
    return stands


def _in_order(near: np.ndarray) -> np.ndarray:
    """Positions int64 [n] that stand for each of n in order; near bool [n, n], of which i < j is read."""
    stands = np.arange(len(near))
    near = np.triu(near, 1)
    for row in np.flatnonzero(near.any(axis=0)).tolist():
        twins = np.flatnonzero(near[:row, row])
        twins = twins[stands[twins] == twins]
        if len(twins):
            stands[row] = twins[0]
    return stands


class _KeptHashes:
    """Kept hashes by bands, in segments that double as in a binary counter: adding stays cheap."""

    def __init__(self, hashes: np.ndarray, max_bits: int) -> None:
        self._hashes, self._max_bits = hashes, max_bits
        self._bands = _banded(hashes)
        self._rows = np.empty(len(hashes), np.int64)
        self._num = 0
        self._segments: list[tuple[int, int, np.ndarray, np.ndarray]] = []
        # Two hashes within b bits are within b // 4 in one of four bands.
        flips = [c for n in range(max_bits // _BANDS + 1) for c in combinations(range(_WIDTH), n)]
        self._masks = np.array([sum(1 << bit for bit in each) for each in flips], np.uint16)

    def add(self, rows: np.ndarray) -> None:
        """Keep further rows, all later than those kept before."""
        if not len(rows):
            return
        start = self._num
        self._num += len(rows)
        self._rows[start : self._num] = rows
        while self._segments and self._segments[-1][1] - self._segments[-1][0] <= 2 * (self._num - start):
            start = self._segments.pop()[0]
        keys = self._bands[:, self._rows[start : self._num]]
        order = np.argsort(keys, axis=1, kind="stable").astype(np.int32) + np.int32(start)
        counts = [np.bincount(each, minlength=1 << _WIDTH) for each in keys]
        ends = np.cumsum(np.array(counts), axis=1)
        self._segments.append((start, self._num, order, np.pad(ends, ((0, 0), (1, 0))).astype(np.int32)))

    def earliest(self, rows: np.ndarray) -> np.ndarray:
        """Earliest kept row int64 [n] within max_bits of each row, -1 where there is none."""
        found = np.full(len(rows), -1)
        for _, _, order, offsets in self._segments:
            open_ = np.flatnonzero(found < 0)  # a later segment holds later rows
            if not len(open_):
                break
            best = np.full(len(open_), self._num)
            for band in range(_BANDS):
                self._search(rows[open_], self._bands[band], order[band], offsets[band], best)
            hit = best < self._num
            found[open_[hit]] = self._rows[best[hit]]
        return found

    def _search(
        self, rows: np.ndarray, keys: np.ndarray, order: np.ndarray, offsets: np.ndarray, best: np.ndarray
    ) -> None:
        """Lower best int64 [n] to the least place among the kept of one band of one segment."""
        buckets = (keys[rows, None] ^ self._masks).astype(np.int64)
        low = offsets[buckets]
        count = (offsets[buckets + 1] - low).ravel()
        full = np.flatnonzero(count)
        low, count, query = low.ravel()[full], count[full].astype(np.int64), full // len(self._masks)
        ends = np.cumsum(count)
        start = 0
        while start < len(full):
            before = int(ends[start] - count[start])
            stop = max(start + 1, int(np.searchsorted(ends, before + _PAIRS, side="right")))
            entry = np.repeat(np.arange(start, stop), count[start:stop])
            shift = low[start:stop] - (ends[start:stop] - count[start:stop] - before)
            places = order[np.arange(len(entry)) + shift[entry - start]]
            asked = query[entry]
            near = self._hashes[self._rows[places]] ^ self._hashes[rows[asked]]
            hit = np.flatnonzero(np.bitwise_count(near) <= self._max_bits)
            np.minimum.at(best, asked[hit], places[hit])
            start = stop


def _banded(hashes: np.ndarray) -> np.ndarray:
    """Keys uint16 [4, M] of the four bands, to which bits are dealt by how evenly they are set.

    Pictures of one kind share many bits; dealt by place, a band might hold nothing else and tell none apart.
    """
    one = np.uint64(1)
    shares = [float((hashes >> np.uint64(bit) & one).mean()) for bit in range(64)]
    keys = np.zeros((_BANDS, len(hashes)), np.uint16)
    for place, bit in enumerate(sorted(range(64), key=lambda bit: abs(shares[bit] - 0.5))):
        values = (hashes >> np.uint64(bit) & one).astype(np.uint16)
        keys[place % _BANDS] |= values << np.uint16(place // _BANDS)
    return keys


def embedding_duplicates(embeddings: np.ndarray, min_cosine: float, seed: int = 0) -> np.ndarray:
    """Row int64 [N] that stands for each: the earliest kept one of at least min_cosine, or itself.

    Exact up to EXACT_ROWS rows. Beyond, rows are sorted into about 4 sqrt N cells of k-means, and a row is
    compared with the kept rows of the four cells nearest to it; a twin elsewhere is missed, what is found is
    right. Time grows as N ** 1.5; memory holds 512 MiB of rows and some ten whole numbers for each.

    Args:
        embeddings: float [N, D], compared by direction; a memory map is read in chunks.
        min_cosine: in (-1, 1], good to about 2e-6; a row of zeros has no twin above 0.
        seed: of k-means.

    Raises:
        UserError: min_cosine is out of range, the embeddings are no finite floats [N, D], or there are more
            than EXACT_ROWS and faiss is missing.
    """
    size, dim = checked_rows(embeddings).shape
    if not -1 < min_cosine <= 1:
        raise UserError(f"duplicates: got a cosine of {min_cosine}, allowed: above -1, up to 1")
    stands = np.full(size, -1)
    if size <= EXACT_ROWS:
        _embedding_pass(_KeptRows(size, dim, min_cosine), embeddings, stands, np.arange(size), min_cosine)
        return stands
    centroids = find_centroids(embeddings, round(4 * size**0.5), seed)
    cells = nearest_cells(embeddings, centroids, _CELLS_SEEN)
    block = max(_BATCH, INDEX_BYTES // (4 * dim))
    for start in range(0, size, block):
        stop = min(start + block, size)
        kept = _KeptInCells(cells, centroids, min_cosine)
        _embedding_pass(kept, embeddings, stands, np.arange(start, stop), min_cosine)
        # Later rows meet the blocks in order, so that the first that holds a twin holds the earliest.
        for at in range(stop, size, _BATCH):
            rows = at + np.flatnonzero(stands[at : at + _BATCH] < 0)
            stands[rows] = kept.earliest(unit_rows(embeddings, rows), rows)
    return stands


def _embedding_pass(
    kept: "_KeptRows | _KeptInCells",
    embeddings: np.ndarray,
    stands: np.ndarray,
    rows: np.ndarray,
    min_cosine: float,
) -> None:
    """Write into stands int64 [N] what stands for the rows for which nothing (-1) does yet, and keep them."""
    for start in range(0, len(rows), _BATCH):
        batch = rows[start : start + _BATCH]
        batch = batch[stands[batch] < 0]
        unit = unit_rows(embeddings, batch)
        stands[batch] = found = kept.earliest(unit, batch)
        left, unit = batch[found < 0], unit[found < 0]
        chosen = _in_order(unit @ unit.T >= min_cosine - _ROUNDING)
        stands[left] = left[chosen]
        new = chosen == np.arange(len(left))
        kept.add(unit[new], left[new])


class _KeptRows:
    """Kept rows in memory, all of which are compared."""

    def __init__(self, size: int, dim: int, min_cosine: float) -> None:
        self._unit = np.empty((size, dim), np.float32)
        self._rows = np.empty(size, np.int64)
        self._num, self._min_cosine = 0, min_cosine

    def add(self, unit: np.ndarray, rows: np.ndarray) -> None:
        """Keep rows later than those kept before; unit float32 [n, D]."""
        part = slice(self._num, self._num + len(rows))
        self._unit[part], self._rows[part] = unit, rows
        self._num += len(rows)

    def earliest(self, unit: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Earliest kept twin int64 [n] of each row, -1 where there is none."""
        found = np.full(len(rows), -1)
        if self._num:
            near = unit @ self._unit[: self._num].T >= self._min_cosine - _ROUNDING
            hit = near.any(axis=1)
            found[hit] = self._rows[near[hit].argmax(axis=1)]
        return found


class _KeptInCells:
    """Kept rows of one block by cells of k-means, of which the few nearest to a row are searched."""

    def __init__(self, cells: np.ndarray, centroids: np.ndarray, min_cosine: float) -> None:
        self._faiss, (num, dim) = load_faiss(), centroids.shape
        self._cells, self._radius = cells, min_cosine - _ROUNDING
        self._centroids = self._faiss.IndexFlatIP(dim)  # the index only points to it
        self._centroids.add(centroids)
        self._index = self._faiss.IndexIVFFlat(self._centroids, dim, num, self._faiss.METRIC_INNER_PRODUCT)
        self._index.nprobe = cells.shape[1]

    def add(self, unit: np.ndarray, rows: np.ndarray) -> None:
        """Keep rows; unit float32 [n, D]."""
        unit, ids, home = (
            np.ascontiguousarray(unit),
            np.ascontiguousarray(rows, np.int64),
            np.ascontiguousarray(self._cells[rows, 0], np.int64),
        )  # named, so that they live while faiss reads them by address
        pointers = [self._faiss.swig_ptr(each) for each in (unit, ids, home)]
        self._index.add_core(len(rows), *pointers)

    def earliest(self, unit: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Earliest kept twin int64 [n] of each row in the cells nearest to it, -1 where there is none."""
        if not len(rows) or not self._index.ntotal:
            return np.full(len(rows), -1)
        cells = np.ascontiguousarray(self._cells[rows], np.int64)
        ends, _, twins = self._index.range_search_preassigned(
            unit, self._radius, cells, np.zeros(cells.shape, np.float32)
        )
        ends = ends.astype(np.int64)
        found = np.full(len(rows), -1)
        hit = np.flatnonzero(np.diff(ends))
        if len(hit):
            found[hit] = np.minimum.reduceat(twins, ends[hit])
        return found
