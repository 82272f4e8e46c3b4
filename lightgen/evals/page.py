"""The look of a report: its style sheet, for light and dark, phone and paper, and how numbers are written."""

import math

STYLE = """
:root {
  color-scheme: light dark;
  --paper: #fcfcfb; --panel: #ffffff; --ink: #1b1f26; --soft: #5c6470; --line: #e2e4e8; --rail: #f1f2f4;
  --accent: #2a5fc4; --right: #0b7a55; --wrong: #b3362b;
  --c0: #2a5fc4; --c1: #c2570c; --c2: #0f8560; --c3: #8549bd; --c4: #b92e6a; --c5: #7a6a10;
  --height: 15rem;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #13151a; --panel: #1a1d23; --ink: #e6e8ec; --soft: #9ba4b1; --line: #2d323b; --rail: #22262e;
    --accent: #84aefc; --right: #55cfa0; --wrong: #ff8d80;
    --c0: #84aefc; --c1: #f3a05e; --c2: #55cfa0; --c3: #c7a2f4; --c4: #f48fb4; --c5: #d8c65c;
  }
}
@media print {
  :root {
    color-scheme: light;
    --paper: #fff; --panel: #fff; --ink: #000; --soft: #444; --line: #ccc; --rail: #eee; --height: 12rem;
    --accent: #2a5fc4; --right: #0b7a55; --wrong: #b3362b;
    --c0: #2a5fc4; --c1: #c2570c; --c2: #0f8560; --c3: #8549bd; --c4: #b92e6a; --c5: #7a6a10;
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; text-size-adjust: 100%; scroll-behavior: smooth; }
body {
  margin: 0 auto; padding: clamp(1.25rem, 4vw, 3.5rem) clamp(1rem, 4vw, 2.5rem) 4rem; max-width: 70rem;
  background: var(--paper); color: var(--ink); overflow-wrap: break-word;
  font: 1rem/1.6 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif;
}
h1 { margin: 0 0 .6rem; font-size: clamp(1.7rem, 1.2rem + 2.2vw, 2.5rem); line-height: 1.15; }
h2 { margin: 0 0 .5rem; font-size: 1.35rem; line-height: 1.25; letter-spacing: -.01em; }
h1 { letter-spacing: -.02em; }
h1, h2 { font-weight: 650; text-wrap: balance; }
p { margin: 0 0 1rem; max-width: 44rem; }
.summary { font-size: 1.12rem; color: var(--soft); }
a { color: var(--accent); text-underline-offset: .2em; }
:focus-visible { outline: 2px solid var(--accent); outline-offset: 3px; border-radius: 3px; }
nav ol, .legend, .pictures ul { padding: 0; list-style: none; }
nav ol { display: flex; flex-wrap: wrap; gap: .25rem 1.25rem; margin: 1.25rem 0 0; }
nav { font-size: .92rem; }
nav a { text-decoration: none; }
nav a:hover { text-decoration: underline; }
section { margin-top: 3rem; padding-top: 1.6rem; border-top: 1px solid var(--line); scroll-margin-top: 1rem; }
figure { margin: 1.5rem 0 2rem; }
figcaption { margin-top: .7rem; max-width: 44rem; font-size: .88rem; line-height: 1.5; color: var(--soft); }
.unseen { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); }

.facts { display: grid; gap: 1.25rem; margin: 2rem 0;
  grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr)); }
.facts div { padding-left: .9rem; border-left: 2px solid var(--line); }
.facts div:first-child { border-color: var(--accent); }
.facts dt { font-size: .86rem; color: var(--soft); }
.facts dd { margin: 0; }
.facts .value { font-size: 1.7rem; line-height: 1.25; font-weight: 620; letter-spacing: -.02em; }

.scroll { overflow-x: auto; }
.pictures .scroll { margin: -5px; padding: 5px; }
table { width: 100%; border-collapse: collapse; font-size: .94rem; font-variant-numeric: tabular-nums; }
th, td { padding: .45rem 1.3rem .45rem 0; text-align: left; vertical-align: baseline; }
th:last-child, td:last-child { padding-right: 0; }
thead > tr > * { font-weight: 550; font-size: .86rem; color: var(--soft); }
thead > tr > * { border-bottom: 1px solid var(--soft); }
tbody th { font-weight: 550; }
.grid-lines tbody tr + tr > * { border-top: 1px solid var(--line); }
tfoot > tr > * { font-weight: 550; border-top: 1px solid var(--soft); }
td.short { white-space: nowrap; }
th.number, td.number { text-align: right; white-space: nowrap; }
small { font-size: .84em; color: var(--soft); }

.legend { display: flex; flex-wrap: wrap; gap: .2rem 1.3rem; margin: 0 0 .8rem; font-size: .88rem; }
.legend span { display: inline-block; width: 1.1rem; height: 3px; margin-right: .5rem; vertical-align: middle;
  border-radius: 2px; background: var(--c); }
.legend b { font-weight: 550; font-variant-numeric: tabular-nums; }
.legend .dashed { background: repeating-linear-gradient(90deg, var(--c) 0 5px, transparent 5px 8px); }
.k0 { --c: var(--c0); } .k1 { --c: var(--c1); } .k2 { --c: var(--c2); }
.k3 { --c: var(--c3); } .k4 { --c: var(--c4); } .k5 { --c: var(--c5); }

.chart { display: flex; flex-direction: column; }
.chart details { order: 1; }
.plot { display: grid; grid-template-columns: auto minmax(0, 1fr); column-gap: .6rem; padding-right: 1rem;
  font-size: .8rem; line-height: 1.2; color: var(--soft); font-variant-numeric: tabular-nums; }
.plot .y-name { grid-column: 1 / -1; margin-bottom: .6rem; }
.plot .x-name { grid-column: 2; margin-top: .35rem; text-align: right; }
.y-ticks { display: grid; justify-items: end; align-content: start; height: var(--height); }
.y-ticks span { grid-area: 1 / 1; margin-top: calc(var(--at) * var(--height)); transform: translateY(-50%); }
.y-ticks span { height: 0; line-height: 0; white-space: nowrap; }
.x-ticks { grid-column: 2; position: relative; height: 1.2rem; margin-top: .35rem; }
.x-ticks span { position: absolute; left: calc(var(--at) * 100%); }
.x-ticks span, .rail span { transform: translateX(-50%); white-space: nowrap; }
.plot svg { display: block; width: 100%; height: var(--height); overflow: visible; }
.plot path { fill: none; vector-effect: non-scaling-stroke; stroke: var(--c); stroke-width: 1.8;
  stroke-linejoin: round; stroke-linecap: round; }
.plot path.lines { stroke: var(--line); stroke-width: 1; }
.plot path.base { stroke: var(--soft); stroke-width: 1; }
.plot path.faint { stroke-width: 1; opacity: .3; }
.plot path.dots { stroke-width: 6.5; }
.plot path.dashed { stroke-dasharray: 6 4; }

.bars th[scope=row] { width: 1%; padding-right: 1.2rem; vertical-align: middle; }
.bars td { padding-top: .12rem; padding-bottom: .12rem; vertical-align: middle; }
.bars .value { width: 1%; padding-left: .9rem; white-space: nowrap; }
.bars tr.first > * { padding-top: .7rem; }
.bars .scale td { padding-top: .6rem; font-size: .8rem; color: var(--soft); }
.rail { position: relative; height: 1.05rem; min-width: 6rem;
  background: linear-gradient(90deg, var(--line) 1px, transparent 1px);
  background-size: calc(var(--step, 1) * 100%) 100%; }
.rail i, .rail span { position: absolute; }
.scale .rail { background: none; }
.rail .bar { top: .14rem; bottom: .14rem; border-radius: 1px 2px 2px 1px; background: var(--c);
  min-width: 1px; }
.rail .zero { top: 0; bottom: 0; border-left: 1px solid var(--soft); }
.rail .whisker { top: .26rem; bottom: .26rem; border: solid var(--ink); border-width: 0 1.5px; }
.rail .whisker::after { content: ""; position: absolute; left: 0; right: 0; top: calc(50% - .75px);
  height: 1.5px; background: var(--ink); }
.timeline .rail { --step: 1; }
.timeline td { vertical-align: middle; }
.timeline th, .timeline .number { white-space: nowrap; }
.timeline .track { width: 60%; }

.pictures ul { --least: max(6.2rem, (100% - (var(--columns) - 1) * .8rem) / var(--columns));
  display: grid; gap: 1rem .8rem; margin: 0;
  grid-template-columns: repeat(auto-fill, minmax(var(--least), 1fr)); }
.pictures .headed { grid-template-columns: repeat(var(--columns), minmax(5.2rem, 1fr)); }
.pictures .heading { align-self: end; font-size: .86rem; line-height: 1.3; color: var(--soft); }
.pictures img { display: block; width: 100%; height: auto; border-radius: 4px; background: var(--rail); }
.pictures p { margin: .4rem 0 0; font-size: .8rem; line-height: 1.35; color: var(--soft); }
.mark { font-weight: 700; }
.mark.right { color: var(--right); } .mark.wrong { color: var(--wrong); }
.pictures .wrong img { box-shadow: 0 0 0 2px var(--paper), 0 0 0 3.5px var(--wrong); }
.pictures .right img { box-shadow: 0 0 0 2px var(--paper), 0 0 0 3.5px var(--right); }

details { margin: .8rem 0; font-size: .88rem; }
summary { cursor: pointer; color: var(--soft); }
details table { margin-top: .5rem; }
details th { white-space: nowrap; }
pre { margin: .6rem 0; padding: .9rem 1.1rem; overflow-x: auto; border-radius: 4px; background: var(--rail);
  font: .82rem/1.5 ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace; }

@media (max-width: 40rem) {
  :root { --height: 12rem; }
  section { margin-top: 2.2rem; }
  .bars .value small { display: block; line-height: 1.2; }
  .bars th[scope=row] { padding-right: .7rem; }
  th, td { padding-right: .8rem; }
  .timeline .track { width: 20%; }
  .timeline .rail { min-width: 3rem; }
  .x-ticks span:nth-child(even), .scale span:nth-child(even) { display: none; }
}
@media print {
  @page { margin: 16mm; }
  body { padding: 0; max-width: none; font-size: 10pt; }
  nav { display: none; }
  section { break-before: auto; margin-top: 1.5rem; }
  h2, thead { break-after: avoid; }
  figure.chart, .pictures li, tr, .facts { break-inside: avoid; }
  .rail, .rail i, .legend span, .whisker::after { print-color-adjust: exact; }
  .scroll, pre { overflow: visible; }
  pre { white-space: pre-wrap; }
}
@media (prefers-reduced-motion: reduce) { html { scroll-behavior: auto; } }
"""


