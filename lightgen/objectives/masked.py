"""Masked objective: how wrong the student is about hidden tokens, given the others and the text."""

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from lightgen.core.draws import draw_key, numpy_draws, torch_draws
from lightgen.core.errors import UserError
from lightgen.models.diffusion import TRAIN_STEPS, noise_levels, variational_bits
from lightgen.models.head import Head
from lightgen.models.route import Route
from lightgen.models.student import Student
from lightgen.models.tokens import patchify, tokens_at

# Shapes: B batch, L tokens, K known, P predicted, S draws per token, d token channels.

MaskLaw = Literal["normal", "cosine", "uniform"]

_LEAST_TIME = 0.05  # at which the error of a predicted token is weighed no more; arXiv 2511.13720, section 4


@dataclass(frozen=True, kw_only=True)
class MaskedConfig:
    """Numbers of the masked objective.

    Attributes:
        mask_law: of the share of hidden tokens, one per optimizer step, so that known and hidden sets are
            rectangular: `normal`, 1 - |N(0, mask_spread)| (arXiv 2406.11838, section 3.4); `cosine`, of pi/2
            times a uniform number (arXiv 2202.04200, section 3.1); or `uniform`.
        mask_spread: of the normal law.
        mask_min: least share; the law is cut off there.
        draws_per_token: times and noises per hidden token; the trunk runs once for all of them.
        text_drop: share of images whose text is hidden, for guidance.
        time_mean, time_std: of the logit of the time, where the head predicts a flow; a ddpm head gets its
            1000 timesteps evenly.
        per_image_time: one time per image and draw instead of one per token.
        route_share: share of the image tokens, of the hidden as of the known ones, that skip some blocks of
            the decoder in pretraining. Source: TREAD, arXiv 2501.04765, section 3.2.
        route: the first block that they skip, and the one at which they join again, which is not the last
            one nor after it; from 1.
    """

    seed: int = 0
    mask_law: MaskLaw = "normal"
    mask_spread: float = 0.25
    mask_min: float = 0.0
    draws_per_token: int = 4
    text_drop: float = 0.1
    time_mean: float = 0.0
    time_std: float = 1.0
    per_image_time: bool = False
    route_share: float = 0.0
    route: tuple[int, int] = (1, 5)

    def check(self) -> None:
        """Raises UserError: a number out of range."""
        laws = (self.mask_spread, self.time_mean, self.time_std)
        is_law = all(map(math.isfinite, laws)) and self.mask_spread >= 0 and self.time_std >= 0
        if self.draws_per_token < 1 or not is_law or not 0 <= self.text_drop <= 1:
            got = f"draws_per_token {self.draws_per_token}, mask_spread {self.mask_spread}, text_drop"
            got += f" {self.text_drop}, time_mean {self.time_mean}, time_std {self.time_std}"
            allowed = "draws from 1, finite spreads from 0, a finite mean, a drop from 0 to 1"
            raise UserError(f"masking: got {got}, allowed: {allowed}")
        if not 0 <= self.route_share < 1 or not 1 <= self.route[0] < self.route[1]:
            got = f"route_share {self.route_share}, route {self.route[0]} {self.route[1]}"
            raise UserError(f"masking: got {got}, allowed: from 0 to below 1; two blocks from 1, ascending")

    def route_in(self, decoder_layers: int) -> Route | None:
        """The way of those that skip blocks of a decoder, or None where none does.

        Raises:
            UserError: the decoder has too few blocks.
        """
        if not self.route_share:
            return None
        route = Route(self.route_share, *self.route)
        if not route.fits(decoder_layers):
            got = f"route {self.route[0]} {self.route[1]} with {decoder_layers} decoder_layers"
            raise UserError(f"masking: got {got}, allowed: blocks from 1 to {decoder_layers - 1}, ascending")
        return route


@dataclass(frozen=True, kw_only=True)
class Masking:
    """What is hidden from a batch, and the noise that hides it: everything random of one step but dropout.

    Attributes:
        order: positions of the tokens, int [B, L]; the first P are hidden, the others known.
        time: [S, B, P] in (0, 1), 1 = pure noise; for a ddpm head, timesteps, int [S, B, P].
        noise: [S, B, P, d], standard normal.
        kept: rows of the batch that have a text, int.
    """

    order: torch.Tensor
    time: torch.Tensor
    noise: torch.Tensor
    kept: torch.Tensor

    def to(self, device: torch.device) -> "Masking":
        """Return the same masking on a device."""
        return Masking(**{name: each.to(device, non_blocking=True) for name, each in vars(self).items()})


