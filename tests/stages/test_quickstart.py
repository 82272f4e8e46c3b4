import json
from dataclasses import replace

import pytest

from lightgen.core.artifact import open_artifact
from lightgen.objectives.dpo import DPOConfig
from lightgen.ports.nano.emoji import EmojiTeacherConfig, ErrorKnob
from lightgen.stages import quickstart as stage
from lightgen.stages.distill import NanoPrompts
from lightgen.stages.encode import EncodeConfig
from lightgen.stages.quickstart import QuickstartConfig, quickstart
from lightgen.stages.rank import RankConfig
from lightgen.stages.tasks import DPOTask, PretrainTask, TrainConfig
from lightgen.training.config import FitConfig, RunConfig
from tests.stages.test_evaluate import CONFIG as EVALUATE
from tests.stages.toy import toy_distill, toy_student

FIT = FitConfig(num_steps=1, global_batch_size=2, precision="fp32")
RUN = RunConfig(log_every=1, save_every=2)
TEST = NanoPrompts(num=6, split="test")
CONFIG = QuickstartConfig(
    teacher=toy_distill(teacher=EmojiTeacherConfig(errors=ErrorKnob(wrong_class=0.5))),
    encode=EncodeConfig(),
    pretrain=TrainConfig(task=PretrainTask(), fit=FIT, run=RUN),
    pretrain_minutes=1e-4,
    sample=toy_distill(4, teacher=toy_student(), images_per_prompt=3),
    rank=RankConfig(),
    prefer=TrainConfig(task=DPOTask(objective=DPOConfig(), margin=1e-9), fit=FIT, run=RUN),
    prefer_minutes=1e-4,
    test=toy_distill(teacher=toy_student(), prompts=TEST),
    evaluate=replace(EVALUATE, prompts=TEST),
    expected_s={"teacher": 5},
)
STAGES = (
    "teacher",
    "teacher-latents",
    "student",
    "samples",
    "ranked",
    "ranked-latents",
    "preferred",
    "before",
    "after",
    "scores",
)


def test_the_story_is_told_and_continues_where_it_was_killed(toy, tmp_path, monkeypatch, capsys):
    out, rank = tmp_path / "quickstart", stage.rank

    def die(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(stage, "rank", die)
    with pytest.raises(KeyboardInterrupt):
        quickstart(CONFIG, out, toy.student.path, toy.detector.path)
    assert not (out / "report.html").exists()
    student = open_artifact(out / "student", "checkpoint")
    monkeypatch.setattr(stage, "rank", rank)
    capsys.readouterr()
    report = quickstart(CONFIG, out, toy.student.path, toy.detector.path)
    assert open_artifact(out / "student").digest == student.digest
    told = capsys.readouterr().err
    assert "[1/10] a teacher that makes mistakes draws scenes (about 5s left)" in told
    assert "[10/10] the benchmark compares them" in told
    assert report == out / "report.html"
    kinds = {name: open_artifact(out / name).kind for name in STAGES}
    assert [kinds[name] for name in ("teacher", "student", "ranked-latents", "scores")] == [
        "images",
        "checkpoint",
        "latents",
        "report",
    ]
    page = report.read_text()
    for heading in ("The teacher", "The student learns", "judged", "Preferences", "Before and after", "cost"):
        assert heading in page
    assert page.count("<img") == 12 + 12 + 12
    assert "no more than chance can explain" in page
    costs = [json.loads(line)["stage"] for line in (out / "journal.jsonl").read_text().splitlines()]
    assert costs[:5] == list(STAGES[:5]), "the killed stage too"
    plan = json.loads((out / "plan-student.json").read_text())
    assert plan["num_steps"] == student.counts["steps"] >= 4
    assert not (out / ".timing").exists()


def test_missing_parts_are_told_before_anything_is_made(toy, tmp_path):
    with pytest.raises(ValueError, match="checkpoint with detector"):
        quickstart(CONFIG, tmp_path / "out", toy.student.path, toy.student.path)
    assert not (tmp_path / "out").exists()
