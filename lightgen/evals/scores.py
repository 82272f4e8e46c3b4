"""A verdict per image, by a detector and GenEval's rules."""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from lightgen.core.config import digest
from lightgen.core.errors import UserError
from lightgen.core.prompt import TAGS, Prompt
from lightgen.evals.tables import Mark
from lightgen.evals.verdict import VerdictConfig, own_colors, verdict
from lightgen.ports.protocols import ColorClassifier, Detection, Detector

_BATCH_PX = 32 * 512 * 512  # of a batch, at most: detectors take some fifty bytes a pixel


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

    def mark(self) -> Mark:
        """What the image counts for: its task; the seed does not tell prompts apart.

        Raises:
            UserError: its prompt has no tag.
        """
        if self.prompt.tag is None:
            raise UserError(f"prompt {self.prompt.prompt[:80]!r} has no tag, allowed: {', '.join(TAGS)}")
        key = digest(replace(self.prompt, seed=None).to_json())[:16]
        return Mark(key, float(self.correct), ((self.prompt.tag, float(self.correct)),))

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
        batch_size: most images per call of the detector; fewer of large ones.

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
    for (height, width, _), same in itertools.groupby(map(_checked, images), key=lambda each: each.shape):
        most = max(1, min(batch_size, _BATCH_PX // max(1, height * width)))
        while part := list(itertools.islice(same, most)):
            yield np.stack(part)


def _checked(image: np.ndarray) -> np.ndarray:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise UserError(f"evaluate: an image is {image.dtype} {image.shape}, allowed: uint8 [H, W, 3]")
    return image
