"""Selection of the most diverse N of M rows, by their embeddings, in bounded memory.

Greedy selection looks at all pairs of rows, which some thousands allow and millions do not. More rows are cut
by k-means into parts of at most PART_ROWS, greedy runs in each part, and its picks are merged by what each
brings: the distance it was from all picks before it (k-center), or what it adds to the sum (facility).

How many picks a part gets comes out of the merge and is not set beforehand. Within a part, what a pick brings
never grows. Taking the largest of all parts therefore covers every part to one radius (k-center), and is, for
facility location in which a row is served by its own part, the greedy algorithm itself. Equal quotas would
spend as much on a dense part as on a wide one; quotas by size would leave a small, wide one nearly unseen.
"""

import heapq
from typing import Literal, get_args

import numpy as np

from lightgen.core.draws import numpy_draws, permuted
from lightgen.core.errors import UserError
from lightgen.data.clusters import (
    checked_rows,
    find_centroids,
    members,
    nearest_cells,
    partition,
    unit_rows,
)

How = Literal["random", "k-center", "facility", "balanced"]

PART_ROWS = 4096  # a part's table of all pairs takes 64 MiB
MAX_CELLS = 1024
_MIN_PICKS = 16  # per part on average; with fewer, which parts get one at all would decide
_KEPT = 16  # one row of so many goes on to the next round
_SAME = 1e-6  # what float32 makes of a distance of zero


def select(embeddings: np.ndarray, num: int, how: How, seed: int = 0) -> np.ndarray:
    """Numbers int64 [num] of the chosen rows, increasing; the same for the same rows, how and seed.

    Args:
        embeddings: float [N, D], compared by direction; a memory map is read in chunks.
        num: how many rows, 1 .. N.
        how: random: any, the yardstick; balanced: as many of each of min(num, sqrt N, 1024) k-means cells, of
            a small cell all, and at random within a cell, so that a cell is shown as it is; k-center: each
            next row is the farthest from those chosen, which reaches every corner, outliers and broken images
            too; facility: each next row is the one that brings all rows nearest to a chosen one, which
            represents dense regions by more rows and leaves lone outliers out.
        seed: of the draws and of k-means.

    Raises:
        UserError: num is out of range, the embeddings are no finite floats [N, D], or faiss is missing.

    Source: T. Gonzalez 1985 (k-center: at most twice the best radius); G. Nemhauser et al. 1978 (facility: at
    least 1 - 1/e of the best sum); M. Minoux 1978 (lazy greedy); arXiv 1411.0541 (greedy in parts, then among
    their picks).
    """
    size = len(checked_rows(embeddings))
    if how not in get_args(How):
        raise UserError(f"select: how {how!r} is unknown, allowed: {', '.join(get_args(How))}")
    if not 1 <= num <= size:
        raise UserError(f"select: got {num} rows to choose of {size}, allowed: 1 to {size}")
    if num == size:
        return np.arange(size)
    if how == "random":
        return np.sort(permuted(seed, "select", 0, np.arange(num), size))
    if how == "balanced":
        return _balanced(embeddings, num, seed)
    return np.sort(_greedy(embeddings, num, how, seed))


def fill(sizes: np.ndarray, num: int, seed: int) -> np.ndarray:
    """Quotas int64 [K] that add up to num: one level for all cells, and all of a cell that is smaller.

    Args:
        sizes: int [K].
        num: at most their sum.
        seed: which cells get one above the level, where it does not come out even.
    """
    assert 0 <= num <= sizes.sum(), (num, sizes.sum())
    low, high = 0, int(sizes.max(initial=0))  # the highest level that num allows lies in low .. high
    while low < high:
        level = (low + high + 1) // 2
        low, high = (level, high) if np.minimum(sizes, level).sum() <= num else (low, level - 1)
    quotas = np.minimum(sizes, low).astype(np.int64)
    larger = np.flatnonzero(sizes > low)
    left = num - int(quotas.sum())
    quotas[larger[numpy_draws(seed, "quota").permutation(len(larger))[:left]]] += 1
    return quotas


def _balanced(embeddings: np.ndarray, num: int, seed: int) -> np.ndarray:
    cells = min(num, MAX_CELLS, round(len(embeddings) ** 0.5))
    centroids = find_centroids(embeddings, cells, seed, by_spread=True)
    found = members(nearest_cells(embeddings, centroids)[:, 0], len(centroids))
    quotas = fill(np.array([len(each) for each in found]), num, seed)
    chosen = [
        each[permuted(seed, "select in cell", cell, np.arange(quota), len(each))]
        for cell, (each, quota) in enumerate(zip(found, quotas, strict=True))
        if quota
    ]
    return np.sort(np.concatenate(chosen))


