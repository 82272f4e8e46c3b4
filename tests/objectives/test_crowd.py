"""Crowds: what is added, where, and what stays."""

import numpy as np
import pytest
import torch

from lightgen.core.draws import numpy_draws
from lightgen.objectives.crowd import crowd

BOX = [8, 10, 48, 40]


def disc():
    """Mask bool [128, 128] of an ellipse that fills the box."""
    rows, columns = np.mgrid[:128, :128] + 0.5
    return ((columns - 28) / 20) ** 2 + ((rows - 25) / 15) ** 2 <= 1


@pytest.fixture
def picture():
    image = torch.zeros(3, 128, 128)
    image[:, torch.from_numpy(disc())] = 1.0
    return image, [{"class": "cat", "color": "red", "box": BOX, "mask": disc()}]


def crowds(image, records, num=40):
    return [crowd(image, records, numpy_draws(0, "test", i)) for i in range(num)]


def test_copies_are_of_the_same_kind_smaller_and_inside(picture):
    sizes = set()
    for image, records in crowds(*picture):
        assert image.shape == (3, 128, 128) and records[0] is picture[1][0]
        sizes.add(len(records))
        for record in records[1:]:
            x0, y0, x1, y1 = record["box"]
            assert (record["class"], record["color"]) == ("cat", "red")
            assert 0 < x0 < x1 < 128 and 0 < y0 < y1 < 128
            assert 24 <= max(x1 - x0, y1 - y0) <= 40
            assert abs((x1 - x0) / (y1 - y0) - 40 / 30) < 0.15
            # without what surrounds the object in its own box
            assert image[:, y0:y1, x0:x1].mean() > 0.6
    assert sizes == {2, 3, 4, 5}


def test_no_box_covers_much_of_another_and_some_overlap(picture):
    most = 0.0
    for _, records in crowds(*picture):
        boxes = [record["box"] for record in records]
        for i, a in enumerate(boxes):
            for b in boxes[:i]:
                across, down = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
                smaller = min((c[2] - c[0]) * (c[3] - c[1]) for c in (a, b))
                most = max(most, max(0, across) * max(0, down) / smaller)
    assert 0.05 < most <= 0.25


def test_the_picture_changes_only_where_copies_are(picture):
    before, records = picture
    for image, found in crowds(before, records, 10):
        changed = (image != before).any(dim=0)
        for record in found[1:]:
            x0, y0, x1, y1 = record["box"]
            changed[y0:y1, x0:x1] = False
        assert not changed.any()
    assert len(records) == 1 and before.sum() == 3 * disc().sum()


def test_without_a_mask_the_whole_box_is_copied():
    image = torch.rand(3, 128, 128, generator=torch.Generator().manual_seed(0))
    changed, records = crowd(
        image, [{"class": "cat", "color": None, "box": [0, 0, 30, 30]}], numpy_draws(0, "b")
    )
    assert len(records) > 1 and not torch.equal(changed, image)


def test_a_full_picture_stays_as_it_is():
    image = torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(0))
    record = {"class": "cat", "color": None, "box": [0, 0, 64, 64]}
    for seed in range(8):
        changed, records = crowd(image, [record], numpy_draws(seed, "full"))
        assert records == [record] and torch.equal(changed, image)
