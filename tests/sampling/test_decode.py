"""Masked decoding: equal to each image spelled out alone, and identities that hold for any weights."""

from dataclasses import replace
from itertools import count as counter

import pytest
import torch

from lightgen.core.draws import torch_draws
from lightgen.models.tokens import tokens_at
from lightgen.sampling import decode
from lightgen.sampling.decode import DecodeConfig, Texts, decode_tokens
from lightgen.sampling.draws import Draws, draw
from lightgen.sampling.order import unknown_after
from lightgen.sampling.solver import HeadSampler
from tests.models.naive import HEADS, LOOKS, PREFIXES, SMALL, TRUNKS, Naive, named
from tests.sampling.analytic import RuleHead, gaussian_head

GRID, LENGTH = (3, 4), 12
FAST = {"num_iterations": 4, "num_head_steps": 3}
CLOSE = {"rtol": 1e-4, "atol": 1e-5}
FUSIONS = ["late", "interleaved", "joint"]
SOLVERS = {"ddpm": ["ancestral", "ddim", "dpm++"], "flow": ["ddim", "dpm++"]}
TURNS = {prediction: counter() for prediction in SOLVERS}
# every shape with one of its solvers in turn
SHAPES = [
    (shape, solvers[next(TURNS[shape["prediction"]]) % len(solvers)])
    for shape in ({**trunk, **head} for trunk in TRUNKS for head in HEADS)
    for solvers in [SOLVERS[shape["prediction"]]]
]
SHAPES += [
    (
        {**trunk, "prediction": "flow_x", "head_conditioning": HEADS[i % len(HEADS)]["head_conditioning"]},
        SOLVERS["flow"][i % 2],
    )
    for i, trunk in enumerate(PREFIXES)
]


def randn(*shape, seed=0):
    return torch.randn(shape, generator=torch_draws(seed, "test"))


def texts_of(batch, seed=0, width=32, **null):
    text_mask = torch.arange(3) < torch.tensor([3, 1, 2] * batch)[:batch, None]
    return Texts(text=randn(batch, 3, width, seed=seed), text_mask=text_mask, **null)


def negative(batch, width=32):
    return {"null_text": randn(batch, 3, width, seed=50), "null_mask": torch.ones(batch, 3, dtype=torch.bool)}


def each(texts, k):
    return Texts(**{name: None if value is None else value[k : k + 1] for name, value in vars(texts).items()})


def kept_mask(*positions):
    return torch.isin(torch.arange(LENGTH), torch.tensor(positions))


def by_hand(transformer, texts, draws, config, known, kept):
    """Tokens of one image: in each iteration all tokens pass all blocks, once with text and once without."""
    shape, order = transformer.shape, draws.order[0].tolist()
    null, null_mask = texts.null_text, texts.null_mask
    if null is None:
        null, null_mask = transformer.null_text_of(1, texts.text.shape[1])
    halves = [(texts.text[0], texts.text_mask[0]), (null[0], null_mask[0])]
    tokens, done = known[0].clone(), list(kept)
    schedule = unknown_after(LENGTH - len(kept), config.num_iterations)
    sampler = HeadSampler(transformer.head, shape.prediction, config.solver, config.spacing)
    for left in schedule:
        now = order[left : LENGTH - len(done)]
        conds = [Naive(transformer, *half, GRID).conditions(tokens, done)[now] for half in halves]
        rise = config.guidance_rise * max(left, 1) / (LENGTH - len(kept))
        scale = 1 + (config.guidance_scale - 1) * (1 - rise)
        is_noisy = config.solver == "ancestral"
        start = draws.start[0, now] * (1 if is_noisy else config.temperature)
        noises = draws.steps[:, 0, now] * config.temperature if is_noisy else None
        tokens[now] = sampler(torch.cat(conds), start, scale, config.num_head_steps, noises)
        done += now
    return tokens


