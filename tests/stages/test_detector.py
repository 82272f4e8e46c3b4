import os
import pickle

import numpy as np
import pytest

from lightgen.core.errors import UserError
from lightgen.core.prompt import Prompt, Requirement
from lightgen.evals.scores import evaluate_images
from lightgen.evals.verdict import VerdictConfig
from lightgen.ports.coco import GENEVAL_NAMES
from lightgen.ports.color import ColorConfig
from lightgen.ports.detector import DetectorConfig
from lightgen.ports.nano.emoji import EmojiTeacher, EmojiTeacherConfig
from lightgen.stages.checkpoint import SHIPPED_DETECTOR
from lightgen.stages.detector import find_colors, find_detector
from tests.ports.toy_clip import save_clip
from tests.ports.toy_detectors import pictures, save_detector

KINDS = ("mask2former", "rt-detr-v2", "owlv2")


def test_nano_is_the_shipped_detector_and_a_parent():
    place = find_detector(DetectorConfig())
    assert place.artifact is not None and place.artifact.path == SHIPPED_DETECTOR and place.folder is None
    assert list(place.identity()) == ["nano", "detector"], "the reading and the weights"
    assert find_detector(DetectorConfig(), SHIPPED_DETECTOR).identity() == place.identity()
    assert find_detector(DetectorConfig(model=str(SHIPPED_DETECTOR))).identity() == place.identity()
    images = EmojiTeacher(EmojiTeacherConfig()).generate(["a photo of a cat"], [0], 128, 128)
    assert [d.label for d in place.load().detect(images, ["cat", "dog"])[0]] == ["cat"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_detector_is_its_files_wherever_they_lie(tmp_path, kind):
    folders = [save_detector(kind, tmp_path / name) for name in "ab"]
    place, other = (find_detector(DetectorConfig(kind=kind, model=str(folder))) for folder in folders)
    assert place.artifact is None and place.folder == folders[0]
    assert place.identity() == other.identity()
    assert {"model.safetensors", "config.json", "preprocessor_config.json"} <= set(place.identity())
    assert find_detector(DetectorConfig(kind=kind, model="no/where"), folders[1]).folder == folders[1]
    path = folders[1] / "preprocessor_config.json"
    path.write_text(path.read_text() + "\n")
    assert place.identity() != other.identity()


def test_a_place_travels_to_a_worker_that_stands_elsewhere(tmp_path, monkeypatch):
    save_detector("owlv2", tmp_path / "here" / "model")
    save_clip(tmp_path / "here" / "clip")
    os.symlink(SHIPPED_DETECTOR, tmp_path / "here" / "finder")
    monkeypatch.chdir(tmp_path / "here")
    places = [
        find_detector(DetectorConfig(kind="owlv2"), "model"),
        find_detector(DetectorConfig(model="nano")),
        find_detector(DetectorConfig(), "finder"),
        find_colors(ColorConfig(model="clip")),
    ]
    sent, identities = [pickle.dumps(place) for place in places], [place.identity() for place in places]
    monkeypatch.chdir(tmp_path)
    arrived = [pickle.loads(data) for data in sent]
    assert arrived == places and [place.identity() for place in arrived] == identities
    found = arrived[0].load().detect(pictures(), ["cat"])
    assert len(found) == 3 and found[0]
    assert arrived[2].load().detect(np.zeros((1, 128, 128, 3), np.uint8), ["cat"]) is not None


@pytest.mark.parametrize("kind", KINDS)
def test_pictures_are_judged_without_anything_else(tmp_path, kind):
    """What detectors and the judge of colours hand over is what a verdict takes."""
    detector = find_detector(DetectorConfig(kind=kind), save_detector(kind, tmp_path / "detector")).load()
    images = [*pictures(60, 90, 2), *pictures(64, 64, 1)]
    known = "cat" if kind == "owlv2" else detector.detect(images[2][None], GENEVAL_NAMES)[0][0].label
    asked = Requirement(name=known, color="red")
    prompt = Prompt(prompt="a red one", tag="colors", include=(asked,))
    colors = find_colors(ColorConfig(model=str(save_clip(tmp_path / "clip")))).load()
    found = evaluate_images([prompt] * 3, images, detector, colors, VerdictConfig(threshold=0.05))
    assert len(found) == 3 and any(each.detections for each in found)
    assert {rule for each in found for rule in each.broken} <= {"color", "count"}


def test_colors_are_their_files(tmp_path):
    folders = [save_clip(tmp_path / name) for name in "ab"]
    place, other = (find_colors(ColorConfig(model=str(folder))) for folder in folders)
    assert place.identity() == other.identity() and "model.safetensors" in place.identity()
    assert place.folder == folders[0]


def test_what_is_not_here_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "none"))
    names = {
        "mask2former": "facebook/mask2former-swin-small-coco-instance",
        "rt-detr-v2": "PekingU/rtdetr_v2_r50vd",
        "owlv2": "google/owlv2-base-patch16-ensemble",
    }
    for kind, name in names.items():
        with pytest.raises(UserError, match=f"hf download {name}"):
            find_detector(DetectorConfig(kind=kind))
    with pytest.raises(UserError, match="hf download openai/clip-vit-large-patch14"):
        find_colors(ColorConfig())
    with pytest.raises(UserError, match="no such file or folder"):
        find_detector(DetectorConfig(kind="owlv2"), tmp_path / "x")
    with pytest.raises(UserError, match="no model.safetensors"):
        find_detector(DetectorConfig(kind="owlv2"), tmp_path)
    with pytest.raises(UserError, match="no model.safetensors"):
        find_colors(ColorConfig(model=str(tmp_path)))
    with pytest.raises(UserError, match=str(tmp_path)):
        find_detector(DetectorConfig(), tmp_path)
    with pytest.raises(UserError, match="--detector.batch-size: got 0"):
        find_detector(DetectorConfig(batch_size=0))
    with pytest.raises(UserError, match="--colors.batch-size: got -1"):
        find_colors(ColorConfig(batch_size=-1))
