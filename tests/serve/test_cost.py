"""What pictures cost, relative to a usual one of the model."""

from dataclasses import replace

import numpy as np
import pytest

from lightgen.serve.cost import picture_costs
from lightgen.stages.decoding import DecodeOverrides, resolve
from lightgen.stages.edit import EditConfig
from tests.serve.fake_live import FakeLive, FakeRequest


def cost(previews=0, preset="fast", overrides=None, **values):
    config = resolve("flow", preset, DecodeOverrides(**(overrides or {})))
    return picture_costs([replace(FakeRequest(), config=config, **values)], FakeLive(), previews)[0]


def test_the_usual_picture_costs_one_and_others_their_tokens_passes_and_contexts():
    assert cost() == 1
    assert cost(width=32, height=16) == pytest.approx(8)
    assert cost(overrides={"guidance_scale": 1.0}) == pytest.approx(0.5)
    assert cost(overrides={"num_iterations": 37}) == pytest.approx(2)
    assert cost(preset="exact") == pytest.approx((16 + 12) / (16 + 5))
    assert cost(overrides={"num_iterations": 256}) == pytest.approx((64 + 5) / (16 + 5)), "64 tokens, no more"
    assert cost(width=1, height=1) == pytest.approx(1 / 16)


def test_previews_cost_by_their_size_and_number_as_far_as_there_are_iterations():
    assert cost(previews=4) == pytest.approx(1 + 4 / 32)
    assert cost(previews=64) == pytest.approx(1 + 16 / 32)
    assert cost(previews=4, width=16, height=16) == pytest.approx(4 + 4 * 4 / 32)


def test_an_edit_costs_the_frame_that_is_drawn():
    mask = np.zeros((32, 32), bool)
    mask[10:12, 10:12] = True
    whole = cost(width=32, height=32, mask=mask)
    assert whole == pytest.approx(16)
    assert cost(width=32, height=32, mask=mask, edit=EditConfig(crop=1)) < whole / 8
