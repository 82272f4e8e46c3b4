"""The detection objective against maps that are right, and against maps that are wrong in one thing."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from lightgen.core.draws import numpy_draws
from lightgen.objectives.detection import DetectionConfig, DetectionObjective

CLASSES, COLORS = ("dog", "cat", "car"), ("red", "blue")
SURE = 30.0
# Cells near a centre: the cat's lies in a corner and has four, the others nine; the dog has no colour.
CELLS, TINTED_CELLS = 4 + 9 + 9, 4 + 9
OBJECTS = [
    [
        {"class": "cat", "color": "blue", "box": (1, 2, 13, 10)},
        {"class": "dog", "color": None, "box": (40, 30, 64, 60)},
    ],
    [{"class": "car", "color": "red", "box": (20, 20, 36, 40)}],
]


def picture(sample):
    return torch.from_numpy(numpy_draws(0, "test", sample).integers(0, 256, (3, 64, 64), dtype=np.uint8))


@pytest.fixture
def batch():
    return {"pixels": torch.stack([picture(4), picture(9)]), "objects": OBJECTS, "ids": [4, 9]}


class Oracle(nn.Module):
    """Network that knows the objects: sure of every cell within one of an object's centre."""

    def __init__(self, objects, **wrong):
        super().__init__()
        self.objects, self.wrong = objects, wrong

    def forward(self, pixels):
        self.pixels = pixels
        size = len(pixels)
        maps = {"center": torch.full((size, 1, 8, 8), -SURE), "box": torch.zeros(size, 4, 8, 8)}
        maps |= {"label": torch.zeros(size, 3, 8, 8), "color": torch.zeros(size, 2, 8, 8)}
        for image, records in enumerate(self.objects):
            for record in records:
                x0, y0, x1, y1 = record["box"]
                row, column = int((y0 + y1) / 16), int((x0 + x1) / 16)
                maps["center"][image, 0, row, column] = SURE
                for r in range(max(0, row - 1), min(8, row + 2)):
                    for c in range(max(0, column - 1), min(8, column + 2)):
                        x, y = 8 * c + 4, 8 * r + 4
                        maps["box"][image, :, r, c] = torch.tensor([x - x0, y - y0, x1 - x, y1 - y]) / 32
                        maps["label"][image, CLASSES.index(record["class"]), r, c] = SURE
                        if record["color"]:
                            maps["color"][image, COLORS.index(record["color"]), r, c] = SURE
        for name, change in self.wrong.items():
            maps[name] = change(maps[name])
        return maps


def run(learner, batch, step=0, **settings):
    config = DetectionConfig(classes=CLASSES, colors=COLORS, **{"soften": 0.0, "scramble": 0.0, **settings})
    loss, shown = DetectionObjective(config)(learner, batch, step)
    return loss.item(), shown


def test_an_oracle_has_no_loss(batch):
    oracle = Oracle(OBJECTS)
    loss, shown = run(oracle, batch)
    assert loss < 1e-6 and shown["wrong_labels"] == 0
    torch.testing.assert_close(oracle.pixels, batch["pixels"].float() / 127.5 - 1)


def test_each_error_counts_as_much_as_it_should(batch):
    share = CELLS / (9 * len(OBJECTS))
    loss, shown = run(Oracle(OBJECTS, box=lambda box: box + 0.25), batch)
    assert math.isclose(loss, 0.5 * share, rel_tol=1e-4) and math.isclose(shown["box"], loss, rel_tol=1e-4)
    loss, shown = run(Oracle(OBJECTS, label=lambda label: 0 * label), batch)
    assert math.isclose(loss, math.log(3) * share, rel_tol=1e-4)
    assert math.isclose(shown["label"], loss, rel_tol=1e-4)
    loss, shown = run(Oracle(OBJECTS, color=lambda color: 0 * color), batch)
    assert math.isclose(loss, math.log(2) * TINTED_CELLS / (9 * len(OBJECTS)), rel_tol=1e-4)
    assert math.isclose(shown["color"], loss, rel_tol=1e-4)
    loss, shown = run(Oracle(OBJECTS, center=lambda center: 0 * center), batch)
    assert math.isclose(loss, 64 * math.log(2), rel_tol=1e-4)  # per image, over its 64 cells
    wrong = run(Oracle(OBJECTS, label=lambda label: label.roll(1, dims=1)), batch)
    assert math.isclose(wrong[1]["wrong_labels"], share, rel_tol=1e-6)
    assert math.isclose(wrong[0], SURE * share, rel_tol=1e-4)


def test_pictures_without_objects_or_colours_have_a_finite_loss(batch):
    empty = {**batch, "objects": [[], []]}
    assert math.isfinite(run(Oracle([[], []]), empty)[0])
    plain = [[{**each, "color": None} for each in records] for records in OBJECTS]
    assert run(Oracle(plain), {**batch, "objects": plain})[0] < 1e-6


def test_the_loss_of_a_batch_is_the_mean_over_its_images(batch):
    def flatten(label):
        return 0 * label

    whole = run(Oracle(OBJECTS, label=flatten), batch)[0]
    parts = [
        run(Oracle(OBJECTS[i : i + 1], label=flatten), {n: v[i : i + 1] for n, v in batch.items()})[0]
        for i in range(2)
    ]
    assert math.isclose(whole, sum(parts) / 2, rel_tol=1e-5)