def _greedy(embeddings: np.ndarray, num: int, how: How, seed: int) -> np.ndarray:
    """Rows int64 [num], in rounds: few picks of many parts are made among the picks of a wider round."""
    rows = np.arange(len(embeddings))
    weights = np.ones(len(rows), np.float32)  # how many rows each stands for
    while True:
        parts = partition(embeddings, PART_ROWS, seed, rows)
        is_last = len(parts) == 1 or num >= _MIN_PICKS * len(parts)
        goal = num if is_last else max(num, len(rows) // _KEPT)
        picks = _pick(embeddings, rows, weights, parts, goal, how)
        if is_last:
            return rows[picks]
        picks = np.sort(picks)
        weights = _moved(embeddings, rows, weights, parts, picks)
        rows = rows[picks]


def _pick(
    embeddings: np.ndarray,
    rows: np.ndarray,
    weights: np.ndarray,
    parts: list[np.ndarray],
    num: int,
    how: How,
) -> np.ndarray:
    """Positions int64 [num] in `rows` of the picks of all parts that bring most, ties to the earlier."""
    values, picks = np.empty(0), np.empty(0, np.int64)
    floor = -np.inf  # what a pick must bring to be among the num best so far
    for part in parts:
        unit = unit_rows(embeddings, rows[part])
        table = unit @ unit.T  # [n, n]
        order, brought = (
            _farthest(table, num, floor) if how == "k-center" else _facility(table, weights[part], num, floor)
        )
        values, picks = np.append(values, brought), np.append(picks, part[order])
        if len(values) > num:
            best = np.sort(np.argsort(-values, kind="stable")[:num])
            values, picks = values[best], picks[best]
        if len(values) == num:
            floor = values.min()
    return picks


def _farthest(cosines: np.ndarray, limit: int, floor: float) -> tuple[np.ndarray, np.ndarray]:
    """(Order int64, distance of each from those before it) of rows, the first nearest to their mean."""
    distances = np.subtract(1, cosines, out=cosines)
    first = int(distances.sum(axis=1).argmin())
    order, values = [first], [np.inf]
    left = distances[first].copy()  # from the picks; -inf for a pick
    left[first] = -np.inf
    while len(order) < min(limit, len(left)):
        row = int(left.argmax())
        value = float(left[row])
        if value < floor or value < _SAME:
            break
        order.append(row)
        values.append(value)
        np.minimum(left, distances[row], out=left)
        left[row] = -np.inf
    return _with_rest(order, values, len(left), limit, floor)


def _facility(
    cosines: np.ndarray, weights: np.ndarray, limit: int, floor: float
) -> tuple[np.ndarray, np.ndarray]:
    """(Order int64, gain of each) of rows for the weighted sum of 1 + cosine to the nearest pick."""
    near = np.add(cosines, 1, out=cosines)  # none is negative, so that the bound of greedy holds
    best = np.zeros(len(weights), np.float32)
    # A gain never grows, so an old one is a bound: only what is on top is computed anew.
    bounds = [(-gain, row) for row, gain in enumerate((near @ weights).tolist())]
    heapq.heapify(bounds)
    order: list[int] = []
    values: list[float] = []
    while bounds and len(order) < limit:
        _, row = heapq.heappop(bounds)
        gain = float(np.maximum(near[row] - best, 0) @ weights)
        if bounds and (-gain, row) > bounds[0]:
            heapq.heappush(bounds, (-gain, row))
            continue
        if gain < floor or gain < _SAME * float(weights.sum()):
            break
        order.append(row)
        values.append(min(gain, values[-1]) if values else gain)
        np.maximum(best, near[row], out=best)
    return _with_rest(order, values, len(weights), limit, floor)


def _with_rest(
    order: list[int], values: list[float], size: int, limit: int, floor: float
) -> tuple[np.ndarray, np.ndarray]:
    """The picks, and where they are not enough the rows left, which bring nothing, by number."""
    if len(order) < limit and floor < 0:
        rest = np.setdiff1d(np.arange(size), order)[: limit - len(order)]
        return np.append(np.array(order, np.int64), rest), np.append(values, np.zeros(len(rest)))
    return np.array(order, np.int64), np.array(values, np.float64)


def _moved(
    embeddings: np.ndarray,
    rows: np.ndarray,
    weights: np.ndarray,
    parts: list[np.ndarray],
    picks: np.ndarray,
) -> np.ndarray:
    """Weights float32 [P] of picks, to which each row of a part gave its own to the nearest of that part."""
    totals = np.zeros(len(picks))
    part_of = np.empty(len(rows), np.int32)
    for number, part in enumerate(parts):
        part_of[part] = number
    for part, at in zip(parts, members(part_of[picks], len(parts)), strict=True):
        if len(at):
            unit = unit_rows(embeddings, rows[part]) @ unit_rows(embeddings, rows[picks[at]]).T
            np.add.at(totals, at[unit.argmax(axis=1)], weights[part])
    return totals.astype(np.float32)
