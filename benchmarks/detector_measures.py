"""What a detector is worth, from what it found in pictures whose truth is known."""

import functools
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from lightgen.core.prompt import Prompt
from lightgen.evals.verdict import Verdict, VerdictConfig, own_colors, verdict
from lightgen.ports.nano.world import CLASSES, COLORS
from lightgen.ports.protocols import Detection
from lightgen.stages.self_test import overlap

SIDE = 128
MIN_IOU = 0.5
Z = 1.959964  # of 95 %
THRESHOLDS = tuple(round(0.05 * i, 2) for i in range(1, 20))
BINS = (0.0, 0.05, 0.2, 0.4, 0.6, 0.8, 0.9, 0.95, 0.99, 1.0)
NOTHING = "nothing"


@dataclass(frozen=True)
class Seen:
    """A picture's prompt, its objects as a perfect detector would find them, and what the detector found."""

    prompt: Prompt
    objects: Sequence[Detection]
    detections: Sequence[Detection]

    @functools.cached_property
    def truth(self) -> Verdict:
        """Verdict of GenEval's rules on the true objects."""
        return verdict(self.prompt, self.objects, (SIDE, SIDE), own_colors, VerdictConfig())

    def verdict(self, config: VerdictConfig) -> Verdict:
        """The detector's verdict."""
        return verdict(self.prompt, self.detections, (SIDE, SIDE), own_colors, config)

    def agrees(self, config: VerdictConfig) -> bool:
        """Whether detector and truth judge alike."""
        return self.verdict(config).correct == self.truth.correct


def share(hits: int, num: int) -> dict[str, Any]:
    """Share of hits with Wilson's 95 % interval. Source: Wilson 1927, doi 10.1080/01621459.1927.10502953."""
    if not num:
        return {"value": None, "low": 0.0, "high": 1.0, "hits": 0, "num": 0}
    p = hits / num
    middle = (p + Z**2 / (2 * num)) / (1 + Z**2 / num)
    half = Z * math.sqrt(p * (1 - p) / num + Z**2 / (4 * num**2)) / (1 + Z**2 / num)
    low, high = max(0.0, middle - half), min(1.0, middle + half)
    return {"value": round(p, 4), "low": round(low, 4), "high": round(high, 4), "hits": hits, "num": num}


def agreement(seen: Sequence[Seen], config: VerdictConfig) -> dict[str, Any]:
    """Share of pictures of which detector and truth judge alike, over all and by task."""
    agrees = [each.agrees(config) for each in seen]
    tags = sorted({each.prompt.tag or "rich" for each in seen})
    by_tag = {
        tag: [a for a, s in zip(agrees, seen, strict=True) if (s.prompt.tag or "rich") == tag] for tag in tags
    }
    return {
        **share(sum(agrees), len(agrees)),
        "truth_is_wrong": sum(not each.truth.correct for each in seen),
        "tasks": {tag: share(sum(found), len(found)) for tag, found in by_tag.items()},
    }


def caught(seen: Sequence[Seen], config: VerdictConfig) -> dict[str, Any]:
    """Share of wrong pictures that are judged wrong, and of those for which the same rules are named."""
    answers = [each.verdict(config) for each in seen]
    same = sum(answer.broken == each.truth.broken for answer, each in zip(answers, seen, strict=True))
    return {
        **share(sum(not answer.correct for answer in answers), len(seen)),
        "same_rules": share(same, len(seen)),
    }


def matches(seen: Seen) -> tuple[list[tuple[Detection, Detection | None, float]], list[Detection]]:
    """(Each detection, best first, with the object that its box covers and their IoU; the objects left over).

    Boxes alone are matched, by an IoU of at least .5, so that a wrong class is a confusion.
    """
    left, pairs = list(seen.objects), []
    for found in sorted(seen.detections, key=lambda d: -d.score):
        best = max(left, key=lambda each: overlap(found.box, each.box), default=None)
        iou = 0.0 if best is None else overlap(found.box, best.box)
        if best is None or iou < MIN_IOU:
            pairs.append((found, None, iou))
            continue
        left.remove(best)
        pairs.append((found, best, iou))
    return pairs, left


