"""The optimizers: who takes which parameter, what decays, and a state that goes through a file."""

import copy

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from lightgen.core.draws import torch_draws
from lightgen.training.optimizer import Optimizer, OptimizerConfig


def optimizer_of(config, net):
    return Optimizer(config, dict(net.named_parameters()))


def fill(optimizer, state):
    """Give an optimizer a saved state."""
    blank = optimizer.make_state(state.keys())
    assert blank.keys() == state.keys()
    for name, tensor in blank.items():
        assert tensor.shape == state[name].shape and tensor.dtype == state[name].dtype and not tensor.any()
        tensor.copy_(state[name])


class Net(nn.Module):
    """One matrix and one bias in a block, and the same outside."""

    def __init__(self):
        super().__init__()
        self.inlet = nn.Linear(6, 8)
        self.blocks = nn.ModuleList([nn.Linear(8, 12)])
        for index, parameter in enumerate(self.parameters()):
            with torch.no_grad():
                parameter.copy_(torch.randn(parameter.shape, generator=torch_draws(0, "test", index)))


def set_gradients(net, step, scale=1.0):
    for index, parameter in enumerate(net.parameters()):
        parameter.grad = scale * torch.randn(parameter.shape, generator=torch_draws(1, "test", step, index))


def changes(config, scale=1.0, factor=1.0):
    net, old = Net(), Net()
    optimizer = optimizer_of(config, net)
    set_gradients(net, 0, scale)
    optimizer.step(factor)
    before = dict(old.named_parameters())
    return {name: (parameter - before[name]).detach() for name, parameter in net.named_parameters()}


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_a_restored_optimizer_goes_on_to_the_bit(name, tmp_path):
    config = OptimizerConfig(name=name)
    net = Net()
    optimizer = optimizer_of(config, net)
    for step in range(3):
        set_gradients(net, step)
        optimizer.step(1.0)
    save_file({n: t.clone() for n, t in optimizer.state_tensors().items()}, tmp_path / "state.safetensors")
    again = copy.deepcopy(net)
    restored = optimizer_of(config, again)
    fill(restored, load_file(tmp_path / "state.safetensors"))
    blank = copy.deepcopy(net)
    forgetful = optimizer_of(config, blank)
    for step in range(3, 6):
        for each, steps in ((net, optimizer), (again, restored), (blank, forgetful)):
            set_gradients(each, step)
            steps.step(0.5)
    for one, other, without in zip(net.parameters(), again.parameters(), blank.parameters(), strict=True):
        assert torch.equal(one, other)
        assert not torch.equal(one, without)


def test_the_state_given_to_load_is_not_changed_by_later_steps():
    net = Net()
    optimizer = optimizer_of(OptimizerConfig(), net)
    set_gradients(net, 0)
    optimizer.step(1.0)
    state = {name: tensor.clone() for name, tensor in optimizer.state_tensors().items()}
    kept = {name: tensor.clone() for name, tensor in state.items()}
    fill(optimizer, state)
    set_gradients(net, 1)
    optimizer.step(1.0)
    assert all(torch.equal(state[name], kept[name]) for name in state)


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_a_saved_state_of_parameters_that_are_not_here_is_left_out(name):
    optimizer = optimizer_of(OptimizerConfig(name=name), Net())
    assert optimizer.make_state(["0.other.weight:exp_avg", "7.inlet.bias:step"]) == {}
    assert optimizer.state_tensors() == {}, "as before the first step"
    made = optimizer.make_state(["0.inlet.bias:step", "0.inlet.bias:exp_avg", "0.other.weight:exp_avg"])
    assert {key: tensor.shape for key, tensor in made.items()} == {
        "0.inlet.bias:step": (),
        "0.inlet.bias:exp_avg": (8,),
    }


def test_adamw_takes_all_and_muon_the_matrices_of_blocks():
    lr = 1e-3
    adamw = changes(OptimizerConfig(name="adamw", lr=lr, weight_decay=0.0))
    for change in adamw.values():  # the first step of Adam is the sign of the gradient
        torch.testing.assert_close(change.abs(), torch.full_like(change, lr), rtol=1e-2, atol=0)
    muon = changes(OptimizerConfig(name="muon", lr=lr, muon_lr=2e-3, weight_decay=0.0))
    for name, change in muon.items():
        if name != "blocks.0.weight":
            assert torch.equal(change, adamw[name])
    values = torch.linalg.svdvals(muon["blocks.0.weight"]) / 2e-3
    # orthogonalised, on the scale at which an orthogonal matrix has the size of an Adam update
    expected = 0.2 * 12**0.5
    assert (values > 0.6 * expected).all() and (values < 1.4 * expected).all()


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_the_factor_multiplies_every_rate(name):
    config = OptimizerConfig(name=name, weight_decay=0.0)
    whole, half, none = (changes(config, factor=factor) for factor in (1.0, 0.5, 0.0))
    for key, change in whole.items():
        torch.testing.assert_close(half[key], change / 2, rtol=1e-2, atol=1e-7)
        assert not none[key].any()


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_only_matrices_decay(name):
    config = OptimizerConfig(name=name, lr=1e-2, muon_lr=1e-2, weight_decay=0.5)
    found = changes(config, scale=0.0)
    for key, parameter in Net().named_parameters():
        expected = -0.005 * parameter.detach() if parameter.ndim == 2 else torch.zeros_like(parameter)
        if name == "muon" and key == "blocks.0.weight":
            assert (
                found[key] * parameter < 0
            ).float().mean() > 0.95  # shrinks, at a rate of Muon's own scale
        else:
            torch.testing.assert_close(found[key], expected, rtol=1e-2, atol=1e-6)
