"""The LightGen transformer: masked tokens predicted from the known ones and from text."""

from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import nn
from torch.utils.checkpoint import checkpoint

from lightgen.models.blocks import (
    Block,
    BlockConfig,
    CrossBlock,
    Layers,
    PlainMLP,
    Projected,
    Residual,
    layer_norm,
    stack,
)
from lightgen.models.cache import TrunkCache
from lightgen.models.head import Head, HeadConditioning, Prediction
from lightgen.models.initial import draw_weights
from lightgen.models.layout import NO_TEXT, Context, Layout, joined, prefix_angles
from lightgen.models.positions import axial_angles, resample_table, turns
from lightgen.models.route import Detour, Route
from lightgen.models.shape import Fusion, Positions, TextPositions, TransformerConfig

# Shapes: B batch, L image tokens, K known, U unknown, P predicted now, N some, T text tokens, D width,
# d token channels. Ranks: see `lightgen.models.layout`.

_STAGES = ("encoder_positions", "decoder_positions", "cross_positions")


class LightGenTransformer(ModelMixin, ConfigMixin):
    """Masked encoder-decoder over continuous tokens, with a small generative head per token.

    The encoder sees known tokens, the decoder all of them, a learned vector standing for the unknown. The
    grid is an argument: the size of a picture is no part of the model. Arguments: see `TransformerConfig`.

    Raises:
        ValueError: arguments that do not fit together.
    """

    _supports_gradient_checkpointing = True

    @register_to_config
    def __init__(
        self,
        latent_channels: int = 16,
        patch_size: int = 2,
        sample_size: int = 16,
        width: int = 256,
        num_heads: int = 8,
        encoder_layers: int = 4,
        decoder_layers: int = 6,
        cross_layers: int = 0,
        aligner_layers: int = 0,
        text_width: int = 256,
        text_length: int = 64,
        fusion: Fusion = "joint",
        cross_residual: Residual = "prenorm",
        text_masked: bool = True,
        layers: Layers = "gated",
        positions: Positions = "rotary",
        text_positions: TextPositions = "none",
        registers: int = 0,
        position_grid: int = 16,
        position_step: float = 1.0,
        dropout: float = 0.0,
        prediction: Prediction = "flow",
        head_conditioning: HeadConditioning = "joint",
        head_width: int = 256,
        head_layers: int = 3,
    ) -> None:
        super().__init__()
        self.shape = TransformerConfig(**{x.name: self.config[x.name] for x in fields(TransformerConfig)})
        self.shape.check()
        block = BlockConfig(width=width, num_heads=num_heads, layers=layers, dropout=dropout)
        plain, late = layers == "plain", fusion == "late"
        self.gradient_checkpointing = False
        self.token_channels = latent_channels * patch_size**2
        self.angle_channels = width // num_heads // 2 if positions == "rotary" else None
        self.text_proj = (
            PlainMLP(text_width, width, width, approximate="tanh")
            if aligner_layers
            else nn.Linear(text_width, width, bias=plain)
        )
        self.aligner_blocks: Sequence[Block] = stack(Block(block) for _ in range(aligner_layers))
        self.text_norm = layer_norm(block)
        self.null_text = nn.Parameter(torch.empty(width))
        self.z_proj = nn.Linear(self.token_channels, width)
        self.z_norm = layer_norm(block) if plain else nn.Identity()
        self.encoder_blocks: Sequence[Block] = stack(Block(block) for _ in range(encoder_layers))
        self.encoder_norm = layer_norm(block) if plain else nn.Identity()
        self.decoder_embed = nn.Linear(width, width) if plain else nn.Identity()
        self.mask_token = nn.Parameter(torch.empty(width))
        self.decoder_blocks: Sequence[Block] = stack(Block(block) for _ in range(decoder_layers))
        self.decoder_norm = layer_norm(block)
        self.cross_embed = nn.Linear(width, width) if plain and late else nn.Identity()
        self.cross_blocks: Sequence[CrossBlock] = stack(
            CrossBlock(block, cross_residual) for _ in range(cross_layers)
        )
        self.cross_norm = layer_norm(block) if late else nn.Identity()
        self.head = Head(self.token_channels, width, head_width, head_layers, prediction, head_conditioning)
        self.position_names = _STAGES[: 3 if late else 2] if positions == "learned" else ()
        for name in self.position_names:
            self.register_parameter(name, nn.Parameter(torch.empty(position_grid**2, width)))
        if registers:
            self.register_tokens = nn.Parameter(torch.empty(registers, width))
        vectors = (
            "null_text",
            "mask_token",
            *self.position_names,
            *(("register_tokens",) if registers else ()),
        )
        draw_weights(self, vectors, plain)

    def embed_text(self, text: torch.Tensor, text_mask: torch.Tensor) -> torch.Tensor:
        """Text as image tokens see it [B, T, D].

        Args:
            text: encoder features [B, T, text_width].
            text_mask: bool [B, T], True = real token.
        """
        x = self.text_proj(text.to(self.null_text.dtype))
        for block in self.aligner_blocks:
            x = self._call(block, x, self._text_mask(text_mask))
        return self.text_norm(x)

    def context(self, text: torch.Tensor, text_mask: torch.Tensor) -> Context:
        """What image tokens read of texts [B, T, D] under masks bool [B, T]; once, for all iterations."""
        if self.shape.fusion == "joint":
            count, angles, rotation = self.shape.registers, None, None
            seen = text_mask if self.shape.text_masked else torch.ones_like(text_mask)
            if self.angle_channels is not None:
                placed = self.shape.text_positions == "rotary"
                angles = prefix_angles(seen, self.angle_channels, placed=placed, registers=count)
                rotation = turns(angles, text.dtype)
            if count:
                seen = nn.functional.pad(seen, (count, 0), value=True)
                text = torch.cat([self.register_tokens.to(text.dtype).expand(len(text), -1, -1), text], dim=1)
            prefix_mask = seen if self.shape.text_masked else None
            return Context(self.encoder_blocks[0].project(text, rotation), prefix_mask, (), angles)
        mask = self._text_mask(text_mask)
        return Context(None, None, tuple(block.remember(text, mask) for block in self.cross_blocks))

    def null_text_of(self, batch: int, num_text: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The learned "no text" as text [B, T, D] and mask bool [B, T] of one token."""
        mask = torch.arange(num_text, device=self.null_text.device) == 0
        return self.null_text.expand(batch, num_text, -1), mask.expand(batch, -1)

    def null_context(self) -> Context:
        """What any image's tokens read where there is no text: constants; not for joint fusion."""
        return Context(None, None, tuple(block.constant(self.null_text) for block in self.cross_blocks))

    def lay_out(self, order: torch.Tensor, grid: tuple[int, int]) -> Layout:
        """Layout of pictures of grid rows x columns with the positions `order`, int [B, L], by rank."""
        angles = None
        if self.angle_channels is not None:
            angles = axial_angles(*grid, self.angle_channels, self.shape.position_step).to(order.device)
        tables = tuple(resample_table(self.get_parameter(name), grid) for name in self.position_names)
        x = self.mask_token.expand(1, grid[0] * grid[1], -1)
        if tables:
            x = x + tables[1]
        rotation = None if angles is None else turns(angles[None], x.dtype)
        door = self.decoder_blocks[0].project(x, rotation)
        flat = tuple(each.transpose(1, 2).flatten(2)[0] for each in door[1:])
        return Layout(order, self.shape.num_heads, angles, tables, (door.x[0], *flat))

    def enter(self, tokens: torch.Tensor, layout: Layout, rank: int) -> Projected:
        """Clean tokens [B, N, d] of ranks from `rank` on, at the door of the encoder's first block."""
        end = rank + tokens.shape[1]
        x = self.z_proj(tokens.to(self.z_proj.weight.dtype))
        if layout.tables:
            x = x + layout.table(0, rank, end)
        x = self.z_norm(x)
        return self.encoder_blocks[0].project(x, layout.rotation(rank, end, x.dtype))

    def encode(
        self,
        known: Projected,
        layout: Layout,
        unknown: int,
        context: Context = NO_TEXT,
        cache: TrunkCache | None = None,
    ) -> torch.Tensor:
        """Encoded tokens [B, N, D]: the known ones given and, if all are and fusion is joint, the text after.

        Args:
            known: from `enter`, tokens of ranks from `unknown` on: all known ones, or the newest, where the
                cache holds the others and the text.
            layout: from `lay_out`.
            unknown: U.
            context: the text; needed where fusion is joint.
            cache: of earlier iterations.
        """
        length, end = layout.order.shape[1], unknown + known.x.shape[1]
        prefix = context.prefix if end == length else None
        mask = context.attendable(length - unknown)
        angles, total = context.angles if end == length else None, length + context.num_text
        door = known if prefix is None else joined(known, prefix)
        x = door.x
        if not x.shape[1]:
            return x
        rotation = layout.rotation(unknown, end, x.dtype, angles)
        for i, block in enumerate(self.encoder_blocks):
            if cache is None and i:
                x = self._call(block, x, mask, rotation)
                continue
            door = block.project(x, rotation) if i else door
            if cache is not None:
                k, v = cache.put(f"encoder.{i}", unknown, total, door.k, door.v)
                door = door._replace(k=k[:, :, unknown:], v=v[:, :, unknown:])
            x = self._call(block.update, door, mask)
        return self.encoder_norm(x)

    def decode(
        self,
        encoded: torch.Tensor,
        layout: Layout,
        ranks: tuple[int, int, int],
        context: Context = NO_TEXT,
        cache: TrunkCache | None = None,
        route: Route | None = None,
    ) -> torch.Tensor:
        """Decoded tokens [B, P, D] of ranks left to unknown.

        Args:
            encoded: from `encode`.
            layout: from `lay_out`.
            ranks: (first, left, unknown): mask tokens from rank `first` on enter, those from `left` to
                `unknown` are predicted; first is 0 unless the cache holds the ranks below.
            context: the text; needed unless fusion is late.
            cache: of earlier iterations.
            route: some blocks that a share of the tokens skips, where there is no cache.
        """
        (first, left, unknown), length = ranks, layout.order.shape[1]
        end = min(unknown + encoded.shape[1], length)
        x = self.decoder_embed(encoded)
        num_text = unknown + encoded.shape[1] - end
        angles = context.angles if num_text else None
        if layout.tables:
            x = x + nn.functional.pad(layout.table(1, unknown, end), (0, 0, 0, num_text))
        door = joined(
            layout.unknown_at(first, unknown),
            self.decoder_blocks[0].project(x, layout.rotation(unknown, end, x.dtype, angles)),
        )
        mask = context.attendable(length)
        rotation = layout.rotation(first, end, x.dtype, angles)
        x, last = door.x, len(self.decoder_blocks) - 1
        predicted = slice(left - first, unknown - first)
        detour = None if route is None else Detour(route, unknown, length)
        for i, block in enumerate(self.decoder_blocks):
            if detour is not None:
                x, mask, rotation = detour.at(i, x, mask, rotation)
            if cache is None and 0 < i < last:
                x = self._call(block, x, mask, rotation)
            else:
                if i:
                    door = block.project(x, rotation, predicted if i == last else None)
                elif i == last:
                    door = door._replace(x=door.x[:, predicted], q=door.q[:, :, predicted])
                if cache is not None:
                    k, v = cache.put(f"decoder.{i}", first, length + context.num_text, door.k, door.v)
                    door = door._replace(k=k, v=v)
                x = self._call(block.update, door, mask)
            if self.shape.fusion == "interleaved":
                x = self._call(self.cross_blocks[i], x, context.memories[i])
        return self.decoder_norm(x)

    def fuse(self, x: torch.Tensor, layout: Layout, left: int, context: Context) -> torch.Tensor:
        """Conditions [B, P, D] of decoded tokens [B, P, D] of ranks from `left` on: the late stage if any."""
        if self.shape.fusion != "late":
            return x
        x = self.cross_embed(x)
        if layout.tables:
            x = x + layout.table(2, left, left + x.shape[1])
        for block, memory in zip(self.cross_blocks, context.memories, strict=True):
            x = self._call(block, x, memory)
        return self.cross_norm(x)

    def forward(
        self,
        known: torch.Tensor,
        order: torch.Tensor,
        text: torch.Tensor,
        text_mask: torch.Tensor,
        grid: tuple[int, int],
        left: int = 0,
        route: Route | None = None,
    ) -> torch.Tensor:
        """Condition [B, P, D] of the tokens to predict, those of ranks left to U = L - K.

        Args:
            known: clean tokens [B, K, d] of the last K ranks.
            order: position of each rank, int [B, L].
            text: from `embed_text`, [B, T, D].
            text_mask: bool [B, T].
            grid: rows and columns of tokens.
            left: ranks below stay unknown.
            route: of some tokens round some blocks of the decoder.
        """
        unknown = order.shape[1] - known.shape[1]
        layout, context = self.lay_out(order, grid), self.context(text, text_mask)
        encoded = self.encode(self.enter(known, layout, unknown), layout, unknown, context)
        decoded = self.decode(encoded, layout, (0, left, unknown), context, route=route)
        return self.fuse(decoded, layout, left, context)

    def _text_mask(self, text_mask: torch.Tensor) -> torch.Tensor | None:
        return text_mask[:, None, None] if self.shape.text_masked else None

    def _call(self, function: Callable[..., torch.Tensor], *arguments: Any) -> torch.Tensor:  # noqa: ANN401
        """What the function gives; in training with checkpointing, its inner values are made anew later."""
        if self.gradient_checkpointing and self.training:
            return checkpoint(function, *arguments, use_reentrant=False)  # pyright: ignore[reportReturnType]
        return function(*arguments)