@pytest.mark.parametrize(("shape", "solver"), SHAPES, ids=[f"{named(s)}-{solver}" for s, solver in SHAPES])
@torch.no_grad()
def test_a_batch_is_each_image_spelled_out_alone(make_student, shape, solver):
    transformer, texts = make_student(**SMALL, **shape).transformer.double().eval(), texts_of(2, width=16)
    texts = replace(texts, text=texts.text.double())
    if shape["head_conditioning"] == "additive":  # and with the other way to say what to stay away from
        null = negative(2, 16)
        texts = replace(texts, null_text=null["null_text"].double(), null_mask=null["null_mask"])
    settings = {"guidance_scale": 2.0, "guidance_rise": 0.5, "temperature": 0.9, "spacing": "stride"}
    config = DecodeConfig(num_iterations=3, num_head_steps=2, solver=solver, **settings)
    known, kept = (
        randn(2, LENGTH, 8, seed=4).double(),
        [1, 7] if shape["head_conditioning"] == "joint" else [],
    )
    mask = kept_mask(*kept)
    drawn = draw([5, 6], LENGTH, 8, 2, mask)
    drawn = Draws(order=drawn.order, start=drawn.start.double(), steps=drawn.steps.double())
    tokens = decode_tokens(transformer, texts, [5, 6], GRID, config, known, mask, draws=drawn)
    for k in range(2):
        own = Draws(
            order=drawn.order[k : k + 1], start=drawn.start[k : k + 1], steps=drawn.steps[:, k : k + 1]
        )
        wanted = by_hand(transformer, each(texts, k), own, config, known[k : k + 1], kept)
        torch.testing.assert_close(tokens[k], wanted, rtol=1e-7, atol=1e-7 * wanted.abs().max().item())


@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("refresh_every", [1, 2])
def test_an_image_is_the_same_alone_and_in_any_batch(make_student, guidance_scale, fusion, refresh_every):
    transformer, texts = make_student(fusion=fusion).transformer, texts_of(3)
    config = DecodeConfig(guidance_scale=guidance_scale, refresh_every=refresh_every, **FAST)
    known = randn(3, LENGTH, 8, seed=4)
    masks = torch.stack([kept_mask(1, 5), kept_mask(0, 11), kept_mask(5, 6)])
    for given in ({}, {"known": known, "known_mask": masks}):
        together = decode_tokens(transformer, texts, [5, 6, 7], GRID, config, **given)
        for k, seed in enumerate([5, 6, 7]):
            one = {name: value[k : k + 1] for name, value in given.items()}
            alone = decode_tokens(transformer, each(texts, k), [seed], GRID, config, **one)
            # products of a batch round otherwise than those of one, by processor, and decoding adds it up
            torch.testing.assert_close(alone[0], together[k], rtol=1e-3, atol=1e-4)
    assert (together[0] - together[1]).abs().max() > 0.1


@pytest.mark.parametrize("fusion", FUSIONS)
def test_refreshing_sometimes_is_near_and_at_every_iteration_exact(make_student, fusion):
    transformer, texts = make_student(fusion=fusion).transformer, texts_of(2)
    known, mask = randn(2, LENGTH, 8, seed=4), kept_mask(2, 8)

    def decoded(refresh_every, **settings):
        config = DecodeConfig(**{**FAST, **settings}, refresh_every=refresh_every)
        return decode_tokens(transformer, texts, [1, 2], GRID, config, known, mask)

    exact, stale = decoded(1), decoded(2)
    assert 1e-3 < (stale - exact).abs().max() < 0.8 * exact.abs().max()
    order = draw([1, 2], LENGTH, 8, 0, mask).order
    first = unknown_after(LENGTH - 2, 4)[0]
    torch.testing.assert_close(
        tokens_at(stale, order)[:, first:], tokens_at(exact, order)[:, first:], **CLOSE
    )
    torch.testing.assert_close(decoded(2, num_iterations=1), decoded(1, num_iterations=1), **CLOSE)


