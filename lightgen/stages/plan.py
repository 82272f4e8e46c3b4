"""Does a run fit on these devices, how long does it take, and what to change where it does not fit."""

from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property
from math import ceil
from pathlib import Path

import torch
from torch import nn

from lightgen.core.device import Hardware
from lightgen.core.errors import UserError
from lightgen.models.shape import TransformerConfig
from lightgen.ports.nano.text import MAX_LENGTH
from lightgen.stages.budget import (
    Count,
    Grid,
    build_student,
    build_text_encoder,
    build_transformer,
    flops_per_image,
    masking_of,
    state_bytes,
    text_is_fixed,
)
from lightgen.stages.checkpoint import open_checkpoint, transformer_shape
from lightgen.stages.setting import Setting
from lightgen.stages.tasks import DPOTask, PretrainTask
from lightgen.training.config import FitConfig, RunConfig

STRIDE_PX = 8  # of both autoencoders, SD3.5's and nano's
NANO_TEXT_WIDTH = 256
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
_DRIVER_BYTES = 2**30
_USABLE = 0.95
_ROUNDED_UP = 1.005
_ENOUGH = 8  # images in a pass, from which on more of them hardly make it faster
_MOST_RANKS = 64


def find_shape(
    task: PretrainTask | DPOTask, start: str | Path | None, usual: TransformerConfig
) -> TransformerConfig:
    """Shape of the transformer that a task trains: its own, that of the start, or, without one, the usual.

    Raises:
        UserError: the start holds no transformer, or the shape is one that cannot be.
    """
    shape = (task.model if isinstance(task, PretrainTask) else None) or usual
    if start is not None and (isinstance(task, DPOTask) or task.model is None):
        shape = transformer_shape(open_checkpoint(start))
    if isinstance(task, PretrainTask) and task.text_encoder == "new":
        shape = replace(shape, text_width=NANO_TEXT_WIDTH)
    if shape.text_width == NANO_TEXT_WIDTH:
        shape = replace(shape, text_length=min(shape.text_length, MAX_LENGTH))
    try:
        shape.check()
    except ValueError as error:
        raise UserError(str(error)) from error
    return shape


