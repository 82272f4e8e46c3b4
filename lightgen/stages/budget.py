"""What a step of training costs, before it is taken: its code, counted on tensors without storage."""

import contextlib
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from math import ceil
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import T5Config, T5EncoderModel

from lightgen.core.errors import UserError
from lightgen.models.shape import TransformerConfig
from lightgen.models.student import Student
from lightgen.models.transformer import LightGenTransformer
from lightgen.objectives.alignment import projection_flops
from lightgen.objectives.dpo import DPOObjective, Reference, frozen_reference
from lightgen.objectives.masked import MaskedConfig, MaskedObjective, Masking, masked_errors
from lightgen.ports.nano.text import build_nano_text_encoder
from lightgen.stages.ledger import Ledger
from lightgen.stages.lora import add_lora, without_lora
from lightgen.stages.tasks import DPOTask, PretrainTask
from lightgen.training.optimizer import OptimizerConfig

Grid = tuple[int, int]

_IMAGES_COUNTED = 20  # FLOPs are proportional to images, except that whole images lose their text


def mean_mask_share(config: MaskedConfig) -> float:
    """Mean share of hidden tokens, of the law cut off at mask_min."""
    if config.mask_law == "uniform":
        return (1 + config.mask_min) / 2
    if config.mask_law == "cosine":
        return math.sqrt(1 - config.mask_min**2) / math.acos(config.mask_min)
    if config.mask_spread <= 0:
        return 1.0
    reach = (1 - config.mask_min) / config.mask_spread
    density = math.sqrt(2 / math.pi) * (1 - math.exp(-(reach**2) / 2))
    return 1 - config.mask_spread * density / math.erf(reach / math.sqrt(2))


def masking_of(task: PretrainTask | DPOTask) -> MaskedConfig:
    """The mask law of a task."""
    return task.objective.masking if isinstance(task, DPOTask) else task.objective


def text_is_fixed(task: PretrainTask | DPOTask) -> bool:
    """Whether a task reads through the text encoder of its start, so that features can be known before."""
    return isinstance(task, DPOTask) or (task.text_encoder == "start" and not task.train_text_encoder)


def build_transformer(shape: TransformerConfig) -> LightGenTransformer:
    """Transformer without storage, in eval mode."""
    with torch.device("meta"):
        return LightGenTransformer(**asdict(shape)).eval()


def build_text_encoder(task: PretrainTask | DPOTask, text_width: int) -> T5EncoderModel:
    """The text encoder without storage that a task trains or reads through.

    Source: Flan-T5-XXL has the shape of T5 v1.1, arXiv 2210.11416 and 2002.05202.

    Raises:
        UserError: none is known for this width.
    """
    with torch.device("meta"):
        if (isinstance(task, PretrainTask) and task.text_encoder == "new") or text_width == 256:
            return build_nano_text_encoder(0).encoder
        if text_width == 4096:
            config = T5Config(
                vocab_size=32_128,
                d_model=text_width,
                d_kv=64,
                num_heads=64,
                d_ff=10_240,
                num_layers=24,
                feed_forward_proj="gated-gelu",
            )
            return T5EncoderModel(config)
    raise UserError(f"text encoder: got text_width {text_width}, allowed: 256 (nano), 4096 (T5-XXL)")


def build_student(
    task: PretrainTask | DPOTask, shape: TransformerConfig, dtype: torch.dtype, text_encoder: nn.Module
) -> Student:
    """The learner of a task without storage, all of it in one type, in training mode."""
    transformer = build_transformer(shape)
    trains_text = isinstance(task, PretrainTask) and task.train_text_encoder
    if task.lora is not None:
        add_lora(transformer, task.lora.rank, task.lora.alpha, task.lora.targets)
    student = Student(transformer, text_encoder, trains_text)
    nn.Module.to(student, dtype)
    return student.train()


class Features(nn.Module):
    """Text encoder that costs nothing, in the type given by `to`."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("like", torch.empty(width, device="meta"))

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> SimpleNamespace:
        """Features without storage."""
        like = self.get_buffer("like")
        return SimpleNamespace(last_hidden_state=like.new_empty(*input_ids.shape, len(like)))


class _Unmasked(nn.Module):
    """Text encoder that does not look at the mask, whose values tensors without storage do not have."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Any:  # noqa: ANN401
        """What the encoder gives."""
        return self.encoder(input_ids=input_ids)


