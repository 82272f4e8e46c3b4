"""A small regression, its samples and its runs, for the tests of training."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from lightgen.core.draws import torch_draws
from lightgen.core.metrics import read_metrics
from lightgen.training.config import FitConfig, RunConfig
from lightgen.training.fit import Training, fit
from lightgen.training.optimizer import OptimizerConfig
from lightgen.training.schedule import ScheduleConfig
from lightgen.training.state import State, newest_step

NUM_STEPS = 8
SIZE = 6


class Net(nn.Module):
    """A small regression with a matrix in a block, for Muon, and a buffer that moves."""

    def __init__(self):
        super().__init__()
        self.inlet, self.blocks = nn.Linear(5, 6), nn.ModuleList([nn.Linear(6, 6)])
        self.norm, self.outlet = nn.BatchNorm2d(6), nn.Linear(6, 2)
        for index, parameter in enumerate(self.parameters()):
            with torch.no_grad():
                parameter.copy_(0.5 * torch.randn(parameter.shape, generator=torch_draws(0, "test", index)))

    def forward(self, x):
        for layer in (self.inlet, self.blocks[0]):
            x = torch.tanh(layer(x.to(self.inlet.weight.dtype)))
        return self.outlet(self.mixed(x.float()).to(self.outlet.weight.dtype))

    def mixed(self, hidden):
        return self.norm(hidden[..., None, None]).flatten(1)


class Plain(Net):
    """Without batch statistics, which depend on how a batch is cut."""

    def mixed(self, hidden):
        return hidden


class ToySource:
    """Samples of the regression; those of step s are 6 s to 6 s + 5."""

    def ids(self, step: int) -> Sequence[int]:
        return range(SIZE * step, SIZE * (step + 1))

    def load(self, ids: Sequence[int], step: int) -> dict[str, Any]:
        x = torch.stack([torch.randn(5, generator=torch_draws(1, "test-sample", i)) for i in ids])
        return {"x": x, "y": x[:, :2].sin(), "ids": list(ids)}


SOURCE = ToySource()


def objective(learner, batch, step):
    assert len(batch["ids"]) == len(batch["x"])
    error = learner(batch["x"]).float() - batch["y"]
    positive = error.detach()[error > 0]
    shown = {
        "largest": error.detach().abs().max(),
        "over": torch.stack([positive.sum(), torch.tensor(1.0 * len(positive))]),
    }
    return error.square().mean(), shown


class Settings:
    """Both configs of a run, small by default; each setting goes where it belongs."""

    def __init__(self, name: Literal["adamw", "muon"] = "adamw", **settings: Any) -> None:
        own = {each.name for each in dataclasses.fields(RunConfig)}
        defaults = {"num_steps": NUM_STEPS, "global_batch_size": SIZE, "precision": "fp32", "ema_decay": 0.8}
        defaults["schedule"] = ScheduleConfig(kind="wsd", warmup_steps=2, decay_steps=3)
        defaults["optimizer"] = OptimizerConfig(name=name, lr=1e-2, muon_lr=2e-2)
        how = {"save_every": 3, "log_every": 1, **{n: v for n, v in settings.items() if n in own}}
        self.fit = FitConfig(**{**defaults, **{n: v for n, v in settings.items() if n not in own}})
        self.run = RunConfig(**how)


def go(
    settings: Settings, learner: nn.Module, loss: Any, folder: Path, source: Any = SOURCE, **more: Any
) -> int:
    training = Training(learner=learner, objective=loss, source=source, **more)
    return fit(settings.fit, training, folder, settings.run)


class Killed(BaseException):
    """The end of a process, as far as the loop can see."""


def killed_at(step_of_death, inner=objective):
    def loss(learner, batch, step):
        if step == step_of_death:
            raise Killed
        return inner(learner, batch, step)

    return loss


def spoiled(at, how=float("nan"), sample=0):
    """The objective, with one sample's error multiplied by nan or inf in the steps `at`."""

    def loss(learner, batch, step):
        error = (learner(batch["x"]).float() - batch["y"]).square().mean(dim=1)
        factors = [how if step in at and i == SIZE * step + sample else 1.0 for i in batch["ids"]]
        return (error * torch.tensor(factors)).mean(), {}

    return loss


def saved(
    folder: Path, parts=("weights", "buffers", "ema", "optimizer")
) -> tuple[int, dict[str, torch.Tensor]]:
    """Step and tensors of the newest state that is whole."""
    step = newest_step(folder)
    state = State(folder / f"step-{step:08d}")
    return step, {f"{p}/{n}": state.full(f"{p}/{n}") for p in parts for n in state.names(p)}


def by_clock(name):
    return name.endswith("_s") or name in ("mfu", "memory_gb")


def numbers(folder):
    """The metrics without what the clock says."""
    records = read_metrics(folder / "metrics.jsonl")
    return [{name: value for name, value in record.items() if not by_clock(name)} for record in records]


def assert_same(first, second):
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert tensor.dtype == second[name].dtype and torch.equal(tensor, second[name]), name
