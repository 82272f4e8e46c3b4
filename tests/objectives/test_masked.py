"""The masked objective: keyed draws, what is hidden, the polarity of time, and that batches may be cut."""

import math

import pytest
import torch
from torch import nn

from lightgen.core.errors import UserError
from lightgen.models import diffusion
from lightgen.models.diffusion import noise_levels, training_chain, variational_bits
from lightgen.models.tokens import patchify, tokens_at, tokens_placed, unpatchify
from lightgen.objectives.masked import (
    MaskedConfig,
    MaskedObjective,
    by_quarter,
    draw_masking,
    masked_errors,
    predict,
)
from tests.models.naive import LOOKS, SMALL, named

PREDICTIONS = ["flow", "ddpm", "flow_x"]


class FixedHead(nn.Module):
    """Stands in for the head: output by a given rule of (noisy, time); remembers what it was asked."""

    def __init__(self, rule, variance=None, channels=8):
        super().__init__()
        self.token_in = nn.Linear(channels, 1)
        self.rule, self.cond, self.variance_out = rule, None, variance

    def embed_cond(self, cond):
        self.cond = cond
        return cond

    def forward(self, noisy, time, cond):
        self.noisy, self.time = noisy, time
        variance = None if self.variance_out is None else torch.full_like(noisy, self.variance_out)
        return self.rule(noisy, time[:, None]), variance


def head_of(prediction, rule=None):
    return FixedHead(rule, variance=0.0 if prediction == "ddpm" else None)


def masking_of(ids, step=0, length=12, prediction="flow", **settings):
    return draw_masking(MaskedConfig(**settings), step, ids, length, head_of(prediction))


def bounded(student, batch, masking):
    """Errors per image with the term that teaches the variance."""
    return masked_errors(student, batch, masking).mean(dim=(0, 2))


def plain(student, batch, masking):
    """Errors per image without it."""
    return predict(student, batch, masking).image_errors()


def random_parts(masking, row):
    kept = row in masking.kept.tolist()
    return [masking.order[row], masking.time[:, row], masking.noise[:, row], torch.tensor(kept)]


def same(first, second):
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("per_image_time", [False, True])
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_a_sample_draws_the_same_in_any_batch(per_image_time, prediction):
    settings = {"prediction": prediction, "per_image_time": per_image_time, "text_drop": 0.5}
    together = masking_of([5, 9, 2], step=7, **settings)
    for row, sample in enumerate([5, 9, 2]):
        alone = masking_of([sample], step=7, **settings)
        assert same(random_parts(together, row), random_parts(alone, 0))


def test_samples_steps_and_seeds_draw_apart():
    noises = [masking_of([3, 4]).noise[0, 0, 0], masking_of([3, 4]).noise[0, 1, 0]]
    noises += [masking_of([3], step=1).noise[0, 0, 0], masking_of([3], seed=1).noise[0, 0, 0]]
    for i, first in enumerate(noises):
        for second in noises[:i]:
            assert not torch.equal(first, second)


def test_known_and_predicted_part_the_tokens():
    sizes = set()
    for step in range(60):
        masking = masking_of([0, 1], step=step)
        assert torch.equal(masking.order.sort(dim=1).values, torch.arange(12).expand(2, -1))
        num = masking.noise.shape[2]
        assert masking.time.shape == (4, 2, num) and masking.noise.shape == (4, 2, num, 8)
        sizes.add(num)
    assert len(sizes) > 4 and min(sizes) >= 1 and max(sizes) == 12


@pytest.mark.parametrize("least", [0.0, 0.7])
def test_the_hidden_share_is_a_normal_around_one_cut_off(least):
    """Against the mean of that law in closed form."""
    cut = (1 - least) / 0.25
    slope = (1 - math.exp(-(cut**2) / 2)) / math.sqrt(2 * math.pi)
    mean = 1 - 0.25 * slope / (0.5 * math.erf(cut / math.sqrt(2)))
    nums = [masking_of([0], step, 64, mask_min=least).noise.shape[2] for step in range(600)]
    assert min(nums) >= max(1, 64 * least) and max(nums) == 64
    assert abs(sum(nums) / 600 / 64 - 0.5 / 64 - mean) < 0.03  # counts are rounded up; five standard errors
    assert masking_of([0], mask_spread=0.0).noise.shape[2] == 12


