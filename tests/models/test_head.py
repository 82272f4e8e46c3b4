"""The flow head: nothing at the start, then a function of each row alone."""

import torch

from lightgen.core.draws import torch_draws
from lightgen.models.head import FlowHead, time_features


def randn(*shape, seed=0):
    return torch.randn(shape, generator=torch_draws(seed, "test"))


def test_a_new_head_says_stand_still():
    head = FlowHead(8, 32, 16, 2)
    assert torch.equal(
        head(randn(5, 8), torch.full((1,), 0.3), head.embed_cond(randn(5, 32))), torch.zeros(5, 8)
    )


def test_rows_are_independent_and_one_time_serves_all(make_student):
    head = make_student().transformer.head
    noisy, cond, time = randn(5, 8), head.embed_cond(randn(5, 32, seed=1)), torch.linspace(0.1, 0.9, 5)
    velocity = head(noisy, time, cond)
    for row in range(5):
        alone = head(noisy[row : row + 1], time[row : row + 1], cond[row : row + 1])
        torch.testing.assert_close(alone, velocity[row : row + 1], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        head(noisy, torch.full((1,), 0.4), cond), head(noisy, torch.full((5,), 0.4), cond)
    )


def test_token_time_and_condition_all_count(make_student):
    head = make_student().transformer.head
    noisy, cond, time = randn(4, 8), head.embed_cond(randn(4, 32, seed=1)), torch.full((4,), 0.5)
    velocity = head(noisy, time, cond)
    for changed in (
        head(noisy + 0.1, time, cond),
        head(noisy, time + 0.01, cond),
        head(noisy, time, head.embed_cond(randn(4, 32, seed=2))),
    ):
        assert (changed - velocity).abs().amax(dim=1).min() > 1e-4


def test_time_features_are_exact_whatever_the_precision():
    torch.testing.assert_close(time_features(torch.zeros(1), 6), torch.tensor([[1.0, 1, 1, 0, 0, 0]]))
    time = torch.tensor([0.5], dtype=torch.float64)
    angles = 500 * 10_000 ** (-torch.arange(3, dtype=torch.float64) / 3)
    expected = torch.cat([angles.cos(), angles.sin()])[None].float()
    with torch.autocast("cpu", torch.bfloat16):
        found = time_features(time, 6)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
