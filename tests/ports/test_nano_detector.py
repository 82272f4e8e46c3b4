"""The shipped nano detector against the renderer's truth, and what it reads from maps made by hand."""

import numpy as np
import pytest
import torch
from torch import nn

from lightgen.core.errors import UserError
from lightgen.evals.scores import evaluate_images
from lightgen.evals.verdict import VerdictConfig
from lightgen.ports.nano.backdrop import draw_backdrop
from lightgen.ports.nano.detector import NanoDetector
from lightgen.ports.nano.emoji import EmojiTeacher
from lightgen.ports.nano.sprites import SpriteCache
from lightgen.ports.nano.world import CLASSES, COLORS
from lightgen.stages.checkpoint import NANO, load_detector, load_parts, open_checkpoint, open_detector
from lightgen.stages.known_renders import WRONG_KINDS, right_renders, wrong_renders
from lightgen.stages.pixels import to_uint8

SEED = 11
RARE = ("one_too_many", "swapped_sides", "swapped_colors", "wrong_count", "wrong_place")
SURE, NEVER = 12.0, -12.0


@pytest.fixture(scope="module")
def detector():
    return load_detector(open_detector(None))


def agreement(detector, pictures, change=lambda images: images):
    """Share of pictures of which detector and truth judge alike."""
    agrees = 0
    for start in range(0, len(pictures), 32):
        part = pictures[start : start + 32]
        images = change(np.stack([each.image for each in part]))
        found = evaluate_images([p.prompt for p in part], images, detector, None, VerdictConfig(), CLASSES)
        agrees += sum(each.correct == p.right for each, p in zip(found, part, strict=True))
    return agrees / len(pictures)


class Maps(nn.Module):
    """A network that answers maps made by hand, whatever it is shown."""

    def __init__(self, centers, label="cat", box=0.5):
        super().__init__()
        self.maps = {
            "center": torch.full((1, 1, 16, 16), NEVER),
            "box": torch.full((1, 4, 16, 16), box),
            "color": torch.zeros(1, len(COLORS), 16, 16),
            "label": torch.zeros(1, len(CLASSES), 16, 16),
        }
        self.maps["label"][:, CLASSES.index(label)] = SURE
        for (row, column), probability in centers.items():
            self.maps["center"][0, 0, row, column] = float(torch.tensor(probability).logit(1e-6))

    def forward(self, pixels):
        return self.maps


def read(centers, **maps):
    blank = np.zeros((1, 128, 128, 3), np.uint8)
    return NanoDetector(Maps(centers, **maps)).detect(blank, CLASSES)[0]


def test_clean_renders_are_judged_as_the_truth_is(detector):
    assert agreement(detector, right_renders(240, SEED)) >= 0.98
    assert agreement(detector, right_renders(60, SEED, "train")) >= 0.96


@pytest.mark.parametrize("kind", WRONG_KINDS)
def test_each_kind_of_error_is_caught(detector, kind):
    pictures = wrong_renders(kind, 180, SEED)[:30]
    assert len(pictures) == 30 and not any(each.right for each in pictures)
    assert agreement(detector, pictures) >= 0.95


def test_a_centre_on_a_border_is_one_sure_object():
    for cells in ([(5, 5)], [(5, 5), (5, 6)], [(5, 5), (6, 5)], [(5, 5), (5, 6), (6, 5), (6, 6)]):
        found = read(dict.fromkeys(cells, 1 / len(cells)))
        assert len(found) == 1 and found[0].score > 0.9


def test_neighbours_that_are_both_sure_are_one_object():
    assert len(read({(5, 5): 1.0, (5, 6): 1.0})) == 1
    assert len(read({(0, 0): 1.0, (1, 1): 1.0})) == 1


def test_centres_apart_are_objects_each():
    found = read({(5, 5): 1.0, (5, 8): 1.0, (12, 5): 0.9})
    assert len(found) == 3 and all(each.score > 0.9 for each in found)


def test_scores_rise_with_the_evidence_and_stay_in_range():
    scores = [
        found[0].score if (found := read({(5, 5): p})) else 0.0 for p in (0.01, 0.1, 0.3, 0.5, 0.7, 1.0)
    ]
    assert scores == sorted(scores) and 0 <= scores[0] < 0.3 and 0.9 < scores[-1] <= 1
    assert read({}) == []