@pytest.mark.parametrize("least", [0.0, 0.5])
def test_the_hidden_share_may_be_of_other_laws(least):
    """Against quartiles of those laws in closed form."""
    for law, of in (
        ("uniform", lambda u: 1 - u * (1 - least)),
        ("cosine", lambda u: math.cos(u * math.acos(least))),
    ):
        given = {"length": 64, "mask_law": law, "mask_min": least}
        nums = sorted(masking_of([0], step, **given).noise.shape[2] for step in range(600))
        for quarter in (1, 2, 3):
            assert abs(nums[600 - 150 * quarter] / 64 - 0.5 / 64 - of(quarter / 4)) < 0.06
        assert nums[0] >= max(1, 64 * least) and nums[-1] == 64


@pytest.mark.parametrize("least", [-0.1, 1.0, 2.0, math.nan])
def test_a_share_that_no_draw_reaches_is_refused(least):
    with pytest.raises(UserError, match="mask_min"):
        masking_of([0], mask_min=least)


def test_text_is_dropped_at_the_asked_rate():
    kept = masking_of(list(range(2000)), length=1, text_drop=0.1).kept
    assert abs(len(kept) / 2000 - 0.9) < 0.03
    assert masking_of(list(range(50)), text_drop=0.0).kept.tolist() == list(range(50))
    assert masking_of(list(range(50)), text_drop=1.0).kept.tolist() == []


def test_times_are_logit_normal_and_noise_is_normal():
    masking = masking_of(list(range(300)), length=12, mask_spread=0.0, time_mean=0.5, time_std=2.0)
    logits = torch.logit(masking.time)
    assert abs(logits.mean() - 0.5) < 0.1 and abs(logits.std() - 2.0) < 0.1
    assert abs(masking.noise.mean()) < 0.02 and abs(masking.noise.std() - 1) < 0.02
    assert len(masking.time[:, 0].unique()) == 4 * 12


