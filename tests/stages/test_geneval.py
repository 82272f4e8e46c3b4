"""GenEval end to end: metadata of 300 and 553 prompts, an oracle's score, images of others, its own files."""

import json
from dataclasses import replace

import numpy as np
import pytest

from lightgen.core.errors import UserError
from lightgen.core.prompt import TAGS
from lightgen.data.images import ImageShards, encode_image
from lightgen.data.prompts import read_prompts, write_prompts
from lightgen.evals.statistics import BootstrapConfig
from lightgen.ports.nano.emoji import EmojiTeacherConfig, ErrorKnob
from lightgen.recipes import find
from lightgen.stages import object_judge
from lightgen.stages.detector import DetectorPlace
from lightgen.stages.distill import DistillConfig, NanoPrompts, distill, nano_prompts
from lightgen.stages.evaluate import evaluate
from lightgen.stages.inputs import open_images
from lightgen.stages.known_renders import truth_detections

# As many prompts of each task as GenEval has.
SHARES = {
    553: (80, 99, 80, 94, 100, 100),
    300: (50, 50, 50, 50, 50, 50),
}
CONFIG = replace(find("evaluate", "nano-geneval"), bootstrap=BootstrapConfig(resamples=200), pictures=12)


def metadata(num):
    """Prompts of the project's grammar, as many of each task as GenEval has."""
    return [
        prompt
        for tag, count in zip(TAGS, SHARES[num], strict=True)
        for prompt in nano_prompts(NanoPrompts(num=count, split="test", tags=(tag,)))
    ]


def renders(tmp_path, prompts, errors=None):
    write_prompts(tmp_path / "metadata.jsonl", prompts)
    config = DistillConfig(teacher=EmojiTeacherConfig(errors=errors or ErrorKnob()))
    return distill(config, tmp_path / "images", [tmp_path / "metadata.jsonl"])


class Oracle:
    """A detector that knows the renderer's records of the pictures."""

    def __init__(self, artifact):
        shards = ImageShards(artifact.path)
        self._known = {
            shards[i].image.tobytes(): truth_detections(shards.meta(i)["objects"]) for i in range(len(shards))
        }

    def detect(self, images, labels):
        return [list(self._known[image.tobytes()]) for image in images]


def believe(monkeypatch, detector):
    monkeypatch.setattr(DetectorPlace, "load", lambda _: detector)
    monkeypatch.setattr(object_judge, "self_test", lambda *_: {"right": 1.0, "wrong": 0.0})


def report_of(artifact):
    return json.loads((artifact.path / "report.json").read_text())


@pytest.mark.parametrize("num", [300, 553])
def test_boxes_of_the_renderer_score_as_they_should(tmp_path, monkeypatch, num):
    prompts = metadata(num)
    assert len(prompts) == num
    made = renders(tmp_path, prompts)
    assert read_prompts(tmp_path / "metadata.jsonl") == prompts
    believe(monkeypatch, Oracle(made))
    report = report_of(evaluate(CONFIG, tmp_path / "report", [made.path]))
    assert report["overall"] >= 0.99 and min(report["tasks"].values()) >= 0.98
    assert [report["counts"][tag]["images"] for tag in TAGS] == list(SHARES[num])


def test_wrong_pictures_score_nothing(tmp_path, monkeypatch):
    made = renders(tmp_path, metadata(300), ErrorKnob(wrong_class=1.0))
    believe(monkeypatch, Oracle(made))
    assert report_of(evaluate(CONFIG, tmp_path / "report", [made.path]))["overall"] == 0.0


def write_layout(place, prompts, images):
    """Pictures in GenEval's layout, two of each prompt."""
    for number, prompt in enumerate(prompts):
        samples = place / f"{number:05d}" / "samples"
        samples.mkdir(parents=True)
        (samples.parent / "metadata.jsonl").write_text(json.dumps(prompt.to_json()))
        for k in range(2):
            (samples / f"{k:04d}.png").write_bytes(encode_image(images[2 * number + k]))


def test_images_of_others_in_genevals_layout(tmp_path, monkeypatch):
    """They score as the same pictures do as an artifact, and results come in GenEval's format."""
    prompts = metadata(300)[::15]
    write_prompts(tmp_path / "metadata.jsonl", prompts)
    knob = EmojiTeacherConfig(errors=ErrorKnob(wrong_color=0.5, wrong_place=0.5, wrong_count=0.5))
    config = DistillConfig(teacher=knob, images_per_prompt=2)
    made = distill(config, tmp_path / "images", [tmp_path / "metadata.jsonl"])
    shards = ImageShards(made.path)
    images = [shards[i].image for i in range(len(shards))]
    write_layout(tmp_path / "layout", prompts, images)
    believe(monkeypatch, Oracle(made))
    one = evaluate(CONFIG, tmp_path / "one", [made.path])
    other = evaluate(CONFIG, tmp_path / "other", [tmp_path / "layout"])
    first, second = report_of(one), report_of(other)
    assert 0.2 < first["overall"] < 0.95
    for key in ("overall", "tasks", "intervals", "counts"):
        assert first[key] == second[key]
    lines = [json.loads(line) for line in (other.path / "results.jsonl").read_text().splitlines()]
    assert len(lines) == 40
    line = lines[0]
    assert set(line) == {"filename", "tag", "prompt", "correct", "reason", "metadata", "details"}
    assert line["filename"] == "00000/samples/0000.png"
    assert json.loads(line["metadata"]) == prompts[0].to_json()
    boxes = [box for found in json.loads(line["details"]).values() for box in found]
    assert boxes and all(len(box) == 5 and 0.3 < box[4] <= 1 for box in boxes)
    # GenEval's own summary: a mean by tag, then the mean of those
    means = [np.mean([each["correct"] for each in lines if each["tag"] == tag]) for tag in TAGS]
    assert np.mean(means) == pytest.approx(second["overall"])


def test_images_that_say_no_more_than_their_prompt(tmp_path, monkeypatch):
    prompts = metadata(300)[::30]
    made = renders(tmp_path, prompts)
    shards = ImageShards(made.path)
    folder = tmp_path / "plain"
    folder.mkdir()
    for i in range(len(shards)):
        (folder / f"{i:03d}.png").write_bytes(shards.encoded(i).data)
        (folder / f"{i:03d}.txt").write_text(prompts[i].prompt)
    believe(monkeypatch, Oracle(made))
    assert len(open_images([folder])) == 10
    known = [tmp_path / "metadata.jsonl"]
    report = report_of(evaluate(CONFIG, tmp_path / "report", [folder], known))
    assert report["overall"] >= 0.99
    few = tmp_path / "few.jsonl"
    write_prompts(few, prompts[:3])
    with pytest.raises(UserError, match="has no tag or nothing to include, allowed: .*--prompts FILE"):
        evaluate(CONFIG, tmp_path / "x", [folder], [few])
