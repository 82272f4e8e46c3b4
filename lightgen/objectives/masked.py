"""Masked flow objective: how wrong the student is about hidden tokens, given the others and the text."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from lightgen.core.draws import numpy_draws, torch_draws
from lightgen.models.student import Student
from lightgen.models.transformer import patchify, tokens_at

# Shapes: B batch, L tokens, K known, P predicted, S draws per token, d token channels.


@dataclass(frozen=True, kw_only=True)
class MaskedConfig:
    """Numbers of the masked objective.

    Attributes:
        mask_spread: the share of hidden tokens is 1 - |N(0, mask_spread)|, one share per optimizer step, so
            that known and hidden sets are rectangular.
        draws_per_token: times and noises per hidden token; the trunk runs once for all of them.
        text_drop: share of images whose text is hidden, for guidance.
        time_mean, time_std: of the logit of the time.
        per_image_time: one time per image and draw instead of one per token.
    """

    seed: int = 0
    mask_spread: float = 0.25
    draws_per_token: int = 4
    text_drop: float = 0.1
    time_mean: float = 0.0
    time_std: float = 1.0
    per_image_time: bool = False


@dataclass(frozen=True, kw_only=True)
class Masking:
    """What is hidden from a batch, and the noise that hides it: everything random of one step.

    Attributes:
        known_at, predicted_at: token positions, int [B, K] and [B, P]; together a permutation of all L.
        time: [S, B, P] in (0, 1); 1 = pure noise.
        noise: [S, B, P, d], standard normal.
        dropped: bool [B], True = without text.
    """

    known_at: torch.Tensor
    predicted_at: torch.Tensor
    time: torch.Tensor
    noise: torch.Tensor
    dropped: torch.Tensor


def draw_masking(config: MaskedConfig, step: int, ids: Sequence[int], length: int, channels: int) -> Masking:
    """Masking of an optimizer step for the samples `ids`: the same for a sample in any (micro-)batch."""
    folded = abs(float(numpy_draws(config.seed, "mask-ratio", step).normal(0.0, config.mask_spread))) % 1.0
    num_predicted = max(1, min(length, round((1 - folded) * length)))
    orders, times, noises, dropped = [], [], [], []
    for sample in ids:
        random = torch_draws(config.seed, "masking", step, sample)
        orders.append(torch.randperm(length, generator=random))
        dropped.append(torch.rand(1, generator=random))
        per_draw = (config.draws_per_token, 1 if config.per_image_time else num_predicted)
        logits = torch.randn(per_draw, generator=random).expand(-1, num_predicted)
        times.append(torch.sigmoid(config.time_mean + config.time_std * logits))
        noises.append(torch.randn(config.draws_per_token, num_predicted, channels, generator=random))
    order = torch.stack(orders)
    return Masking(
        known_at=order[:, num_predicted:],
        predicted_at=order[:, :num_predicted],
        time=torch.stack(times, dim=1),
        noise=torch.stack(noises, dim=1),
        dropped=torch.cat(dropped) < config.text_drop,
    )


def image_errors(student: Student, batch: Mapping[str, Any], masking: Masking) -> torch.Tensor:
    """Squared velocity error per image, float32 [B]: the mean over draws, hidden tokens and channels.

    A hidden token x becomes x_t = (1 - t) x + t n; its velocity is n - x.
    Source: flow matching on the straight path, arXiv 2209.03003, eq. 1; per masked token as in arXiv
    2503.08619, eq. 6.

    Args:
        student: transformer and text encoder.
        masking: from `draw_masking`, for these samples.
        batch: `latents` [B, C, h, w], `text_ids` int [B, T], `text_mask` bool [B, T].
    """
    latents, transformer = batch["latents"], student.transformer
    patch = transformer.config["patch_size"]
    tokens = patchify(latents, patch)  # [B, L, d]
    device = tokens.device
    known_at, predicted_at = masking.known_at.to(device), masking.predicted_at.to(device)
    time, noise = masking.time.to(device), masking.noise.to(device)
    text, text_mask = student.embed_text(batch["text_ids"], batch["text_mask"], masking.dropped.to(device))
    grid = (latents.shape[2] // patch, latents.shape[3] // patch)
    known, target = tokens_at(tokens, known_at), tokens_at(tokens, predicted_at)
    cond = transformer(known, known_at, predicted_at, text, text_mask, grid)  # [B, P, D]
    embedded = transformer.head.embed_cond(cond).expand(len(time), -1, -1, -1)
    noisy = (1 - time[..., None]) * target + time[..., None] * noise
    velocity = transformer.head(noisy.flatten(0, 2), time.flatten(), embedded.flatten(0, 2))
    error = velocity.float().view_as(noise) - (noise - target)
    return error.square().mean(dim=(0, 2, 3))


class MaskedObjective:
    """Mean over a batch of the images' errors under freshly drawn maskings."""

    def __init__(self, config: MaskedConfig) -> None:
        self._config = config

    def __call__(
        self, learner: Student, batch: Mapping[str, Any], step: int
    ) -> tuple[torch.Tensor, dict[str, float]]:
        """Loss of a batch with `latents`, `text_ids`, `text_mask` and `ids` (sample ids)."""
        latents = batch["latents"]
        patch = learner.transformer.config["patch_size"]
        length = latents.shape[2] * latents.shape[3] // patch**2
        masking = draw_masking(self._config, step, batch["ids"], length, learner.transformer.token_channels)
        return image_errors(learner, batch, masking).mean(), {}
