"""What a picture costs to decode, counted on the code that runs, on tensors without storage."""

from dataclasses import replace
from itertools import pairwise

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from lightgen.models.shape import TransformerConfig
from lightgen.sampling.decode import DecodeConfig, Texts, decode_tokens, head_steps
from lightgen.sampling.draws import Draws
from lightgen.sampling.order import unknown_after
from lightgen.stages.budget import Grid, build_transformer, new_counter


def sample_flops(
    shape: TransformerConfig, grid: Grid, config: DecodeConfig, batch: int, *, whole: bool = False
) -> float:
    """FLOPs per image of decoding a grid of tokens, text aligner included; 1 multiply-add = 2 FLOPs.

    A head step costs the same each time. So, unless `whole`, decoding is counted with one step per iteration,
    and the others are added: a second step for all tokens, counted too, times how many there are.
    """
    if whole:
        return _decode_flops(shape, grid, config, batch)
    one = replace(config, num_head_steps=1, last_head_steps=None)
    first = _decode_flops(shape, grid, one, batch)
    short = [
        _decode_flops(shape, grid, replace(one, num_iterations=1, num_head_steps=n), batch) for n in (1, 2)
    ]
    length = grid[0] * grid[1]
    schedule = [length, *unknown_after(length, config.num_iterations)]
    further = sum(
        (before - left) * (head_steps(config, i, len(schedule) - 1) - 1)
        for i, (before, left) in enumerate(pairwise(schedule))
    )
    return first + (short[1] - short[0]) * further / length


def _decode_flops(shape: TransformerConfig, grid: Grid, config: DecodeConfig, batch: int) -> float:
    transformer = build_transformer(shape).requires_grad_(False)
    length, channels = grid[0] * grid[1], transformer.token_channels
    steps = config.num_head_steps if config.solver == "ancestral" else 0
    draws = Draws(
        order=torch.empty(batch, length, dtype=torch.int64, device="meta"),
        start=torch.empty(batch, length, channels, device="meta"),
        steps=torch.empty(steps, batch, length, channels, device="meta") if steps else None,
    )
    with new_counter() as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        mask = torch.ones(batch, shape.text_length, dtype=torch.bool, device="meta")
        features = torch.empty(batch, shape.text_length, shape.text_width, device="meta")
        texts = Texts(text=transformer.embed_text(features, mask), text_mask=mask)
        decode_tokens(transformer, texts, range(batch), grid, config, draws=draws)
    return counter.get_total_flops() / batch
