"""Latents as tokens: the order of everything in them, and the way back."""

import pytest
import torch

from lightgen.core.draws import torch_draws
from lightgen.models.tokens import patchify, tokens_at, tokens_placed, unpatchify


def randn(*shape, seed=0):
    return torch.randn(shape, generator=torch_draws(seed, "test"))


def test_tokens_run_by_row_and_hold_channel_row_column():
    first = torch.tensor([[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11], [12, 13, 14, 15]])
    latents = torch.stack([first, first + 100])[None]
    assert patchify(latents, 2).tolist() == [
        [
            [0, 1, 4, 5, 100, 101, 104, 105],
            [2, 3, 6, 7, 102, 103, 106, 107],
            [8, 9, 12, 13, 108, 109, 112, 113],
            [10, 11, 14, 15, 110, 111, 114, 115],
        ]
    ]
    wide = torch.arange(8).view(1, 1, 2, 4)
    assert patchify(wide, 2).tolist() == [[[0, 1, 4, 5], [2, 3, 6, 7]]]
    assert patchify(wide, 1).tolist() == [[[i] for i in range(8)]]


@pytest.mark.parametrize("patch", [1, 2, 3])
@pytest.mark.parametrize("grid", [(1, 1), (2, 5), (5, 2), (3, 3)])
def test_unpatchify_is_the_inverse(patch, grid):
    latents = randn(2, 3, grid[0] * patch, grid[1] * patch)
    tokens = patchify(latents, patch)
    assert tokens.shape == (2, grid[0] * grid[1], 3 * patch**2)
    assert torch.equal(unpatchify(tokens, patch, grid), latents)


def test_tokens_are_taken_from_and_put_at_positions():
    tokens = torch.arange(12.0).view(2, 3, 2)
    order = torch.tensor([[2, 0, 1], [1, 2, 0]])
    taken = tokens_at(tokens, order)
    assert taken[0].tolist() == [[4, 5], [0, 1], [2, 3]]
    assert taken[1].tolist() == [[8, 9], [10, 11], [6, 7]]
    assert tokens_at(tokens, order[:, :1]).tolist() == [[[4, 5]], [[8, 9]]]
    assert torch.equal(tokens_placed(taken, order), tokens)