def confusion(seen: Iterable[Seen], threshold: float) -> dict[str, Counter[str]]:
    """Counts of what was found, at scores above the threshold, for each class of object; "nothing" too.

    Under "nothing" stand detections where no object is.
    """
    counts: dict[str, Counter[str]] = {name: Counter() for name in (*CLASSES, NOTHING)}
    for each in seen:
        sure = replace(each, detections=[d for d in each.detections if d.score > threshold])
        pairs, left = matches(sure)
        for found, real, _ in pairs:
            counts[NOTHING if real is None else real.label][found.label] += 1
        for real in left:
            counts[real.label][NOTHING] += 1
    return counts


def by_class(counts: dict[str, Counter[str]]) -> dict[str, dict[str, Any]]:
    """Recall and precision of each class that was there and found, as shares with intervals."""
    rows = {}
    for name in CLASSES:
        right = counts[name][name]
        called = sum(row[name] for row in counts.values())
        if called and counts[name].total():
            rows[name] = {"recall": share(right, counts[name].total()), "precision": share(right, called)}
    return rows


def box_quality(seen: Iterable[Seen]) -> dict[str, float]:
    """Mean and low quantiles of the IoU of matched boxes of the right class; colours named right."""
    ious, colors = [], []
    for each in seen:
        for found, real, iou in matches(each)[0]:
            if real is not None and real.label == found.label:
                ious.append(iou)
                (color,) = own_colors([real], real.label)
                if color in COLORS:
                    colors.append(own_colors([found], found.label)[0] == color)
    values = {"mean_iou": float(np.mean(ious)), "num": len(ious)}
    values |= {f"iou_quantile_{q}": float(np.quantile(ious, q)) for q in (0.01, 0.05, 0.5)}
    return {**values, "colors_right": float(np.mean(colors)), "num_colored": len(colors)}


def calibration(seen: Iterable[Seen]) -> dict[str, Any]:
    """Precision, recall and F1 of detections over thresholds, and how often scores of a bin are right."""
    scores, right, num_objects = [], [], 0
    for each in seen:
        pairs, _ = matches(each)
        num_objects += len(each.objects)
        scores += [found.score for found, _, _ in pairs]
        right += [real is not None and real.label == found.label for found, real, _ in pairs]
    score, ok = np.array(scores), np.array(right)
    curve = []
    for threshold in THRESHOLDS:
        hits, called = int(ok[score > threshold].sum()), int((score > threshold).sum())
        precision, recall = hits / max(1, called), hits / max(1, num_objects)
        f1 = 2 * precision * recall / max(1e-9, precision + recall)
        curve.append({"threshold": threshold, "precision": precision, "recall": recall, "f1": f1})
    bins, error = [], 0.0
    for low, high in zip(BINS, BINS[1:], strict=False):
        inside = (score > low) & (score <= high)
        num = int(inside.sum())
        if num:
            mean = float(score[inside].mean())
            bins.append(
                {"from": low, "to": high, "mean_score": mean, "right": share(int(ok[inside].sum()), num)}
            )
            error += num / len(score) * abs(mean - float(ok[inside].mean()))
    return {"objects": num_objects, "curve": curve, "reliability": bins, "expected_error": error}


def best_thresholds(seen: Sequence[Seen], config: VerdictConfig) -> dict[str, Any]:
    """Agreement over each threshold on the pictures that it decides, the best one, and GenEval's beside it.

    `within_noise`: GenEval's value loses no more pictures to the best one than twice the spread of those on
    which the two differ.
    """
    answers: dict[str, Any] = {}
    for name, chosen in (("threshold", False), ("counting_threshold", True)):
        decided = [each for each in seen if (each.prompt.tag == "counting") is chosen]
        agrees = {
            value: np.array([s.agrees(replace(config, **{name: value})) for s in decided])
            for value in THRESHOLDS
        }
        hits = {value: int(found.sum()) for value, found in agrees.items()}
        best = max(hits, key=lambda value: hits[value])
        own = getattr(config, name)
        won, lost = (int((agrees[a] & ~agrees[b]).sum()) for a, b in ((best, own), (own, best)))
        plateau = [value for value, count in hits.items() if count == hits[best]]
        answers[name] = {
            "agreement": {str(value): share(count, len(decided)) for value, count in hits.items()},
            "best": [min(plateau), max(plateau)],
            "own": own,
            "lost_to_best": won - lost,
            "within_noise": won - lost <= Z * math.sqrt(won + lost),
        }
    return answers
