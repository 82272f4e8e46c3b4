"""How latents are spread: mean and standard deviation of each channel, added up without rounding errors."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch


@dataclass(frozen=True)
class Moments:
    """Sums over the rows and positions of some latents, as the autoencoder draws them.

    Attributes:
        count: values of each channel.
        totals: sum of the means of each channel, [C].
        squares: sum of the squares of the means, [C].
        variances: sum of the autoencoder's own variances, [C].
    """

    count: int
    totals: tuple[float, ...]
    squares: tuple[float, ...]
    variances: tuple[float, ...]

    @classmethod
    def of(cls, mean: torch.Tensor, std: torch.Tensor | None) -> "Moments":
        """Moments of latents [N, C, h, w]; std None where the autoencoder draws nothing.

        NumPy adds up in one thread and in a fixed order, so that the digits follow from the values alone.
        """
        values = _float64(mean)
        drawn = np.zeros_like(values) if std is None else _float64(std)
        totals, squares, variances = (
            tuple(each.sum(axis=(0, 2)).tolist()) for each in (values, values**2, drawn**2)
        )
        return cls(values.shape[0] * values.shape[2], totals, squares, variances)

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> "Moments":
        """Moments as `vars` of others gave them."""
        return cls(found["count"], *(tuple(found[name]) for name in ("totals", "squares", "variances")))

    @property
    def mean(self) -> list[float]:
        """Mean of each channel, [C]."""
        return [total / self.count for total in self.totals]

    @property
    def std(self) -> list[float]:
        """Standard deviation of each channel, [C]: of what is drawn, not of the means alone.

        Source: law of total variance, Var[z] = E[std^2] + Var[mean].
        """
        each = zip(self.mean, self.squares, self.variances, strict=True)
        return [math.sqrt(max(0.0, s / self.count - m * m) + v / self.count) for m, s, v in each]


def together(parts: Iterable[Moments]) -> Moments:
    """Moments of all latents of the parts; their order does not matter."""
    parts = list(parts)
    columns = ([getattr(part, name) for part in parts] for name in ("totals", "squares", "variances"))
    sums = (tuple(map(math.fsum, zip(*column, strict=True))) for column in columns)
    return Moments(sum(part.count for part in parts), *sums)


def _float64(latents: torch.Tensor) -> np.ndarray:
    """Latents [N, C, h, w] as float64 [N, C, h w]."""
    return latents.detach().float().flatten(2).numpy().astype(np.float64)
