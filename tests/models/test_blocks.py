"""Layers: attention in steps is attention, what a mask hides, and a text that is one vector."""

import math

import pytest
import torch

from lightgen.core.draws import torch_draws
from lightgen.models.blocks import Attention, Block, BlockConfig, CrossBlock, GatedMLP, PlainMLP

CLOSE = {"rtol": 1e-4, "atol": 1e-5}
LAYERS = ["gated", "plain"]


def randn(*shape, seed=0):
    return torch.randn(shape, generator=torch_draws(seed, "test"))


def drawn(module):
    with torch.no_grad():
        for index, parameter in enumerate(module.parameters()):
            parameter.add_(0.3 * randn(*parameter.shape, seed=index))
    return module.eval()


def config_of(layers="gated", **settings):
    return BlockConfig(width=32, num_heads=2, layers=layers, **settings)


def attended(attention, x, mask=None):
    return attention.attend(attention.queries(x), *attention.keys_values(x), mask)


def test_normalised_attention_is_blind_to_the_scale_of_queries_and_keys():
    gated, plain = (drawn(Attention(config_of(layers))) for layers in LAYERS)
    x = randn(1, 5, 32)
    before = attended(gated, x), attended(plain, x)
    with torch.no_grad():
        for attention in (gated, plain):
            attention.q.weight *= 7
            attention.kv.weight[:32] *= 7
    torch.testing.assert_close(attended(gated, x), before[0], rtol=1e-3, atol=1e-4)
    assert not torch.allclose(attended(plain, x), before[1], atol=1e-2)


@pytest.mark.parametrize("layers", LAYERS)
def test_masked_tokens_are_not_attended_to(layers):
    attention = drawn(Attention(config_of(layers)))
    x = randn(1, 5, 32)
    mask = torch.tensor([True, True, False, True, True]).view(1, 1, 1, 5)
    changed = x.clone()
    changed[:, 2] = 10 * randn(32, seed=3)
    seen = [0, 1, 3, 4]
    torch.testing.assert_close(
        attended(attention, changed, mask)[:, seen], attended(attention, x, mask)[:, seen]
    )
    assert not torch.allclose(attended(attention, changed)[:, seen], attended(attention, x)[:, seen])


def test_the_gated_mlp_is_value_times_swish_of_gate():
    mlp = GatedMLP(2)
    with torch.no_grad():
        for parameter in mlp.parameters():
            parameter.zero_()
        hidden = mlp.fc2.in_features
        mlp.fc1.weight[0, 0], mlp.fc1.weight[hidden, 1] = 2.0, 3.0  # value 2 a, gate 3 b
        mlp.fc2.weight[:, 0] = torch.tensor([1.0, -1.0])
    a, b = 0.5, 0.25
    expected = 2 * a * (3 * b / (1 + math.exp(-3 * b)))
    torch.testing.assert_close(mlp(torch.tensor([a, b])), torch.tensor([expected, -expected]))


@pytest.mark.parametrize("width", [4, 16, 256, 1024])
def test_the_gated_mlp_costs_about_what_a_plain_one_does(width):
    hidden = GatedMLP(width).fc2.in_features
    assert hidden >= 64 and hidden % 64 == 0
    assert width < 64 or math.isclose(3 * hidden, 8 * width, rel_tol=0.07)


def test_the_plain_mlp_may_use_either_gelu():
    exact, approximate = PlainMLP(1, 1, 1), PlainMLP(1, 1, 1, approximate="tanh")
    for mlp in (exact, approximate):
        for layer in (mlp.fc1, mlp.fc2):
            torch.nn.init.ones_(layer.weight)
            torch.nn.init.zeros_(layer.bias)
    x = torch.tensor([1.5])
    inner = math.sqrt(2 / math.pi) * (1.5 + 0.044715 * 1.5**3)
    assert math.isclose(exact(x).item(), 0.75 * (1 + math.erf(1.5 / math.sqrt(2))), rel_tol=1e-6)
    assert math.isclose(approximate(x).item(), 0.75 * (1 + math.tanh(inner)), rel_tol=1e-6)
    assert exact(x) != approximate(x)


