"""The training step made the plain way, and that it is the step that training makes.

`exact` is what training does. `plain` reaches the same loss and gradients from the same modules and weights
as the released code of arXiv 2503.08619 does: all tokens through every map, the last block, the cross stage
and the head; each condition embedded anew for every draw; all texts through the aligner, also those that are
dropped; and the loss multiplied by the mask. `train_step.py` measures both.
"""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from lightgen.core.draws import torch_draws
from lightgen.models.diffusion import noise_levels, variational_bits
from lightgen.models.positions import Rotation, axial_angles, resample_table, turns
from lightgen.models.shape import TransformerConfig
from lightgen.models.student import Student
from lightgen.models.tokens import patchify, tokens_at, tokens_placed
from lightgen.models.transformer import LightGenTransformer
from lightgen.objectives.masked import MaskedConfig, MaskedObjective, Masking, draw_masking

# Shapes: B batch, L tokens, K known, T text tokens, S draws per token, D width, d token channels.

UNIT_PX = 16
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-4}


class Features(nn.Module):
    """Text encoder that costs nothing: the features of row i where text i is asked for."""

    def __init__(self, text: torch.Tensor) -> None:
        super().__init__()
        self.text = text

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> SimpleNamespace:
        """Given features."""
        return SimpleNamespace(last_hidden_state=self.text[input_ids[:, 0]])


@dataclass(frozen=True)
class Case:
    """What both steps are given.

    Attributes:
        text: features of the texts [B, T, Dt].
        batch: as the objective takes it: latents [B, C, h, w], text_ids and text_mask [B, T], ids, masking.
        hidden: which tokens are hidden, bool [B, L], by position.
        time, noise: of all tokens, [S, B, L] and [S, B, L, d], by position; for the hidden ones, those of
            the masking.
    """

    text: torch.Tensor
    batch: dict[str, Any]
    hidden: torch.Tensor
    time: torch.Tensor
    noise: torch.Tensor

    def to(self, device: str, dtype: torch.dtype | None = None) -> "Case":
        """The same on a device, and its numbers, if asked, in a type."""

        def moved(x: Any) -> Any:  # noqa: ANN401
            if isinstance(x, Masking):
                return Masking(**{name: moved(each) for name, each in vars(x).items()})
            if isinstance(x, dict):
                return {name: moved(each) for name, each in x.items()}
            if isinstance(x, torch.Tensor):
                return x.to(device, dtype if x.is_floating_point() else None)
            return x

        return Case(**{name: moved(each) for name, each in vars(self).items()})


def draw_case(
    transformer: LightGenTransformer, px: int, batch: int, share: float, text_drop: float = 0.1
) -> Case:
    """Random latents, texts and masking, on the CPU, with a given share of hidden tokens."""
    shape, side = transformer.shape, px // UNIT_PX
    length, cells, random = side * side, side * shape.patch_size, torch_draws(0, "train-step", px, batch)
    everything = MaskedConfig(mask_spread=0.0, text_drop=text_drop)  # so that all tokens have time and noise
    drawn = draw_masking(everything, 0, range(batch), length, transformer.head)
    num = max(1, math.ceil(share * length))
    num_words = torch.randint(1, shape.text_length + 1, (batch, 1), generator=random)
    given = {
        "latents": torch.randn(batch, shape.latent_channels, cells, cells, generator=random),
        "text_ids": torch.arange(batch)[:, None].expand(-1, shape.text_length),
        "text_mask": torch.arange(shape.text_length) < num_words,
        "ids": list(range(batch)),
        "masking": replace(drawn, time=drawn.time[:, :, :num], noise=drawn.noise[:, :, :num]),
    }
    rank = drawn.order.argsort(dim=1)
    draws = len(drawn.time)
    order = drawn.order.repeat(draws, 1)
    return Case(
        text=torch.randn(batch, shape.text_length, shape.text_width, generator=random),
        batch=given,
        hidden=rank < num,
        time=drawn.time.gather(2, rank.expand(draws, -1, -1)),
        noise=tokens_placed(drawn.noise.flatten(0, 1), order).view_as(drawn.noise),
    )


