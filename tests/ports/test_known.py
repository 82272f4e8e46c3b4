from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import lightgen
from lightgen.core.prompt import COLORS
from lightgen.evals.verdict import VerdictConfig, check_detection, own_colors, verdict
from lightgen.ports.coco import GENEVAL_NAMES
from lightgen.ports.known import SIDE, compose, known_colors, known_pictures
from lightgen.ports.nano.world import COLORS as RGB

FOLDER = Path(lightgen.__file__).parent / "weights" / "known"


def test_photographs_are_small_and_each_has_its_licence():
    photos = sorted(FOLDER.glob("*.jpg"))
    assert [path.name for path in photos] == ["cat.jpg", "cup.jpg", "person.jpg"]
    lines = (FOLDER / "README.md").read_text().splitlines()
    for path in photos:
        assert path.stat().st_size <= 25_000
        assert max(Image.open(path).size) <= 320
        (row,) = [line for line in lines if f"`{path.name}`" in line]
        assert "CC0" in row or "public domain" in row


def test_the_verdict_on_what_is_there_is_what_is_said():
    pictures = known_pictures()
    for known in pictures:
        assert known.image.shape == (SIDE, SIDE, 3) and known.image.dtype == np.uint8
        for detection in known.objects:
            check_detection(detection, (SIDE, SIDE))
            assert detection.label in GENEVAL_NAMES
        answer = verdict(known.prompt, known.objects, (SIDE, SIDE), own_colors, VerdictConfig())
        assert answer.correct == known.right, (known.kind, known.prompt, answer)
        assert known.right == (known.kind == "right")
    assert {p.prompt.tag for p in pictures} == {"single_object", "two_object", "counting", "position"}
    assert len({p.prompt.tag for p in pictures if not p.right}) == 4
    counts = Counter(known.kind for known in pictures)
    assert set(counts) == {"right", "missing", "swapped", "too many", "too few", "another class", "empty"}
    assert 10 <= counts["right"] <= len(pictures) - 10


@pytest.mark.parametrize(
    ("wrong", "broken"),
    [
        ("missing", {"count"}),
        ("too few", {"count"}),
        ("another class", {"count"}),
        ("empty", {"count"}),
        ("swapped", {"position"}),
        ("too many", {"exclude"}),
    ],
)
def test_a_wrong_picture_breaks_the_rule_that_it_is_made_for(wrong, broken):
    for known in known_pictures():
        if known.kind == wrong:
            answer = verdict(known.prompt, known.objects, (SIDE, SIDE), own_colors, VerdictConfig())
            assert set(answer.broken) - {"target"} == broken, known.prompt


def test_objects_are_where_the_photographs_are_and_the_ground_is_plain():
    for known in known_pictures():
        ground = known.image[0, 0]
        if not known.objects:
            assert (known.image == ground).all()
        for detection in known.objects:
            x0, y0, x1, y1 = (round(each) for each in detection.box)
            inside = known.image[y0 + 2 : y1 - 2, x0 + 2 : x1 - 2]
            assert inside.std() > 25 and (inside != ground).any(2).mean() > 0.95
    first, second = known_pictures(), known_pictures()
    assert all(
        (a.image == b.image).all() and a.prompt == b.prompt for a, b in zip(first, second, strict=True)
    )


def test_boxes_scale_with_the_photograph():
    _, (large,) = compose([("cat", 320, (10, 20))], (0, 0, 0))
    _, (small,) = compose([("cat", 160, (10, 20))], (0, 0, 0))
    assert large.box == (10, 20, 328, 258) and small.box == (10, 20, 169, 139)


def test_there_is_a_ball_of_each_color():
    balls = known_colors()
    assert tuple(each.color for each in balls) == COLORS
    for each in balls:
        mask, (x0, y0, x1, y1) = each.ball.mask, each.ball.box
        check_detection(each.ball, each.image.shape[:2])
        assert each.ball.label == "sports ball" and mask.dtype == bool
        rows, columns = np.nonzero(mask)
        assert (x0, y0, x1, y1) == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
        assert mask.sum() == pytest.approx(np.pi / 4 * (x1 - x0) * (y1 - y0), rel=0.02)
        assert (each.image[~mask].std(0) < 12).all()
        body = each.image[mask].astype(float)
        assert body.std() > 3 and np.abs(body.mean(0) - RGB[each.color]).max() < 60
        assert nearest_color(np.percentile(body, 80, 0)) == each.color, "where it is well lit"


def nearest_color(pixel):
    return min(RGB, key=lambda name: float(np.square(pixel - RGB[name]).sum()))
