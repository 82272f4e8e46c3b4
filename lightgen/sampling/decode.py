"""Masked decoding: iterations that fill unknown tokens, each from noise by a short flow."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from lightgen.core.draws import torch_draws
from lightgen.models.head import FlowHead
from lightgen.models.transformer import LightGenTransformer, tokens_at
from lightgen.sampling.order import draw_order, unknown_after

# Shapes: B images, L tokens, K known, P predicted now, T text tokens, D width, d token channels.


@dataclass(frozen=True, kw_only=True)
class DecodeConfig:
    """How tokens are decoded.

    Attributes:
        num_iterations: passes of the trunk.
        num_head_steps: Euler steps of the head per token.
        guidance_scale: weight of the text; 1 = plain conditional model, at half the cost.
        guidance_rise: share of the scale that grows linearly with the known share of tokens; 0 = constant.
        temperature: factor on the start noise of each token.
    """

    num_iterations: int = 16
    num_head_steps: int = 12
    guidance_scale: float = 3.0
    guidance_rise: float = 0.0
    temperature: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Condition:
    """Text for the trunk: [B, T, D] and bool mask [B, T]; the same without text where guidance needs it."""

    text: torch.Tensor
    text_mask: torch.Tensor
    null_text: torch.Tensor
    null_mask: torch.Tensor


@torch.no_grad()
def decode_tokens(
    transformer: LightGenTransformer,
    condition: Condition,
    seeds: Sequence[int],
    grid: tuple[int, int],
    config: DecodeConfig,
    known: torch.Tensor | None = None,
    known_mask: torch.Tensor | None = None,
    on_iteration: Callable[[int, torch.Tensor], None] | None = None,
) -> torch.Tensor:
    """Tokens [B, L, d] of one image per seed; an image's order and noise depend on its seed alone.

    Args:
        transformer: in eval mode.
        condition: text of each image.
        seeds: one per image.
        grid: rows and columns of tokens.
        config: iterations, steps, guidance.
        known: tokens [B, L, d] of which those outside `known_mask` are ignored.
        known_mask: bool [L], True = kept exactly; the same set for all images. None = nothing is known.
        on_iteration: called with (iteration, tokens so far) after each iteration; the tokens are the live
            tensor: copy them to keep them, write to them to change what follows.
    """
    length, channels = grid[0] * grid[1], transformer.token_channels
    device = condition.text.device
    tokens = torch.zeros(len(seeds), length, channels, device=device)
    kept = torch.zeros(length, dtype=torch.bool) if known_mask is None else known_mask.cpu()
    if known is not None:
        tokens = torch.where(kept.to(device)[None, :, None], known.float(), tokens)
    order = torch.stack([_order(seed, kept) for seed in seeds]).to(
        device
    )  # [B, L]: unknown first, known last
    noise = torch.stack(
        [torch.randn(length, channels, generator=torch_draws(seed, "noise")) for seed in seeds]
    )
    noise = noise.to(device) * config.temperature
    unknown = length - int(kept.sum())
    num_unknown = unknown
    for iteration, left in enumerate(unknown_after(num_unknown, config.num_iterations) if unknown else []):
        predicted_at, known_at = order[:, left:unknown], order[:, unknown:]
        rise = config.guidance_rise * left / num_unknown
        scale = 1 + (config.guidance_scale - 1) * (1 - rise)
        cond = _conditions(transformer, condition, tokens, known_at, predicted_at, grid, scale)
        start = tokens_at(noise, predicted_at)
        values = _flow(transformer.head, cond, start, scale, config.num_head_steps)
        tokens.scatter_(1, predicted_at[..., None].expand(-1, -1, channels), values)
        unknown = left
        if on_iteration is not None:
            on_iteration(iteration, tokens)
    return tokens


def _order(seed: int, kept: torch.Tensor) -> torch.Tensor:
    """Positions [L]: the unknown ones in the image's random order, then the kept ones."""
    order = draw_order(seed, len(kept))
    return torch.cat([order[~kept[order]], order[kept[order]]])


def _conditions(
    transformer: LightGenTransformer,
    condition: Condition,
    tokens: torch.Tensor,
    known_at: torch.Tensor,
    predicted_at: torch.Tensor,
    grid: tuple[int, int],
    scale: float,
) -> torch.Tensor:
    """Conditions [B, P, D], or [2B, P, D] with the unconditional half last where guidance needs one."""
    known = tokens_at(tokens, known_at)
    text, text_mask = condition.text, condition.text_mask
    if scale != 1:
        known, known_at, predicted_at = (
            known.repeat(2, 1, 1),
            known_at.repeat(2, 1),
            predicted_at.repeat(2, 1),
        )
        text = torch.cat([text, condition.null_text])
        text_mask = torch.cat([text_mask, condition.null_mask])
    return transformer(known, known_at, predicted_at, text, text_mask, grid)


def _flow(
    head: FlowHead, cond: torch.Tensor, start: torch.Tensor, scale: float, num_steps: int
) -> torch.Tensor:
    """Tokens [B, P, d] reached from noise `start` by Euler steps along the guided velocity.

    Source: guidance, arXiv 2207.12598, eq. 6, on velocities.
    """
    batch, predicted, channels = start.shape
    embedded = head.embed_cond(cond).flatten(0, 1)
    x = start.flatten(0, 1).float()
    guided = scale != 1
    for step in range(num_steps):
        time = torch.full((1,), 1 - step / num_steps, device=x.device)
        velocity = head(x.repeat(2, 1) if guided else x, time, embedded).float()
        if guided:
            with_text, without = velocity.chunk(2)
            velocity = without + scale * (with_text - without)
        x = x - velocity / num_steps
    return x.view(batch, predicted, channels)
