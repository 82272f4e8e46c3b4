"""Direct preference optimization: the formula, its signs, and what the two images of a pair share."""

import copy
import itertools
import math

import numpy as np
import pytest
import torch
from torch import nn

from lightgen.core.draws import numpy_draws
from lightgen.core.errors import UserError
from lightgen.models.diffusion import noise_levels
from lightgen.models.tokens import patchify, tokens_at
from lightgen.objectives.dpo import (
    DPOConfig,
    DPOObjective,
    Shared,
    draw_pair_maskings,
    frozen_reference,
    preference_loss,
    reference_errors,
)
from lightgen.objectives.masked import MaskedConfig, draw_masking, predict

LOG2 = math.log(2)
IDS = [3, 8, 1]


def loss_and_margin(*values, beta):
    loss, margin = preference_loss(*(torch.tensor([float(v)]) for v in values), beta)
    return loss.item(), margin.item()


@pytest.fixture
def student_of(make_student):
    """Factory of students with a frozen text encoder, which the reference shares."""
    return lambda **settings: make_student(train_text_encoder=False, **settings)


@pytest.fixture
def pairs(make_batch):
    batch = make_batch(IDS)
    batch["chosen"], batch["rejected"] = batch.pop("latents"), make_batch([i + 100 for i in IDS])["latents"]
    return batch


@pytest.fixture
def preferring():
    """Factory of objectives whose reference is the student as it is, and that draw their maskings."""

    def make(config, student, *, known=False):
        twin = copy.deepcopy(student.transformer)
        reference = frozen_reference(twin, student.text_encoder)
        objective = DPOObjective(config, student, None if known else reference)

        def loss(learner, pairs, step):
            batch = drawn(config, learner, pairs, step)
            if known:
                with reference(learner) as compared:
                    batch["reference_errors"] = reference_errors(compared, batch)
            return objective(learner, batch, step)

        return loss

    return make


def drawn(config, student, pairs, step):
    latents, patch = pairs["chosen"], student.transformer.shape.patch_size
    length = latents.shape[2] * latents.shape[3] // patch**2
    maskings = draw_pair_maskings(config, step, pairs["ids"], length, student.transformer.head)
    return {**pairs, **maskings}


def test_a_worked_example():
    # the student improved by .1 on the chosen image and became .1 worse on the rejected one
    loss, margin = loss_and_margin(0.2, 0.5, 0.3, 0.4, beta=10.0)
    assert math.isclose(margin, 0.1, rel_tol=1e-5)
    assert math.isclose(loss, math.log(1 + math.exp(-1.0)), rel_tol=1e-5)


def test_the_formula_in_double_precision():
    values = numpy_draws(0, "test").uniform(0.1, 2.0, (4, 200))
    for beta in (0.5, 7.0, 60.0):
        chosen, rejected, old_chosen, old_rejected = values
        expected_margin = 0.5 * ((old_chosen - chosen) - (old_rejected - rejected))
        expected = np.logaddexp(0.0, -beta * expected_margin)
        loss, margin = preference_loss(*(torch.from_numpy(v).float() for v in values), beta)
        np.testing.assert_allclose(margin.numpy(), expected_margin, atol=1e-6)
        np.testing.assert_allclose(loss.numpy(), expected, rtol=1e-4, atol=1e-5)


def test_without_beta_or_without_a_change_the_loss_is_log_two():
    for beta in (0.0, 1e-9):
        assert math.isclose(loss_and_margin(0.2, 0.5, 0.9, 0.4, beta=beta)[0], LOG2, rel_tol=1e-6)
    loss, margin = loss_and_margin(0.2, 0.5, 0.2, 0.5, beta=5000.0)
    assert margin == 0 and math.isclose(loss, LOG2, rel_tol=1e-6)


def test_swapping_the_images_turns_the_margin():
    there, back = loss_and_margin(0.2, 0.5, 0.3, 0.4, beta=3.0), loss_and_margin(0.5, 0.2, 0.4, 0.3, beta=3.0)
    assert there[1] == -back[1] and there[0] < LOG2 < back[0]