def test_an_object_without_a_colour_is_not_asked_for_one(batch):
    def repaint(color):
        color[0, :, 4:7, 5:8] = torch.tensor([-SURE, SURE]).view(2, 1, 1)  # where the dog is
        return color

    assert run(Oracle(OBJECTS, color=repaint), batch)[0] < 1e-6


def test_degrading_hangs_on_step_and_sample_alone(batch):
    both, alone, later = Oracle(OBJECTS), Oracle(OBJECTS[:1]), Oracle(OBJECTS)
    run(both, batch, soften=1.0)
    run(alone, {name: value[:1] for name, value in batch.items()}, soften=1.0)
    run(later, batch, step=1, soften=1.0)
    assert torch.equal(both.pixels[:1], alone.pixels)
    assert not torch.equal(both.pixels, later.pixels)
    clean = batch["pixels"].float() / 127.5 - 1
    assert both.pixels.shape == clean.shape
    assert ((both.pixels - clean).abs().mean(dim=(1, 2, 3)) > 0.01).all()


def test_a_scrambled_object_counts_as_none_and_its_surroundings_stay(batch):
    objects = [
        [
            {"class": "cat", "color": "blue", "box": (1, 2, 13, 11)},
            {"class": "dog", "color": "red", "box": (40, 30, 64, 60)},
        ],
        [
            {"class": "car", "color": "red", "box": (20, 20, 36, 40)},
            {"class": "car", "color": "blue", "box": (48, 0, 64, 9)},
        ],
    ]
    clean, scrambled = batch["pixels"].float() / 127.5 - 1, set()
    for step in range(12):
        oracle = Oracle(objects)
        loss, _ = run(oracle, {**batch, "objects": objects}, step=step, scramble=1.0)
        # in each picture the oracle still points at one object that is no longer there
        assert math.isclose(loss, SURE, rel_tol=1e-3)
        changed = (oracle.pixels[0] != clean[0]).any(dim=0)
        for index, record in enumerate(objects[0]):
            x0, y0, x1, y1 = record["box"]
            if changed[y0:y1, x0:x1].any():
                scrambled.add(index)
                changed[y0:y1, x0:x1] = False
                inside, before = oracle.pixels[0, :, y0:y1, x0:x1], clean[0, :, y0:y1, x0:x1]
                assert torch.equal(inside.flatten().sort().values, before.flatten().sort().values)
        assert not changed.any()
    assert scrambled == {0, 1}


class Recorder(nn.Module):
    """Network whose centre logits are free numbers."""

    def __init__(self):
        super().__init__()
        self.center = nn.Parameter(torch.zeros(1, 1, 8, 8))

    def forward(self, pixels):
        size = len(pixels)
        maps = {"box": 4, "color": 2, "label": 3}
        return {name: torch.zeros(size, width, 8, 8) for name, width in maps.items()} | {
            "center": self.center.expand(size, 1, 8, 8)
        }


@pytest.mark.parametrize(
    ("box", "cells"),
    [
        ((20, 20, 36, 36), {(3, 3): 1.0}),  # in the middle of a cell
        ((16, 20, 32, 36), {(3, 2): 0.5, (3, 3): 0.5}),  # on a border
        ((16, 16, 32, 32), {(2, 2): 0.25, (2, 3): 0.25, (3, 2): 0.25, (3, 3): 0.25}),  # on a corner
        ((18, 20, 34, 36), {(3, 2): 0.25, (3, 3): 0.75}),
        ((0, 0, 4, 4), {(0, 0): 1.0}),  # nearer to the edge than any cell's middle
    ],
)
def test_a_spread_centre_belongs_to_the_cells_around_it(batch, box, cells):
    record = {"class": "cat", "color": None, "box": box}
    one = {"pixels": batch["pixels"][:1], "objects": [[record]], "ids": [4]}
    learner = Recorder()
    config = DetectionConfig(classes=CLASSES, colors=COLORS, soften=0.0, scramble=0.0, spread=True)
    loss, _ = DetectionObjective(config)(learner, one, 0)
    loss.backward()
    # the gradient of the binary error is the sigmoid, here a half, less the target
    target = 0.5 - learner.center.grad[0, 0]
    expected = torch.zeros(8, 8)
    for cell, share in cells.items():
        expected[cell] = share
    torch.testing.assert_close(target, expected, atol=1e-6, rtol=0)


def test_crowding_adds_objects_and_nothing_else_changes(batch):
    quiet, crowded = Oracle(OBJECTS), Oracle(OBJECTS)
    run(quiet, batch, soften=1.0, scramble=0.5)
    loss, _ = run(crowded, batch, crowd=1.0)
    assert loss > 1.0, "the oracle knows nothing of the copies"
    assert not torch.equal(crowded.pixels, batch["pixels"].float() / 127.5 - 1)
    same = Oracle(OBJECTS)
    run(same, batch, soften=1.0, scramble=0.5, crowd=0.0)
    assert torch.equal(same.pixels, quiet.pixels)
