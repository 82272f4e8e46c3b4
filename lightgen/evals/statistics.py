"""How sure a share of right images is: bootstrap intervals over prompts, and a paired test of two runs."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from lightgen.core.draws import numpy_draws
from lightgen.core.errors import UserError

# Draws are made this many numbers at a time, which bounds memory for benchmarks of any size.
_DRAWS_AT_ONCE = 2_000_000


@dataclass(frozen=True, kw_only=True)
class BootstrapConfig:
    """Settings of intervals and tests.

    Attributes:
        seed: of the draws.
        resamples: number of resampled benchmarks.
        coverage: share of them that an interval holds.
    """

    seed: int = 0
    resamples: int = 10_000
    coverage: float = 0.95

    def __post_init__(self) -> None:
        """Refuse settings without a meaning.

        Raises:
            UserError: fewer than 100 resamples, or a coverage outside (0, 1).
        """
        if self.resamples < 100:
            raise UserError(f"resamples is {self.resamples}, allowed: a whole number from 100")
        if not 0 < self.coverage < 1:
            raise UserError(f"coverage is {self.coverage}, allowed: between 0 and 1")


@dataclass(frozen=True)
class Shares:
    """Sums of values in [0, 1] float64 [N], and their numbers int64 [N] from 1, one entry per prompt.

    Where a value says whether an image is right, `right` counts the right images of a prompt.
    """

    right: np.ndarray
    images: np.ndarray

    @property
    def share(self) -> float:
        """Mean value, such as the share of right images, over all prompts."""
        return float(self.right.sum() / self.images.sum())


def resampled_shares(shares: Shares, config: BootstrapConfig, purpose: str) -> np.ndarray:
    """Share of right images [R] float64 in each of R benchmarks of N prompts drawn with replacement."""
    return _over_draws(
        lambda ids: shares.right[ids].sum(axis=1) / shares.images[ids].sum(axis=1),
        len(shares.right),
        len(shares.right),
        config,
        f"bootstrap {purpose}",
    )


def resampled_differences(first: Shares, second: Shares, config: BootstrapConfig, purpose: str) -> np.ndarray:
    """Share of the second run minus that of the first, [R] float64, over prompts drawn with replacement."""

    def difference(ids: np.ndarray) -> np.ndarray:
        a, b = (s.right[ids].sum(axis=1) / s.images[ids].sum(axis=1) for s in (first, second))
        return b - a

    return _over_draws(difference, len(first.right), len(first.right), config, f"bootstrap {purpose}")


def exchanged_differences(first: Shares, second: Shares, config: BootstrapConfig, purpose: str) -> np.ndarray:
    """Difference [R] float64 of the shares when each prompt's two results change runs by the toss of a coin.

    This is how large differences get when the two runs do not differ; unlike a bootstrap shifted to zero, it
    stays honest for a handful of prompts that all agree.
    """

    def difference(swap: np.ndarray) -> np.ndarray:
        right = np.where(swap, second.right, first.right), np.where(swap, first.right, second.right)
        images = np.where(swap, second.images, first.images), np.where(swap, first.images, second.images)
        return right[1].sum(axis=1) / images[1].sum(axis=1) - right[0].sum(axis=1) / images[0].sum(axis=1)

    return _over_draws(difference, len(first.right), 2, config, f"exchange {purpose}")


def interval(replicates: np.ndarray, coverage: float) -> tuple[float, float]:
    """Middle `coverage` of the replicates (percentile interval)."""
    tail = (1 - coverage) / 2
    low, high = np.quantile(replicates, [tail, 1 - tail])
    return float(low), float(high)


def unanimous_interval(share: float, num_prompts: int, coverage: float) -> tuple[float, float]:
    """Interval of a share of exactly 0 or 1, where all resamples are alike and a bootstrap seems certain.

    Source: Clopper and Pearson 1934, for N of N successes: the bound is (tail probability) ** (1 / N).
    """
    assert share in (0.0, 1.0), share
    bound = ((1 - coverage) / 2) ** (1 / num_prompts)
    return (bound, 1.0) if share else (0.0, 1 - bound)


def alike_interval(share: float, num_prompts: int, coverage: float) -> tuple[float, float]:
    """Interval of a mean in (0, 1) where all prompts have it, so that every resample is alike.

    Source: Wilson 1927, the score interval, with a prompt for a trial.
    """
    z = NormalDist().inv_cdf((1 + coverage) / 2)
    middle = (share + z * z / (2 * num_prompts)) / (1 + z * z / num_prompts)
    half = math.sqrt(share * (1 - share) / num_prompts + (z / (2 * num_prompts)) ** 2)
    half *= z / (1 + z * z / num_prompts)
    return max(0.0, middle - half), min(1.0, middle + half)


def alike_difference(difference: float, num_prompts: int, coverage: float) -> tuple[float, float]:
    """Interval of a difference in [-1, 1] that all prompts have, so that every resample is alike.

    As many prompts of another kind as could stay unseen by chance may differ by anything from -1 to 1.
    """
    unseen = 1 - ((1 - coverage) / 2) ** (1 / num_prompts)
    return difference - unseen * (1 + difference), difference + unseen * (1 - difference)


def p_value(difference: float, exchanged: np.ndarray) -> float:
    """Two-sided probability of so large a difference if the runs do not differ; never exactly 0."""
    # Means of the same counts in another order may differ in the last bit, which must not hide a tie.
    as_large = np.count_nonzero(np.abs(exchanged) >= abs(difference) - 1e-12)
    return float((1 + as_large) / (1 + len(exchanged)))


def mean_of(replicates: Sequence[np.ndarray]) -> np.ndarray:
    """Plain mean [R] over tasks of their replicates [R]."""
    return np.mean(np.stack(list(replicates)), axis=0)


def _over_draws(
    statistic: Callable[[np.ndarray], np.ndarray],
    size: int,
    below: int,
    config: BootstrapConfig,
    purpose: str,
) -> np.ndarray:
    """Statistic [R] of R keyed draws of `size` whole numbers in [0, below), a bounded number at a time."""
    draws = numpy_draws(config.seed, purpose)
    at_once = max(1, _DRAWS_AT_ONCE // size)
    parts = []
    for start in range(0, config.resamples, at_once):
        count = min(at_once, config.resamples - start)
        parts.append(statistic(draws.integers(below, size=(count, size))))
    return np.concatenate(parts)
