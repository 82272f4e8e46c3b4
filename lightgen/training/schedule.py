"""Learning-rate factor by optimizer step."""

import math
from dataclasses import dataclass
from typing import Literal

from lightgen.core.errors import UserError


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """Warm-up from 0, a plateau or cosine, and a linear end to `final`.

    Attributes:
        kind: `constant` keeps the peak until the end, `wsd` keeps it and then falls linearly over
            `decay_steps`, `cosine` falls from the end of warm-up.
        final: last factor of `wsd` and `cosine`.
    """

    kind: Literal["constant", "wsd", "cosine"] = "wsd"
    warmup_steps: int = 100
    decay_steps: int = 0
    final: float = 0.0

    def check(self, num_steps: int) -> None:
        """Raises UserError: a number out of range."""
        if self.warmup_steps < 0 or self.decay_steps < 0 or not 0 <= self.final <= 1:
            got = f"warmup_steps {self.warmup_steps}, decay_steps {self.decay_steps}, final {self.final}"
            raise UserError(f"schedule: got {got}, allowed: steps from 0, final from 0 to 1")
        if self.kind == "wsd" and self.decay_steps > num_steps:
            got = f"decay_steps {self.decay_steps}"
            raise UserError(f"schedule: got {got}, allowed: up to the {num_steps} steps of the run")


def lr_factor(config: ScheduleConfig, step: int, num_steps: int) -> float:
    """Factor in [0, 1] on the peak learning rate for optimizer step `step` (from 0) of `num_steps`."""
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    if config.kind == "wsd" and step >= num_steps - config.decay_steps:
        left = (num_steps - step) / config.decay_steps
        return config.final + (1 - config.final) * left
    if config.kind == "cosine":
        done = (step - config.warmup_steps) / max(1, num_steps - config.warmup_steps)
        return config.final + (1 - config.final) * 0.5 * (1 + math.cos(math.pi * done))
    return 1.0
