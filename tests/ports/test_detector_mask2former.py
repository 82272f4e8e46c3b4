import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional
from transformers import Mask2FormerForUniversalSegmentation

from lightgen.ports.coco import GENEVAL_NAMES
from lightgen.ports.detector import DetectorConfig, load_foreign_detector
from lightgen.ports.detector_mask2former import (
    Mask2FormerDetector,
    find_instances,
    image_logits,
    mask_box,
    resized_size,
)
from tests.ports.toy_detectors import change, pictures, save_detector

CPU = torch.device("cpu")
CAT, CUP = GENEVAL_NAMES.index("cat"), GENEVAL_NAMES.index("cup")
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


@pytest.mark.parametrize(
    ("size", "resized"),
    [
        ((512, 512), (800, 800)),
        ((1024, 1024), (800, 800)),
        ((128, 128), (800, 800)),
        ((480, 640), (800, 1067)),
        ((640, 480), (1067, 800)),
        ((427, 640), (800, 1199)),
        ((400, 1000), (533, 1333)),
        ((1333, 800), (1333, 800)),
        ((1, 5000), (1, 1333)),
    ],
)
def test_the_size_of_the_test(size, resized):
    """The shorter side 800, or the longer 1333 where that is smaller; at the image's own ratio."""
    assert resized_size(size) == resized


class Recorder:
    """Stands for a model: keeps what it is shown, and calls a cat whatever is red."""

    def __init__(self, classes=None):
        self.device, self.dtype, self.shown = CPU, torch.float32, []
        logits = torch.full((1, 2, 81), -30.0)
        logits[0, 0, CAT], logits[0, 1, 80] = 30.0, 30.0
        self.classes = logits if classes is None else classes

    def eval(self):
        return self

    def requires_grad_(self, _):
        return self

    def __call__(self, pixel_values):
        self.shown.append(pixel_values)
        red = pixel_values[:, :1] * STD[0] + MEAN[0] - (pixel_values[:, 2:] * STD[2] + MEAN[2])
        masks = functional.avg_pool2d(red, 4) - 0.5  # [B, 1, h, w]
        return self.Answer(self.classes.expand(len(pixel_values), -1, -1), masks.expand(-1, 2, -1, -1) * 20)

    class Answer:
        def __init__(self, logits, masks):
            self.class_queries_logits, self.masks_queries_logits = logits, masks


@pytest.mark.parametrize(
    ("size", "shown"),
    [
        ((512, 512), (800, 800)),
        ((480, 640), (800, 1088)),
        ((400, 1000), (544, 1344)),
        ((1200, 900), (1088, 800)),
    ],
)
def test_geometry_from_the_picture_to_the_model_and_back(size, shown):
    """A red box is found where it is, whatever is resized and padded between."""
    image = np.full((1, *size, 3), 255, np.uint8)
    image[..., :2] = 60
    x0, y0, x1, y1 = size[1] // 4, size[0] // 2, size[1] - 10, size[0] - 20
    image[0, y0:y1, x0:x1] = (255, 60, 60)
    model = Recorder()
    (found,) = Mask2FormerDetector(model, GENEVAL_NAMES, MEAN, STD, 8).detect(image, ["cat", "cup"])
    (pixels,) = model.shown
    assert pixels.shape == (1, 3, *shown)
    height, width = resized_size(size)
    assert (pixels[..., height:, :] == 0).all() and (pixels[..., width:] == 0).all()
    small = Image.fromarray(image[0]).resize((width, height), Image.Resampling.BILINEAR)
    wanted = (np.asarray(small) / 255 - MEAN) / STD
    np.testing.assert_allclose(pixels[0, :, :height, :width].permute(1, 2, 0), wanted, atol=1e-5)
    (cat,) = found
    assert cat.label == "cat" and cat.mask is not None and cat.mask.shape == size
    np.testing.assert_allclose(cat.box, (x0, y0, x1, y1), atol=3)
    assert cat.mask[y0 + 6 : y1 - 6, x0 + 6 : x1 - 6].all() and cat.mask[: y0 - 6].sum() == 0
    assert 0.9 < cat.score <= 1
    empty = Mask2FormerDetector(model, GENEVAL_NAMES, MEAN, STD, 8).detect(image[:, :60], ["cat"])
    assert empty == [[]], "a mask without a pixel is no object"


