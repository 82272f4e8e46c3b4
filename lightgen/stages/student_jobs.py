"""Training a student: the masked and the preference objective, on latents, from a start checkpoint."""

import copy
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from lightgen.core.artifact import Artifact, open_artifact
from lightgen.core.draws import draw_key, torch_draws
from lightgen.core.errors import UserError
from lightgen.data.latents import LatentShards
from lightgen.data.order import sample_ids
from lightgen.data.pairs import count_pairs, pair
from lightgen.models.shape import TransformerConfig
from lightgen.models.student import Student
from lightgen.models.transformer import LightGenTransformer
from lightgen.objectives.dpo import DPOObjective
from lightgen.objectives.masked import MaskedObjective
from lightgen.ports.autoencoder import load_autoencoder
from lightgen.ports.nano.text import build_nano_text_encoder
from lightgen.ports.text import T5TextEncoder, load_text_encoder
from lightgen.stages.checkpoint import (
    Parts,
    autoencoder_digest,
    copy_part,
    load_transformer,
    pick_device,
    require_part,
)
from lightgen.stages.lora import add_lora, fuse_lora, lora_names, save_lora
from lightgen.stages.pipeline import LightGenPipeline
from lightgen.stages.tasks import DPOTask, Job, PretrainTask
from lightgen.training.fit import FitConfig


def pretrain_job(task: PretrainTask, fit: FitConfig, inputs: Sequence[str | Path], start: Artifact) -> Job:
    """The masked objective made ready.

    Raises:
        UserError: inputs that are not latents of the start's autoencoder, or a start without a part.
    """
    artifact, latents = _open_latents(inputs, start)
    text = _text_encoder(task, start)
    if task.model is None:
        transformer = load_transformer(require_part(start, "transformer").path / "transformer")
    else:
        transformer = _new_transformer(task.model, latents, text, task.seed)
    _check_grid(transformer, latents)
    if task.lora is not None:
        if task.model is not None or task.train_text_encoder:
            raise UserError("lora: got a new model or a text encoder to train, allowed: a start as it is")
        add_lora(transformer, task.lora.rank, task.lora.alpha, task.lora.targets, task.seed)
    if task.gradient_checkpointing:
        transformer.enable_gradient_checkpointing()
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


def dpo_job(task: DPOTask, fit: FitConfig, inputs: Sequence[str | Path], start: Artifact) -> Job:
    """The preference objective made ready; the start is the reference.

    Raises:
        UserError: as `pretrain_job`, or no two rows of one prompt differ by the margin.
    """
    artifact, latents = _open_latents(inputs, start)
    rows = latents.rows()
    pairs = pair(rows, task.margin, task.how)
    counts = count_pairs(rows, task.margin, task.how)
    if not pairs:
        raise UserError(
            f"{artifact.path}: no pair differs by {task.margin} or more ({counts.prompts} prompts, "
            f"{counts.ties} ties), allowed: at least one; sample more images per prompt, or lower the margin"
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


def _open_latents(inputs: Sequence[str | Path], start: Artifact) -> tuple[Artifact, LatentShards]:
    """The one artifact of latents, which the autoencoder of the start has made."""
    if len(inputs) != 1:
        raise UserError(f"--in: got {len(inputs)} directories, allowed: one of latents")
    artifact = open_artifact(inputs[0], "latents")
    made_by, expected = artifact.manifest.get("autoencoder"), autoencoder_digest(start)
    if made_by != expected:
        raise UserError(
            f"{artifact.path}: made by autoencoder {str(made_by)[:12]}, allowed: {expected[:12]}, "
            f"that of {start.path.name}; encode with it"
        )
    return artifact, LatentShards(artifact.path)


def _text_encoder(task: PretrainTask, start: Artifact) -> T5TextEncoder:
    if task.text_encoder == "new":
        return build_nano_text_encoder(task.seed)
    return _start_text_encoder(start)


def _start_text_encoder(start: Artifact) -> T5TextEncoder:
    folder = require_part(start, "text_encoder").path
    return load_text_encoder(folder / "text_encoder", folder / "tokenizer")


def _new_transformer(
    config: TransformerConfig, latents: LatentShards, text: T5TextEncoder, seed: int
) -> LightGenTransformer:
    shape = dataclasses.replace(
        config, latent_channels=latents.channels, text_width=text.dim, text_length=text.max_length
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(draw_key(seed, "transformer-weights"))
        return LightGenTransformer(**dataclasses.asdict(shape))


def _check_grid(transformer: LightGenTransformer, latents: LatentShards) -> None:
    patch, channels = transformer.shape.patch_size, transformer.shape.latent_channels
    found = latents.shape(0)
    if found[0] != channels or found[1] % patch or found[2] % patch:
        raise UserError(
            f"latents of shape {found}, allowed: {channels} channels, sides in multiples of {patch}"
        )


def _noise(seed: int, step: int, sample: int, shape: torch.Size) -> torch.Tensor:
    return torch.randn(shape, generator=torch_draws(seed, "latent sample", step, sample))


def _tokenize(text: T5TextEncoder, rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
    ids, mask = text.tokenize([row["caption"] for row in rows])
    return {"text_ids": ids, "text_mask": mask}


def _save_student(folder: Path, student: Student, text: T5TextEncoder, start: Artifact) -> None:
    """All four parts; the autoencoder byte for byte as in the start, so that its latents stay valid.

    A student with LoRA is saved twice: the additions alone in `lora/`, and a transformer that holds them.
    """
    transformer = student.transformer
    if lora_names(transformer):
        save_lora(transformer, folder / "lora")
        transformer = copy.deepcopy(transformer)
        fuse_lora(transformer)
    parts = Parts(
        transformer=transformer,
        vae=load_autoencoder(start.path / "vae").vae,
        text_encoder=text.encoder,
        tokenizer=text.tokenizer,
    )
    LightGenPipeline.from_parts(parts).save_pretrained(folder)
    copy_part(start.path / "vae", folder / "vae")


def _move(batch: dict[str, Any]) -> dict[str, Any]:
    device = pick_device()
    return {name: each.to(device) if isinstance(each, torch.Tensor) else each for name, each in batch.items()}
