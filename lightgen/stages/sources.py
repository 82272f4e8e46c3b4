"""Where training gets its samples: latents, pairs of latents, or pictures, whole or encoded on the way."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from lightgen.core.draws import torch_draws
from lightgen.core.ranks import rank
from lightgen.data.latents import LatentShards
from lightgen.data.order import Order
from lightgen.data.pairs import Pair
from lightgen.data.picture import fit
from lightgen.data.quarantine import Quarantine, blaming, renaming
from lightgen.data.text_features import TextFeatures
from lightgen.models.transformer import LightGenTransformer
from lightgen.objectives.masked import Masking
from lightgen.ports.autoencoder import DiffusersAutoencoder
from lightgen.ports.text import T5TextEncoder, tokenize
from lightgen.stages.inputs import ImageInputs, require_size

Texts = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class Draw:
    """What turns latents and captions into a micro-batch for an objective that hides tokens.

    Attributes:
        maskings: of a step, sample ids and a number of tokens, by their names in the batch.
        transformer: whose text is cut.
        text: its text encoder.
        device: of the micro-batch.
        features: of all captions, where they are known; the text encoder then reads nothing.
    """

    maskings: Callable[[int, Sequence[int], int], Mapping[str, Masking]]
    transformer: LightGenTransformer
    text: T5TextEncoder
    device: torch.device
    features: TextFeatures | None = None

    def texts(self, captions: Sequence[str], ids: Sequence[int]) -> Texts:
        """Mask of the texts, with their tokens or, where they are known, features; see `predict`.

        Raises:
            CorruptSample: features that are missing or cannot be read.
        """
        shape = self.transformer.shape
        padded_to = None if shape.text_masked else shape.text_length
        if self.features is not None:
            found, mask = self.features.gather(captions, ids, padded_to)
            return {"text_features": found, "text_mask": mask}
        limit = min(shape.text_length, self.text.max_length)
        text_ids, text_mask = tokenize(self.text.tokenizer, captions, limit, padded_to)
        return {"text_ids": text_ids, "text_mask": text_mask}

    def batch(
        self, latents: Mapping[str, torch.Tensor], texts: Texts, ids: Sequence[int], step: int
    ) -> dict[str, Any]:
        """Latents [B, C, h, w] by name, all of one text per sample, with that and the maskings."""
        first = next(iter(latents.values()))
        length = first.shape[2] * first.shape[3] // self.transformer.shape.patch_size**2
        maskings = self.maskings(step, ids, length)
        batch = {**latents, **texts}
        moved = {name: tensor.to(self.device, non_blocking=True) for name, tensor in batch.items()}
        return {**moved, **{name: m.to(self.device) for name, m in maskings.items()}, "ids": list(ids)}


class LatentSource:
    """Micro-batches of latents; where they have a std, each time another sample of them."""

    def __init__(self, latents: LatentShards, order: Order, bad: Quarantine, draw: Draw, seed: int) -> None:
        self._latents, self._bad, self._draw, self._seed = latents, bad, draw, seed
        self.ids = order.ids

    def load(self, ids: Sequence[int], step: int) -> dict[str, Any]:
        """Micro-batch of samples; those that stand in for bad ones bring their own draws."""
        chosen, (mean, std, texts) = self._bad.read(ids, self._gather)
        latents = sampled(mean, std, chosen, step, self._seed)
        return self._draw.batch({"latents": latents}, texts, chosen, step)

    def _gather(self, ids: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor | None, Texts]:
        mean, std, rows = self._latents.gather(ids)
        return mean, std, self._draw.texts([row["caption"] for row in rows], ids)


class ImageSource:
    """Micro-batches of latents of pictures that are cut to squares and encoded on the way."""

    def __init__(
        self,
        images: ImageInputs,
        order: Order,
        bad: Quarantine,
        draw: Draw,
        seed: int,
        autoencoder: DiffusersAutoencoder,
        size: int,
    ) -> None:
        self._images, self._bad, self._draw, self._seed = images, bad, draw, seed
        self._autoencoder, self._size = autoencoder, size
        self.ids = order.ids

    def load(self, ids: Sequence[int], step: int) -> dict[str, Any]:
        """Micro-batch of samples; those that stand in for bad ones bring their own draws."""
        chosen, (pixels, texts) = self._bad.read(ids, self._gather)
        with torch.no_grad():
            scaled = pixels.to(self._draw.device).float().div(127.5).sub(1)
            mean, std = self._autoencoder.encode(scaled)
        latents = sampled(mean.float(), std.float(), chosen, step, self._seed)
        return self._draw.batch({"latents": latents}, texts, chosen, step)

    def _gather(self, ids: Sequence[int]) -> tuple[torch.Tensor, Texts]:
        images, captions = [], []
        for i in ids:
            with blaming(i):
                record = self._images[i]
            images.append(fit(record.image, self._size, self._size))
            captions.append(str(record.meta["prompt"]))
        return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2), self._draw.texts(captions, ids)


class PairSource:
    """Micro-batches of preference pairs, by their number; with errors of the reference where those are known.

    Attributes:
        known: gives errors float32 [B, 2] of pairs at a step; None = nothing is known.
    """

    def __init__(
        self, latents: LatentShards, pairs: Sequence[Pair], order: Order, bad: Quarantine, draw: Draw
    ) -> None:
        self._latents, self._pairs, self._bad, self._draw = latents, pairs, bad, draw
        self.ids = order.ids
        self.known: Callable[[int, Sequence[int]], torch.Tensor] | None = None

    def load(self, ids: Sequence[int], step: int) -> dict[str, Any]:
        """Micro-batch of pairs."""
        chosen, (better, worse, texts) = self._bad.read(ids, self._gather)
        batch = self._draw.batch({"chosen": better, "rejected": worse}, texts, chosen, step)
        if self.known is not None:
            batch["reference_errors"] = self.known(step, chosen).to(self._draw.device)
        return batch

    def _gather(self, ids: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor, Texts]:
        sides = []
        for side in ("chosen", "rejected"):
            rows = [getattr(self._pairs[i], side) for i in ids]
            with renaming(dict(zip(rows, ids, strict=True))):
                sides.append(self._latents.gather(rows))
        (better, _, table), (worse, _, _) = sides
        return better, worse, self._draw.texts([row["caption"] for row in table], ids)


class PictureSource:
    """Micro-batches of pictures as they are, for the small networks that look at pixels."""

    def __init__(
        self,
        images: ImageInputs,
        order: Order,
        bad: Quarantine,
        device: torch.device,
        more: Callable[[str, Mapping[str, Any]], dict[str, Any]],
    ) -> None:
        self._images, self._bad, self._device, self._more = images, bad, device, more
        self._size: tuple[int, int] | None = None
        self.ids = order.ids

    def load(self, ids: Sequence[int], step: int) -> dict[str, Any]:
        """Micro-batch: `pixels` uint8 [B, 3, H, W], `ids`, and what `more` gives of each record's JSON."""
        chosen, (pixels, extras) = self._bad.read(ids, self._gather)
        lists = {name: [extra[name] for extra in extras] for name in extras[0]}
        return {"pixels": pixels.to(self._device), "ids": chosen, **lists}

    def _gather(self, ids: Sequence[int]) -> tuple[torch.Tensor, list[dict[str, Any]]]:
        images, extras = [], []
        for i in ids:
            with blaming(i):
                record = self._images[i]
            self._size = self._size or record.image.shape[:2]
            images.append(require_size(record.image, *self._size, key=record.key))
            extras.append(self._more(record.key, record.meta))
        return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous(), extras


def sampled(
    mean: torch.Tensor, std: torch.Tensor | None, ids: Sequence[int], step: int, seed: int
) -> torch.Tensor:
    """Latents [B, C, h, w] drawn for samples and a step from what the autoencoder says of them."""
    if std is None or not bool(std.any()):
        return mean
    draws = (torch_draws(seed, "latent sample", step, i) for i in ids)
    noise = torch.stack([torch.randn(mean.shape[1:], generator=random) for random in draws])
    return mean + std * noise.to(mean.device)


def quarantine(folder: Path | None, order: Order, max_share: float) -> Quarantine:
    """Bad samples of a run, noted in `folder/quarantine`."""
    place = None if folder is None else folder / "quarantine"
    return Quarantine(place, order, order.num_samples, max_share, rank())


def frozen(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """The module in eval mode, without gradients, in a type."""
    return nn.Module.to(module.eval().requires_grad_(False), dtype)
