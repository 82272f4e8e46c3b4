"""Training a student by preferences: pairs of scored latents, and a reference that it is compared with."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lightgen.core.artifact import Artifact
from lightgen.core.config import config_to_dict
from lightgen.core.draws import permuted
from lightgen.core.errors import UserError
from lightgen.data.pairs import Pair, pair_up
from lightgen.models.student import Student
from lightgen.models.transformer import LightGenTransformer
from lightgen.objectives.dpo import DPOObjective, draw_pair_maskings, frozen_reference
from lightgen.stages.budget import flops_per_image
from lightgen.stages.checkpoint import load_transformer, part_digest, pick_device, require_part
from lightgen.stages.encode_text import start_outline
from lightgen.stages.lora import add_lora, without_lora
from lightgen.stages.reference_errors import ReferenceErrors
from lightgen.stages.sources import Draw, PairSource, frozen, quarantine
from lightgen.stages.student_data import LatentData, by_size, open_latents, rows_of_size
from lightgen.stages.student_jobs import layers_of, new_student, order_of, start_text_encoder
from lightgen.stages.student_save import StudentWriter
from lightgen.stages.tasks import DPOTask, Job, TrainConfig
from lightgen.training.fit import Training


def dpo_job(
    config: TrainConfig,
    task: DPOTask,
    inputs: Sequence[str | Path],
    start: Artifact,
    reference: Artifact | None,
    beside: Path,
) -> Job:
    """The preference objective made ready.

    Args:
        config: all numbers.
        task: of the config.
        inputs: one artifact of scored latents.
        start: checkpoint to begin from.
        reference: checkpoint that the student is compared with; None = the start.
        beside: folder where errors of the reference are kept, where they are wanted before.

    Raises:
        UserError: as `pretrain_job`, or no two rows of one prompt differ by the margin, or a reference that
            reads another text encoder or stands beside additions.
    """
    task.check()
    artifact, latents = open_latents(inputs, start)
    ranges = rows_of_size(artifact, latents, start, task.image_size)
    rows = latents.rows()
    numbers = [i for each in ranges for i in each] if ranges is not None else range(len(rows))
    of_size = [rows[i] for i in numbers]
    pairs, counts = pair_up(of_size, task.margin, task.how, task.top, task.per_prompt)
    pairs = [
        dataclasses.replace(each, chosen=numbers[each.chosen], rejected=numbers[each.rejected])
        for each in pairs
    ]
    if not pairs:
        raise UserError(
            f"{artifact.path}: no pair differs by {task.margin} or more ({counts.prompts} prompts, "
            f"{counts.ties} ties), allowed: at least one; sample more images per prompt, or lower the margin"
        )
    pairs, groups = by_size(latents, pairs)
    if not pairs:
        raise UserError(
            f"{artifact.path}: the images of every pair differ in size, allowed: one size in a pair"
        )
    transformer = load_transformer(require_part(start, "transformer").path / "transformer")
    data, text = LatentData(artifact, latents, ranges), start_outline(start)
    data.check(transformer)
    features = data.features(start, transformer.shape, text)
    if features is None:
        text = start_text_encoder(start, config.fit)
    if task.lora is not None:
        if reference is not None:
            raise UserError(
                "lora: got a --reference, allowed: none, as the start without additions is the reference"
            )
        add_lora(transformer, task.lora.rank, task.lora.alpha, task.lora.targets, task.seed)
    if config.run.gradient_checkpointing:
        transformer.enable_gradient_checkpointing()
    captions = [str(rows[each.chosen]["caption"]) for each in pairs]
    held_out = _held_out(captions, config.fit.held_out, config.fit.seed)
    if len(held_out) >= len(pairs):
        raise UserError(
            f"held_out: got {config.fit.held_out}, which takes all {len(pairs)} pairs: prompts are held out "
            f"whole ({len(set(captions))} with pairs), allowed: fewer, or more prompts"
        )
    order = order_of(groups, config.fit, held_out)
    student = new_student(transformer, text, features)
    draw = Draw(
        lambda step, ids, length: draw_pair_maskings(task.objective, step, ids, length, transformer.head),
        transformer,
        text,
        pick_device(),
        features,
    )
    base = start if reference is None else _checked(reference, start, transformer)

    def frozen_transformer() -> LightGenTransformer:
        """That of the reference."""
        loaded = load_transformer(base.path / "transformer")
        nn.Module.to(loaded, pick_device())
        if config.run.compile:
            for layer, _ in layers_of(loaded):
                layer.compile(dynamic=True)
        return loaded

    def frozen_student() -> Student:
        """The reference in the precision of the learner."""
        dtype = torch.bfloat16 if config.fit.precision == "bf16" else torch.float32
        loaded = frozen_transformer()
        frozen(loaded, dtype)
        return Student(loaded, student.text_encoder, train_text_encoder=False).eval()

    def make(folder: Path | None) -> Training:
        bad = quarantine(folder, order, config.run.max_bad_share)
        source, compared = PairSource(latents, pairs, order, bad, draw), None
        if task.precompute:
            known = ReferenceErrors(beside, config, _identity(config, task, artifact, pairs, base))
            source.known = known.find(source, order, frozen_student)
        elif task.lora is not None:
            compared = without_lora
        else:
            compared = frozen_reference(frozen_transformer(), student.text_encoder)
        return Training(
            learner=student,
            objective=DPOObjective(task.objective, student, compared),  # pyright: ignore[reportArgumentType]
            source=source,
            layers=layers_of(transformer),
            held_out=order.held_out,
            flops_per_sample=lambda: flops_per_image(task, transformer.shape, data.grid(transformer)),
        )

    return Job(
        inputs=(artifact, *([] if reference is None else [reference])),
        identity={} if reference is None else {"reference": reference.digest},
        learner=student,
        training=make,
        save=StudentWriter(
            start,
            dict(transformer.config),
            text,
            lora=None if task.lora is None else (task.lora, task.seed),
        ).write,
        facts={"pairs": {**dataclasses.asdict(counts), "other_size": counts.pairs - len(pairs)}},
        exports=True,
    )


def _held_out(captions: Sequence[str], wanted: int, seed: int) -> list[int]:
    """Pairs of prompts drawn until at least so many pairs are together: no prompt is on both sides."""
    prompts: dict[str, list[int]] = {}
    for number, caption in enumerate(captions):
        prompts.setdefault(caption, []).append(number)
    groups, found = list(prompts.values()), []
    for place in permuted(seed, "held-out prompts", 0, range(len(groups)), len(groups)) if wanted else ():
        if len(found) >= wanted:
            break
        found += groups[place]
    return sorted(found)


def _identity(
    config: TrainConfig, task: DPOTask, artifact: Artifact, pairs: Sequence[Pair], reference: Artifact
) -> dict[str, Any]:
    """All that the errors of the reference depend on."""
    objective = config_to_dict(task.objective)
    laws = {name: objective[name] for name in ("masking", "within_pair", "with_reference")}
    fit = {name: getattr(config.fit, name) for name in ("seed", "global_batch_size", "held_out", "precision")}
    numbers = [[each.chosen, each.rejected] for each in pairs]
    parents = {"latents": artifact.digest, "reference": reference.digest}
    return {**laws, **fit, **parents, "pairs": numbers}


def _checked(reference: Artifact, start: Artifact, transformer: LightGenTransformer) -> Artifact:
    """The reference, which differs from the start in the weights of its transformer alone."""
    for part in ("text_encoder", "vae"):
        if part_digest(reference, part) != part_digest(start, part):
            raise UserError(
                f"--reference: {reference.path} has another {part} than {start.path}, allowed: the same"
            )
    found = load_transformer(require_part(reference, "transformer").path / "transformer").shape
    if found != transformer.shape:
        raise UserError(f"--reference: {reference.path} is of another shape than {start.path}, allowed: one")
    return reference
