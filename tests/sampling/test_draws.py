"""Noise by seed, token and step: the same in any batch, whatever else is drawn."""

import pytest
import torch

from lightgen.sampling.draws import draw
from lightgen.sampling.order import draw_order


def test_an_image_draws_the_same_alone_and_in_any_batch():
    together = draw([3, 8, 5], 12, 4, 6, None)
    assert together.start.shape == (3, 12, 4) and together.steps.shape == (6, 3, 12, 4)
    for row, seed in enumerate([3, 8, 5]):
        alone = draw([seed], 12, 4, 6, None)
        assert torch.equal(alone.order[0], together.order[row])
        assert torch.equal(alone.start[0], together.start[row])
        assert torch.equal(alone.steps[:, 0], together.steps[:, row])


def test_more_steps_change_no_steps_noise():
    few, many, none = (draw([3], 12, 4, num, None) for num in (4, 9, 0))
    assert torch.equal(few.steps, many.steps[:4])
    assert none.steps is None
    assert torch.equal(few.start, many.start) and torch.equal(few.start, none.start)


def test_seeds_steps_and_the_start_draw_apart():
    draws = draw([3, 4], 12, 4, 2, None)
    noises = [*draws.start, *draws.steps.flatten(0, 1)]
    for i, first in enumerate(noises):
        for second in noises[:i]:
            assert not torch.equal(first, second)
    assert abs(torch.stack(noises).std() - 1) < 0.1 and abs(torch.stack(noises).mean()) < 0.1


@pytest.mark.parametrize("shared", [True, False])
def test_known_tokens_come_after_all_others_and_change_no_noise(shared):
    at = [[1, 5, 6], [1, 5, 6]] if shared else [[1, 5, 6], [0, 2, 11]]
    mask = torch.zeros(2, 12, dtype=torch.bool)
    for row, positions in enumerate(at):
        mask[row, positions] = True
    draws, free = draw([3, 4], 12, 4, 2, mask[0] if shared else mask), draw([3, 4], 12, 4, 2, None)
    assert torch.equal(draws.start, free.start) and torch.equal(draws.steps, free.steps)
    for row, seed in enumerate([3, 4]):
        order = draws.order[row].tolist()
        assert sorted(order[9:]) == at[row]
        assert order[:9] == [p for p in draw_order(seed, 12).tolist() if p not in at[row]]