def square(side=16, first=4, last=8, value=1000.0):
    logits = torch.full((side, side), -value)
    logits[first:last, first:last] = value
    return logits


def seen(logits, size):
    def of(query):
        full = image_logits(logits[query], size, size, size)
        mask = full > 0
        return mask.numpy(), float(full[mask].sigmoid().mean()) if mask.any() else 0.0

    return of


def scores(rows):
    """Logits whose softmax is the given probabilities."""
    return torch.tensor(rows, dtype=torch.float64).clamp(min=1e-30).log().float()


def test_a_square_at_known_pixels():
    """Quarters of the input become pixels with edges half-way between centres: no pixel more or less."""
    likely = scores([[0.75, 0.125, 0.125], [0.0, 0.25, 0.75]])
    masks = torch.stack([square(), square(16, 0, 16, 0.0) + np.log(3.0)])
    found = find_instances(likely, seen(masks, (64, 64)), ("cat", "cup"), {"cat", "cup"})
    assert [d.label for d in found] == ["cat", "cup", "cup"]
    assert [d.box for d in found] == [(16, 16, 32, 32), (0, 0, 64, 64), (16, 16, 32, 32)]
    # a sure mask counts 1, one of logit log 3 counts 3/4
    assert [d.score for d in found] == pytest.approx([0.75, 0.25 * 0.75, 0.125], abs=1e-6)
    mask = found[0].mask
    assert mask.dtype == bool and mask[17:31, 17:31].all() and mask.sum() == 16 * 16 - 4  # all but corners
    only = find_instances(likely, seen(masks, (64, 64)), ("cat", "cup"), {"cup"})
    assert only == found[1:]


def test_what_is_not_handed_over():
    """Scores below .05, empty masks, and what is none of the best hundred."""
    masks = torch.stack([square(), square(value=0.0) - 5, square(16, 0, 16, 0.0) + 1e-6])
    likely = scores([[0.06, 0.04, 0.9], [0.9, 0.05, 0.05], [0.09, 0.02, 0.89]])
    found = find_instances(likely, seen(masks, (64, 64)), ("cat", "cup"), {"cat", "cup"})
    assert [(d.label, d.box) for d in found] == [("cat", (16, 16, 32, 32))]
    many = scores([[0.5, 0.3, 0.2]] * 120)
    whole = (np.ones((4, 4), bool), 1.0)
    assert len(find_instances(many, lambda _: whole, ("cat", "cup"), {"cat", "cup"})) == 100
    assert find_instances(many, lambda _: whole, ("cat", "cup"), {"cup"}) == []


def test_the_box_of_a_mask():
    mask = np.zeros((6, 8), bool)
    mask[2, 3] = True
    assert mask_box(mask) == (3, 2, 4, 3)
    mask[5, 7] = mask[0, 4] = True
    assert mask_box(mask) == (3, 0, 8, 6)


def test_padding_is_cut_off_before_masks_are_made_large():
    """The image fills the left half of what the model saw; what is right of it is nobody's."""
    logits = torch.full((8, 16), -9.0)
    logits[2:6, 2:4], logits[:, 11:] = 9.0, 9.0
    found = image_logits(logits, (32, 64), (32, 32), (64, 64))
    assert found.shape == (64, 64)
    assert mask_box((found > 0).numpy()) == (16, 16, 32, 48)
    same = torch.arange(64.0).reshape(8, 8)
    assert torch.equal(image_logits(same, (8, 8), (8, 8), (8, 8)), same)


