"""Transformer layers: attention with QK-norm and 2-D rotary positions, and a gated MLP.

LayerNorm, not RMSNorm: PyTorch fuses its forward and backward pass on every device.
"""

import torch
from torch import nn
from torch.nn import functional

# Shapes: B batch, N tokens of a sequence, D width, A heads, E = D / A head width.


class Attention(nn.Module):
    """Self-attention with normalised queries and keys (arXiv 2010.04245); one learned scale serves both."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        assert width % num_heads == 0, (width, num_heads)
        self.num_heads = num_heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.scale_q = nn.Parameter(torch.ones(width // num_heads))
        self.proj = nn.Linear(width, width, bias=False)

    def forward(
        self, x: torch.Tensor, mask: torch.Tensor | None, rotation: tuple[torch.Tensor, torch.Tensor] | None
    ) -> torch.Tensor:
        """Attended sequence [B, N, D].

        Args:
            x: [B, N, D].
            mask: bool [B, 1, 1, N], True = may be attended to; None = all may.
            rotation: cosine and sine [B, 1, N, E/2] of each token's position; None = no positions.
        """
        batch, length, width = x.shape
        channels = width // self.num_heads
        qkv = self.qkv(x).view(batch, length, 3, self.num_heads, channels).permute(2, 0, 3, 1, 4)
        qk = functional.layer_norm(qkv[:2], (channels,))  # [2, B, A, N, E]
        q, k, v = qk[0] * self.scale_q, qk[1], qkv[2]
        if rotation is not None:
            q, k = rotate(q, *rotation), rotate(k, *rotation)
        # Under autocast the normalisation gives fp32; attention takes one dtype.
        q, k = q.to(v.dtype), k.to(v.dtype)
        x = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.proj(x.transpose(1, 2).reshape(batch, length, width))


class GatedMLP(nn.Module):
    """SwiGLU MLP of about the cost of a plain one with ratio 4. Source: arXiv 2002.05202, eq. 6."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, 2 * hidden, bias=False)
        self.fc2 = nn.Linear(hidden, width, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Transformed tokens, shape of x."""
        value, gate = self.fc1(x).chunk(2, dim=-1)
        return self.fc2(functional.silu(gate) * value)


class Block(nn.Module):
    """Pre-norm attention and gated MLP."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6, bias=False)
        self.attn = Attention(width, num_heads)
        self.norm2 = nn.LayerNorm(width, eps=1e-6, bias=False)
        self.mlp = GatedMLP(width, 64 * round(8 * width / 3 / 64))

    def forward(
        self, x: torch.Tensor, mask: torch.Tensor | None, rotation: tuple[torch.Tensor, torch.Tensor] | None
    ) -> torch.Tensor:
        """Transformed sequence [B, N, D]; arguments as in `Attention`."""
        x = x + self.attn(self.norm1(x), mask, rotation)
        return x + self.mlp(self.norm2(x))


def rotate(x: torch.Tensor, cosine: torch.Tensor, sine: torch.Tensor) -> torch.Tensor:
    """Return x [..., B, A, N, E] with its channel pairs (i, i + E/2) turned by angles [B, 1, N, E/2].

    Source: rotary positions, arXiv 2104.09864, eq. 34; two axes share the channels as in arXiv 2403.13298.
    """
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cosine - second * sine, second * cosine + first * sine], dim=-1)


def axial_angles(height: int, width: int, channels: int, base: float = 100.0) -> torch.Tensor:
    """Angles [height * width, channels], row-major: half of the channels turn with y, half with x."""
    per_axis = channels // 2
    frequency = base ** (-torch.arange(per_axis, dtype=torch.float32) / per_axis)
    y = torch.arange(height, dtype=torch.float32)[:, None, None] * frequency
    x = torch.arange(width, dtype=torch.float32)[None, :, None] * frequency
    grid = torch.cat([y.expand(height, width, -1), x.expand(height, width, -1)], dim=-1)
    return grid.flatten(0, 1)
