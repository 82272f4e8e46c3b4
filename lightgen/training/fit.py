"""The one training loop: a learner, an objective, batches by step; exact on resume."""

import contextlib
import math
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from lightgen.core.errors import UserError
from lightgen.core.interrupts import Interrupts
from lightgen.core.metrics import MetricsLog
from lightgen.core.progress import Progress
from lightgen.core.ranks import average_over_ranks, join_ranks, num_ranks, rank
from lightgen.training.ema import Ema
from lightgen.training.optimizer import Optimizer, OptimizerConfig
from lightgen.training.schedule import ScheduleConfig, lr_factor
from lightgen.training.state import load_newest_state, save_state

Batch = Mapping[str, Any]


class Objective(Protocol):
    """What is minimised: scalar loss and named numbers to watch, for one micro-batch of one optimizer step.

    A batch is a mapping whose tensors and lists share their first dimension; the loss is a mean over it.
    """

    def __call__(self, learner: nn.Module, batch: Batch, step: int) -> tuple[torch.Tensor, dict[str, float]]:
        """Loss [scalar, with gradient] and numbers to watch."""
        ...


@dataclass(frozen=True, kw_only=True)
class FitConfig:
    """How long, how large, how precise.

    Attributes:
        num_steps: optimizer steps in all.
        max_seconds: stop earlier when this much time has been spent training; the schedule's end is then not
            reached.
        global_batch_size, micro_batch_size: samples per optimizer step, and per pass (None: all at once).
        ema_decay: of the average that is exported.
        precision: of forward and backward pass; weights, optimizer and average are fp32 either way.
        save_every, log_every: in optimizer steps.
        max_bad_steps: steps in a row with a non-finite gradient before the run aborts.
    """

    num_steps: int
    seed: int = 0
    global_batch_size: int = 64
    micro_batch_size: int | None = None
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    max_grad_norm: float = 1.0
    ema_decay: float = 0.999
    precision: Literal["bf16", "fp32"] = "bf16"
    save_every: int = 500
    log_every: int = 20
    max_bad_steps: int = 10
    max_seconds: float | None = None


def fit(
    config: FitConfig,
    learner: nn.Module,
    objective: Objective,
    batches: Callable[[int], Batch],
    folder: Path,
    description: str = "train",
) -> int:
    """Number of steps done; then the learner holds the EMA weights, and `folder/metrics.jsonl` the curve.

    Args:
        config: length, size, precision.
        learner: module to train, in place.
        objective: what is minimised.
        batches: global batch of an optimizer step; a pure function of the step, so a resume repeats nothing.
            Under torchrun every rank is given the same one and takes its share.
        folder: receives `state/` and the metrics; a state found there is continued.
        description: of the progress bar.

    Raises:
        KeyboardInterrupt: SIGINT or SIGTERM came; the step under way was finished and the state saved.
        UserError: the batch does not divide over the ranks; or the loss or gradient was not finite for
        `max_bad_steps` steps in a row (weights stay as they were).
    """
    if config.global_batch_size % num_ranks():
        raise UserError(
            f"training: global batch of {config.global_batch_size} on {num_ranks()} ranks is uneven"
        )
    join_ranks()
    run = _Run(config, learner, folder)
    step = run.resume()
    log = MetricsLog(folder / "metrics.jsonl") if rank() == 0 else None
    if log is not None:
        log.truncate_after(step)
    bad_steps, began = 0, time.monotonic()
    with (
        Interrupts() as interrupts,
        ThreadPoolExecutor(1) as reader,
        Progress(description, total=config.num_steps, unit="step", done=step) as progress,
    ):
        upcoming = reader.submit(batches, step) if step < config.num_steps else None
        while upcoming is not None:
            waited = time.monotonic()
            batch = upcoming.result()
            waited = time.monotonic() - waited
            upcoming = reader.submit(batches, step + 1) if step + 1 < config.num_steps else None
            elapsed = time.monotonic() - began
            late = config.max_seconds is not None and elapsed > config.max_seconds
            outcome = run.step(objective, _share(batch), step, stop=late or interrupts.pending)
            bad_steps = 0 if math.isfinite(outcome.grad_norm) else bad_steps + 1
            if bad_steps >= config.max_bad_steps:
                raise UserError(
                    f"training: {bad_steps} steps in a row had a non-finite gradient, last at step {step}"
                )
            step += 1
            progress.advance(1, loss=outcome.loss)
            last = step == config.num_steps or outcome.stop
            if log is not None and (last or step % config.log_every == 0):
                numbers = {"loss": outcome.loss, "grad_norm": outcome.grad_norm, **outcome.shown}
                log.write(step, **numbers, elapsed_s=elapsed, wait_s=waited)
            if rank() == 0 and (last or step % config.save_every == 0):
                run.save(step)
            if interrupts.pending:
                raise KeyboardInterrupt
            if outcome.stop:
                break
    run.finish()
    return step


@dataclass(frozen=True)
class _Outcome:
    """What a step gave, the same on every rank; `stop`: some rank wants to end the run."""

    loss: float
    shown: dict[str, float]
    grad_norm: float
    stop: bool


