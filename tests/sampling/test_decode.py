"""Masked decoding: identities that hold for any weights, and flows whose end is known."""

import pytest
import torch

from lightgen.core.draws import torch_draws
from lightgen.sampling.decode import Condition, DecodeConfig, decode_tokens
from lightgen.sampling.order import unknown_after

GRID = (3, 4)
LENGTH = 12
FAST = {"num_iterations": 4, "num_head_steps": 3}
CLOSE = {"rtol": 1e-4, "atol": 1e-5}


def randn(*shape, seed=0):
    return torch.randn(shape, generator=torch_draws(seed, "test"))


def condition_of(batch, seed=0):
    text_mask = torch.arange(3) < torch.tensor([3, 1, 2] * batch)[:batch, None]
    null = randn(1, 3, 32, seed=seed + 50).expand(batch, -1, -1)
    null_mask = (torch.arange(3) < 1).expand(batch, -1)
    return Condition(
        text=randn(batch, 3, 32, seed=seed), text_mask=text_mask, null_text=null, null_mask=null_mask
    )


def kept_mask(*positions):
    return torch.isin(torch.arange(LENGTH), torch.tensor(positions))


class FakeTransformer:
    """Trunk whose condition is the first text feature, and head of a given rule; remembers its inputs."""

    token_channels = 8

    def __init__(self, rule):
        self.rule, self.times, self.known_values = rule, [], []

    @property
    def head(self):
        return self

    def embed_cond(self, cond):
        return cond

    def __call__(self, *arguments):
        if len(arguments) == 3:
            noisy, time, cond = arguments
            self.times.append(time.unique().item())
            return self.rule(noisy, time.view(-1, 1), cond)
        known, _, predicted_at, text, _, _ = arguments
        self.known_values.append(known)
        return text[:, :1, :8].expand(-1, predicted_at.shape[1], -1)


def noises(seeds, condition, transformer=None, **settings):
    """Start noise of each token, seen through a head that does not move it."""
    still = FakeTransformer(lambda noisy, time, cond: torch.zeros_like(noisy))
    return decode_tokens(
        still, condition, seeds, GRID, DecodeConfig(num_iterations=1, num_head_steps=1, **settings)
    )


@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
def test_an_image_is_the_same_alone_and_in_any_batch(make_student, guidance_scale):
    transformer, condition = make_student().transformer, condition_of(3)
    config = DecodeConfig(guidance_scale=guidance_scale, **FAST)
    known, mask = randn(3, LENGTH, 8, seed=4), kept_mask(1, 5)
    for given in ({}, {"known": known, "known_mask": mask}):
        together = decode_tokens(transformer, condition, [5, 6, 7], GRID, config, **given)
        for k, seed in enumerate([5, 6, 7]):
            own = Condition(**{name: value[k : k + 1] for name, value in vars(condition).items()})
            one = {**given, "known": known[k : k + 1]} if given else {}
            alone = decode_tokens(transformer, own, [seed], GRID, config, **one)
            torch.testing.assert_close(alone[0], together[k], **CLOSE)
    assert (together[0] - together[1]).abs().max() > 0.1


def test_the_same_seed_gives_the_same_bits_and_leaves_the_global_state_alone(make_student):
    transformer, condition = make_student().transformer, condition_of(2)
    before = torch.get_rng_state()
    first = decode_tokens(transformer, condition, [1, 2], GRID, DecodeConfig(**FAST))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(5)
    assert torch.equal(decode_tokens(transformer, condition, [1, 2], GRID, DecodeConfig(**FAST)), first)
    assert first.shape == (2, LENGTH, 8) and torch.isfinite(first).all() and not first.requires_grad


