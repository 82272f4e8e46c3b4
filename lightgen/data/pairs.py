"""Preference pairs: which of the scored images of a prompt is chosen, and which is rejected."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from lightgen.core.errors import UserError

How = Literal["best-worst", "all"]
_HOWS = ("best-worst", "all")


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two rows of one prompt, by index, and how far apart they score.

    Attributes:
        chosen, rejected: index of the better and of the worse row.
        margin: score of chosen minus score of rejected, above 0.
    """

    chosen: int
    rejected: int
    margin: float


@dataclass(frozen=True, kw_only=True)
class PairCounts:
    """What became of the comparisons.

    Attributes:
        prompts: distinct prompts, those with a single row included.
        pairs: comparisons that are kept.
        ties: comparisons of equal scores, dropped.
        below_margin: comparisons that are closer than the margin, dropped.
    """

    prompts: int
    pairs: int
    ties: int
    below_margin: int


def pair(rows: Sequence[Mapping[str, Any]], margin: float = 0.0, how: How = "best-worst") -> list[Pair]:
    """Preference pairs of the rows, by order of each prompt's first row.

    Args:
        rows: each with `caption` (or `prompt`), the text that groups them, and `score`, higher is better.
        margin: least difference of scores, in the unit of the scores; equal scores never make a pair.
        how: "best-worst", at most one pair per prompt; or "all" pairs within a prompt. Of equal scores the
            earlier row ranks higher, so best is the first of its score and worst the last.

    Raises:
        UserError: a row without text or with a score that is not finite, or a margin or how out of range.
    """
    return [found for found in _comparisons(rows, margin, how) if found.margin > 0 and found.margin >= margin]


def count_pairs(
    rows: Sequence[Mapping[str, Any]], margin: float = 0.0, how: How = "best-worst"
) -> PairCounts:
    """Counts of what `pair` keeps and drops for the same arguments; raises as it does."""
    margins = [found.margin for found in _comparisons(rows, margin, how)]
    ties = sum(found == 0 for found in margins)
    below_margin = sum(0 < found < margin for found in margins)
    return PairCounts(
        prompts=len({_text(row, i) for i, row in enumerate(rows)}),
        pairs=len(margins) - ties - below_margin,
        ties=ties,
        below_margin=below_margin,
    )


def _comparisons(rows: Sequence[Mapping[str, Any]], margin: float, how: How) -> Iterator[Pair]:
    """Every comparison that `how` makes, ties and close ones included."""
    if how not in _HOWS:
        raise UserError(f"pairs: how {how!r} is unknown, allowed: {', '.join(_HOWS)}")
    if not (math.isfinite(margin) and margin >= 0):
        raise UserError(f"pairs: margin {margin!r}, allowed: a finite number from 0")
    groups: dict[str, list[tuple[float, int]]] = {}
    for i, row in enumerate(rows):
        groups.setdefault(_text(row, i), []).append((_score(row, i), i))
    for group in groups.values():
        ranked = sorted(group, key=lambda member: (-member[0], member[1]))
        places = [(0, len(ranked) - 1)] if how == "best-worst" else _all_places(len(ranked))
        for better, worse in places:
            if better < worse:
                (high, chosen), (low, rejected) = ranked[better], ranked[worse]
                yield Pair(chosen=chosen, rejected=rejected, margin=high - low)


def _all_places(count: int) -> Iterator[tuple[int, int]]:
    return ((better, worse) for better in range(count) for worse in range(better + 1, count))


def _text(row: Mapping[str, Any], index: int) -> str:
    text = row.get("caption", row.get("prompt"))
    if not isinstance(text, str):
        raise UserError(f"pairs: row {index} has no caption or prompt text, got {str(text)[:80]!r}")
    return text


def _score(row: Mapping[str, Any], index: int) -> float:
    score = row.get("score")
    if isinstance(score, bool) or not isinstance(score, int | float) or not math.isfinite(score):
        raise UserError(f"pairs: score {score!r} of row {index}, allowed: a finite number (made by rank)")
    return float(score)
