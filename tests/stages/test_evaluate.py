import json
from dataclasses import replace

import pytest

from lightgen.core.errors import UserError
from lightgen.core.prompt import TAGS, Prompt, Requirement
from lightgen.data.images import ImageShards
from lightgen.data.prompts import write_prompts
from lightgen.evals.statistics import BootstrapConfig
from lightgen.ports.nano.emoji import EmojiTeacherConfig, ErrorKnob
from lightgen.ports.protocols import Detection
from lightgen.stages import object_judge as judging
from lightgen.stages import subjects as drawing
from lightgen.stages.detector import DetectorPlace
from lightgen.stages.distill import NanoPrompts, distill, nano_prompts
from lightgen.stages.evaluate import evaluate
from lightgen.stages.evaluate_config import EvaluateConfig
from lightgen.stages.object_judge import ObjectJudgeConfig
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
    with pytest.raises(UserError, match="self-test gives 0.00 of right pictures .* allowed: at least 0.9"):
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
