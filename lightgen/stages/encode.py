"""Encode: images become latents, by the autoencoder of a checkpoint."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from lightgen.core.artifact import Artifact, begin_artifact
from lightgen.core.config import config_to_dict
from lightgen.core.errors import UserError
from lightgen.core.progress import Progress, say
from lightgen.data.images import CorruptRecord, ImageRecord
from lightgen.data.latents import LatentShards, write_latent_shard
from lightgen.data.picture import fit_square
from lightgen.ports.autoencoder import DiffusersAutoencoder, load_autoencoder
from lightgen.stages.checkpoint import NANO, autoencoder_digest, open_checkpoint, pick_device
from lightgen.stages.inputs import ImageInputs, open_images, require_size

_COPIED = ("tag", "include", "exclude", "score", "seed", "generator")


@dataclass(frozen=True, kw_only=True)
class EncodeConfig:
    """How images are encoded.

    Attributes:
        batch_size: images per pass.
        shard_size: rows per shard, the unit of work that a killed run does not repeat.
        precision: of the pass; latents are stored in bf16 in any case.
        size: side in px to which the middle square of every image is scaled; None takes images as they are,
            all of one size.
    """

    batch_size: int = 50
    shard_size: int = 1000
    precision: Literal["bf16", "fp32"] = "fp32"
    size: int | None = None


def encode(
    config: EncodeConfig, out: str | Path, images: Sequence[str | Path], start: str | Path = NANO
) -> Artifact:
    """Artifact of latents: mean (and std, where the autoencoder has one) and caption of every readable image.

    Args:
        config: batch and shard sizes.
        out: where the artifact will be.
        images: artifacts of images, or directories of plain tars.
        start: checkpoint whose autoencoder encodes.

    Raises:
        UserError: inputs that are no images or of several sizes, or a start without autoencoder.
    """
    inputs, checkpoint = open_images(images), open_checkpoint(start)
    autoencoder = autoencoder_digest(checkpoint)
    settings = {"stage": "encode", **config_to_dict(config), **inputs.identity()}
    found = begin_artifact(out, "latents", settings, [*inputs.artifacts, checkpoint])
    if isinstance(found, Artifact):
        return found
    with found as workspace:
        encoder = _Encoder(config, load_autoencoder(checkpoint.path / "vae"), inputs)
        total = len(inputs)
        shards = [range(s, min(s + config.shard_size, total)) for s in range(0, total, config.shard_size)]
        names = [f"latents-{number:05d}.safetensors" for number in range(len(shards))]
        done = sum(len(shard) for name, shard in zip(names, shards, strict=True) if workspace.has(name))
        with Progress("encode", total, "images", done) as progress:
            for name, shard in zip(names, shards, strict=True):
                if not workspace.has(name):
                    encoder.write(workspace.path / name, shard, progress)
        rows = len(LatentShards(workspace.path))
        return workspace.commit(
            {"rows": rows, "skipped": total - rows}, autoencoder=autoencoder, text_encoder=None
        )


class _Encoder:
    """An autoencoder and the images that it encodes; all of them have the size of the first."""

    def __init__(self, config: EncodeConfig, autoencoder: DiffusersAutoencoder, inputs: ImageInputs) -> None:
        self._config, self._inputs = config, inputs
        self._device = pick_device()
        autoencoder.vae.to(self._device)  # pyright: ignore[reportArgumentType, reportCallIssue]
        self._autoencoder = autoencoder
        self._size = (config.size, config.size) if config.size else _first_size(inputs)
        if any(side % autoencoder.stride for side in self._size):
            got = f"{self._size[1]}x{self._size[0]} px"
            raise UserError(
                f"encode: images of {got}, allowed: sides in multiples of {autoencoder.stride} px"
            )

    def write(self, path: Path, shard: range, progress: Progress) -> None:
        """Write the shard of the records that can be read."""
        means, stds, rows = [], [], []
        for batch in self._batches(shard):
            mean, std = self._encode(np.stack([record.image for _, record in batch]))
            means.append(mean)
            stds.append(std)
            rows += [_row(self._inputs.key(i), record) for i, record in batch]
            progress.advance(len(batch))
        if rows:
            std = torch.cat(stds)
            write_latent_shard(path, torch.cat(means), std if bool(std.any()) else None, rows)

    def _batches(self, shard: range) -> Iterator[list[tuple[int, ImageRecord]]]:
        batch: list[tuple[int, ImageRecord]] = []
        for i in shard:
            try:
                record = self._inputs[i]
            except CorruptRecord as error:
                say(f"encode: skipped {error}")
                continue
            if self._config.size is not None:
                record = replace(record, image=fit_square(record.image, self._config.size))
            require_size(record.image, *self._size, key=record.key)
            batch.append((i, record))
            if len(batch) == self._config.batch_size:
                yield batch
                batch = []
        if batch:
            yield batch

    @torch.inference_mode()
    def _encode(self, images: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        pixels = torch.from_numpy(images).permute(0, 3, 1, 2).to(self._device).float().div(127.5).sub(1)
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._config.precision == "bf16"):
            mean, std = self._autoencoder.encode(pixels)
        return mean.float().cpu(), std.float().cpu()


def _first_size(inputs: ImageInputs) -> tuple[int, int]:
    """(height, width) of the first image that can be read."""
    for i in range(len(inputs)):
        try:
            height, width = inputs[i].image.shape[:2]
        except CorruptRecord:
            continue
        return height, width
    raise UserError(f"encode: none of {len(inputs)} images can be read, allowed: PNG, JPEG or WebP")


def _row(key: str, record: ImageRecord) -> dict[str, Any]:
    height, width = record.image.shape[:2]
    row = {"caption": record.meta["prompt"], "key": key, "height": height, "width": width}
    return row | {name: record.meta[name] for name in _COPIED if name in record.meta}
