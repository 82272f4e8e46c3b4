"""The page is whole, escaped, needs nothing but itself, and draws what it was given."""

import base64
import math
import re
import struct
from html.parser import HTMLParser

import pytest

from lightgen.evals.axes import Axis, fit_axis, linear_ticks
from lightgen.evals.bars import Bar, bar_chart, timeline
from lightgen.evals.lines import drawable, line_plot, running_mean, thin
from lightgen.evals.page import cell_number, duration, short_number
from lightgen.evals.report import Fact, Picture, Report

PNG = b"\x89PNG\r\n\x1a\n" + struct.pack(">I4sII", 13, b"IHDR", 128, 64) + b"rest"
WEBP = b"RIFF\0\0\0\0WEBPVP8 " + bytes(10) + struct.pack("<HH", 96, 48)
EVIL = "<script>alert(1)</script> & \"quoted\" 'too'"
VOID = {"meta", "img", "path", "br"}


class Page(HTMLParser):
    """Elements of a page, its text, and a check that every element is closed in order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.open: list[str] = []
        self.feed(html)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes another element"

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str, kind: str | None = None) -> list[dict[str, str | None]]:
        return [
            a
            for t, a in self.elements
            if t == tag and (kind is None or kind in (a.get("class") or "").split())
        ]


def full_report(text: str = "plain") -> str:
    report = Report(f"title {text}", f"summary {text}")
    report.facts([Fact(f"0.5 {text}", f"label {text}", f"note {text}")])
    for index in range(3):
        report.section(f"section {index} {text}", f"first {text}\n\nsecond")
    report.text(f"more {text}")
    report.table([f"name {text}", "score"], [[f"row {text}", 0.5], ["other", None]], f"table {text}")
    report.plot({f"line {text}": [(0, 1), (1, 2)], "b": [(0, 3)]}, f"x {text}", f"y {text}", f"plot {text}")
    report.bars({f"run {text}": [Bar(f"bar {text}", 0.5, 0.4, 0.6)], "other": [Bar("a", 1)]}, f"bars {text}")
    report.timeline([(f"stage {text}", 5.0, f"cost {text}")], f"time {text}")
    report.pictures([Picture(PNG, f"picture {text}", True)], f"grid {text}")
    report.pictures([Picture(PNG, f"headed {text}")], f"grid {text}", headings=[f"column {text}"])
    report.settings(f"settings {text}", {f"key {text}": [1, None, text]})
    return report.html()


def test_every_text_is_escaped_everywhere() -> None:
    page, plain = Page(full_report(EVIL)), Page(full_report())
    assert not page.all("script")
    assert [t for t, _ in page.elements] == [t for t, _ in plain.elements]
    assert [sorted(a) for _, a in page.elements] == [sorted(a) for _, a in plain.elements]
    # All texts of the plain page come back with the evil text in place of the plain one.
    assert page.text.count(EVIL) >= plain.text.count("plain") - 2
    assert EVIL in (page.all("img")[0]["alt"] or "")


def test_page_needs_nothing_but_itself() -> None:
    html = full_report()
    page = Page(html)
    for tag, attributes in page.elements:
        assert tag not in {"script", "link", "iframe", "object", "embed", "base"}
        for name, value in attributes.items():
            assert not name.startswith("on")
            if name == "src":
                assert (value or "").startswith("data:image/")
            if name == "href":
                assert (value or "").startswith("#")
    assert not re.search(r"https?:|url\(|@import", html)
    policies = [m for m in page.all("meta") if m.get("http-equiv") == "Content-Security-Policy"]
    assert "default-src 'none'" in (policies[0]["content"] or "")


def test_page_suits_dark_mode_phones_and_paper() -> None:
    html = full_report()
    assert "prefers-color-scheme: dark" in html
    assert "@media print" in html
    assert 'name="viewport" content="width=device-width' in html
    assert Page(html).all("html")[0]["lang"] == "en"


def test_every_color_has_a_dark_twin() -> None:
    style = Page(full_report()).text
    light, dark, paper = (
        set(re.findall(r"(--[a-z0-9]+):", block)) for block in re.findall(r":root \{(.*?)\}", style, re.S)[:3]
    )
    assert {"--paper", "--ink", "--c0", "--c5"} <= dark
    assert light - {"--height"} == dark == paper - {"--height"}


def test_same_calls_same_bytes() -> None:
    assert full_report() == full_report()


def test_sections_and_contents() -> None:
    page = Page(full_report())
    targets = {a["href"] for a in page.all("a")}
    assert targets == {f"#{s['id']}" for s in page.all("section")} == {"#s0", "#s1", "#s2"}
    assert "first plain" in page.text
    assert len(re.findall("second", page.text)) == 3
    short = Report("t", "s")
    short.section("only")
    assert not Page(short.html()).all("nav")


def test_blocks_keep_their_order() -> None:
    report = Report("t", "s")
    report.text("zero")
    for word in ("one", "two"):
        report.section(f"section {word}")
        report.text(word)
    places = [report.html().index(f">{w}<") for w in ("zero", "section one", "one", "section two", "two")]
    assert places == sorted(places)


def test_table_aligns_numbers_and_names_rows() -> None:
    report = Report("t", "s")
    report.table(["task", "score", "images"], [["colors", 0.5, 1200], ["position", None, 8]], "caption")
    html = report.html()
    assert '<th scope="row" class="free">colors</th>' in html
    assert '<td class="number">0.500</td><td class="number">1,200</td>' in html
    assert '<td class="number">–</td>' in html
    assert '<th scope="col" class="number">score</th>' in html
    assert "<figcaption>caption</figcaption>" in html
    with pytest.raises(AssertionError):
        report.table(["a", "b"], [["only one"]], "")


def test_pictures_carry_their_bytes_and_their_size() -> None:
    report = Report("t", "s")
    kinds = {"png": PNG, "jpeg": b"\xff\xd8\xff\xe0 jpeg", "webp": WEBP}
    for data in kinds.values():
        report.pictures([Picture(data, "a dog")], "grid", columns=4)
    images = Page(report.html()).all("img")
    for image, (kind, data) in zip(images, kinds.items(), strict=True):
        prefix, encoded = (image["src"] or "").split(",")
        assert prefix == f"data:image/{kind};base64"
        assert base64.b64decode(encoded) == data
        assert (image["alt"], image["loading"]) == ("a dog", "lazy")
    assert (images[0]["width"], images[0]["height"]) == ("128", "64")
    assert "width" not in images[1]
    assert (images[2]["width"], images[2]["height"]) == ("96", "48")
    with pytest.raises(ValueError, match="allowed: an encoded PNG"):
        report.pictures([Picture(b"GIF89a", "a dog")], "grid")


def test_a_folded_grid_is_behind_its_words() -> None:
    report = Report("t", "s")
    report.pictures([Picture(PNG, "a dog")], "grid", folded="counting: 0.5 & more")
    html = report.html()
    assert "<details><summary>counting: 0.5 &amp; more</summary><figure" in html
    assert len(Page(html).all("img")) == 1


@pytest.mark.parametrize(("good", "word"), [(True, "✓ right"), (False, "✗ wrong"), (None, None)])
def test_judgement_is_told_in_words(good: bool | None, word: str | None) -> None:
    report = Report("t", "s")
    report.pictures([Picture(PNG, "a dog", good)], "grid")
    text = Page(report.html()).text
    assert ("✓" in text or "✗" in text) == (word is not None)
    assert word is None or word in text


def test_headings_fix_the_columns() -> None:
    report = Report("t", "s")
    report.pictures([Picture(PNG, "")] * 4, "grid", columns=9, headings=["before", "after"])
    html = report.html()
    assert "--columns:2" in html
    assert [a["class"] for a in Page(html).all("li")] == ["heading"] * 2 + ["unjudged"] * 4


def path_points(html: str, kind: str) -> list[list[tuple[float, float]]]:
    paths = [a["d"] or "" for a in Page(html).all("path", kind)]
    return [[(float(x), float(y)) for x, y in re.findall(r"([\d.]+) ([\d.]+)", d)] for d in paths]


def test_line_runs_from_corner_to_corner() -> None:
    [line] = path_points(line_plot({"a": [(0, 0), (5, 5), (10, 10)]}, "x", "y"), "line")
    pad = 1000 * 0.04 / 1.08
    assert line == [
        (0, pytest.approx(1000 - pad, abs=0.1)),
        (500, pytest.approx(500, abs=0.1)),
        (1000, pytest.approx(pad, abs=0.1)),
    ]


def test_log_axis_spaces_ratios_evenly() -> None:
    [line] = path_points(line_plot({"a": [(0, 1), (1, 10), (2, 100)]}, "x", "y", log=True), "line")
    heights = [y for _, y in line]
    assert heights[0] - heights[1] == pytest.approx(heights[1] - heights[2], abs=0.2)
    [line] = path_points(line_plot({"a": [(0, 1), (1, 10), (2, 100)]}, "x", "y"), "line")
    heights = [y for _, y in line]
    assert heights[0] - heights[1] < (heights[1] - heights[2]) / 5


def test_points_that_cannot_be_shown_are_counted() -> None:
    points = [(0, 1.0), (1, 0.0), (2, math.nan), (3, math.inf), (4, 2.0)]
    assert drawable(points, log=True) == [(0, 1.0), (4, 2.0)]
    assert drawable(points, log=False) == [(0, 1.0), (1, 0.0), (4, 2.0)]
    assert "cannot show: 3." in line_plot({"a": points}, "x", "y", log=True)
    assert "cannot show: 2." in line_plot({"a": points}, "x", "y")
    assert "cannot show" not in line_plot({"a": [(0, 1.0)]}, "x", "y")
    assert "nan" not in line_plot({"a": points}, "x", "y")


def test_plot_without_points() -> None:
    assert "No points" in line_plot({"a": []}, "x", "y")
    assert "No points" in line_plot({"a": [(0, -1)]}, "x", "y", log=True)
    assert "No bars" in bar_chart({"a": []})
    Page(line_plot({"a": [(3, 7)]}, "x", "y"))
    Page(timeline([]))


def test_plot_is_told_in_words_and_numbers() -> None:
    html = line_plot(
        {"train": [(0, 2.0), (100, 0.5), (200, 0.75)], "test": [(0, 3), (200, 1)]}, "step", "loss"
    )
    page = Page(html)
    [plot] = page.all("div", "plot")
    assert plot["role"] == "img"
    assert plot["aria-label"] == (
        "loss by step. train: 2 at step 0, 0.75 at step 200; test: 3 at step 0, 1 at step 200."
    )
    assert len(page.all("ul", "legend")) == 1
    cells = re.findall(r'<td class="number">([^<]*)</td>', html)
    assert cells[:6] == ["3", "2", "0.75", "0.5", "2", "200"]


def test_legend_is_left_out_for_one_line() -> None:
    assert "legend" not in line_plot({"a": [(0, 1), (1, 2)]}, "x", "y")


def test_lines_beyond_the_colors_are_dashed() -> None:
    lines = {f"line {i}": [(0, i), (1, i + 1)] for i in range(8)}
    paths = Page(line_plot(lines, "x", "y")).all("path", "line")
    assert [p["class"] for p in paths][5:] == ["line k5", "line k0 dashed", "line k1 dashed"]


def test_smoothing_keeps_the_raw_line_faint() -> None:
    points = [(float(i), float(i % 2)) for i in range(200)]
    html = line_plot({"a": points}, "x", "y", smooth=20)
    [faint], [line] = path_points(html, "faint"), path_points(html, "line")
    heights = [y for _, y in line[10:-10]]
    assert max(heights) - min(heights) < 60 < max(y for _, y in faint) - min(y for _, y in faint)
    assert not path_points(line_plot({"a": points}, "x", "y", smooth=21), "faint")


def test_running_mean_does_not_lag() -> None:
    line = [(float(i), 2.0 * i) for i in range(50)]
    assert running_mean(line, 10)[5:-5] == line[5:-5]
    assert running_mean([(0.0, 1.0), (1.0, 3.0), (2.0, 8.0)], 2)[0] == (0.0, 2.0)


def test_thinning_keeps_spikes_and_order() -> None:
    points = [(float(i), 0.0) for i in range(10_000)]
    points[4321] = (4321.0, 9.0)
    points[8765] = (8765.0, -9.0)
    kept = thin(points, 100)
    assert len(kept) <= 100
    assert (4321.0, 9.0) in kept
    assert (8765.0, -9.0) in kept
    assert [x for x, _ in kept] == sorted(x for x, _ in kept)
    assert thin(points[:100], 100) == points[:100]


def test_bars_and_whiskers_are_to_scale() -> None:
    html = bar_chart({"run": [Bar("colors", 0.5, 0.4, 0.7)]}, maximum=1.0)
    page = Page(html)
    assert [a["style"] for a in page.all("i", "bar")] == ["left:0.00%;width:50.00%"]
    assert [a["style"] for a in page.all("i", "whisker")] == ["left:40.00%;width:30.00%"]
    assert "0.500 0.400 to 0.700" in page.text
    assert not Page(bar_chart({"run": [Bar("colors", 0.5)]})).all("i", "whisker")


def test_bars_below_zero_grow_to_the_left() -> None:
    page = Page(bar_chart({"run": [Bar("a", -1.0), Bar("b", 1.0)]}))
    assert [a["style"] for a in page.all("i", "bar")] == [
        "left:0.00%;width:50.00%",
        "left:50.00%;width:50.00%",
    ]
    assert len(page.all("i", "zero")) == 2


def test_bars_of_one_label_stand_together() -> None:
    html = bar_chart({"before": [Bar("a", 1), Bar("b", 2)], "after": [Bar("a", 3), Bar("c", 4)]})
    page = Page(html)
    assert [(a["rowspan"]) for a in page.all("th")] == ["2", "1", "1"]
    assert re.findall(r">(before|after): ", html) == ["before", "after", "before", "after"]
    assert [a["class"] for a in page.all("i", "bar")] == ["bar k0", "bar k1", "bar k0", "bar k1"]


def test_bar_without_a_finite_value_is_named_but_not_drawn() -> None:
    page = Page(bar_chart({"run": [Bar("a", math.nan), Bar("b", 1.0)]}))
    assert len(page.all("i", "bar")) == 1
    assert "nan" not in "".join(a.get("style") or "" for _, a in page.elements)
    assert len(page.all("th")) == 2


def test_bars_never_leave_their_scale() -> None:
    page = Page(bar_chart({"run": [Bar("a", 1.4, 1.2, 2.0)]}, maximum=1.0))
    assert [a["style"] for a in page.all("i", "whisker")] == ["left:60.00%;width:40.00%"]


def test_timeline_lays_stages_end_to_end() -> None:
    page = Page(timeline([("a", 30, ""), ("b", 60, "5 J"), ("c", 30, "")]))
    assert [a["style"] for a in page.all("i", "bar")] == [
        "left:0.00%;width:25.00%",
        "left:25.00%;width:50.00%",
        "left:75.00%;width:25.00%",
    ]
    assert page.text.endswith("Total2 min 00 s")
    assert "5 J" in page.text


@pytest.mark.parametrize(
    ("low", "high"), [(0, 1), (0.27, 0.46), (-3, 17), (1e-7, 3e-7), (0, 24000), (999.9, 1000.1)]
)
def test_linear_ticks_are_few_round_and_inside(low: float, high: float) -> None:
    ticks = linear_ticks(low, high)
    assert 2 <= len(ticks) <= 7
    assert all(low - 1e-9 <= t <= high * (1 + 1e-9) for t in ticks)
    step = ticks[1] - ticks[0]
    assert f"{step:.0e}"[0] in "125"


@pytest.mark.parametrize(("low", "high"), [(1e-6, 1e3), (0.3, 1.2), (0.31, 0.33), (1, 1000), (1, 30)])
def test_log_ticks_are_few_and_inside(low: float, high: float) -> None:
    ticks = Axis(low, high, log=True).ticks()
    assert 2 <= len(ticks) <= 9
    assert all(low <= t <= high for t in ticks)
    assert ticks == sorted(set(ticks))


def test_axis_is_never_empty() -> None:
    for values, log in (([5.0], False), ([0.0], False), ([-2.0, -2.0], False), ([3.0], True)):
        axis = fit_axis(values, log=log)
        assert axis.low < values[0] < axis.high
        assert 0 < axis.share(values[0]) < 1


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"), (0.25, "0.25"), (-3.5, "−3.5"), (5000, "5000"), (10000, "10k"), (24500, "24.5k"),
        (1.5e6, "1.5M"), (2e9, "2G"), (9999.96, "10k"), (999_999, "1M"), (0.0002, "2e−4"), (math.inf, "∞"),
    ],
)  # fmt: skip
def test_short_number(value: float, text: str) -> None:
    assert short_number(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(7, "7"), (12345, "12,345"), (0.5, "0.500"), (-0.25, "−0.250"), (1234.56, "1,234.6"), (2e-5, "2e−5")],
)
def test_cell_number(value: float, text: str) -> None:
    assert cell_number(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.04, "0.0 s"),
        (9.94, "9.9 s"),
        (9.96, "10 s"),
        (59.6, "1 min 00 s"),
        (200, "3 min 20 s"),
        (3900, "1 h 05 min"),
    ],
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text
