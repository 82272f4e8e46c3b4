"""Faults at any moment: a killed run, a killed save, flipped bits, steps that are not finite."""

import json
import os
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from lightgen.core.artifact import Artifact, ArtifactError, begin_artifact, open_artifact
from lightgen.core.errors import UserError
from lightgen.core.metrics import read_metrics
from lightgen.training.config import FitConfig, RunConfig
from lightgen.training.fit import STATES, Training, fit
from lightgen.training.optimizer import OptimizerConfig
from lightgen.training.saver import Saver
from lightgen.training.state import Piece, State, newest_step, open_state
from tests.training.toy_faults import NUM_STEPS, end, life, on_touch, random_of, start, student

PARTS = ("weights", "ema", "optimizer", "buffers")
SETTINGS = {name: {"fit": {"precision": name}, "name": "muon"} for name in ("bf16", "fp32")}


def tensors_of(folder):
    """Everything in the newest state of a run."""
    state = open_state(folder / STATES, newest_step(folder / STATES))
    return {f"{part}/{name}": state.full(f"{part}/{name}") for part in PARTS for name in state.names(part)}


def numbers(folder):
    """The records without what the clock says."""
    clock = ("images_per_s", "mfu", "memory_gb")
    records = read_metrics(folder / "metrics.jsonl")
    return [{n: v for n, v in r.items() if not n.endswith("_s") and n not in clock} for r in records]


def ids_by_step(folder):
    """Micro-batches of each step, as its last process used them; those before it used the same, in order."""
    tries = {}
    for line in map(json.loads, (folder / "ids.jsonl").read_text().splitlines()):
        if line["step"] >= 0:  # the others are held out
            tries.setdefault(line["step"], {}).setdefault(line["process"], []).append(line["ids"])
    last = {step: list(found.values())[-1] for step, found in tries.items()}
    for step, found in tries.items():
        assert all(each == last[step][: len(each)] for each in found.values()), step
    return last


def assert_same_run(folder, whole):
    found, expected = tensors_of(folder), tensors_of(whole)
    assert found.keys() == expected.keys() and len(found) > 100
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name
    assert numbers(folder) == numbers(whole)
    assert ids_by_step(folder) == ids_by_step(whole)
    assert sorted(ids_by_step(folder)) == list(range(NUM_STEPS))


class Unbroken:
    """Runs that nothing befell, by precision: (folder, moments, seconds of all steps)."""

    def __init__(self, root: Path) -> None:
        self._root, self._made = root, {}

    def __call__(self, precision: str) -> tuple[Path, list[str], float]:
        if precision not in self._made:
            folder, moments = self._root / precision, self._root / f"{precision}.json"
            assert end(start(life, str(folder), SETTINGS[precision], None, str(moments))) == 0
            times = [line["seconds"] for line in map(json.loads, (folder / "ids.jsonl").open())]
            seconds = times[-1] - times[0]
            self._made[precision] = folder, json.loads(moments.read_text()), seconds
        return self._made[precision]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    return Unbroken(tmp_path_factory.mktemp("unbroken"))


def kill_and_go_on(tmp_path, unbroken, precision, kinds, seed):
    """A run that is killed once for each kind of moment, drawn by the seed, ends as the unbroken one."""
    whole, moments, seconds = unbroken(precision)
    folder, random = tmp_path / "killed", random_of("R1", seed)
    for kind in kinds:
        if kind == "clock":
            log = folder / "ids.jsonl"
            before = log.stat().st_size if log.exists() else 0
            process = start(life, str(folder), SETTINGS[precision])
            while process.is_alive() and (not log.exists() or log.stat().st_size == before):
                time.sleep(0.005)
            time.sleep(seconds * random.random())
            process.kill()
            assert end(process) in (0, -signal.SIGKILL)
            continue
        own = [n for n, what in enumerate(moments) if what.startswith("step") == (kind == "step")]
        death = int(random.choice(own))
        # a moment that a shorter run does not reach does not kill it
        assert end(start(life, str(folder), SETTINGS[precision], death)) in (0, -signal.SIGKILL)
    assert end(start(life, str(folder), SETTINGS[precision])) == 0
    assert_same_run(folder, whole)


@pytest.mark.resume
@pytest.mark.parametrize(
    ("precision", "kinds"),
    [("bf16", ["step", "file"]), ("fp32", ["file", "step"]), ("bf16", ["clock"])],
    ids=str,
)
def test_a_killed_run_goes_on_to_the_bit(tmp_path, unbroken, precision, kinds):
    kill_and_go_on(tmp_path, unbroken, precision, kinds, 0)


