"""The packed trunk: equal to each picture's trunk alone, and no filling passes the layers."""

from collections import defaultdict

import pytest
import torch
from torch import nn

from lightgen.core.draws import torch_draws
from lightgen.models.packed import PackedTrunk, Pass
from lightgen.sampling.order import unknown_after
from lightgen.sampling.trunk import Trunk
from tests.models.naive import PREFIXES, SMALL, TRUNKS, named

EXACT = {"rtol": 1e-9, "atol": 1e-10}
FUSIONS = ["late", "interleaved", "joint"]
CASES = [(shape, "some") for shape in TRUNKS + PREFIXES]
CASES += [({"fusion": fusion}, keeps) for fusion in FUSIONS for keeps in ("never", "always")]


def randn(*shape, seed=0):
    return torch.randn(shape, generator=torch_draws(seed, "test"), dtype=torch.float64)


class Sitter:
    """A picture of its own size, texts and pace, in its own trunk and in the packed one."""

    def __init__(self, transformer, packed, number, keeps):
        self.grid = [(2, 5), (3, 3), (1, 1), (4, 2)][number % 4]
        self.length = self.grid[0] * self.grid[1]
        self.num_known = 2 if number % 3 == 1 and self.length > 2 else 0
        self.keeps, self.packed = keeps, packed
        self.order = torch.randperm(self.length, generator=torch_draws(number, "test-order"))
        self.tokens = randn(self.length, 8, seed=number)
        texts = [randn(1, 1 + (number + i) % 3, 16, seed=50 + number + i) for i in range(1 + number % 2)]
        contexts = [transformer.context(text, torch.ones(text.shape[:2], dtype=torch.bool)) for text in texts]
        self.member = packed.join(self.order, self.grid, contexts, keeps)
        self.contexts, self.transformer = contexts, transformer
        self.own = [Trunk(transformer, [context], self.order[None], self.grid, keeps) for context in contexts]
        self.unknown = self.length - self.num_known
        self.entered, self.iteration = self.length, 0
        self.schedule = unknown_after(self.unknown, 2 + number % 3)

    def next_pass(self):
        self.is_full = not self.keeps or self.iteration % 2 == 0
        self.left = self.schedule[self.iteration]
        return Pass(
            self.member, self.tokens[self.unknown : self.entered], self.left, self.unknown, self.is_full
        )

    def check(self, conds):
        for trunk, found in zip(self.own, conds, strict=True):
            wanted = trunk.conditions(self.tokens[None], self.left, self.unknown, self.is_full)
            torch.testing.assert_close(found, wanted[0], **EXACT)
        self.entered, self.unknown = self.unknown, self.left
        self.iteration += 1


@pytest.mark.parametrize(("shape", "keeps"), CASES, ids=[f"{named(s)}-{keeps}" for s, keeps in CASES])
@torch.no_grad()
def test_each_picture_is_as_in_its_own_trunk(make_student, shape, keeps):
    transformer = make_student(**SMALL, **shape).transformer.double().eval()
    packed, sitters = PackedTrunk(transformer), []
    for step in range(11):
        if step < 7:
            keep = {"never": False, "always": True, "some": step % 3 == 1}[keeps]
            sitters.append(Sitter(transformer, packed, step, keep))
        if step == 4:
            packed.leave(sitters.pop(0).member)
        for sitter, conds in zip(sitters, packed.conditions([s.next_pass() for s in sitters]), strict=True):
            sitter.check(conds)
        for sitter in [each for each in sitters if each.iteration == len(each.schedule)]:
            sitters.remove(sitter)
            packed.leave(sitter.member)
        if not sitters:
            break
    assert not packed.pictures and step > 6


@pytest.mark.parametrize("fusion", FUSIONS)
@torch.no_grad()
def test_a_picture_that_is_not_a_number_is_so_alone(make_student, fusion):
    transformer = make_student(**SMALL, fusion=fusion).transformer.double().eval()
    packed = PackedTrunk(transformer)
    sitters = [Sitter(transformer, packed, number, True) for number in (0, 1, 4)]
    for each in range(2):
        sitters[1].tokens[:] = torch.nan
        conds = packed.conditions([sitter.next_pass() for sitter in sitters])
        assert conds[1][0].isnan().all()
        for sitter, found in zip(sitters, conds, strict=True):
            sitter.check(found) if sitter is not sitters[1] else None
        sitters[1].iteration += 1
        sitters[1].entered, sitters[1].unknown = sitters[1].unknown, sitters[1].left
        if each == 0:
            packed.leave(sitters[1].member)
            sitters[1] = Sitter(transformer, packed, 1, True)


@pytest.mark.parametrize("fusion", FUSIONS)
@torch.no_grad()
def test_no_filling_passes_the_layers(make_student, fusion):
    transformer = make_student(**SMALL, fusion=fusion).transformer.double().eval()
    packed = PackedTrunk(transformer)
    sitters = [Sitter(transformer, packed, number, True) for number in (0, 3)]  # 10 tokens, 8 under two texts
    rows = defaultdict(int)
    for name, module in transformer.named_modules():
        if isinstance(module, nn.Linear):
            module.register_forward_pre_hook(
                lambda _, given, name=name: rows.update({name: rows[name] + given[0][..., 0].numel()})
            )
    passes = [sitter.next_pass() for sitter in sitters]
    packed.conditions(passes)
    words = sum(len(text) for sitter in sitters for text in sitter.member.texts)
    texts, predicted = (1, 2), [each.unknown - each.left for each in passes]
    halves = [1, 1] if fusion == "late" else texts
    assert rows["encoder_blocks.1.mlp.fc1"] == words
    decoded = sum(half * sitter.length for half, sitter in zip(halves, sitters, strict=True))
    assert rows["decoder_blocks.0.mlp.fc1"] == decoded + words
    last = sum(half * count for half, count in zip(halves, predicted, strict=True))
    assert rows["decoder_blocks.1.mlp.fc1"] == last
    if fusion != "joint":
        read = sum(text * count for text, count in zip(texts, predicted, strict=True))
        assert rows["cross_blocks.1.mlp.fc1"] == read
    rows.clear()
    for sitter, each in zip(sitters, passes, strict=True):
        sitter.entered, sitter.unknown, sitter.iteration = each.unknown, each.left, 1
    passes = [sitter.next_pass() for sitter in sitters]
    packed.conditions(passes)
    newest, now = ([len(each.newest) for each in passes], [each.unknown - each.left for each in passes])
    assert rows["encoder_blocks.0.attn.kv"] == sum(newest)
    partial = sum(half * (a + b) for half, a, b in zip(halves, newest, now, strict=True))
    assert rows["decoder_blocks.0.mlp.fc1"] == partial + words
