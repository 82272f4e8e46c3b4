"""The first 20 steps of a toy recipe, as they once were; a change that moves them needs a reason.

A failure prints the numbers of today in the form of trajectory.json.
"""

import json
from pathlib import Path

import pytest

from lightgen.core.metrics import read_metrics
from lightgen.data.order import sample_ids
from lightgen.objectives.masked import MaskedConfig, MaskedObjective
from lightgen.training.fit import FitConfig, fit
from lightgen.training.optimizer import OptimizerConfig
from lightgen.training.schedule import ScheduleConfig

REFERENCE = Path(__file__).with_name("trajectory.json")


def test_twenty_steps_of_the_toy_recipe(make_student, make_batch, tmp_path):
    config = FitConfig(
        num_steps=20,
        global_batch_size=8,
        micro_batch_size=5,
        optimizer=OptimizerConfig(name="muon", lr=2e-3, muon_lr=4e-3),
        schedule=ScheduleConfig(kind="wsd", warmup_steps=4, decay_steps=6),
        precision="fp32",
        save_every=100,
        log_every=1,
    )
    objective = MaskedObjective(MaskedConfig(draws_per_token=2))
    fit(config, make_student(), objective, lambda step: make_batch(sample_ids(0, step, 8, 40)), tmp_path)
    records = read_metrics(tmp_path / "metrics.jsonl")
    found = {name: [float(f"{record[name]:.7g}") for record in records] for name in ("loss", "grad_norm")}
    reference = json.loads(REFERENCE.read_text())
    assert len(found["loss"]) == 20
    message = json.dumps(found)
    assert found["loss"] == pytest.approx(reference["loss"], rel=1e-4), message
    assert found["grad_norm"] == pytest.approx(reference["grad_norm"], rel=1e-3), message