@pytest.mark.slow
@pytest.mark.resume
@pytest.mark.parametrize("number", range(20))
def test_runs_killed_at_random_moments_go_on_to_the_bit(tmp_path, unbroken, number):
    kinds = [["step", "file", "clock"], ["file", "step"], ["clock", "clock"], ["file", "file", "file"]]
    kill_and_go_on(tmp_path, unbroken, ("bf16", "fp32")[number % 2], kinds[number // 2 % 4], number)


def test_an_unbroken_run_has_every_kind_of_moment(unbroken):
    _, moments, _ = unbroken("bf16")
    assert {f"step {step}" for step in (-1, *range(NUM_STEPS))} <= set(moments)
    assert {"open rank-00000.safetensors.tmp", "os.rename state.json.tmp"} <= set(moments)
    assert {"os.rename .step-00000004.tmp", "shutil.rmtree .step-00000004.tmp"} <= set(moments)


def save_on_and_on(folder, size, death):
    """Save states, each named by its step and full of it, until killed; `begun` says which is under way."""
    states, seen = Path(folder) / STATES, []

    def moment(what):
        seen.append(what)
        if len(seen) - 1 == death:
            os.kill(os.getpid(), signal.SIGKILL)

    step = newest_step(states)
    if step:
        state = open_state(states, step)
        found = torch.zeros(size)
        state.read("weights/x", Piece(found))
        assert bool((found == step).all())
    if death is not None:
        on_touch(states, moment)
    with Saver(states, 2, None, 60.0, None) as saver:
        while True:
            saver.save(step + 1, {"weights/x": Piece(torch.full((size,), float(step + 1)))}, {})
            step += 1
            (Path(folder) / "begun.tmp").write_text(str(step))
            (Path(folder) / "begun.tmp").replace(Path(folder) / "begun")


def kill_saves(folder, number):
    """Newest states after each of so many kills; what was being saved may be lost, nothing before it."""
    random, size, newest, torn = random_of("R4"), 2**18, 0, 0
    folder.mkdir()
    for turn in range(number):
        (folder / "begun").write_text("0")
        process = start(save_on_and_on, str(folder), size, int(random.integers(80)) if turn % 2 else None)
        deadline = time.monotonic() + 120
        while turn % 2 == 0 and (folder / "begun").read_text() == "0" and process.is_alive():
            assert time.monotonic() < deadline
            time.sleep(0.001)
        if turn % 2 == 0:
            time.sleep(0.1 * random.random())
            process.kill()
        assert end(process) == -signal.SIGKILL
        begun = int((folder / "begun").read_text())
        torn += bool(list((folder / STATES).glob(".step-*.tmp")))
        found = newest_step(folder / STATES)
        assert max(newest, begun - 1) <= found <= max(newest, begun) + 1
        newest = found
    assert newest > 0 and torn > 0
    with Saver(folder / STATES, 2, None, 60.0, None) as saver:
        saver.save(newest + 1, {"weights/x": Piece(torch.ones(size))}, {})
    # Each kill between a save and its clearing up left one state more; the next save that ends clears all.
    names = {path.name for path in (folder / STATES).iterdir()}
    assert names == {f"step-{step:08d}" for step in (newest, newest + 1)}


@pytest.mark.faults
def test_a_killed_save_costs_one_interval_at_most(tmp_path):
    kill_saves(tmp_path / "run", 10)


@pytest.mark.slow
@pytest.mark.faults
def test_two_hundred_killed_saves_cost_one_interval_at_most(tmp_path):
    kill_saves(tmp_path / "run", 200)


def flipped(path, random):
    """Path with one bit, at a random position, turned; returns the bytes it had."""
    data = path.read_bytes()
    position = int(random.integers(len(data)))
    other = bytes([data[position] ^ 1 << int(random.integers(8))])
    path.write_bytes(data[:position] + other + data[position + 1 :])
    return data


def flip_bits(root, number):
    """Bits of weights and of train states; where a flip leaves a JSON file's meaning, there is no harm."""
    random, states, harmless = random_of("R6"), root / "states", 0
    weights = {name: tensor.contiguous() for name, tensor in student().state_dict().items()}
    workspace = begin_artifact(root / "student", "checkpoint", {}, [])
    assert not isinstance(workspace, Artifact)
    with workspace, workspace.file("transformer/weights.safetensors") as path:
        save_file(weights, path)
    artifact = workspace.commit({})
    with Saver(states, 2, None, 60.0, None) as saver:
        for step in (1, 2):
            saver.save(step, {f"weights/{n}": Piece(t) for n, t in weights.items()}, {"elapsed_s": 1.5})
    newest = states / "step-00000002"
    files = [artifact.path / "transformer" / "weights.safetensors"]
    files += [newest / "rank-00000.safetensors", newest / "state.json"]
    assert open_artifact(artifact.path).digest == artifact.digest and newest_step(states) == 2
    for turn in range(number):
        path = files[turn % 3]
        whole = flipped(path, random)
        if path is files[0]:
            with pytest.raises(ArtifactError, match="damaged"):
                open_artifact(artifact.path)
        elif newest_step(states) != 1:
            assert path is files[2] and json.loads(path.read_bytes()) == json.loads(whole)
            harmless += 1
        path.write_bytes(whole)
    assert harmless <= number / 100
    shutil.rmtree(states / "step-00000001")
    flipped(files[1], random)
    with pytest.raises(UserError, match="all 1 saved states are damaged; remove it"):
        newest_step(states)


@pytest.mark.faults
def test_every_flipped_bit_is_found(tmp_path):
    flip_bits(tmp_path, 60)


@pytest.mark.slow
@pytest.mark.faults
def test_a_thousand_flipped_bits_are_found(tmp_path):
    flip_bits(tmp_path, 1000)


class Net(nn.Module):
    """A regression whose weights were drawn from a seed."""

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.inlet, self.block = nn.Linear(4, 8), nn.Linear(8, 2)

    def forward(self, x):
        return self.block(torch.tanh(self.inlet(x.to(self.inlet.weight.dtype)))).float()


class Numbers:
    def ids(self, step):
        return range(4 * step, 4 * step + 4)

    def load(self, ids, step):
        return {"x": torch.tensor([[i % 7, i % 5, i % 3, i % 2] for i in ids]).float() / 5, "ids": list(ids)}


def spoiling(bad):
    """Objective with a loss, or a gradient alone, that is not finite in one micro-batch of the bad steps."""

    def objective(learner, batch, step):
        said = learner(batch["x"])
        loss = (said - batch["x"][:, :2]).square().mean()
        if step in bad and batch["ids"][0] % 4 == 2 * (step % 2):
            nothing = (0 * said.sum()).square().sqrt()  # 0, of gradient nan
            loss = (loss * float("nan"), loss * float("inf"), loss + nothing)[step % 3]
        return loss, {}

    return objective


def run_spoiled(folder, bad, num_steps, precision, **settings):
    settings |= {"optimizer": OptimizerConfig(name="muon", lr=1e-2), "precision": precision}
    config = FitConfig(num_steps=num_steps, global_batch_size=4, **settings)
    run = RunConfig(micro_batch_size=2, save_every=1, keep_last=num_steps, log_every=1)
    training = Training(learner=Net(), objective=spoiling(bad), source=Numbers())
    return fit(config, training, folder, run)


@pytest.mark.faults
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_hundred_steps_that_are_not_finite_change_no_weight(tmp_path, precision):
    bad = {*range(1, 199, 2), 100}  # also three in a row
    assert run_spoiled(tmp_path, bad, 200, precision) == 200
    records = read_metrics(tmp_path / "metrics.jsonl")
    assert [r["skipped"] for r in records] == [sum(s < r["step"] for s in bad) for r in records]
    assert [r["step"] for r in records if r["loss"] is None] == [step + 1 for step in sorted(bad)]
    assert records[-1]["skipped"] == 100
    before = None
    for step in range(1, 201):
        state = State(tmp_path / STATES / f"step-{step:08d}")
        found = {f"{p}/{n}": state.full(f"{p}/{n}") for p in PARTS for n in state.names(p)}
        if before is not None:
            same = all(torch.equal(found[name], before[name]) for name in before)
            assert same == (step - 1 in bad) and found.keys() == before.keys(), step
            assert all(bool(tensor.isfinite().all()) for tensor in found.values())
        before = found


@pytest.mark.faults
def test_a_run_of_bad_steps_ends_it_and_a_rerun_too(tmp_path):
    bad = {2, 4, 5, 7, 8, 9}
    for _ in range(2):
        with pytest.raises(UserError, match="3 steps in a row .* last at step 9; the weights") as caught:
            run_spoiled(tmp_path, bad, 20, "fp32", max_bad_steps=3)
        assert "\n" not in str(caught.value)
        assert newest_step(tmp_path / STATES) == 9
    good, last = (State(tmp_path / STATES / f"step-{step:08d}") for step in (7, 9))
    for name in good.names("weights"):
        assert torch.equal(good.full(f"weights/{name}"), last.full(f"weights/{name}"))
    assert run_spoiled(tmp_path, set(), 20, "fp32", max_bad_steps=3) == 20
