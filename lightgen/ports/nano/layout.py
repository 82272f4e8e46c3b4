"""Where the objects of a scene go: inside the canvas, apart from each other, in the relation asked for."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

# Shares of the canvas's shorter side that one object's longer side takes, by the number of objects.
_SIZES = {1: (0.5, 0.76), 2: (0.38, 0.5), 3: (0.34, 0.44), 4: (0.32, 0.42)}
_SIZE_OF_MANY = (0.24, 0.3)
# Sizes come in steps of this share of the shorter side, so that sprites can be kept.
_SIZE_STEP = 1 / 32

Measure = Callable[[int, int], tuple[int, int]]


@dataclass(frozen=True)
class Placement:
    """One object's size (longer side, px) and the px coordinates of its box's top left corner."""

    size: int
    x: int
    y: int


@dataclass(frozen=True)
class _Area:
    x: float
    y: float
    width: float
    height: float


def place(
    counts: Sequence[int],
    relation: str | None,
    height: int,
    width: int,
    random: np.random.Generator,
    measure: Measure,
) -> list[Placement]:
    """Placement of each object, group by group.

    `measure(i, size)` gives the height and width in px of object i at a size, both at most that size.
    """
    total = sum(counts)
    canvas = _Area(0, 0, width, height)
    low, high = _SIZES.get(total, _SIZE_OF_MANY)
    side = min(height, width)
    if total == 1:
        return _place_in_cells([canvas], [0], (low, high), side, random, measure)
    if total == 2:
        return _place_pair(relation, (low, high), height, width, random, measure)
    if relation is None:
        cells = _cells(canvas, total, random)
        order = random.permutation(total)
        return _place_in_cells([cells[i] for i in order], range(total), (low, high), side, random, measure)
    first, second = _halves(canvas, relation)
    cells = _cells(first, counts[0], random) + _cells(second, total - counts[0], random)
    return _place_in_cells(cells, range(total), (low, high), side, random, measure)


def _stepped(size: float, side: int) -> int:
    step = max(1.0, side * _SIZE_STEP)
    return max(8, int(int(size / step + 0.5) * step))


def _margin(side: int) -> int:
    return max(2, side // 48)


def _place_in_cells(
    cells: Sequence[_Area],
    indices: Sequence[int],
    shares: tuple[float, float],
    side: int,
    random: np.random.Generator,
    measure: Measure,
) -> list[Placement]:
    """Each object somewhere in its own cell; objects of one scene have about the same size."""
    margin = _margin(side)
    base = side * float(random.uniform(*shares))
    spread = 0.0 if len(cells) == 1 else 0.08
    placements = []
    for index, cell in zip(indices, cells, strict=True):
        room = min(cell.width, cell.height) - 2 * margin
        size = _stepped(base * (1 + spread * (2 * random.random() - 1)), side)
        size = min(size, int(room))
        h, w = measure(index, size)
        # The mean of two draws keeps objects off the corners most of the time.
        across, down = (random.random(2) + random.random(2)) / 2
        x = cell.x + margin + across * (cell.width - 2 * margin - w)
        y = cell.y + margin + down * (cell.height - 2 * margin - h)
        placements.append(Placement(size, int(x), int(y)))
    return placements


def _place_pair(
    relation: str | None,
    shares: tuple[float, float],
    height: int,
    width: int,
    random: np.random.Generator,
    measure: Measure,
) -> list[Placement]:
    """Two objects side by side or one above the other, roughly aligned across."""
    side = min(height, width)
    margin = _margin(side)
    sizes = [_stepped(side * float(random.uniform(*shares)), side) for _ in range(2)]
    axis = int(relation in ("above", "below")) if relation else int(random.random() < 0.4)
    swap = relation in ("right of", "below") if relation else random.random() < 0.5
    length, breadth = (height, width) if axis else (width, height)
    extents = [measure(i, sizes[i]) for i in range(2)]
    along = [extent[0 if axis else 1] for extent in extents]
    if sum(along) + 3 * margin > length:
        sizes = [int(size * (length - 3 * margin) / sum(along)) for size in sizes]
        extents = [measure(i, sizes[i]) for i in range(2)]
        along = [extent[0 if axis else 1] for extent in extents]
    across = [extent[1 if axis else 0] for extent in extents]
    near, far = (1, 0) if swap else (0, 1)
    slack = max(0, length - 3 * margin - sum(along))
    before, between = np.sort(random.random(2)) * slack
    starts = [0.0, 0.0]
    starts[near] = margin + before
    starts[far] = 2 * margin + between + along[near]
    distance = starts[far] + along[far] / 2 - starts[near] - along[near] / 2
    low = margin + max(across) / 2
    high = max(low, breadth - low)
    center = low + (high - low) * float(random.random() + random.random()) / 2
    # A third of the distance across is far inside what GenEval's rule for positions accepts.
    other = np.clip(center + (2 * random.random() - 1) * distance / 3, low, high)
    placements = []
    for start, middle, breadth_here, size in zip(starts, (center, other), across, sizes, strict=True):
        lead, cross = int(start), int(middle - breadth_here / 2)
        placements.append(Placement(size, cross, lead) if axis else Placement(size, lead, cross))
    return placements


def _halves(canvas: _Area, relation: str) -> tuple[_Area, _Area]:
    if relation in ("left of", "right of"):
        half = canvas.width / 2
        first, second = _Area(0, 0, half, canvas.height), _Area(half, 0, half, canvas.height)
    else:
        half = canvas.height / 2
        first, second = _Area(0, 0, canvas.width, half), _Area(0, half, canvas.width, half)
    return (second, first) if relation in ("right of", "below") else (first, second)


def _cells(area: _Area, count: int, random: np.random.Generator) -> list[_Area]:
    """`count` cells that tile the area in rows as square as can be."""
    columns = int(np.clip(round((count * area.width / area.height) ** 0.5), 1, count))
    rows = -(-count // columns)
    lengths = [count // rows + (row < count % rows) for row in range(rows)]
    random.shuffle(lengths)
    down = area.height / rows
    cells = []
    for row, length in enumerate(lengths):
        across = area.width / length
        cells += [_Area(area.x + i * across, area.y + row * down, across, down) for i in range(length)]
    return cells
