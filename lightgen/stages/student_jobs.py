"""Training a student by the masked objective, from a start checkpoint."""

import dataclasses
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lightgen.core.artifact import Artifact
from lightgen.core.draws import draw_key
from lightgen.core.errors import UserError
from lightgen.core.progress import say
from lightgen.data.order import Order
from lightgen.data.text_features import TextFeatures
from lightgen.models.blocks import Block, CrossBlock
from lightgen.models.head import Head
from lightgen.models.shape import TransformerConfig
from lightgen.models.student import Student
from lightgen.models.transformer import LightGenTransformer
from lightgen.objectives.alignment import AlignedObjective, add_projection
from lightgen.objectives.masked import MaskedObjective, draw_masking
from lightgen.ports.nano.text import build_nano_text_encoder
from lightgen.ports.text import T5TextEncoder, load_text_encoder
from lightgen.stages.budget import flops_per_image, text_is_fixed
from lightgen.stages.checkpoint import load_transformer, pick_device, require_part, transformer_shape
from lightgen.stages.encode_text import start_outline
from lightgen.stages.lora import add_lora
from lightgen.stages.sources import Draw, quarantine
from lightgen.stages.student_data import ImageData, LatentData, open_data
from lightgen.stages.student_save import StudentWriter
from lightgen.stages.tasks import Job, PretrainTask, TrainConfig
from lightgen.training.config import FitConfig
from lightgen.training.fit import Training
from lightgen.training.learning import Objective


def pretrain_job(
    config: TrainConfig, task: PretrainTask, inputs: Sequence[str | Path], start: Artifact
) -> Job:
    """The masked objective made ready, on latents or on images that are encoded on the way.

    Raises:
        UserError: inputs that are no images, or not latents of the start's autoencoder or of the wanted size;
            or a start without a part; or, for `task.repa`, no features of the pictures.
    """
    task.objective.check()
    data = open_data(task, inputs, start)
    is_fixed = text_is_fixed(task)
    text = start_outline(start) if is_fixed else _text_encoder(task, start, config.fit)
    transformer = _transformer(config, task, start, data, text)
    beside = None if task.repa is None else data.representation(transformer, task.repa.dim)
    features = data.features(start, transformer.shape, text) if is_fixed else None
    if is_fixed and features is None:
        text = start_text_encoder(start, config.fit)
    elif not is_fixed and any("text_features" in each.manifest for each in data.artifacts):
        say("train: the text encoder is new or learns, so the text features of the latents are not used")
    order = order_of(data.groups, config.fit, config.fit.held_out)
    student = new_student(transformer, text, features, task.train_text_encoder)
    if task.repa is not None:
        add_projection(student, task.repa, task.seed)
    draw = Draw(
        lambda step, ids, length: {
            "masking": draw_masking(task.objective, step, ids, length, transformer.head)
        },
        transformer,
        text,
        pick_device(),
        features,
    )
    writer = StudentWriter(
        start,
        dict(transformer.config),
        text,
        new_text=task.seed if task.text_encoder == "new" else None,
        trains_text=task.train_text_encoder,
        lora=None if task.lora is None else (task.lora, task.seed),
    )

    def make(folder: Path | None) -> Training:
        bad = quarantine(folder, order, config.run.max_bad_share)
        return Training(
            learner=student,
            objective=_objective(task, student),
            source=data.source(order, bad, draw, config.fit.seed, beside),
            layers=layers_of(transformer),
            held_out=order.held_out,
            flops_per_sample=lambda: flops_per_image(task, transformer.shape, data.grid(transformer)),
        )

    return Job(
        inputs=data.artifacts,
        identity=data.identity,
        learner=student,
        training=make,
        save=writer.write,
        facts={"samples": order.num_samples},
        exports=True,
    )


def _transformer(
    config: TrainConfig,
    task: PretrainTask,
    start: Artifact,
    data: LatentData | ImageData,
    text: T5TextEncoder,
) -> LightGenTransformer:
    """That of the start or a new one, which can take the data, with what is to learn."""
    if task.model is None:
        if task.position_step is not None:
            try:
                dataclasses.replace(transformer_shape(start), position_step=task.position_step).check()
            except ValueError as error:
                raise UserError(str(error)) from error
        folder = require_part(start, "transformer").path / "transformer"
        transformer = load_transformer(folder, task.position_step)
    elif task.position_step is not None:
        raise UserError("position_step: got one beside a new model, allowed: that of the model")
    else:
        transformer = new_transformer(task.model, data.channels, text, task.seed)
    data.check(transformer)
    if task.repa is not None:
        task.repa.check(transformer.shape.decoder_layers)
    if task.lora is not None:
        if task.model is not None or task.train_text_encoder:
            raise UserError("lora: got a new model or a text encoder to train, allowed: a start as it is")
        add_lora(transformer, task.lora.rank, task.lora.alpha, task.lora.targets, task.seed)
    if config.run.gradient_checkpointing:
        transformer.enable_gradient_checkpointing()
    return transformer


def new_student(
    transformer: LightGenTransformer,
    text: T5TextEncoder,
    features: TextFeatures | None = None,
    train_text_encoder: bool = False,
) -> Student:
    """Student on the device of this process; where all features are known, without its text encoder."""
    encoder = nn.Identity() if features is not None else text.encoder
    return Student(transformer, encoder, train_text_encoder).to(pick_device())


def _objective(task: PretrainTask, student: Student) -> Objective:
    found: Any = MaskedObjective(task.objective)
    if task.repa is not None:
        found = AlignedObjective(task.repa, task.objective, student)
    return found


def layers_of(transformer: LightGenTransformer) -> list[tuple[nn.Module, tuple[str, ...]]]:
    """Parts of a transformer that are sharded and compiled each on its own, with their further methods."""
    methods: dict[type, tuple[str, ...]] = {
        Block: ("project", "update"),
        CrossBlock: ("remember", "constant"),
        Head: ("embed_cond",),
    }
    return [(module, methods[type(module)]) for module in transformer.modules() if type(module) in methods]


def order_of(groups: Sequence[Sequence[range]], fit: FitConfig, held_out: int | Sequence[int]) -> Order:
    """The order of the samples; says how many are of sizes too rare to be used."""
    order = Order(groups, fit.global_batch_size, fit.seed, held_out)
    if order.unused:
        say(f"train: {order.unused} samples are of sizes that do not fill a global batch; they are not used")
    return order


def _text_encoder(task: PretrainTask, start: Artifact, fit: FitConfig) -> T5TextEncoder:
    if task.text_encoder == "new":
        return build_nano_text_encoder(task.seed)
    return start_text_encoder(start, replace(fit, precision="fp32") if task.train_text_encoder else fit)


def start_text_encoder(start: Artifact, fit: FitConfig) -> T5TextEncoder:
    """That of the start, in the type that a frozen one computes in: T5-XXL is large in fp32."""
    folder = require_part(start, "text_encoder").path
    dtype = torch.bfloat16 if fit.precision == "bf16" else torch.float32
    return load_text_encoder(folder / "text_encoder", folder / "tokenizer", dtype)


def new_transformer(
    config: TransformerConfig, channels: int, text: T5TextEncoder, seed: int
) -> LightGenTransformer:
    """Untrained transformer of a shape, fitted to latents of so many channels and to a text encoder."""
    shape = dataclasses.replace(
        config, latent_channels=channels, text_width=text.dim, text_length=text.max_length
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(draw_key(seed, "transformer-weights"))
        return LightGenTransformer(**dataclasses.asdict(shape))
