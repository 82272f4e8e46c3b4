"""Points and whiskers lie where their numbers say, and none is lost without a word."""

import math
import re

import pytest

from lightgen.evals.report import Report
from lightgen.evals.whiskers import Whisker, drawable_whiskers, whisker_plot


def paths(html: str, kind: str) -> list[str]:
    """What each path of a class draws."""
    return re.findall(rf'<path class="{kind} k\d[^"]*" d="([^"]*)"', html)


def places(path: str) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in re.findall(r"([\d.]+) ([\d.]+)", path)]


def whiskers(html: str) -> list[tuple[float, float, float]]:
    """(x, low end, high end) of each whisker, as drawn."""
    found = re.findall(r"M([\d.]+) ([\d.]+)V([\d.]+)", html)
    return [(float(x), float(low), float(high)) for x, low, high in found]


def test_points_lie_to_scale_and_whiskers_around_them() -> None:
    html = whisker_plot({"a": [(0, 0.5, 0.4, 0.7), (5, 0.2, 0.1, 0.3), (10, 0.8, 0.6, 1.0)]}, "x", "y")
    [line] = map(places, paths(html, "line"))
    assert [x for x, _ in line] == pytest.approx([45.5, 500, 954.5], abs=0.1)
    for (x, y), (at, low, high) in zip(line, whiskers(html), strict=True):
        assert at == x
        assert high < y < low  # down is up in an SVG
    (_, y0), (_, y1), (_, y2) = line
    assert (y0 - y2) / (y1 - y0) == pytest.approx(0.3 / 0.3, abs=0.01)
    [dots] = map(places, paths(html, "dots"))
    assert dots == line


def test_log_axis_spaces_ratios_evenly() -> None:
    points = [(x, 0.5, 0.5, 0.5) for x in (48, 192, 768)]
    [line] = map(places, paths(whisker_plot({"a": points}, "x", "y", log_x=True), "line"))
    assert line[1][0] - line[0][0] == pytest.approx(line[2][0] - line[1][0], abs=0.2)
    [line] = map(places, paths(whisker_plot({"a": points}, "x", "y"), "line"))
    assert line[1][0] - line[0][0] < (line[2][0] - line[1][0]) / 3


def test_series_stand_beside_each_other_where_they_meet_only() -> None:
    series: dict[str, list[Whisker]] = {
        "a": [(1, 0.2, 0.1, 0.3), (2, 0.4, 0.3, 0.5)],
        "b": [(1, 0.2, 0.1, 0.3), (3, 0.4, 0.3, 0.5)],
    }
    first, second = map(places, paths(whisker_plot(series, "x", "y"), "line"))
    assert 5 < second[0][0] - first[0][0] < 20
    assert first[1][0] == pytest.approx(500, abs=0.1)


def test_points_that_cannot_be_shown_are_counted() -> None:
    points = [(0, 0.1, 0, 1), (2, math.nan, 0, 1), (1, 0.3, math.nan, math.inf), (math.inf, 1, 0, 1)]
    assert drawable_whiskers(points, log_x=True) == [(1, 0.3, 0.3, 0.3)]
    html = whisker_plot({"a": points}, "x", "y", log_x=True)
    assert "cannot show: 3." in html
    assert "nan" not in html
    assert whiskers(html) == []
    assert "cannot show: 2." in whisker_plot({"a": points}, "x", "y")
    assert "No points" in whisker_plot({"a": []}, "x", "y")


def test_axis_goes_below_zero_only_where_values_do() -> None:
    for low, is_below in ((0.0, False), (-0.2, True)):
        html = whisker_plot({"a": [(0, 0.0, low, 0.5), (1, 0.5, 0.4, 1.0)]}, "x", "y")
        [line] = map(places, paths(html, "line"))
        assert (line[0][1] < 999) == is_below


def test_ticks_carry_words_that_are_escaped() -> None:
    html = whisker_plot({"a": [(0, 1, 1, 1), (1, 2, 2, 2)]}, "x", "y", ticks={0: "<off>", 1: "on"})
    below = html.partition("x-ticks")[2].partition("</div>")[0]
    assert re.findall(r">([^<>]+)</span>", below) == ["&lt;off&gt;", "on"]
    assert "<off>" not in html


def test_ticks_give_way_on_a_phone_only_if_they_crowd() -> None:
    points = [(float(i), 1.0, 0.5, 1.5) for i in range(5)]
    short = whisker_plot({"a": points}, "x", "y", ticks={float(i): f"{i}" for i in range(5)})
    crowded = whisker_plot({"a": points}, "x", "y", ticks={float(i): f"a long name {i}" for i in range(5)})
    assert short.count("display:inline") == 5
    assert "display:inline" not in crowded


def test_a_report_holds_the_plot_and_its_numbers() -> None:
    report = Report("t", "s")
    report.whiskers(
        {"a": [(1, 0.25, 0.125, 0.5)], "b & c": [(1, 0.5, 0.5, 0.5)]}, "steps", "score", "what it says"
    )
    html = report.html()
    assert "<figcaption>what it says</figcaption>" in html
    assert "score by steps. a: 0.25 at steps 1; b &amp; c: 0.5 at steps 1." in html
    assert '<td class="number">0.125</td><td class="number">0.500</td>' in html
    assert html.count('class="legend"') == 1