def test_boxes_stay_inside_the_picture():
    for cell in ((0, 0), (0, 15), (15, 0), (15, 15)):
        for box in (-1.0, 0.0, 0.5, 9.0):
            (found,) = read({cell: 1.0}, box=box)
            x0, y0, x1, y1 = found.box
            assert 0 <= x0 <= x1 <= 128 and 0 <= y0 <= y1 <= 128


def test_only_the_wanted_classes_come_back_and_unknown_ones_are_refused():
    blank = np.zeros((1, 128, 128, 3), np.uint8)
    maps = NanoDetector(Maps({(5, 5): 1.0}))
    assert maps.detect(blank, ["dog"]) == [[]]
    assert [each.label for each in maps.detect(blank, ["dog", "cat"])[0]] == ["cat"]
    with pytest.raises(UserError, match="unicorn"):
        maps.detect(blank, ["unicorn"])


@pytest.mark.parametrize(("x", "y"), [(0, 0), (88, 0), (0, 88), (88, 88), (44, 0), (0, 44)])
def test_objects_at_the_edges_are_found(detector, x, y):
    name, random = "apple", np.random.default_rng(0)
    picture = draw_backdrop(None, 128, 128, 0.0, [(200.0, 30.0, 30.0)], random)
    sprite = SpriteCache().sprite(name, None, 40)
    height, width = sprite.mask.shape
    window = picture[y : y + height, x : x + width]
    window[...] = sprite.rgb + window * sprite.clear
    found = [each for each in detector.detect(picture[None], CLASSES)[0] if each.score > 0.9]
    assert [each.label for each in found] == [name]
    np.testing.assert_allclose(found[0].box, (x, y, x + width, y + height), atol=6)


@pytest.mark.parametrize("side", [96, 192, 256])
def test_pictures_of_other_sizes_are_looked_at_too(detector, side):
    prompts = ["a photo of two cats", "a photo of a red car left of a dog", "a photo of a blue chair"]
    drawn = [EmojiTeacher().draw(p, i, side, side) for i, p in enumerate(prompts)]
    for answer, picture in zip(
        detector.detect(np.stack([d.image for d in drawn]), CLASSES), drawn, strict=True
    ):
        sure = sorted((d for d in answer if d.score > 0.9), key=lambda d: d.box)
        assert [d.label for d in sure] == [each["class"] for each in sorted(picture.objects, key=box_of)]
        for found, each in zip(sure, sorted(picture.objects, key=box_of), strict=True):
            np.testing.assert_allclose(found.box, each["box"], atol=side / 12)


def box_of(record):
    return record["box"]


def test_a_picture_gets_the_same_answer_alone_and_in_a_batch(detector):
    images = np.stack([each.image for each in right_renders(6, SEED)])
    for image, together in zip(images, detector.detect(images, CLASSES), strict=True):
        (alone,) = detector.detect(image[None], CLASSES)
        assert [each.label for each in alone] == [each.label for each in together]
        for one, other in zip(alone, together, strict=True):
            np.testing.assert_allclose((*one.box, one.score), (*other.box, other.score), atol=1e-2)


def test_empty_pictures_hold_nothing(detector):
    random = np.random.default_rng(3)
    names = (None, "grass", "beach", "snow", "stars", "room")
    images = np.stack(
        [draw_backdrop(name, 128, 128, 0.5, [(0.0, 0.0, 0.0)], random) for name in names]
    ).astype(np.uint8)
    assert all(each.score < 0.3 for answer in detector.detect(images, CLASSES) for each in answer)


@pytest.mark.slow
def test_verdicts_on_many_renders(detector):
    for split in ("test", "train"):
        assert agreement(detector, right_renders(1500, SEED, split)) >= 0.99


@pytest.mark.slow
def test_verdicts_on_many_round_trips(detector):
    autoencoder = load_parts(open_checkpoint(NANO).path).autoencoder

    @torch.inference_mode()
    def round_trip(images):
        pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float().div(127.5).sub(1)
        return to_uint8(autoencoder.decode(autoencoder.encode(pixels)[0]))

    assert agreement(detector, right_renders(1200, SEED), round_trip) >= 0.97


@pytest.mark.slow
@pytest.mark.parametrize("kind", WRONG_KINDS)
def test_each_kind_of_error_is_caught_in_many_renders(detector, kind):
    # a sixth of the prompts has room for an error that only one task can have
    pictures = wrong_renders(kind, 6000 if kind in RARE else 3000, SEED)[:1000]
    assert len(pictures) == 1000
    assert agreement(detector, pictures) >= 0.98
