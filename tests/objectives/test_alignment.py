"""Representation alignment: each token meets its own patch, and who does not use it pays nothing."""

from dataclasses import replace

import pytest
import torch

from lightgen.core.draws import torch_draws
from lightgen.core.errors import UserError
from lightgen.objectives.alignment import (
    PROJECTION,
    AlignedObjective,
    RepaConfig,
    add_projection,
    alignment,
    projection_flops,
)
from lightgen.objectives.masked import MaskedConfig, MaskedObjective

CONFIG = MaskedConfig(draws_per_token=2, text_drop=0.3, mask_spread=0.8)
DIM = 7
REPA = RepaConfig(layer=1, hidden=16, dim=DIM)


@pytest.fixture
def make(make_student, make_batch, draw_for):
    """Factory of a student with a projection, its objective, and a function that makes batches."""

    def build(config=REPA, masking=CONFIG, **settings):
        student = make_student(**{"decoder_layers": 3, **settings}).train()
        add_projection(student, config, seed=0)

        def batch(ids, step=0):
            found = draw_for(masking, student, make_batch(ids), step)
            draws = [torch.randn(6, DIM, generator=torch_draws(1, "seen", i)) for i in ids]
            return {**found, "representation": torch.stack(draws)}

        return student, AlignedObjective(config, masking, student), batch

    return build


def gradients(student, objective, *batches):
    """Gradients of the mean loss over batches of one size, by name; None where there is none."""
    student.zero_grad()
    for batch in batches:
        loss, _ = objective(student, batch, 0)
        (loss / len(batches)).backward()
    return {name: p.grad for name, p in student.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("route", [False, True])
@pytest.mark.parametrize("fusion", ["joint", "late", "interleaved"])
def test_a_token_is_compared_with_the_patch_at_its_place(make, fusion, route):
    masking = replace(CONFIG, route_share=0.5, route=(1, 3)) if route else CONFIG
    repa = replace(REPA, layer=2)
    student, objective, batch = make(repa, masking, fusion=fusion, decoder_layers=4)
    found, seen = batch([3, 4, 5]), []
    block = student.transformer.decoder_blocks[2]
    block.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
    loss, shown = objective(student, found, 0)
    torch.testing.assert_close(loss, shown["loss_masked"] - 0.5 * shown["alignment"])
    assert -0.9 < float(shown["alignment"]) < 0.9

    order, unknown = found["masking"].order, found["masking"].noise.shape[2]
    assert 1 < unknown < 5, "of either kind there are several"
    ranks = list(range(6))
    if route:
        ranks = [*range(unknown // 2, unknown), *range(unknown + (6 - unknown) // 2, 6)]
    said = student.get_submodule(PROJECTION)(seen[0][:, : len(ranks)]).detach()
    placed = torch.full((3, 6, DIM), torch.nan)  # of tokens that skip the block, nothing is asked
    for row in range(3):
        for place, rank in enumerate(ranks):
            placed[row, order[row, rank]] = said[row, place]
    _, shown = objective(student, {**found, "representation": placed}, 0)
    torch.testing.assert_close(shown["alignment"], torch.tensor(1.0), atol=1e-5, rtol=0)
    _, shown = objective(student, {**found, "representation": placed.nan_to_num().roll(1, 1)}, 0)
    assert float(shown["alignment"]) < 1 - 1e-4


def test_similarity_is_that_of_directions():
    said = torch.tensor([[[3.0, 0.0], [1.0, 1.0]]])
    wanted = torch.tensor([[[0.1, 0.0], [-2.0, -2.0]]], dtype=torch.bfloat16)
    torch.testing.assert_close(alignment(said, wanted), torch.tensor(0.0))
    torch.testing.assert_close(alignment(said, said), torch.tensor(1.0))


def test_a_weight_of_zero_is_the_masked_objective(make):
    student, objective, batch = make(replace(REPA, weight=0.0))
    found = batch([1, 2])
    wanted = gradients(student, MaskedObjective(CONFIG), found)
    with_term = gradients(student, objective, found)
    projection = {name for name in with_term if name.startswith(PROJECTION)}
    assert with_term.keys() - projection == wanted.keys() and len(projection) == 6
    for name, gradient in wanted.items():
        torch.testing.assert_close(with_term[name], gradient)
    assert all(not bool(with_term[name].any()) for name in projection)


def test_gradients_of_two_micro_batches_are_those_of_one(make):
    student, objective, batch = make()
    whole = gradients(student, objective, batch([1, 2, 3, 4]))
    halves = gradients(student, objective, batch([1, 2]), batch([3, 4]))
    for name, gradient in whole.items():
        torch.testing.assert_close(halves[name], gradient, msg=name)


def test_blocks_made_anew_in_the_backward_pass_give_the_same_gradients(make):
    student, objective, batch = make()
    found = batch([1, 2])
    wanted = gradients(student, objective, found)
    student.transformer.gradient_checkpointing = True
    for name, gradient in gradients(student, objective, found).items():
        torch.testing.assert_close(gradient, wanted[name], msg=name)
    assert objective._hidden is None, "nothing is held between steps"


def test_a_compiled_block_tells_what_it_reads_too(make):
    student, objective, batch = make()
    wanted = gradients(student, objective, batch([1, 2]))
    for block in student.transformer.decoder_blocks:
        block.compile(dynamic=True, backend="eager")
    for ids in ([5, 6], [1, 2]):
        found = gradients(student, objective, batch(ids))
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, wanted[name], msg=name)


def test_the_trunk_learns_to_say_what_is_seen(make):
    student, objective, batch = make()
    found = batch([1, 2, 3, 4])
    found["representation"] = found["latents"].unfold(2, 2, 2).unfold(3, 2, 2).movedim(1, 3).flatten(1, 2)
    found["representation"] = found["representation"].flatten(2)[..., :DIM]  # what each token holds
    optimizer = torch.optim.Adam(student.parameters(), lr=3e-3)
    similarities = []
    for _ in range(60):
        optimizer.zero_grad()
        loss, shown = objective(student, found, 0)
        loss.backward()
        optimizer.step()
        similarities.append(float(shown["alignment"]))
    assert similarities[-1] > similarities[0] + 0.4, similarities[::10]


def test_the_projection_is_drawn_by_its_seed(make_student):
    def weights(seed):
        student = make_student(decoder_layers=3)
        torch.manual_seed(seed + 10)
        add_projection(student, REPA, seed)
        return student.get_submodule(PROJECTION).state_dict()

    first, again, other = weights(0), weights(0), weights(1)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["0.weight"], other["0.weight"])
    numbers = sum(w.numel() for name, w in first.items() if name.endswith("weight"))
    assert projection_flops(REPA, 32, 6) == 6 * 6 * numbers


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"layer": 0}, "layer 0 of 6 decoder blocks, allowed: from 1 to two before the last"),
        ({"layer": 5}, "layer 5 of 6"),
        ({"weight": -0.1}, "weight -0.1"),
        ({"weight": float("nan")}, "weight nan"),
        ({"hidden": 0}, "hidden 0, dim 128, allowed"),
        ({"dim": 0}, "dim 0, allowed"),
    ],
)
def test_numbers_out_of_range_are_refused(wrong, told):
    with pytest.raises(UserError, match=told):
        RepaConfig(**wrong).check(6)
    RepaConfig(layer=4).check(6)
