"""Muon does what torch's does, in a type that the processor multiplies fast."""

import pytest
import torch
from torch import nn

from lightgen.training import muon
from lightgen.training.muon import Muon, orthogonal
from lightgen.training.optimizer import Optimizer, OptimizerConfig


def matrix(rows, columns, seed=0):
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(24, 24), (64, 16), (16, 48)])
def test_steps_are_those_of_torch_where_both_iterate_in_bf16(shape, monkeypatch):
    monkeypatch.setattr(muon, "multiplies_bf16", lambda device: True)
    ours, theirs = nn.Parameter(matrix(*shape)), nn.Parameter(matrix(*shape))
    optimizers = (
        Muon([ours], lr=0.02, weight_decay=0.1),
        torch.optim.Muon([theirs], lr=0.02, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
    )
    for step in range(4):
        for weight, optimizer in zip((ours, theirs), optimizers, strict=True):
            weight.grad = matrix(*shape, seed=step + 1)
            optimizer.step()
    assert torch.allclose(ours, theirs, atol=1e-3)
    assert (ours - matrix(*shape)).abs().max() > 0.02


@pytest.mark.parametrize("is_fast", [True, False])
def test_an_update_has_the_singular_vectors_of_its_matrix_and_values_near_one(is_fast, monkeypatch):
    monkeypatch.setattr(muon, "multiplies_bf16", lambda device: is_fast)
    given = matrix(48, 16)
    found = orthogonal(given)
    assert found.dtype == (torch.bfloat16 if is_fast else torch.float32)
    left, values, right = torch.linalg.svd(given, full_matrices=False)
    turned = left.T @ found.float() @ right.T
    assert turned.diagonal().min() > 0.6 and turned.diagonal().max() < 1.3
    assert (turned - turned.diagonal().diag()).abs().max() < 0.05
    assert values.max() / values.min() > 1.5


def test_biases_by_distance_are_left_to_adamw():
    weights = {
        "text.block.0.relative_attention_bias.weight": nn.Parameter(matrix(8, 4)),
        "text.block.0.q.weight": nn.Parameter(matrix(8, 8)),
    }
    optimizer = Optimizer(OptimizerConfig(name="muon"), weights)
    for weight in weights.values():
        weight.grad = torch.ones_like(weight)
    optimizer.step(1.0)
    keys = {name.split(":")[1] for name in optimizer.state_tensors() if "relative" in name}
    assert keys == {"step", "exp_avg", "exp_avg_sq"}
    assert {n.split(":")[1] for n in optimizer.state_tensors() if "q.weight" in n} == {"momentum_buffer"}