def test_the_loss_stays_finite_and_its_slopes_have_the_right_sign():
    errors = [
        torch.tensor([0.2, 5.0, 0.0], requires_grad=True),
        torch.tensor([0.5, 0.0, 5.0], requires_grad=True),
    ]
    loss, margin = preference_loss(*errors, torch.full((3,), 0.3), torch.full((3,), 0.4), 1000.0)
    assert torch.isfinite(loss).all()
    loss.sum().backward()
    slope = 0.5 * 1000 * torch.sigmoid(-1000 * margin.detach())
    torch.testing.assert_close(errors[0].grad, slope)
    torch.testing.assert_close(errors[1].grad, -slope)


@pytest.mark.parametrize("shape", [{}, {"fusion": "late", "prediction": "ddpm", "layers": "plain"}], ids=str)
def test_a_student_that_is_its_reference_has_no_margin(student_of, pairs, preferring, shape):
    """In training too: dropout, which the reference does not have, would look like a preference."""
    student = student_of(**shape, dropout=0.3)
    objective = preferring(DPOConfig(), student)
    loss, shown = objective(student.train(), pairs, 0)
    assert math.isclose(loss.item(), LOG2, rel_tol=1e-6)
    assert shown["margin"] == 0 and shown["accuracy"] == 0
    assert shown["chosen_change"] == 0 and shown["rejected_change"] == 0
    assert shown["chosen_error"] > 0 and shown["rejected_error"] > 0


def test_rounding_is_no_preference(student_of, pairs, preferring):
    student = student_of()
    objective = preferring(DPOConfig(), student)
    nn.Module.to(student.transformer, torch.bfloat16)  # what the loop does to compute in bf16
    loss, shown = objective(student, pairs, 0)
    assert shown["margin"] == 0 and math.isclose(loss.item(), LOG2, rel_tol=1e-6)


def test_a_step_lowers_the_chosen_error_against_the_rejected_one(student_of, pairs, preferring):
    student = student_of()
    objective = preferring(DPOConfig(beta=20.0), student)
    for _ in range(3):
        loss, shown = objective(student, pairs, 0)
        loss.backward()
        with torch.no_grad():
            for parameter in student.transformer.parameters():
                parameter -= 0.003 * parameter.grad
                parameter.grad = None
    after, changed = objective(student, pairs, 0)
    assert after.item() < LOG2 and changed["margin"] > 0
    assert changed["chosen_change"] < changed["rejected_change"]
    gap, old_gap = (
        s["chosen_error"] - s["rejected_error"] for s in (changed, objective(student_of(), pairs, 0)[1])
    )
    assert gap < old_gap


def test_the_reference_stays_where_it_was(student_of, pairs, preferring):
    student = student_of()
    objective = preferring(DPOConfig(beta=5.0), student)
    with torch.no_grad():
        for parameter in student.transformer.parameters():
            parameter *= 1.05
    loss, shown = objective(student, pairs, 4)
    loss.backward()
    assert all(parameter.grad is not None for parameter in student.transformer.parameters())
    masking = draw_masking(DPOConfig().masking, 4, IDS, 6, student.transformer.head)
    sides = {side: {**pairs, "latents": pairs[side]} for side in ("chosen", "rejected")}
    with torch.no_grad():
        errors = {
            (name, side): predict(learner, batch, masking).image_errors().double().numpy()
            for name, learner in (("new", student), ("old", student_of()))
            for side, batch in sides.items()
        }
    margin = 0.5 * sum(
        sign * (errors["old", side] - errors["new", side]) for sign, side in ((1, "chosen"), (-1, "rejected"))
    )
    assert math.isclose(shown["margin"], margin.mean(), rel_tol=1e-3, abs_tol=1e-6)
    assert math.isclose(loss.item(), np.logaddexp(0, -5.0 * margin).mean(), rel_tol=1e-4)
    assert shown["accuracy"] == pytest.approx((margin > 0).mean())
    change = (errors["new", "chosen"] - errors["old", "chosen"]).mean()
    assert math.isclose(shown["chosen_change"], change, rel_tol=1e-3, abs_tol=1e-6)


