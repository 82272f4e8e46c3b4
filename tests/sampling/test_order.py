"""When tokens are decoded: schedules that end, and orders that hang on a seed alone."""

import pytest
import torch

from lightgen.sampling.order import draw_order, unknown_after


@pytest.mark.parametrize("num_unknown", [1, 2, 5, 63, 64, 256])
@pytest.mark.parametrize("num_iterations", [1, 2, 7, 16, 64, 300])
def test_every_iteration_decodes_and_the_last_one_ends(num_unknown, num_iterations):
    left = unknown_after(num_unknown, num_iterations)
    decoded = [before - after for before, after in zip([num_unknown, *left], left, strict=False)]
    assert min(decoded) >= 1
    assert sum(decoded) == num_unknown and left[-1] == 0
    assert len(left) <= min(num_unknown, num_iterations)


def test_the_schedule_is_a_cosine():
    assert unknown_after(64, 4) == [59, 45, 24, 0]
    assert unknown_after(64, 1) == [0]
    assert unknown_after(3, 50) == [2, 1, 0]


def test_an_order_is_a_permutation_of_its_seed():
    order = draw_order(3, 40)
    assert sorted(order.tolist()) == list(range(40))
    assert torch.equal(order, draw_order(3, 40))
    assert not torch.equal(order, draw_order(4, 40))
    assert not torch.equal(order, torch.arange(40))
