"""A report as one HTML page that needs nothing but itself: no scripts, no fonts, no files beside it."""

import base64
import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from lightgen.core.webp import webp_size
from lightgen.evals.axes import Points
from lightgen.evals.bars import Bar, bar_chart, timeline
from lightgen.evals.lines import line_plot
from lightgen.evals.page import STYLE, cell_number
from lightgen.evals.scatter import scatter_plot
from lightgen.evals.whiskers import Whisker, whisker_plot

_PNG = b"\x89PNG\r\n\x1a\n"
# Browsers load nothing for this page, even if a text in it asked them to.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"

# Cells of so many letters stay on one line.
_SHORT = 20

Cell = str | int | float | None


@dataclass(frozen=True)
class Picture:
    """A picture of a report.

    Attributes:
        image: an encoded PNG, JPEG or WebP.
        caption: what it shows or was asked to show; also its alternative text.
        good: whether it is right; None where nobody judged it.
    """

    image: bytes
    caption: str
    good: bool | None = None


@dataclass(frozen=True)
class Fact:
    """A headline number: the value as text, what it is, and a note such as its interval."""

    value: str
    label: str
    note: str = ""


class Report:
    """Builder of one page; blocks appear in the order of the calls, under the section opened last."""

    def __init__(self, title: str, summary: str) -> None:
        """Open a report.

        Args:
            title: heading of the page.
            summary: what the report found, in a sentence or two; blank lines part paragraphs.
        """
        self._title = title
        self._summary = summary
        self._headings: list[str] = []
        self._blocks: list[list[str]] = [[]]

    def section(self, title: str, text: str = "") -> None:
        """Open a section; blank lines in its text part paragraphs."""
        self._headings.append(title)
        self._blocks.append([_paragraphs(text)])

    def text(self, text: str) -> None:
        """Add paragraphs, parted by blank lines."""
        self._add(_paragraphs(text))

    def facts(self, facts: Sequence[Fact]) -> None:
        """Add headline numbers, the most important first."""
        cells = "".join(
            f'<div><dt>{escape(fact.label)}</dt><dd class="value">{escape(fact.value)}</dd>'
            + (f"<dd><small>{escape(fact.note)}</small></dd>" if fact.note else "")
            + "</div>"
            for fact in facts
        )
        self._add(f'<dl class="facts">{cells}</dl>')

    def table(self, header: Sequence[str], rows: Sequence[Sequence[Cell]], caption: str) -> None:
        """Add a table; its first column names the rows, columns of numbers are aligned to the right.

        Args:
            header: a name per column.
            rows: as many cells as the header has; numbers are written to three decimals, None as a dash.
            caption: what the table says.
        """
        assert all(len(row) == len(header) for row in rows), "every row needs as many cells as the header"
        number = [bool(rows) and all(_is_number(row[i]) for row in rows) for i in range(len(header))]
        head = _row(header, number, 'th scope="col"')
        body = "".join(_row(row, number, "td") for row in rows)
        self._add(
            f'<figure><div class="scroll" tabindex="0" role="region" aria-label="{escape(caption)}">'
            f'<table class="grid-lines"><thead>{head}</thead><tbody>{body}</tbody></table></div>'
            f"{_caption(caption)}</figure>"
        )

    def plot(
        self,
        series: Mapping[str, Points],
        x_label: str,
        y_label: str,
        caption: str,
        log: bool = False,
        smooth: int = 1,
    ) -> None:
        """Add a line plot.

        Args:
            series: points (x, y) of each line, by name.
            x_label: name of the x axis.
            y_label: name of the y axis.
            caption: what the plot says.
            log: whether the y axis is logarithmic.
            smooth: points in the running mean drawn over the faint raw line of long series; 1 draws none.
        """
        self._add(_chart(line_plot(series, x_label, y_label, log=log, smooth=smooth), caption))

    def whiskers(
        self,
        series: Mapping[str, Sequence[Whisker]],
        x_label: str,
        y_label: str,
        caption: str,
        log_x: bool = False,
        ticks: Mapping[float, str] | None = None,
    ) -> None:
        """Add a plot of values with intervals.

        Args:
            series: points (x, value, low, high) of each line, by name.
            x_label: name of the x axis.
            y_label: name of the y axis.
            caption: what the plot says.
            log_x: whether the x axis is logarithmic.
            ticks: words at places of the x axis; None = round numbers.
        """
        self._add(_chart(whisker_plot(series, x_label, y_label, log_x=log_x, ticks=ticks), caption))

    def scatter(self, groups: Mapping[str, Points], caption: str) -> None:
        """Add a cloud of points (x, y) of each group, by name; the caption says what is near what."""
        self._add(_chart(scatter_plot(groups, caption), caption))

    def bars(self, series: Mapping[str, Sequence[Bar]], caption: str, maximum: float | None = None) -> None:
        """Add horizontal bars with interval whiskers, bars of the same label side by side.

        Args:
            series: bars of each series, by name.
            caption: what the chart says.
            maximum: right end of the scale; None fits it to the bars.
        """
        self._add(_chart(bar_chart(series, maximum), caption))

    def timeline(self, rows: Sequence[tuple[str, float, str]], caption: str = "") -> None:
        """Add the stages of a run: name, seconds, and cost in words, in the order in which they ran."""
        self._add(_chart(timeline(rows), caption))

    def pictures(
        self,
        pictures: Sequence[Picture],
        caption: str,
        columns: int = 6,
        headings: Sequence[str] | None = None,
        folded: str | None = None,
    ) -> None:
        """Add a grid of pictures, which a browser draws as they come into sight.

        Args:
            pictures: row by row.
            caption: what the grid shows.
            columns: most pictures in a row; small screens show fewer.
            headings: a heading per column; the grid then keeps these columns on every screen.
            folded: what is behind a fold, in a few words; None = the grid is open.
        """
        head = "".join(f'<li class="heading">{escape(heading)}</li>' for heading in headings or ())
        items = "".join(_picture(picture) for picture in pictures)
        kind, num_columns = ("headed", len(headings)) if headings else ("flowing", columns)
        figure = (
            f'<figure class="pictures"><div class="scroll" style="--columns:{num_columns}">'
            f'<ul class="{kind}">{head}{items}</ul></div>{_caption(caption)}</figure>'
        )
        self._add(f"<details><summary>{escape(folded)}</summary>{figure}</details>" if folded else figure)

    def settings(self, title: str, values: Mapping[str, object]) -> None:
        """Add a folded block of settings, written as JSON."""
        text = json.dumps(values, indent=2, ensure_ascii=False, default=str)
        self._add(f"<details><summary>{escape(title)}</summary><pre>{escape(text)}</pre></details>")

    def html(self) -> str:
        """The page; the same calls give the same bytes."""
        links = "".join(f'<li><a href="#s{i}">{escape(h)}</a></li>' for i, h in enumerate(self._headings))
        contents = f'<nav aria-label="Contents"><ol>{links}</ol></nav>' if len(self._headings) > 2 else ""
        sections = "".join(
            f'<section id="s{i}" aria-labelledby="h{i}"><h2 id="h{i}">{escape(heading)}</h2>'
            f"{''.join(blocks)}</section>"
            for i, (heading, blocks) in enumerate(zip(self._headings, self._blocks[1:], strict=True))
        )
        title, summary = escape(self._title), _paragraphs(self._summary)
        return (
            '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
            f"<title>{title}</title><style>{STYLE}</style></head><body>"
            f'<header><h1>{title}</h1><div class="summary">{summary}</div></header>'
            f"<main>{''.join(self._blocks[0])}{contents}{sections}</main></body></html>\n"
        )

    def _add(self, block: str) -> None:
        self._blocks[-1].append(block)


