import io
import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from lightgen.core.artifact import workspace_of
from lightgen.core.config import config_from_dict
from lightgen.core.draws import numpy_draws
from lightgen.core.errors import UserError
from lightgen.core.prompt import TAGS, Prompt, Requirement
from lightgen.data.images import ImageShards
from lightgen.data.prompts import write_prompts
from lightgen.evals.contact_sheet import fitting_thumbnails
from lightgen.evals.statistics import BootstrapConfig
from lightgen.ports.nano.emoji import EmojiTeacherConfig, ErrorKnob
from lightgen.ports.protocols import Detection
from lightgen.sampling.decode import DecodeConfig
from lightgen.stages import object_judge as judging
from lightgen.stages import subjects as drawing
from lightgen.stages.checkpoint import transformer_shape
from lightgen.stages.detector import DetectorPlace
from lightgen.stages.distill import NanoPrompts, distill, nano_prompts
from lightgen.stages.evaluate import evaluate
from lightgen.stages.evaluate_config import EvaluateConfig
from lightgen.stages.fidelity import FidelityConfig
from lightgen.stages.object_judge import ObjectJudgeConfig
from lightgen.stages.sampling_cost import sample_flops
from lightgen.stages.self_test import SelfTestConfig
from tests.stages.toy import toy_distill, toy_student, write_student

CONFIG = EvaluateConfig(
    prompts=NanoPrompts(num=6, split="test"),
    images_per_prompt=1,
    height=64,
    width=64,
    batch_size=4,
    student=toy_student(),
    bootstrap=BootstrapConfig(resamples=200),
    judge=ObjectJudgeConfig(
        self_test=SelfTestConfig(num_prompts=4, least_right=0.0, most_wrong=1.0, least_overlap=0.0)
    ),
)


def report_of(artifact):
    return json.loads((artifact.path / "report.json").read_text())


def test_checkpoints(toy, tmp_path):
    other = write_student(tmp_path / "other", seed=1)
    made = evaluate(CONFIG, tmp_path / "report", [toy.student.path, other.path], detector=toy.detector.path)
    assert sorted(made.manifest["files"]) == [
        "report.html",
        "report.json",
        "results-1.jsonl",
        "results-2.jsonl",
    ]
    assert [p["digest"] for p in made.parents] == [toy.student.digest, other.digest, toy.detector.digest]
    report = report_of(made)
    assert set(report["tasks"]) == set(TAGS)
    assert report["overall"] == pytest.approx(sum(report["tasks"].values()) / 6)
    assert report["counts"]["overall"] == {"prompts": 6, "images": 6}
    assert [s["name"] for s in report["subjects"]] == ["student", "other"]
    assert report["subjects"][0]["digest"] == toy.student.digest
    assert (report["comparisons"][0]["first"], report["comparisons"][0]["second"]) == ("student", "other")
    assert {"right", "wrong", "overlap"} <= set(report["self_test"])
    assert report["settings"]["images_per_prompt"] == 1
    images = report["subjects"][1]["images"]
    assert [image["prompt"] for image in images] == [prompt.prompt for prompt in nano_prompts(CONFIG.prompts)]
    assert sum(image["correct"] for image in images) / 6 == report["subjects"][1]["overall"]
    assert "draw student" in report["seconds"]
    page = (made.path / "report.html").read_text()
    assert page.count("<img") == 12
    assert "wrong" in page


class Truth:
    """A detector that reads the emoji teacher's records of the given directories, one after the other."""

    def __init__(self, *directories):
        shards = [ImageShards(directory) for directory in directories]
        self.objects = iter([each.meta(i)["objects"] for each in shards for i in range(len(each))])

    def detect(self, images, labels):
        return [
            [
                Detection(o["class"], 0.95, tuple(map(float, o["box"])), colors={o["color"] or "red": 1.0})
                for o in next(self.objects)
            ]
            for _ in images
        ]


def test_images_and_a_paired_comparison(tmp_path, toy, monkeypatch):
    prompts = NanoPrompts(num=12, split="test")
    right = distill(toy_distill(prompts=prompts), tmp_path / "right")
    blunder = EmojiTeacherConfig(errors=ErrorKnob(wrong_class=1))
    wrong = distill(toy_distill(prompts=prompts, teacher=blunder), tmp_path / "wrong")
    truth = Truth(wrong.path, right.path)
    monkeypatch.setattr(DetectorPlace, "load", lambda _: truth)
    monkeypatch.setattr(judging, "self_test", lambda *_: {"right": 1.0, "wrong": 0.0})
    made = evaluate(CONFIG, tmp_path / "report", [wrong.path, right.path], detector=toy.detector.path)
    report = report_of(made)
    assert report["overall"] == 0.0
    assert report["subjects"][1]["overall"] == 1.0
    assert report["comparisons"][0]["overall"]["difference"] == 1.0
    assert report["comparisons"][0]["overall"]["p"] < 0.05
    assert sum(report["subjects"][0]["broken"].values()) >= 12
    assert report["subjects"][1]["broken"] == {}


