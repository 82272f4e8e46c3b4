"""The masked objective: keyed draws, what is hidden, the polarity of time, and that batches may be cut."""

import math

import pytest
import torch
from torch import nn

from lightgen.models.transformer import patchify, unpatchify
from lightgen.objectives.masked import MaskedConfig, MaskedObjective, draw_masking, image_errors


class FixedHead(nn.Module):
    """Stands in for the head: velocity by a given rule of (noisy, time); remembers what it was asked."""

    def __init__(self, rule):
        super().__init__()
        self.rule, self.cond = rule, None

    def embed_cond(self, cond):
        self.cond = cond
        return cond

    def forward(self, noisy, time, cond):
        self.noisy, self.time = noisy, time
        return self.rule(noisy, time[:, None])


def masking_of(ids, step=0, length=12, channels=8, **settings):
    return draw_masking(MaskedConfig(**settings), step, ids, length, channels)


def random_parts(masking, row):
    return [
        masking.known_at[row],
        masking.predicted_at[row],
        masking.time[:, row],
        masking.noise[:, row],
        masking.dropped[row],
    ]


def same(first, second):
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("per_image_time", [False, True])
def test_a_sample_draws_the_same_in_any_batch(per_image_time):
    together = masking_of([5, 9, 2], step=7, per_image_time=per_image_time)
    for row, sample in enumerate([5, 9, 2]):
        alone = masking_of([sample], step=7, per_image_time=per_image_time)
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
        order = torch.cat([masking.known_at, masking.predicted_at], dim=1)
        assert torch.equal(order.sort(dim=1).values, torch.arange(12).expand(2, -1))
        assert masking.predicted_at.shape[1] >= 1
        draws = masking.predicted_at.shape[1]
        assert masking.time.shape == (4, 2, draws) and masking.noise.shape == (4, 2, draws, 8)
        sizes.add(draws)
    assert len(sizes) > 4


def test_the_hidden_share_is_a_folded_normal():
    shares = [masking_of([0], step=step, length=64).predicted_at.shape[1] / 64 for step in range(600)]
    assert abs(sum(shares) / 600 - (1 - 0.25 * math.sqrt(2 / math.pi))) < 0.03  # five standard errors
    assert masking_of([0], mask_spread=0.0).known_at.shape == (1, 0)


def test_text_is_dropped_at_the_asked_rate():
    dropped = masking_of(list(range(2000)), length=1, text_drop=0.1).dropped
    assert abs(dropped.float().mean() - 0.1) < 0.03
    assert not masking_of(list(range(50)), text_drop=0.0).dropped.any()
    assert masking_of(list(range(50)), text_drop=1.0).dropped.all()


def test_times_are_logit_normal_and_noise_is_normal():
    masking = masking_of(list(range(300)), length=12, mask_spread=0.0, time_mean=0.5, time_std=2.0)
    logits = torch.logit(masking.time)
    assert abs(logits.mean() - 0.5) < 0.1 and abs(logits.std() - 2.0) < 0.1
    assert abs(masking.noise.mean()) < 0.02 and abs(masking.noise.std() - 1) < 0.02
    assert len(masking.time[:, 0].unique()) == 4 * 12


def test_a_time_may_be_one_per_image_and_draw():
    time = masking_of([0, 1], mask_spread=0.0, per_image_time=True).time
    assert torch.equal(time, time[..., :1].expand(-1, -1, 12))
    assert len(time[..., 0].unique()) == 8


def test_time_one_is_noise_and_time_zero_is_the_token(make_student, make_batch):
    student, batch = make_student(), make_batch([0, 1])
    student.transformer.head = head = FixedHead(lambda noisy, time: torch.zeros_like(noisy))
    for time_mean, expected_time in ((60.0, 1.0), (-60.0, 0.0)):
        masking = masking_of([0, 1], length=6, mask_spread=0.0, time_mean=time_mean)
        error = image_errors(student, batch, masking)
        target = patchify(batch["latents"], 2).gather(1, masking.predicted_at[..., None].expand(-1, -1, 8))
        shown = masking.noise if expected_time == 1 else target.expand(4, -1, -1, -1)
        torch.testing.assert_close(head.noisy.view(4, 2, 6, 8), shown)
        torch.testing.assert_close(head.time, torch.full((48,), expected_time), atol=1e-6, rtol=0)
        expected = (masking.noise - target).double().square().mean(dim=(0, 2, 3))
        torch.testing.assert_close(error.double(), expected, rtol=1e-5, atol=0)


def test_between_them_a_token_moves_on_the_straight_line(make_student, make_batch):
    student, batch = make_student(), make_batch([0, 1])
    student.transformer.head = head = FixedHead(lambda noisy, time: torch.zeros_like(noisy))
    masking = masking_of([0, 1], length=6)
    image_errors(student, batch, masking)
    target = patchify(batch["latents"], 2).gather(1, masking.predicted_at[..., None].expand(-1, -1, 8))
    time = masking.time[..., None]
    torch.testing.assert_close(head.noisy.view_as(masking.noise), target + time * (masking.noise - target))
    assert torch.equal(head.time, masking.time.flatten())


def test_a_perfect_predictor_has_no_error(make_student, make_batch):
    student, batch = make_student(), make_batch([0, 1, 2])
    batch["latents"] = torch.full_like(batch["latents"], 0.7)
    student.transformer.head = FixedHead(lambda noisy, time: (noisy - 0.7) / time)
    loss, _ = MaskedObjective(MaskedConfig())(student, batch, 0)
    assert loss < 1e-6
    student.transformer.head = FixedHead(lambda noisy, time: (0.7 - noisy) / time)
    assert MaskedObjective(MaskedConfig())(student, batch, 0)[0] > 1


def test_hidden_tokens_do_not_leak_into_the_condition(make_student, make_batch):
    student, batch = make_student(), make_batch([0, 1])
    student.transformer.head = head = FixedHead(lambda noisy, time: torch.zeros_like(noisy))
    step = next(s for s in range(50) if 2 <= masking_of([0, 1], step=s, length=6).predicted_at.shape[1] <= 4)
    masking = masking_of([0, 1], step=step, length=6)

    def cond(changed_at):
        tokens = patchify(batch["latents"], 2)
        tokens = tokens.scatter(1, changed_at[..., None].expand(-1, -1, 8), 5.0)
        image_errors(student, {**batch, "latents": unpatchify(tokens, 2, (3, 2))}, masking)
        return head.cond

    nothing = torch.zeros(2, 0, dtype=torch.long)
    assert torch.equal(cond(masking.predicted_at), cond(nothing))
    assert (cond(masking.known_at) - cond(nothing)).abs().max() > 1e-2


def test_errors_of_parts_are_the_errors_of_the_whole(make_student, make_batch):
    objective, ids = MaskedObjective(MaskedConfig(text_drop=0.5)), [4, 0, 11, 7, 3]

    def gradients(parts):
        student, total = make_student(), 0.0
        for part in parts:
            loss, shown = objective(student, make_batch(part), 2)
            assert loss.shape == () and shown == {}
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


def test_the_objective_is_a_function_of_the_step(make_student, make_batch):
    objective, student, batch = MaskedObjective(MaskedConfig()), make_student(), make_batch([0, 1])
    first = objective(student, batch, 5)[0].item()
    assert objective(student, batch, 6)[0].item() != first
    assert objective(student, batch, 5)[0].item() == first