def test_timesteps_of_a_ddpm_head_are_even():
    masking = masking_of(list(range(400)), length=12, prediction="ddpm", mask_spread=0.0)
    assert masking.time.dtype == torch.int64
    assert masking.time.min() == 0 and masking.time.max() == 999
    counts = torch.bincount(masking.time.flatten() // 100, minlength=10) / masking.time.numel()
    assert (counts - 0.1).abs().max() < 0.015


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_a_time_may_be_one_per_image_and_draw(prediction):
    time = masking_of([0, 1], mask_spread=0.0, per_image_time=True, prediction=prediction).time
    assert torch.equal(time, time[..., :1].expand(-1, -1, 12))
    assert len(time[..., 0].unique()) == 8


def target_of(batch, masking):
    return tokens_at(patchify(batch["latents"], 2), masking.order)[:, : masking.noise.shape[2]]


def test_time_one_is_noise_and_time_zero_is_the_token(make_student, make_batch):
    student, batch = make_student(), make_batch([0, 1])
    student.transformer.head = head = head_of("flow", lambda noisy, time: torch.zeros_like(noisy))
    for time_mean, expected_time in ((60.0, 1000.0), (-60.0, 0.0)):
        masking = masking_of([0, 1], length=6, mask_spread=0.0, time_mean=time_mean)
        error = predict(student, batch, masking).image_errors()
        target = target_of(batch, masking)
        shown = masking.noise if expected_time else target.expand(4, -1, -1, -1)
        torch.testing.assert_close(head.noisy.view(4, 2, 6, 8), shown)
        torch.testing.assert_close(head.time, torch.full((48,), expected_time), atol=1e-6, rtol=0)
        expected = (masking.noise - target).double().square().mean(dim=(0, 2, 3))
        torch.testing.assert_close(error.double(), expected, rtol=1e-5, atol=0)


def test_between_them_a_token_moves_on_the_straight_line(make_student, make_batch):
    student, batch = make_student(), make_batch([0, 1])
    student.transformer.head = head = head_of("flow", lambda noisy, time: torch.zeros_like(noisy))
    masking = masking_of([0, 1], length=6)
    predict(student, batch, masking).image_errors()
    target, time = target_of(batch, masking), masking.time[..., None]
    torch.testing.assert_close(head.noisy.view_as(masking.noise), target + time * (masking.noise - target))
    assert torch.equal(head.time, 1000 * masking.time.flatten())


def test_a_ddpm_head_sees_the_cosine_schedule_and_says_the_noise(make_student, make_batch):
    student, batch = make_student(prediction="ddpm"), make_batch([0, 1])
    student.transformer.head = head = head_of("ddpm", lambda noisy, time: 0.5 * noisy)
    masking = masking_of([0, 1], length=6, prediction="ddpm")
    error, more = predict(student, batch, masking).image_errors(), bounded(student, batch, masking)
    target, bars = target_of(batch, masking), torch.as_tensor(training_chain().alpha_bars)
    at = bars[masking.time][..., None]
    noisy = at.sqrt() * target + (1 - at).sqrt() * masking.noise
    torch.testing.assert_close(head.noisy.view_as(masking.noise).double(), noisy, rtol=1e-5, atol=1e-6)
    assert torch.equal(head.time, masking.time.flatten())
    expected = (0.5 * noisy - masking.noise).square().mean(dim=(0, 2, 3))
    torch.testing.assert_close(error.double(), expected, rtol=1e-5, atol=0)
    level = noise_levels(masking.time, torch.float32)
    noisy = level.signal * target + level.noise * masking.noise
    clean = target.expand_as(noisy)
    bits = variational_bits(clean, noisy, 0.5 * noisy, torch.zeros_like(noisy), masking.time)
    torch.testing.assert_close(more, error + bits.mean(dim=(0, 2)))


def test_a_head_that_says_the_token_is_judged_by_the_velocity(make_student, make_batch):
    student, batch = make_student(prediction="flow_x"), make_batch([0, 1])
    student.transformer.head = head_of("flow_x", lambda noisy, time: 0.5 * noisy)
    masking = masking_of([0, 1], length=6, time_mean=-2.0, time_std=2.0)
    found, target, time = masked_errors(student, batch, masking), target_of(batch, masking), masking.time
    assert (time < 0.05).any() and (time > 0.05).any()
    said = 0.5 * (target + time[..., None] * (masking.noise - target))
    expected = (said - target).square().mean(dim=-1) / time.clamp(min=0.05).square()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    student.transformer.head = head_of(
        "flow_x", lambda noisy, time: target.expand(4, -1, -1, -1).flatten(0, 2)
    )
    assert masked_errors(student, batch, masking).max() < 1e-9


def test_the_variational_term_moves_the_variance_alone(make_student, make_batch):
    gradients = []
    for errors in (plain, bounded):
        student = make_student(prediction="ddpm")
        masking = draw_masking(MaskedConfig(), 2, [0, 1], 6, student.transformer.head)
        errors(student, make_batch([0, 1]), masking).mean().backward()
        head = student.transformer.head
        gradients.append((head.token_out.weight.grad, head.variance_out.weight.grad))
    torch.testing.assert_close(gradients[0][0], gradients[1][0])
    assert gradients[0][1] is None and gradients[1][1].abs().max() > 0


def test_a_perfect_predictor_has_no_error(make_student, make_batch, drawing):
    objective = drawing(MaskedObjective, MaskedConfig())
    student, batch = make_student(), make_batch([0, 1, 2])
    batch["latents"] = torch.full_like(batch["latents"], 0.7)
    student.transformer.head = head_of("flow", lambda noisy, time: 1000 * (noisy - 0.7) / time)
    loss, _ = objective(student, batch, 0)
    assert loss < 1e-6
    student.transformer.head = head_of("flow", lambda noisy, time: 1000 * (0.7 - noisy) / time)
    assert objective(student, batch, 0)[0] > 1


@pytest.mark.parametrize("fusion", ["late", "interleaved", "joint"])
def test_hidden_tokens_do_not_leak_into_the_condition(make_student, make_batch, fusion):
    student, batch = make_student(fusion=fusion), make_batch([0, 1])
    student.transformer.head = head = head_of("flow", lambda noisy, time: torch.zeros_like(noisy))
    masking = masking_of([0, 1], step=2, length=6)
    num = masking.noise.shape[2]
    assert 2 <= num <= 4

    def cond(start, end):
        tokens = tokens_at(patchify(batch["latents"], 2), masking.order)
        tokens[:, start:end] = 5.0
        latents = unpatchify(tokens_placed(tokens, masking.order), 2, (3, 2))
        predict(student, {**batch, "latents": latents}, masking).image_errors()
        return head.cond

    assert torch.equal(cond(0, num), cond(0, 0))
    assert (cond(num, 6) - cond(0, 0)).abs().max() > 1e-2


@pytest.mark.parametrize(
    "shape", [{}, {"fusion": "late", "prediction": "ddpm", **LOOKS[0]}], ids=["nano", "paper"]
)
def test_errors_of_parts_are_the_errors_of_the_whole(make_student, make_batch, drawing, shape):
    objective, ids = drawing(MaskedObjective, MaskedConfig(text_drop=0.5)), [4, 0, 11, 7, 3]

    def gradients(parts):
        student, total = make_student(**shape), 0.0
        for part in parts:
            loss, _ = objective(student, make_batch(part), 2)
            assert loss.shape == ()
            (loss * len(part) / len(ids)).backward()
            total += loss.item() * len(part) / len(ids)
        return total, {name: parameter.grad for name, parameter in student.named_parameters()}

    loss, whole = gradients([ids])
    for parts in ([ids[:3], ids[3:]], [[i] for i in ids]):
        part_loss, summed = gradients(parts)
        assert math.isclose(part_loss, loss, rel_tol=1e-5)
        for name, gradient in whole.items():
            torch.testing.assert_close(
                summed[name], gradient, rtol=1e-3, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}"
            )


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_the_objective_is_a_function_of_the_step(make_student, make_batch, drawing, prediction):
    objective, student = drawing(MaskedObjective, MaskedConfig()), make_student(prediction=prediction)
    batch = make_batch([0, 1])
    first = objective(student, batch, 5)[0].item()
    assert objective(student, batch, 6)[0].item() != first
    assert objective(student, batch, 5)[0].item() == first


