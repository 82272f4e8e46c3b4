"""The per-token flow head: a small MLP that says where a noisy token should move, given its condition."""

import math

import torch
from torch import nn
from torch.nn import functional

# Shapes: R rows (one token at one time each), d token channels, D width of the condition, M width of the
# head.


class FlowHead(nn.Module):
    """Residual MLP with adaptive normalisation.

    Source: the diffusion MLP of MAR, arXiv 2406.11838, section 3.2, here for flow matching.
    """

    def __init__(self, token_channels: int, cond_width: int, width: int, num_layers: int) -> None:
        super().__init__()
        self.time_width = min(256, width)
        self.time_in = nn.Linear(self.time_width, width)
        self.time_out = nn.Linear(width, width)
        self.cond_in = nn.Linear(cond_width, width)
        self.token_in = nn.Linear(token_channels, width)
        self.blocks = nn.ModuleList(HeadBlock(width) for _ in range(num_layers))
        self.norm = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.modulation = nn.Linear(width, 2 * width)
        self.token_out = nn.Linear(width, token_channels)
        for layer in (self.modulation, self.token_out):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def embed_cond(self, cond: torch.Tensor) -> torch.Tensor:
        """Condition as the head uses it [..., M]; once per token, shared by all its times and steps."""
        return self.cond_in(cond)

    def forward(self, noisy: torch.Tensor, time: torch.Tensor, cond: torch.Tensor) -> torch.Tensor:
        """Velocity [R, d] (noise minus token) of noisy tokens [R, d].

        Args:
            noisy: tokens between clean and noise.
            time: [R] or [1], in [0, 1]; 0 = clean, 1 = pure noise.
            cond: [R, M] from `embed_cond`.
        """
        dtype = self.token_in.weight.dtype
        embedded = time_features(time, self.time_width).to(dtype)
        y = functional.silu(self.time_out(functional.silu(self.time_in(embedded))) + cond)
        x = self.token_in(noisy.to(dtype))
        for block in self.blocks:
            x = block(x, y)
        shift, scale = self.modulation(y).chunk(2, dim=-1)
        return self.token_out(self.norm(x) * (1 + scale) + shift)


class HeadBlock(nn.Module):
    """Normalise, modulate, two linear layers, gate; starts as the identity."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.fc1 = nn.Linear(width, width)
        self.fc2 = nn.Linear(width, width)
        self.modulation = nn.Linear(width, 3 * width)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Return x [R, M] changed as y [R, M] (time and condition, activated) says."""
        shift, scale, gate = self.modulation(y).chunk(3, dim=-1)
        hidden = self.norm(x) * (1 + scale) + shift
        return x + gate * self.fc2(functional.silu(self.fc1(hidden)))


def time_features(time: torch.Tensor, channels: int) -> torch.Tensor:
    """Sines and cosines [R, channels] of time [R] in [0, 1], in fp32 whatever autocast says."""
    half = channels // 2
    frequency = torch.exp(
        -math.log(10_000) * torch.arange(half, device=time.device, dtype=torch.float32) / half
    )
    angles = 1000 * time.float()[:, None] * frequency
    return torch.cat([angles.cos(), angles.sin()], dim=-1)
