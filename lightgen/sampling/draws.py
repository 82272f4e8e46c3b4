"""Everything random of a decoding: orders and noise, by (seed, token, step)."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from lightgen.core.draws import torch_draws
from lightgen.sampling.order import draw_order

# Shapes: B images, L tokens, S head steps, d token channels.


@dataclass(frozen=True, kw_only=True)
class Draws:
    """Orders and noise of a batch, by position of the token.

    Attributes:
        order: positions, int [B, L]: the last is decoded first; known tokens, if any, come after all others.
        start: noise from which a token starts, [B, L, d].
        steps: noise added when leaving head step i, [S, B, L, d]; None for solvers without noise.
    """

    order: torch.Tensor
    start: torch.Tensor
    steps: torch.Tensor | None


def draw(
    seeds: Sequence[int], length: int, channels: int, num_noisy_steps: int, known_mask: torch.Tensor | None
) -> Draws:
    """Draws of one image per seed, each a pure function of its seed, on the CPU.

    Args:
        seeds: one per image.
        length: L.
        channels: d.
        num_noisy_steps: S, or 0 for a solver without noise.
        known_mask: bool [B, L] or [L], True = known; None = nothing is.
    """
    orders, starts, steps = [], [], []
    for index, seed in enumerate(seeds):
        order = draw_order(seed, length)
        if known_mask is not None:
            known = (known_mask if known_mask.ndim == 1 else known_mask[index]).cpu()[order]
            order = torch.cat([order[~known], order[known]])
        orders.append(order)
        starts.append(
            torch.randn(length, channels, dtype=torch.float32, generator=torch_draws(seed, "noise"))
        )
        # step by step, so that the noise of a step does not depend on how many there are
        for step in range(num_noisy_steps):
            random = torch_draws(seed, "step noise", step)
            steps.append(torch.randn(length, channels, dtype=torch.float32, generator=random))
    noises = None
    if num_noisy_steps:
        noises = torch.stack(steps).unflatten(0, (len(seeds), num_noisy_steps)).transpose(0, 1)
    return Draws(order=torch.stack(orders), start=torch.stack(starts), steps=noises)