def test_the_same_seed_gives_the_same_bits_and_leaves_the_global_state_alone(make_student):
    for shape, solver in (({}, "ddim"), ({"prediction": "ddpm"}, "ancestral")):
        transformer, texts = make_student(**shape).transformer, texts_of(2)
        config = DecodeConfig(solver=solver, **FAST)
        before = torch.get_rng_state()
        first = decode_tokens(transformer, texts, [1, 2], GRID, config)
        assert torch.equal(torch.get_rng_state(), before)
        torch.manual_seed(5)
        assert torch.equal(decode_tokens(transformer, texts, [1, 2], GRID, config), first)
        assert first.shape == (2, LENGTH, 8) and torch.isfinite(first).all() and not first.requires_grad


@pytest.mark.parametrize("fusion", FUSIONS)
def test_guidance_one_is_the_plain_model(make_student, fusion):
    transformer, texts = make_student(fusion=fusion).transformer, texts_of(2)

    def decoded(scale, interval=(0.0, 1.0), **changes):
        config = DecodeConfig(guidance_scale=scale, guidance_interval=interval, **FAST)
        return decode_tokens(transformer, replace(texts, **changes), [1, 2], GRID, config)

    plain = decoded(1.0)
    away = negative(2)
    broken = {**away, "null_text": away["null_text"] * torch.nan}
    assert torch.equal(decoded(1.0, **broken), plain)  # the unconditional half is not even looked at
    torch.testing.assert_close(decoded(1.0001), plain, rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(decoded(4.0, (0.0, 0.0)), plain, **CLOSE)
    same = {"null_text": texts.text, "null_mask": texts.text_mask}
    torch.testing.assert_close(decoded(4.0, **same), plain, **CLOSE)
    null, null_mask = transformer.null_text_of(2, 3)
    torch.testing.assert_close(decoded(0.0), decoded(1.0, text=null, text_mask=null_mask), **CLOSE)
    torch.testing.assert_close(decoded(3.0, null_text=null, null_mask=null_mask), decoded(3.0), **CLOSE)
    for other in (decoded(3.0), decoded(3.0, **away)):
        assert (other - plain).abs().max() > 1e-2
    assert (decoded(3.0) - decoded(3.0, **away)).abs().max() > 1e-2


class Recorder:
    """Stands in for the sampler of the head: tokens are zero, settings are remembered."""

    def __init__(self, *arguments):
        self.calls = []
        Recorder.last = self

    def __call__(self, cond, start, scale, num_steps, noises):
        self.calls.append((scale, num_steps, None if noises is None else len(noises), len(start)))
        return torch.zeros_like(start)


@pytest.mark.parametrize("rise", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("num_kept", [0, 2])
def test_guidance_may_rise_with_the_known_share(make_student, monkeypatch, rise, num_kept):
    monkeypatch.setattr(decode, "HeadSampler", Recorder)
    config = DecodeConfig(guidance_scale=5.0, guidance_rise=rise, **FAST)
    mask = kept_mask(*range(num_kept))
    decode_tokens(make_student().transformer, texts_of(1), [1], GRID, config, randn(1, LENGTH, 8), mask)
    num = LENGTH - num_kept
    left = unknown_after(num, 4)
    scales = [1 + 4 * (1 - rise * max(unknown, 1) / num) for unknown in left]
    assert [scale for scale, *_ in Recorder.last.calls] == pytest.approx(scales)
    assert scales == sorted(scales) and (rise > 0 or scales[0] == 5)
    counts = [before - after for before, after in zip([num, *left], left, strict=False)]
    assert [rows for *_, rows in Recorder.last.calls] == counts


@pytest.mark.parametrize(
    ("first", "last", "steps"),
    [(9, None, [9, 9, 9, 9]), (9, 3, [9, 7, 5, 3]), (3, 9, [3, 5, 7, 9]), (5, 1, [5, 4, 2, 1])],
)
def test_the_heads_steps_go_linearly_to_the_last(make_student, monkeypatch, first, last, steps):
    monkeypatch.setattr(decode, "HeadSampler", Recorder)
    for solver, noises in (("ancestral", steps), ("ddim", [None] * 4)):
        config = DecodeConfig(num_iterations=4, num_head_steps=first, last_head_steps=last, solver=solver)
        decode_tokens(make_student(prediction="ddpm").transformer, texts_of(1), [1], GRID, config)
        assert [num for _, num, *_ in Recorder.last.calls] == steps
        assert [num for *_, num, _ in Recorder.last.calls] == noises


def test_fewer_steps_in_the_last_iterations_do_not_change_the_first_ones(make_student):
    transformer, texts = make_student(prediction="ddpm").transformer, texts_of(2)
    config, found = DecodeConfig(**FAST, solver="ancestral"), []
    for each_config in (config, replace(config, last_head_steps=2), replace(config, last_head_steps=7)):
        stopped = decode_tokens(
            transformer, texts, [1, 2], GRID, each_config, on_iteration=lambda iteration, tokens: True
        )
        found.append(stopped)
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])
    last = DecodeConfig(num_iterations=4, num_head_steps=2, last_head_steps=7, solver="ancestral")
    assert torch.isfinite(decode_tokens(transformer, texts, [1, 2], GRID, last)).all()