@pytest.mark.parametrize("layers", LAYERS)
@pytest.mark.parametrize("length", [1, 6])
def test_a_block_without_output_weights_is_the_identity(layers, length):
    block = Block(config_of(layers))
    for layer in (block.attn.proj, block.mlp.fc2):
        for parameter in layer.parameters():
            torch.nn.init.zeros_(parameter)
    x = randn(2, length, 32)
    assert torch.equal(block(x), x)


@pytest.mark.parametrize("layers", LAYERS)
def test_a_block_may_pass_some_tokens_that_see_all(layers):
    block, x = drawn(Block(config_of(layers))), randn(2, 6, 32)
    angles = randn(2, 1, 6, 8, seed=4)
    rotation = angles.cos(), angles.sin()
    whole = block(x, None, rotation)
    for wanted in (slice(2, 5), slice(0, 6), slice(5, 6)):
        projected = block.project(x, rotation, wanted)
        assert projected.k.shape[2] == 6 and projected.q.shape[2] == wanted.stop - wanted.start
        torch.testing.assert_close(block.update(projected, None), whole[:, wanted], **CLOSE)


@pytest.mark.parametrize("layers", LAYERS)
@pytest.mark.parametrize("residual", ["normed", "prenorm"])
@pytest.mark.parametrize("masked", [True, False])
def test_a_text_of_equal_tokens_is_a_constant(layers, residual, masked):
    block = drawn(CrossBlock(config_of(layers), residual))
    x, word = randn(2, 5, 32), randn(32, seed=1)
    mask = (torch.arange(7) < 3).expand(2, 7)[:, None, None] if masked else None
    memory = block.remember(word.expand(2, 7, -1), mask)
    torch.testing.assert_close(block(x, block.constant(word)), block(x, memory), **CLOSE)
    other = block.remember(randn(2, 7, 32, seed=2), mask)
    assert (block(x, other) - block(x, memory)).abs().max() > 1e-2


def test_the_released_cross_block_adds_to_the_normalised_query():
    x, text = randn(2, 5, 32), randn(2, 3, 32, seed=1)
    blocks = {residual: drawn(CrossBlock(config_of("plain"), residual)) for residual in ("normed", "prenorm")}
    for block in blocks.values():
        for layer in (block.attn.proj, block.mlp.fc2):
            for parameter in layer.parameters():
                torch.nn.init.zeros_(parameter)
    found = {residual: block(x, block.remember(text, None)) for residual, block in blocks.items()}
    assert torch.equal(found["prenorm"], x)
    torch.testing.assert_close(found["normed"], blocks["normed"].norm_q(x))


def test_dropout_acts_at_every_place_in_training_alone():
    attention, mlp, x = Attention(config_of(dropout=0.5)), GatedMLP(32, 0.5), randn(2, 4, 32)
    for module, run in ((attention, lambda: attended(attention, x)), (mlp, lambda: mlp(x))):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            module.train()
            assert not torch.equal(run(), run())
            assert (run() == 0).float().mean() > 0.2  # dropped after the last matrix
            module.eval()
            assert torch.equal(run(), run())


def test_in_autocast_attention_takes_one_dtype():
    attention, x = drawn(Attention(config_of())), randn(2, 4, 32)
    angles = randn(2, 1, 4, 8)
    with torch.autocast("cpu", torch.bfloat16):
        q = attention.queries(x, (angles.cos(), angles.sin()))
        k, v = attention.keys_values(x, (angles.cos(), angles.sin()))
        assert q.dtype == k.dtype == v.dtype == torch.bfloat16
        assert torch.isfinite(attention.attend(q, k, v, None)).all()
