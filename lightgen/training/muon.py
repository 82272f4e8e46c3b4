"""Muon with its iteration in a type that the device multiplies fast."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch

from lightgen.core.device import multiplies_bf16

# A quintic iteration steep at zero, so that few rounds bring all singular values near 1.
# Source: arXiv 2502.16982, section 2.1.
_A, _B, _C = 3.4445, -4.7750, 2.0315
_ROUNDS = 5


class Muon(torch.optim.Optimizer):
    """Momentum whose updates are made orthogonal, for matrices, at rates on AdamW's scale.

    What `torch.optim.Muon` does with `match_rms_adamw`, which iterates in bf16 everywhere: on processors
    that do not multiply bf16 a step of the nano model then takes ten seconds. Here they iterate in fp32.

    Args:
        params: matrices.
        lr: rate on AdamW's scale.
        weight_decay: decoupled.
        momentum: of the average of gradients, with Nesterov's look ahead.

    Source: arXiv 2502.16982, eq. 4.
    """

    def __init__(
        self, params: Iterable[torch.Tensor], lr: float, weight_decay: float, momentum: float = 0.95
    ) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """One update of every matrix that has a gradient; no closure is called."""
        assert closure is None
        for group in self.param_groups:
            lr, momentum = group["lr"], group["momentum"]
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                state = self.state[weight]
                if "momentum_buffer" not in state:
                    state["momentum_buffer"] = torch.zeros_like(weight.grad)
                mean = state["momentum_buffer"].lerp_(weight.grad, 1 - momentum)
                update = orthogonal(weight.grad.lerp(mean, momentum))
                weight.mul_(1 - lr * group["weight_decay"])
                weight.add_(update, alpha=-lr * 0.2 * math.sqrt(max(weight.shape)))


def orthogonal(matrix: torch.Tensor) -> torch.Tensor:
    """A matrix of the same singular vectors whose larger singular values all become about 1."""
    x = matrix.bfloat16() if multiplies_bf16(matrix.device) else matrix.float()
    is_tall = x.shape[0] > x.shape[1]
    x = x.T if is_tall else x
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(_ROUNDS):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=_B, alpha=_C), x, beta=_A)
    return x.T if is_tall else x
