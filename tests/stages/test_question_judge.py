"""Benchmarks by questions, end to end at nano scale: Soft-TIFA and DPG-Bench, by files and built in."""

import csv
import json
from dataclasses import replace

import numpy as np
import pytest

from lightgen.core.errors import UserError
from lightgen.data.question_files import write_geneval2
from lightgen.evals.statistics import BootstrapConfig
from lightgen.ports.nano.emoji import EmojiTeacherConfig, ErrorKnob
from lightgen.ports.nano.questions import nano_question_prompts
from lightgen.recipes import find
from lightgen.stages.answerer_test import AnswererTestConfig
from lightgen.stages.distill import DistillConfig, distill
from lightgen.stages.evaluate import evaluate
from lightgen.stages.question_judge import NanoQuestions, QuestionJudgeConfig
from tests.stages.toy import toy_student

CONFIG = replace(
    find("evaluate", "nano-geneval2"),
    prompts=NanoQuestions(num=16),
    images_per_prompt=1,
    bootstrap=BootstrapConfig(resamples=200),
    judge=QuestionJudgeConfig(self_test=AnswererTestConfig(num_prompts=6)),
)
KNOWN = nano_question_prompts(16, 0)


def renders(tmp_path, name="images", errors=None):
    prompts = tmp_path / f"{name}.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": each.prompt}) + "\n" for each in KNOWN))
    config = DistillConfig(teacher=EmojiTeacherConfig(errors=errors or ErrorKnob()))
    return distill(config, tmp_path / name, [prompts])


def report_of(artifact):
    return json.loads((artifact.path / "report.json").read_text())


def test_right_and_wrong_renders(tmp_path):
    right, wrong = renders(tmp_path), renders(tmp_path, "wrong", ErrorKnob(wrong_color=1, wrong_class=1))
    made = evaluate(CONFIG, tmp_path / "report", [wrong.path, right.path])
    report = report_of(made)
    assert report["scoring"]["name"] == "nano-GenEval2" and report["scoring"]["overall"] == "images"
    bad, good = report["subjects"]
    assert good["overall"] >= 0.9 and bad["overall"] < 0.3
    assert list(good["tasks"])[:4] == ["object", "attribute", "count", "position"]
    assert good["tasks"]["all atoms (arithmetic mean)"] >= good["overall"]
    assert {"3 atoms", "10 atoms"} <= set(good["tasks"])
    assert report["comparisons"][0]["overall"]["difference"] > 0.5
    image = good["images"][0]
    line = json.loads((made.path / "results-2.jsonl").read_text().splitlines()[0])
    assert line["prompt"] == image["prompt"] == KNOWN[0].prompt
    assert np.exp(np.mean(np.log(line["scores"]))) == pytest.approx(line["soft_tifa_gm"])
    assert np.mean(line["scores"]) == pytest.approx(line["soft_tifa_am"])
    assert image["score"] == pytest.approx(line["soft_tifa_gm"])
    page = (made.path / "report.html").read_text()
    assert "A nano score is no score of GenEval 2" in page and "Won and lost" in page


def test_a_checkpoint_draws_the_prompts_of_a_file(toy, tmp_path):
    write_geneval2(tmp_path / "geneval2_data.jsonl", KNOWN[:3])
    small = replace(CONFIG, student=toy_student(), height=64, width=64, prompts=None)
    made = evaluate(small, tmp_path / "report", [toy.student.path], [tmp_path / "geneval2_data.jsonl"])
    report = report_of(made)
    assert [image["prompt"] for image in report["subjects"][0]["images"]] == [p.prompt for p in KNOWN[:3]]
    assert report["counts"]["overall"] == {"prompts": 3, "images": 3}
    write_geneval2(tmp_path / "geneval2_data.jsonl", KNOWN[1:4])
    with pytest.raises(UserError, match="was made with config.questions"):
        evaluate(small, tmp_path / "report", [toy.student.path], [tmp_path / "geneval2_data.jsonl"])


def write_dpg(path):
    """DPG-Bench's table: a dog, its colour, and a cat that is not there."""
    columns = ["item_id", "text", "keywords", "proposition_id", "dependency", "category_broad"]
    columns += ["category_detailed", "tuple", "question_natural_language"]
    text = "a photo of a red dog"
    rows = [
        ["0", text, "", "1", "0", "entity", "whole", "", "Is there a dog in the image?"],
        ["0", text, "", "2", "1", "attribute", "color", "", "Is the dog red?"],
        ["0", text, "", "3", "0", "entity", "whole", "", "Is there a cat in the image?"],
        ["0", text, "", "4", "3", "attribute", "color", "", "Is the dog red?"],
    ]
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([columns, *rows])
    return text


def test_dpg_bench_by_its_table(tmp_path):
    text = write_dpg(tmp_path / "dpg_bench.csv")
    (tmp_path / "prompts.jsonl").write_text(json.dumps({"prompt": text}) + "\n")
    made = distill(DistillConfig(images_per_prompt=2), tmp_path / "images", [tmp_path / "prompts.jsonl"])
    assert isinstance(CONFIG.judge, QuestionJudgeConfig)
    config = replace(CONFIG, prompts=None, judge=replace(CONFIG.judge, benchmark="dpg"))
    report = report_of(evaluate(config, tmp_path / "report", [made.path], [tmp_path / "dpg_bench.csv"]))
    assert report["scoring"]["name"] == "nano-DPG-Bench"
    # the fourth question depends on the third, which is answered no
    assert report["overall"] == 0.5
    assert report["tasks"] == {"entity": 0.5, "attribute": 1.0}
    assert report["subjects"][0]["broken"] == {"entity": 2, "attribute": 2}


def test_what_is_refused(tmp_path, toy):
    made = renders(tmp_path)
    with pytest.raises(UserError, match="--detector: got one"):
        evaluate(CONFIG, tmp_path / "x", [made.path], detector=toy.detector.path)
    with pytest.raises(UserError, match="--prompts: got nothing"):
        evaluate(replace(CONFIG, prompts=None), tmp_path / "x", [made.path])
    with pytest.raises(UserError, match="has no questions, allowed"):
        evaluate(replace(CONFIG, prompts=NanoQuestions(num=3)), tmp_path / "x", [made.path])
    assert isinstance(CONFIG.judge, QuestionJudgeConfig)
    by_dpg = replace(CONFIG, judge=replace(CONFIG.judge, benchmark="dpg"))
    with pytest.raises(UserError, match="its answer is 'two', allowed by dpg: yes|its answer is"):
        evaluate(by_dpg, tmp_path / "x", [made.path])
    two = [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    with pytest.raises(UserError, match="got 2 files, allowed: one of GenEval 2 or DPG-Bench"):
        evaluate(CONFIG, tmp_path / "x", [made.path], two)
    assert not (tmp_path / "x").exists()
