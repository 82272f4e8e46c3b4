"""Learning-rate factors against their closed forms."""

import math

import pytest

from lightgen.training.schedule import ScheduleConfig, lr_factor


def factors(num_steps, **settings):
    return [lr_factor(ScheduleConfig(**settings), step, num_steps) for step in range(num_steps)]


@pytest.mark.parametrize("kind", ["constant", "wsd", "cosine"])
def test_warm_up_rises_evenly_to_the_peak(kind):
    found = factors(20, kind=kind, warmup_steps=4)
    assert found[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]


def test_constant_stays_at_the_peak():
    assert factors(6, kind="constant", warmup_steps=0, decay_steps=3) == [1.0] * 6


def test_wsd_falls_linearly_at_the_end():
    assert factors(10, kind="wsd", warmup_steps=2, decay_steps=4) == [0.5, *[1.0] * 6, 0.75, 0.5, 0.25]
    assert factors(4, kind="wsd", warmup_steps=0, decay_steps=4, final=0.5) == [1.0, 0.875, 0.75, 0.625]
    assert factors(3, kind="wsd", warmup_steps=0, decay_steps=0) == [1.0] * 3


def test_cosine_falls_from_the_end_of_warm_up():
    found = factors(10, kind="cosine", warmup_steps=2, final=0.1)
    expected = [0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * i / 8)) for i in range(8)]
    assert found[2:] == pytest.approx(expected)
    assert found[6] == pytest.approx(0.55)  # half way


@pytest.mark.parametrize("kind", ["constant", "wsd", "cosine"])
@pytest.mark.parametrize(
    ("num_steps", "warmup_steps", "decay_steps"), [(1, 0, 0), (5, 5, 5), (5, 9, 0), (7, 1, 7)]
)
def test_factors_stay_in_range_at_the_edges(kind, num_steps, warmup_steps, decay_steps):
    found = factors(num_steps, kind=kind, warmup_steps=warmup_steps, decay_steps=decay_steps)
    assert all(0 < factor <= 1 for factor in found)
