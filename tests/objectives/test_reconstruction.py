"""The reconstruction objective on autoencoders whose answer is known."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from lightgen.core.draws import torch_draws
from lightgen.objectives.reconstruction import ReconstructionConfig, ReconstructionObjective

ONLY = {"l1": 0.0, "l2": 0.0, "gradient": 0.0, "moment": 0.0, "latent_noise": 0.0}


class Fake(nn.Module):
    """Autoencoder that is the identity but for an offset of the decoded pixels."""

    def __init__(self, offset=0.0):
        super().__init__()
        self.offset = offset
        self.encoder, self.decoder = nn.Linear(1, 1), nn.Linear(1, 1)  # their type is the type to compute in

    def encode(self, pixels):
        self.pixels = pixels
        return SimpleNamespace(latent=pixels)

    def decode(self, latents):
        self.latents = latents
        return SimpleNamespace(sample=latents + self.offset)


@pytest.fixture
def batch():
    pixels = torch.randint(0, 256, (2, 3, 6, 5), generator=torch_draws(0, "test"), dtype=torch.uint8)
    return {"pixels": pixels, "ids": [7, 9]}


def run(learner, batch, step=0, **settings):
    loss, shown = ReconstructionObjective(ReconstructionConfig(**{**ONLY, **settings}))(learner, batch, step)
    return loss.item(), shown


def test_bytes_become_pixels_from_minus_one_to_one(batch):
    batch["pixels"][0, 0, 0, :2] = torch.tensor([0, 255], dtype=torch.uint8)
    learner = Fake()
    run(learner, batch)
    assert learner.pixels[0, 0, 0, :2].tolist() == [-1, 1]
    torch.testing.assert_close(learner.pixels, batch["pixels"].float() / 127.5 - 1)


def test_a_perfect_autoencoder_has_no_loss(batch):
    loss, shown = run(Fake(), batch, l1=1.0, l2=1.0, gradient=1.0)
    assert loss == 0
    assert shown["psnr"] > 80


@pytest.mark.parametrize(("term", "expected"), [("l1", 0.5), ("l2", 0.25), ("gradient", 0.0)])
def test_the_terms_of_an_offset(batch, term, expected):
    loss, shown = run(Fake(0.5), batch, **{term: 2.0})
    assert math.isclose(loss, 2 * expected, rel_tol=1e-5, abs_tol=1e-6)
    assert math.isclose(shown["psnr"], 10 * math.log10(4 / 0.25), rel_tol=1e-5)


def test_the_gradient_term_sees_lost_edges(batch):
    class Flat(Fake):
        def decode(self, latents):
            return SimpleNamespace(sample=torch.zeros_like(latents))

    pixels = torch.zeros(1, 3, 4, 4, dtype=torch.uint8)
    pixels[..., 2:] = 255  # one edge of height 2 among three horizontal steps
    assert math.isclose(run(Flat(), {"pixels": pixels, "ids": [0]}, gradient=1.0)[0], 2 / 3, rel_tol=1e-5)


def test_the_moment_term_wants_unit_latents(batch):
    class Scaled(Fake):
        def encode(self, pixels):
            values = torch.tensor([-1.0, 1.0]).repeat(500) * self.scale + self.shift
            return SimpleNamespace(latent=values.view(1, 1, 20, 50))

        def decode(self, latents):
            return SimpleNamespace(sample=torch.zeros(2, 3, 6, 5))

    learner = Scaled()
    for scale, shift, expected in ((1, 0, 0), (1, 0.5, 0.25), (3, 0, math.log(9) ** 2)):
        learner.scale, learner.shift = scale, shift
        loss, shown = run(learner, batch, moment=1.0)
        assert math.isclose(loss, expected, rel_tol=1e-2, abs_tol=1e-3)
        assert math.isclose(shown["moment"], expected, rel_tol=1e-2, abs_tol=1e-3)


def test_latent_noise_is_keyed_by_step_and_batch(batch):
    learner, noises = Fake(), []
    for step, ids in ((0, [7, 9]), (0, [7, 9]), (1, [7, 9]), (0, [8, 9])):
        run(learner, {**batch, "ids": ids}, step=step, latent_noise=0.1)
        noises.append(learner.latents - learner.pixels)
    assert torch.equal(noises[0], noises[1])
    assert not torch.allclose(noises[0], noises[2]) and not torch.allclose(noises[0], noises[3])
    assert 0.08 < noises[0].std() < 0.12
