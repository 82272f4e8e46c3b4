"""What can be trained: each task names its objective and model."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from lightgen.core.artifact import Artifact
from lightgen.data.pairs import How, check_pairing
from lightgen.models.shape import TransformerConfig
from lightgen.objectives.alignment import RepaConfig
from lightgen.objectives.detection import DetectionConfig
from lightgen.objectives.dpo import DPOConfig
from lightgen.objectives.language import LanguageConfig
from lightgen.objectives.masked import MaskedConfig
from lightgen.objectives.reconstruction import ReconstructionConfig
from lightgen.ports.nano.world import CLASSES, COLORS
from lightgen.stages.lora import LoraConfig
from lightgen.training.config import FitConfig, RunConfig
from lightgen.training.fit import Training

Dtype = Literal["fp32", "fp16"]


@dataclass(frozen=True, kw_only=True)
class PretrainTask:
    """The masked objective on latents, or on images that are encoded on the way.

    Attributes:
        image_size: side of the pictures, px: to what images are cut and scaled, and what latents must be of;
            None takes latents as they are.
        model: shape of a new transformer, whose latent channels and text width and length follow from data
            and text encoder; None goes on with that of the start.
        position_step: in place of the start's `TransformerConfig.position_step`: half of it where training
            goes on at twice the size; None keeps it.
        text_encoder: that of the start, or a new one.
        train_text_encoder: whether it learns too.
        lora: small additions learn in place of the weights of the start; None = the weights.
        min_score: only latents that score so much or more; None takes all, scored or not. Those of the
            student's own pictures that are right make this rejection-sampling fine-tuning (RAFT,
            arXiv 2304.06767).
        repa: the trunk learns beside to say what a frozen model sees, from latents that were encoded with
            `representation.stored`; None = it does not. What it says it with learns too, is saved for a
            resume and is not in the checkpoint.
        seed: of new weights.
    """

    objective: MaskedConfig = field(default_factory=MaskedConfig)
    image_size: int | None = None
    model: TransformerConfig | None = None
    position_step: float | None = None
    text_encoder: Literal["start", "new"] = "start"
    train_text_encoder: bool = False
    lora: LoraConfig | None = None
    min_score: float | None = None
    repa: RepaConfig | None = None
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class DPOTask:
    """The preference objective on pairs of scored latents of one prompt.

    The reference is the start, unless another checkpoint is named. Held-out pairs are of prompts that no
    other pair is of.

    Attributes:
        image_size: side of the pictures that latents must be of, px; None takes latents as they are.
        margin, how, top, per_prompt: which rows make pairs; see `lightgen.data.pairs.pair_up`.
        lora: small additions learn in place of the weights of the start, which are then the reference without
            taking memory of their own.
        precompute: whether the errors of the reference are found before training, and kept beside the output,
            where later runs on the same data, reference and draws find them: those of a sweep. The reference
            then takes neither memory nor time while the student learns.
        seed: of new additions.
    """

    objective: DPOConfig = field(default_factory=DPOConfig)
    image_size: int | None = None
    margin: float = 0.5
    how: How = "best-worst"
    top: int = 1
    per_prompt: int | None = None
    lora: LoraConfig | None = None
    precompute: bool = False
    seed: int = 0

    def check(self) -> None:
        """Raises UserError: a number out of range."""
        self.objective.check()
        check_pairing(self.margin, self.how, self.top, self.per_prompt)


@dataclass(frozen=True, kw_only=True)
class AutoencoderTask:
    """The reconstruction objective on images: a new nano autoencoder, or that of the start if one is named.

    Attributes:
        seed: of new weights.
        dtype: of the stored weights; a later export keeps the files as they are.
    """

    objective: ReconstructionConfig = field(default_factory=ReconstructionConfig)
    seed: int = 0
    dtype: Dtype = "fp16"


@dataclass(frozen=True, kw_only=True)
class DetectorTask:
    """The detection objective on images that know their objects: a new nano detector, or that of the start.

    Attributes:
        seed: of new weights.
    """

    objective: DetectionConfig = field(
        default_factory=lambda: DetectionConfig(classes=tuple(CLASSES), colors=tuple(COLORS))
    )
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class LanguageTask:
    """The language objective on captions that are drawn: a new nano text encoder, and no inputs.

    With a start its words begin as those of the start's text encoder, whose features are kept, and the
    checkpoint holds the start's transformer and autoencoder too. Held-out captions are test prompts.

    Attributes:
        caption_seed: of the captions.
        seed: of new weights.
    """

    objective: LanguageConfig = field(default_factory=LanguageConfig)
    caption_seed: int = 0
    seed: int = 0


Task = PretrainTask | DPOTask | AutoencoderTask | DetectorTask | LanguageTask


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """What is trained, with which numbers, and how these machines do it."""

    task: Task
    fit: FitConfig = field(default_factory=lambda: FitConfig(num_steps=1000))
    run: RunConfig = field(default_factory=RunConfig)


@dataclass(frozen=True)
class Job:
    """A task made ready.

    Attributes:
        inputs: parents in the order of the command line, without the start.
        identity: entries of the config that name inputs which are no artifacts.
        learner: module to train, on its device.
        training: gives what `fit` takes; bad samples are noted in the folder.
        save: writes the trained parts, from averaged weights by the learner's names, into the folder of a
            checkpoint; may run while the learner is trained on, where the job exports.
        facts: further entries of the manifest.
        exports: whether the run leaves checkpoints on its way.
    """

    inputs: tuple[Artifact, ...]
    identity: dict[str, Any]
    learner: nn.Module
    training: Callable[[Path | None], Training]
    save: Callable[[Path, Mapping[str, torch.Tensor]], None]
    facts: dict[str, Any]
    exports: bool = False
