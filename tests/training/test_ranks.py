"""Two ranks, by gloo on this machine, take the steps that one takes."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from lightgen.core.metrics import read_metrics
from tests.training import toy_run

RUN = Path(__file__).with_name("toy_run.py")


def test_two_ranks_are_one(tmp_path):
    alone = toy_run.train(tmp_path / "one")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    workers, outcomes = [], [tmp_path / "0.json", tmp_path / "1.json"]
    for rank, outcome in enumerate(outcomes):
        ranks = {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": "2",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
        }
        command = [sys.executable, str(RUN), str(tmp_path / "two"), str(outcome)]
        environment = {**os.environ, **ranks, "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(RUN.parents[2])}
        workers.append(subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True))
    errors = [worker.communicate(timeout=400)[1] for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], errors
    first, second = (json.loads(outcome.read_text()) for outcome in outcomes)
    assert first == second
    assert first == pytest.approx(alone, rel=1e-3, abs=1e-5)
    one, two = (read_metrics(tmp_path / name / "metrics.jsonl") for name in ("one", "two"))
    assert [record["step"] for record in two] == [record["step"] for record in one] == [1, 2, 3, 4, 5]
    for name in ("loss", "grad_norm", "largest", "over"):
        assert [record[name] for record in two] == pytest.approx(
            [record[name] for record in one], rel=1e-3
        ), name
    states = [sorted(path.name for path in (tmp_path / name / "state").iterdir()) for name in ("one", "two")]
    assert states[0] == states[1] == ["step-00000003", "step-00000005"]
