"""What the charts of a report share: axes with round ticks, and legends."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from lightgen.evals.page import short_number

# Colours of the style sheet; lines beyond them are dashed.
NUM_COLORS = 6

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Axis:
    """Range of values that an axis shows; low < high, and 0 < low on a log axis."""

    low: float
    high: float
    log: bool = False

    def share(self, value: float) -> float:
        """Where the value lies: 0 at the low end, 1 at the high end."""
        if self.log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    def ticks(self) -> list[float]:
        """Round values inside the range, about five."""
        if self.log:
            first, last = math.floor(math.log10(self.low)), math.ceil(math.log10(self.high))
            stride = math.ceil((last - first) / 6)
            for steps in ((1,), (1, 2, 5), (1, 1.5, 2, 3, 5, 7)):
                ticks = [m * 10.0**e for e in range(first, last + 1, stride) for m in steps]
                ticks = [tick for tick in ticks if self.low <= tick <= self.high]
                if len(ticks) >= 3:
                    return ticks
        return linear_ticks(self.low, self.high)


def linear_ticks(low: float, high: float) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten within [low, high]: three to six of them."""
    raw = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    # Rounding takes off the last-digit noise of multiplying by a power of ten.
    return [float(f"{index * step:.12g}") for index in range(first, last + 1)]


def fit_axis(values: Sequence[float], log: bool = False, pad: float = 0.0) -> Axis:
    """Axis that holds all values, widened by `pad` of its length at both ends; never empty."""
    low, high = min(values), max(values)
    if log:
        if low == high:
            low, high = low / 2, high * 2
        margin = (high / low) ** pad
        return Axis(low / margin, high * margin, log=True)
    if low == high:
        margin = abs(low) / 2 or 0.5
        low, high = low - margin, high + margin
    margin = pad * (high - low)
    return Axis(low - margin, high + margin)


def legend(lines: Mapping[str, Points]) -> str:
    """HTML of the names of lines or bars with their colours, and the last value of each line."""
    items = []
    for index, (name, points) in enumerate(lines.items()):
        last = f" <b>{short_number(points[-1][1])}</b>" if points else ""
        dashed = ' class="dashed"' if index >= NUM_COLORS else ""
        items.append(f'<li class="k{index % NUM_COLORS}"><span{dashed}></span>{escape(name)}{last}</li>')
    return f'<ul class="legend">{"".join(items)}</ul>'
