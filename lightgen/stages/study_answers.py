"""What a study found: scores of arms with intervals over seeds and prompts, and verdicts on its claims."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from statistics import NormalDist
from typing import Any

import numpy as np

from lightgen.core.draws import numpy_draws
from lightgen.core.errors import UserError
from lightgen.core.prompt import TAGS
from lightgen.evals.statistics import alike_difference, alike_interval, interval, unanimous_interval
from lightgen.evals.tables import OVERALL
from lightgen.stages.study_config import ArmResult, Claim, Expected, StudyConfig

LOSS = "loss"
AGREES, CONTRADICTS, UNKNOWN = "agrees", "contradicts", "cannot be told"
# Scores nearer than this are the same, and so are losses that differ by less than this share of the first.
SAME = 0.1
COVERAGE = 0.95
_RESAMPLES = 4_000
# Digits after which the noise of adding in another order begins.
_DIGITS = 9


@dataclass(frozen=True)
class Estimate:
    """A value, the ends of its 95 % interval (None where it has none), and its number of seeds."""

    value: float
    low: float | None
    high: float | None
    seeds: int

    def to_json(self) -> dict[str, Any]:
        """Record {value, interval, seeds}."""
        ends = None if self.low is None or self.high is None else [self.low, self.high]
        return {"value": self.value, "interval": ends, "seeds": self.seeds}


class Outcomes:
    """Scores and losses of the arms, and differences between two of them.

    An interval of scores is a bootstrap that draws seeds, and prompts within each task, again; the same draws
    for all arms, so that differences are paired. Of S seeds, S - 1 are drawn, since S would make the spread
    between seeds look smaller than it is; from one seed an interval can tell of prompts alone. An interval of
    losses is Student's, over seeds.

    Source: P. J. McCarthy and C. B. Snowden 1985, "The bootstrap and finite population sampling", for S - 1.
    """

    def __init__(self, results: Sequence[ArmResult]) -> None:
        """Take the results of all arms and seeds, in any order.

        Raises:
            UserError: there are none, or two of them were judged on different prompts.
        """
        if not results:
            raise UserError("study: got no results, allowed: at least one of each arm")
        self._tasks = np.array(results[0].tasks)
        self._right: dict[str, dict[int, np.ndarray]] = {}
        self._losses: dict[str, dict[int, float]] = {}
        for result in sorted(results, key=lambda each: each.seed):
            if result.tasks != results[0].tasks or len(result.right) != len(result.tasks):
                raise UserError(
                    f"study: got arm {result.arm!r} judged on other prompts, allowed: the same for all"
                )
            means = np.array([np.mean(pictures) for pictures in result.right], np.float64)
            self._right.setdefault(result.arm, {})[result.seed] = means
            losses = self._losses.setdefault(result.arm, {})
            if result.loss is not None and math.isfinite(result.loss):
                losses[result.seed] = result.loss
        self._prompts = cache(self._drawn_prompts)
        self._seeds = cache(_drawn_seeds)

    @property
    def tasks(self) -> list[str]:
        """Tasks of the test prompts, in their usual order."""
        return sorted(
            set(self._tasks.tolist()), key=lambda task: (TAGS.index(task) if task in TAGS else 99, task)
        )

    def score(self, arm: str, task: str = OVERALL) -> Estimate:
        """Share of right pictures in [0, 1] of a task, or the plain mean of all tasks."""
        return self._estimate(np.stack(list(self._right[arm].values())), task, is_difference=False)

    def seed_scores(self, arm: str) -> dict[int, float]:
        """Overall score of each seed."""
        return {seed: self._mean(right[None], OVERALL) for seed, right in self._right[arm].items()}

    def losses(self, arm: str) -> dict[int, float]:
        """Held-out loss of each seed that has one."""
        return dict(self._losses[arm])

    def loss(self, arm: str) -> Estimate | None:
        """Mean held-out loss; None where no seed has one."""
        losses = list(self._losses[arm].values())
        return _mean_of_seeds(losses) if losses else None

    def difference(self, first: str, second: str, task: str) -> Estimate | None:
        """Score or loss of the second arm minus that of the first, over seeds of both; None without any."""
        table = self._losses if task == LOSS else self._right
        common = [seed for seed in table[first] if seed in table[second]]
        if not common:
            return None
        if task == LOSS:
            return _mean_of_seeds([self._losses[second][s] - self._losses[first][s] for s in common])
        gains = np.stack([self._right[second][seed] - self._right[first][seed] for seed in common])
        return self._estimate(gains, task, is_difference=True)

    def _mean(self, values: np.ndarray, task: str) -> float:
        """Mean over tasks of the means of values [S, P]."""
        tasks = self.tasks if task == OVERALL else [task]
        return round(float(np.mean([values[:, self._tasks == each].mean() for each in tasks])), _DIGITS) + 0.0

    def _estimate(self, values: np.ndarray, task: str, *, is_difference: bool) -> Estimate:
        """Estimate of the mean of values [S, P]: of pictures that are right, or of differences of these."""
        value, num_seeds = self._mean(values, task), len(values)
        drawn = (self._seeds(num_seeds).T * (values @ self._prompts(task).T)).sum(axis=0)
        low, high = interval(drawn.round(_DIGITS), COVERAGE)
        if low == high:
            low, high = self._ends_of_alike(values, task, is_difference=is_difference)
        return Estimate(value, low + 0.0, high + 0.0, num_seeds)

    def _ends_of_alike(self, values: np.ndarray, task: str, *, is_difference: bool) -> tuple[float, float]:
        """Interval where all resamples are alike: not of no length, as other prompts could have differed."""
        tasks = self.tasks if task == OVERALL else [task]
        rows = np.isin(self._tasks, tasks)
        if np.ptp(values[:, rows]) > 10**-_DIGITS and len(tasks) > 1:  # each task has a value of its own
            ends = [self._ends_of_alike(values, each, is_difference=is_difference) for each in tasks]
            low, high = np.mean(ends, axis=0)
            return float(low), float(high)
        # tasks count alike, so that prompts beyond those of the smallest task show no more
        num_prompts = len(tasks) * min(int((self._tasks == each).sum()) for each in tasks)
        value = self._mean(values, task)
        if is_difference:
            return alike_difference(value, num_prompts, COVERAGE)
        if value in (0.0, 1.0):
            return unanimous_interval(value, num_prompts, COVERAGE)
        return alike_interval(value, num_prompts, COVERAGE)

    def _drawn_prompts(self, task: str) -> np.ndarray:
        """Weights [R, P] of the prompts in each resample; those of each add up to 1."""
        weights = np.zeros((_RESAMPLES, len(self._tasks)))
        tasks = self.tasks if task == OVERALL else [task]
        for each in tasks:
            rows = np.flatnonzero(self._tasks == each)
            counts = numpy_draws(0, f"study: prompts of {each}").multinomial(
                len(rows), np.full(len(rows), 1 / len(rows)), size=_RESAMPLES
            )
            weights[:, rows] = counts / len(rows) / len(tasks)
        return weights


def answers(config: StudyConfig, results: Sequence[ArmResult]) -> dict[str, Any]:
    """Document of a study: every arm with its scores, losses and cost, and every claim with its verdict.

    Raises:
        UserError: an arm has no result, or arms were judged on different prompts.
    """
    names = [arm.name for arm in config.arms]
    by_arm = {name: [each for each in results if each.arm == name] for name in names}
    for name, found in by_arm.items():
        if not found:
            raise UserError(f"study: got no result of arm {name!r}, allowed: at least one of each arm")
    outcomes = Outcomes([each for found in by_arm.values() for each in found])
    first = results[0]
    return {
        "title": config.title,
        "question": config.question,
        "tflop": config.tflop,
        "seeds": max(len(found) for found in by_arm.values()),
        "prompts": len(first.tasks),
        "images_per_prompt": max(len(pictures) for pictures in first.right),
        "coverage": COVERAGE,
        "tasks": outcomes.tasks,
        "arms": {
            arm.name: {"x": arm.x, "series": arm.series, **_arm(outcomes, names[0], by_arm[arm.name])}
            for arm in config.arms
        },
        "claims": [_claim(outcomes, claim) for claim in config.claims],
    }


def verdict(expected: Expected, low: float, high: float, margin: float = SAME) -> str:
    """Whether an interval of a difference agrees with what is expected of it, contradicts it, or neither.

    `higher` and `lower` agree if the interval lies wholly on their side of 0, and are contradicted if it lies
    wholly on the other. `same` agrees if it holds 0 and lies within the margin, and is contradicted if it
    does not hold 0.
    """
    if expected == "same":
        if low > 0 or high < 0:
            return CONTRADICTS
        return AGREES if -margin <= low and high <= margin else UNKNOWN
    near, far = (low, high) if expected == "higher" else (-high, -low)
    return AGREES if near > 0 else CONTRADICTS if far < 0 else UNKNOWN


def student_quantile(coverage: float, freedom: int) -> float:
    """Half width, in standard errors, of the interval of a mean that is `freedom` + 1 values' own.

    Source: closed forms for 1 and 2 degrees of freedom; Cornish and Fisher's expansion beyond (Abramowitz and
    Stegun 26.7.5), which is off by 1 % at 3 and less from there.
    """
    if freedom == 1:
        return math.tan(math.pi * coverage / 2)
    if freedom == 2:
        return coverage * math.sqrt(2 / (1 - coverage**2))
    z = NormalDist().inv_cdf((1 + coverage) / 2)
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
    )
    return z + sum(term / freedom**power for power, term in enumerate(terms, start=1))


def _mean_of_seeds(values: Sequence[float]) -> Estimate:
    """Mean of one value per seed with Student's interval, which one seed does not have."""
    mean = float(np.mean(values))
    if len(values) == 1:
        return Estimate(mean, None, None, 1)
    error = float(np.std(values, ddof=1)) / math.sqrt(len(values))
    half = student_quantile(COVERAGE, len(values) - 1) * error
    return Estimate(mean, mean - half, mean + half, len(values))