def test_images_of_other_prompts_are_not_compared(tmp_path, toy):
    pictures = [
        distill(toy_distill(prompts=NanoPrompts(num=num, split="test")), tmp_path / str(num))
        for num in (6, 7)
    ]
    made = evaluate(CONFIG, tmp_path / "report", [p.path for p in pictures], detector=toy.detector.path)
    assert report_of(made)["comparisons"] == []


def test_subjects_of_one_name_are_told_apart(tmp_path, toy):
    twin = write_student(tmp_path / "student", seed=1)
    made = evaluate(CONFIG, tmp_path / "report", [toy.student.path, twin.path], detector=toy.detector.path)
    assert [s["name"] for s in report_of(made)["subjects"]] == ["1-student", "2-student"]


def test_prompts_from_a_file(toy, tmp_path):
    prompt = Prompt(prompt="a photo of a dog", tag="single_object", include=(Requirement(name="dog"),))
    write_prompts(tmp_path / "mine.jsonl", [prompt])
    made = evaluate(
        CONFIG, tmp_path / "report", [toy.student.path], [tmp_path / "mine.jsonl"], toy.detector.path
    )
    assert set(report_of(made)["tasks"]) == {"single_object"}
    write_prompts(tmp_path / "untagged.jsonl", [Prompt(prompt="a dog")])
    with pytest.raises(UserError, match="has no tag"):
        evaluate(CONFIG, tmp_path / "x", [toy.student.path], [tmp_path / "untagged.jsonl"], toy.detector.path)


def test_a_killed_run_continues(toy, tmp_path, monkeypatch):
    drawn, make, judge = [], drawing.distill, judging.evaluate_images

    def count(*arguments):
        drawn.append(arguments)
        return make(*arguments)

    def die(*arguments, **named):
        raise KeyboardInterrupt

    monkeypatch.setattr(drawing, "distill", count)
    monkeypatch.setattr(judging, "evaluate_images", die)
    with pytest.raises(KeyboardInterrupt):
        evaluate(CONFIG, tmp_path / "report", [toy.student.path], detector=toy.detector.path)
    kept = tmp_path / ".report.partial" / "work" / "0" / "images-00000.tar"
    before = kept.stat().st_mtime_ns
    monkeypatch.setattr(
        judging, "evaluate_images", lambda *a, **n: (seen.append(kept.stat().st_mtime_ns), judge(*a, **n))[1]
    )
    seen = []
    evaluate(CONFIG, tmp_path / "report", [toy.student.path], detector=toy.detector.path)
    assert seen == [before], "the pictures were not drawn again"
    assert not (tmp_path / "report" / "work").exists()


def test_a_detector_that_sees_nothing_is_not_believed(toy, tmp_path):
    strict = replace(CONFIG, judge=ObjectJudgeConfig(self_test=SelfTestConfig(num_prompts=4)))
    with pytest.raises(UserError, match="self-test gives 0.00 of right pictures .* allowed: at least 0.95"):
        evaluate(strict, tmp_path / "report", [toy.student.path], detector=toy.detector.path)


def test_what_is_refused(toy, tmp_path):
    with pytest.raises(UserError, match="--in: got nothing"):
        evaluate(CONFIG, tmp_path / "x", [], detector=toy.detector.path)
    with pytest.raises(UserError, match="got kind 'latents', allowed: checkpoint or images"):
        evaluate(CONFIG, tmp_path / "x", [toy.latents.path], detector=toy.detector.path)
    with pytest.raises(UserError, match="holds detector, allowed: a checkpoint with transformer"):
        evaluate(CONFIG, tmp_path / "x", [toy.detector.path], detector=toy.detector.path)
    with pytest.raises(UserError, match="no such directory"):
        evaluate(CONFIG, tmp_path / "x", [tmp_path / "nothing"], detector=toy.detector.path)


def test_what_a_picture_costs(toy, tmp_path):
    images = distill(toy_distill(prompts=CONFIG.prompts), tmp_path / "images")
    report = report_of(evaluate(CONFIG, tmp_path / "report", [toy.student.path, images.path]))
    drawn, given = (subject["cost"] for subject in report["subjects"])
    shape, decode = transformer_shape(toy.student), drawn["decoding"]
    assert (decode["num_iterations"], decode["num_head_steps"]) == (3, 2)
    config = config_from_dict(DecodeConfig, decode)
    assert drawn["tflop_per_image"] == pytest.approx(sample_flops(shape, (4, 4), config, 4) / 1e12)
    assert drawn["draw_s_per_image"] > 0 and drawn["judge_s_per_image"] > 0 and drawn["memory_gb"] > 0.1
    assert "tflop_per_image" not in given and "draw_s_per_image" not in given


