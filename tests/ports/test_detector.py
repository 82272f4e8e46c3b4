import numpy as np
import pytest
import torch
from transformers import Owlv2ForObjectDetection, RTDetrV2ForObjectDetection
from transformers.models.owlv2.image_processing_pil_owlv2 import Owlv2ImageProcessorPil
from transformers.models.rt_detr.image_processing_pil_rt_detr import RTDetrImageProcessorPil

from lightgen.core.errors import UserError
from lightgen.evals.verdict import check_detection
from lightgen.ports.coco import GENEVAL_NAMES
from lightgen.ports.detector_boxes import corners, finite, inside
from tests.ports.toy_detectors import (
    ASKED,
    KINDS,
    OWL_SIDE,
    RT_SIDE,
    assert_like,
    load,
    pictures,
    save_detector,
)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {kind: save_detector(kind, tmp_path_factory.mktemp(kind)) for kind in KINDS}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(60, 90), (96, 48)])
def test_detections_fit_the_picture_and_are_the_same_in_any_batch(folders, kind, shape):
    images, labels = pictures(*shape), ASKED[kind]
    detector = load(folders[kind], kind)
    found = detector.detect(images, labels)
    assert len(found) == 3 and min(len(each) for each in found) > 4
    assert found[0] != found[1]
    for detection in sum(found, []):
        check_detection(detection, shape)
        assert detection.score >= 0.05 and detection.label in labels
        assert (detection.mask is not None) == (kind == "mask2former")
        assert detection.box[0] < detection.box[2] and detection.box[1] < detection.box[3]
    for each in found:
        assert [d.score for d in each] == sorted((d.score for d in each), reverse=True)
    assert_like([detector.detect(images[i : i + 1], labels)[0] for i in range(3)], found)
    assert_like(load(folders[kind], kind, batch_size=2).detect(images, labels), found)
    assert load(folders[kind], kind, batch_size=1).detect(images, labels) == [
        detector.detect(images[i : i + 1], labels)[0] for i in range(3)
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_other_classes_do_not_change_the_answer(folders, kind):
    detector, images = load(folders[kind], kind), pictures()
    found = detector.detect(images, ASKED[kind])
    seen = sorted({d.label for d in sum(found, [])})
    assert len(seen) > 1
    for label in seen:
        alone = load(folders[kind], kind).detect(images, [label, label])
        assert alone == [[d for d in each if d.label == label] for each in found]
        assert any(alone)
    assert detector.detect(images, []) == [[], [], []]
    assert detector.detect(images[:0], ASKED[kind]) == []


@pytest.mark.parametrize("kind", KINDS)
def test_bf16_finds_about_as_much(folders, kind):
    images = pictures()
    found = load(folders[kind], kind, precision="bf16").detect(images, ASKED[kind])
    exact = load(folders[kind], kind).detect(images, ASKED[kind])
    for one, other in zip(found, exact, strict=True):
        assert abs(len(one) - len(other)) <= 6
        assert one[0].score == pytest.approx(other[0].score, abs=0.1)
        for detection in one:
            check_detection(detection, images.shape[1:3])


@pytest.mark.parametrize("kind", ["mask2former", "rt-detr-v2"])
def test_an_unknown_class_is_named(folders, kind):
    with pytest.raises(UserError, match=f"detector {kind}: class 'unicorn' is unknown, allowed: person, "):
        load(folders[kind], kind).detect(pictures(), ["cat", "unicorn"])


def test_a_text_that_owlv2_would_cut_is_refused(folders):
    detector = load(folders["owlv2"], "owlv2")
    for label, told in (("", "an empty name"), ("x" * 40, "of 51 tokens, allowed: a name of 32 tokens")):
        with pytest.raises(UserError, match=told):
            detector.detect(pictures(), ["cat", label])


@torch.no_grad()
def test_rt_detr_answers_as_the_librarys_own_code(folders):
    """With every class asked for, it takes the same boxes with the same scores."""
    folder, images = folders["rt-detr-v2"], pictures(60, 90)
    model = RTDetrV2ForObjectDetection.from_pretrained(folder).eval()
    processor = RTDetrImageProcessorPil.from_pretrained(folder)
    pixels = processor(list(images), return_tensors="pt")
    assert pixels["pixel_values"].shape == (3, 3, RT_SIDE, RT_SIDE)
    wanted = processor.post_process_object_detection(model(**pixels), 0.05, [(60, 90)] * 3)
    for one, other in zip(load(folder, "rt-detr-v2").detect(images, GENEVAL_NAMES), wanted, strict=True):
        assert [GENEVAL_NAMES[label] for label in other["labels"]] == [d.label for d in one]
        np.testing.assert_allclose([d.score for d in one], other["scores"], atol=1e-5)
        clipped = other["boxes"].numpy().clip(0, [90, 60, 90, 60])
        np.testing.assert_allclose([d.box for d in one], clipped, atol=1e-3)


@torch.no_grad()
@pytest.mark.parametrize("shape", [(60, 90), (96, 48)])
def test_owlv2_answers_as_the_librarys_own_code(folders, shape):
    """With one class asked for, so that no other takes its boxes."""
    folder, images = folders["owlv2"], pictures(*shape)
    model = Owlv2ForObjectDetection.from_pretrained(folder).eval()
    processor = Owlv2ImageProcessorPil.from_pretrained(folder)
    pixels = processor(list(images), return_tensors="pt")
    assert pixels["pixel_values"].shape == (3, 3, OWL_SIDE, OWL_SIDE)
    detector = load(folder, "owlv2")
    words = detector._tokenizer(["a photo of a red dog"] * 3, return_tensors="pt", padding=True)
    out = model(**words, **pixels)
    wanted = processor.post_process_object_detection(out, 0.05, [shape] * 3)
    for one, other in zip(detector.detect(images, ["red dog"]), wanted, strict=True):
        boxes = other["boxes"].numpy().clip(0, [shape[1], shape[0]] * 2)
        scores = other["scores"].numpy()
        lies = (boxes[:, 0] < boxes[:, 2]) & (boxes[:, 1] < boxes[:, 3])
        assert 0 < lies.sum() < len(lies), "some boxes lie in the padding, and are no objects"
        order = np.argsort(-scores[lies], kind="stable")
        np.testing.assert_allclose([d.score for d in one], scores[lies][order], atol=1e-6)
        np.testing.assert_allclose(sorted(d.box for d in one), sorted(boxes[lies].tolist()), atol=1e-3)


def test_boxes_in_pixels():
    boxes = torch.tensor([[0.5, 0.25, 0.5, 0.5], [1.0, 1.0, 0.5, 0.5], [0.0, 0.0, 0.0, 0.1]])
    found = corners(boxes, (200, 100))
    np.testing.assert_allclose(found, [(50, 0, 150, 50), (150, 75, 250, 125), (0, -5, 0, 5)], atol=1e-5)
    part = inside(found[1], (100, 200))
    assert part == pytest.approx((150, 75, 200, 100)) and inside(found[2], (100, 200)) is None
    assert inside((0, 120, 10, 140), (100, 200)) is None


@pytest.mark.parametrize("kind", KINDS)
def test_numbers_that_are_none_are_no_empty_answer(folders, kind):
    detector = load(folders[kind], kind)
    part = {"mask2former": "class_predictor", "owlv2": "layer_norm"}.get(kind)
    layer = detector.model.get_submodule(part) if part else detector.model.model.decoder.class_embed[-1]
    layer.bias.data[0] = torch.nan
    with pytest.raises(ValueError, match=f"{kind} answers with numbers that are not finite"):
        detector.detect(pictures(), ASKED[kind])
    with pytest.raises(ValueError, match="not finite"):
        finite("x", torch.tensor([0.0, torch.inf]))
