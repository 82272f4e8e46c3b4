"""A run of five steps, as a program for the tests of ranks: arguments FOLDER OUTCOME."""

import json
import sys
from pathlib import Path

import torch
from torch import nn

from lightgen.core.draws import torch_draws
from lightgen.training.fit import FitConfig, fit
from lightgen.training.optimizer import OptimizerConfig


def batches(step):
    x = torch.randn(6, 5, generator=torch_draws(1, "test-batch", step))
    return {"x": x, "y": x[:, :2].sin()}


def objective(learner, batch, step):
    error = learner(batch["x"]) - batch["y"]
    return error.square().mean(), {"largest": error.abs().mean().item()}


def train(folder):
    """All weights after the run."""
    learner = nn.ModuleDict({"inlet": nn.Linear(5, 6), "block": nn.Linear(6, 6), "outlet": nn.Linear(6, 2)})
    learner.forward = lambda x: learner["outlet"](
        torch.tanh(learner["block"](torch.tanh(learner["inlet"](x))))
    )
    with torch.no_grad():
        for index, parameter in enumerate(learner.parameters()):
            parameter.copy_(0.5 * torch.randn(parameter.shape, generator=torch_draws(0, "test", index)))
    config = FitConfig(
        num_steps=5,
        global_batch_size=6,
        micro_batch_size=2,
        optimizer=OptimizerConfig(name="muon", lr=1e-2, muon_lr=2e-2),
        precision="fp32",
        save_every=3,
        log_every=1,
    )
    fit(config, learner, objective, batches, folder)
    return torch.cat([parameter.detach().flatten() for parameter in learner.parameters()]).tolist()


if __name__ == "__main__":
    Path(sys.argv[2]).write_text(json.dumps(train(Path(sys.argv[1]))))