def exact_loss(student: Student, case: Case) -> torch.Tensor:
    """Loss as training computes it."""
    return MaskedObjective(MaskedConfig())(student, case.batch, 0)[0]


def plain_loss(student: Student, case: Case) -> torch.Tensor:
    """The same loss without any saving: arXiv 2503.08619, eq. 6, as its released code computes it."""
    transformer = student.transformer
    head, tokens = transformer.head, patchify(case.batch["latents"], transformer.shape.patch_size)
    cond = plain_conditions(student, case, tokens)  # [B, L, D]
    embedded = head.embed_cond(cond.repeat(len(case.time), 1, 1)).flatten(0, 1)
    time = case.time[..., None]
    if transformer.shape.prediction == "flow":
        noisy, wanted = (1 - time) * tokens + time * case.noise, case.noise - tokens
        said, _ = head(noisy.flatten(0, 2), 1000 * case.time.flatten(), embedded)
        errors = (_wide(said).view_as(noisy) - wanted).square().mean(dim=-1)
    else:
        level = noise_levels(case.time, case.noise.dtype)
        noisy = level.signal * tokens + level.noise * case.noise
        said, variance = head(noisy.flatten(0, 2), case.time.flatten(), embedded)
        said, variance = _wide(said).view_as(noisy), _wide(variance).view_as(noisy)
        clean = tokens.expand_as(noisy)
        errors = (said - case.noise).square().mean(dim=-1)
        errors = errors + variational_bits(clean, noisy, said.detach(), variance, case.time)
    mask = case.hidden.to(errors.dtype).expand_as(errors)
    return (errors * mask).sum() / mask.sum()


def plain_conditions(student: Student, case: Case, tokens: torch.Tensor) -> torch.Tensor:
    """Conditions [B, L, D] of all tokens [B, L, d]."""
    transformer, shape = student.transformer, student.transformer.shape
    size, length = tokens.shape[:2]
    side = math.isqrt(length)
    is_joint = shape.fusion == "joint"
    known = case.hidden.byte().argsort(dim=1, stable=True)[:, : length - case.batch["masking"].noise.shape[2]]
    tables = [resample_table(transformer.get_parameter(n), (side, side)) for n in transformer.position_names]
    text, text_mask = _texts(student, case)
    memory_mask = text_mask[:, None, None] if shape.text_masked else None
    memories = [block.remember(text, memory_mask) for block in transformer.cross_blocks]

    def call(block: nn.Module, *arguments: Any) -> torch.Tensor:  # noqa: ANN401
        if transformer.gradient_checkpointing and transformer.training:
            return checkpoint(block, *arguments, use_reentrant=False)  # pyright: ignore[reportReturnType]
        return block(*arguments)

    x = transformer.z_proj(tokens.to(text.dtype))
    x = tokens_at(transformer.z_norm(x + tables[0] if tables else x), known)
    x = torch.cat([x, text], dim=1) if is_joint else x
    seen, turned = _around(transformer, text, text_mask, known, side)
    for block in transformer.encoder_blocks:
        x = call(block, x, seen, turned)
    x = transformer.decoder_embed(transformer.encoder_norm(x))
    x, words = x[:, : known.shape[1]], x[:, known.shape[1] :]
    at = known[..., None].expand(-1, -1, x.shape[2])
    x = transformer.mask_token.expand(size, length, -1).scatter(1, at, x)
    x = torch.cat([x + tables[1] if tables else x, words], dim=1)
    everywhere = torch.arange(length, device=known.device).expand(size, -1)
    seen, turned = _around(transformer, text, text_mask, everywhere, side)
    for i, block in enumerate(transformer.decoder_blocks):
        x = call(block, x, seen, turned)
        if shape.fusion == "interleaved":
            x = call(transformer.cross_blocks[i], x, memories[i])
    x = transformer.decoder_norm(x)[:, :length]
    if shape.fusion == "late":
        x = transformer.cross_embed(x)
        x = x + tables[2] if tables else x
        for block, memory in zip(transformer.cross_blocks, memories, strict=True):
            x = call(block, x, memory)
        x = transformer.cross_norm(x)
    return x