def test_chosen_and_rejected_are_hidden_alike(student_of, pairs, preferring):
    asked = []

    class Recorder(nn.Module):
        def __init__(self):
            super().__init__()
            self.token_in, self.variance_out = nn.Linear(8, 1), None

        def embed_cond(self, cond):
            return cond

        def forward(self, noisy, time, cond):
            asked.append((noisy.view(4, 2, len(IDS), -1, 8), time.view(4, 2, len(IDS), -1)))
            return torch.zeros_like(noisy), None

    student = student_of()
    student.transformer.head = Recorder()
    only_noise = MaskedConfig(draws_per_token=4, time_mean=60.0)  # what the head is shown is the noise itself
    preferring(DPOConfig(masking=only_noise), student)(student, pairs, 0)
    preferring(DPOConfig(), student)(student, pairs, 0)
    assert len(asked) == 4  # student and reference, twice
    for _, time in asked:
        assert torch.equal(time[:, 0], time[:, 1])
    assert torch.equal(asked[2][1], asked[3][1]) and len(asked[2][1].unique()) > 4
    torch.testing.assert_close(asked[0][0][:, 0], asked[0][0][:, 1])
    torch.testing.assert_close(asked[0][0], asked[1][0])
    assert not torch.allclose(asked[2][0][:, 0], asked[2][0][:, 1])
    same = {**pairs, "rejected": pairs["chosen"]}
    preferring(DPOConfig(), student)(student, same, 0)
    assert torch.equal(asked[4][0][:, 0], asked[4][0][:, 1])


CHOICES = [Shared(order=a, time=b, noise=c) for a, b, c in itertools.product([True, False], repeat=3)]


@pytest.mark.parametrize("shared", CHOICES, ids=str)
@pytest.mark.parametrize("per_image_time", [False, True])
def test_what_is_shared_is_equal_and_the_rest_is_not(student_of, shared, per_image_time):
    head = student_of().transformer.head
    law = MaskedConfig(per_image_time=per_image_time, text_drop=0.4)
    config = DPOConfig(masking=law, within_pair=shared, with_reference=shared)
    found = draw_pair_maskings(config, 3, IDS, 12, head)
    assert ("reference_masking" in found) == (shared != Shared())
    mine, other = found["masking"], found.get("reference_masking", found["masking"])
    count = len(IDS)
    kept = mine.kept.tolist()
    assert 0 < len(kept) < 2 * count and {i + count for i in kept if i < count} == {
        i for i in kept if i >= count
    }
    sides = [mine.order.split(count), mine.time.split(count, dim=1), mine.noise.split(count, dim=1)]
    twins = [(mine.order, other.order), (mine.time, other.time), (mine.noise, other.noise)]
    for same, pair, twin in zip((shared.order, shared.time, shared.noise), sides, twins, strict=True):
        assert torch.equal(*pair) == same
        assert torch.equal(*twin) == same
    assert bool((mine.time == mine.time[..., :1]).all()) == per_image_time
    assert sorted(mine.order[4].tolist()) == list(range(12))


def test_maskings_of_a_pair_do_not_depend_on_its_batch(student_of):
    head = student_of().transformer.head
    config = DPOConfig(within_pair=Shared(order=False), with_reference=Shared(noise=False))
    whole, alone = (draw_pair_maskings(config, 3, ids, 12, head) for ids in (IDS, IDS[1:2]))
    for name in ("masking", "reference_masking"):
        for row, single in ((1, 0), (len(IDS) + 1, 1)):
            assert torch.equal(whole[name].order[row], alone[name].order[single])
            assert torch.equal(whole[name].time[:, row], alone[name].time[:, single])
            assert torch.equal(whole[name].noise[:, row], alone[name].noise[:, single])


@pytest.mark.parametrize("with_reference", [Shared(), Shared(noise=False)], ids=str)
def test_known_errors_of_the_reference_give_the_same_loss(student_of, pairs, preferring, with_reference):
    student, config = student_of(), DPOConfig(beta=5.0, with_reference=with_reference)
    online, known = preferring(config, student), preferring(config, student, known=True)
    with torch.no_grad():
        for parameter in student.transformer.parameters():
            parameter *= 1.05
    (loss, shown), (again, fewer) = online(student, pairs, 2), known(student, pairs, 2)
    assert loss.item() == again.item() and loss.item() != pytest.approx(LOG2)
    assert ("divergence" in shown) == (with_reference == Shared())
    assert {n: v for n, v in shown.items() if n != "divergence"} == fewer