@pytest.mark.parametrize(("prediction", "solver"), [(p, s) for p, names in SOLVERS.items() for s in names])
@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
def test_a_perfect_head_lands_on_the_token(make_student, prediction, solver, guidance_scale):
    transformer = make_student(prediction=prediction).transformer
    transformer.head = gaussian_head(prediction, 0.7, 0.0)
    config = DecodeConfig(guidance_scale=guidance_scale, num_iterations=3, num_head_steps=6, solver=solver)
    tokens = decode_tokens(transformer, texts_of(2), [1, 2], GRID, config)
    torch.testing.assert_close(tokens, torch.full((2, LENGTH, 8), 0.7), rtol=0, atol=1e-3)


def test_guidance_goes_beyond_the_conditional_velocity(make_student):
    transformer, texts = make_student().transformer.eval(), texts_of(2)
    transformer.head = RuleHead(lambda noisy, time, cond: cond[:, :8])
    config = DecodeConfig(guidance_scale=3.0, num_iterations=1, num_head_steps=5)
    tokens = decode_tokens(transformer, texts, [1, 2], GRID, config)
    draws = draw([1, 2], LENGTH, 8, 0, None)
    nothing, null = torch.zeros(2, 0, 8), transformer.null_text_of(2, 3)
    with_text = transformer(nothing, draws.order, texts.text, texts.text_mask, GRID)[..., :8]
    without = transformer(nothing, draws.order, *null, GRID)[..., :8]
    expected = tokens_at(draws.start, draws.order) - (without + 3 * (with_text - without))
    torch.testing.assert_close(tokens_at(tokens, draws.order), expected, **CLOSE)


def test_with_everything_known_nothing_is_done(make_student):
    known, transformer, calls = randn(2, LENGTH, 8), make_student().transformer, []
    transformer.head = RuleHead(None)
    everything = torch.ones(LENGTH, dtype=torch.bool)
    tokens = decode_tokens(
        transformer, texts_of(2), [1, 2], GRID, DecodeConfig(), known, everything, lambda *a: calls.append(a)
    )
    assert torch.equal(tokens, known)
    assert calls == [] and transformer.head.asked == []


@pytest.mark.parametrize("fusion", FUSIONS)
def test_with_nothing_known_it_is_generation(make_student, fusion):
    transformer, texts, config = make_student(fusion=fusion).transformer, texts_of(2), DecodeConfig(**FAST)
    nothing = torch.zeros(LENGTH, dtype=torch.bool)
    generated = decode_tokens(transformer, texts, [1, 2], GRID, config)
    masked = decode_tokens(transformer, texts, [1, 2], GRID, config, randn(2, LENGTH, 8), nothing)
    assert torch.equal(masked, generated)


@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("refresh_every", [1, 3])
def test_known_tokens_stay_and_are_heeded_and_the_others_are_not_read(make_student, fusion, refresh_every):
    transformer, texts = make_student(fusion=fusion).transformer, texts_of(2)
    config = DecodeConfig(refresh_every=refresh_every, **FAST)
    mask, known = kept_mask(0, 3, 7, 11), randn(2, LENGTH, 8)
    tokens = decode_tokens(transformer, texts, [1, 2], GRID, config, known, mask)
    assert torch.equal(tokens[:, mask], known[:, mask])
    assert not (tokens[:, ~mask] == known[:, ~mask]).any()
    hidden = torch.where(mask[:, None], known, torch.nan)
    assert torch.equal(decode_tokens(transformer, texts, [1, 2], GRID, config, hidden, mask), tokens)
    other = torch.where(mask[:, None], known + 1, known)
    changed = decode_tokens(transformer, texts, [1, 2], GRID, config, other, mask)
    assert (changed - tokens)[:, ~mask].abs().max() > 1e-2


