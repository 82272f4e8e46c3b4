import argparse
import os

import pytest
import torch
from safetensors.torch import load_file

from lightgen.cli.main import main as run
from lightgen.core.artifact import open_artifact
from tests.ports.released_weights import released_weights


@pytest.fixture
def checkpoint(tmp_path):
    path = tmp_path / "checkpoint-8.pth"
    settings = argparse.Namespace(model="fluid_large", lr=1e-4)
    torch.save({"model": released_weights(1), "model_ema": released_weights(), "args": settings}, path)
    return path


def refusal(capsys, *arguments):
    """The one line with which the arguments are refused."""
    assert run([str(each) for each in arguments]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.count("\n") == 1
    assert told.err.startswith("lightgen: ")
    return told.err


@pytest.mark.parametrize(("raw", "seed"), [([], 0), (["--raw"], 1)])
def test_there_and_back(checkpoint, tmp_path, capsys, raw, seed):
    out, back = tmp_path / "c", tmp_path / "back.safetensors"
    command = ["import-checkpoint", checkpoint, "--out", out, "--num-heads", 2, "--size", 256, *raw]
    assert run([str(each) for each in command]) == 0
    assert capsys.readouterr().out == f"{out}\n"
    assert open_artifact(out, "checkpoint").config["size"] == 256
    assert run(["export-checkpoint", str(out), "--out", str(back)]) == 0
    assert capsys.readouterr().out == f"{back}\n"
    found, expected = load_file(back), released_weights(seed)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert "exists already" in refusal(capsys, "export-checkpoint", out, "--out", back)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ([], "got no heads, allowed: a divisor of width 24 (--num-heads)"),
        (["--num-heads", "0"], "--num-heads 0, allowed: a whole number from 1"),
        (["--num-heads", "2", "--size", "-5"], "--size -5, allowed: a whole number from 1"),
        (["--num-heads", "2", "--size", "500"], "--size: got 500 px, allowed: multiples of 16"),
        (["--num-heads", "two"], "argument --num-heads: invalid int value: 'two'"),
        (["--vea", "x"], "unknown option '--vea', did you mean '--vae'?"),
        (["--vae", "x"], "--vae x: no such directory, allowed: a local folder; nothing is downloaded"),
        (["--tokenizer", "x"], "--tokenizer x: got no text encoder, allowed: with --text-encoder"),
    ],
)
def test_mistakes_are_one_line_and_exit_2(checkpoint, options, told, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert told in refusal(capsys, "import-checkpoint", checkpoint, "--out", "c", *options)
    assert [path.name for path in tmp_path.iterdir()] == [checkpoint.name]


def test_further_mistakes(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert "required: --out" in refusal(capsys, "import-checkpoint")
    assert "neither a file nor --vae" in refusal(capsys, "import-checkpoint", "--out", "c")
    assert "required: checkpoint, --out" in refusal(capsys, "export-checkpoint")
    assert "no/such.pth: no such file" in refusal(capsys, "import-checkpoint", "no/such.pth", "--out", "c")
    told = refusal(capsys, "export-checkpoint", "no/such", "--out", "a.safetensors")
    assert "no/such: no such directory" in told
    told = refusal(capsys, "export-checkpoint", "no/such", "--out", "a.pth")
    assert "allowed: a new file ending in .safetensors" in told
    assert not any(tmp_path.iterdir())


def test_a_hostile_file_is_refused_and_does_not_run(capsys, tmp_path):
    class Runs:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "canary"),)

    torch.save({"model_ema": released_weights(), "args": Runs()}, tmp_path / "a.pth")
    told = refusal(capsys, "import-checkpoint", tmp_path / "a.pth", "--out", tmp_path / "c")
    assert "mkdir', allowed: tensors and plain values; nothing in it was run" in told
    assert [path.name for path in tmp_path.iterdir()] == ["a.pth"]
