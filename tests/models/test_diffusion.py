"""The cosine schedule and its respacings against their formulas in double precision; the variational term."""

import math

import numpy as np
import pytest
import torch

from lightgen.core.draws import torch_draws
from lightgen.models.diffusion import noise_levels, respaced_chain, training_chain, variational_bits

STEPS = np.arange(1000)


def randn(*shape, seed=0):
    return torch.randn(shape, generator=torch_draws(seed, "test"), dtype=torch.float64)


def signal(t):
    """Share of the signal's variance by the cosine law, up to a constant."""
    return np.cos((t / 1000 + 0.008) / 1.008 * np.pi / 2) ** 2


def test_alpha_bars_are_the_cosine_law_but_for_the_last_step():
    chain = training_chain()
    np.testing.assert_allclose(chain.alpha_bars[:-1], signal(STEPS[1:]) / signal(0), rtol=1e-9)
    assert math.isclose(chain.alpha_bars[-1], 0.001 * chain.alpha_bars[-2])  # whose beta would be 1
    assert chain.previous[0] == 1 and np.array_equal(chain.previous[1:], chain.alpha_bars[:-1])
    np.testing.assert_allclose(np.cumprod(1 - chain.betas), chain.alpha_bars, rtol=1e-12)


@pytest.mark.parametrize("num_steps", [2, 3, 7, 25, 64, 100, 250, 999, 1000])
def test_even_steps_go_from_the_cleanest_to_the_noisiest(num_steps):
    steps = respaced_chain(num_steps, "even").steps
    assert len(steps) == num_steps and steps[0] == 0 and steps[-1] == 999
    gaps = np.diff(steps)
    assert gaps.min() >= 1 and gaps.max() - gaps.min() <= 1


def test_strides_are_whole_and_start_at_the_cleanest():
    assert respaced_chain(10, "stride").steps.tolist() == list(range(0, 1000, 100))
    assert respaced_chain(25, "stride").steps.tolist() == list(range(0, 1000, 40))
    assert respaced_chain(24, "stride").steps.tolist() == list(range(0, 1000, 42))
    assert respaced_chain(1000, "stride").steps.tolist() == list(range(1000))
    assert respaced_chain(1, "even").steps.tolist() == respaced_chain(1, "stride").steps.tolist() == [0]


@pytest.mark.parametrize("num_steps", [2, 6, 12, 37, 60, 70, 150, 300, 450, 501, 600, 999])
def test_any_number_of_strides_covers_the_schedule(num_steps):
    steps = respaced_chain(num_steps, "stride").steps
    gaps = np.diff(steps)
    assert len(steps) == num_steps and steps[0] == 0 and gaps.max() - gaps.min() <= 1
    assert 1000 - steps[-1] <= gaps.max() + 1


@pytest.mark.parametrize(
    ("num_steps", "spacing"), [(1000, "even"), (25, "even"), (10, "stride"), (2, "even")]
)
def test_a_respaced_chain_keeps_signals_and_makes_its_own_betas(num_steps, spacing):
    chain = respaced_chain(num_steps, spacing)
    bars = training_chain().alpha_bars[chain.steps]
    assert np.array_equal(chain.alpha_bars, bars)
    before = np.append(1.0, bars[:-1])
    betas = 1 - bars / before
    clean, noisy = chain.posterior
    np.testing.assert_allclose(chain.betas, betas)
    np.testing.assert_allclose(clean, betas * np.sqrt(before) / (1 - bars))
    np.testing.assert_allclose(noisy, (1 - before) * np.sqrt(1 - betas) / (1 - bars))
    least, greatest = chain.log_variances
    variances = betas * (1 - before) / (1 - bars)
    np.testing.assert_allclose(least[1:], np.log(np.maximum(variances[1:], 1e-20)))
    assert least[0] == least[1]
    np.testing.assert_allclose(greatest, np.log(betas))


def test_the_posterior_is_that_of_two_gaussians():
    """Bayes' rule by hand: x one step cleaner, seen through noise, with a prior around the clean token."""
    chain = respaced_chain(25, "even")
    (clean, noisy), betas = chain.posterior, chain.betas
    for i in range(1, 25):
        prior_mean, prior_variance = np.sqrt(chain.previous[i]), 1 - chain.previous[i]
        precision = 1 / prior_variance + (1 - betas[i]) / betas[i]
        assert math.isclose(clean[i], prior_mean / prior_variance / precision, rel_tol=1e-9)
        assert math.isclose(noisy[i], np.sqrt(1 - betas[i]) / betas[i] / precision, rel_tol=1e-9)
        assert math.isclose(chain.log_variances[0][i], -math.log(precision), rel_tol=1e-9, abs_tol=1e-9)


def test_levels_are_the_training_chain_in_fp32():
    timesteps = torch.tensor([[0, 1, 500], [998, 999, 42]])
    at, chain = noise_levels(timesteps, torch.float64), training_chain()
    bars = chain.alpha_bars[timesteps.numpy()]
    expected = [np.sqrt(bars), np.sqrt(1 - bars), np.sqrt(1 / bars), np.sqrt(1 / bars - 1)]
    expected += [each[timesteps.numpy()] for each in (*chain.posterior, *chain.log_variances)]
    for found, wanted in zip(at, expected, strict=True):
        assert found.shape == (2, 3, 1) and found.dtype == torch.float64
        assert np.array_equal(found[..., 0].float().numpy(), wanted.astype(np.float32))
        assert np.array_equal(found[..., 0].numpy(), wanted.astype(np.float32).astype(np.float64))
    assert noise_levels(timesteps, torch.float32).signal.dtype == torch.float32


