"""What can be trained: each task names its objective and model, and is prepared from a start and its data."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from lightgen.core.artifact import Artifact, open_artifact
from lightgen.core.draws import draw_key, torch_draws
from lightgen.core.errors import UserError
from lightgen.data.latents import LatentShards
from lightgen.data.order import sample_ids
from lightgen.data.pairs import How, count_pairs, pair
from lightgen.models.student import Student
from lightgen.models.transformer import LightGenTransformer
from lightgen.objectives.detection import DetectionConfig, DetectionObjective
from lightgen.objectives.dpo import DPOConfig, DPOObjective
from lightgen.objectives.masked import MaskedConfig, MaskedObjective
from lightgen.objectives.reconstruction import ReconstructionConfig, ReconstructionObjective
from lightgen.ports.autoencoder import load_autoencoder
from lightgen.ports.nano.autoencoder import build_nano_autoencoder
from lightgen.ports.nano.detector import build_nano_detector, load_nano_detector
from lightgen.ports.nano.text import build_nano_text_encoder
from lightgen.ports.nano.world import CLASSES, COLORS
from lightgen.ports.text import T5TextEncoder, load_text_encoder
from lightgen.stages.checkpoint import (
    Parts,
    autoencoder_digest,
    copy_part,
    load_transformer,
    pick_device,
    require_part,
    save_detector,
)
from lightgen.stages.inputs import ImageInputs, open_images
from lightgen.stages.pipeline import LightGenPipeline
from lightgen.training.fit import FitConfig, Objective

Dtype = Literal["fp32", "fp16"]
DTYPES = {"fp32": torch.float32, "fp16": torch.float16}


@dataclass(frozen=True, kw_only=True)
class TransformerConfig:
    """Shape of a new transformer; see `LightGenTransformer`. Latent channels and text width come from its parts."""

    patch_size: int = 2
    width: int = 256
    num_heads: int = 8
    encoder_layers: int = 4
    decoder_layers: int = 6
    head_width: int = 256
    head_layers: int = 3


@dataclass(frozen=True, kw_only=True)
class PretrainTask:
    """The masked objective on latents.

    Attributes:
        model: shape of a new transformer; None goes on with that of the start.
        text_encoder: that of the start, or a new one.
        train_text_encoder: whether it learns too.
        seed: of new weights.
    """

    objective: MaskedConfig = field(default_factory=MaskedConfig)
    model: TransformerConfig | None = None
    text_encoder: Literal["start", "new"] = "start"
    train_text_encoder: bool = False
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class DPOTask:
    """The preference objective on pairs of scored latents of one prompt; the start is also the reference.

    Attributes:
        margin: least difference of scores within a pair.
        how: best against worst of each prompt, or all pairs.
    """

    objective: DPOConfig = field(default_factory=DPOConfig)
    margin: float = 0.5
    how: How = "best-worst"


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


Task = PretrainTask | DPOTask | AutoencoderTask | DetectorTask
Batches = Callable[[int], Mapping[str, Any]]


@dataclass(frozen=True)
class Job:
    """A task made ready.

    Attributes:
        inputs: parents in the order of the command line, without the start.
        identity: entries of the config that name inputs which are no artifacts.
        learner: module to train, on its device.
        objective: what it minimises.
        batches: global batch of an optimizer step, a pure function of the step.
        save: writes the trained parts into the folder of a checkpoint.
        facts: further entries of the manifest.
    """

    inputs: tuple[Artifact, ...]
    identity: dict[str, Any]
    learner: nn.Module
    objective: Objective
    batches: Batches
    save: Callable[[Path], None]
    facts: dict[str, Any]


def prepare(task: Task, fit: FitConfig, inputs: Sequence[str | Path], start: Artifact | None) -> Job:
    """The task made ready on its data and start.

    Args:
        task: what is to be trained.
        fit: its seed and batch size say which samples make up a step.
        inputs: latents (one artifact) or images, as the task needs.
        start: checkpoint to begin from; None where a task begins from nothing.

    Raises:
        UserError: inputs or a start that the task cannot use.
    """
    if isinstance(task, AutoencoderTask):
        return _autoencoder_job(task, fit, open_images(inputs), start)
    if isinstance(task, DetectorTask):
        return _detector_job(task, fit, open_images(inputs), start)
    assert start is not None, "train names one"
    artifact = _open_latents(inputs, start)
    latents = LatentShards(artifact.path)
    if isinstance(task, DPOTask):
        return _dpo_job(task, fit, artifact, latents, start)
    return _pretrain_job(task, fit, artifact, latents, start)


def _open_latents(inputs: Sequence[str | Path], start: Artifact) -> Artifact:
    """The one artifact of latents, which the autoencoder of the start has made."""
    if len(inputs) != 1:
        raise UserError(f"--in: got {len(inputs)} directories, allowed: one of latents")
    artifact = open_artifact(inputs[0], "latents")
    made_by, expected = artifact.manifest.get("autoencoder"), autoencoder_digest(start)
    if made_by != expected:
        raise UserError(
            f"{artifact.path}: made by autoencoder {str(made_by)[:12]}, allowed: {expected[:12]}, that of {start.path.name}; encode with it"
        )
    return artifact


def _pretrain_job(
    task: PretrainTask, fit: FitConfig, artifact: Artifact, latents: LatentShards, start: Artifact
) -> Job:
    text = _text_encoder(task, start)
    if task.model is None:
        transformer = load_transformer(require_part(start, "transformer").path / "transformer")
    else:
        transformer = _new_transformer(task.model, latents.channels, text.dim, task.seed)
    _check_grid(transformer, latents)
    student = Student(transformer, text.encoder, task.train_text_encoder)

    def batches(step: int) -> dict[str, Any]:
        ids = sample_ids(fit.seed, step, fit.global_batch_size, len(latents))
        mean, std, rows = latents.gather(ids)
        if std is not None:
            noise = torch.stack([_noise(fit.seed, step, i, mean.shape[1:]) for i in ids])
            mean = mean + std * noise
        return _move({"latents": mean, **_tokenize(text, rows), "ids": ids})

    return Job(
        inputs=(artifact,),
        identity={},
        learner=student.to(pick_device()),
        objective=MaskedObjective(task.objective),  # pyright: ignore[reportArgumentType]
        batches=batches,
        save=lambda folder: _save_student(folder, student, text, start),
        facts={"samples": len(latents)},
    )


def _dpo_job(task: DPOTask, fit: FitConfig, artifact: Artifact, latents: LatentShards, start: Artifact) -> Job:
    rows = latents.rows()
    pairs = pair(rows, task.margin, task.how)
    counts = count_pairs(rows, task.margin, task.how)
    if not pairs:
        raise UserError(
            f"{artifact.path}: no pair of one prompt differs by {task.margin} or more ({counts.prompts} prompts, "
            f"{counts.ties} ties), allowed: at least one; sample more images per prompt or lower the margin"
        )
    text = _start_text_encoder(start)
    transformer = load_transformer(require_part(start, "transformer").path / "transformer")
    _check_grid(transformer, latents)
    student = Student(transformer, text.encoder, train_text_encoder=False).to(pick_device())

    def batches(step: int) -> dict[str, Any]:
        ids = sample_ids(fit.seed, step, fit.global_batch_size, len(pairs))
        chosen, _, table = latents.gather([pairs[i].chosen for i in ids])
        rejected, _, _ = latents.gather([pairs[i].rejected for i in ids])
        return _move({"chosen": chosen, "rejected": rejected, **_tokenize(text, table), "ids": ids})

    return Job(
        inputs=(artifact,),
        identity={},
        learner=student,
        objective=DPOObjective(task.objective, student),  # pyright: ignore[reportArgumentType]
        batches=batches,
        save=lambda folder: _save_student(folder, student, text, start),
        facts={"pairs": dataclasses.asdict(counts)},
    )


def _autoencoder_job(task: AutoencoderTask, fit: FitConfig, images: ImageInputs, start: Artifact | None) -> Job:
    if start is None:
        vae = build_nano_autoencoder(task.seed)
    else:
        vae = load_autoencoder(require_part(start, "vae").path / "vae").vae.requires_grad_(True)

    def batches(step: int) -> dict[str, Any]:
        ids = sample_ids(fit.seed, step, fit.global_batch_size, len(images))
        pixels, _ = _read_images(images, ids)
        return _move({"pixels": pixels, "ids": ids})

    def save(folder: Path) -> None:
        vae.to(DTYPES[task.dtype]).save_pretrained(folder / "vae")  # pyright: ignore[reportArgumentType, reportCallIssue]

    return Job(
        inputs=images.artifacts,
        identity=images.identity(),
        learner=vae.to(pick_device()),  # pyright: ignore[reportArgumentType, reportCallIssue]
        objective=ReconstructionObjective(task.objective),
        batches=batches,
        save=save,
        facts={"samples": len(images)},
    )


def _detector_job(task: DetectorTask, fit: FitConfig, images: ImageInputs, start: Artifact | None) -> Job:
    if start is None:
        network = build_nano_detector(task.seed)
    else:
        network = load_nano_detector(require_part(start, "detector").path / "detector").network.requires_grad_(True)

    def batches(step: int) -> dict[str, Any]:
        ids = sample_ids(fit.seed, step, fit.global_batch_size, len(images))
        pixels, metas = _read_images(images, ids)
        for i, meta in zip(ids, metas, strict=True):
            if not isinstance(meta.get("objects"), list):
                raise UserError(f"record {images.key(i)!r}: has no objects, allowed: images of the emoji teacher")
        return {"pixels": pixels, "objects": [meta["objects"] for meta in metas], "ids": ids}

    return Job(
        inputs=images.artifacts,
        identity=images.identity(),
        learner=network,
        objective=DetectionObjective(task.objective),
        batches=batches,
        save=lambda folder: save_detector(network, folder / "detector"),
        facts={"samples": len(images)},
    )


def _text_encoder(task: PretrainTask, start: Artifact) -> T5TextEncoder:
    if task.text_encoder == "new":
        return build_nano_text_encoder(task.seed)
    return _start_text_encoder(start)


def _start_text_encoder(start: Artifact) -> T5TextEncoder:
    folder = require_part(start, "text_encoder").path
    return load_text_encoder(folder / "text_encoder", folder / "tokenizer")


def _new_transformer(config: TransformerConfig, channels: int, text_width: int, seed: int) -> LightGenTransformer:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(draw_key(seed, "transformer-weights"))
        return LightGenTransformer(latent_channels=channels, text_width=text_width, **dataclasses.asdict(config))


def _check_grid(transformer: LightGenTransformer, latents: LatentShards) -> None:
    patch, channels = transformer.config["patch_size"], transformer.config["latent_channels"]
    found = latents.shape(0)
    if found[0] != channels or found[1] % patch or found[2] % patch:
        raise UserError(f"latents of shape {found}, allowed: {channels} channels, sides in multiples of {patch}")


def _noise(seed: int, step: int, sample: int, shape: torch.Size) -> torch.Tensor:
    return torch.randn(shape, generator=torch_draws(seed, "latent sample", step, sample))


def _tokenize(text: T5TextEncoder, rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
    ids, mask = text.tokenize([row["caption"] for row in rows])
    return {"text_ids": ids, "text_mask": mask}


def _read_images(images: ImageInputs, ids: Sequence[int]) -> tuple[torch.Tensor, list[dict[str, Any]]]:
    """Pixels uint8 [B, 3, H, W] and the records' JSON; the first image says the size."""
    records = [images[i] for i in ids]
    shape = records[0].image.shape
    for record in records:
        if record.image.shape != shape:
            raise UserError(f"record {record.key!r}: image of {record.image.shape}, allowed: one size, here {shape}")
    pixels = torch.from_numpy(np.stack([record.image for record in records])).permute(0, 3, 1, 2)
    return pixels.contiguous(), [dict(record.meta) for record in records]


def _move(batch: dict[str, Any]) -> dict[str, Any]:
    device = pick_device()
    return {name: each.to(device) if isinstance(each, torch.Tensor) else each for name, each in batch.items()}


def _save_student(folder: Path, student: Student, text: T5TextEncoder, start: Artifact) -> None:
    """All four parts; the autoencoder byte for byte as in the start, so that its latents stay valid."""
    parts = Parts(
        transformer=student.transformer,
        vae=load_autoencoder(start.path / "vae").vae,
        text_encoder=text.encoder,
        tokenizer=text.tokenizer,
    )
    LightGenPipeline.from_parts(parts).save_pretrained(folder)
    copy_part(start.path / "vae", folder / "vae")

