"""Keys and values of many rows of tokens side by side, while rows come and go."""

from collections.abc import Sequence
from typing import Generic, NamedTuple, TypeVar

import numpy as np
import torch
from torch.nn import functional

# Shapes: R rows, S slots of a row, N tokens that pass, of all rows, A heads, E head width, D = A E.

Owner = TypeVar("Owner")
_STEP = 8
_FEW = 4  # times as many queries as these have those of others


class Asked(NamedTuple):
    """Rows with about as many queries each, and what they may see.

    Attributes:
        rows: their numbers, int [r]; None = all rows.
        at: their tokens among those that pass, int [n]; None = all.
        most: queries of the row that has most.
        flat: place of each query in rows of `most`, int [n].
        mask: bool [r, 1, 1, S], True = may be attended to; None = all may.
    """

    rows: torch.Tensor | None
    at: torch.Tensor | None
    most: int
    flat: torch.Tensor
    mask: torch.Tensor | None


class Shelf(Generic[Owner]):
    """Rows of slots for keys and values, by block.

    Attributes:
        owners: whose each row is.
        lengths: slots in use of each row.
    """

    def __init__(self, num_heads: int, width: int, device: torch.device) -> None:
        self.owners: list[Owner] = []
        self.lengths: list[int] = []
        self._num_heads, self._width, self._device = num_heads, width, device
        self._keeps = False
        self._kept: dict[str, torch.Tensor] = {}  # [2, rows, slots, D]: keys, then values
        self._rows, self._slots = 0, 0

    def add(self, owner: Owner, length: int) -> None:
        """Add a last row of so many slots."""
        self.owners.append(owner)
        self.lengths.append(length)
        row = len(self.owners) - 1
        if row >= self._rows or length > self._slots:
            self._rows = max(self._rows, row + 1 + row // 2)
            self._slots = max(self._slots, -(-length // _STEP) * _STEP)
            for block, old in self._kept.items():
                self._kept[block] = self._slots_like(old)
                self._kept[block][:, : old.shape[1], : old.shape[2]] = old
        for kept in self._kept.values():
            kept[:, row] = 0  # the mask hides what was here, but not a number that is not finite

    def remove(self, row: int) -> None:
        """Let a row go; the last one takes its place."""
        last, length = self.owners.pop(), self.lengths.pop()
        if row < len(self.owners):
            self.owners[row], self.lengths[row] = last, length
            for kept in self._kept.values():
                kept[:, row] = kept[:, len(self.owners)]
        if not self.owners:
            self._kept.clear()
            self._rows, self._slots = 0, 0

    def keep(self, keeps: bool) -> None:
        """Give each block slots of its own, or one set to all; where this changes, all is forgotten."""
        if keeps != self._keeps:
            self._keeps = keeps
            self._kept.clear()

    def places(self, starts: Sequence[int], ends: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """(Number of tokens [R], places among all slots [N]), both int, of slots start to end of each row."""
        first = np.asarray(starts, dtype=np.int64)
        count = np.asarray(ends, dtype=np.int64) - first
        return count, _counted(np.arange(len(count)) * self._slots + first, count)

    def asked(self, count: np.ndarray, seen_from: Sequence[int] | None = None) -> list[Asked]:
        """So many queries of each row, which see its slots in use, or of these the ones from a slot on.

        Rows with few queries are apart from those with many: each is filled up to the longest of its kind.
        """
        slots = np.arange(max(self.lengths))
        seen = slots < np.array(self.lengths)[:, None]
        if seen_from is not None:
            seen &= slots >= np.asarray(seen_from)[:, None]
        few = count * _FEW <= count.max(initial=0)
        kinds = [np.nonzero(kind)[0] for kind in (few & (count > 0), ~few)]
        row_of = np.repeat(np.arange(len(count)), count)
        asked = []
        for rows in kinds:
            if not len(rows):
                continue
            most, own = int(count[rows].max()), count[rows]
            flat = self._index(_counted(np.arange(len(rows)) * most, own))
            mask = None if seen[rows].all() else self._index(seen[rows][:, None, None])
            is_all = len(rows) == len(count)
            at = None if len(own) == (count > 0).sum() else self._index(np.nonzero(np.isin(row_of, rows))[0])
            asked.append(Asked(None if is_all else self._index(rows), at, most, flat, mask))
        return asked

    def put(self, block: str, flat: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> None:
        """Keep keys and values [N, ...] of D numbers each of a block, at places int [N]."""
        name = block if self._keeps else ""
        if name not in self._kept:
            self._kept[name] = self._slots_like(k)
        for kept, new in zip(self._kept[name], (k, v), strict=True):
            kept.view(-1, self._width)[flat] = new.reshape(-1, self._width)

    def attend(self, block: str, q: torch.Tensor, asked: Sequence[Asked]) -> torch.Tensor:
        """Mixed values [N, D] of queries [N, ...] of D numbers each, among the keys of their rows."""
        kept, length = self._kept[block if self._keeps else ""], max(self.lengths)
        q = q.reshape(-1, self._width)
        mixed = torch.empty_like(q) if len(asked) > 1 else q
        for each in asked:
            own = q if each.at is None else q.index_select(0, each.at)
            there = [half[: len(self.owners)] for half in kept]
            if each.rows is not None:  # whole rows: copied at the memory's speed
                there = [
                    half.flatten(1).index_select(0, each.rows).view(-1, *half.shape[1:]) for half in kept
                ]
            found = self._mixed(own, [half[:, :length] for half in there], each)
            if each.at is None:
                return found
            mixed[each.at] = found
        return mixed

    def _mixed(self, q: torch.Tensor, kept: Sequence[torch.Tensor], asked: Asked) -> torch.Tensor:
        padded = q.new_empty(len(kept[0]), asked.most, self._width)
        padded.view(-1, self._width)[asked.flat] = q
        heads = (each.unflatten(-1, (self._num_heads, -1)).transpose(1, 2) for each in (padded, *kept))
        mixed = functional.scaled_dot_product_attention(*heads, attn_mask=asked.mask)
        return mixed.transpose(1, 2).reshape(-1, self._width).index_select(0, asked.flat)

    def _index(self, values: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(values).to(self._device)

    def _slots_like(self, other: torch.Tensor) -> torch.Tensor:
        return other.new_zeros(2, self._rows, self._slots, self._width)


def _counted(start: np.ndarray, count: np.ndarray) -> np.ndarray:
    """From each start on, so many whole numbers, one run after the other."""
    return np.repeat(start - np.cumsum(count) + count, count) + np.arange(count.sum())