def draw_masking(
    config: MaskedConfig,
    step: int,
    ids: Sequence[int],
    length: int,
    head: Head,
    purpose: str = "masking",
) -> Masking:
    """Masking of an optimizer step for the samples `ids`: the same for a sample in any (micro-)batch.

    Args:
        config: laws of the draws.
        step: of the optimizer.
        ids: sample ids.
        length: L.
        head: whose tokens and times are drawn.
        purpose: another word gives other draws of the same step, with as many hidden tokens.

    Raises:
        UserError: a least share that no draw reaches.
    """
    num_predicted = _num_predicted(config, step, length)
    channels, is_flow = head.token_in.in_features, head.variance_out is None
    orders, times, noises, drops = [], [], [], []
    for sample in ids:
        random = torch_draws(config.seed, purpose, step, sample)
        orders.append(torch.randperm(length, generator=random))
        drops.append(torch.rand(1, generator=random))
        per_draw = (config.draws_per_token, 1 if config.per_image_time else num_predicted)
        if is_flow:
            logits = torch.randn(per_draw, generator=random)
            time = torch.sigmoid(config.time_mean + config.time_std * logits)
        else:
            time = torch.randint(0, TRAIN_STEPS, per_draw, generator=random)
        times.append(time.expand(-1, num_predicted))
        noises.append(torch.randn(config.draws_per_token, num_predicted, channels, generator=random))
    return Masking(
        order=torch.stack(orders),
        time=torch.stack(times, dim=1),
        noise=torch.stack(noises, dim=1),
        kept=torch.nonzero(torch.cat(drops) >= config.text_drop)[:, 0],
    )


def _num_predicted(config: MaskedConfig, step: int, length: int) -> int:
    if not 0 <= config.mask_min < 1:
        raise UserError(f"masking: got mask_min {config.mask_min}, allowed: from 0 to below 1")
    random, share = numpy_draws(config.seed, "mask-ratio", step), -1.0
    while share < config.mask_min:
        if config.mask_law == "normal":
            share = 1 - abs(float(random.normal(0.0, config.mask_spread)))
        else:
            share = 1 - float(random.random())
        if config.mask_law == "cosine":
            share = math.cos(math.pi / 2 * (1 - share))
    return max(1, math.ceil(share * length))


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What a student says about the hidden tokens of a batch, and what it should have said.

    Attributes:
        said, wanted: float32 [S, B, P, d]; a flow head says noise minus token, a ddpm head the noise; of a
            head that says the token, the velocity that follows, near time 0 a shorter one.
        noisy: what it saw, [S, B, P, d].
        clean: the tokens, [B, P, d].
        variance: of a ddpm head, as it says it, float32 [S, B, P, d]; None for a flow.
    """

    said: torch.Tensor
    wanted: torch.Tensor
    noisy: torch.Tensor
    clean: torch.Tensor
    variance: torch.Tensor | None = None

    def token_errors(self) -> torch.Tensor:
        """Squared error of each draw of each hidden token, float32 [S, B, P]: the mean over channels."""
        return (self.said - self.wanted).square().mean(dim=-1)

    def image_errors(self) -> torch.Tensor:
        """Squared error per image, float32 [B]: the mean over draws, hidden tokens and channels."""
        return self.token_errors().mean(dim=(0, 2))


def predict(
    student: Student, batch: Mapping[str, Any], masking: Masking, route: Route | None = None
) -> Prediction:
    """What the student says about each draw of each hidden token.

    A flow head sees x_t = (1 - t) x + t n of token x and noise n, and says v = n - x or, where it says x, is
    taken to say v = (x_t - x) / max(t, 0.05); a ddpm head says n.
    Source: arXiv 2503.08619, eq. 6; the flow's straight path, arXiv 2209.03003, eq. 1; the token predicted
    and the velocity's error taken, arXiv 2511.13720, section 4.

    Args:
        student: transformer and text encoder.
        batch: `latents` [B, C, h, w], `text_mask` bool [B, T], and `text_ids` int [B, T] or, in their place,
            `text_features` [B, T, Dt]; see `Student.embed_text`.
        masking: from `draw_masking`, for these samples, on the device of the batch.
        route: of some tokens round some blocks of the decoder.
    """
    latents, transformer = batch["latents"], student.transformer
    patch = transformer.shape.patch_size
    grid = (latents.shape[2] // patch, latents.shape[3] // patch)
    tokens = tokens_at(patchify(latents, patch), masking.order)  # [B, L, d], hidden first
    num_predicted = masking.noise.shape[2]
    clean, known = tokens[:, :num_predicted], tokens[:, num_predicted:]
    words = batch["text_features"] if "text_features" in batch else batch["text_ids"]
    text, text_mask = student.embed_text(words, batch["text_mask"], masking.kept)
    cond = transformer(known, masking.order, text, text_mask, grid, route=route)  # [B, P, D]
    embedded = transformer.head.embed_cond(cond).expand(len(masking.time), -1, -1, -1).flatten(0, 2)
    if transformer.shape.prediction != "ddpm":
        time = masking.time[..., None]
        noisy, wanted = (1 - time) * clean + time * masking.noise, masking.noise - clean
        said, _ = transformer.head(noisy.flatten(0, 2), 1000 * masking.time.flatten(), embedded)
        said = _wide(said).view_as(wanted)
        if transformer.shape.prediction == "flow_x":
            said, wanted = ((noisy - each) / time.clamp(min=_LEAST_TIME) for each in (said, clean))
        return Prediction(said=said, wanted=wanted, noisy=noisy, clean=clean)
    level = noise_levels(masking.time, masking.noise.dtype)
    noisy = level.signal * clean + level.noise * masking.noise
    said, variance = transformer.head(noisy.flatten(0, 2), masking.time.flatten(), embedded)
    said, variance = _wide(said).view_as(noisy), _wide(variance).view_as(noisy)
    return Prediction(said=said, wanted=masking.noise, noisy=noisy, clean=clean, variance=variance)


def masked_errors(
    student: Student, batch: Mapping[str, Any], masking: Masking, route: Route | None = None
) -> torch.Tensor:
    """Squared error of each draw of each hidden token, float32 [S, B, P]; see `predict`.

    For a ddpm head with the term in bits that teaches its variance.
    """
    found = predict(student, batch, masking, route)
    if found.variance is None:
        return found.token_errors()
    clean = found.clean.expand_as(found.noisy)
    bits = variational_bits(clean, found.noisy, found.said.detach(), found.variance, masking.time)
    return found.token_errors() + bits


def _wide(x: torch.Tensor) -> torch.Tensor:
    """The tensor in fp32 or wider: errors are summed up there."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