def _around(
    transformer: LightGenTransformer, text: torch.Tensor, text_mask: torch.Tensor, at: torch.Tensor, side: int
) -> tuple[torch.Tensor | None, Rotation | None]:
    """Mask and turns of image tokens at positions int [B, N] and, where fusion is joint, the text."""
    is_joint, seen, turned = transformer.shape.fusion == "joint", None, None
    if is_joint and transformer.shape.text_masked:
        seen = torch.cat([torch.ones_like(at, dtype=torch.bool), text_mask], dim=1)[:, None, None]
    if transformer.angle_channels is not None:
        angles = axial_angles(side, side, transformer.angle_channels).to(at.device)[at]
        turned = turns(functional.pad(angles, (0, 0, 0, text.shape[1] if is_joint else 0)), text.dtype)
    return seen, turned


def _texts(student: Student, case: Case) -> tuple[torch.Tensor, torch.Tensor]:
    """Text [B, T, D] and mask [B, T]: all go through the aligner, then some are replaced."""
    transformer, ids, mask = student.transformer, case.batch["text_ids"], case.batch["text_mask"]
    features = student.text_encoder(input_ids=ids, attention_mask=mask).last_hidden_state
    text = transformer.embed_text(features, mask)
    null, null_mask = transformer.null_text_of(*ids.shape)
    kept = torch.zeros_like(ids[:, :1], dtype=torch.bool).index_fill(0, case.batch["masking"].kept, True)
    return torch.where(kept[..., None], text, null.to(text.dtype)), torch.where(kept, mask, null_mask)


def _wide(x: torch.Tensor) -> torch.Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


LOSSES: dict[str, Callable[[Student, Case], torch.Tensor]] = {"exact": exact_loss, "plain": plain_loss}


def build(shape: TransformerConfig, device: str) -> LightGenTransformer:
    """Transformer of random weights; its zero layers too, or gradients would stop at them."""
    with torch.device(device):
        transformer = LightGenTransformer(**asdict(shape))
        head = transformer.head
        for layer in (head.modulation, head.cond_modulation, head.token_out, head.variance_out):
            if layer is not None:
                nn.init.normal_(layer.weight, std=0.02)
    return transformer


def small(shape: TransformerConfig) -> TransformerConfig:
    """A shape of the same kind, small and without dropout."""
    late = shape.fusion == "late"
    return replace(
        shape,
        **{"latent_channels": 2, "width": 16, "num_heads": 2, "encoder_layers": 2, "decoder_layers": 2},
        **{"cross_layers": 0 if shape.fusion == "joint" else 2, "aligner_layers": int(late)},
        **{"text_width": 12, "text_length": 6, "position_grid": 4, "dropout": 0.0},
        **{"head_width": 16, "head_layers": 2},
    )


def differences(shape: TransformerConfig, dtype: torch.dtype) -> tuple[float, float]:
    """How far `plain` is from `exact` on a shape: of the loss, and of the weights' gradients the worst.

    A gradient's error is a share of its norm, or of a thousandth of the whole norm where that is more: some
    are zero but for rounding.
    """
    torch.manual_seed(0)
    transformer = build(shape, "cpu").train()
    nn.Module.to(transformer, dtype)
    case = draw_case(transformer, 6 * UNIT_PX, 4, 0.7, text_drop=0.5).to("cpu", dtype)
    student = Student(transformer, Features(case.text), train_text_encoder=False)
    losses, gradients = [], []
    for loss_of in LOSSES.values():
        student.zero_grad()
        loss = loss_of(student, case)
        loss.backward()
        losses.append(loss.item())
        gradients.append([torch.zeros_like(p) if p.grad is None else p.grad for p in student.parameters()])
    floor = 1e-3 * torch.stack([each.norm() for each in gradients[0]]).norm()
    apart = [(a - b).norm() / a.norm().clamp(min=floor) for a, b in zip(*gradients, strict=True)]
    return abs(losses[1] / losses[0] - 1), max(apart).item()


def check_equality(shape: TransformerConfig) -> None:
    """Assert that both steps are one step, on a small shape of the same kind."""
    for dtype, tolerance in TOLERANCE.items():
        found = differences(small(shape), dtype)
        assert max(found) <= tolerance, f"exact and plain step differ in {dtype}: loss, gradient {found}"
