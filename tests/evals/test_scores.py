"""Verdicts on images."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import pytest

from lightgen.core.errors import UserError
from lightgen.core.prompt import Prompt, Requirement
from lightgen.evals.scores import ImageVerdict, evaluate_images
from lightgen.evals.verdict import VerdictConfig
from lightgen.ports.protocols import Detection


def prompt(tag: str, index: int = 0) -> Prompt:
    return Prompt(prompt=f"{tag} {index}", tag=tag, include=(Requirement(name="dog"),))


class BrightDetector:
    """Finds a dog in images brighter than 100, red ones where the brightness is even."""

    def __init__(self) -> None:
        self.batches: list[tuple[int, tuple[str, ...]]] = []

    def detect(self, images: np.ndarray, labels: Sequence[str]) -> list[list[Detection]]:
        self.batches.append((len(images), tuple(labels)))
        mask = np.ones(images.shape[1:3], dtype=bool)
        return [
            [
                Detection("dog", 0.9, (0, 0, 4, 4), mask, {"red": 1.0 - float(v % 2), "blue": float(v % 2)})
                for v in [int(image[0, 0, 0])]
                if v > 100
            ]
            for image in images
        ]


class BlueClassifier:
    """Calls everything blue."""

    def classify(self, image: np.ndarray, detections: Sequence[Detection], label: str) -> list[str]:
        assert image.shape == (8, 8, 3)
        return ["blue"] * len(detections)


def images(*values: int, side: int = 8) -> Iterator[np.ndarray]:
    return (np.full((side, side, 3), value, dtype=np.uint8) for value in values)


def test_evaluate_images() -> None:
    detector = BrightDetector()
    prompts = [prompt("single_object", i) for i in range(5)]
    answers = evaluate_images(
        prompts, images(0, 200, 50, 255, 101), detector, None, VerdictConfig(), batch_size=2
    )
    assert [a.correct for a in answers] == [False, True, False, True, True]
    assert [a.prompt for a in answers] == prompts
    assert answers[0].reason == "expected dog>=1, found 0"
    assert answers[0].broken == ("count",)
    assert detector.batches == [(2, ("dog",)), (2, ("dog",)), (1, ("dog",))]
    assert answers[1].detections == (Detection("dog", 0.9, (0, 0, 4, 4)),)
    assert answers[1].detections[0].mask is None


def test_colors_come_from_the_classifier_or_else_from_the_detector() -> None:
    red = Prompt(prompt="a red dog", tag="colors", include=(Requirement(name="dog", color="red"),))
    own = evaluate_images([red, red], images(200, 201), BrightDetector(), None, VerdictConfig())
    assert [a.correct for a in own] == [True, False]
    other = evaluate_images([red, red], images(200, 201), BrightDetector(), BlueClassifier(), VerdictConfig())
    assert [a.correct for a in other] == [False, False]


def test_images_of_different_sizes_are_not_stacked() -> None:
    detector = BrightDetector()
    mixed = [*images(200, 200), *images(200, side=16), *images(0)]
    answers = evaluate_images([prompt("colors")] * 4, mixed, detector, None, VerdictConfig())
    assert [count for count, _ in detector.batches] == [2, 1, 1]
    assert [a.correct for a in answers] == [True, True, True, False]


def test_large_images_come_in_smaller_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lightgen.evals.scores._BATCH_PX", 3 * 16 * 16)
    detector = BrightDetector()
    mixed = [*images(*[200] * 4), *images(*[200] * 7, side=16), *images(0, 0, side=64)]
    answers = evaluate_images([prompt("colors")] * 13, mixed, detector, None, VerdictConfig())
    assert [count for count, _ in detector.batches] == [4, 3, 3, 1, 1, 1]
    assert [a.correct for a in answers] == [True] * 11 + [False] * 2


def test_labels_are_handed_on() -> None:
    detector = BrightDetector()
    evaluate_images([prompt("colors")], images(1), detector, None, VerdictConfig(), labels=["cat", "dog"])
    assert detector.batches == [(1, ("cat", "dog"))]


@pytest.mark.parametrize("count", [1, 3])
def test_numbers_of_prompts_and_images_must_agree(count: int) -> None:
    with pytest.raises(UserError, match="2 prompts but"):
        evaluate_images(
            [prompt("colors")] * 2,
            images(*[9] * count),
            BrightDetector(),
            None,
            VerdictConfig(),
            batch_size=1,
        )


def test_wrong_images_and_wrong_detectors_are_refused() -> None:
    class Silent:
        def detect(self, images: np.ndarray, labels: Sequence[str]) -> list[list[Detection]]:
            return []

    with pytest.raises(UserError, match="float32"):
        evaluate_images(
            [prompt("colors")], [np.zeros((8, 8, 3), np.float32)], BrightDetector(), None, VerdictConfig()
        )
    with pytest.raises(ValueError, match="answers for 0 images, expected 1"):
        evaluate_images([prompt("colors")], images(1), Silent(), None, VerdictConfig())


def test_a_verdict_counts_for_its_task_whatever_its_seed() -> None:
    marks = [ImageVerdict(replace(prompt("colors"), seed=seed), True, "").mark() for seed in (1, 2)]
    assert marks[0] == marks[1]
    assert (marks[0].score, marks[0].parts) == (1.0, (("colors", 1.0),))
    assert marks[0].prompt != ImageVerdict(prompt("colors", 1), True, "").mark().prompt
    with pytest.raises(UserError, match="has no tag"):
        ImageVerdict(Prompt(prompt="x"), True, "").mark()