class MaskedObjective:
    """Mean over a batch of the images' errors under freshly drawn maskings."""

    def __init__(self, config: MaskedConfig) -> None:
        self._config = config

    def __call__(
        self, learner: Student, batch: Mapping[str, Any], step: int
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Loss of a batch, and the same by quarter of the time and of the share of hidden tokens.

        Args:
            learner: the student.
            batch: as of `predict`, with `ids` (sample ids) and their `masking`.
            step: of the optimizer.
        """
        masking: Masking = batch["masking"]
        shape = learner.transformer.shape
        route = self._config.route_in(shape.decoder_layers) if learner.training else None
        drops = learner.training and (shape.dropout > 0 or learner.train_text_encoder)
        seed = draw_key(self._config.seed, "dropout", step, *batch["ids"][:1]) if drops else None
        with _dropout(seed, batch["latents"].device):
            errors = masked_errors(learner, batch, masking, route)
        loss = errors.mean()
        whole = float(TRAIN_STEPS) if shape.prediction == "ddpm" else 1.0
        share = masking.time.shape[2] / masking.order.shape[1]
        by_time = by_quarter(errors.detach(), masking.time / whole)
        shown = {f"loss_time_{number}": pair for number, pair in enumerate(by_time, start=1)}
        return loss, {**shown, f"loss_hidden_{min(4, 1 + int(4 * share))}": loss.detach()}


def by_quarter(values: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """Sum and count, float64 [4, 2], of the values whose places in [0, 1] are in each quarter."""
    quarter = (4 * places.flatten()).long().clamp(max=3)
    pairs = torch.stack([values.flatten().double(), torch.ones_like(quarter, dtype=torch.float64)], dim=1)
    return pairs.new_zeros(4, 2).index_add(0, quarter, pairs)


@contextlib.contextmanager
def _dropout(seed: int | None, device: torch.device) -> Iterator[None]:
    """Context in which dropout draws from `seed`, so that a resumed run drops what an unbroken one did."""
    if seed is None:
        yield
        return
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield
