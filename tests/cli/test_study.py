"""`lightgen study`: its words, its options, and what it refuses."""

from types import SimpleNamespace

import pytest

from lightgen.cli.main import main
from lightgen.stages import study as stage


@pytest.fixture
def asked(monkeypatch, tmp_path):
    """What the stage was called with."""
    found = []

    def study(config, out, command):
        found.append((config, out, command))
        return SimpleNamespace(path=out, kind="report", counts={"arms": len(config.arms)})

    monkeypatch.setattr(stage, "study", study)
    return found


def test_options_reach_the_study(asked, tmp_path, capsys):
    out = str(tmp_path / "out")
    options = ["--seeds", "3", "--tflop", "2.5", "--test.num", "12", "--start", "some/where"]
    assert main(["study", "flip", "--out", out, *options]) == 0
    ((config, place, command),) = asked
    assert (config.seeds, config.tflop, config.test.num, config.start) == (3, 2.5, 12, "some/where")
    assert place == out
    assert command.startswith("lightgen study flip --out ") and "--tflop 2.5" in command
    assert "2 arms" in capsys.readouterr().out


def test_the_start_of_the_recipe_is_kept(asked, tmp_path):
    assert main(["study", "flip", "--out", str(tmp_path / "out")]) == 0
    assert asked[0][0].start == "nano"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["flop"], "did you mean 'flip'"),
        (["flip"], "got no --out"),
        (["flip", "--out", "x", "--in", "y"], "--in"),
        (["flip", "--out", "x", "--seed", "2"], "did you mean '--seeds'"),
        (["flip", "--out", "x", "--seeds", "some"], "seeds"),
    ],
)
def test_what_is_refused(asked, arguments, message, capsys):
    assert main(["study", *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not asked


def test_help_lists_recipes_and_the_options_of_the_study_alone(capsys):
    assert main(["study", "--help"]) == 0
    told = capsys.readouterr().out
    assert "--in" not in told and "diversity" in told and "design" in told
    assert main(["study", "flip", "--help"]) == 0
    told = capsys.readouterr().out
    assert "--tflop" in told and "--arms" not in told
    assert len(told) < 20_000
