"""Decoding of pictures that join and leave: each as alone, whoever is there."""

import numpy as np
import pytest
import torch

from lightgen.core.draws import numpy_draws, torch_draws
from lightgen.sampling import running
from lightgen.sampling.decode import DecodeConfig, Texts, decode_tokens
from lightgen.sampling.running import RunningBatch
from tests.models.naive import PREFIXES, SMALL, TRUNKS, named

GRIDS = [(3, 4), (2, 2), (4, 5), (1, 1), (6, 3)]
SOLVERS = {"ddpm": ["ancestral", "ddim", "dpm++"], "flow": ["ddim", "dpm++"], "flow_x": ["ddim", "dpm++"]}
HEADS = [("ddpm", "joint"), ("flow", "joint"), ("ddpm", "additive"), ("flow", "additive")]
# every shape of the trunk with one kind of head in turn
SHAPES = [
    {**trunk, "prediction": HEADS[i % 4][0], "head_conditioning": HEADS[i % 4][1]}
    for i, trunk in enumerate(TRUNKS)
]
SHAPES += [{**trunk, "prediction": "flow_x"} for trunk in PREFIXES]


def randn(*shape, seed=0):
    return torch.randn(shape, generator=torch_draws(seed, "test"))


def pick(random, *values):
    return values[int(random.integers(len(values)))]


class Wanted:
    """A picture of settings drawn by its number, as arguments of `RunningBatch.join`, and as it is alone."""

    def __init__(self, transformer, number, seed=0, **settings):
        random, shape = numpy_draws(seed, "test-picture", number), transformer.shape
        num_text = pick(random, 2, 3, 5) if shape.text_masked else 5
        mask = torch.arange(num_text)[None] < int(random.integers(1, num_text + 1))
        self.texts = Texts(text=randn(1, num_text, shape.width, seed=number), text_mask=mask)
        if random.random() < 0.5:
            null, null_mask = randn(1, num_text, shape.width, seed=500 + number), mask.flip(1) | ~mask
            self.texts = Texts(text=self.texts.text, text_mask=mask, null_text=null, null_mask=null_mask)
        self.seed, self.grid = 1000 + number, pick(random, *GRIDS)
        drawn = {
            "num_iterations": pick(random, 2, 3, 6),
            "num_head_steps": pick(random, 2, 4),
            "last_head_steps": pick(random, None, 2, 3),
            "solver": pick(random, *SOLVERS[shape.prediction]),
            "spacing": pick(random, "even", "stride"),
            "guidance_scale": pick(random, 1.0, 2.0, 3.0),
            "guidance_rise": pick(random, 0.0, 0.7),
            "guidance_interval": pick(random, (0.0, 1.0), (0.2, 0.8)),
            "temperature": pick(random, 1.0, 0.9),
            "refresh_every": pick(random, 1, 2, 3),
        }
        self.config = DecodeConfig(**{**drawn, **settings})
        length = self.grid[0] * self.grid[1]
        self.known = self.known_mask = None
        if random.random() < 0.4:
            self.known = randn(length, transformer.token_channels, seed=number)
            self.known_mask = torch.from_numpy(random.random(length) < 0.4)
        self.transformer = transformer

    def join(self, batch):
        return batch.join(self.texts, self.seed, self.grid, self.config, self.known, self.known_mask)

    def alone(self):
        known = () if self.known is None else (self.known[None], self.known_mask[None])
        return decode_tokens(self.transformer, self.texts, [self.seed], self.grid, self.config, *known)[0]

    def check(self, picture):
        wanted = self.alone()
        bound = 1e-4 * max(1.0, wanted.abs().max().item())
        torch.testing.assert_close(picture.placed(), wanted, rtol=0, atol=bound)
        assert picture.known().all() and picture.is_done


