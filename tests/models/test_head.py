"""The head: nothing at the start, then a function of each row alone, whichever part is made ahead of time."""

import pytest
import torch

from lightgen.core.draws import torch_draws
from lightgen.models.head import Head, time_features
from tests.models.naive import HEADS, named


def randn(*shape, seed=0):
    return torch.randn(shape, generator=torch_draws(seed, "test"))


@pytest.fixture(params=HEADS, ids=named)
def head(request, make_student):
    return make_student(**request.param).transformer.head


@pytest.mark.parametrize("shape", HEADS, ids=named)
def test_a_new_head_says_nothing(shape):
    head = Head(8, 32, 16, 2, shape["prediction"], shape["head_conditioning"])
    said, variance = head(randn(5, 8), torch.full((1,), 300.0), head.embed_cond(randn(5, 32)))
    assert torch.equal(said, torch.zeros(5, 8))
    assert (variance is None) == (shape["prediction"] == "flow")
    assert variance is None or torch.equal(variance, torch.zeros(5, 8))


def test_rows_are_independent_and_one_time_serves_all(head):
    noisy, cond, time = randn(5, 8), head.embed_cond(randn(5, 32, seed=1)), torch.linspace(100, 900, 5)
    said = head(noisy, time, cond)
    for row in range(5):
        alone = head(noisy[row : row + 1], time[row : row + 1], cond[row : row + 1])
        for mine, ours in zip(alone, said, strict=True):
            if ours is not None:
                torch.testing.assert_close(mine, ours[row : row + 1], rtol=1e-4, atol=1e-5)
    one = head.hidden(noisy, head.embed_time(torch.full((1,), 400.0)), cond)
    torch.testing.assert_close(one, head.hidden(noisy, head.embed_time(torch.full((5,), 400.0)), cond))


def test_token_time_and_condition_all_count(head):
    noisy, cond, time = randn(4, 8), head.embed_cond(randn(4, 32, seed=1)), torch.full((4,), 500.0)
    said = head(noisy, time, cond)
    for changed in (
        head(noisy + 0.1, time, cond),
        head(noisy, time + 10, cond),
        head(noisy, time, head.embed_cond(randn(4, 32, seed=2))),
    ):
        for before, after in zip(said, changed, strict=True):
            assert before is None or (after - before).abs().amax(dim=1).min() > 1e-4


def test_one_noisy_token_serves_further_conditions(head):
    noisy, time = randn(3, 8), head.embed_time(torch.full((1,), 500.0))
    cond = head.embed_cond(randn(6, 32, seed=1))
    both = head.hidden(noisy, time, cond)
    torch.testing.assert_close(both, head.hidden(noisy.repeat(2, 1), time, cond))
    torch.testing.assert_close(both[3:], head.hidden(noisy, time, cond[3:]), rtol=1e-4, atol=1e-5)


def test_modulations_are_a_map_of_the_sum_or_a_sum_of_maps(make_student):
    """Both against the formula, spelled out for a head of one block."""
    for conditioning in ("joint", "additive"):
        head = make_student(head_layers=1, head_conditioning=conditioning).transformer.head
        noisy, cond, time = randn(3, 8), randn(3, 32, seed=1), torch.tensor([0.0, 500, 1000])
        silu, norm = torch.nn.functional.silu, torch.nn.functional.layer_norm
        t = head.time_out(silu(head.time_in(time_features(time, 256))))
        c = head.cond_in(cond)
        if conditioning == "joint":
            shift, scale, gate, last_shift, last_scale = head.modulation(silu(t + c)).chunk(5, dim=-1)
        else:
            both = head.modulation(silu(t)) + head.cond_modulation(silu(c))
            shift, scale, gate, last_shift, last_scale = both.chunk(5, dim=-1)
        x, block = head.token_in(noisy), head.blocks[0]
        x = x + gate * block.fc2(silu(block.fc1(block.norm(x) * (1 + scale) + shift)))
        expected = head.token_out(norm(x, (16,), eps=1e-6) * (1 + last_scale) + last_shift)
        found, _ = head(noisy, time, head.embed_cond(cond))
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_time_features_are_exact_whatever_the_precision():
    torch.testing.assert_close(time_features(torch.zeros(1), 6), torch.tensor([[1.0, 1, 1, 0, 0, 0]]))
    time = torch.tensor([500.0], dtype=torch.float64)
    angles = 500 * 10_000 ** (-torch.arange(3, dtype=torch.float64) / 3)
    expected = torch.cat([angles.cos(), angles.sin()])[None].float()
    with torch.autocast("cpu", torch.bfloat16):
        found = time_features(time, 6)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