@pytest.mark.parametrize("fusion", ["late", "interleaved", "joint"])
def test_dropout_is_a_function_of_step_and_samples(make_student, make_batch, drawing, fusion):
    """With masks and noise held fixed, so that nothing else can differ."""
    objective = drawing(MaskedObjective, MaskedConfig())
    student = make_student(fusion=fusion, dropout=0.3).train()
    batch, before = make_batch([0, 1]), torch.get_rng_state()
    first = objective(student, batch, 5)[0].item()
    assert torch.equal(torch.get_rng_state(), before)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        assert objective(student, batch, 5)[0].item() == first
    still = objective(student.eval(), batch, 5)[0].item()
    assert still != first and objective(student, batch, 5)[0].item() == still
    dropped = []
    for step, ids in ((5, [0, 1]), (6, [0, 1]), (5, [1, 0])):
        dropped.append(dropped_by(drawing, student.train(), ids, step))
    for i, mask in enumerate(dropped):
        assert 0 < mask.float().mean() < 1
        for other in dropped[:i]:
            assert mask.shape != other.shape or not torch.equal(mask, other)


def dropped_by(drawing, student, ids, step):
    """Which channels dropout set to zero after the decoder's first attention."""
    zeros, drop = [], student.transformer.decoder_blocks[0].attn.drop
    hook = drop.register_forward_hook(lambda _, __, output: zeros.append(output[0] == 0))
    latents = torch.zeros(2, 2, 6, 4)
    batch = {"latents": latents, "text_ids": torch.ones(2, 5, dtype=torch.long), "ids": ids}
    batch["text_mask"] = batch["text_ids"] > 0
    drawing(MaskedObjective, MaskedConfig(mask_spread=0.0))(student, batch, step)
    hook.remove()
    return zeros[0]


@pytest.mark.parametrize(
    "shape", [{"fusion": "late", "prediction": "ddpm", **LOOKS[0]}, {}], ids=["paper", "nano"]
)
def test_the_errors_compile_without_a_break(make_student, make_batch, shape):
    batch, ids = make_batch(list(range(4))), list(range(4))
    found = []
    for compiled in (False, True):
        student = make_student(**SMALL, **shape)
        masking = draw_masking(MaskedConfig(text_drop=0.5), 2, ids, 6, student.transformer.head)
        run = torch.compile(masked_errors, fullgraph=True, backend="eager") if compiled else masked_errors
        loss = run(student, batch, masking).mean()
        loss.backward()
        found.append((loss, {name: parameter.grad for name, parameter in student.named_parameters()}))
    torch.testing.assert_close(found[1][0], found[0][0])
    for name, gradient in found[0][1].items():
        torch.testing.assert_close(found[1][1][name], gradient, rtol=1e-3, atol=1e-5)


def test_a_route_saves_the_way_of_its_share_in_training_alone(make_student, make_batch, drawing):
    config = MaskedConfig(route_share=0.5, route=(1, 3), mask_spread=0.0)
    routed, plain_way = (
        drawing(MaskedObjective, config),
        drawing(MaskedObjective, MaskedConfig(mask_spread=0.0)),
    )
    student, batch = make_student(decoder_layers=4), make_batch([0, 1])
    rows = []
    for block in student.transformer.decoder_blocks:
        block.mlp.register_forward_pre_hook(lambda _, given: rows.append(given[0].shape[1]))
    losses = {}
    for name, objective, is_training in (
        ("routed", routed, True),
        ("plain", plain_way, True),
        ("still", routed, False),
    ):
        student.train(is_training)
        rows.clear()
        losses[name] = objective(student, batch, 3)[0].item()
        assert rows == ([11, 8, 8, 6] if name == "routed" else [11, 11, 11, 6])  # 6 tokens and 5 words
    assert (
        losses["routed"] == routed(student.train(), batch, 3)[0].item() != losses["plain"] == losses["still"]
    )
    with pytest.raises(UserError, match="route 1 3 with 3 decoder_layers"):
        routed(make_student(decoder_layers=3).train(), batch, 3)


