"""Ranks by gloo: data parallel, sharded, and both take the steps that one rank takes."""

import itertools
import json
import shutil
from pathlib import Path

import pytest

from lightgen.core.metrics import read_metrics
from lightgen.training.fit import STATES
from lightgen.training.state import newest_step, open_state
from tests.training.toy_faults import NUM_STEPS, run_ranks

# Muon's iteration computes in bf16 whatever the weights are, and rounds a last bit apart to 1/256 apart.
CLOSE = {("adamw", "fp32"): 1e-5, ("muon", "fp32"): 5e-3, ("adamw", "bf16"): 3e-2, ("muon", "bf16"): 3e-2}


def tensors_of(folder, step=None):
    """Weights and averages of a state, the newest if none is named."""
    state = open_state(folder / STATES, step or newest_step(folder / STATES))
    return {f"{p}/{n}": state.full(f"{p}/{n}") for p in ("weights", "ema") for n in state.names(p)}


def distance(folder, other):
    """Largest relative distance between tensors of two runs."""
    found, expected = tensors_of(folder), tensors_of(other)
    assert found.keys() == expected.keys() and len(found) > 50
    return max(float((found[n] - t).norm() / t.norm()) for n, t in expected.items())


def curve(folder, name):
    return [record[name] for record in read_metrics(folder / "metrics.jsonl") if name in record]


def ids_of(folder, first=0):
    """Samples of each step from the first, in order, whoever had them."""
    steps = {}
    for line in map(json.loads, (folder / "ids.jsonl").read_text().splitlines()):
        if line["step"] >= first:
            steps.setdefault(line["step"], {}).setdefault(int(line["rank"]), []).extend(line["ids"])
    return {step: sum((parts[rank] for rank in sorted(parts)), []) for step, parts in sorted(steps.items())}


def settings_of(name, precision, checkpointing, shards, **run):
    run = {"shards": shards, "gradient_checkpointing": checkpointing, **run}
    return {"name": name, "fit": {"precision": precision}, "run": run}


def assert_alike(folder, other, close):
    assert distance(folder, other) <= close
    for name in ("loss", "grad_norm", "held_out_loss", "held_out_loss_ema", "loss_time_2"):
        found, expected = curve(folder, name), curve(other, name)
        assert len(found) == len(expected) > 0
        assert found == pytest.approx(expected, rel=close), name
    assert ids_of(folder) == ids_of(other) and sorted(ids_of(folder)) == list(range(NUM_STEPS))


def compare_ranks(root, kinds):
    """One rank, two with everything twice, and two with half each, of every kind."""
    for num, shards in ((1, (1,)), (2, (1, 2))):
        jobs = [
            (str(root / f"{num}-{parts}-{number}"), settings_of(kind[0], kind[1], kind[2], parts))
            for parts in shards
            for number, kind in enumerate(kinds)
        ]
        run_ranks(num, jobs)
    for number, kind in enumerate(kinds):
        for ranks in ("2-1", "2-2"):
            assert_alike(root / f"{ranks}-{number}", root / f"1-1-{number}", CLOSE[kind[:2]])


def test_two_ranks_are_one(tmp_path):
    compare_ranks(tmp_path, [("adamw", "fp32", False), ("muon", "fp32", True), ("muon", "bf16", False)])


@pytest.mark.slow
def test_two_ranks_are_one_in_every_way(tmp_path):
    compare_ranks(tmp_path, list(itertools.product(("adamw", "muon"), ("fp32", "bf16"), (False, True))))


def go_on(root, name, close, kinds):
    """A state of two ranks, whole or cut, goes on alike on one, two and four, and as if never stopped."""
    half = NUM_STEPS // 2
    begun = [(root / f"begun-{shards}", shards) for shards in (1, 2)]
    whole = root / "whole"

    def job(folder, shards, **fit):
        settings = settings_of(name, "fp32", False, shards)
        return str(folder), {**settings, "fit": {**settings["fit"], **fit}}

    one_step_each = [job(folder, shards, max_seconds=0.0) for folder, shards in begun]
    run_ranks(2, [*one_step_each * half, job(whole, 2)])
    assert [newest_step(folder / STATES) for folder, _ in begun] == [half, half]
    files = [sorted(p.name for p in (f / STATES / f"step-{half:08d}").iterdir()) for f, _ in begun]
    assert files[0] == ["rank-00000.safetensors", "state.json"]
    assert files[1] == ["rank-00000.safetensors", "rank-00001.safetensors", "state.json"]
    ended = []
    for num, kind in kinds.items():
        jobs = []
        for (folder, saved), shards in itertools.product(begun, kind):
            ended.append(root / f"{saved}-on-{num}-{shards}")
            shutil.copytree(folder, ended[-1])
            (ended[-1] / "ids.jsonl").unlink()
            jobs.append(job(ended[-1], shards))
        run_ranks(num, jobs)
    for folder in ended:
        assert ids_of(folder) == {s: ids for s, ids in ids_of(whole).items() if s >= half}
        assert curve(folder, "lr") == curve(whole, "lr")
    apart = {f.name: distance(f, ended[0]) for f in (*ended, whole)}
    assert max(apart.values()) <= close, apart


@pytest.mark.resume
def test_a_state_of_two_ranks_goes_on_on_any_number(tmp_path):
    go_on(tmp_path, "adamw", 1e-6, {1: (1,), 2: (1,), 4: (2,)})


@pytest.mark.slow
@pytest.mark.resume
@pytest.mark.parametrize(("name", "close"), [("adamw", 1e-6), ("muon", CLOSE["muon", "fp32"])])
def test_a_state_of_two_ranks_goes_on_in_every_way(tmp_path, name, close):
    go_on(tmp_path, name, close, {1: (1,), 2: (1, 2), 4: (1, 2, 4)})


def test_values_computed_twice_change_nothing(tmp_path):
    for shape in ({}, {"fusion": "late", "prediction": "ddpm", "layers": "plain", "cross_layers": 2}):
        kinds = [{**settings_of("adamw", "fp32", c, 1), "shape": shape} for c in (False, True)]
        folders = [tmp_path / f"{len(shape)}-{number}" for number in range(2)]
        run_ranks(1, [(str(folder), kind) for folder, kind in zip(folders, kinds, strict=True)])
        assert distance(*folders) <= 1e-6
        assert curve(folders[0], "loss") == pytest.approx(curve(folders[1], "loss"), rel=1e-6)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="the compiler writes C++")
def test_compiled_blocks_do_what_they_did(tmp_path):
    shape = {"dropout": 0.0}  # whose draws the compiler is free to make in another order
    kinds = [{**settings_of("adamw", "fp32", False, 1, compile=c), "shape": shape} for c in (False, True)]
    folders: list[Path] = [tmp_path / str(number) for number in range(2)]
    run_ranks(1, [(str(folder), kind) for folder, kind in zip(folders, kinds, strict=True)], 3600.0)
    assert distance(*folders) <= 1e-3
    assert curve(folders[0], "loss") == pytest.approx(curve(folders[1], "loss"), rel=1e-3)