def run(batch, wanted, random, leaving=0.0):
    """Let the pictures join, step and leave at random times; those that finished are checked."""
    waiting, here, finished = list(wanted), {}, 0
    for _ in range(400):
        while waiting and random.random() < 0.5:
            each = waiting.pop()
            here[each.join(batch)] = each
        if here and random.random() < leaving:
            gone = pick(random, *here)
            batch.leave(gone)
            batch.leave(gone)
            del here[gone]
        assert len(batch) == len(here)
        before = {picture: picture.iteration for picture in here}
        done = batch.step()
        assert all(picture.iteration == min(i + 1, picture.num_iterations) for picture, i in before.items())
        for picture in done:
            here.pop(picture).check(picture)
            finished += 1
        if not waiting and not here:
            return finished
    raise AssertionError("pictures stay")


@pytest.mark.parametrize("shape", SHAPES, ids=[named(shape) for shape in SHAPES])
def test_a_picture_is_the_same_as_alone(make_student, shape):
    transformer = make_student(**SMALL, **shape).transformer.eval()
    batch = RunningBatch(transformer)
    wanted = [Wanted(transformer, number) for number in range(7)]
    assert run(batch, wanted, numpy_draws(0, "test-joins")) == 7
    assert len(batch) == 0 and batch.step() == []


@pytest.mark.parametrize("fusion", ["late", "interleaved", "joint"])
@pytest.mark.parametrize("seed", range(4))
def test_whoever_joins_and_leaves_and_whenever(make_student, fusion, seed):
    prediction = ["flow", "ddpm"][seed % 2]
    transformer = make_student(**SMALL, fusion=fusion, prediction=prediction).transformer.eval()
    batch, random = RunningBatch(transformer), numpy_draws(seed, "test-joins")
    wanted = [Wanted(transformer, number, seed) for number in range(16)]
    assert 0 < run(batch, wanted, random, leaving=0.25) < 16
    assert len(batch) == 0 and not batch._trunks  # nothing is kept


def test_a_picture_tells_how_far_it_is(make_student):
    transformer = make_student(**SMALL).transformer.eval()
    batch = RunningBatch(transformer)
    wanted = Wanted(transformer, 0, num_iterations=4, refresh_every=1)
    wanted.grid, wanted.known, wanted.known_mask = (3, 4), randn(12, 8), torch.arange(12) % 4 == 1
    picture = wanted.join(batch)
    assert picture.num_iterations == 4 and not picture.is_done
    np.testing.assert_array_equal(picture.known(), wanted.known_mask.numpy())
    torch.testing.assert_close(picture.placed()[wanted.known_mask], wanted.known[wanted.known_mask])
    counts = []
    while len(batch):
        batch.step()
        counts.append(int(picture.known().sum()))
        assert (picture.placed()[torch.from_numpy(~picture.known())] == 0).all()
    assert counts == sorted(set(counts)) and counts[-1] == 12 and picture.iteration == 4


def test_what_is_known_in_full_comes_back(make_student):
    transformer = make_student(**SMALL).transformer.eval()
    batch, wanted = RunningBatch(transformer), Wanted(transformer, 0)
    wanted.grid, wanted.known, wanted.known_mask = (2, 3), randn(6, 8), torch.ones(6, dtype=torch.bool)
    picture = wanted.join(batch)
    assert len(batch) == 1 and batch.step() == [picture] and len(batch) == 0
    torch.testing.assert_close(picture.placed(), wanted.known)


def test_samplers_are_bounded(make_student, monkeypatch):
    monkeypatch.setattr(running, "_MAX_SAMPLERS", 2)
    transformer = make_student(**SMALL).transformer.eval()
    batch = RunningBatch(transformer)
    wanted = [Wanted(transformer, n, guidance_interval=(0.0, 1 - n / 10)) for n in range(5)]
    assert run(batch, wanted, numpy_draws(0, "test-joins")) == 5
    assert len(batch._samplers) == 2


def test_nothing_of_the_global_state_is_used(make_student):
    transformer = make_student(**SMALL).transformer.eval()
    before = torch.get_rng_state()
    run(RunningBatch(transformer), [Wanted(transformer, 1)], numpy_draws(0, "test-joins"))
    assert torch.equal(torch.get_rng_state(), before)
