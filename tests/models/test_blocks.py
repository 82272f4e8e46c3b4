"""Attention and rotary positions: scores know how far apart two tokens are, and nothing of where they are."""

import math

import pytest
import torch

from lightgen.core.draws import torch_draws
from lightgen.models.blocks import Attention, Block, GatedMLP, axial_angles, rotate

CHANNELS = 16


def randn(*shape, seed=0):
    return torch.randn(shape, generator=torch_draws(seed, "test"))


def turns(positions, size=(12, 12)):
    """Cosine and sine [1, 1, N, E/2] of the tokens at (row, column) positions."""
    angles = axial_angles(*size, CHANNELS // 2)[[row * size[1] + column for row, column in positions]]
    return angles.cos()[None, None], angles.sin()[None, None]


def scores(positions, seed=0):
    q, k = (
        randn(1, 1, len(positions), CHANNELS, seed=seed),
        randn(1, 1, len(positions), CHANNELS, seed=seed + 1),
    )
    return rotate(q, *turns(positions)) @ rotate(k, *turns(positions)).transpose(-1, -2)


def test_scores_depend_on_relative_positions_only():
    positions = [(0, 0), (0, 3), (2, 1), (5, 4)]
    for down, right in ((0, 1), (3, 0), (6, 7)):
        moved = [(row + down, column + right) for row, column in positions]
        torch.testing.assert_close(scores(moved), scores(positions), rtol=1e-4, atol=1e-4)


def test_rows_columns_and_directions_are_told_apart():
    found = [scores([(4, 4), other])[..., 0, 1] for other in ((4, 4), (4, 5), (5, 4), (4, 3), (3, 4), (5, 5))]
    for i, first in enumerate(found):
        for second in found[:i]:
            assert (first - second).abs() > 1e-3


def test_a_rotation_keeps_lengths_and_leaves_the_origin_alone():
    x = randn(1, 1, 3, CHANNELS)
    turned = rotate(x, *turns([(0, 0), (1, 2), (7, 3)]))
    torch.testing.assert_close(turned.norm(dim=-1), x.norm(dim=-1))
    assert torch.equal(turned[..., 0, :], x[..., 0, :])
    assert not torch.allclose(turned[..., 1, :], x[..., 1, :])


def test_angles_on_a_grid_of_two_rows_and_three_columns():
    angles = axial_angles(2, 3, 4, base=100.0)
    expected = [[y, 0.1 * y, x, 0.1 * x] for y in range(2) for x in range(3)]
    torch.testing.assert_close(angles, torch.tensor(expected))


def test_attention_moves_with_its_tokens():
    attention = Attention(32, 2)
    with torch.no_grad():
        attention.qkv.weight.copy_(randn(96, 32, seed=1))
    x, positions = randn(1, 4, 32), [(0, 0), (1, 2), (3, 3), (2, 0)]
    here = attention(x, None, turns(positions))
    there = attention(x, None, turns([(row + 5, column + 2) for row, column in positions]))
    torch.testing.assert_close(here, there, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(here, attention(x, None, None), atol=1e-3)


def test_attention_is_blind_to_the_scale_of_queries_and_keys():
    attention = Attention(32, 2)
    x = randn(1, 5, 32)
    before = attention(x, None, None)
    with torch.no_grad():
        attention.qkv.weight[:64] *= 7
    torch.testing.assert_close(attention(x, None, None), before, rtol=1e-3, atol=1e-4)


def test_masked_tokens_are_not_attended_to():
    attention = Attention(32, 2)
    x = randn(1, 5, 32)
    mask = torch.tensor([True, True, False, True, True]).view(1, 1, 1, 5)
    changed = x.clone()
    changed[:, 2] = 10 * randn(32, seed=3)
    seen = [0, 1, 3, 4]
    torch.testing.assert_close(attention(changed, mask, None)[:, seen], attention(x, mask, None)[:, seen])
    assert not torch.allclose(attention(changed, None, None)[:, seen], attention(x, None, None)[:, seen])


def test_the_gated_mlp_is_value_times_swish_of_gate():
    mlp = GatedMLP(2, 1)
    with torch.no_grad():
        mlp.fc1.weight.copy_(torch.tensor([[2.0, 0.0], [0.0, 3.0]]))  # value 2 a, gate 3 b
        mlp.fc2.weight.copy_(torch.tensor([[1.0], [-1.0]]))
    a, b = 0.5, 0.25
    expected = 2 * a * (3 * b / (1 + math.exp(-3 * b)))
    torch.testing.assert_close(mlp(torch.tensor([a, b])), torch.tensor([expected, -expected]))


@pytest.mark.parametrize("length", [1, 6])
def test_a_block_without_output_weights_is_the_identity(length):
    block = Block(32, 2)
    torch.nn.init.zeros_(block.attn.proj.weight)
    torch.nn.init.zeros_(block.mlp.fc2.weight)
    x = randn(2, length, 32)
    assert torch.equal(block(x, None, None), x)
