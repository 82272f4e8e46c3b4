import time

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


# Taken from the one-position implementation in Python integers; a change breaks every exact resume.
FROZEN = [
    (3, "order", 0, 10, range(10), [2, 1, 0, 3, 9, 4, 8, 5, 7, 6]),
    (3, "order", 7, 1000, [0, 1, 2, 500, 998, 999], [1, 895, 614, 864, 777, 718]),
    (0, "order", 0, 1, [0], [0]),
    (1, "order", 2, 2, [0, 1], [1, 0]),
    (5, "order", 1, 4, [0, 1, 2, 3], [0, 3, 2, 1]),
    (12345, "a b/c", 41, 2_000_003, [0, 1, 1_000_000, 2_000_002], [1017233, 777710, 135058, 724375]),
    (
        2**62,
        "order",
        10**9,
        2**40 + 1,
        [0, 1, 2**39, 2**40],
        [237307976597, 502072665183, 888629597908, 494258278368],
    ),
    (
        5,
        "order",
        1,
        2**62,
        [0, 2**61, 2**62 - 1],
        [2683908998512476633, 1541142876194429455, 2507278986063850214],
    ),
    (5, "order", 1, 2**63 - 1, [0, 2**63 - 2], [8734869519722088178, 8255028411393948370]),
]


@pytest.mark.parametrize(("seed", "purpose", "epoch", "size", "positions", "expected"), FROZEN)
def test_permuted_is_frozen_and_each_position_stands_alone(seed, purpose, epoch, size, positions, expected):
    together = permuted(seed, purpose, epoch, positions, size)
    assert together.dtype == np.int64 and together.tolist() == expected
    backwards = np.array(positions, dtype=np.int64)[::-1]
    assert permuted(seed, purpose, epoch, backwards, size).tolist() == expected[::-1]
    alone = [permuted(seed, purpose, epoch, [position], size).item() for position in positions]
    assert alone == expected


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 64, 100, 257, 1000])
def test_permuted_is_a_bijection_that_differs_by_epoch(size):
    orders = [permuted(3, "order", epoch, np.arange(size), size).tolist() for epoch in range(2)]
    for order in orders:
        assert sorted(order) == list(range(size))
    if size >= 64:
        assert orders[0] != orders[1]
        assert sum(a == b for a, b in zip(orders[0], range(size), strict=True)) < size / 8


def test_permuted_is_even():
    counts = np.zeros((10, 10))
    for epoch in range(2000):
        counts[np.arange(10), permuted(0, "order", epoch, np.arange(10), 10)] += 1
    assert abs(counts - 200).max() < 75  # five and a half standard deviations


def test_permuted_leaves_its_argument_alone_and_takes_none():
    positions = np.arange(5, dtype=np.uint64)
    permuted(0, "order", 0, positions, 5)
    assert positions.tolist() == [0, 1, 2, 3, 4]
    assert permuted(0, "order", 0, [], 5).tolist() == []


@pytest.mark.parametrize("positions", [[5], [-1], [0, 5], [0.0], [[0]]])
def test_permuted_refuses_what_is_no_position(positions):
    with pytest.raises(AssertionError):
        permuted(0, "order", 0, positions, 5)


def test_permuted_is_quick():
    """A loop over positions in Python takes several times the limit."""
    size, seconds = 2**22 + 1, []  # the size that is walked longest
    for epoch in range(5):
        began = time.perf_counter()
        permuted(0, "order", epoch, np.arange(2048), size)
        seconds.append(time.perf_counter() - began)
    assert min(seconds) < 0.01
