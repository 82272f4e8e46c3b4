"""Numbers of a run that are refused, each with one line that says what is allowed."""

from dataclasses import replace

import pytest

from lightgen.core.errors import UserError
from lightgen.training.config import FitConfig, RunConfig
from lightgen.training.optimizer import OptimizerConfig
from lightgen.training.schedule import ScheduleConfig
from tests.training.toy import Net, Settings, go, objective

FIT = FitConfig(num_steps=10)
WHOLE = "allowed: a whole number from 1"


def refused(config):
    with pytest.raises(UserError) as caught:
        config.check()
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"num_steps": 0}, "training: got num_steps 0, allowed: from 1 to 1000000000"),
        ({"global_batch_size": -2}, "training: got global_batch_size -2, allowed: from 1 to 1048576"),
        ({"max_grad_norm": 0.0}, "training: got max_grad_norm 0.0, allowed: above 0"),
        ({"max_grad_norm": float("nan")}, "training: got max_grad_norm nan, allowed: above 0"),
        ({"ema_decay": 1.0}, "training: got ema_decay 1.0, allowed: from 0 to below 1"),
        ({"max_bad_steps": 0}, f"training: got max_bad_steps 0, {WHOLE}"),
        ({"held_out": -1}, "training: got held_out -1, allowed: a whole number from 0"),
        (
            {"optimizer": OptimizerConfig(lr=-1e-3)},
            "optimizer: got lr -0.001, muon_lr 0.002, weight_decay 0.02, betas (0.9, 0.95), "
            "allowed: rates from 0, betas from 0 to below 1",
        ),
        ({"optimizer": OptimizerConfig(betas=(0.9, 1.0))}, "betas (0.9, 1.0), allowed: rates from 0"),
        (
            {"schedule": ScheduleConfig(decay_steps=11)},
            "schedule: got decay_steps 11, allowed: up to the 10 steps of the run",
        ),
        (
            {"schedule": ScheduleConfig(warmup_steps=-1, final=2.0)},
            "schedule: got warmup_steps -1, decay_steps 0, final 2.0, "
            "allowed: steps from 0, final from 0 to 1",
        ),
    ],
)
def test_what_is_learned_is_checked(change, told):
    FIT.check()
    assert told in refused(replace(FIT, **change))


@pytest.mark.parametrize(
    ("name", "values", "allowed"),
    [
        ("micro_batch_size", (0, -1), "a whole number from 1"),
        ("shards", (0,), "a whole number from 1"),
        ("save_every", (0,), "a whole number from 1"),
        ("keep_last", (0,), "a whole number from 1"),
        ("keep_every", (0,), "a whole number from 1"),
        ("log_every", (0,), "a whole number from 1"),
        ("held_out_every", (0,), "a whole number from 1"),
        ("sample_every", (0,), "a whole number from 1"),
        ("workers", (-1, 65), "from 0 to 64"),
        ("timeout_s", (0.0, -1.0, float("nan")), "above 0, up to 10000000"),
        ("max_bad_share", (-0.1, 1.1), "from 0 to 1"),
    ],
)
def test_how_it_runs_is_checked(name, values, allowed):
    RunConfig().check()
    for value in values:
        told = refused(replace(RunConfig(), **{name: value}))
        assert told == f"training: got {name} {value}, allowed: {allowed}"


def test_numbers_at_the_border_are_taken():
    schedule = ScheduleConfig(decay_steps=10)
    replace(FIT, schedule=schedule, global_batch_size=1, ema_decay=0.0, max_bad_steps=1).check()
    replace(FIT, schedule=ScheduleConfig(kind="cosine", decay_steps=11)).check()
    RunConfig(micro_batch_size=1, workers=0, keep_last=1, keep_every=1, max_bad_share=0.0).check()


@pytest.mark.parametrize("change", [{"num_steps": 0}, {"log_every": 0}, {"shards": 2}])
def test_a_refused_run_leaves_nothing(tmp_path, change):
    with pytest.raises(UserError, match="training: got"):
        go(Settings(**change), Net(), objective, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_batch_that_does_not_divide_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(
        UserError, match="got a global batch of 6 on 4 ranks, allowed: a multiple of the ranks"
    ):
        go(Settings(), Net(), objective, tmp_path)