def blank_batch(
    shape: TransformerConfig, grid: Grid, images: int, hidden: int, draws: int, kept: int
) -> dict:
    """Batch without storage for the masked objective.

    Args:
        shape: of the transformer.
        grid: rows and columns of tokens.
        images: pictures.
        hidden: tokens hidden in each.
        draws: times and noises per hidden token.
        kept: pictures that have a text.
    """
    with torch.device("meta"):
        length, patch = grid[0] * grid[1], shape.patch_size
        time = torch.empty(draws, images, hidden)
        words = torch.empty(images, shape.text_length, dtype=torch.int64)
        masking = Masking(
            order=torch.empty(images, length, dtype=torch.int64),
            time=time.long() if shape.prediction == "ddpm" else time,
            noise=torch.empty(draws, images, hidden, shape.latent_channels * patch**2),
            kept=torch.arange(kept),
        )
        latents = torch.empty(images, shape.latent_channels, grid[0] * patch, grid[1] * patch)
    return {
        "latents": latents,
        "text_ids": words,
        "text_mask": words.bool(),
        "ids": list(range(images)),
        "masking": masking,
    }


def _pairs(batch: Mapping[str, Any], *, known: bool) -> dict[str, Any]:
    """A batch of pairs out of a batch of twice as many pictures; the errors of the reference may be known."""
    size = len(batch["ids"]) // 2
    halves = {"chosen": batch["latents"][:size], "rejected": batch["latents"][size:]}
    cut = {name: batch[name][:size] for name in ("text_ids", "text_mask", "ids")}
    errors = {"reference_errors": torch.empty(size, 2, device="meta")} if known else {}
    return {**halves, **cut, **errors, "masking": batch["masking"]}


def new_counter() -> FlopCounterMode:
    """Counter of the FLOPs of all matrix products together."""
    counter = FlopCounterMode(display=False)
    counter.mod_tracker = _Unnamed()  # pyright: ignore[reportAttributeAccessIssue]
    return counter


class _Unnamed:
    """Stands in for the counter's tracker of modules, which costs far more than the counting."""

    parents = ("Global",)

    def __enter__(self) -> None:
        """Nothing to follow."""

    def __exit__(self, *error: object) -> None:
        """Nothing to end."""


def forward_flops(shape: TransformerConfig, grid: Grid, mask_share: float, draws: int, images: int) -> float:
    """FLOPs per image of the masked objective's forward pass without its text encoder, no text dropped."""
    hidden = ceil(mask_share * grid[0] * grid[1])
    batch = blank_batch(shape, grid, images, hidden, draws, images)
    student = Student(build_transformer(shape), Features(shape.text_width), train_text_encoder=False)
    with new_counter() as counter, sdpa_kernel(SDPBackend.MATH):
        masked_errors(student, batch, batch["masking"])
    return counter.get_total_flops() / images


def flops_per_image(
    task: PretrainTask | DPOTask,
    shape: TransformerConfig,
    grid: Grid,
    *,
    text_encoder: nn.Module | None = None,
    gradient_checkpointing: bool = False,
) -> float:
    """FLOPs per sample (a pair, in DPO) of a forward and backward pass at the mean mask share.

    Args:
        task: what is trained.
        shape: of its transformer.
        grid: rows and columns of tokens.
        text_encoder: runs too, at 2 FLOPs per weight and token beside its embedding, and where it is trained
            at thrice that; None = features are given.
        gradient_checkpointing: whether what is computed twice counts twice; for MFU it does not.
    """
    config = masking_of(task)
    made = Count(task=task, shape=shape, grid=grid, gradient_checkpointing=gradient_checkpointing)
    kept = round(_IMAGES_COUNTED * (1 - config.text_drop))
    with new_counter() as counter, sdpa_kernel(SDPBackend.MATH):
        made.run(_IMAGES_COUNTED, ceil(mean_mask_share(config) * grid[0] * grid[1]), kept, torch.float32)
    text = 0.0 if text_encoder is None else text_flops(task, shape, text_encoder)
    aligned = task.repa if isinstance(task, PretrainTask) else None
    beside = 0.0 if aligned is None else projection_flops(aligned, shape.width, grid[0] * grid[1])
    return counter.get_total_flops() / _IMAGES_COUNTED + text + beside


