"""Training the small stand-ins for others' models: autoencoder and detector, on images."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lightgen.core.artifact import Artifact
from lightgen.core.errors import UserError
from lightgen.data.order import sample_ids
from lightgen.objectives.detection import DetectionObjective
from lightgen.objectives.reconstruction import ReconstructionObjective
from lightgen.ports.autoencoder import load_autoencoder
from lightgen.ports.nano.autoencoder import build_nano_autoencoder
from lightgen.ports.nano.detector import build_nano_detector, load_nano_detector
from lightgen.stages.checkpoint import cast, forget_origin, pick_device, require_part, save_detector
from lightgen.stages.inputs import ImageInputs, open_images
from lightgen.stages.tasks import AutoencoderTask, DetectorTask, Job
from lightgen.training.fit import FitConfig

_DTYPES = {"fp32": torch.float32, "fp16": torch.float16}


def autoencoder_job(
    task: AutoencoderTask, fit: FitConfig, inputs: Sequence[str | Path], start: Artifact | None
) -> Job:
    """The reconstruction objective made ready; without a start it begins from new weights.

    Raises:
        UserError: inputs that are no images, or a start without this part.
    """
    images, device = open_images(inputs), pick_device()
    if start is None:
        vae = build_nano_autoencoder(task.seed)
    else:
        vae = load_autoencoder(require_part(start, "vae").path / "vae").vae.requires_grad_(True)

    def batches(step: int) -> dict[str, Any]:
        ids = sample_ids(fit.seed, step, fit.global_batch_size, len(images))
        pixels, _ = _read_images(images, ids)
        return {"pixels": pixels.to(device), "ids": ids}

    def save(folder: Path) -> None:
        cast(vae, _DTYPES[task.dtype])
        vae.save_pretrained(folder / "vae")
        forget_origin(folder)

    return Job(
        inputs=images.artifacts,
        identity=images.identity(),
        learner=vae.to(device),  # pyright: ignore[reportArgumentType, reportCallIssue]
        objective=ReconstructionObjective(task.objective),
        batches=batches,
        save=save,
        facts={"samples": len(images)},
    )


def detector_job(
    task: DetectorTask, fit: FitConfig, inputs: Sequence[str | Path], start: Artifact | None
) -> Job:
    """The detection objective made ready; without a start it begins from new weights.

    Raises:
        UserError: inputs that are no images, or a start without this part.
    """
    images = open_images(inputs)
    if start is None:
        network = build_nano_detector(task.seed)
    else:
        network = load_nano_detector(
            require_part(start, "detector").path / "detector"
        ).network.requires_grad_(True)

    def batches(step: int) -> dict[str, Any]:
        ids = sample_ids(fit.seed, step, fit.global_batch_size, len(images))
        pixels, metas = _read_images(images, ids)
        for i, meta in zip(ids, metas, strict=True):
            if not isinstance(meta.get("objects"), list):
                raise UserError(
                    f"record {images.key(i)!r}: has no objects, allowed: images of the emoji teacher"
                )
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


def _read_images(images: ImageInputs, ids: Sequence[int]) -> tuple[torch.Tensor, list[dict[str, Any]]]:
    """Pixels uint8 [B, 3, H, W] and the records' JSON; the first image says the size."""
    records = [images[i] for i in ids]
    shape = records[0].image.shape
    for record in records:
        if record.image.shape != shape:
            raise UserError(
                f"record {record.key!r}: image of {record.image.shape}, allowed: one size, here {shape}"
            )
    pixels = torch.from_numpy(np.stack([record.image for record in records])).permute(0, 3, 1, 2)
    return pixels.contiguous(), [dict(record.meta) for record in records]