def _paragraphs(text: str) -> str:
    return "".join(f"<p>{escape(part.strip())}</p>" for part in text.split("\n\n") if part.strip())


def _caption(caption: str) -> str:
    return f"<figcaption>{escape(caption)}</figcaption>" if caption else ""


def _chart(body: str, caption: str) -> str:
    return f'<figure class="chart">{body}{_caption(caption)}</figure>'


def _is_number(cell: Cell) -> bool:
    return cell is None or (isinstance(cell, int | float) and not isinstance(cell, bool))


def _row(cells: Sequence[Cell], number: Sequence[bool], tag: str) -> str:
    """HTML of a table row of `tag` cells; the first cell of a row of values names the row."""
    html = []
    for index, (cell, aligned) in enumerate(zip(cells, number, strict=True)):
        opening = tag if index or tag != "td" else 'th scope="row"'
        kind = "number" if aligned else "short" if len(str(cell)) <= _SHORT and index else "free"
        html.append(f'<{opening} class="{kind}">{_cell(cell)}</{opening.split()[0]}>')
    return f"<tr>{''.join(html)}</tr>"


def _cell(cell: Cell) -> str:
    if cell is None:
        return "–"
    return escape(cell) if isinstance(cell, str) else cell_number(cell)


def _picture(picture: Picture) -> str:
    kind, size = _image_type(picture.image)
    source = f"data:image/{kind};base64,{base64.b64encode(picture.image).decode('ascii')}"
    caption, judged = escape(picture.caption), {None: "", True: "right", False: "wrong"}[picture.good]
    mark = f'<span class="mark {judged}">{"✓" if picture.good else "✗"} {judged}</span> ' if judged else ""
    text = f"<p>{mark}{caption}</p>" if caption or mark else ""
    image = f'<img src="{source}" alt="{caption}"{size} loading="lazy" decoding="async">'
    return f'<li class="{judged or "unjudged"}">{image}{text}</li>'


def _image_type(image: bytes) -> tuple[str, str]:
    """Type for the data URI, and the attributes of width and height where the first bytes tell them."""
    if image.startswith(_PNG):
        width, height = struct.unpack(">II", image[16:24])
        return "png", f' width="{width}" height="{height}"'
    if image.startswith(b"\xff\xd8\xff"):
        return "jpeg", ""
    if image.startswith(b"RIFF") and image[8:12] == b"WEBP":
        width, height = webp_size(image)
        return "webp", f' width="{width}" height="{height}"'
    raise ValueError(f"picture starts with {image[:8]!r}, allowed: an encoded PNG, JPEG or WebP")
