"""The head's loop: steps that end where they must, as fast as their order says; guidance; precision."""

import math

import pytest
import torch

from lightgen.core.draws import torch_draws
from lightgen.models.diffusion import respaced_chain
from lightgen.models.head import Head
from lightgen.sampling.solver import HeadSampler, make_steps
from tests.models.naive import HEADS, named
from tests.sampling.analytic import RuleHead, gaussian_head, levels

ALL = [("ddpm", "ancestral"), ("ddpm", "ddim"), ("ddpm", "dpm++"), ("flow", "ddim"), ("flow", "dpm++")]
ALL += [("flow_x", "ddim"), ("flow_x", "dpm++")]
CPU = torch.device("cpu")


def randn(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch_draws(seed, "test"), dtype=dtype)


def sample(head, prediction, solver, num_steps, spacing="even", scale=1.0, interval=(0.0, 1.0), cond=None):
    sampler = HeadSampler(head, prediction, solver, spacing, interval)
    noises = randn(num_steps, 5, 8, seed=9) if solver == "ancestral" else None
    cond = torch.zeros(5, 1, dtype=torch.float64) if cond is None else cond
    return sampler(cond, randn(5, 8), scale, num_steps, noises)


@pytest.mark.parametrize(("prediction", "solver"), ALL)
@pytest.mark.parametrize("spacing", ["even", "stride"])
@pytest.mark.parametrize("num_steps", [2, 5, 25])
def test_a_perfect_head_of_one_point_lands_on_it(prediction, solver, spacing, num_steps):
    head = gaussian_head(prediction, 0.7, 0.0)
    for scale, cond in ((1.0, None), (3.0, torch.zeros(10, 1))):
        tokens = sample(head, prediction, solver, num_steps, spacing, scale, cond=cond)
        torch.testing.assert_close(tokens, torch.full_like(tokens, 0.7), rtol=0, atol=1e-4)


def gaussian_error(prediction, solver, num_steps, mean=0.4, deviation=0.5):
    """Largest distance from where the flow of probability takes a token: to its place in the distribution."""
    tokens = sample(gaussian_head(prediction, mean, deviation), prediction, solver, num_steps, "stride")
    time = make_steps(prediction, solver, num_steps, "stride", CPU).times[:1, None].double()
    signal, noise = levels(prediction, time)
    place = (randn(5, 8) - signal * mean) / (signal**2 * deviation**2 + noise**2).sqrt()
    return (tokens - mean - deviation * place).abs().max().item()


@pytest.mark.parametrize("prediction", ["ddpm", "flow", "flow_x"])
def test_a_perfect_head_of_a_gaussian_is_reached(prediction):
    first = {num: gaussian_error(prediction, "ddim", num) for num in (5, 10, 25, 50, 100)}
    second = {num: gaussian_error(prediction, "dpm++", num) for num in (5, 10, 25, 50, 100)}
    assert 0.8 < math.log2(first[25] / first[100]) / 2 < 1.2  # halved by twice the steps
    assert first[100] < 0.02 and second[100] < 5e-4
    for num in (10, 25, 50, 100):
        assert second[num] < 0.3 * first[num], num
    assert second[5] < first[5]
    # a quarter by twice the steps, until the coefficients' rounding is reached
    assert second[25] < second[5] / 20


@pytest.mark.parametrize("solver", ["ddim", "dpm++"])
@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_a_head_that_says_the_token_steps_as_one_that_says_the_velocity(solver, scale):
    cond = torch.cat([torch.full((5, 1), 0.4), torch.full((5, 1), -0.3)]).double()
    says = {
        "flow_x": lambda noisy, time, cond: noisy.sin() + cond,
        "flow": lambda noisy, time, cond: (noisy - noisy.sin() - cond) / (time / 1000),
    }
    for num_steps in (1, 5, 60):
        found, wanted = (
            sample(
                RuleHead(rule), name, solver, num_steps, scale=scale, cond=cond if scale != 1 else cond[:5]
            )
            for name, rule in says.items()
        )
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("solver", ["ddim", "dpm++"])
def test_one_or_two_flow_steps_are_eulers(solver):
    """With no step before it and at the end, the second order falls back to the first."""
    for num_steps in (1, 2):
        head, x = RuleHead(lambda noisy, time, cond: noisy.sin() + time / 1000), randn(5, 8)
        found = sample(head, "flow", solver, num_steps)
        for i in range(num_steps):
            x = x - (x.sin() + 1 - i / num_steps) / num_steps
        torch.testing.assert_close(found, x, rtol=1e-6, atol=1e-6)


