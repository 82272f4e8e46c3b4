"""The numbers of a training run: what is learned, and how these machines do it."""

from dataclasses import dataclass, field
from typing import Literal

from lightgen.core.errors import UserError
from lightgen.training.optimizer import OptimizerConfig
from lightgen.training.schedule import ScheduleConfig

_MOST_STEPS, _MOST_SAMPLES, _LONGEST_S = 10**9, 2**20, 10**7
Tracker = Literal["none", "tensorboard", "trackio", "wandb"]


@dataclass(frozen=True, kw_only=True)
class FitConfig:
    """What is learned: part of what an artifact is, so a run goes on only with the same.

    Attributes:
        num_steps: optimizer steps in all.
        max_seconds: stop earlier when this much time has been spent training; the schedule's end is then not
            reached.
        global_batch_size: samples per optimizer step, on however many ranks.
        ema_decay: of the average that is exported.
        precision: of forward and backward pass; weights, optimizer and average are fp32 either way.
        max_bad_steps: steps in a row with a non-finite gradient before the run aborts.
        held_out: samples that are kept out of training and that the held-out loss is measured on.
    """

    num_steps: int
    seed: int = 0
    global_batch_size: int = 64
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    max_grad_norm: float = 1.0
    ema_decay: float = 0.999
    precision: Literal["bf16", "fp32"] = "bf16"
    max_bad_steps: int = 10
    max_seconds: float | None = None
    held_out: int = 0

    def check(self) -> None:
        """Raises UserError: a number out of range."""
        steps, size, seconds = self.num_steps, self.global_batch_size, self.max_seconds
        _require("num_steps", steps, 1 <= steps <= _MOST_STEPS, f"from 1 to {_MOST_STEPS}")
        _require("global_batch_size", size, 1 <= size <= _MOST_SAMPLES, f"from 1 to {_MOST_SAMPLES}")
        _require("max_seconds", seconds, seconds is None or seconds >= 0, "from 0")
        _require("max_grad_norm", self.max_grad_norm, self.max_grad_norm > 0, "above 0")
        _require("ema_decay", self.ema_decay, 0 <= self.ema_decay < 1, "from 0 to below 1")
        _require("max_bad_steps", self.max_bad_steps, self.max_bad_steps >= 1, "a whole number from 1")
        _require("held_out", self.held_out, self.held_out >= 0, "a whole number from 0")
        self.optimizer.check()
        self.schedule.check(self.num_steps)


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """How a run is done here: may differ each time that it is continued.

    Attributes:
        micro_batch_size: samples per pass of one rank (None: its share of the global batch at once); what one
            optimizer step needs more is accumulated in fp32.
        shards: ranks that share one copy of weights, gradients, optimizer and average. 1: each rank holds all
            of them, and gradients are averaged; the number of all ranks: each holds its part (FSDP2);
            between: parts within groups of so many ranks, averages across the groups.
        offload: whether fp32 weights, optimizer and average stay in the memory of the CPU, and the device
            holds the copy in bf16 that computes; for one rank.
        gradient_checkpointing: whether blocks compute their inner values twice to save memory.
        compile: whether blocks are compiled, which costs minutes at the start.
        workers: threads that read ahead; 0 = read when asked.
        timeout_s: how long ranks wait for one that does not answer before the job fails.
        save_every: optimizer steps between saved states.
        keep_last, keep_every: how many of the newest states stay, and those of which steps stay for good.
        log_every, held_out_every, sample_every: optimizer steps between records, held-out losses, and grids
            of pictures (None: none); the latter come at the next saved state.
        max_bad_share: share of all samples that may be corrupt before the run aborts.
        track: where records go besides `metrics.jsonl`.
    """

    micro_batch_size: int | None = None
    shards: int = 1
    offload: bool = False
    gradient_checkpointing: bool = False
    compile: bool = False
    workers: int = 2
    timeout_s: float = 600.0
    save_every: int = 500
    keep_last: int = 2
    keep_every: int | None = None
    log_every: int = 20
    held_out_every: int = 500
    sample_every: int | None = None
    max_bad_share: float = 0.01
    track: Tracker = "none"

    def check(self) -> None:
        """Raises UserError: a number out of range."""
        for name in (
            "micro_batch_size",
            "shards",
            "save_every",
            "keep_last",
            "keep_every",
            "log_every",
            "held_out_every",
            "sample_every",
        ):
            value = vars(self)[name]
            _require(name, value, value is None or value >= 1, "a whole number from 1")
        _require("workers", self.workers, 0 <= self.workers <= 64, "from 0 to 64")
        _require(
            "timeout_s", self.timeout_s, 0 < self.timeout_s <= _LONGEST_S, f"above 0, up to {_LONGEST_S}"
        )
        _require("max_bad_share", self.max_bad_share, 0 <= self.max_bad_share <= 1, "from 0 to 1")


def _require(name: str, got: object, fine: bool, allowed: str) -> None:
    if not fine:
        raise UserError(f"training: got {name} {got}, allowed: {allowed}")
