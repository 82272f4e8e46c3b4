"""From images to scores: a verdict per image, a table of tasks with intervals, a paired test of two runs."""

import itertools
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from lightgen.core.errors import UserError
from lightgen.core.prompt import TAGS, Prompt
from lightgen.evals.statistics import (
    BootstrapConfig,
    Shares,
    exchanged_differences,
    interval,
    mean_of,
    p_value,
    resampled_differences,
    resampled_shares,
    unanimous_interval,
)
from lightgen.evals.verdict import VerdictConfig, own_colors, verdict
from lightgen.ports.protocols import ColorClassifier, Detection, Detector


@dataclass(frozen=True)
class ImageVerdict:
    """Verdict on one image.

    Attributes:
        prompt: what was asked for.
        correct, reason, broken: see `lightgen.evals.verdict.Verdict`.
        detections: what was found, at any confidence, without masks.
    """

    prompt: Prompt
    correct: bool
    reason: str
    broken: tuple[str, ...] = ()
    detections: tuple[Detection, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Record of the verdict, without its prompt."""
        found = [
            {"label": d.label, "score": d.score, "box": list(d.box), "colors": d.colors and dict(d.colors)}
            for d in self.detections
        ]
        return {
            "correct": self.correct,
            "reason": self.reason,
            "broken": list(self.broken),
            "detections": found,
        }

    @staticmethod
    def from_json(prompt: Prompt, record: dict[str, Any]) -> "ImageVerdict":
        """Verdict of a record that `to_json` made."""
        found = tuple(
            Detection(d["label"], d["score"], tuple(d["box"]), colors=d["colors"])
            for d in record["detections"]
        )
        return ImageVerdict(prompt, record["correct"], record["reason"], tuple(record["broken"]), found)


@dataclass(frozen=True)
class Score:
    """Share of right images in [0, 1], its interval, and how many prompts and images stand behind it."""

    value: float
    low: float
    high: float
    num_prompts: int
    num_images: int


@dataclass(frozen=True)
class ScoreTable:
    """Scores of a run: overall (plain mean of the tasks present) and by task, in GenEval's order."""

    overall: Score
    tasks: dict[str, Score]

    def to_json(self) -> dict[str, Any]:
        """Record with `overall` and `tasks` as plain numbers, and `intervals` and `counts` beside them."""
        named = {"overall": self.overall, **self.tasks}
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


@dataclass(frozen=True)
class Comparison:
    """Paired differences between two runs over the same prompts: overall and by task."""

    overall: Difference
    tasks: dict[str, Difference]

    def to_json(self) -> dict[str, Any]:
        """Record with `overall` and `tasks`, each difference as {difference, interval, p}."""
        return {
            "overall": _difference_to_json(self.overall),
            "tasks": {name: _difference_to_json(value) for name, value in self.tasks.items()},
        }


def evaluate_images(
    prompts: Sequence[Prompt],
    images: Iterable[np.ndarray],
    detector: Detector,
    color_classifier: ColorClassifier | None,
    config: VerdictConfig,
    labels: Sequence[str] | None = None,
    batch_size: int = 32,
) -> list[ImageVerdict]:
    """One verdict per image, in order.

    Args:
        prompts: one per image; a prompt with four images is named four times.
        images: uint8 [H, W, 3] each, read as they are needed.
        detector: finds the objects.
        color_classifier: names colours; None for a detector that judges them itself.
        config: numbers of the verdict.
        labels: classes asked of the detector; None for those that the prompts name. A run in parts hands the
            same labels to each part, since what an open-vocabulary detector finds depends on them.
        batch_size: most images per call of the detector.

    Raises:
        UserError: numbers of prompts and images differ, an image is no uint8 [H, W, 3], or a prompt cannot be
            judged.
        ValueError: the detector is broken or mis-sized.
    """
    if labels is None:
        labels = sorted({r.name for prompt in prompts for r in (*prompt.include, *prompt.exclude)})
    results: list[ImageVerdict] = []
    for batch in _batches(images, batch_size):
        if len(results) + len(batch) > len(prompts):
            raise UserError(
                f"evaluate: {len(prompts)} prompts but at least {len(results) + len(batch)} images"
            )
        found = detector.detect(batch, labels)
        if len(found) != len(batch):
            raise ValueError(f"detector answers for {len(found)} images, expected {len(batch)}")
        for image, detections in zip(batch, found, strict=True):
            results.append(_judge(prompts[len(results)], image, detections, color_classifier, config))
    if len(results) != len(prompts):
        raise UserError(f"evaluate: {len(prompts)} prompts but {len(results)} images")
    return results


def score_table(verdicts: Iterable[ImageVerdict], config: BootstrapConfig) -> ScoreTable:
    """Table of tasks with bootstrap intervals over prompts; the same for verdicts in any order.

    Raises:
        UserError: there are no verdicts, or one of a prompt without a tag.
    """
    tasks: dict[str, Score] = {}
    replicates: list[np.ndarray] = []
    for tag, by_prompt in _by_task(verdicts).items():
        shares = _shares(by_prompt, sorted(by_prompt))
        resampled = resampled_shares(shares, config, tag)
        num_prompts, num_images = len(shares.images), int(shares.images.sum())
        if shares.share in (0.0, 1.0):
            low, high = unanimous_interval(shares.share, num_prompts, config.coverage)
        else:
            low, high = interval(resampled, config.coverage)
        tasks[tag] = Score(shares.share, low, high, num_prompts, num_images)
        replicates.append(resampled)
    if all(score.value in (0.0, 1.0) for score in tasks.values()):
        low, high = (float(np.mean([getattr(s, side) for s in tasks.values()])) for side in ("low", "high"))
    else:
        low, high = interval(mean_of(replicates), config.coverage)
    overall = Score(
        float(np.mean([score.value for score in tasks.values()])),
        low,
        high,
        sum(score.num_prompts for score in tasks.values()),
        sum(score.num_images for score in tasks.values()),
    )
    return ScoreTable(overall, tasks)


def compare_runs(
    first: Iterable[ImageVerdict], second: Iterable[ImageVerdict], config: BootstrapConfig
) -> Comparison:
    """Paired comparison, positive where the second run is better.

    Intervals resample prompts; p-values exchange the two results of prompts.

    Raises:
        UserError: there are no verdicts, one of a prompt without a tag, or the runs judged different prompts.
    """
    runs = _by_task(first), _by_task(second)
    keys = [{(tag, key) for tag, by_prompt in run.items() for key in by_prompt} for run in runs]
    if keys[0] != keys[1]:
        only = len(keys[0] - keys[1]), len(keys[1] - keys[0])
        raise UserError(
            f"compare: runs over different prompts ({only[0]} only in the first, {only[1]} in the second)"
        )
    tasks: dict[str, Difference] = {}
    resampled, exchanged = [], []
    for tag in runs[0]:
        a, b = (_shares(run[tag], sorted(run[tag])) for run in runs)
        resampled.append(resampled_differences(a, b, config, tag))
        exchanged.append(exchanged_differences(a, b, config, tag))
        tasks[tag] = _difference(b.share - a.share, resampled[-1], exchanged[-1], config)
    value = float(np.mean([difference.value for difference in tasks.values()]))
    return Comparison(_difference(value, mean_of(resampled), mean_of(exchanged), config), tasks)


def _judge(
    prompt: Prompt,
    image: np.ndarray,
    detections: Sequence[Detection],
    color_classifier: ColorClassifier | None,
    config: VerdictConfig,
) -> ImageVerdict:
    def color_of(group: Sequence[Detection], label: str) -> list[str]:
        return (
            own_colors(group, label)
            if color_classifier is None
            else color_classifier.classify(image, group, label)
        )

    answer = verdict(prompt, detections, (image.shape[0], image.shape[1]), color_of, config)
    found = tuple(replace(detection, mask=None) for detection in detections)
    return ImageVerdict(prompt, answer.correct, answer.reason, answer.broken, found)


def _batches(images: Iterable[np.ndarray], batch_size: int) -> Iterator[np.ndarray]:
    """Batches uint8 [B, H, W, 3] of consecutive images; one ends early where the size changes."""
    for _, same_size in itertools.groupby(map(_checked, images), key=lambda image: image.shape):
        while part := list(itertools.islice(same_size, batch_size)):
            yield np.stack(part)


def _checked(image: np.ndarray) -> np.ndarray:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise UserError(f"evaluate: an image is {image.dtype} {image.shape}, allowed: uint8 [H, W, 3]")
    return image


def _by_task(verdicts: Iterable[ImageVerdict]) -> dict[str, dict[str, list[bool]]]:
    """Answers by task, in GenEval's order, and by prompt; seeds do not tell prompts apart."""
    found: dict[str, dict[str, list[bool]]] = defaultdict(lambda: defaultdict(list))
    for answer in verdicts:
        if answer.prompt.tag is None:
            raise UserError(f"prompt {answer.prompt.prompt[:80]!r} has no tag, allowed: {', '.join(TAGS)}")
        key = json.dumps(replace(answer.prompt, seed=None).to_json(), sort_keys=True)
        found[answer.prompt.tag][key].append(answer.correct)
    if not found:
        raise UserError("no verdicts, so there is nothing to score")
    return {tag: dict(found[tag]) for tag in TAGS if tag in found}


def _shares(by_prompt: dict[str, list[bool]], keys: Sequence[str]) -> Shares:
    return Shares(
        np.array([sum(by_prompt[key]) for key in keys], dtype=np.int64),
        np.array([len(by_prompt[key]) for key in keys], dtype=np.int64),
    )


def _difference(
    value: float, resampled: np.ndarray, exchanged: np.ndarray, config: BootstrapConfig
) -> Difference:
    return Difference(value, *interval(resampled, config.coverage), p_value(value, exchanged))


def _difference_to_json(difference: Difference) -> dict[str, Any]:
    return {
        "difference": difference.value,
        "interval": [difference.low, difference.high],
        "p": difference.p,
    }