def one_by_one(student, pairs, side, place, masking, row):
    """Error of one image, and what the student says, in fp64 and draw by draw."""
    learner, shape = copy.deepcopy(student).double(), student.transformer.shape
    order, hidden = masking.order[row : row + 1], masking.noise.shape[2]
    tokens = tokens_at(patchify(pairs[side][place : place + 1], 2), order).double()
    text = (pairs[name][place : place + 1] for name in ("text_ids", "text_mask"))
    words = learner.embed_text(*text, torch.tensor([0]))
    cond = learner.transformer(tokens[:, hidden:], order, *words, (3, 2))
    embedded, clean = learner.transformer.head.embed_cond(cond)[0], tokens[0, :hidden]
    errors, said = [], []
    for time, noise in zip(masking.time[:, row], masking.noise[:, row].double(), strict=True):
        if shape.prediction == "flow":
            time = time.double()
            noisy, wanted = clean + time[:, None] * (noise - clean), noise - clean
            answer, _ = learner.transformer.head(noisy, 1000 * time, embedded)
        else:
            level = noise_levels(time, torch.float64)
            noisy, wanted = level.signal * clean + level.noise * noise, noise
            answer, _ = learner.transformer.head(noisy, time, embedded)
        errors.append((answer - wanted).square().mean().item())
        said.append(answer)
    return np.mean(errors), torch.stack(said)


@pytest.mark.parametrize("prediction", ["flow", "ddpm"])
def test_loss_and_divergence_against_double_precision(student_of, pairs, preferring, prediction):
    """The whole of it once more, from tokens to loss, image by image and in fp64."""
    student = student_of(prediction=prediction)
    config = DPOConfig(beta=8.0)
    objective = preferring(config, student)
    old = copy.deepcopy(student)
    with torch.no_grad():
        for parameter in student.transformer.parameters():
            parameter *= 1.05
    loss, shown = objective(student, pairs, 2)
    masking = drawn(config, student, pairs, 2)["masking"]
    losses, gaps = [], []
    for place in range(len(IDS)):
        errors, gap = {}, 0.0
        for number, side in enumerate(("chosen", "rejected")):
            row = number * len(IDS) + place
            new, new_said = one_by_one(student, pairs, side, place, masking, row)
            was, old_said = one_by_one(old, pairs, side, place, masking, row)
            errors[side], gap = was - new, (new_said - old_said).square().mean().item()
            gaps.append(gap)
        losses.append(np.logaddexp(0, -8.0 * 0.5 * (errors["chosen"] - errors["rejected"])))
    assert math.isclose(loss.item(), np.mean(losses), rel_tol=1e-4)
    assert math.isclose(shown["divergence"], np.mean(gaps), rel_tol=1e-3) and np.mean(gaps) > 0


@pytest.mark.parametrize(
    "settings",
    [
        {"beta": -1.0},
        {"beta": math.inf},
        {"supervised": -0.1},
        {"masking": MaskedConfig(route_share=0.5)},
    ],
    ids=str,
)
def test_numbers_out_of_range_are_refused(settings):
    with pytest.raises(UserError, match="preferences: got"):
        DPOConfig(**settings).check()


def test_a_plain_error_of_the_chosen_image_can_be_added(student_of, pairs, preferring):
    student = student_of()
    loss, shown = preferring(DPOConfig(supervised=0.25), student)(student, pairs, 0)
    assert math.isclose(loss.item(), LOG2 + 0.25 * shown["chosen_error"], rel_tol=1e-5)


def test_micro_batches_sum_to_the_batch(student_of, pairs, preferring):
    student = student_of()
    objective = preferring(DPOConfig(beta=5.0), student)
    with torch.no_grad():
        for parameter in student.transformer.parameters():
            parameter *= 1.05
    loss, shown = objective(student, pairs, 2)
    parts = [{name: value[i : i + 1] for name, value in pairs.items()} for i in range(len(IDS))]
    found = [objective(student, part, 2) for part in parts]
    assert math.isclose(sum(each.item() for each, _ in found) / len(IDS), loss.item(), rel_tol=1e-5)
    for name, value in shown.items():
        mean = sum(each[name] for _, each in found) / len(IDS)
        assert math.isclose(mean, value, rel_tol=1e-3, abs_tol=1e-6), name
