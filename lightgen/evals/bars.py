"""Horizontal bars of a report: values with interval whiskers, and the stages of a run in time."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from lightgen.evals.axes import NUM_COLORS, Axis, legend, linear_ticks
from lightgen.evals.page import cell_number, duration, short_number


@dataclass(frozen=True)
class Bar:
    """One bar: its label, value, and the ends of its interval, or None for a value without one."""

    label: str
    value: float
    low: float | None = None
    high: float | None = None


def bar_chart(series: Mapping[str, Sequence[Bar]], maximum: float | None = None) -> str:
    """HTML of horizontal bars with whiskers as a table, bars of the same label side by side.

    Args:
        series: bars of each series, by name; labels may differ between series.
        maximum: right end of the scale; None fits it to the bars.
    """
    ends = [end for group in series.values() for bar in group for end in _ends(bar)]
    if not ends:
        return '<p class="empty">No bars to draw.</p>'
    axis, step = _bar_axis(min(0.0, *ends), max(ends) if maximum is None else max(maximum, *ends))
    by_label: dict[str, list[tuple[int, str, Bar]]] = {}
    for index, (name, bars) in enumerate(series.items()):
        for bar in bars:
            by_label.setdefault(bar.label, []).append((index, name if len(series) > 1 else "", bar))
    rows = "".join(
        _row(bar, index, name, len(group) if place == 0 else 0, axis, step)
        for group in by_label.values()
        for place, (index, name, bar) in enumerate(group)
    )
    ticks = "".join(
        f'<span style="left:{100 * axis.share(t):.2f}%">{short_number(t)}</span>' for t in axis.ticks()
    )
    rail = f'<td><div class="rail">{ticks}</div></td>'
    scale = f'<tr class="scale" aria-hidden="true"><td></td>{rail}<td></td></tr>'
    names = legend(dict.fromkeys(series, ())) if len(series) > 1 else ""
    return f'{names}<table class="bars"><tbody>{rows}{scale}</tbody></table>'


def timeline(rows: Sequence[tuple[str, float, str]]) -> str:
    """HTML of stages that ran one after the other, as a table with a bar from start to end of each.

    Args:
        rows: stage, seconds, and its cost in words (may be empty) in the order in which they ran.
    """
    total = sum(seconds for _, seconds, _ in rows)
    body, start = [], 0.0
    for stage, seconds, cost in rows:
        left, width = (100 * part / total if total else 0.0 for part in (start, seconds))
        start += seconds
        body.append(
            f'<tr><th scope="row">{escape(stage)}</th><td class="track"><div class="rail" aria-hidden="true">'
            f'<i class="bar k0" style="left:{left:.2f}%;width:{width:.2f}%"></i></div></td>'
            f'<td class="number">{duration(seconds)}</td><td class="number">{escape(cost)}</td></tr>'
        )
    return (
        '<div class="scroll"><table class="timeline grid-lines">'
        '<thead><tr><th scope="col">Stage</th><td></td>'
        '<th scope="col" class="number">Time</th><th scope="col" class="number">Cost</th></tr></thead>'
        f'<tbody>{"".join(body)}</tbody><tfoot><tr><th scope="row">Total</th><td></td>'
        f'<td class="number">{duration(total)}</td><td></td></tr></tfoot></table></div>'
    )


def _ends(bar: Bar) -> list[float]:
    """Finite values of the bar that the scale must hold."""
    return [end for end in (bar.value, bar.low, bar.high) if end is not None and math.isfinite(end)]


def _bar_axis(low: float, high: float) -> tuple[Axis, float]:
    """Axis whose low end is a tick, so that rules repeat from there, and the share of one step of ticks."""
    low, high = (low, high) if high > low else (low, low + 1.0)
    ticks = linear_ticks(low, high)
    step = ticks[1] - ticks[0]
    start = math.floor(low / step + 1e-9) * step
    return Axis(start, high), step / (high - start)


def _row(bar: Bar, index: int, name: str, labels_rows: int, axis: Axis, step: float) -> str:
    """HTML of one bar; the first of a label's bars carries the label, over `labels_rows` rows."""
    label = f'<th scope="row" rowspan="{labels_rows}">{escape(bar.label)}</th>' if labels_rows else ""
    spoken = f'<span class="unseen">{escape(name)}: </span>' if name else ""
    marks, span = _mark("zero", axis.share(0.0), axis.share(0.0)) if axis.low < 0 else "", ""
    if math.isfinite(bar.value):
        marks += _mark(f"bar k{index % NUM_COLORS}", *sorted((axis.share(0.0), axis.share(bar.value))))
    if bar.low is not None and bar.high is not None and len(_ends(bar)) == 3:
        marks += _mark("whisker", axis.share(bar.low), axis.share(bar.high))
        span = f" <small>{cell_number(bar.low)} to {cell_number(bar.high)}</small>"
    return (
        f'<tr class="{"first" if labels_rows else "next"}">{label}'
        f'<td><div class="rail" style="--step:{step:.4f}" aria-hidden="true">{marks}</div></td>'
        f'<td class="value">{spoken}{cell_number(bar.value)}{span}</td></tr>'
    )


def _mark(kind: str, left: float, right: float) -> str:
    return f'<i class="{kind}" style="left:{100 * left:.2f}%;width:{100 * (right - left):.2f}%"></i>'
