"""An evaluation gives the same numbers however it is split, and whatever killed it on the way."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lightgen.core.artifact import open_artifact, workspace_of
from lightgen.core.ranks import outside_ranks

ROOT = Path(__file__).parents[2]
OPTIONS = (
    *("--prompts.num", "70", "--images-per-prompt", "2", "--height", "64", "--width", "64"),
    *("--batch-size", "35", "--student.precision", "fp32", "--bootstrap.resamples", "200"),
    *("--student.overrides.num-iterations", "2", "--student.overrides.num-head-steps", "2"),
    *("--judge.self-test.num-prompts", "12"),
)


def start(out: Path, student: Path, ranks: int) -> subprocess.Popen[str]:
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    # behind the dashes torchrun leaves options that look like its own alone
    module = ["-m", *(["--"] if ranks > 1 else []), "lightgen.cli.main"]
    command = [*module, "evaluate", "nano-geneval", "--in", str(student), "--out", str(out)]
    return subprocess.Popen(
        [sys.executable, *(launcher if ranks > 1 else []), *command, *OPTIONS],
        cwd=ROOT,
        env={**outside_ranks(), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def finish(out: Path, student: Path, ranks: int) -> dict:
    """Numbers of a report, without what differs from run to run: seconds, memory, ranks."""
    process = start(out, student, ranks)
    told, _ = process.communicate(timeout=300)
    assert process.returncode == 0, told
    open_artifact(out, "report")
    report = json.loads((out / "report.json").read_text())
    for subject in report["subjects"]:
        subject["cost"] = {k: v for k, v in subject["cost"].items() if k in ("tflop_per_image", "decoding")}
    kept = ("overall", "tasks", "intervals", "counts", "subjects", "self_test", "settings")
    return {key: report[key] for key in kept} | {"results": (out / "results.jsonl").read_bytes()}


@pytest.fixture(scope="module")
def whole(toy, tmp_path_factory):
    return finish(tmp_path_factory.mktemp("whole") / "report", toy.student.path, 1)


def test_two_ranks_find_what_one_finds(toy, tmp_path, whole):
    assert whole["counts"]["overall"] == {"prompts": 70, "images": 140}
    assert finish(tmp_path / "report", toy.student.path, 2) == whole


@pytest.mark.slow
@pytest.mark.faults
@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("moment", ["drawn", "judged"])
def test_a_killed_evaluation_goes_on_to_the_same_numbers(toy, tmp_path, whole, ranks, moment):
    out = tmp_path / "report"
    process = start(out, toy.student.path, ranks)
    pattern = "work/**/images-00000.tar" if moment == "drawn" else "work/*-judged/judged-*.json"
    deadline = time.monotonic() + 200
    while not list(workspace_of(out).glob(pattern)) and time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert not out.exists()
    drawn = [path.stat().st_mtime_ns for path in workspace_of(out).glob("work/0/images-*.tar")]
    assert finish(out, toy.student.path, 3 - ranks) == whole
    assert moment == "drawn" or len(drawn) == 4, "all was drawn before anything was judged"
