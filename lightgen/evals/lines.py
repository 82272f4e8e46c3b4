"""Line plots of a report: lines in a stretched SVG, words in HTML beside it, so that text keeps its size."""

import itertools
import math
from collections.abc import Mapping, Sequence
from html import escape

from lightgen.evals.axes import NUM_COLORS, Axis, Points, fit_axis, legend
from lightgen.evals.page import short_number

_VIEW = 1000
# More points than this per line cannot be seen, and would only make the page heavy.
_MAX_POINTS = 600
_DOTS_UP_TO = 16
# On a line shorter than this many windows, a running mean would flatten what the line has to say.
_SMOOTH_FROM = 10


def drawable(points: Points, log: bool) -> list[tuple[float, float]]:
    """Points that can be drawn: finite, and above zero on a log axis."""
    return [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y) and (y > 0 or not log)]


def thin(points: Points, most: int = _MAX_POINTS) -> list[tuple[float, float]]:
    """At most `most` of the points, in order: the lowest and highest of each stretch, so no spike is lost."""
    if len(points) <= most:
        return list(points)
    buckets = most // 2
    kept: list[tuple[float, float]] = []
    for bucket in range(buckets):
        start, stop = (len(points) * b // buckets for b in (bucket, bucket + 1))
        order = sorted(range(start, stop), key=lambda i: points[i][1])
        kept.extend(points[i] for i in sorted({order[0], order[-1]}))
    return kept


def running_mean(points: Points, window: int) -> list[tuple[float, float]]:
    """Points whose height is the mean of all within half a window to either side, so that it does not lag."""
    sums = list(itertools.accumulate((y for _, y in points), initial=0.0))
    half, means = window // 2, []
    for index, (x, _) in enumerate(points):
        start, stop = max(0, index - half), min(len(points), index + half + 1)
        means.append((x, (sums[stop] - sums[start]) / (stop - start)))
    return means


def line_plot(
    series: Mapping[str, Points], x_label: str, y_label: str, log: bool = False, smooth: int = 1
) -> str:
    """HTML of a line plot: legend, plot with a spoken summary, and a table of each line's main numbers.

    Args:
        series: points of each line, by name.
        x_label: name of the x axis.
        y_label: name of the y axis.
        log: whether the y axis is logarithmic; points that it cannot show are counted below the plot.
        smooth: points in the running mean that is drawn over the faint raw line; 1, and a line of less than
            ten times as many points, draws the raw line alone.
    """
    lines = {name: drawable(points, log) for name, points in series.items()}
    lines = {name: points for name, points in lines.items() if points}
    left_out = sum(len(points) for points in series.values()) - sum(len(points) for points in lines.values())
    note = f"<p><small>Points that this axis cannot show: {left_out}.</small></p>" if left_out else ""
    if not lines:
        return f'<p class="empty">No points to plot.</p>{note}'
    x_axis = fit_axis([x for points in lines.values() for x, _ in points])
    y_axis = fit_axis([y for points in lines.values() for _, y in points], log=log, pad=0.04)
    smoothed = {name: _smoothed(points, smooth) for name, points in lines.items()}
    paths = "".join(
        _paths(index, points, smoothed[name], x_axis, y_axis)
        for index, (name, points) in enumerate(lines.items())
    )
    x_ticks, y_ticks = x_axis.ticks(), y_axis.ticks()
    ruled = "".join(f"M0 {_y(tick, y_axis)}H{_VIEW}" for tick in y_ticks)
    spoken = "; ".join(_summary(name, points, x_label) for name, points in lines.items())
    name = f"{y_label} (log)" if log else y_label
    return (
        f"{legend(smoothed) if len(lines) > 1 else ''}"
        f'<div class="plot" role="img" aria-label="{escape(f"{y_label} by {x_label}. {spoken}.")}">'
        f'<div class="y-name">{escape(name)}</div>'
        f'<div class="y-ticks">{_tick_labels([(1 - y_axis.share(t), t) for t in y_ticks])}</div>'
        f'<svg viewBox="0 0 {_VIEW} {_VIEW}" preserveAspectRatio="none" aria-hidden="true">'
        f'<path class="lines" d="{ruled}"/><path class="base" d="M0 {_VIEW}H{_VIEW}"/>{paths}</svg>'
        f'<div class="x-ticks">{_tick_labels([(x_axis.share(t), t) for t in x_ticks])}</div>'
        f'<div class="x-name">{escape(x_label)}</div></div>'
        f"{note}{_numbers(lines, x_label)}"
    )


def _y(value: float, axis: Axis) -> str:
    return f"{_VIEW * (1 - axis.share(value)):.1f}"


def _smoothed(points: list[tuple[float, float]], window: int) -> list[tuple[float, float]]:
    return running_mean(points, window) if 1 < window <= len(points) / _SMOOTH_FROM else points


def _paths(index: int, points: Points, smoothed: Points, x_axis: Axis, y_axis: Axis) -> str:
    def path(drawn: Points, kind: str) -> str:
        places = [(f"{_VIEW * x_axis.share(x):.1f}", _y(y, y_axis)) for x, y in drawn]
        steps = (
            "".join(f"M{x} {y}h0" for x, y in places)
            if kind == "dots"
            else "M" + "L".join(map(" ".join, places))
        )
        dashed = " dashed" if index >= NUM_COLORS and kind != "dots" else ""
        return f'<path class="{kind} k{index % NUM_COLORS}{dashed}" d="{steps}"/>'

    if smoothed is not points:
        return path(thin(points), "faint") + path(thin(smoothed), "line")
    return path(thin(points), "line") + (path(points, "dots") if len(points) <= _DOTS_UP_TO else "")


def _tick_labels(ticks: Sequence[tuple[float, float]]) -> str:
    return "".join(f'<span style="--at:{at:.4f}">{short_number(value)}</span>' for at, value in ticks)


def _summary(name: str, points: Points, x_label: str) -> str:
    (x0, y0), (x1, y1) = points[0], points[-1]
    start, end = (f"{short_number(y)} at {x_label} {short_number(x)}" for x, y in ((x0, y0), (x1, y1)))
    return f"{name}: {start}, {end}"


def _numbers(lines: Mapping[str, Points], x_label: str) -> str:
    rows = "".join(
        f'<tr><th scope="row">{escape(name)}</th>'
        + "".join(
            f'<td class="number">{short_number(value)}</td>'
            for value in (len(p), p[0][1], p[-1][1], min(y for _, y in p), max(y for _, y in p), p[-1][0])
        )
        + "</tr>"
        for name, p in lines.items()
    )
    names = ("points", "first", "last", "lowest", "highest", f"last {x_label}")
    head = "".join(f'<th scope="col" class="number">{escape(name)}</th>' for name in names)
    return (
        '<details><summary>Numbers</summary><div class="scroll"><table class="grid-lines">'
        f'<thead><tr><th scope="col">line</th>{head}</tr></thead><tbody>{rows}</tbody>'
        "</table></div></details>"
    )
