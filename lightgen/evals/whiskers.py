"""Plots of values with intervals over a number: points with whiskers, joined by a line within a series."""

import math
from collections.abc import Mapping, Sequence
from html import escape
from itertools import pairwise

from lightgen.evals.axes import NUM_COLORS, Axis, fit_axis, legend
from lightgen.evals.page import cell_number, short_number

# x, value, low end, high end
Whisker = tuple[float, float, float, float]

_VIEW = 1000
_PAD = 0.05
# Points of several series at one place stand this share of the axis apart, so that no whisker hides another.
_APART = 0.012
# Widths in pixels: of an axis on a phone, of a letter of a tick, and of the gap between two ticks.
_PHONE, _LETTER, _GAP = 280, 6.5, 8


def drawable_whiskers(points: Sequence[Whisker], log_x: bool) -> list[Whisker]:
    """Points that can be drawn, by x; where an end of an interval is not finite, the value stands for it."""
    kept = [
        (x, value, low if math.isfinite(low) else value, high if math.isfinite(high) else value)
        for x, value, low, high in points
        if math.isfinite(x) and math.isfinite(value) and (x > 0 or not log_x)
    ]
    return sorted(kept)


def whisker_plot(
    series: Mapping[str, Sequence[Whisker]],
    x_label: str,
    y_label: str,
    log_x: bool = False,
    ticks: Mapping[float, str] | None = None,
) -> str:
    """HTML of a plot of values with intervals: legend, plot with a spoken summary, and a table of numbers.

    Args:
        series: points (x, value, low, high) of each line, by name, in any order; low and high are the ends of
            the interval.
        x_label: name of the x axis.
        y_label: name of the y axis.
        log_x: whether the x axis is logarithmic; points that it cannot show are counted below the plot.
        ticks: words at places of the x axis; None = round numbers.
    """
    lines = {name: drawable_whiskers(points, log_x) for name, points in series.items()}
    lines = {name: points for name, points in lines.items() if points}
    left_out = sum(len(points) for points in series.values()) - sum(len(points) for points in lines.values())
    note = f"<p><small>Points that this axis cannot show: {left_out}.</small></p>" if left_out else ""
    if not lines:
        return f'<p class="empty">No points to plot.</p>{note}'
    drawn = [point for points in lines.values() for point in points]
    x_axis = fit_axis([*(p[0] for p in drawn), *(ticks or ())], log=log_x, pad=_PAD)
    y_axis = _y_axis([end for point in drawn for end in point[1:]])
    places = _places(lines, x_axis)
    marks = "".join(_marks(index, lines[name], places[name], y_axis) for index, name in enumerate(lines))
    y_ticks = y_axis.ticks()
    ruled = "".join(f"M0 {_y(tick, y_axis)}H{_VIEW}" for tick in y_ticks)
    beside = "".join(
        f'<span style="--at:{1 - y_axis.share(t):.4f}">{short_number(t)}</span>' for t in y_ticks
    )
    spoken = "; ".join(_summary(name, points, x_label) for name, points in lines.items())
    return (
        f"{legend(dict.fromkeys(lines, ())) if len(lines) > 1 else ''}"
        f'<div class="plot" role="img" aria-label="{escape(f"{y_label} by {x_label}. {spoken}.")}">'
        f'<div class="y-name">{escape(y_label)}</div><div class="y-ticks">{beside}</div>'
        f'<svg viewBox="0 0 {_VIEW} {_VIEW}" preserveAspectRatio="none" aria-hidden="true">'
        f'<path class="lines" d="{ruled}"/><path class="base" d="M0 {_VIEW}H{_VIEW}"/>{marks}</svg>'
        f'<div class="x-ticks">{_x_ticks(x_axis, ticks)}</div>'
        f'<div class="x-name">{escape(f"{x_label} (log)" if log_x else x_label)}</div></div>'
        f"{note}{_numbers(lines, x_label, ticks or {})}"
    )


