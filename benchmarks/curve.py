"""A training run as a picture: loss, held-out loss, and nano-GenEval of its checkpoints, against steps.

lightgen train pretrain-nano --in runs/latents --out runs/student --run.keep-every 250
lightgen evaluate nano-geneval --in runs/student-steps/step-* --out runs/student-scores
python benchmarks/curve.py runs/student runs/student-scores --out docs/pretrain-nano.svg
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from lightgen.core.metrics import read_metrics

Points = Sequence[tuple[float, float]]

WIDTH, HEIGHT, LEFT, TOP, GAP = 420, 240, 52, 30, 70
COLORS = {"loss": "#9aa5b1", "held out": "#1f6feb", "held out, average": "#d1242f", "overall": "#1a7f37"}


def main() -> None:
    """Write the picture, and print its numbers as a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="checkpoint that a training made")
    parser.add_argument("scores", type=Path, help="report on its checkpoints on the way")
    parser.add_argument("--out", type=Path, required=True, help="new .svg")
    found = parser.parse_args()
    records = read_metrics(found.run / "train_state" / "metrics.jsonl")
    subjects = json.loads((found.scores / "report.json").read_text())["subjects"]
    scores = {int(each["name"].rsplit("-", 1)[-1]): each for each in subjects}
    curves = {
        "loss": _column(records, "loss"),
        "held out": _column(records, "held_out_loss"),
        "held out, average": _column(records, "held_out_loss_ema"),
    }
    overall = [(float(step), each["overall"]) for step, each in sorted(scores.items())]
    bars = {step: each["intervals"]["overall"] for step, each in scores.items()}
    found.out.write_text(_page(curves, overall, bars))
    names = sorted(next(iter(scores.values()))["tasks"])
    sys.stdout.write(f"| step | {' | '.join(names)} | overall | 95 % |\n|{'---|' * (len(names) + 3)}\n")
    for step, each in sorted(scores.items()):
        cells = [f"{each['tasks'][name]:.2f}" for name in names]
        low, high = each["intervals"]["overall"]
        row = " | ".join([f"{step:,}", *cells, f"{each['overall']:.3f}", f"{low:.2f}-{high:.2f}"])
        sys.stdout.write(f"| {row} |\n")


def _column(records: Sequence[dict], name: str) -> Points:
    return [(float(r["step"]), r[name]) for r in records if r.get(name) is not None]


def _page(curves: dict[str, Points], overall: Points, bars: dict[int, Sequence[float]]) -> str:
    most = max(x for points in curves.values() for x, _ in points)
    top = max(y for _, y in curves["loss"])
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{2 * (WIDTH + GAP)}" height="{HEIGHT + 80}" '
        'font-family="sans-serif" font-size="12">',
        '<rect width="100%" height="100%" fill="#ffffff"/>',
        *_axes(0, "loss per step", most, top),
        *(_line(points, 0, most, top, COLORS[name]) for name, points in curves.items() if points),
        *_axes(1, "nano-GenEval overall", most, 1.0),
        *(_bar(step, low, high, most) for step, (low, high) in bars.items()),
        _line(overall, 1, most, 1.0, COLORS["overall"]),
    ]
    x = LEFT
    for name in [name for name, points in curves.items() if points]:
        parts.append(f'<text x="{x}" y="{HEIGHT + 66}" fill="{COLORS[name]}">{name}</text>')
        x += 24 + 7 * len(name)
    return "\n".join([*parts, "</svg>"]) + "\n"


def _place(panel: int, x: float, y: float, most: float, top: float) -> tuple[float, float]:
    left = LEFT + panel * (WIDTH + GAP)
    return left + x / most * (WIDTH - LEFT), TOP + (1 - y / top) * HEIGHT


def _axes(panel: int, title: str, most: float, top: float) -> list[str]:
    lines = []
    for i in range(5):
        x, y = _place(panel, most * i / 4, top * i / 4, most, top)
        left, low = _place(panel, 0, 0, most, top)
        right, _ = _place(panel, most, 0, most, top)
        label = f"{most * i / 4:,.0f}"
        lines += [
            f'<line x1="{left}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}" stroke="#d8dee4"/>',
            f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end" fill="#57606a">{top * i / 4:.2f}</text>',
            f'<text x="{x:.1f}" y="{low + 18}" text-anchor="middle" fill="#57606a">{label}</text>',
        ]
    left, _ = _place(panel, 0, 0, most, top)
    return [*lines, f'<text x="{left}" y="{TOP - 12}" fill="#1f2328">{title}</text>']


def _line(points: Points, panel: int, most: float, top: float, color: str) -> str:
    path = " ".join("{:.1f},{:.1f}".format(*_place(panel, x, y, most, top)) for x, y in points)
    dots = "".join(
        '<circle cx="{:.1f}" cy="{:.1f}" r="2.5" fill="{}"/>'.format(*_place(panel, x, y, most, top), color)
        for x, y in (points if len(points) <= 16 else ())
    )
    return f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="1.6"/>{dots}'


def _bar(step: int, low: float, high: float, most: float) -> str:
    x, bottom = _place(1, step, low, most, 1.0)
    _, top = _place(1, step, high, most, 1.0)
    ends = f'x1="{x:.1f}" x2="{x:.1f}" y1="{bottom:.1f}" y2="{top:.1f}"'
    return f'<line {ends} stroke="{COLORS["overall"]}" stroke-opacity=".4" stroke-width="3"/>'


if __name__ == "__main__":
    main()
