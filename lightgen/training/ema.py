"""Exponential moving average of weights, in fp32."""

from collections.abc import Mapping

import torch


class Ema:
    """Average of named tensors in fp32; starts as a copy."""

    def __init__(self, tensors: Mapping[str, torch.Tensor], decay: float) -> None:
        self._decay = decay
        self.tensors = {n: t.detach().float().clone() for n, t in tensors.items()}

    @torch.no_grad()
    def update(self, tensors: Mapping[str, torch.Tensor], step: int) -> None:
        """Move towards the tensors after optimizer step `step` (from 0); one pass over all of them.

        Early averages forget faster, with decay (1 + step) / (10 + step), or the start would weigh for
        1/(1-decay) steps.
        """
        decay = min(self._decay, (1 + step) / (10 + step))
        values = [tensors[name].detach().float() for name in self.tensors]
        averages = list(self.tensors.values())
        torch._foreach_lerp_(averages, values, 1 - decay)  # pyright: ignore[reportPrivateImportUsage]
