"""From marks to a table: scores of tasks with intervals over prompts, and a paired test of two runs."""

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from lightgen.core.errors import UserError
from lightgen.core.prompt import TAGS
from lightgen.evals.statistics import (
    BootstrapConfig,
    Shares,
    alike_difference,
    alike_interval,
    exchanged_differences,
    interval,
    mean_of,
    p_value,
    resampled_differences,
    resampled_shares,
    unanimous_interval,
)

OVERALL = "overall"
# What a run is as a whole: the plain mean of its tasks, or the mean of its images' own scores.
Overall = Literal["tasks", "images"]


@dataclass(frozen=True)
class Mark:
    """What a judge gives one image.

    Attributes:
        prompt: tells the prompt apart from all others.
        score: of the image as a whole, in [0, 1].
        parts: (task, value in [0, 1]) of all that it counts for; a task may occur more than once.
    """

    prompt: str
    score: float
    parts: tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class Score:
    """Mean in [0, 1], its interval, and how many prompts and values (one per image in GenEval) it is of."""

    value: float
    low: float
    high: float
    num_prompts: int
    num_images: int


@dataclass(frozen=True)
class ScoreTable:
    """Scores of a run, overall and by task, in a fixed order of tasks."""

    overall: Score
    tasks: dict[str, Score]

    def to_json(self) -> dict[str, Any]:
        """Record with `overall` and `tasks` as plain numbers, and `intervals` and `counts` beside them."""
        named = {OVERALL: self.overall, **self.tasks}
        return {
            "overall": self.overall.value,
            "tasks": {name: score.value for name, score in self.tasks.items()},
            "intervals": {name: [score.low, score.high] for name, score in named.items()},
            "counts": {name: {"prompts": s.num_prompts, "images": s.num_images} for name, s in named.items()},
        }


@dataclass(frozen=True)
class Difference:
    """Score of the second run minus that of the first, its interval, and its two-sided p-value."""

    value: float
    low: float
    high: float
    p: float

    def to_json(self) -> dict[str, Any]:
        """Record {difference, interval, p}."""
        return {"difference": self.value, "interval": [self.low, self.high], "p": self.p}


@dataclass(frozen=True)
class Comparison:
    """Paired differences between two runs over the same prompts: overall and by task."""

    overall: Difference
    tasks: dict[str, Difference]

    def to_json(self) -> dict[str, Any]:
        """Record with `overall` and `tasks`, each difference as {difference, interval, p}."""
        return {
            "overall": self.overall.to_json(),
            "tasks": {name: value.to_json() for name, value in self.tasks.items()},
        }


# Values by task and prompt.
_Values = dict[str, dict[str, list[float]]]


def score_table(
    marks: Iterable[Mark],
    config: BootstrapConfig,
    overall: Overall = "tasks",
    order: Sequence[str] = TAGS,
) -> ScoreTable:
    """Table of tasks with bootstrap intervals over prompts; the same for marks in any order.

    Args:
        marks: of all images.
        config: of the intervals.
        overall: what the run is as a whole.
        order: of the tasks; others follow by name.

    Raises:
        UserError: there are no marks.
    """
    tasks, images = _values(marks, order)
    scores: dict[str, Score] = {}
    replicates: list[np.ndarray] = []
    for task, by_prompt in tasks.items():
        scores[task], resampled = _score(by_prompt, config, task)
        replicates.append(resampled)
    if overall == "images":
        return ScoreTable(_score(images, config, OVERALL)[0], scores)
    low, high = interval(mean_of(replicates), config.coverage)
    if low == high:  # every task's prompts agree, so that resamples are alike
        low, high = (float(np.mean([getattr(s, side) for s in scores.values()])) for side in ("low", "high"))
    whole = Score(
        float(np.mean([score.value for score in scores.values()])),
        low,
        high,
        sum(score.num_prompts for score in scores.values()),
        sum(score.num_images for score in scores.values()),
    )
    return ScoreTable(whole, scores)


