"""Presets: the released schedule as `exact`, and each next one asks for less."""

import pytest

from lightgen.sampling.order import unknown_after
from lightgen.sampling.presets import PRESETS, preset


def test_exact_is_the_released_schedule():
    config = preset("exact", "ddpm")
    assert (config.num_iterations, config.num_head_steps, config.last_head_steps) == (64, 100, None)
    assert (config.solver, config.spacing, config.guidance_scale) == ("ancestral", "even", 4.0)


@pytest.mark.parametrize("prediction", ["ddpm", "flow"])
def test_presets_get_cheaper_and_exact_ones_take_no_short_cut(prediction):
    configs = [preset(name, prediction) for name in PRESETS]
    work = [config.num_iterations * config.num_head_steps / config.refresh_every for config in configs]
    assert work == sorted(work, reverse=True) and len(set(work)) == 3
    assert configs[0].refresh_every == 1 and configs[0].last_head_steps is None
    assert configs[0].guidance_interval == (0.0, 1.0) and configs[0].temperature == 1
    for config in configs:
        assert (config.solver == "ancestral") <= (prediction == "ddpm")
        assert config.last_head_steps is None or 1 <= config.last_head_steps <= config.num_head_steps
        assert 1 <= config.refresh_every <= len(unknown_after(64, config.num_iterations))
