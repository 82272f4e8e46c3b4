import numpy as np
import pytest
import torch

from lightgen.core.draws import draw_key, numpy_draws, permuted, torch_draws


def test_a_key_depends_on_every_part_of_the_name_and_on_nothing_else():
    names = [
        (0, "noise"),
        (1, "noise"),
        (0, "mask"),
        (0, "noise", 1),
        (0, "noise", 1, 2),
        (0, "noise", 12),
        (12, "a"),
    ]
    keys = [draw_key(*name) for name in names]
    assert len(set(keys)) == len(names)
    assert keys == [draw_key(*name) for name in names]
    assert all(0 <= key < 2**63 for key in keys)
    assert draw_key(7, "noise", 3, 4) == 4428069909306569500  # frozen: a change breaks every exact resume


def test_draws_do_not_touch_and_do_not_heed_the_global_state():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = torch.randn(3, generator=torch_draws(1, "noise", 5))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(99)
    assert torch.equal(first, torch.randn(3, generator=torch_draws(1, "noise", 5)))
    np.random.seed(0)
    assert numpy_draws(1, "noise").integers(1 << 60) == numpy_draws(1, "noise").integers(1 << 60)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 64, 100, 257, 1000])
def test_permuted_is_a_bijection_that_differs_by_epoch(size):
    orders = [[permuted(3, "order", epoch, i, size) for i in range(size)] for epoch in range(2)]
    for order in orders:
        assert sorted(order) == list(range(size))
    if size >= 64:
        assert orders[0] != orders[1]
        assert sum(a == b for a, b in zip(orders[0], range(size), strict=True)) < size / 8


def test_permuted_is_even():
    counts = np.zeros((10, 10))
    for epoch in range(2000):
        for position in range(10):
            counts[position, permuted(0, "order", epoch, position, 10)] += 1
    assert abs(counts - 200).max() < 75  # five and a half standard deviations


def test_permuted_refuses_a_position_outside():
    with pytest.raises(AssertionError):
        permuted(0, "order", 0, 5, 5)
