"""Training the small stand-ins for others' models: autoencoder and detector, on images."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lightgen.core.artifact import Artifact
from lightgen.core.errors import UserError
from lightgen.data.order import Order
from lightgen.objectives.detection import DetectionObjective
from lightgen.objectives.reconstruction import ReconstructionObjective
from lightgen.ports.autoencoder import load_autoencoder
from lightgen.ports.nano.autoencoder import build_nano_autoencoder
from lightgen.ports.nano.detector import build_nano_detector, load_nano_detector
from lightgen.ports.nano.sprites import decode_mask
from lightgen.stages.checkpoint import cast, forget_origin, pick_device, require_part, save_detector
from lightgen.stages.inputs import ImageInputs, open_images
from lightgen.stages.sources import PictureSource, quarantine
from lightgen.stages.tasks import AutoencoderTask, DetectorTask, Job, TrainConfig
from lightgen.training.fit import Training
from lightgen.training.learning import Objective

_DTYPES = {"fp32": torch.float32, "fp16": torch.float16}


def autoencoder_job(
    config: TrainConfig, task: AutoencoderTask, inputs: Sequence[str | Path], start: Artifact | None
) -> Job:
    """The reconstruction objective made ready; without a start it begins from new weights.

    Raises:
        UserError: inputs that are no images, or a start without this part.
    """
    images = open_images(inputs)
    if start is None:
        vae = build_nano_autoencoder(task.seed)
    else:
        vae = load_autoencoder(require_part(start, "vae").path / "vae").vae.requires_grad_(True)

    def save(folder: Path, averaged: Mapping[str, torch.Tensor]) -> None:
        vae.load_state_dict(dict(averaged), strict=False)
        cast(vae, _DTYPES[task.dtype])
        vae.save_pretrained(folder / "vae")
        forget_origin(folder)

    objective = ReconstructionObjective(task.objective)
    return _job(config, images, vae, objective, lambda key, meta: {}, save)


def detector_job(
    config: TrainConfig, task: DetectorTask, inputs: Sequence[str | Path], start: Artifact | None
) -> Job:
    """The detection objective made ready; without a start it begins from new weights.

    Raises:
        UserError: inputs that are no images, or a start without this part.
    """
    images = open_images(inputs)
    if start is None:
        network = build_nano_detector(task.seed)
    else:
        folder = require_part(start, "detector").path / "detector"
        network = load_nano_detector(folder).network.requires_grad_(True)

    def objects(key: str, meta: Mapping[str, Any]) -> dict[str, Any]:
        if not isinstance(meta.get("objects"), list):
            raise UserError(f"record {key!r}: has no objects, allowed: images of the emoji teacher")
        masked = (
            {**each, "mask": decode_mask(each["mask"])} if "mask" in each else each
            for each in meta["objects"]
        )
        return {"objects": list(masked)}

    def save(folder: Path, averaged: Mapping[str, torch.Tensor]) -> None:
        network.load_state_dict(dict(averaged), strict=False)
        save_detector(network, folder / "detector")

    return _job(config, images, network, DetectionObjective(task.objective), objects, save)


def _job(
    config: TrainConfig,
    images: ImageInputs,
    network: nn.Module,
    objective: Objective,
    more: Callable[[str, Mapping[str, Any]], dict[str, Any]],
    save: Callable[[Path, Mapping[str, torch.Tensor]], None],
) -> Job:
    """A network that learns from pictures as they are, on one rank."""
    order = Order([[range(len(images))]], config.fit.global_batch_size, config.fit.seed, config.fit.held_out)
    learner = nn.Module.to(network, pick_device())

    def make(folder: Path | None) -> Training:
        bad = quarantine(folder, order, config.run.max_bad_share)
        source = PictureSource(images, order, bad, pick_device(), more)
        return Training(learner=learner, objective=objective, source=source, held_out=order.held_out)

    return Job(
        inputs=images.artifacts,
        identity=images.identity(),
        learner=learner,
        training=make,
        save=save,
        facts={"samples": len(images)},
    )