class _Run:
    """A learner with its optimizer and average, and how they take a step, are saved and restored.

    In bf16 the learner computes in that type on a working copy of the weights; the weights themselves, the
    optimizer
    and the average stay in fp32. One cast per step replaces autocast's casts around every operation.
    """

    def __init__(self, config: FitConfig, learner: nn.Module, folder: Path) -> None:
        self.config, self.learner, self.state_folder = config, learner, folder / "state"
        learner.float()
        trained = {n: p for n, p in learner.named_parameters() if p.requires_grad}
        self.weights = {n: nn.Parameter(p.detach().clone()) for n, p in trained.items()}
        self.optimizer = Optimizer(config.optimizer, self.weights)
        if config.precision == "bf16":
            _lower(learner)
        self.working = trained
        self.ema = Ema(self._averaged(), config.ema_decay)

    def _averaged(self) -> dict[str, torch.Tensor]:
        """Everything that is averaged: the weights, and float buffers such as running statistics."""
        buffers = {n: b.detach() for n, b in self.learner.named_buffers() if b.is_floating_point()}
        return {n: w.detach() for n, w in self.weights.items()} | buffers

    def step(self, objective: Objective, batch: Batch, step: int, stop: bool) -> _Outcome:
        """One optimizer step on this rank's share of the batch; a non-finite gradient changes no weight."""
        self.learner.train()
        parts = _split(batch, self.config.micro_batch_size)
        total = sum(size for _, size in parts)
        numbers: dict[str, float] = {"loss": 0.0}
        for part, size in parts:
            with _attention_kernel(next(iter(self.working.values())).device):
                loss, shown = objective(self.learner, part, step)
                (loss * (size / total)).backward()
            for name, value in {"loss": loss.item(), **shown}.items():
                numbers[name] = numbers.get(name, 0.0) + value * size / total
            self._collect()
        agreed = torch.tensor([*numbers.values(), float(stop)], dtype=torch.float64)
        average_over_ranks([agreed])
        average_over_ranks([w.grad for w in self.weights.values() if w.grad is not None])
        norm = torch.nn.utils.clip_grad_norm_(self.weights.values(), self.config.max_grad_norm).item()
        shown = dict(zip(numbers, agreed.tolist(), strict=False))
        loss = shown.pop("loss")
        if math.isfinite(norm) and math.isfinite(loss):
            self.optimizer.step(lr_factor(self.config.schedule, step, self.config.num_steps))
            self._publish()
            self.ema.update(self._averaged(), step)
        else:
            norm = math.inf
        for weight in self.weights.values():
            weight.grad = None
        return _Outcome(loss=loss, shown=shown, grad_norm=norm, stop=bool(agreed[-1] > 0))

    def _collect(self) -> None:
        """Move gradients from the working copy to the weights, adding up in fp32."""
        for name, working in self.working.items():
            if working.grad is None:
                continue
            weight, gradient = self.weights[name], working.grad.float()
            weight.grad = gradient if weight.grad is None else weight.grad + gradient
            working.grad = None

    @torch.no_grad()
    def _publish(self) -> None:
        """Copy the weights to the learner, in its own type."""
        for name, working in self.working.items():
            working.copy_(self.weights[name])

    @torch.no_grad()
    def finish(self) -> None:
        """Leave the learner in fp32 with the averaged weights."""
        self.learner.float()
        target = dict(self.learner.named_parameters()) | dict(self.learner.named_buffers())
        for name, tensor in self.ema.tensors.items():
            target[name].copy_(tensor)

    def save(self, step: int) -> None:
        """Write the state after `step` optimizer steps."""
        tensors = {f"weights/{n}": t.detach() for n, t in self.weights.items()}
        tensors |= {f"buffers/{n}": t for n, t in self.learner.named_buffers()}
        tensors |= {f"ema/{n}": t for n, t in self.ema.tensors.items()}
        tensors |= {f"optimizer/{n}": t for n, t in self.optimizer.state_tensors().items()}
        save_state(self.state_folder, step, tensors)

    @torch.no_grad()
    def resume(self) -> int:
        """Step to continue from: 0 without a saved state."""
        found = load_newest_state(self.state_folder)
        if found is None:
            self._publish()
            return 0
        step, tensors = found
        buffers = dict(self.learner.named_buffers())
        state: dict[str, torch.Tensor] = {}
        for full, tensor in tensors.items():
            part, name = full.split("/", 1)
            if part == "optimizer":
                state[name] = tensor
            else:
                {"weights": self.weights, "buffers": buffers, "ema": self.ema.tensors}[part][name].copy_(
                    tensor
                )
        self.optimizer.load_state_tensors(state)
        self._publish()
        return step


def _lower(learner: nn.Module) -> None:
    """Turn trained parameters to bf16, except those of batch normalisation, whose statistics need fp32."""
    for module in learner.modules():
        if not isinstance(module, nn.BatchNorm2d):
            for parameter in module.parameters(recurse=False):
                if parameter.requires_grad:
                    parameter.data = parameter.data.to(torch.bfloat16)


def _attention_kernel(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Attention by plain matrix products on a CPU, whose fused kernel has a far slower backward pass."""
    return sdpa_kernel(SDPBackend.MATH) if device.type == "cpu" else contextlib.nullcontext()


def _share(batch: Batch) -> Batch:
    """This rank's samples of a global batch: an equal, contiguous part."""
    size = len(next(iter(batch.values()))) // num_ranks()
    return {name: value[rank() * size : (rank() + 1) * size] for name, value in batch.items()}


def _split(batch: Batch, size: int | None) -> list[tuple[Batch, int]]:
    """Micro-batches of at most `size` samples, each with its size."""
    total = len(next(iter(batch.values())))
    if size is None or size >= total:
        return [(batch, total)]
    starts = range(0, total, size)
    return [({k: v[s : s + size] for k, v in batch.items()}, min(size, total - s)) for s in starts]