def test_as_many_tokens_are_known_in_each_image(make_student):
    masks = torch.stack([kept_mask(1), kept_mask(2, 3)])
    with pytest.raises(AssertionError):
        decode_tokens(
            make_student().transformer, texts_of(2), [1, 2], GRID, DecodeConfig(), randn(2, LENGTH, 8), masks
        )


@pytest.mark.parametrize("kept", [(), (2, 3, 9)])
def test_each_iteration_adds_to_what_is_known(make_student, kept):
    mask, known = kept_mask(*kept), 5 + randn(2, LENGTH, 8)
    seen, transformer = [], make_student().transformer
    given = (transformer, texts_of(2), [1, 2], GRID, DecodeConfig(**FAST), known, mask)
    tokens = decode_tokens(*given, lambda iteration, now: seen.append((iteration, now.clone())))
    left = unknown_after(LENGTH - len(kept), 4)
    assert [iteration for iteration, _ in seen] == list(range(len(left)))
    assert torch.equal(seen[-1][1], tokens)
    assert torch.equal(decode_tokens(*given), tokens)  # to look on changes nothing
    for (_, now), unknown in zip(seen, left, strict=True):
        done = (now != 0).all(dim=-1)
        assert (done.sum(dim=1) == LENGTH - unknown).all()
        assert torch.equal(now[done], tokens[done])  # what is decoded never changes again


@pytest.mark.parametrize("fusion", FUSIONS)
def test_on_iteration_may_stop_and_may_write(make_student, fusion):
    transformer, texts, config = make_student(fusion=fusion).transformer, texts_of(2), DecodeConfig(**FAST)
    seen = []

    def run(on_iteration):
        return decode_tokens(transformer, texts, [1, 2], GRID, config, on_iteration=on_iteration)

    run(lambda iteration, now: seen.append(now.clone()))

    def stop(iteration, now):
        assert iteration <= 1
        return iteration == 1

    assert torch.equal(run(stop), seen[1])

    done = [(now != 0).all(dim=-1) for now in seen]
    for written in (done[0], done[1] & ~done[0]):  # what had entered the trunk before, and what had not

        def write(iteration, now, written=written):
            if iteration == 1:
                now[written] += 1
            elif iteration == 2:
                seen.append(now.clone())

        tokens = run(write)
        torch.testing.assert_close(tokens[written], seen[1][written] + 1)
        fresh = done[2] & ~done[1]
        assert (seen[-1] - seen[2])[fresh].abs().max() > 1e-3  # what follows has read what was written

        with torch.inference_mode():
            assert torch.equal(run(write), tokens)

    def write_and_stop(iteration, now):
        now[:, 0] = 42.0
        return True

    assert (run(write_and_stop)[:, 0] == 42).all()


def test_temperature_scales_the_noise_and_at_zero_there_is_none(make_student):
    transformer, texts = make_student().transformer, texts_of(1)
    ancestor = make_student(prediction="ddpm").transformer

    def decoded(seed, temperature, transformer=transformer, solver="ddim"):
        # one iteration: orders differ from seed to seed, and would else decide which tokens see which
        config = DecodeConfig(num_iterations=1, num_head_steps=3, temperature=temperature, solver=solver)
        return decode_tokens(transformer, texts, [seed], GRID, config)

    torch.testing.assert_close(decoded(1, 0.0), decoded(2, 0.0), **CLOSE)
    assert (decoded(1, 1.0) - decoded(2, 1.0)).abs().max() > 0.1
    # as released, ancestral sampling at temperature 0 keeps its start and adds nothing after it
    draws = draw([1], LENGTH, 8, 3, None)
    config = DecodeConfig(num_iterations=1, num_head_steps=3, temperature=0.0, solver="ancestral")
    for steps in (draws.steps, torch.zeros_like(draws.steps)):
        given = Draws(order=draws.order, start=draws.start, steps=steps)
        tokens = decode_tokens(ancestor, texts, [1], GRID, config, draws=given)
        torch.testing.assert_close(tokens, decoded(1, 0.0, ancestor, "ancestral"))
    assert (decoded(1, 0.0, ancestor, "ancestral") - decoded(2, 0.0, ancestor, "ancestral")).abs().max() > 0.1
    assert (decoded(1, 1.0, ancestor, "ancestral") - tokens).abs().max() > 1e-3


