"""Before every score the judge is tested on known pictures, and a broken one never yields a number."""

from dataclasses import replace

import numpy as np
import pytest

from lightgen.core.errors import UserError
from lightgen.core.prompt import COLORS
from lightgen.evals.verdict import VerdictConfig
from lightgen.ports.known import known_colors, known_pictures
from lightgen.ports.protocols import Detection
from lightgen.stages.answerer import AnswererConfig, find_answerer
from lightgen.stages.answerer_test import AnswererTestConfig, answerer_test
from lightgen.stages.checkpoint import load_detector, open_detector
from lightgen.stages.known_renders import (
    WRONG_KINDS,
    mixed_wrong_renders,
    right_renders,
    wrong_renders,
)
from lightgen.stages.self_test import SelfTestConfig, overlap, self_test

pytestmark = pytest.mark.selftest
FEW = SelfTestConfig(num_prompts=48)
RULES = VerdictConfig()


class Oracle:
    """A detector that knows what is in the pictures of the self-test, and tells it through `change`."""

    def __init__(self, kind, change=lambda found, size: found):
        known = known_pictures()
        if kind == "nano":
            known = right_renders(FEW.num_prompts, FEW.seed) + mixed_wrong_renders(FEW.num_prompts, FEW.seed)
        self._known = {picture.image.tobytes(): picture.objects for picture in known}
        self._change = change

    def detect(self, images, labels):
        size = images.shape[1:3]
        return [self._change(list(self._known[image.tobytes()]), size) for image in images]


class Balls:
    """A colour classifier that knows the balls of the self-test, and tells them through `change`."""

    def __init__(self, change=lambda color: color):
        self._known = {ball.image.tobytes(): ball.color for ball in known_colors()}
        self._change = change

    def classify(self, image, detections, label):
        return [self._change(self._known[image.tobytes()])] * len(detections)


def moved(share):
    """Boxes moved to the right and down by a share of their size, as far as the picture goes."""

    def change(found, size):
        boxes = []
        for each in found:
            (x0, y0, x1, y1), (height, width) = each.box, size
            right, down = (
                min(share * (x1 - x0), width - x1 + x1 - x0 - 1),
                min(share * (y1 - y0), height - y0 - 1),
            )
            box = (x0 + right, y0 + down, min(x1 + right, width), min(y1 + down, height))
            boxes.append(replace(each, box=box))
        return boxes

    return change


def of_another_size(found, size):
    """Boxes in pixels of a picture half as large, as of a detector that forgets to scale back."""
    return [replace(each, box=tuple(v / 2 for v in each.box)) for each in found]


def everything(found, size):
    """Each class of the picture twenty times, all over it."""
    height, width = size
    names = {each.label for each in found} | {"dog", "cat", "cup", "person", "car"}
    colors = dict.fromkeys(COLORS, 0.1)
    return [Detection(name, 0.99, (0, 0, width, height), colors=colors) for name in names] * 20


BROKEN = {
    "nothing": lambda found, size: [],
    "everything": everything,
    "shifted boxes": moved(0.6),
    "another size": of_another_size,
    "unsure": lambda found, size: [replace(each, score=0.29) for each in found],
    "unsure of counts": lambda found, size: [replace(each, score=0.6) for each in found],
    "one of each": lambda found, size: list({each.label: each for each in found}.values()),
    "another class": lambda found, size: [replace(each, label="book") for each in found],
    "mirrored": lambda found, size: [
        replace(each, box=(size[1] - each.box[2], each.box[1], size[1] - each.box[0], each.box[3]))
        for each in found
    ],
    "outside": lambda found, size: [replace(each, box=(-900.0, 0.0, -800.0, 9.0)) for each in found],
    "no number": lambda found, size: [replace(each, score=float("nan")) for each in found],
}


@pytest.mark.parametrize("kind", ["nano", "mask2former"])
def test_one_that_sees_all_passes(kind):
    found = self_test(Oracle(kind), Balls() if kind != "nano" else None, RULES, FEW, kind)
    assert found["right"] == 1.0 and found["wrong"] == 0.0 and found["overlap"] == 1.0
    assert found.get("colors", 1.0) == 1.0
    assert len([name for name in found if name.startswith("wrong: ")]) >= 5


@pytest.mark.parametrize("kind", ["nano", "mask2former"])
@pytest.mark.parametrize("fault", BROKEN)
def test_a_broken_detector_gives_no_number(kind, fault):
    with pytest.raises(UserError, match=f"detector {kind}: its self-test"):
        self_test(Oracle(kind, BROKEN[fault]), None, RULES, FEW, kind)


def test_a_detector_of_colours_that_swaps_red_and_blue():
    """As one that takes BGR for RGB does."""
    swapped = {"red": "blue", "blue": "red"}

    def change(found, size):
        return [
            replace(each, colors={swapped.get(n, n): p for n, p in (each.colors or {}).items()})
            for each in found
        ]

    with pytest.raises(UserError, match="of right pictures called right; allowed: at least 0.95"):
        self_test(Oracle("nano", change), None, RULES, FEW, "nano")


def test_a_colour_classifier_that_says_one_colour():
    with pytest.raises(UserError, match=r"0.10 of colours named; allowed: at least 0.8"):
        self_test(Oracle("mask2former"), Balls(lambda color: "red"), RULES, FEW, "mask2former")


def test_the_shipped_detector_passes():
    found = self_test(load_detector(open_detector(None)), None, RULES, FEW, "nano")
    assert found["right"] >= 0.95 and found["wrong"] <= 0.05 and found["overlap"] >= 0.85


def test_an_answerer_that_says_yes_to_all():
    class Nodding:
        def answer(self, images, questions, answers):
            return [np.array([0.9, 0.1], np.float32) for _ in questions]

    class Blind:
        def answer(self, images, questions, answers):
            return [np.array([0.1, 0.9], np.float32) for _ in questions]

    few = AnswererTestConfig(num_prompts=12)
    for kind in ("nano", "model"):
        for broken, told in ((Nodding(), "no to 0.00"), (Blind(), "yes to 0.00")):
            with pytest.raises(UserError, match=f"answerer {kind}: its self-test .*{told}"):
                answerer_test(broken, few, kind)
    found = answerer_test(find_answerer(AnswererConfig()).load(), few, "nano")
    assert found["yes"] >= 0.95 and found["no"] >= 0.95


@pytest.mark.parametrize("kind", WRONG_KINDS)
def test_wrong_renders_are_wrong_by_their_own_truth(kind):
    known = wrong_renders(kind, 36, seed=3)
    assert known and not any(picture.right for picture in known)
    assert {picture.kind for picture in known} == {kind}


def test_right_renders_are_right_but_for_a_few_that_the_rules_refuse():
    known = right_renders(120, seed=3)
    assert sum(picture.right for picture in known) >= 117
    assert len(mixed_wrong_renders(24, seed=3)) == 24


def test_overlap_of_boxes():
    assert overlap((0, 0, 2, 2), (0, 0, 2, 2)) == 1.0
    assert overlap((0, 0, 2, 2), (1, 0, 3, 2)) == pytest.approx(1 / 3)
    assert overlap((0, 0, 1, 1), (1, 0, 2, 1)) == overlap((0, 0, 0, 0), (0, 0, 0, 0)) == 0.0
