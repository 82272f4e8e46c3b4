"""Positions: turns that know how far apart two tokens are, and tables that fit any grid."""

import pytest
import torch

from lightgen.core.draws import torch_draws
from lightgen.models.blocks import Attention, BlockConfig
from lightgen.models.positions import axial_angles, diagonal_angles, resample_table, rotate, turns

CHANNELS = 16


def randn(*shape, seed=0):
    return torch.randn(shape, generator=torch_draws(seed, "test"))


def turns_at(positions, size=(12, 12)):
    """Cosine and sine [1, 1, N, E/2] of the tokens at (row, column) positions."""
    angles = axial_angles(*size, CHANNELS // 2)[[row * size[1] + column for row, column in positions]]
    return turns(angles[None], torch.float32)


def scores(positions, seed=0):
    q, k = (randn(1, 1, len(positions), CHANNELS, seed=seed + each) for each in range(2))
    return rotate(q, *turns_at(positions)) @ rotate(k, *turns_at(positions)).transpose(-1, -2)


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
    turned = rotate(x, *turns_at([(0, 0), (1, 2), (7, 3)]))
    torch.testing.assert_close(turned.norm(dim=-1), x.norm(dim=-1))
    assert torch.equal(turned[..., 0, :], x[..., 0, :])
    assert not torch.allclose(turned[..., 1, :], x[..., 1, :])


def test_angles_on_a_grid_of_two_rows_and_three_columns():
    angles = axial_angles(2, 3, 4, base=100.0)
    expected = [[y, 0.1 * y, x, 0.1 * x] for y in range(2) for x in range(3)]
    torch.testing.assert_close(angles, torch.tensor(expected))


def test_half_the_step_lays_a_grid_of_twice_the_size_over_the_same_square():
    half = axial_angles(4, 6, 8, step=0.5).view(4, 6, 8)
    torch.testing.assert_close(half[::2, ::2].flatten(0, 1), axial_angles(2, 3, 8))
    torch.testing.assert_close(half[1, 0], axial_angles(2, 1, 8)[1] / 2)


def test_a_diagonal_goes_through_the_grid_and_beyond():
    grid = axial_angles(3, 3, 8)
    torch.testing.assert_close(diagonal_angles(torch.arange(3.0), 8), grid[[0, 4, 8]])
    places = -torch.arange(1.0, 3.0)[None]
    torch.testing.assert_close(diagonal_angles(places, 8), -grid[None, [4, 8]])


def test_attention_moves_with_its_tokens():
    attention = Attention(BlockConfig(width=32, num_heads=2))
    with torch.no_grad():
        for index, layer in enumerate((attention.q, attention.kv)):
            layer.weight.copy_(randn(*layer.weight.shape, seed=index))
    x, positions = randn(1, 4, 32), [(0, 0), (1, 2), (3, 3), (2, 0)]

    def attended(rotation):
        return attention.attend(attention.queries(x, rotation), *attention.keys_values(x, rotation), None)

    here = attended(turns_at(positions))
    there = attended(turns_at([(row + 5, column + 2) for row, column in positions]))
    torch.testing.assert_close(here, there, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(here, attended(None), atol=1e-3)


def test_a_table_of_the_grids_own_size_stays_as_it_is():
    table = randn(16, 3)
    assert resample_table(table, (4, 4)) is table


@pytest.mark.parametrize("grid", [(3, 5), (5, 3), (1, 7), (8, 2), (4, 9), (16, 24)])
def test_a_table_is_resampled_with_rows_as_rows(grid):
    image = randn(4, 4, 3)
    found = resample_table(image.flatten(0, 1), grid)
    assert found.shape == (grid[0] * grid[1], 3)
    turned = resample_table(image.transpose(0, 1).flatten(0, 1), (grid[1], grid[0]))
    torch.testing.assert_close(found.view(*grid, 3), turned.view(grid[1], grid[0], 3).transpose(0, 1))
    rows = torch.arange(4.0)[:, None, None].expand(4, 4, 1)
    by_row = resample_table(rows.flatten(0, 1), grid).view(grid)
    torch.testing.assert_close(by_row, by_row[:, :1].expand(grid), rtol=0, atol=1e-5)
    assert (by_row[1:, 0] > by_row[:-1, 0] - 1e-5).all()


def test_any_side_comes_out_as_asked():
    for side in range(1, 260):
        assert len(resample_table(torch.zeros(256, 1), (side, 1))) == side