def text_flops(task: PretrainTask | DPOTask, shape: TransformerConfig, text_encoder: nn.Module) -> float:
    """The part of `flops_per_image` that is the text encoder's."""
    tables = {m.weight for m in text_encoder.modules() if isinstance(m, nn.Embedding)}
    weights = sum(p.numel() for p in text_encoder.parameters() if p not in tables)
    passes = 3 if isinstance(task, PretrainTask) and task.train_text_encoder else 1
    if isinstance(task, DPOTask):
        passes = 2 if task.precompute else 4  # of both pictures, for the student and its reference
    kept = round(_IMAGES_COUNTED * (1 - masking_of(task).text_drop)) / _IMAGES_COUNTED
    return 2 * weights * shape.text_length * kept * passes


@dataclass(frozen=True, kw_only=True)
class Count:
    """A pass of training to be counted.

    Attributes:
        task, shape, grid: as in `flops_per_image`.
        gradient_checkpointing: whether blocks compute their inner values twice.
        text_encoder: runs and learns in the pass; None = features are given.
    """

    task: PretrainTask | DPOTask
    shape: TransformerConfig
    grid: Grid
    gradient_checkpointing: bool = False
    text_encoder: nn.Module | None = None

    def run(
        self, samples: int, hidden: int, kept: int, dtype: torch.dtype, ledger: Ledger | None = None
    ) -> None:
        """Run forward and backward pass over samples in a type, `kept` of them with a text."""
        shape, task = self.shape, self.task
        encoder = Features(shape.text_width) if self.text_encoder is None else _Unmasked(self.text_encoder)
        student = build_student(task, shape, dtype, encoder)
        student.transformer.gradient_checkpointing = self.gradient_checkpointing
        draws = masking_of(task).draws_per_token
        objective: Any
        parts: list[Any] = [student]
        if isinstance(task, DPOTask):
            compared: Reference | None = None
            if task.lora is not None and not task.precompute:
                compared = without_lora
            elif not task.precompute:
                parts.append(build_student(task, shape, dtype, encoder).transformer)
                compared = frozen_reference(parts[-1], encoder)
            objective = DPOObjective(task.objective, student, compared)
        else:
            objective = MaskedObjective(task.objective)
        for parameter in student.parameters():
            if parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(_forget)
        if ledger is not None:
            ledger.begin(parts)
        with contextlib.nullcontext() if ledger is None else ledger:
            if isinstance(task, DPOTask):
                whole = blank_batch(shape, self.grid, 2 * samples, hidden, draws, 2 * kept)
                batch = _pairs(whole, known=task.precompute)
            else:
                batch = blank_batch(shape, self.grid, samples, hidden, draws, kept)
            loss, _ = objective(student, batch, 0)
            loss.backward()

    def peak_bytes(self, samples: int, hidden: int, dtype: torch.dtype, *, accelerator: bool) -> int:
        """Most bytes that a pass holds at once beside weights and gradients: batch, activations, all of it.

        Args:
            samples: micro-batch.
            hidden: tokens hidden in each picture.
            dtype: that the learner computes in.
            accelerator: whether attention and dropout are the fused ones of CUDA, or those of a CPU.
        """
        ledger = Ledger(fused=accelerator)
        with contextlib.nullcontext() if accelerator else sdpa_kernel(SDPBackend.MATH):
            self.run(samples, hidden, samples, dtype, ledger)
        return ledger.peak


def _forget(parameter: torch.Tensor) -> None:
    parameter.grad = None


def state_bytes(student: Student, optimizer: OptimizerConfig) -> dict[str, int]:
    """Bytes in fp32 of all copies of the learner that a rank holds in training, by name; see `Optimizer`."""
    named = [(name, p) for name, p in student.named_parameters() if p.requires_grad]
    trained = sum(p.numel() for _, p in named)
    muon = [p for name, p in named if optimizer.name == "muon" and p.ndim == 2 and "block" in name]
    moments = 2 * trained - sum(p.numel() for p in muon)
    return {"weights": 4 * trained, "gradients": 4 * trained, "moments": 4 * moments, "average": 4 * trained}