def _y_axis(ends: Sequence[float]) -> Axis:
    """Axis of all values and ends; it goes below zero only where they do."""
    axis = fit_axis(ends, pad=_PAD)
    return Axis(0.0, axis.high) if min(ends) >= 0 > axis.low else axis


def _y(value: float, axis: Axis) -> str:
    return f"{_VIEW * (1 - axis.share(value)):.1f}"


def _places(lines: Mapping[str, Sequence[Whisker]], axis: Axis) -> dict[str, list[float]]:
    """Where on the axis each point is drawn, as a share: at its x, or beside it where several series meet."""
    at: dict[float, list[str]] = {}
    for name, points in lines.items():
        for x in dict.fromkeys(point[0] for point in points):
            at.setdefault(x, []).append(name)

    def place(name: str, x: float) -> float:
        return axis.share(x) + _APART * (at[x].index(name) - (len(at[x]) - 1) / 2)

    return {name: [place(name, point[0]) for point in points] for name, points in lines.items()}


def _marks(index: int, points: Sequence[Whisker], places: Sequence[float], axis: Axis) -> str:
    """Paths of one series: its line, its whiskers and its points."""
    color, dashed = f"k{index % NUM_COLORS}", " dashed" if index >= NUM_COLORS else ""
    at = [f"{_VIEW * place:.1f}" for place in places]
    line = "M" + "L".join(f"{x} {_y(p[1], axis)}" for x, p in zip(at, points, strict=True))
    whiskers = "".join(
        f"M{x} {_y(p[2], axis)}V{_y(p[3], axis)}" for x, p in zip(at, points, strict=True) if p[2] < p[3]
    )
    dots = "".join(f"M{x} {_y(p[1], axis)}h0" for x, p in zip(at, points, strict=True))
    faint = f'<path class="{color}" style="stroke-width:3.5;stroke-opacity:.4" d="{whiskers}"/>'
    return (
        f'<path class="line {color}{dashed}" d="{line}"/>{faint if whiskers else ""}'
        f'<path class="dots {color}" d="{dots}"/>'
    )


def _x_ticks(axis: Axis, ticks: Mapping[float, str] | None) -> str:
    """Ticks below the axis; every second of them gives way on a phone unless all fit there."""
    named = dict(sorted(ticks.items())) if ticks else {tick: short_number(tick) for tick in axis.ticks()}
    near = [
        (axis.share(b) - axis.share(a)) * _PHONE < _LETTER * (len(named[a]) + len(named[b])) / 2 + _GAP
        for a, b in pairwise(named)
    ]
    shown = "" if any(near) else ";display:inline"
    return "".join(
        f'<span style="--at:{axis.share(tick):.4f}{shown}">{escape(word)}</span>'
        for tick, word in named.items()
    )


def _summary(name: str, points: Sequence[Whisker], x_label: str) -> str:
    first, last = (f"{short_number(p[1])} at {x_label} {short_number(p[0])}" for p in (points[0], points[-1]))
    return f"{name}: {first}" + (f", {last}" if len(points) > 1 else "")


def _numbers(lines: Mapping[str, Sequence[Whisker]], x_label: str, ticks: Mapping[float, str]) -> str:
    rows = "".join(
        f'<tr><th scope="row">{escape(name)}</th>'
        f'<td class="number">{escape(ticks.get(point[0], short_number(point[0])))}</td>'
        + "".join(f'<td class="number">{cell_number(value)}</td>' for value in point[1:])
        + "</tr>"
        for name, points in lines.items()
        for point in points
    )
    head = "".join(
        f'<th scope="col" class="number">{escape(name)}</th>' for name in (x_label, "value", "from", "to")
    )
    return (
        '<details><summary>Numbers</summary><div class="scroll"><table class="grid-lines">'
        f'<thead><tr><th scope="col">line</th>{head}</tr></thead><tbody>{rows}</tbody>'
        "</table></div></details>"
    )