@pytest.mark.parametrize("grid", [(1, 1), (1, 5), (5, 3)])
@pytest.mark.parametrize("look", LOOKS, ids=named)
@pytest.mark.parametrize("fusion", FUSIONS)
def test_any_grid_and_more_iterations_than_tokens(make_student, grid, look, fusion):
    for refresh_every in (1, 2):
        config = DecodeConfig(num_iterations=40, num_head_steps=1, refresh_every=refresh_every)
        tokens = decode_tokens(
            make_student(**SMALL, **look, fusion=fusion).transformer, texts_of(1, width=16), [3], grid, config
        )
        assert tokens.shape == (1, grid[0] * grid[1], 8)
        assert (tokens != 0).all() and torch.isfinite(tokens).all()


@pytest.mark.parametrize(
    ("shape", "solver", "refresh_every"),
    [
        ({"fusion": "late", "prediction": "ddpm", "text_masked": False, **LOOKS[0]}, "ancestral", 1),
        ({"fusion": "late", "head_conditioning": "additive", **LOOKS[1]}, "dpm++", 2),
        ({"fusion": "interleaved", **LOOKS[0]}, "ddim", 1),
        ({"fusion": "joint", "prediction": "ddpm", **LOOKS[1]}, "ddim", 2),
    ],
    ids=["late-ancestral", "late-dpm++", "interleaved-ddim", "joint-ddim"],
)
def test_no_value_is_asked_for_on_the_host(make_student, shape, solver, refresh_every):
    """On the meta device there are no values: to count, compare or print one would raise."""
    transformer = make_student(**SMALL, **shape).transformer.to("meta")
    texts, mask = texts_of(2, width=16), kept_mask(3, 4)
    texts = Texts(text=texts.text.to("meta"), text_mask=texts.text_mask.to("meta"))
    settings = {"last_head_steps": 1, "guidance_interval": (0.3, 1.0), "refresh_every": refresh_every}
    config = DecodeConfig(num_iterations=2, num_head_steps=2, solver=solver, **settings)
    drawn = draw([1, 2], LENGTH, 8, 2, mask)
    for draws in (None, Draws(**{name: value.to("meta") for name, value in vars(drawn).items()})):
        known = randn(2, LENGTH, 8).to("meta")
        tokens = decode_tokens(transformer, texts, [1, 2], GRID, config, known, mask, lambda *_: None, draws)
        assert tokens.device.type == "meta" and tokens.shape == (2, LENGTH, 8)


@pytest.mark.parametrize(
    ("prediction", "solver"), [("ddpm", "ancestral"), ("ddpm", "dpm++"), ("flow", "ddim")]
)
def test_narrow_weights_give_wide_tokens(make_student, prediction, solver):
    transformer = make_student(prediction=prediction, fusion="late").transformer.to(torch.bfloat16)
    texts, known = replace(texts_of(2), text=texts_of(2).text.bfloat16()), randn(2, LENGTH, 8)
    for refresh_every in (1, 2):
        config = DecodeConfig(**FAST, solver=solver, refresh_every=refresh_every)
        tokens = decode_tokens(transformer, texts, [1, 2], GRID, config, known, kept_mask(4))
        assert tokens.dtype == torch.float32 and torch.isfinite(tokens).all()
        assert torch.equal(tokens[:, 4], known[:, 4])
