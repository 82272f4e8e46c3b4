"""Masked decoding: iterations that fill unknown tokens, each from noise by the head."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from lightgen.models.diffusion import Spacing
from lightgen.models.layout import Context
from lightgen.models.tokens import tokens_at, tokens_placed
from lightgen.models.transformer import LightGenTransformer
from lightgen.sampling.draws import Draws, draw
from lightgen.sampling.order import unknown_after
from lightgen.sampling.solver import HeadSampler, Solver
from lightgen.sampling.trunk import Trunk

# Shapes: B images, L tokens, K known, P predicted now, T text tokens, D width, d token channels. Ranks: see
# `lightgen.models.layout`.


@dataclass(frozen=True, kw_only=True)
class DecodeConfig:
    """How tokens are decoded.

    Attributes:
        num_iterations: passes of the trunk.
        num_head_steps: steps of the head per token.
        last_head_steps: steps in the last iteration, reached linearly; None = the same in all.
            Source: DiSA, arXiv 2505.20297, section 4.
        solver: of the head: `ancestral` (ddpm heads alone, as released), `ddim` or `dpm++`.
        spacing: of a ddpm head's steps: `even` up to the noisiest (as released) or in a whole `stride`.
        guidance_scale: weight of the text; 1 = plain conditional model.
        guidance_rise: share of the scale that grows linearly with the known share of tokens; 0 = constant.
        guidance_interval: share of the head's noise in which the text is weighed, 0 = clean, 1 = pure noise.
        temperature: factor on the start noise of each token, or, for the ancestral solver, on its steps'.
        refresh_every: iterations from one full pass of the trunk to the next; between them only the newest
            and the predicted tokens pass, and all others stand as they were; 1 = always full, exact.
            Source: token cache of LazyMAR, arXiv 2503.12450, section 3.2; keys and values kept as in MARché,
            arXiv 2506.12035.
    """

    num_iterations: int = 16
    num_head_steps: int = 12
    last_head_steps: int | None = None
    solver: Solver = "ddim"
    spacing: Spacing = "stride"
    guidance_scale: float = 3.0
    guidance_rise: float = 0.0
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    temperature: float = 1.0
    refresh_every: int = 1


@dataclass(frozen=True, kw_only=True)
class Texts:
    """Texts of the images from `LightGenTransformer.embed_text`, [B, T, D] with bool masks [B, T].

    Attributes:
        null_text, null_mask: what to stay away from; None = the learned "no text".
    """

    text: torch.Tensor
    text_mask: torch.Tensor
    null_text: torch.Tensor | None = None
    null_mask: torch.Tensor | None = None


@torch.no_grad()
def decode_tokens(
    transformer: LightGenTransformer,
    texts: Texts,
    seeds: Sequence[int],
    grid: tuple[int, int],
    config: DecodeConfig,
    known: torch.Tensor | None = None,
    known_mask: torch.Tensor | None = None,
    on_iteration: Callable[[int, torch.Tensor], bool | None] | None = None,
    draws: Draws | None = None,
) -> torch.Tensor:
    """Tokens [B, L, d] of one image per seed; an image's order and noise depend on its seed alone.

    Args:
        transformer: in eval mode.
        texts: of each image.
        seeds: one per image.
        grid: rows and columns of tokens.
        config: iterations, steps, guidance.
        known: tokens [B, L, d] of which those outside `known_mask` are ignored.
        known_mask: bool [L] or [B, L], True = kept exactly; as many in each image; best on the CPU, where
            they are counted. None = nothing is known.
        on_iteration: called with (iteration, tokens so far) after each iteration; write to the tokens to
            change what follows; True stops.
        draws: orders and noise; None = those of the seeds.
    """
    length, channels, device = grid[0] * grid[1], transformer.token_channels, texts.text.device
    num_known = 0 if known_mask is None else _num_known(known_mask)
    is_noisy = config.solver == "ancestral"
    if draws is None:
        noisy_steps = max(config.num_head_steps, config.last_head_steps or 0) if is_noisy else 0
        draws = draw(seeds, length, channels, noisy_steps, known_mask)
    order = draws.order.to(device)
    guided = config.guidance_scale != 1
    contexts = _contexts(transformer, texts, guided)
    trunk = Trunk(transformer, contexts, order, grid, keeps=config.refresh_every > 1)
    shape = transformer.shape
    sampler = HeadSampler(
        transformer.head, shape.prediction, config.solver, config.spacing, config.guidance_interval
    )
    start = tokens_at(draws.start.to(device), order)  # by rank, as everything below
    noises = None
    if is_noisy:
        assert draws.steps is not None
        steps = draws.steps.to(device)
        noises = steps.gather(2, order[None, ..., None].expand_as(steps)) * config.temperature
    else:
        start = start * config.temperature
    tokens = torch.zeros_like(start)
    unknown = num_unknown = length - num_known
    if num_known:
        assert known is not None
        tokens[:, unknown:] = tokens_at(known.to(tokens), order)[:, unknown:]
    schedule = unknown_after(num_unknown, config.num_iterations) if num_unknown else []
    for iteration, left in enumerate(schedule):
        # as released, the last iteration still counts one token as unknown
        rise = config.guidance_rise * max(left, 1) / num_unknown
        scale = 1 + (config.guidance_scale - 1) * (1 - rise)
        is_full = iteration % config.refresh_every == 0
        conds = trunk.conditions(tokens, left, unknown, is_full)
        count = head_steps(config, iteration, len(schedule))
        now = slice(left, unknown)
        added = None if noises is None else noises[:count, :, now].flatten(1, 2)
        values = sampler(conds.flatten(0, 1), start[:, now].flatten(0, 1), scale, count, added)
        tokens[:, now] = values.unflatten(0, (len(order), -1))
        unknown = left
        if on_iteration is not None:
            placed = tokens_placed(tokens, order)
            # counts writes, on the host; inference mode keeps no count
            untouched = None if placed.is_inference() else placed._version
            is_over = on_iteration(iteration, placed)
            if untouched is None or placed._version != untouched:
                tokens = tokens_at(placed, order)
                trunk.forget()
            if is_over:
                break
    return tokens_placed(tokens, order)


def _num_known(known_mask: torch.Tensor) -> int:
    counts = {int(count) for count in known_mask.reshape(-1, known_mask.shape[-1]).sum(dim=1).cpu()}
    assert len(counts) == 1, counts
    return counts.pop()


def head_steps(config: DecodeConfig, iteration: int, num_iterations: int) -> int:
    """Steps of the head in an iteration, linear from the first iteration to the last."""
    if config.last_head_steps is None or num_iterations == 1:
        return config.num_head_steps
    share = iteration / (num_iterations - 1)
    return round(config.num_head_steps + share * (config.last_head_steps - config.num_head_steps))


def _contexts(transformer: LightGenTransformer, texts: Texts, guided: bool) -> list[Context]:
    """Contexts of the batch, with text and, if guided, without; joint fusion has one, of twice the rows."""
    if not guided:
        return [transformer.context(texts.text, texts.text_mask)]
    null, null_mask = texts.null_text, texts.null_mask
    if transformer.shape.fusion == "joint":
        if null is None or null_mask is None:
            null, null_mask = transformer.null_text_of(*texts.text.shape[:2])
        pairs = ((texts.text, null.to(texts.text.dtype)), (texts.text_mask, null_mask))
        return [transformer.context(*(torch.cat(pair) for pair in pairs))]
    with_text = transformer.context(texts.text, texts.text_mask)
    if null is None or null_mask is None:
        return [with_text, transformer.null_context()]
    return [with_text, transformer.context(null, null_mask)]
