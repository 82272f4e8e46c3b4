"""A rank that dies or stops: the others say so and end in time, and the run goes on to the bit."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest
import torch

from lightgen.training.fit import STATES
from lightgen.training.state import newest_step, open_state
from tests.training.toy_faults import ROOT, Fault, end, random_of, run_ranks, start_ranks

TIMEOUT_S, NUM_RANKS = 10, 4
RUN = {"shards": 2, "timeout_s": 200.0, "micro_batch_size": 1}
SETTINGS = {"name": "adamw", "fit": {"num_steps": 4}, "run": RUN}


def waiting(seconds):
    return {**SETTINGS, "run": {**RUN, "timeout_s": float(seconds)}}


LOST = re.compile(
    rf"rank \d of 4: another rank died or gave no answer within {TIMEOUT_S} s, at (the start|step)"
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    run_ranks(NUM_RANKS, [(str(folder), SETTINGS)])
    return folder


def assert_same_end(folder, whole):
    states = [open_state(each / STATES, newest_step(each / STATES)) for each in (folder, whole)]
    assert states[0].step == states[1].step == 4
    for part in ("weights", "ema", "optimizer"):
        assert len(states[1].names(part)) > 20
        for name in states[1].names(part):
            assert torch.equal(*(state.full(f"{part}/{name}") for state in states)), name


def assert_clear(folder, survivors):
    """Each of these ranks said in one line what happened."""
    said = {path.name: path.read_text() for path in folder.glob("lost-*")}
    assert said.keys() >= {f"lost-{rank}" for rank in survivors}
    for text in said.values():
        assert LOST.match(text) and "\n" not in text and "run the same command again" in text


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.faults
@pytest.mark.parametrize(("how", "moment"), [(signal.SIGKILL, 5), (signal.SIGSTOP, 9)], ids=["kill", "stop"])
def test_the_others_end_in_time_and_the_run_goes_on(tmp_path, whole, how, moment):
    processes = start_ranks(NUM_RANKS, [(str(tmp_path), waiting(TIMEOUT_S))], Fault(1, moment, how))
    try:
        codes = [end(process) for rank, process in enumerate(processes) if rank != 1]
        seconds = time.time() - float((tmp_path / "struck").read_text())
    finally:
        for process in processes:
            process.kill()
    assert codes == [1, 1, 1] and seconds < TIMEOUT_S + 30
    assert end(processes[1]) == -signal.SIGKILL
    assert_clear(tmp_path, (0, 2, 3))
    run_ranks(NUM_RANKS, [(str(tmp_path), SETTINGS)])
    assert_same_end(tmp_path, whole)


@pytest.mark.faults
def test_one_rank_that_is_told_to_end_ends_all_with_a_state(tmp_path, whole):
    processes = start_ranks(NUM_RANKS, [(str(tmp_path), SETTINGS)], Fault(2, 3, signal.SIGTERM))
    assert [end(process) for process in processes] == [143] * NUM_RANKS
    assert 1 <= newest_step(tmp_path / STATES) <= 3
    run_ranks(NUM_RANKS, [(str(tmp_path), SETTINGS)])
    assert_same_end(tmp_path, whole)


@pytest.mark.slow
@pytest.mark.faults
@pytest.mark.parametrize("number", range(20))
def test_torchrun_starts_the_run_again(tmp_path, whole, number):
    """Of torchrun's ranks one dies, or (every fourth) stops.

    Torchrun gives the others, and one that stopped, 30 s to end before it kills them and starts anew.
    """
    timeout_s = 60  # also for the slowest to have imported everything
    random, how = random_of("R7", number), signal.SIGKILL if number % 4 else signal.SIGSTOP
    fault = Fault(int(random.integers(NUM_RANKS)), int(random.integers(1, 12)), how)
    # torchrun reads $$ as one $
    note = 'date +%s.%N >> "$0/begun"; echo $$$$ >> "$0/pids"; exec "$@"'
    told = json.dumps({"jobs": [(str(tmp_path), waiting(timeout_s))], "fault": fault})
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={NUM_RANKS}"]
    command += ["--max-restarts=1", "--no-python", "sh", "-c", note, str(tmp_path), sys.executable]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, str(ROOT / "tests" / "training" / "toy_faults.py"), told],
        env=environment,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    begun = [float(line) for line in (tmp_path / "begun").read_text().split()]
    assert len(begun) == 2 * NUM_RANKS
    seconds = max(begun) - float((tmp_path / "struck").read_text())
    assert seconds < timeout_s + 30 + 15, "beyond what torchrun itself waits, 15 s are for starting"
    assert_same_end(tmp_path, whole)
    assert not any(alive(int(pid)) for pid in (tmp_path / "pids").read_text().split())