def test_compiled_the_table_is_a_constant():
    """Traced, its thousand steps would be computed anew, and copied to the device, at every call."""
    nodes = []

    def noted(module, inputs):
        nodes.extend(node.name for node in module.graph.nodes if node.op.startswith("call"))
        return module.forward

    compiled = torch.compile(lambda t: noise_levels(t, torch.float32).noise, fullgraph=True, backend=noted)
    timesteps = torch.tensor([3, 700])
    assert torch.equal(compiled(timesteps), noise_levels(timesteps, torch.float32).noise)
    assert 0 < len(nodes) < 15


def noised(timesteps, seed=0, size=6):
    clean, noise = (
        randn(len(timesteps), size, seed=seed).clamp(-0.9, 0.9),
        randn(len(timesteps), size, seed=seed + 1),
    )
    at = noise_levels(timesteps, torch.float64)
    return clean, at.signal * clean + at.noise * noise, noise


def test_a_right_prediction_with_the_least_variance_costs_nothing_above_step_zero():
    timesteps = torch.tensor([1, 2, 100, 500, 990])
    clean, noisy, noise = noised(timesteps)
    least = torch.full_like(noise, -1.0)
    bits = variational_bits(clean, noisy, noise, least, timesteps)
    # the coefficients are rounded to fp32, and the posterior of the first steps is narrow
    torch.testing.assert_close(bits, torch.zeros(5, dtype=torch.float64), rtol=0, atol=1e-3)
    assert (variational_bits(clean, noisy, noise, least + 1, timesteps)[:2] > 1e-2).all()
    assert (variational_bits(clean, noisy, noise + 5, least, timesteps)[:3] > 1e-2).all()


def test_above_step_zero_it_is_the_divergence_of_two_gaussians():
    timesteps = torch.tensor([1, 2, 30, 500, 998, 999])
    clean, noisy, noise = noised(timesteps)
    said, output = noise + 0.3 * randn(6, 6, seed=5), randn(6, 6, seed=6).clamp(-1, 1)
    chain, t = training_chain(), timesteps.numpy()[:, None]
    share, bars = (output.numpy() + 1) / 2, chain.alpha_bars[t]
    least, greatest = (each[t] for each in chain.log_variances)
    log_variance = least + share * (greatest - least)
    weights = [each[t] for each in chain.posterior]
    guess = (noisy.numpy() - np.sqrt(1 - bars) * said.numpy()) / np.sqrt(bars)
    gap = weights[0] * (clean.numpy() - guess)
    nats = 0.5 * (log_variance - least - 1 + np.exp(least - log_variance) + gap**2 / np.exp(log_variance))
    found = variational_bits(clean, noisy, said, output, timesteps)
    np.testing.assert_allclose(found.numpy(), nats.mean(axis=1) / math.log(2), rtol=1e-3, atol=1e-4)


def test_at_step_zero_it_is_the_surprise_at_the_tokens_bin():
    values = torch.tensor([-1.0, -0.9995, -0.6, -0.003, 0.0, 0.004, 0.5, 0.9985, 1.0], dtype=torch.float64)
    timesteps = torch.zeros(len(values), dtype=torch.long)
    clean = values[:, None]
    at = noise_levels(timesteps, torch.float64)
    for shift in (-0.5, 0.0, 0.4):
        for share in (0.0, 0.5, 1.0):
            noise = randn(len(values), 1, seed=2)
            noisy = at.signal * clean + at.noise * noise
            said = noise + shift
            output = torch.full_like(clean, 2 * share - 1)
            found = variational_bits(clean, noisy, said, output, timesteps)
            mean = at.inverse_signal * noisy - at.inverse_noise * said
            sigma = torch.exp(0.5 * (at.least + share * (at.greatest - at.least)))
            for i, x in enumerate(values.tolist()):
                cdf = torch.distributions.Normal(mean[i, 0], sigma[i, 0]).cdf
                above, below = (
                    cdf(torch.tensor(x + side / 255, dtype=torch.float64)).item() for side in (1, -1)
                )
                chance = above if x < -0.999 else 1 - below if x > 0.999 else above - below
                assert math.isclose(2 ** -found[i].item(), chance, rel_tol=5e-3, abs_tol=2e-3)


def test_the_term_teaches_the_variance_alone():
    timesteps = torch.tensor([0, 1, 500, 999])
    clean, noisy, noise = noised(timesteps)
    output = torch.zeros_like(noise, requires_grad=True)
    variational_bits(clean, noisy, (noise + 0.2).detach(), output, timesteps).sum().backward()
    assert (output.grad != 0).all()
    narrow, wide = (torch.full_like(noise, value, requires_grad=True) for value in (-1.0, 1.0))
    for each in (narrow, wide):
        variational_bits(clean, noisy, noise + 2, each, timesteps).sum().backward()
    assert (narrow.grad[1] < 0).all()  # a wrong guess with little variance asks for more
    right = torch.full_like(noise, 1.0, requires_grad=True)
    variational_bits(clean, noisy, noise, right, timesteps).sum().backward()
    assert (right.grad[1:] > 0).all()  # a right one with much variance for less


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_it_is_finite_everywhere(dtype):
    timesteps = torch.arange(1000)
    clean = 3 * torch.randn(1000, 4, generator=torch_draws(0, "test"), dtype=dtype)
    noise = torch.randn(1000, 4, generator=torch_draws(1, "test"), dtype=dtype)
    at = noise_levels(timesteps, dtype)
    for value in (-1.5, 0.0, 1.5):
        output = torch.full_like(clean, value, requires_grad=True)
        bits = variational_bits(clean, at.signal * clean + at.noise * noise, 0 * noise, output, timesteps)
        assert bits.shape == (1000,) and bits.dtype == dtype and torch.isfinite(bits).all()
        bits.sum().backward()
        assert torch.isfinite(output.grad).all()