@torch.no_grad()
def reference(model, image, edges):
    """Instances as by the steps of mmdetection, all of them at once and in another order of loops."""
    size = image.shape[:2]
    height, width = resized_size(size, edges)
    picture = Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR)
    pixels = torch.tensor(((np.asarray(picture) / 255 - MEAN) / STD).transpose(2, 0, 1)).float()[None]
    pixels = functional.pad(pixels, (0, -width % 32, 0, -height % 32))
    out = model(pixel_values=pixels)
    masks = functional.interpolate(
        out.masks_queries_logits, pixels.shape[2:], mode="bilinear", align_corners=False
    )[..., :height, :width]
    masks = functional.interpolate(masks, size, mode="bilinear", align_corners=False)[0]  # [Q, H, W]
    likely = out.class_queries_logits[0].softmax(1)
    rows = [(float(likely[q, k]), q, k) for q in range(len(likely)) for k in range(80)]
    found = []
    for probability, query, label in sorted(rows, reverse=True)[:100]:
        inside = masks[query] > 0
        share = (masks[query].sigmoid() * inside).sum() / (inside.sum() + 1e-6)
        if probability * share >= 0.05:
            found.append((GENEVAL_NAMES[label], float(probability * share), inside.numpy()))
    return sorted(found, key=lambda each: -each[1])


@pytest.mark.parametrize("size", [(60, 90), (96, 48)])
def test_a_real_model_is_read_as_mmdetection_reads_it(tmp_path, size):
    folder = save_detector("mask2former", tmp_path)
    detector = load_foreign_detector(DetectorConfig(kind="mask2former"), folder, CPU)
    assert isinstance(detector, Mask2FormerDetector)
    detector._edges = (104, 150)
    model = Mask2FormerForUniversalSegmentation.from_pretrained(folder).eval()
    images = pictures(*size)
    found = detector.detect(images, GENEVAL_NAMES)
    assert min(len(each) for each in found) > 4
    assert any(0 < d.mask.mean() < 1 for each in found for d in each)
    for image, one in zip(images, found, strict=True):
        wanted = reference(model, image, (104, 150))
        assert [d.label for d in one] == [label for label, _, _ in wanted]
        np.testing.assert_allclose([d.score for d in one], [score for _, score, _ in wanted], atol=1e-5)
        for detection, (_, _, mask) in zip(one, wanted, strict=True):
            assert (detection.mask != mask).mean() < 1e-3
            rows, columns = np.nonzero(mask)
            box = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
            np.testing.assert_allclose(detection.box, box, atol=1)


def test_the_size_in_the_processors_file_does_not_matter(tmp_path):
    """These checkpoints come with squares of 384 px, which is not what they are tested at."""
    folder = save_detector("mask2former", tmp_path)
    path = folder / "preprocessor_config.json"
    image = pictures(64, 64, 1)
    answers, shown = [], []
    for entries in (
        {},
        {"size": {"shortest_edge": 800, "longest_edge": 1333}},
        {"size": 384, "max_size": 1333, "_max_size": 1333, "do_pad": True, "reduce_labels": False},
    ):
        change(path, **entries)
        detector = load_foreign_detector(DetectorConfig(kind="mask2former"), folder, CPU)
        assert isinstance(detector, Mask2FormerDetector)
        detector.model.register_forward_pre_hook(
            lambda _, args, given: shown.append(given["pixel_values"].shape), with_kwargs=True
        )
        answers.append(detector.detect(image, GENEVAL_NAMES))
    assert answers[0] == answers[1] == answers[2] and answers[0][0]
    assert shown == [(1, 3, 800, 800)] * 3
    change(path, image_mean=[0.2, 0.2, 0.2])
    other = load_foreign_detector(DetectorConfig(kind="mask2former"), folder, CPU)
    assert other.detect(image, GENEVAL_NAMES) != answers[0], "mean and std are taken from the file"