class Plan:
    """A run of the masked or the preference objective on some hardware, counted when asked.

    Args:
        task, fit, run: of the recipe.
        shape: from `find_shape`.
        hardware: of each rank.
        ranks: processes, one per GPU.
        cached_text: whether text features come with the latents, so that no text encoder runs.

    Raises:
        UserError: numbers that do not fit together.
    """

    def __init__(
        self,
        task: PretrainTask | DPOTask,
        fit: FitConfig,
        run: RunConfig,
        shape: TransformerConfig,
        hardware: Hardware,
        ranks: int,
        cached_text: bool = False,
    ) -> None:
        fit.check()
        run.check()
        if cached_text and not text_is_fixed(task):
            raise UserError(
                "cached text: got a text encoder that is new or learns, allowed: that of the start, frozen"
            )
        if ranks < 1 or fit.global_batch_size % ranks:
            raise UserError(
                f"--ranks: got {ranks}, allowed: a divisor of the global batch of {fit.global_batch_size}"
            )
        if ranks % run.shards:
            raise UserError(
                f"--run.shards: got {run.shards} on {ranks} ranks, allowed: a divisor of the ranks"
            )
        self.task, self.fit, self.run, self.shape, self.hardware = task, fit, run, shape, hardware
        self.cached_text = cached_text
        self.px, self.grid = _grid(task, shape)
        share = fit.global_batch_size // ranks
        self.wanted = Setting(
            ranks=ranks,
            micro_batch_size=min(run.micro_batch_size or share, share),
            gradient_checkpointing=run.gradient_checkpointing,
            shards=run.shards,
            offload=run.offload,
        )
        self._peaks: dict[tuple[int, bool], int] = {}

    @cached_property
    def text_encoder(self) -> nn.Module:
        """The text encoder, without storage."""
        return build_text_encoder(self.task, self.shape.text_width)

    @cached_property
    def sizes(self) -> dict[str, int]:
        """Bytes of what learns (see `state_bytes`), and of what is frozen, in the precision of the run."""
        dtype = DTYPES[self.fit.precision]
        text = nn.Identity() if self.cached_text else self.text_encoder
        student = build_student(self.task, self.shape, dtype, text)
        frozen = [p for p in student.parameters() if not p.requires_grad]
        if isinstance(self.task, DPOTask) and self.task.lora is None and not self.task.precompute:
            frozen += student.transformer.parameters()  # the reference
        return {
            **state_bytes(student, self.fit.optimizer),
            "frozen": dtype.itemsize * sum(p.numel() for p in frozen),
        }

    @property
    def trained(self) -> int:
        """Parameters that learn."""
        return self.sizes["weights"] // 4

    @property
    def frozen(self) -> int:
        """Parameters that do not learn."""
        return self.sizes["frozen"] // DTYPES[self.fit.precision].itemsize

    @property
    def samples(self) -> str:
        """What a sample is, in the plural."""
        return "pairs" if isinstance(self.task, DPOTask) else "images"

    @property
    def exported(self) -> int:
        """Bytes of a checkpoint: transformer in fp32, text encoder in bf16 unless it is the small one."""
        transformer = sum(p.numel() for p in build_transformer(self.shape).parameters())
        text = sum(p.numel() for p in self.text_encoder.parameters())
        return 4 * transformer + (4 if self.shape.text_width == NANO_TEXT_WIDTH else 2) * text

    @property
    def saved(self) -> int:
        """Bytes of one saved state."""
        return sum(self.sizes[each] for each in ("weights", "moments", "average"))

    def passes(self, setting: Setting) -> int:
        """Passes of each rank per optimizer step."""
        return ceil(self.fit.global_batch_size / setting.ranks / setting.micro_batch_size)

    def parts(self, setting: Setting) -> dict[str, int]:
        """Bytes that each rank holds at most, by what they are for."""
        sizes, shards, fit = self.sizes, setting.shards, self.fit
        # several ranks keep gradients whole until the last pass of a step
        whole = setting.ranks > 1 and self.passes(setting) > 1
        parts = {
            "weights, fp32": sizes["weights"] // shards,
            f"optimizer ({fit.optimizer.name}), fp32": sizes["moments"] // shards,
            "average (EMA), fp32": sizes["average"] // shards,
        }
        if setting.offload and self.hardware.is_gpu:
            parts = {}
        parts["gradients, fp32"] = sizes["gradients"] // (1 if whole else shards)
        if fit.precision == "bf16":
            parts["working copy, bf16"] = sizes["weights"] // 2
        elif setting.ranks > 1:
            parts["working copy, fp32"] = sizes["weights"]
        if sizes["frozen"]:
            parts[f"frozen (text encoder), {fit.precision}"] = sizes["frozen"]
        parts[self.pass_name(setting)] = self.pass_bytes(
            setting.micro_batch_size, setting.gradient_checkpointing
        )
        if self.hardware.is_gpu:
            parts["driver and libraries (allowance)"] = _DRIVER_BYTES
        else:
            parts["state while it is saved"] = self.saved // setting.ranks
        return parts

    def pass_name(self, setting: Setting) -> str:
        """What `parts` calls a pass."""
        return f"pass over {setting.micro_batch_size:,} {self.samples}"

    def room(self, ranks: int) -> int | None:
        """Bytes that each rank may fill: some gaps always stay between tensors."""
        memory = self.hardware.memory
        return None if memory is None else int(memory * _USABLE) // (1 if self.hardware.is_gpu else ranks)

    def missing(self, setting: Setting) -> int:
        """Bytes that each rank lacks; 0 or less where it fits, or the memory is unknown."""
        room = self.room(setting.ranks)
        return 0 if room is None else sum(self.parts(setting).values()) - room

    def pass_bytes(self, samples: int, gradient_checkpointing: bool) -> int:
        """Bytes of a pass over a micro-batch; between one sample and the wanted number, along a line.

        The line is never too low, for the most of several sums that each grow with the samples is convex, but
        for what operators round up.
        """
        last = self.wanted.micro_batch_size
        if samples in (1, last):
            return self._counted(samples, gradient_checkpointing)
        assert 1 < samples < last, (samples, last)
        low, high = (self._counted(n, gradient_checkpointing) for n in (1, last))
        return int(_ROUNDED_UP * (low + (high - low) * (samples - 1) / (last - 1)))

    def _counted(self, samples: int, gradient_checkpointing: bool) -> int:
        key = (samples, gradient_checkpointing)
        if key not in self._peaks:
            self._peaks[key] = self._peak(*key, self._hidden)
        return self._peaks[key]

    @cached_property
    def _hidden(self) -> int:
        """The number of hidden tokens, of the least and the most there can be, that takes more memory."""
        length = self.grid[0] * self.grid[1]
        least = max(1, ceil(masking_of(self.task).mask_min * length))
        checkpointing = self.wanted.gradient_checkpointing
        counts = {n: self._peak(1, checkpointing, n) for n in (least, length)}
        most = max(counts, key=lambda n: counts[n])
        self._peaks[1, checkpointing] = counts[most]
        return most

    def _peak(self, samples: int, gradient_checkpointing: bool, hidden: int) -> int:
        learns = isinstance(self.task, PretrainTask) and self.task.train_text_encoder
        count = Count(
            task=self.task,
            shape=self.shape,
            grid=self.grid,
            gradient_checkpointing=gradient_checkpointing,
            text_encoder=self.text_encoder if learns else None,
        )
        dtype, is_gpu = DTYPES[self.fit.precision], self.hardware.is_gpu
        return count.peak_bytes(samples, hidden, dtype, accelerator=is_gpu)

    def advice(self) -> Iterator[Setting]:
        """Settings that fit, from the smallest change to the largest, each with the largest possible pass."""
        for frame in self._frames():
            share = self.fit.global_batch_size // frame.ranks
            most = min(self.wanted.micro_batch_size, share)
            for size in [most, *(2**k for k in range(most.bit_length() - 1, -1, -1) if 2**k < most)]:
                setting = replace(frame, micro_batch_size=size)
                if self.missing(setting) <= 0:
                    yield setting
                    if size >= min(_ENOUGH, most):
                        return
                    break

    def _frames(self) -> Iterator[Setting]:
        """The wanted setting, then with the state on the CPU or cut, with checkpointing, on more ranks."""
        frame, alone = self.wanted, self.wanted.ranks == 1
        if alone and self.fit.precision == "bf16" and self.hardware.is_gpu:
            frame = replace(frame, offload=True)
        checked = replace(frame, gradient_checkpointing=True)
        plain = replace(self.wanted, gradient_checkpointing=True)
        yield from dict.fromkeys((self.wanted, frame, plain, checked, replace(plain, shards=plain.ranks)))
        frame = replace(plain, offload=False)
        ranks = 2 * frame.ranks
        while self.hardware.is_gpu and ranks <= _MOST_RANKS and self.fit.global_batch_size % ranks == 0:
            yield replace(frame, ranks=ranks, shards=ranks)
            ranks *= 2

    @cached_property
    def flops(self) -> tuple[float, float]:
        """FLOPs per sample of a step: forward and backward; and what checkpointing computes twice."""
        once = self._flops(gradient_checkpointing=False)
        if not self.wanted.gradient_checkpointing:
            return once, 0.0
        return once, self._flops(gradient_checkpointing=True) - once

    def _flops(self, *, gradient_checkpointing: bool) -> float:
        return flops_per_image(
            self.task,
            self.shape,
            self.grid,
            text_encoder=None if self.cached_text else self.text_encoder,
            gradient_checkpointing=gradient_checkpointing,
        )

    def text_bytes(self) -> int:
        """Bytes of the text features of one caption, in bf16: at most, where text is masked."""
        return 2 * self.shape.text_length * self.shape.text_width

    def latent_bytes(self) -> int:
        """Bytes of one image's latents: mean and std in bf16."""
        patch = self.shape.patch_size
        return 2 * 2 * self.shape.latent_channels * self.grid[0] * self.grid[1] * patch**2


def _grid(task: PretrainTask | DPOTask, shape: TransformerConfig) -> tuple[int, Grid]:
    """(Side of the pictures in px, rows and columns of tokens)."""
    px = task.image_size or shape.sample_size * STRIDE_PX
    unit = STRIDE_PX * shape.patch_size
    if px < unit or px % unit:
        raise UserError(f"image_size: got {px} px, allowed: multiples of {unit}")
    return px, (px // unit, px // unit)