def test_guidance_one_is_the_plain_model(make_student):
    transformer, condition = make_student().transformer, condition_of(2)

    def decode(scale, text=None, null=None):
        parts = vars(condition)
        if text:
            parts = {**parts, "text": parts[text], "text_mask": parts[text.replace("text", "mask")]}
        if null is not None:
            parts = {**parts, **null}
        return decode_tokens(
            transformer, Condition(**parts), [1, 2], GRID, DecodeConfig(guidance_scale=scale, **FAST)
        )

    plain = decode(1.0)
    broken = {"null_text": torch.full_like(condition.null_text, torch.nan)}
    assert torch.equal(decode(1.0, null=broken), plain)  # the unconditional half is not even looked at
    torch.testing.assert_close(decode(1.0001), plain, rtol=1e-2, atol=1e-2)
    same = {"null_text": condition.text, "null_mask": condition.text_mask}
    torch.testing.assert_close(decode(4.0, null=same), plain, **CLOSE)
    torch.testing.assert_close(decode(0.0), decode(1.0, text="null_text"), **CLOSE)
    assert (decode(3.0) - plain).abs().max() > 1e-2


def test_guidance_goes_beyond_the_conditional_velocity():
    condition = condition_of(2)
    fake = FakeTransformer(lambda noisy, time, cond: cond)
    config = DecodeConfig(guidance_scale=3.0, num_iterations=1, num_head_steps=5)
    with_text, without = condition.text[:, :1, :8], condition.null_text[:, :1, :8]
    expected = noises([1, 2], condition) - (without + 3 * (with_text - without))
    torch.testing.assert_close(decode_tokens(fake, condition, [1, 2], GRID, config), expected, **CLOSE)


@pytest.mark.parametrize("rise", [0.0, 0.5, 1.0])
def test_guidance_may_rise_with_the_known_share(rise):
    text, null = torch.ones(1, 3, 32), torch.zeros(1, 3, 32)
    mask = torch.ones(1, 3, dtype=torch.bool)
    condition = Condition(text=text, text_mask=mask, null_text=null, null_mask=mask)
    fake = FakeTransformer(
        lambda noisy, time, cond: cond
    )  # so a token falls by the scale it was decoded with
    config = DecodeConfig(guidance_scale=5.0, guidance_rise=rise, **FAST)
    fallen = (noises([1], condition) - decode_tokens(fake, condition, [1], GRID, config)).mean(dim=-1)[0]
    left = unknown_after(LENGTH, 4)
    counts = [before - after for before, after in zip([LENGTH, *left], left, strict=False)]
    scales = [1 + 4 * (1 - rise * unknown / LENGTH) for unknown in left]
    expected = sorted(scale for scale, count in zip(scales, counts, strict=True) for _ in range(count))
    torch.testing.assert_close(fallen.sort().values, torch.tensor(expected), **CLOSE)
    assert scales[-1] == 5


def test_the_flow_takes_even_euler_steps_from_noise_to_token():
    condition = condition_of(1)
    fake = FakeTransformer(lambda noisy, time, cond: noisy)
    config = DecodeConfig(guidance_scale=1.0, num_iterations=1, num_head_steps=4)
    tokens = decode_tokens(fake, condition, [1], GRID, config)
    torch.testing.assert_close(tokens, noises([1], condition) * 0.75**4, **CLOSE)
    assert fake.times == [1.0, 0.75, 0.5, 0.25]


@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
def test_a_perfect_head_lands_on_the_token(guidance_scale):
    fake = FakeTransformer(lambda noisy, time, cond: (noisy - 0.7) / time)
    config = DecodeConfig(guidance_scale=guidance_scale, num_iterations=3, num_head_steps=6)
    tokens = decode_tokens(fake, condition_of(2), [1, 2], GRID, config)
    torch.testing.assert_close(tokens, torch.full((2, LENGTH, 8), 0.7), **CLOSE)


def test_with_everything_known_nothing_is_done():
    known = randn(2, LENGTH, 8)
    fake, calls = FakeTransformer(None), []
    everything = torch.ones(LENGTH, dtype=torch.bool)
    tokens = decode_tokens(
        fake, condition_of(2), [1, 2], GRID, DecodeConfig(), known, everything, lambda *a: calls.append(a)
    )
    assert torch.equal(tokens, known)
    assert calls == [] and fake.known_values == []