def test_distances_to_renders_and_to_other_images(toy, tmp_path):
    config = replace(CONFIG, fidelity=FidelityConfig(metrics=("fd", "prdc"), neighbors=2))
    report = report_of(evaluate(config, tmp_path / "report", [toy.student.path]))
    found = report["subjects"][0]["fidelity"]
    assert set(found["metrics"]) == {
        f"{m}_nano" for m in ("fd", "precision", "recall", "density", "coverage")
    }
    assert (found["images"], found["reference"]) == (6, 6)
    assert (
        "draw reference" in report["seconds"] and "Fidelity" in (tmp_path / "report/report.html").read_text()
    )
    alone = replace(config, judge=None)
    made = evaluate(alone, tmp_path / "alone", [toy.images.path], reference=toy.images.path)
    report = report_of(made)
    assert "overall" not in report and "scoring" not in report
    assert report["subjects"][0]["fidelity"]["metrics"]["fd_nano"]["value"] == pytest.approx(0, abs=1e-6)
    assert sorted(made.manifest["files"]) == ["report.html", "report.json"]
    assert len(made.parents) == 2, "the images, and the reference"
    with pytest.raises(UserError, match="--reference: got one, allowed: with a recipe"):
        evaluate(CONFIG, tmp_path / "x", [toy.images.path], reference=toy.images.path)
    with pytest.raises(UserError, match="--reference: got nothing"):
        evaluate(replace(alone, prompts=None), tmp_path / "x", [toy.images.path])
    with pytest.raises(UserError, match="got nothing to find out"):
        evaluate(replace(CONFIG, judge=None), tmp_path / "x", [toy.images.path])


def test_subject_and_reference_are_told_apart(toy, tmp_path):
    """The same two sets, and the same parents, in other roles are another report."""
    one = distill(toy_distill(prompts=CONFIG.prompts), tmp_path / "one")
    config = replace(CONFIG, judge=None, fidelity=FidelityConfig(metrics=("fd",)))
    evaluate(config, tmp_path / "report", [one.path], reference=toy.images.path)
    with pytest.raises(UserError, match="was made with config.subjects"):
        evaluate(config, tmp_path / "report", [toy.images.path], reference=one.path)
    with pytest.raises(UserError, match="was made with config.(subjects|reference)"):
        evaluate(config, tmp_path / "report", [one.path, toy.images.path])


def test_pictures_that_were_exchanged_are_another_report(toy, tmp_path):
    prompts = nano_prompts(CONFIG.prompts)[:2]
    for number, prompt in enumerate(prompts):
        samples = tmp_path / "set" / f"{number:05d}" / "samples"
        samples.mkdir(parents=True)
        (samples.parent / "metadata.jsonl").write_text(json.dumps(prompt.to_json()))
        raw = io.BytesIO()
        image = numpy_draws(0, "flat", number).integers(0, 256, (16, 16, 3), np.uint8)
        Image.fromarray(image).save(raw, "PNG", compress_level=0)
        (samples / "0000.png").write_bytes(raw.getvalue())
    paths = [tmp_path / "set" / f"{n:05d}" / "samples" / "0000.png" for n in (0, 1)]
    assert paths[0].stat().st_size == paths[1].stat().st_size
    made = evaluate(CONFIG, tmp_path / "report", [tmp_path / "set"], detector=toy.detector.path)
    again = evaluate(CONFIG, tmp_path / "report", [tmp_path / "set"], detector=toy.detector.path)
    assert again.digest == made.digest
    first, second = (path.read_bytes() for path in paths)
    paths[0].write_bytes(second)
    paths[1].write_bytes(first)
    with pytest.raises(UserError, match="was made with config.subjects"):
        evaluate(CONFIG, tmp_path / "report", [tmp_path / "set"], detector=toy.detector.path)


def test_what_is_refused_leaves_nothing_behind(toy, tmp_path):
    strict = replace(CONFIG, judge=ObjectJudgeConfig(self_test=SelfTestConfig(num_prompts=4)))
    near = replace(CONFIG, fidelity=FidelityConfig(neighbors=5000, metrics=("prdc",)))
    for config, subject, refusal in (
        (strict, toy.student.path, "its self-test gives"),
        (CONFIG, toy.images.path, "has no tag or nothing to include"),
        (near, toy.student.path, "prdc: got 6 images and 6 of the reference"),
    ):
        with pytest.raises(UserError, match=refusal):
            evaluate(config, tmp_path / "x", [subject], detector=toy.detector.path)
        assert not workspace_of(tmp_path / "x").exists()


def test_a_page_of_many_pictures_is_light():
    """Pictures of noise are the heaviest there are; they shrink until the page fits."""
    images = [numpy_draws(0, "noise", i).integers(0, 256, (128, 128, 3), np.uint8) for i in range(12)]
    found = fitting_thumbnails(lambda: images, 20_000)
    assert len(found) == 12 and sum(map(len, found)) <= 20_000
    assert fitting_thumbnails(lambda: images, 2_000) == []
    assert Image.open(io.BytesIO(fitting_thumbnails(lambda: images, 10**6)[0])).size == (128, 128)
