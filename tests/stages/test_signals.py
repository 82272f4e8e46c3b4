"""The command `lightgen train` under SIGTERM and SIGINT: it saves, says so, and goes on to the bit."""

import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file

from lightgen.core.artifact import open_artifact, workspace_of
from lightgen.core.metrics import read_metrics
from lightgen.training.state import newest_step
from tests.training.toy_faults import ROOT, end, lightgen, random_of, start

CODES = {signal.SIGTERM: 143, signal.SIGINT: 130}
SAID = {signal.SIGTERM: "terminated", signal.SIGINT: "interrupted"}
NUM_STEPS = 24


def command_of(toy, out):
    """What a person would type: a student of the toy world goes on learning."""
    numbers = {"fit.num-steps": NUM_STEPS, "fit.global-batch-size": 4, "fit.schedule.warmup-steps": 5}
    numbers |= {"run.micro-batch-size": 2, "run.save-every": 1000, "run.log-every": 1}
    options = [text for name, value in numbers.items() for text in (f"--{name}", str(value))]
    artifacts = ["--in", str(toy.latents.path), "--start", str(toy.student.path), "--out", str(out)]
    return ["train", "finetune-nano", *artifacts, *options]


class Forked:
    """The command in a process that has everything imported."""

    def __init__(self, command, errors):
        self._process = start(lightgen, command, str(errors))
        self.send = lambda number: os.kill(self._process.pid or 0, number)

    def wait(self):
        return end(self._process)


class Real:
    """The command in a process of its own."""

    def __init__(self, command, errors):
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
        with errors.open("w") as file:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "lightgen.cli.main", *command],
                env=environment,
                stdout=subprocess.DEVNULL,
                stderr=file,
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            )
        self.send = self._process.send_signal

    def wait(self):
        return self._process.wait(600)


def tensors(path):
    return load_file(path / "transformer" / "diffusion_pytorch_model.safetensors")


@pytest.fixture(scope="module")
def whole(toy, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    run = Forked(command_of(toy, folder / "student"), folder / "errors")
    assert run.wait() == 0, (folder / "errors").read_text()
    return folder / "student"


def interrupt_and_go_on(kind, toy, whole, folder, number, after):
    """The command is sent a signal after so many records, and typed again."""
    out, errors = folder / "student", folder / "errors"
    metrics = workspace_of(out) / "train_state" / "metrics.jsonl"
    run = kind(command_of(toy, out), errors)
    deadline = time.monotonic() + 300
    while not metrics.exists() or len(read_metrics(metrics)) < after:
        assert time.monotonic() < deadline, errors.read_text()
        time.sleep(0.01)
    sent = time.monotonic()
    run.send(number)
    assert run.wait() == CODES[number], errors.read_text()
    assert time.monotonic() - sent < 30
    last = errors.read_text().splitlines()[-1]
    assert last.startswith(f"lightgen: {SAID[number]}; what is done is kept") and not out.exists()
    saved = newest_step(metrics.parent / "state")
    assert after <= saved < NUM_STEPS and saved == read_metrics(metrics)[-1]["step"]
    assert kind(command_of(toy, out), errors).wait() == 0, errors.read_text()
    found, expected = tensors(out), tensors(whole)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    records, all_records = (read_metrics(path / "train_state" / "metrics.jsonl") for path in (out, whole))
    assert [r["step"] for r in records] == list(range(1, NUM_STEPS + 1))
    for name in ("loss", "grad_norm", "lr"):
        assert [r[name] for r in records] == [r[name] for r in all_records]
    assert open_artifact(out).manifest["files"].keys() == open_artifact(whole).manifest["files"].keys()


@pytest.mark.resume
@pytest.mark.parametrize("number", CODES, ids=lambda number: number.name)
def test_a_run_that_is_told_to_end_goes_on(toy, whole, tmp_path, number):
    interrupt_and_go_on(Forked, toy, whole, tmp_path, number, after=2)


@pytest.mark.slow
@pytest.mark.resume
@pytest.mark.parametrize("turn", range(20))
def test_real_commands_that_are_told_to_end_go_on(toy, whole, tmp_path, turn):
    after = int(random_of("R10", turn).integers(1, NUM_STEPS // 2))
    interrupt_and_go_on(Real, toy, whole, tmp_path, list(CODES)[turn % 2], after)
