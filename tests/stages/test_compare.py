"""Reports side by side: the same numbers as in the reports, paired tests, and what was not the same."""

import json
from dataclasses import replace

import pytest

from lightgen.cli.main import main
from lightgen.core.artifact import open_artifact
from lightgen.core.errors import UserError
from lightgen.ports.nano.emoji import EmojiTeacherConfig, ErrorKnob
from lightgen.stages.compare import compare, write_comparison
from lightgen.stages.distill import NanoPrompts, distill
from lightgen.stages.evaluate import evaluate
from tests.stages.test_evaluate import CONFIG
from tests.stages.toy import toy_distill


@pytest.fixture(scope="module")
def reports(toy, tmp_path_factory):
    """Two reports of a picture set each, and one of both, judged by the shipped detector."""
    place = tmp_path_factory.mktemp("reports")
    prompts = NanoPrompts(num=30, split="test")
    right = distill(toy_distill(prompts=prompts, height=128, width=128), place / "right")
    errors = ErrorKnob(wrong_class=0.6)
    knob = toy_distill(prompts=prompts, height=128, width=128, teacher=EmojiTeacherConfig(errors=errors))
    wrong = distill(knob, place / "wrong")
    evaluate(CONFIG, place / "of-wrong", [wrong.path])
    evaluate(replace(CONFIG, seed=5), place / "of-right", [right.path])
    evaluate(CONFIG, place / "of-both", [wrong.path, right.path])
    return place


def report_of(path):
    return json.loads((path / "report.json").read_text())


def test_two_reports_are_as_one_of_both(reports):
    apart = compare([reports / "of-wrong", reports / "of-right"])
    together = report_of(reports / "of-both")
    assert [run.name for run in apart.runs] == ["of-wrong", "of-right"]
    for run, subject in zip(apart.runs, together["subjects"], strict=True):
        assert run.table.to_json() == {k: subject[k] for k in ("overall", "tasks", "intervals", "counts")}
    ((first, second, found),) = apart.comparisons
    assert (first, second) == ("of-wrong", "of-right")
    told = {k: together["comparisons"][0][k] for k in ("overall", "tasks")}
    assert found.to_json() == told and found.overall.value > 0.3 and found.overall.p < 0.01
    assert ("of-right", "seed", "0", "5") in apart.unlike


def test_subjects_of_one_report(reports):
    found = compare([reports / "of-both"])
    assert [run.name for run in found.runs] == ["of-both/wrong", "of-both/right"]
    assert len(found.comparisons) == 1 and found.unlike == []
    twice = compare([reports / "of-right", reports / "of-right"])
    assert [run.name for run in twice.runs] == ["1-of-right", "2-of-right"]
    assert twice.comparisons[0][2].overall.value == 0.0


def test_command_and_page(reports, tmp_path, capsys):
    told = [str(reports / "of-wrong"), str(reports / "of-right")]
    assert main(["compare", *told, "--out", str(tmp_path / "out")]) == 0
    text = capsys.readouterr().out
    assert "of-right minus of-wrong, paired by prompt" in text and "note: of-right has seed 5" in text
    made = open_artifact(tmp_path / "out", "report")
    assert [parent["name"] for parent in made.parents] == ["of-wrong", "of-right"]
    page = (made.path / "report.html").read_text()
    assert "Prompts: of-right against of-wrong" in page and "What was not the same" in page
    again, _ = write_comparison(tmp_path / "out", told)
    assert again.digest == made.digest


def test_what_is_refused(reports, toy, tmp_path):
    with pytest.raises(UserError, match="got 1 run, allowed: two or more"):
        compare([reports / "of-right"])
    with pytest.raises(UserError, match="got no report"):
        compare([])
    with pytest.raises(UserError, match="got kind 'images', allowed: report"):
        compare([toy.images.path])
    made, _ = write_comparison(tmp_path / "out", [reports / "of-both"])
    with pytest.raises(UserError, match="holds no verdicts on images"):
        compare([made.path, reports / "of-right"])
