"""The trunk over iterations: equal to all tokens through all blocks, and paid only for what changed."""

from collections import defaultdict

import pytest
import torch
from torch import nn

from lightgen.core.draws import torch_draws
from lightgen.sampling.order import unknown_after
from lightgen.sampling.trunk import Trunk
from tests.models.naive import PREFIXES, SMALL, TRUNKS, Naive, named

GRID, LENGTH, BATCH, NUM_TEXT = (2, 5), 10, 3, 4
EXACT = {"rtol": 1e-9, "atol": 1e-10}
FUSIONS = ["late", "interleaved", "joint"]
CASES = [(shape, 3 if (i + i // 2) % 2 else 0) for i, shape in enumerate(TRUNKS + PREFIXES)]


def randn(*shape, seed=0):
    return torch.randn(shape, generator=torch_draws(seed, "test"), dtype=torch.float64)


class World:
    """A batch of pictures with and without text: orders, tokens by rank, and both texts."""

    def __init__(self, transformer, seed=0):
        self.transformer = transformer
        orders = [torch.randperm(LENGTH, generator=torch_draws(seed, "test-order", b)) for b in range(BATCH)]
        self.order, self.tokens = torch.stack(orders), randn(BATCH, LENGTH, 8, seed=seed + 1)
        text, mask = (
            randn(BATCH, NUM_TEXT, 16, seed=2),
            torch.arange(NUM_TEXT) < torch.tensor([[4], [2], [1]]),
        )
        null, null_mask = transformer.null_text_of(BATCH, NUM_TEXT)
        self.texts = [(text, mask), (null, null_mask)]

    def trunk(self, keeps):
        if self.transformer.shape.fusion == "joint":
            contexts = [
                self.transformer.context(*(torch.cat(pair) for pair in zip(*self.texts, strict=True)))
            ]
        else:
            contexts = [self.transformer.context(*self.texts[0]), self.transformer.null_context()]
        return Trunk(self.transformer, contexts, self.order, GRID, keeps)

    def naives(self):
        """Trunks spelled out, of each text and picture."""
        return [
            [Naive(self.transformer, text[b], mask[b], GRID) for b in range(BATCH)]
            for text, mask in self.texts
        ]

    def expected(self, naives, left, unknown, before):
        """Conditions as of the trunk; before = rank from which tokens had passed, None = all pass."""
        rows = []
        for of_text in naives:
            for b, naive in enumerate(of_text):
                order = self.order[b].tolist()
                by_position = torch.empty(LENGTH, 8, dtype=torch.float64)
                by_position[order] = self.tokens[b]
                passing = None if before is None else order[left:before]
                found = naive.conditions(by_position, order[unknown:], passing)
                rows.append(found[order[left:unknown]])
        return torch.stack(rows)


def iterations(num_known, num_iterations=4):
    """(left, unknown, rank from which tokens had passed before) of each iteration."""
    unknown = before = LENGTH - num_known
    for left in unknown_after(unknown, num_iterations):
        yield left, unknown, before
        unknown, before = left, unknown


@pytest.mark.parametrize(("shape", "num_known"), CASES, ids=[f"{named(s)}-{num}" for s, num in CASES])
@torch.no_grad()
def test_every_saving_is_exact(make_student, shape, num_known):
    world = World(make_student(**SMALL, **shape).transformer.double().eval())
    trunk = world.trunk(keeps=False)
    for left, unknown, _ in iterations(num_known):
        wanted = world.expected(world.naives(), left, unknown, None)
        torch.testing.assert_close(trunk.conditions(world.tokens, left, unknown), wanted, **EXACT)


@pytest.mark.parametrize(("shape", "num_known"), CASES, ids=[f"{named(s)}-{num}" for s, num in CASES])
@torch.no_grad()
def test_between_full_passes_others_stand_as_they_were(make_student, shape, num_known):
    world = World(make_student(**SMALL, **shape).transformer.double().eval())
    trunk, naives, fresh = world.trunk(keeps=True), world.naives(), world.trunk(keeps=False)
    for i, (left, unknown, before) in enumerate(iterations(num_known)):
        is_full = i in (0, 3)
        wanted = world.expected(naives, left, unknown, None if is_full else before)
        found = trunk.conditions(world.tokens, left, unknown, is_full)
        torch.testing.assert_close(found, wanted, **EXACT)
        exact = fresh.conditions(world.tokens, left, unknown)
        if is_full:
            torch.testing.assert_close(found, exact, **EXACT)
        elif i > 1:
            assert (found - exact).abs().max() > 1e-4


@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("keeps", [False, True])
@torch.no_grad()
def test_what_is_forgotten_enters_anew(make_student, fusion, keeps):
    world = World(make_student(**SMALL, fusion=fusion).transformer.double().eval())
    trunk = world.trunk(keeps)
    for i, (left, unknown, _) in enumerate(iterations(3)):
        if i == 2:
            world.tokens[:, unknown:] += 1
            trunk.forget()
        found = trunk.conditions(world.tokens, left, unknown)
        torch.testing.assert_close(found, world.trunk(False).conditions(world.tokens, left, unknown), **EXACT)


@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("keeps", [False, True])
@torch.no_grad()
def test_nothing_passes_twice(make_student, fusion, keeps):
    """Rows (picture, token) that went through each layer, summed up; all iterations are full."""
    transformer = make_student(**SMALL, fusion=fusion).transformer.double().eval()
    rows, world = defaultdict(int), World(transformer)
    for name, module in transformer.named_modules():
        if isinstance(module, nn.Linear):
            module.register_forward_pre_hook(
                lambda _, given, name=name: rows.update({name: rows[name] + given[0][..., 0].numel()})
            )
    trunk = world.trunk(keeps)
    plan = list(iterations(0))
    for left, unknown, _ in plan:
        trunk.conditions(world.tokens, left, unknown)
    known = sum(LENGTH - unknown for _, unknown, _ in plan)
    entered, text = LENGTH - plan[-1][1], NUM_TEXT
    both = (
        2 if fusion == "joint" else 1
    )  # the encoder, and what enters it, sees the text in joint models alone
    assert rows["encoder_blocks.0.attn.kv"] == BATCH * entered + (
        2 * BATCH * text if fusion == "joint" else 0
    )
    words = text * len(plan) if fusion == "joint" else 0
    assert rows["encoder_blocks.1.mlp.fc1"] == both * BATCH * (known + words)
    # mask tokens at the decoder's door: once for all pictures and iterations
    halves = 1 if fusion == "late" else 2
    doors = both * (known + words) * BATCH * (2 if fusion == "interleaved" else 1)
    assert rows["decoder_blocks.0.attn.kv"] == LENGTH + doors
    shared = LENGTH if fusion == "late" and not keeps else halves * BATCH * LENGTH
    inner = halves * BATCH * (LENGTH * (len(plan) - 1) + words) + shared
    assert rows["decoder_blocks.0.mlp.fc1"] == inner
    first = plan[0][1] - plan[0][0]
    of_first = LENGTH if fusion == "late" and not keeps else halves * BATCH * first
    assert rows["decoder_blocks.1.mlp.fc1"] == halves * BATCH * (LENGTH - first) + of_first
    if fusion == "late":
        assert rows["cross_blocks.0.attn.kv"] == BATCH * text + 1
        assert rows["cross_blocks.1.attn.q"] == BATCH * LENGTH
        assert rows["cross_blocks.1.mlp.fc1"] == 2 * BATCH * LENGTH


@pytest.mark.parametrize("fusion", FUSIONS)
@torch.no_grad()
def test_partial_passes_leave_the_others_alone(make_student, fusion):
    transformer = make_student(**SMALL, fusion=fusion).transformer.double().eval()
    world, rows = World(transformer), []
    trunk = world.trunk(keeps=True)
    transformer.decoder_blocks[0].mlp.fc1.register_forward_pre_hook(
        lambda _, given: rows.append(given[0].shape[1])
    )
    for i, (left, unknown, before) in enumerate(iterations(3)):
        rows.clear()
        trunk.conditions(world.tokens, left, unknown, i == 0)
        words = NUM_TEXT if fusion == "joint" and i == 0 else 0
        assert set(rows) == {LENGTH + words if i == 0 else before - left}
