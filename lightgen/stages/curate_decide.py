"""Which of measured pictures are taken, and why the others are not: a function of their numbers alone."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from lightgen.core.errors import UserError
from lightgen.data.duplicates import embedding_duplicates, hash_duplicates
from lightgen.data.select import select
from lightgen.stages.curate_config import CurateConfig, LimitsConfig, TwinsConfig

# Why an item is left out; the first that holds, in this order. `not a record` are members of a shard that the
# reader skipped; the others are records.
REASONS = (
    "not a record",
    "damaged",
    "bomb",
    "odd picture",
    "unsafe",
    "too small",
    "too long",
    "blank",
    "not sharp",
    "no column",
    "out of range",
    "duplicate",
    "near duplicate",
    "too many of a prompt",
    "not selected",
)
TAKEN = 255  # in the place of a reason

Gather = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Table:
    """What was measured, in columns [N].

    Attributes:
        problem: uint8, number in REASONS of what keeps a record from being measured, else TAKEN.
        odd: bool, whether the picture is of an unusual kind.
        height, width: int32, px.
        contrast, entropy, sharpness, unsafe: float64; NaN where not measured.
        hashes: uint64, perceptual.
        prompts: uint64, hash of the prompt.
        columns: float64 each, by name; NaN = the record has none.
    """

    problem: np.ndarray
    odd: np.ndarray
    height: np.ndarray
    width: np.ndarray
    contrast: np.ndarray
    entropy: np.ndarray
    sharpness: np.ndarray
    unsafe: np.ndarray
    hashes: np.ndarray
    prompts: np.ndarray
    columns: dict[str, np.ndarray]


@dataclass(frozen=True)
class Decision:
    """The fate of each of N records.

    Attributes:
        reason: uint8 [N], number in REASONS, or TAKEN.
        other: int64 [N], row of the picture that stands for a duplicate, number of the threshold that a
            column misses, else -1.
    """

    reason: np.ndarray
    other: np.ndarray

    @property
    def taken(self) -> np.ndarray:
        """Rows int64 of the records that are taken, ascending."""
        return np.flatnonzero(self.reason == TAKEN)

    @property
    def left_out(self) -> np.ndarray:
        """Rows int64 of the others, ascending."""
        return np.flatnonzero(self.reason != TAKEN)

    def counts(self) -> dict[str, int]:
        """How many were left out, by reason, zeros too."""
        return {name: int((self.reason == number).sum()) for number, name in enumerate(REASONS)}


def decide(config: CurateConfig, table: Table, gather: Gather) -> Decision:
    """Fate of each record of a table; the same for the same table.

    Args:
        config: which are taken.
        table: N records, in the order of the inputs, with the columns of `config.columns()`.
        gather: embeddings [n, D] of rows [n], in their order; called only if `config.needs_embeddings()`.

    Raises:
        UserError: no picture has the column by which twins are kept.
    """
    limits, twins, selection = config.limits, config.twins, config.selection
    found = Decision(table.problem.copy(), np.full(len(table.problem), -1, np.int64))
    if config.odd_images == "quarantine":
        _leave_out(found, "odd picture", table.odd)
    _apply_limits(found, limits, table)
    rows = _ranked(found.taken, twins, table)
    if twins.max_bits is not None and rows.size:
        rows = _fold(found, "duplicate", rows, hash_duplicates(table.hashes[rows], twins.max_bits))
    if twins.min_cosine is not None and rows.size:
        same = embedding_duplicates(gather(rows), twins.min_cosine, selection.seed)
        rows = _fold(found, "near duplicate", rows, same)
    if twins.per_prompt is not None and rows.size:
        over = _nth(table.prompts[rows]) >= twins.per_prompt
        found.reason[rows[over]] = REASONS.index("too many of a prompt")
    rows = found.taken
    if selection.num is not None and selection.num < rows.size:
        # chance looks at nothing but how many there are
        seen = np.zeros((rows.size, 1), np.float32) if selection.how == "random" else gather(rows)
        chosen = select(seen, selection.num, selection.how, selection.seed)
        found.reason[np.delete(rows, chosen)] = REASONS.index("not selected")
    return found


def _apply_limits(found: Decision, limits: LimitsConfig, table: Table) -> None:
    """Leave out what is beyond a limit."""
    _leave_out(found, "unsafe", table.unsafe > limits.max_unsafe)  # False where NaN: not checked
    short, long = np.minimum(table.height, table.width), np.maximum(table.height, table.width)
    _leave_out(found, "too small", short < limits.min_side)
    if limits.max_aspect is not None:
        _leave_out(found, "too long", long > limits.max_aspect * short)
    blank = (table.contrast < limits.min_contrast) | (table.entropy < limits.min_entropy)
    _leave_out(found, "blank", blank)
    if limits.min_sharpness is not None:
        _leave_out(found, "not sharp", table.sharpness < limits.min_sharpness)
    for number, (name, least, most) in enumerate(limits.columns):
        values = table.columns[name]
        if limits.without_column == "reject":
            _leave_out(found, "no column", np.isnan(values), number)
        low = values < least if least is not None else np.zeros(len(values), bool)
        high = values > most if most is not None else np.zeros(len(values), bool)
        _leave_out(found, "out of range", low | high, number)


def _leave_out(found: Decision, reason: str, where: np.ndarray, other: int = -1) -> None:
    """Give a reason to those that have none yet."""
    fresh = where & (found.reason == TAKEN)
    found.reason[fresh], found.other[fresh] = REASONS.index(reason), other


def _ranked(rows: np.ndarray, twins: TwinsConfig, table: Table) -> np.ndarray:
    """The rows, those that are rather kept first; without a column as they are."""
    if twins.keep is None:
        return rows
    values = table.columns[twins.keep][rows]
    if rows.size and np.isnan(values).all():
        raise UserError(f"--twins.keep: got {twins.keep!r}, allowed: a column that some record has")
    return rows[np.argsort(-values, kind="stable")]  # NaN comes last


def _fold(found: Decision, reason: str, rows: np.ndarray, same: np.ndarray) -> np.ndarray:
    """The rows that stand for themselves; `same` [n] are places among the rows of what stands for each."""
    double = same != np.arange(len(rows))
    found.reason[rows[double]], found.other[rows[double]] = REASONS.index(reason), rows[same[double]]
    return rows[~double]


def _nth(keys: np.ndarray) -> np.ndarray:
    """How many equal keys come before each one, int64 [n]."""
    order = np.argsort(keys, kind="stable")
    is_first = np.ones(len(keys), bool)
    is_first[1:] = keys[order][1:] != keys[order][:-1]
    starts = np.maximum.accumulate(np.where(is_first, np.arange(len(keys)), 0))
    found = np.empty(len(keys), np.int64)
    found[order] = np.arange(len(keys)) - starts
    return found