def _drawn_seeds(number: int) -> np.ndarray:
    """Weights [R, S] of the seeds in each resample; those of each add up to 1."""
    drawn = max(1, number - 1)
    chances = np.full(number, 1 / number)
    return numpy_draws(0, "study: seeds").multinomial(drawn, chances, size=_RESAMPLES) / drawn


def _arm(outcomes: Outcomes, baseline: str, results: Sequence[ArmResult]) -> dict[str, Any]:
    """Record of one arm: scores, gain over the first arm, losses, and means over seeds of what it cost."""
    name = results[0].arm
    loss = outcomes.loss(name)
    gains = {task: outcomes.difference(baseline, name, task) for task in (OVERALL, *outcomes.tasks, LOSS)}
    parts = dict.fromkeys(part for each in results for part in each.seconds)
    return {
        "overall": outcomes.score(name).to_json(),
        "tasks": {task: outcomes.score(name, task).to_json() for task in outcomes.tasks},
        "overall_by_seed": {str(seed): value for seed, value in outcomes.seed_scores(name).items()},
        "loss": None if loss is None else loss.to_json(),
        "loss_by_seed": {str(seed): value for seed, value in outcomes.losses(name).items()},
        "minus_first_arm": {task: None if gain is None else gain.to_json() for task, gain in gains.items()},
        "train_tflop": float(np.mean([each.train_tflop for each in results])),
        "draw_tflop": float(np.mean([each.draw_tflop for each in results])),
        "seconds": {
            part: sum(each.seconds.get(part, 0.0) for each in results) / len(results) for part in parts
        },
    }


def _claim(outcomes: Outcomes, claim: Claim) -> dict[str, Any]:
    """Record of a claim: what is said, what was found, and whether they agree."""
    known = claim.task in (OVERALL, LOSS, *outcomes.tasks)
    found = outcomes.difference(claim.first, claim.second, claim.task) if known else None
    decided = UNKNOWN
    if found is not None and found.low is not None and found.high is not None:
        loss = outcomes.loss(claim.first)
        margin = SAME * abs(loss.value) if claim.task == LOSS and loss is not None else SAME
        decided = verdict(claim.expected, found.low, found.high, margin)
    return {
        **{name: value for name, value in vars(claim).items()},
        "difference": None if found is None else found.to_json(),
        "verdict": decided,
    }