def compare_runs(
    first: Iterable[Mark],
    second: Iterable[Mark],
    config: BootstrapConfig,
    overall: Overall = "tasks",
    order: Sequence[str] = TAGS,
) -> Comparison:
    """Paired comparison, positive where the second run is better.

    Intervals resample prompts; p-values exchange the two results of prompts.

    Args:
        first: marks of the run that is compared with.
        second: marks of the run that may be better.
        config: of intervals and tests.
        overall: what a run is as a whole.
        order: of the tasks; others follow by name.

    Raises:
        UserError: there are no marks, or the runs judged different prompts.
    """
    runs = [_values(marks, order) for marks in (first, second)]
    keys = [{(task, key) for task, by_prompt in tasks.items() for key in by_prompt} for tasks, _ in runs]
    if keys[0] != keys[1]:
        only = len(keys[0] - keys[1]), len(keys[1] - keys[0])
        raise UserError(
            f"compare: runs over different prompts ({only[0]} only in the first, {only[1]} in the second)"
        )
    found: dict[str, Difference] = {}
    resampled, exchanged = [], []
    for task in runs[0][0]:
        pair = runs[0][0][task], runs[1][0][task]
        found[task], *draws = _difference(*pair, config, task)
        resampled.append(draws[0])
        exchanged.append(draws[1])
    if overall == "images":
        return Comparison(_difference(runs[0][1], runs[1][1], config, OVERALL)[0], found)
    value = float(np.mean([difference.value for difference in found.values()]))
    low, high = interval(mean_of(resampled), config.coverage)
    if low == high:
        low, high = (float(np.mean([getattr(d, side) for d in found.values()])) for side in ("low", "high"))
    return Comparison(Difference(value, low, high, p_value(value, mean_of(exchanged))), found)


def _values(marks: Iterable[Mark], order: Sequence[str]) -> tuple[_Values, dict[str, list[float]]]:
    """(Values by task and prompt, tasks in order; scores by prompt)."""
    tasks: _Values = defaultdict(lambda: defaultdict(list))
    images: dict[str, list[float]] = defaultdict(list)
    for mark in marks:
        images[mark.prompt].append(mark.score)
        for task, value in mark.parts:
            tasks[task][mark.prompt].append(value)
    if not images or not tasks:
        raise UserError("no verdicts, so there is nothing to score")
    known = {name: place for place, name in enumerate(order)}
    names = sorted(tasks, key=lambda name: (known.get(name, len(known)), name))
    return {name: dict(tasks[name]) for name in names}, dict(images)


def _score(
    by_prompt: dict[str, list[float]], config: BootstrapConfig, purpose: str
) -> tuple[Score, np.ndarray]:
    """(Score, the same of each resampled benchmark)."""
    shares = _shares(by_prompt, sorted(by_prompt))
    resampled = resampled_shares(shares, config, purpose)
    num_prompts, num_images = len(shares.images), int(shares.images.sum())
    if shares.share in (0.0, 1.0):
        low, high = unanimous_interval(shares.share, num_prompts, config.coverage)
    else:
        low, high = interval(resampled, config.coverage)
        if low == high:
            low, high = alike_interval(shares.share, num_prompts, config.coverage)
    return Score(shares.share, low, high, num_prompts, num_images), resampled


def _difference(
    first: dict[str, list[float]], second: dict[str, list[float]], config: BootstrapConfig, purpose: str
) -> tuple[Difference, np.ndarray, np.ndarray]:
    """(Difference, that of resampled prompts, that of exchanged results)."""
    a, b = (_shares(each, sorted(each)) for each in (first, second))
    resampled = resampled_differences(a, b, config, purpose)
    exchanged = exchanged_differences(a, b, config, purpose)
    value = b.share - a.share
    low, high = interval(resampled, config.coverage)
    if low == high:
        low, high = alike_difference(value, len(a.images), config.coverage)
    return Difference(value, low, high, p_value(value, exchanged)), resampled, exchanged


def _shares(by_prompt: dict[str, list[float]], keys: Sequence[str]) -> Shares:
    # fsum is exact before it rounds once, so that the order of a prompt's images does not show
    return Shares(
        np.array([math.fsum(by_prompt[key]) for key in keys], dtype=np.float64),
        np.array([len(by_prompt[key]) for key in keys], dtype=np.int64),
    )