def short_number(value: float) -> str:
    """Number for an axis: up to four digits, thousands as k, M, G, tiny values with an exponent."""
    # The unit is chosen after rounding to four digits, since 9,999.9 would else read 1e+04.
    size = abs(float(f"{value:.4g}"))
    if not math.isfinite(value):
        text = "∞" if value > 0 else "-∞" if value < 0 else "–"
    elif size >= 1e4:
        power = min(int(math.log10(size) / 3), 3)
        text = f"{float(f'{value:.4g}') / 1000**power:g}{'kMG'[power - 1]}"
    elif 0 < size < 1e-3:
        mantissa, exponent = f"{value:.1e}".split("e")
        text = f"{float(mantissa):g}e{int(exponent)}"
    else:
        text = f"{value:.4g}"
    return text.replace("-", "−")


def cell_number(value: float) -> str:
    """Number for a table: whole numbers in full, others to three decimals (one from a hundred on)."""
    if isinstance(value, int):
        text = f"{value:,}"
    elif not math.isfinite(value) or 1e-9 < abs(value) < 1e-3:
        return short_number(value)
    else:
        text = f"{value:.3f}" if abs(value) < 100 else f"{value:,.1f}"
    return text.replace("-", "−")


def duration(seconds: float) -> str:
    """Time in the two largest fitting units: 0.4 s, 42 s, 3 min 20 s, 1 h 05 min."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min"
