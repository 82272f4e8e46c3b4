"""The figure of diversity.py."""

from collections.abc import Mapping
from typing import Any

import numpy as np

INKS = ("#0969da", "#bc4c00", "#1a7f37")
GREY = "#57606a"
LEFT, WIDTH, TOP, HEIGHT, APART = 60, 340, 40, 240, 460


def figure(
    sets: Mapping[str, Any], grid: Mapping[tuple[int, int], str], choices: Mapping[Any, str], title: str
) -> str:
    """SVG of scores with intervals: by distinct captions, a line for each number of pictures, and by choice.

    Args:
        sets: value and interval of each set.
        grid: name of the set of so many captions and pictures.
        choices: name of the set of each way to choose; the first is what the others are compared with.
        title: over the choices.
    """
    most = max(row["interval"][1] for row in sets.values()) * 1.08
    parts = [
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 900 350" font-family="sans-serif"',
        ' font-size="12">',
        '<rect width="100%" height="100%" fill="#ffffff"/>',
        *_axes(0, "nano-GenEval by distinct captions, at equal compute", most),
        *_axes(1, title, most),
    ]
    captions, pictures = (sorted({cell[i] for cell in grid}) for i in (0, 1))
    for number, k in enumerate(pictures):
        ink, points = INKS[number % len(INKS)], []
        for i, c in enumerate(captions):
            place, row = (i + 0.5 + 0.08 * (number - 1)) / len(captions), sets[grid[c, k]]
            points.append(_at(0, place, row["value"] / most))
            parts += _whisker(0, place, row, most, ink)
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{ink}" stroke-width="2"/>')
        label = f"{k} picture{'s' if k > 1 else ''} of each"
        parts.append(f'<text x="{LEFT + 120 * number}" y="335" fill="{ink}">{label}</text>')
    parts += [_label(0, (i + 0.5) / len(captions), str(c)) for i, c in enumerate(captions)]
    for i, (how, name) in enumerate(choices.items()):
        place = (i + 0.5) / len(choices)
        parts += _whisker(1, place, sets[name], most, INKS[0] if i else GREY)
        parts.append(_label(1, place, how))
    return "\n".join([*parts, "</svg>"]) + "\n"


def _at(panel: int, place: float, height: float) -> tuple[float, float]:
    return LEFT + APART * panel + WIDTH * place, TOP + HEIGHT * (1 - height)


def _axes(panel: int, title: str, most: float) -> list[str]:
    parts = [f'<text x="{LEFT + APART * panel}" y="{TOP - 18}">{title}</text>']
    for value in np.arange(0, most, 0.1):
        (left, y), (right, _) = _at(panel, 0, value / most), _at(panel, 1, value / most)
        parts.append(f'<line x1="{left}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}" stroke="#d8dee4"/>')
        parts.append(f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{value:.1f}</text>')
    return parts


def _label(panel: int, place: float, text: str) -> str:
    x, y = _at(panel, place, 0)
    return f'<text x="{x:.1f}" y="{y + 18:.1f}" text-anchor="middle">{text}</text>'


def _whisker(panel: int, place: float, row: Mapping[str, Any], most: float, ink: str) -> list[str]:
    x, y = _at(panel, place, row["value"] / most)
    low, high = (_at(panel, place, value / most)[1] for value in row["interval"])
    return [
        f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{low:.1f}" y2="{high:.1f}" stroke="{ink}"'
        ' stroke-opacity=".5" stroke-width="3"/>',
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{ink}"/>',
    ]
