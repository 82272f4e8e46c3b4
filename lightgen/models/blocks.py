"""Transformer layers: self-attention with an MLP, and attention to the text with an MLP.

LayerNorm, not RMSNorm: PyTorch fuses its forward and backward pass on every device.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import nn
from torch.nn import functional

from lightgen.models.positions import Rotation, rotate

# Shapes: B batch, N tokens of a sequence, M tokens attended to, D width, A heads, E = D / A head width.

Layers = Literal["gated", "plain"]
Residual = Literal["normed", "prenorm"]


@dataclass(frozen=True, kw_only=True)
class BlockConfig:
    """Shape of a layer.

    Attributes:
        layers: `plain` as released (biases, GELU MLP of ratio 4), or `gated` (normalised queries and keys,
            SwiGLU MLP of about the same cost, no biases).
        dropout: of attention weights, of what attention gives, and inside and after the MLP.
    """

    width: int
    num_heads: int
    layers: Layers = "gated"
    dropout: float = 0.0


class Projected(NamedTuple):
    """Tokens at the door of a block: x [B, N, D] with queries, keys and values [B, A, N, E] made of them."""

    x: torch.Tensor
    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor


class Attention(nn.Module):
    """Attention in three steps, so that each is paid only for the tokens that need it.

    With gated layers queries and keys are normalised (arXiv 2010.04245); one learned scale serves both.
    """

    def __init__(self, config: BlockConfig) -> None:
        super().__init__()
        width, bias = config.width, config.layers == "plain"
        assert width % config.num_heads == 0, config
        self.num_heads = config.num_heads
        self.q = nn.Linear(width, width, bias=bias)
        self.kv = nn.Linear(width, 2 * width, bias=bias)
        self.scale_q = None if bias else nn.Parameter(torch.ones(width // config.num_heads))
        self.proj = nn.Linear(width, width, bias=bias)
        self.drop = nn.Dropout(config.dropout)

    def queries(self, x: torch.Tensor, rotation: Rotation | None = None) -> torch.Tensor:
        """Queries [B, A, N, E] of x [B, N, D], turned by cosine and sine [B, 1, N, E/2]; None = no turn."""
        q = self.q(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        if self.scale_q is not None:
            # Under autocast the normalisation gives fp32; attention takes one dtype.
            q = (functional.layer_norm(q, q.shape[-1:]) * self.scale_q).to(q.dtype)
        return q if rotation is None else rotate(q, *rotation).to(q.dtype)

    def keys_values(
        self, x: torch.Tensor, rotation: Rotation | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values, each [B, A, N, E], of x [B, N, D]; rotation as in `queries`."""
        k, v = self.kv(x).unflatten(-1, (2, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        if self.scale_q is not None:
            k = functional.layer_norm(k, k.shape[-1:]).to(v.dtype)
        return (k if rotation is None else rotate(k, *rotation).to(v.dtype)), v

    def attend(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None
    ) -> torch.Tensor:
        """Attended tokens [B, N, D] of queries [B, A, N, E] among keys and values [B, A, M, E].

        Args:
            q: queries.
            k: keys.
            v: values.
            mask: bool [B, 1, 1, M], True = may be attended to; None = all may.
        """
        dropout = self.drop.p if self.drop.training else 0.0
        x = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)
        return self.output(x.transpose(1, 2).flatten(2))

    def output(self, values: torch.Tensor) -> torch.Tensor:
        """What attention gives [B, N, D] of mixed values [B, N, D]."""
        return self.drop(self.proj(values))


class GatedMLP(nn.Module):
    """SwiGLU MLP of about the cost of a plain one with ratio 4. Source: arXiv 2002.05202, eq. 6."""

    def __init__(self, width: int, dropout: float = 0.0) -> None:
        super().__init__()
        hidden = 64 * max(1, round(8 * width / 3 / 64))
        self.fc1 = nn.Linear(width, 2 * hidden, bias=False)
        self.fc2 = nn.Linear(hidden, width, bias=False)
        self.drop = nn.Dropout(dropout)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Transformed tokens, shape of x."""
        value, gate = self.fc1(x).chunk(2, dim=-1)
        return self.drop(self.fc2(self.drop(functional.silu(gate) * value)))


class PlainMLP(nn.Module):
    """GELU MLP of ratio 4, by default with the exact GELU."""

    def __init__(
        self, inputs: int, hidden: int, outputs: int, dropout: float = 0.0, approximate: str = "none"
    ) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(inputs, hidden), nn.Linear(hidden, outputs)
        self.drop, self.approximate = nn.Dropout(dropout), approximate

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Transformed tokens [..., outputs] of x [..., inputs]."""
        x = functional.gelu(self.fc1(x), approximate=self.approximate)
        return self.drop(self.fc2(self.drop(x)))


class Block(nn.Module):
    """Pre-norm self-attention and MLP."""

    def __init__(self, config: BlockConfig) -> None:
        super().__init__()
        self.norm1 = layer_norm(config)
        self.attn = Attention(config)
        self.norm2 = layer_norm(config)
        self.mlp = _mlp(config)

    def project(
        self, x: torch.Tensor, rotation: Rotation | None = None, wanted: slice | None = None
    ) -> Projected:
        """Tokens x [B, N, D] with their queries, keys and values; x and queries of those wanted alone."""
        normed = self.norm1(x)
        k, v = self.attn.keys_values(normed, rotation)
        if wanted is not None:
            x, normed = x[:, wanted], normed[:, wanted]
            rotation = None if rotation is None else (rotation[0][:, :, wanted], rotation[1][:, :, wanted])
        return Projected(x, self.attn.queries(normed, rotation), k, v)

    def update(self, projected: Projected, mask: torch.Tensor | None) -> torch.Tensor:
        """Transformed tokens [B, N, D]; keys and values may be of more tokens than x and the queries."""
        x = projected.x + self.attn.attend(*projected[1:], mask)
        return x + self.mlp(self.norm2(x))

    def forward(
        self, x: torch.Tensor, mask: torch.Tensor | None = None, rotation: Rotation | None = None
    ) -> torch.Tensor:
        """Transformed sequence [B, N, D]; mask as in `Attention.attend`."""
        return self.update(self.project(x, rotation), mask)


class TextMemory(NamedTuple):
    """What a cross block keeps of a text: keys and values [B, A, T, E] and mask bool [B, 1, 1, T] or None."""

    k: torch.Tensor
    v: torch.Tensor
    mask: torch.Tensor | None


class CrossBlock(nn.Module):
    """Attention to the text and MLP; image tokens do not see each other.

    Args:
        config: shape of the layer.
        residual: what attention is added to: the `normed` query, as released, or the stream (`prenorm`).
    """

    def __init__(self, config: BlockConfig, residual: Residual) -> None:
        super().__init__()
        self.residual = residual
        self.norm_q, self.norm_kv = layer_norm(config), layer_norm(config)
        self.attn = Attention(config)
        self.norm2 = layer_norm(config)
        self.mlp = _mlp(config)

    def remember(self, text: torch.Tensor, mask: torch.Tensor | None) -> TextMemory:
        """Keys and values of text [B, T, D] under mask bool [B, 1, 1, T]."""
        return TextMemory(*self.attn.keys_values(self.norm_kv(text)), mask)

    def constant(self, text: torch.Tensor) -> torch.Tensor:
        """What attention gives [1, 1, D] where all text tokens equal the vector `text` [D].

        Equal keys get equal weights, so that the mix of values is their one value, whatever the query.
        """
        _, v = self.attn.keys_values(self.norm_kv(text[None, None]))
        return self.attn.output(v.transpose(1, 2).flatten(2))

    def forward(self, x: torch.Tensor, memory: TextMemory | torch.Tensor) -> torch.Tensor:
        """Transformed tokens [B, N, D] that read a remembered text, or a constant [1, 1, D]."""
        normed = self.norm_q(x)
        base = normed if self.residual == "normed" else x
        if isinstance(memory, torch.Tensor):
            x = base + memory
        else:
            x = base + self.attn.attend(self.attn.queries(normed), *memory)
        return x + self.mlp(self.norm2(x))


def stack(blocks: Iterable[nn.Module]) -> Any:  # noqa: ANN401  (typed by who names it)
    """Module that holds blocks and is read as a sequence of them."""
    return nn.ModuleList(blocks)


def layer_norm(config: BlockConfig) -> nn.LayerNorm:
    """LayerNorm of the config's width, with a bias in plain layers only."""
    return nn.LayerNorm(config.width, eps=1e-6, bias=config.layers == "plain")


def _mlp(config: BlockConfig) -> GatedMLP | PlainMLP:
    if config.layers == "gated":
        return GatedMLP(config.width, config.dropout)
    return PlainMLP(config.width, 4 * config.width, config.width, config.dropout)