@pytest.mark.parametrize(
    "wrong", [{"route_share": 1.0}, {"route_share": -0.1}, {"route": (0, 2)}, {"route": (2, 2)}], ids=str
)
def test_a_route_that_is_none_is_refused(wrong):
    with pytest.raises(UserError, match="route"):
        MaskedConfig(**wrong).check()


def test_it_trains_after_it_was_evaluated_in_inference_mode(make_student, make_batch):
    student, batch = make_student(prediction="ddpm"), make_batch([0, 1])
    masking = draw_masking(MaskedConfig(), 2, [0, 1], 6, student.transformer.head)
    diffusion._resident_levels.cache_clear()  # as in a new process
    with torch.inference_mode():
        error = bounded(student, batch, masking).mean().item()
    loss = bounded(student, batch, masking).mean()
    loss.backward()
    assert math.isclose(loss.item(), error, rel_tol=1e-6)


@pytest.mark.parametrize("shape", [{"fusion": "late", "prediction": "ddpm", **LOOKS[0]}, {}], ids=named)
def test_no_value_is_asked_for_on_the_host(make_student, make_batch, shape):
    student, batch = make_student(**SMALL, **shape).to("meta"), make_batch([0, 1, 2])
    masking = draw_masking(MaskedConfig(text_drop=0.5), 2, [0, 1, 2], 6, student.transformer.head)
    moved = {name: value.to("meta") if torch.is_tensor(value) else value for name, value in batch.items()}
    errors = masked_errors(student, moved, masking.to(torch.device("meta")))
    errors.mean().backward()
    assert errors.shape == masking.noise.shape[:3] and errors.device.type == "meta"


@pytest.mark.parametrize("shape", [{"fusion": "late", "prediction": "ddpm", **LOOKS[0]}, {}], ids=named)
def test_no_number_to_watch_is_asked_for_on_the_host(make_student, make_batch, draw_for, shape):
    student, batch = make_student(**SMALL, **shape), make_batch([0, 1, 2])
    batch = draw_for(MaskedConfig(text_drop=0.5), student, batch, 2)
    meta = torch.device("meta")
    moved = {name: value.to(meta) if name not in ("ids",) else value for name, value in batch.items()}
    loss, shown = MaskedObjective(MaskedConfig())(student.to(meta), moved, 2)
    assert loss.device == meta and shown
    assert all(number.device == meta and not number.requires_grad for number in shown.values())


def test_values_are_summed_by_quarter():
    places = torch.tensor([[0.0, 0.24, 0.25], [0.999, 1.0, 0.5]])
    values = torch.tensor([[1.0, 2.0, 4.0], [8.0, 16.0, 32.0]])
    expected = torch.tensor([[3.0, 2], [4, 1], [32, 1], [24, 2]], dtype=torch.float64)
    assert torch.equal(by_quarter(values, places), expected)
    assert torch.equal(by_quarter(values[:0], places[:0]), torch.zeros(4, 2, dtype=torch.float64))


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_the_loss_is_told_by_time_and_by_the_hidden_share(make_student, make_batch, draw_for, prediction):
    config, student, quarters = (
        MaskedConfig(mask_spread=0.5),
        make_student(prediction=prediction).eval(),
        set(),
    )
    for step in range(12):
        batch = draw_for(config, student, make_batch([4, 0, 7]), step)
        loss, shown = MaskedObjective(config)(student, batch, step)
        errors = masked_errors(student, batch, batch["masking"]).detach().double()
        time = batch["masking"].time / (1000 if prediction == "ddpm" else 1)
        for number in range(4):
            inside = errors[(time >= number / 4) & (time < (number + 1) / 4)]
            total, count = shown.pop(f"loss_time_{number + 1}").tolist()
            assert count == len(inside) and math.isclose(
                total, inside.sum().item(), rel_tol=1e-6, abs_tol=1e-9
            )
        ((name, value),) = shown.items()
        hidden = batch["masking"].noise.shape[2] / 6
        assert name == f"loss_hidden_{min(4, 1 + math.floor(4 * hidden))}"
        assert value == loss and not value.requires_grad
        quarters.add(name)
    assert len(quarters) >= 3
