"""The code that runs costs no more than the exact savings promise."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from lightgen.recipes.model import nano, paper
from lightgen.sampling.decode import DecodeConfig
from lightgen.sampling.presets import preset
from lightgen.stages.sampling_cost import sample_flops

TERA = 1e12


@pytest.fixture(scope="module")
def flops() -> ModuleType:
    path = Path(__file__).parents[1] / "benchmarks" / "flops.py"
    spec = importlib.util.spec_from_file_location("flops", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_training_forward_at_256_px(flops):
    assert 0.38 < flops.train_flops(paper(), 256, 1) / TERA <= 0.411


@pytest.mark.parametrize(("last", "tolerance"), [(None, 1e-9), (2, 0.02)])
def test_head_steps_are_added_as_they_are_counted(last, tolerance):
    config = DecodeConfig(num_iterations=3, num_head_steps=4, last_head_steps=last)
    whole, added = (sample_flops(nano(), (4, 4), config, 2, whole=each) for each in (True, False))
    assert added == pytest.approx(whole, rel=tolerance)  # falling steps embed a few times more


@pytest.mark.slow
@pytest.mark.parametrize(("px", "most", "most_fast"), [(256, 19.4, 5.0), (512, 81.0, 25.0)])
def test_sampling(px, most, most_fast):
    exact, fast = (
        sample_flops(paper(), (px // 16, px // 16), preset(name, "ddpm"), 2) / TERA
        for name in ("exact", "fast")
    )
    assert 0.9 * most < exact <= most and fast <= most_fast


@pytest.mark.slow
def test_training_forward_at_512_px(flops):
    assert 1.4 < flops.train_flops(paper(), 512, 1) / TERA <= 1.61