def test_the_flow_takes_even_euler_steps_from_noise_to_token():
    head = RuleHead(lambda noisy, time, cond: noisy)
    found = sample(head, "flow", "ddim", 4)
    torch.testing.assert_close(found, randn(5, 8) * 0.75**4, rtol=1e-6, atol=1e-6)
    assert [time for time, _ in head.asked] == [1000, 750, 500, 250]


def test_the_second_order_extrapolates_the_clean_token():
    """Four steps of which two are inner, against algorithm 2 of the paper spelled out."""
    tokens = sample(RuleHead(lambda noisy, time, cond: noisy.tanh()), "ddpm", "dpm++", 4, "stride")
    bars = respaced_chain(4, "stride").alpha_bars[::-1].copy()
    alpha, sigma = bars**0.5, (1 - bars) ** 0.5
    h = [math.log(alpha[i] / sigma[i]) for i in range(4)]
    x = randn(5, 8)
    clean = [(x - sigma[0] * x.tanh()) / alpha[0]]
    x = sigma[1] / sigma[0] * x - alpha[1] * math.expm1(h[0] - h[1]) * clean[0]
    clean.append((x - sigma[1] * x.tanh()) / alpha[1])
    for i in (1, 2):
        ratio = (h[i] - h[i - 1]) / (h[i + 1] - h[i])
        assert (ratio > 1) == (i == 1)
        ahead = 1 / (2 * max(ratio, 1.0))  # not beyond what equal steps give
        guess = (1 + ahead) * clean[-1] - ahead * clean[-2]
        x = sigma[i + 1] / sigma[i] * x - alpha[i + 1] * math.expm1(h[i] - h[i + 1]) * guess
        clean.append((x - sigma[i + 1] * x.tanh()) / alpha[i + 1])
    x = clean[-1]
    torch.testing.assert_close(tokens, x, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("conditioning", ["joint", "additive"])
@pytest.mark.parametrize("scale", [1.0, 3.0])
@torch.no_grad()
def test_ancestral_sampling_is_the_formula(make_student, conditioning, scale):
    head = make_student(prediction="ddpm", head_conditioning=conditioning).transformer.head.double()
    cond = randn(10 if scale != 1 else 5, 32, seed=1)
    found = sample(head, "ddpm", "ancestral", 7, "stride", scale, cond=cond)
    chain, x, noises = respaced_chain(7, "stride"), randn(5, 8), randn(7, 5, 8, seed=9)
    for i in reversed(range(7)):
        time, bars, before = torch.full((5,), float(chain.steps[i])), chain.alpha_bars[i], chain.previous[i]
        noise, output = head(x, time, head.embed_cond(cond[:5]))
        if scale != 1:
            without, _ = head(x, time, head.embed_cond(cond[5:]))
            noise = without + scale * (noise - without)
        clean, beta = (x - (1 - bars) ** 0.5 * noise) / bars**0.5, 1 - bars / before
        mean = (before**0.5 * beta * clean + (bars / before) ** 0.5 * (1 - before) * x) / (1 - bars)
        if i == 0:
            x = mean
            break
        share = (output + 1) / 2
        log_variance = share * math.log(beta) + (1 - share) * math.log(beta * (1 - before) / (1 - bars))
        x = mean + torch.exp(log_variance / 2) * noises[i]
    torch.testing.assert_close(found, x, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("prediction", "solver"), ALL)
@torch.no_grad()
def test_guidance_one_is_none_and_an_empty_interval_too(make_student, prediction, solver):
    head = make_student(prediction=prediction).transformer.head.double()
    cond = randn(10, 32, seed=1)
    plain = sample(head, prediction, solver, 4, cond=cond[:5])
    # not to the bit: on some processors products of a view round otherwise than those of a tensor of its own
    for given in ({"scale": 1.0}, {"scale": 5.0, "interval": (0.0, 0.0)}):
        found = sample(head, prediction, solver, 4, cond=cond, **given)
        torch.testing.assert_close(found, plain, rtol=1e-9, atol=1e-9)
    same = cond[:5].repeat(2, 1)
    torch.testing.assert_close(sample(head, prediction, solver, 4, scale=5.0, cond=same), plain)
    without = sample(head, prediction, solver, 4, cond=cond[5:])
    if solver != "ancestral":  # whose variance is that of the text
        torch.testing.assert_close(sample(head, prediction, solver, 4, scale=0.0, cond=cond), without)
    guided = sample(head, prediction, solver, 4, scale=5.0, cond=cond)
    assert (guided - plain).abs().max() > 1e-2 and (guided - without).abs().max() > 1e-2


@pytest.mark.parametrize(
    ("interval", "rows"),
    [
        ((0.0, 1.0), [10] * 4),
        ((0.5, 1.0), [10, 10, 10, 5]),
        ((0.0, 0.6), [5, 5, 10, 10]),
        ((0.0, 0.0), [5] * 4),
    ],
)
def test_outside_of_the_interval_the_half_without_text_is_not_computed(interval, rows):
    head = RuleHead(lambda noisy, time, cond: cond.expand(-1, 8))
    cond = torch.cat([torch.full((5, 1), 2.0), torch.full((5, 1), 1.0)]).double()
    tokens = sample(head, "flow", "ddim", 4, scale=4.0, interval=interval, cond=cond)
    assert [count for _, count in head.asked] == rows
    fallen = sum(5 if count == 10 else 2 for count in rows) / 4
    torch.testing.assert_close(tokens, randn(5, 8) - fallen, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("shape", HEADS, ids=named)
@torch.no_grad()
def test_rows_do_not_know_each_other(make_student, shape):
    head = make_student(**shape).transformer.head.double()
    cond, start = randn(10, 32, seed=1), randn(5, 8)
    sampler = HeadSampler(head, shape["prediction"], "dpm++", "stride")
    together = sampler(cond, start, 3.0, 4)
    for row in range(5):
        alone = sampler(cond[[row, row + 5]], start[row : row + 1], 3.0, 4)
        torch.testing.assert_close(alone, together[row : row + 1])


@pytest.mark.parametrize(
    ("prediction", "solver", "spacing", "num_steps", "num_precise"),
    [
        ("ddpm", "ancestral", "even", 5, 1),
        ("ddpm", "ddim", "even", 5, 1),
        ("ddpm", "dpm++", "stride", 5, 0),
        ("ddpm", "ancestral", "stride", 10, 0),
        ("ddpm", "dpm++", "stride", 50, 1),  # begins at 980, where a head's error is multiplied by 32
        ("flow", "ddim", "even", 5, 0),
        ("flow", "dpm++", "even", 5, 0),
        ("flow_x", "dpm++", "even", 5, 0),
    ],
)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@torch.no_grad()
def test_a_narrow_head_takes_steps_of_great_gain_in_fp32(
    make_student, monkeypatch, prediction, solver, spacing, num_steps, num_precise, dtype
):
    head = make_student(prediction=prediction).transformer.head.to(dtype)
    used, hidden = [], Head.hidden

    def noted(self, noisy, time, cond):
        used.append((self.token_in.weight.dtype, time.dtype, cond.dtype))
        return hidden(self, noisy, time, cond)

    monkeypatch.setattr(Head, "hidden", noted)
    sampler = HeadSampler(head, prediction, solver, spacing)
    noises = randn(num_steps, 5, 8, dtype=torch.float32)
    tokens = sampler(
        randn(10, 32, seed=1).to(dtype), randn(5, 8, dtype=torch.float32), 3.0, num_steps, noises
    )
    assert tokens.dtype == torch.float32 and torch.isfinite(tokens).all()
    precise = [(torch.float32,) * 3] * num_precise
    assert used == precise + [(dtype,) * 3] * (num_steps - num_precise)
    assert head.token_in.weight.dtype == dtype


@pytest.mark.parametrize(("prediction", "solver"), ALL)
def test_there_are_as_many_steps_as_asked_for(prediction, solver):
    for num_steps in (1, 2, 3, 12, 37, 600):
        steps = make_steps(prediction, solver, num_steps, "stride", CPU)
        assert len(steps) == len(steps.times) == num_steps and torch.isfinite(steps.coefficients).all()
        assert (steps.times.diff() < 0).all() and steps.times.min() >= 0 and steps.times.max() <= 1000
