"""Gaussian diffusion of a token: the cosine schedule, its respacings, and the variational term."""

import math
from dataclasses import dataclass
from functools import cache
from typing import Literal, NamedTuple

import numpy as np
import torch

TRAIN_STEPS = 1000

Spacing = Literal["even", "stride"]

# Shapes: S steps, d token channels; "...": any leading shape.


@dataclass(frozen=True)
class Chain:
    """A noise schedule on a subset of the training steps, from the cleanest to the noisiest.

    Attributes:
        steps: training step of each entry, int64 [S].
        alpha_bars, previous: signal variance at each entry and at the one below, float64 [S]; 1 below all.
    """

    steps: np.ndarray
    alpha_bars: np.ndarray
    previous: np.ndarray

    @property
    def betas(self) -> np.ndarray:
        """Variance that the entry adds to the one below, float64 [S]."""
        return 1 - self.alpha_bars / self.previous

    @property
    def posterior(self) -> tuple[np.ndarray, np.ndarray]:
        """Weights of the clean token and of the noisy one in the mean of the one below, float64 [S].

        Source: arXiv 2006.11239, eq. 7.
        """
        clean = self.betas * np.sqrt(self.previous) / (1 - self.alpha_bars)
        noisy = (1 - self.previous) * np.sqrt(1 - self.betas) / (1 - self.alpha_bars)
        return clean, noisy

    @property
    def log_variances(self) -> tuple[np.ndarray, np.ndarray]:
        """Least and greatest log variance that the head chooses between, float64 [S].

        Source: arXiv 2102.09672, eq. 15. The posterior has no variance at the cleanest entry; that of the
        next one stands in.
        """
        variances = self.betas * (1 - self.previous) / (1 - self.alpha_bars)
        variances[0] = variances[min(1, len(variances) - 1)]
        return np.log(np.maximum(variances, 1e-20)), np.log(self.betas)


@cache
def training_chain() -> Chain:
    """Cosine schedule of 1000 steps. Source: arXiv 2102.09672, eq. 17, betas at most 0.999."""
    edges = np.arange(TRAIN_STEPS + 1) / TRAIN_STEPS
    signal = np.cos((edges + 0.008) / 1.008 * math.pi / 2) ** 2
    betas = np.minimum(1 - signal[1:] / signal[:-1], 0.999)
    alpha_bars = np.cumprod(1 - betas)
    return Chain(np.arange(TRAIN_STEPS), alpha_bars, np.append(1.0, alpha_bars[:-1]))


@cache
def respaced_chain(num_steps: int, spacing: Spacing) -> Chain:
    """The training chain on num_steps of its steps.

    Args:
        num_steps: 1 to 1000.
        spacing: `even` from step 0 to 999, both included; `stride` from 0 in whole strides (or, where no
            whole stride gives num_steps, in nearly equal ones), so that its noisiest step lies below 999. One
            step is step 0 either way.
    """
    if spacing == "even" and num_steps > 1:
        stride = (TRAIN_STEPS - 1) / (num_steps - 1)
        steps = np.array([round(i * stride) for i in range(num_steps)])
    else:
        steps = np.arange(0, TRAIN_STEPS, math.ceil(TRAIN_STEPS / num_steps))
        if len(steps) != num_steps:
            steps = np.arange(num_steps) * TRAIN_STEPS // num_steps
    alpha_bars = training_chain().alpha_bars[steps]
    return Chain(steps, alpha_bars, np.append(1.0, alpha_bars[:-1]))


class Levels(NamedTuple):
    """Coefficients of noisy tokens at their timesteps, each [..., 1], rounded to fp32.

    Attributes:
        signal, noise: weights of clean token and noise in the noisy one (arXiv 2006.11239, eq. 4).
        inverse_signal, inverse_noise: weights of noisy token and noise in the clean one.
        clean, noisy: see `Chain.posterior`.
        least, greatest: see `Chain.log_variances`.
    """

    signal: torch.Tensor
    noise: torch.Tensor
    inverse_signal: torch.Tensor
    inverse_noise: torch.Tensor
    clean: torch.Tensor
    noisy: torch.Tensor
    least: torch.Tensor
    greatest: torch.Tensor


@torch.compiler.assume_constant_result  # which the compiler would not see on a cached function
def _level_table(device: torch.device) -> torch.Tensor:
    return _resident_levels(device)


@cache
def _resident_levels(device: torch.device) -> torch.Tensor:
    """Columns of `Levels` by training step, float32 [1000, 8], resident on the device."""
    chain = training_chain()
    bars = chain.alpha_bars
    columns = [np.sqrt(bars), np.sqrt(1 - bars), np.sqrt(1 / bars), np.sqrt(1 / bars - 1)]
    table = np.stack([*columns, *chain.posterior, *chain.log_variances], axis=1)
    return torch.as_tensor(table, dtype=torch.float32).to(device)


def noise_levels(timesteps: torch.Tensor, dtype: torch.dtype) -> Levels:
    """Coefficients of timesteps int [...], 0 to 999."""
    return Levels(*_level_table(timesteps.device)[timesteps].to(dtype).split(1, dim=-1))


def variational_bits(
    clean: torch.Tensor,
    noisy: torch.Tensor,
    noise: torch.Tensor,
    variance_output: torch.Tensor,
    timesteps: torch.Tensor,
) -> torch.Tensor:
    """Variational term in bits per channel [...].

    Source: arXiv 2102.09672, eqs. 4 to 6 and 15; the cleanest step as a discretised Gaussian on 8-bit bins.

    Args:
        clean: tokens [..., d].
        noisy: the same at their timesteps [..., d].
        noise: predicted noise [..., d]; detached, this term teaches the variance alone.
        variance_output: of the head [..., d]; -1 = least, 1 = greatest log variance.
        timesteps: int [...], 0 to 999.
    """
    at = noise_levels(timesteps, clean.dtype)
    log_variance = at.least + (variance_output + 1) / 2 * (at.greatest - at.least)
    mean_true = at.clean * clean + at.noisy * noisy
    mean = at.clean * (at.inverse_signal * noisy - at.inverse_noise * noise) + at.noisy * noisy
    spread = (mean_true - mean).square() * torch.exp(-log_variance)
    divergence = 0.5 * (-1 + log_variance - at.least + torch.exp(at.least - log_variance) + spread)
    surprise = -_binned_log_likelihood(clean, mean, 0.5 * log_variance)
    nats = torch.where((timesteps == 0)[..., None], surprise, divergence)
    return nats.mean(dim=-1) / math.log(2)


def _binned_log_likelihood(x: torch.Tensor, mean: torch.Tensor, log_scale: torch.Tensor) -> torch.Tensor:
    """Log probability [..., d] of the bin of width 2/255 around x under a normal distribution.

    The normal's distribution function by its tanh approximation; the outermost bins reach to infinity.
    """
    inverse = torch.exp(-log_scale)
    above = _normal_cdf(inverse * (x - mean + 1 / 255))
    below = _normal_cdf(inverse * (x - mean - 1 / 255))
    inside = (above - below).clamp(min=1e-12).log()
    upper = (1 - below).clamp(min=1e-12).log()
    lower = above.clamp(min=1e-12).log()
    return torch.where(x < -0.999, lower, torch.where(x > 0.999, upper, inside))


def _normal_cdf(x: torch.Tensor) -> torch.Tensor:
    return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