def test_with_nothing_known_it_is_generation(make_student):
    transformer, condition, config = make_student().transformer, condition_of(2), DecodeConfig(**FAST)
    nothing = torch.zeros(LENGTH, dtype=torch.bool)
    generated = decode_tokens(transformer, condition, [1, 2], GRID, config)
    masked = decode_tokens(transformer, condition, [1, 2], GRID, config, randn(2, LENGTH, 8), nothing)
    assert torch.equal(masked, generated)


def test_known_tokens_stay_and_are_heeded_and_the_others_are_not_read(make_student):
    transformer, condition, config = make_student().transformer, condition_of(2), DecodeConfig(**FAST)
    mask, known = kept_mask(0, 3, 7, 11), randn(2, LENGTH, 8)
    tokens = decode_tokens(transformer, condition, [1, 2], GRID, config, known, mask)
    assert torch.equal(tokens[:, mask], known[:, mask])
    assert not (tokens[:, ~mask] == known[:, ~mask]).any()
    hidden = torch.where(mask[:, None], known, torch.nan)
    assert torch.equal(decode_tokens(transformer, condition, [1, 2], GRID, config, hidden, mask), tokens)
    other = torch.where(mask[:, None], known + 1, known)
    changed = decode_tokens(transformer, condition, [1, 2], GRID, config, other, mask)
    assert (changed - tokens)[:, ~mask].abs().max() > 1e-2


@pytest.mark.parametrize("kept", [(), (2, 3, 9)])
def test_each_iteration_adds_to_what_is_known(make_student, kept):
    mask, known = kept_mask(*kept), 5 + randn(2, LENGTH, 8)
    seen = []
    tokens = decode_tokens(
        make_student().transformer,
        condition_of(2),
        [1, 2],
        GRID,
        DecodeConfig(**FAST),
        known,
        mask,
        lambda iteration, now: seen.append((iteration, now.clone())),
    )
    left = unknown_after(LENGTH - len(kept), 4)
    assert [iteration for iteration, _ in seen] == list(range(len(left)))
    assert torch.equal(seen[-1][1], tokens)
    for (_, now), unknown in zip(seen, left, strict=True):
        done = (now != 0).all(dim=-1)
        assert (done.sum(dim=1) == LENGTH - unknown).all()
        assert torch.equal(now[done], tokens[done])  # what is decoded never changes again


def test_the_trunk_is_given_what_was_decoded_before():
    fake = FakeTransformer(lambda noisy, time, cond: torch.zeros_like(noisy))
    tokens = decode_tokens(fake, condition_of(1), [1], GRID, DecodeConfig(guidance_scale=1.0, **FAST))
    left = unknown_after(LENGTH, 4)
    assert [known.shape[1] for known in fake.known_values] == [
        LENGTH - unknown for unknown in [LENGTH, *left[:-1]]
    ]
    rows = {tuple(row) for row in tokens[0].tolist()}
    assert all(tuple(row) in rows for row in fake.known_values[-1][0].tolist())


def test_temperature_scales_the_noise_and_at_zero_there_is_none(make_student):
    condition = condition_of(1)
    torch.testing.assert_close(noises([1], condition, temperature=0.5), 0.5 * noises([1], condition))
    transformer = make_student().transformer

    def decode(seed, temperature):
        # one iteration: orders differ from seed to seed, and would else decide which tokens see which
        config = DecodeConfig(num_iterations=1, num_head_steps=3, temperature=temperature)
        return decode_tokens(transformer, condition, [seed], GRID, config)

    torch.testing.assert_close(decode(1, 0.0), decode(2, 0.0), **CLOSE)
    assert (decode(1, 1.0) - decode(2, 1.0)).abs().max() > 0.1


@pytest.mark.parametrize("grid", [(1, 1), (1, 5), (5, 3)])
def test_any_grid_and_more_iterations_than_tokens(make_student, grid):
    config = DecodeConfig(num_iterations=40, num_head_steps=1)
    tokens = decode_tokens(make_student().transformer, condition_of(1), [3], grid, config)
    assert tokens.shape == (1, grid[0] * grid[1], 8)
    assert (tokens != 0).all()
