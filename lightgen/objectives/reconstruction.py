"""Reconstruction objective of a deterministic autoencoder with a noisy, unit-variance latent."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional

from lightgen.core.draws import torch_draws


@dataclass(frozen=True, kw_only=True)
class ReconstructionConfig:
    """Weights of the terms; errors are on pixels in [-1, 1].

    Attributes:
        latent_noise: standard deviation of the noise added to latents of unit variance before decoding,
            which makes near latents mean near pictures.
        moment: pull of each latent channel to zero mean and unit variance over a batch.
    """

    l1: float = 1.0
    l2: float = 5.0
    gradient: float = 0.5
    moment: float = 0.1
    latent_noise: float = 0.1
    seed: int = 0


class ReconstructionObjective:
    """Weighted sum of absolute, squared and image-gradient errors; the learner is a diffusers autoencoder."""

    def __init__(self, config: ReconstructionConfig) -> None:
        self._config = config

    def __call__(
        self,
        learner: Any,  # noqa: ANN401  (an autoencoder of diffusers, which no Protocol of ours describes)
        batch: Mapping[str, Any],
        step: int,
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Loss and PSNR [dB] of a batch.

        Args:
            learner: the autoencoder.
            batch: `pixels` uint8 [B, 3, H, W] and `ids` (one per image), from which the noise on the latents
                follows unless it is given, as `noise` of the latents' shape.
            step: of the optimizer.
        """
        config = self._config
        pixels = batch["pixels"].float().div(127.5).sub(1).contiguous(memory_format=torch.channels_last)
        dtype = next(learner.encoder.parameters()).dtype
        latents = learner.encode(pixels.to(dtype)).latent  # [B, C, h, w]
        noise = batch.get("noise")
        if noise is None:
            draws = [torch_draws(config.seed, "latent-noise", step, sample) for sample in batch["ids"]]
            noise = torch.stack([torch.randn(latents.shape[1:], generator=each) for each in draws])
        noisy = latents + config.latent_noise * noise.to(latents)
        decoded = learner.decode(noisy.to(next(learner.decoder.parameters()).dtype)).sample.float()
        error = decoded - pixels
        squared = error.square().mean()
        moments = latents.float().transpose(0, 1).flatten(1)  # [C, B h w]
        mean, variance = moments.mean(1), moments.var(1)
        moment = mean.square().mean() + (variance.add(1e-6).log()).square().mean()
        gradient = functional.l1_loss(decoded.diff(dim=2), pixels.diff(dim=2)) + functional.l1_loss(
            decoded.diff(dim=3), pixels.diff(dim=3)
        )
        loss = (
            config.l1 * error.abs().mean()
            + config.l2 * squared
            + config.gradient * gradient
            + config.moment * moment
        )
        psnr = 10 * torch.log10(4 / squared.detach().clamp_min(1e-8))
        return loss, {"psnr": psnr, "moment": moment.detach()}
