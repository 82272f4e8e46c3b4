"""A run of five steps, as a program for the tests of ranks: arguments FOLDER OUTCOME."""

import json
import sys
from pathlib import Path

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from lightgen.core.draws import torch_draws
from tests.training.toy import Settings, go


def objective(learner, batch, step):
    error = learner(batch["x"]) - batch["y"]
    over = torch.stack([error.detach().sum(), torch.tensor(2.0 * len(error))])
    return error.square().mean(), {"largest": error.detach().abs().mean(), "over": over}


def train(folder):
    """All weights after the run."""
    learner = nn.ModuleDict({"inlet": nn.Linear(5, 6), "block": nn.Linear(6, 6), "outlet": nn.Linear(6, 2)})
    learner.forward = lambda x: learner["outlet"](
        torch.tanh(learner["block"](torch.tanh(learner["inlet"](x))))
    )
    with torch.no_grad():
        for index, parameter in enumerate(learner.parameters()):
            parameter.copy_(0.5 * torch.randn(parameter.shape, generator=torch_draws(0, "test", index)))
    go(Settings("muon", num_steps=5, micro_batch_size=2), learner, objective, folder)
    whole = (p.full_tensor() if isinstance(p, DTensor) else p for p in learner.parameters())
    return torch.cat([weight.detach().flatten() for weight in whole]).tolist()


if __name__ == "__main__":
    Path(sys.argv[2]).write_text(json.dumps(train(Path(sys.argv[1]))))
