"""Optimizers: AdamW, or Muon for the matrices of blocks with AdamW for everything else."""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from lightgen.core.errors import UserError
from lightgen.training.muon import Muon


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """Optimizer and its numbers.

    Attributes:
        name: `muon` orthogonalises the updates of all matrices inside blocks (parameter names holding
            `block`); embeddings, in- and output layers, norms and biases stay with AdamW.
        lr, muon_lr: peak rates of the AdamW and of the Muon part, both on AdamW's scale.
        weight_decay: on matrices only.

    Source: decoupled decay and betas as in arXiv 2503.08619, section 5.1; Muon: arXiv 2502.16982, eq. 4.
    """

    name: Literal["adamw", "muon"] = "adamw"
    lr: float = 1e-3
    muon_lr: float = 2e-3
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.02

    def check(self) -> None:
        """Raises UserError: a number out of range."""
        rates = (self.lr, self.muon_lr, self.weight_decay)
        if min(rates) < 0 or not all(0 <= beta < 1 for beta in self.betas):
            got = f"lr {self.lr}, muon_lr {self.muon_lr}, weight_decay {self.weight_decay}"
            allowed = "rates from 0, betas from 0 to below 1"
            raise UserError(f"optimizer: got {got}, betas {self.betas}, allowed: {allowed}")


class Optimizer:
    """The optimizers of one learner's weights behind one step; state is saved by the weights' names."""

    def __init__(self, config: OptimizerConfig, weights: Mapping[str, nn.Parameter]) -> None:
        named = list(weights.items())
        use_muon = config.name == "muon"
        # A table of biases by distance is no map: made orthogonal it would hardly grow.
        is_map = {n: p.ndim == 2 and "block" in n and "relative_attention_bias" not in n for n, p in named}
        muon = [(n, p) for n, p in named if use_muon and is_map[n]]
        chosen = {n for n, _ in muon}
        matrices = [(n, p) for n, p in named if n not in chosen and p.ndim >= 2]
        vectors = [(n, p) for n, p in named if n not in chosen and p.ndim < 2]
        groups: list[dict[str, Any]] = [
            {"params": [p for _, p in matrices], "weight_decay": config.weight_decay},
            {"params": [p for _, p in vectors], "weight_decay": 0.0},
        ]
        groups = [group for group in groups if group["params"]]
        self._names = {p: n for n, p in named}
        self._parts: list[tuple[torch.optim.Optimizer, float]] = []
        if groups:
            adamw = torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, fused=True)
            self._parts.append((adamw, config.lr))
        if muon:
            part = Muon([p for _, p in muon], lr=config.muon_lr, weight_decay=config.weight_decay)
            self._parts.append((part, config.muon_lr))

    def step(self, factor: float) -> None:
        """One update with every learning rate multiplied by `factor`."""
        for part, lr in self._parts:
            for group in part.param_groups:
                group["lr"] = lr * factor
            part.step()

    def _entries(self) -> Iterator[tuple[str, torch.optim.Optimizer, nn.Parameter]]:
        for index, (part, _) in enumerate(self._parts):
            for group in part.param_groups:
                for parameter in group["params"]:
                    yield f"{index}.{self._names[parameter]}", part, parameter

    def state_tensors(self) -> dict[str, torch.Tensor]:
        """State of all parts as `PART.PARAMETER:KEY` → tensor, enough for an exact resume."""
        return {
            f"{name}:{key}": torch.as_tensor(value)
            for name, part, parameter in self._entries()
            for key, value in part.state[parameter].items()
        }

    def make_state(self, names: Collection[str]) -> dict[str, torch.Tensor]:
        """Blank state tensors under those of the names that are ours, to be filled with a saved state."""
        by_name: dict[str, list[str]] = {}
        for full in names:
            name, key = full.rsplit(":", 1)
            by_name.setdefault(name, []).append(key)
        made = {}
        for name, part, parameter in self._entries():
            part.state[parameter] = {
                # a count of steps is a number, everything else has the shape of its parameter
                key: torch.zeros((), device=parameter.device)
                if key == "step"
                else torch.zeros_like(parameter)
                for key in by_name.get(name, ())
            }
            made |= {f"{name}:{key}": tensor for key, tensor in part.state[parameter].items()}
        return made
