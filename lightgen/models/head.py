"""The per-token head: a small MLP that says which noise, velocity or clean token a noisy token holds."""

import math
from typing import Literal

import torch
from torch import nn
from torch.nn import functional

# Shapes: R rows (one token at one time each), d token channels, D width of the condition, M of the head;
# *: M, or, in an additive head, the width of all modulations.

Prediction = Literal["flow", "ddpm", "flow_x"]
HeadConditioning = Literal["joint", "additive"]

TIME_WIDTH = 256


class Head(nn.Module):
    """Residual MLP with adaptive normalisation.

    Source: the diffusion MLP of MAR, arXiv 2406.11838, section 3.2.

    Args:
        token_channels: d.
        cond_width: D.
        width: M.
        num_layers: residual blocks.
        prediction: `flow` gives a velocity; `flow_x` the clean token; `ddpm` noise and, from a second output,
            its variance.
        conditioning: `joint`: modulations are a linear map of silu(time + condition), as released;
            `additive`: of silu(time) plus of silu(condition), so that both halves can be made ahead of time.
    """

    def __init__(
        self,
        token_channels: int,
        cond_width: int,
        width: int,
        num_layers: int,
        prediction: Prediction = "flow",
        conditioning: HeadConditioning = "joint",
    ) -> None:
        super().__init__()
        self.conditioning = conditioning
        self.time_in = nn.Linear(TIME_WIDTH, width)
        self.time_out = nn.Linear(width, width)
        self.cond_in = nn.Linear(cond_width, width)
        self.token_in = nn.Linear(token_channels, width)
        self.blocks = nn.ModuleList(HeadBlock(width) for _ in range(num_layers))
        self.norm = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        # shift, scale and gate of every block, then shift and scale of the last normalisation: one product
        self.modulation = nn.Linear(width, (3 * num_layers + 2) * width)
        self.cond_modulation = (
            nn.Linear(width, (3 * num_layers + 2) * width, bias=False) if conditioning == "additive" else None
        )
        self.token_out = nn.Linear(width, token_channels)
        self.variance_out = nn.Linear(width, token_channels) if prediction == "ddpm" else None
        for layer in (self.modulation, self.cond_modulation, self.token_out, self.variance_out):
            if layer is not None:
                for parameter in layer.parameters():
                    nn.init.zeros_(parameter)

    def embed_time(self, time: torch.Tensor) -> torch.Tensor:
        """Times as `forward` adds them to conditions [R, *], of time [R] in [0, 1000]; 1000 = pure noise."""
        features = time_features(time, TIME_WIDTH).to(self.time_in.weight.dtype)
        embedded = self.time_out(functional.silu(self.time_in(features)))
        return embedded if self.cond_modulation is None else self.modulation(functional.silu(embedded))

    def embed_cond(self, cond: torch.Tensor) -> torch.Tensor:
        """Conditions as `forward` takes them [..., *], of cond [..., D]: once per token for all its times."""
        embedded = self.cond_in(cond)
        return embedded if self.cond_modulation is None else self.cond_modulation(functional.silu(embedded))

    def hidden(self, noisy: torch.Tensor, time: torch.Tensor, cond: torch.Tensor) -> torch.Tensor:
        """Last hidden rows [R, M], from which `token_out` and `variance_out` read.

        Args:
            noisy: tokens between clean and noise [r, d], where R is a multiple of r: from row r on come the
                same tokens under further conditions.
            time: [R, *] or [1, *] from `embed_time`.
            cond: [R, *] from `embed_cond`.
        """
        x = self.token_in(noisy.to(self.token_in.weight.dtype))
        if len(cond) > len(x):
            x = x.repeat(len(cond) // len(x), 1)
        modulation = time + cond
        if self.cond_modulation is None:
            modulation = self.modulation(functional.silu(modulation))
        *chunks, shift, scale = modulation.chunk(3 * len(self.blocks) + 2, dim=-1)
        for i, block in enumerate(self.blocks):
            x = block(x, *chunks[3 * i : 3 * i + 3])
        return self.norm(x) * (1 + scale) + shift

    def forward(
        self, noisy: torch.Tensor, time: torch.Tensor, cond: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Prediction [R, d] (see `Head`) and variance output [R, d] (ddpm only) of noisy tokens.

        Args:
            noisy: [R, d].
            time: [R] in [0, 1000].
            cond: [R, *] from `embed_cond`.
        """
        hidden = self.hidden(noisy, self.embed_time(time), cond)
        return self.token_out(hidden), None if self.variance_out is None else self.variance_out(hidden)


class HeadBlock(nn.Module):
    """Normalise, modulate, two linear layers, gate; starts as the identity."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.fc1 = nn.Linear(width, width)
        self.fc2 = nn.Linear(width, width)

    def forward(
        self, x: torch.Tensor, shift: torch.Tensor, scale: torch.Tensor, gate: torch.Tensor
    ) -> torch.Tensor:
        """Return x [R, M] changed as shift, scale and gate [R, M] say."""
        hidden = self.norm(x) * (1 + scale) + shift
        return x + gate * self.fc2(functional.silu(self.fc1(hidden)))


def time_features(time: torch.Tensor, channels: int) -> torch.Tensor:
    """Cosines and sines [R, channels] of time [R] in [0, 1000], in fp32 whatever autocast says."""
    half = channels // 2
    frequency = torch.exp(
        -math.log(10_000) * torch.arange(half, device=time.device, dtype=torch.float32) / half
    )
    angles = time.float()[:, None] * frequency
    return torch.cat([angles.cos(), angles.sin()], dim=-1)
