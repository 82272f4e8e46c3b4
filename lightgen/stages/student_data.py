"""What a student learns from: latents on disk, pairs of them, or images that are encoded on the way."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lightgen.core.artifact import Artifact, kind_of, open_artifact
from lightgen.core.errors import UserError
from lightgen.core.ranks import rank
from lightgen.data.latents import LatentShards
from lightgen.data.order import Order
from lightgen.data.pairs import Pair, score_of
from lightgen.data.quarantine import Quarantine
from lightgen.data.representation import Representation
from lightgen.data.text_features import TextFeatures
from lightgen.models.shape import TransformerConfig
from lightgen.models.transformer import LightGenTransformer
from lightgen.ports.autoencoder import DiffusersAutoencoder, load_autoencoder
from lightgen.ports.text import T5TextEncoder
from lightgen.stages.checkpoint import autoencoder_digest, pick_device, require_part
from lightgen.stages.encode_representation import open_representation
from lightgen.stages.encode_text import find_features
from lightgen.stages.inputs import ImageInputs, open_images
from lightgen.stages.sources import Draw, ImageSource, LatentSource, Texts, frozen
from lightgen.stages.tasks import PretrainTask
from lightgen.training.feed import Source


@dataclass(frozen=True)
class LatentData:
    """Latents on disk, all of them or those whose numbers are in the ranges."""

    artifact: Artifact
    latents: LatentShards
    ranges: Sequence[range] | None = None

    def features(self, start: Artifact, shape: TransformerConfig, text: T5TextEncoder) -> TextFeatures | None:
        """Features that stand for the frozen text encoder of a start; see `find_features`."""
        return find_features(self.artifact, start, shape, text)

    @property
    def artifacts(self) -> tuple[Artifact, ...]:
        """Parents of what is trained."""
        return (self.artifact,)

    @property
    def identity(self) -> dict[str, Any]:
        """What the config must hold to tell plain inputs from others."""
        return {}

    @property
    def channels(self) -> int:
        """Of the latents."""
        return self.latents.channels

    @property
    def groups(self) -> list[list[range]]:
        """Samples by size; see `Order`."""
        if self.ranges is None:
            return self.latents.groups()
        groups = [_overlap(group, self.ranges) for group in self.latents.groups()]
        return [group for group in groups if group]

    def grid(self, transformer: LightGenTransformer) -> tuple[int, int]:
        """Rows and columns of tokens of the first sample."""
        patch = transformer.shape.patch_size
        _, height, width = self.latents.shape(self.groups[0][0].start)
        return height // patch, width // patch

    def check(self, transformer: LightGenTransformer) -> None:
        """Raises UserError: latents that the transformer cannot take."""
        patch, channels = transformer.shape.patch_size, transformer.shape.latent_channels
        for group in self.groups:
            found = self.latents.shape(group[0].start)
            if found[0] != channels or found[1] % patch or found[2] % patch:
                raise UserError(
                    f"latents of shape {found}, allowed: {channels} channels, sides in multiples of {patch}"
                )

    def representation(self, transformer: LightGenTransformer, dim: int) -> Representation:
        """Features of the pictures, of this width and one for each token; see `open_representation`."""
        return open_representation(self.artifact, self.latents, transformer.shape.patch_size, dim)

    def source(
        self, order: Order, bad: Quarantine, draw: Draw, seed: int, beside: Representation | None = None
    ) -> Source:
        """Where training reads them, with features of the pictures beside where these are given."""
        if beside is not None:
            return RepresentedSource(self.latents, order, bad, draw, seed, beside)
        return LatentSource(self.latents, order, bad, draw, seed)


class RepresentedSource(LatentSource):
    """Micro-batches of latents with `representation` [B, L, D] of their pictures; one unread, both are."""

    def __init__(
        self,
        latents: LatentShards,
        order: Order,
        bad: Quarantine,
        draw: Draw,
        seed: int,
        representation: Representation,
    ) -> None:
        super().__init__(latents, order, bad, draw, seed)
        self._representation = representation

    def _gather(self, ids: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor | None, Texts]:
        mean, std, texts = super()._gather(ids)
        return mean, std, {**texts, "representation": self._representation.gather(ids)}


@dataclass(frozen=True)
class ImageData:
    """Images that the start's autoencoder encodes on the way."""

    images: ImageInputs
    autoencoder: DiffusersAutoencoder
    size: int

    def features(self, start: Artifact, shape: TransformerConfig, text: T5TextEncoder) -> TextFeatures | None:
        """None: the text encoder reads along."""
        return None

    @property
    def artifacts(self) -> tuple[Artifact, ...]:
        """Parents of what is trained."""
        return self.images.artifacts

    @property
    def identity(self) -> dict[str, Any]:
        """What the config must hold to tell plain inputs from others."""
        return self.images.identity()

    @property
    def channels(self) -> int:
        """Of the latents."""
        return self.autoencoder.channels

    @property
    def groups(self) -> list[list[range]]:
        """Samples by size; see `Order`."""
        return [[range(len(self.images))]]

    def grid(self, transformer: LightGenTransformer) -> tuple[int, int]:
        """Rows and columns of tokens of every sample."""
        side = self.size // self.autoencoder.stride // transformer.shape.patch_size
        return side, side

    def check(self, transformer: LightGenTransformer) -> None:
        """Raises UserError: a size or channels that the transformer cannot take."""
        unit = self.autoencoder.stride * transformer.shape.patch_size
        if self.size % unit or self.channels != transformer.shape.latent_channels:
            got = f"images of {self.size} px with {self.channels} latent channels"
            allowed = f"multiples of {unit} px, {transformer.shape.latent_channels} channels"
            raise UserError(f"train: got {got}, allowed: {allowed}")

    def representation(self, transformer: LightGenTransformer, dim: int) -> Representation:
        """Raises UserError: features are stored with latents."""
        raise UserError(
            "train: got images and task.repa, allowed: latents that were encoded with representation.stored"
        )

    def source(
        self, order: Order, bad: Quarantine, draw: Draw, seed: int, beside: Representation | None = None
    ) -> Source:
        """Where training reads them."""
        assert beside is None
        return ImageSource(self.images, order, bad, draw, seed, self.autoencoder, self.size)


def open_data(task: PretrainTask, inputs: Sequence[str | Path], start: Artifact) -> LatentData | ImageData:
    """Latents, or images where the first input is no artifact of latents."""
    size = task.image_size
    if size is not None and size < 1:
        raise UserError(f"train: got task.image_size {size}, allowed: a side in px")
    if inputs and Path(inputs[0]).is_dir() and kind_of(inputs[0]) != "latents":
        if size is None:
            raise UserError("train: got images and no task.image_size, allowed: latents, or a size in px")
        if task.min_score is not None:
            raise UserError("train: got images and task.min_score, allowed: ranked latents; encode first")
        images = open_images(inputs)
        autoencoder = load_autoencoder(require_part(start, "vae").path / "vae")
        frozen(autoencoder.vae, torch.float32).to(pick_device())
        return ImageData(images, autoencoder, size)
    artifact, latents = open_latents(inputs, start)
    ranges = rows_of_size(artifact, latents, start, size)
    if task.min_score is not None:
        ranges = _scored(artifact, latents, task.min_score, ranges)
    return LatentData(artifact, latents, ranges)


def rows_of_size(
    artifact: Artifact, latents: LatentShards, start: Artifact, size: int | None
) -> list[range] | None:
    """Rows of pictures of about size x size px, by order; None = all of them, where any size will do.

    Raises:
        UserError: there are none.
    """
    if size is None:
        return None
    stride = load_autoencoder(start.path / "vae").stride
    found: list[range] = []
    sides: set[tuple[int, int]] = set()
    for group in latents.groups():
        _, *grid = latents.shape(group[0].start)
        height, width = (stride * each for each in grid)
        sides.add((height, width))
        # buckets of one size differ by up to an eighth in area; the next resolution has four times as much
        if 0.75 < height * width / size**2 < 1.33:
            found += group
    if not found:
        got = ", ".join(f"{width}x{height}" for height, width in sorted(sides))
        raise UserError(
            f"{artifact.path}: latents of images of {got} px, allowed: {size}x{size} px; encode them "
            "in this size, or change task.image_size"
        )
    return sorted(found, key=lambda each: each.start)


def _scored(
    artifact: Artifact, latents: LatentShards, least: float, ranges: Sequence[range] | None
) -> list[range]:
    """Ranges of the rows, of those in the ranges, that score so much or more."""
    found: list[range] = []
    for number, row in enumerate(latents.rows()):
        if score_of(row, number) >= least:
            if found and found[-1].stop == number:
                found[-1] = range(found[-1].start, number + 1)
            else:
                found.append(range(number, number + 1))
    found = found if ranges is None else _overlap(found, ranges)
    if not found:
        raise UserError(
            f"{artifact.path}: no row scores {least} or more, allowed: at least one; lower task.min_score"
        )
    return found


def _overlap(ranges: Sequence[range], others: Sequence[range]) -> list[range]:
    """What is in both, ascending; the ranges of each do not overlap."""
    found, left, right = [], 0, 0
    ranges = sorted(ranges, key=lambda each: each.start)
    while left < len(ranges) and right < len(others):
        one, other = ranges[left], others[right]
        common = range(max(one.start, other.start), min(one.stop, other.stop))
        if common:
            found.append(common)
        if one.stop < other.stop:
            left += 1
        else:
            right += 1
    return found


def by_size(latents: LatentShards, pairs: Sequence[Pair]) -> tuple[list[Pair], list[list[range]]]:
    """Pairs of equal sizes, those of one size together, and the numbers of each size."""
    sizes: dict[tuple[int, int, int], list[Pair]] = {}
    for each in pairs:
        size = latents.shape(each.chosen)
        if size == latents.shape(each.rejected):
            sizes.setdefault(size, []).append(each)
    ends = [0, *itertools.accumulate(map(len, sizes.values()))]
    return [each for group in sizes.values() for each in group], [
        [range(start, end)] for start, end in itertools.pairwise(ends)
    ]


def open_latents(inputs: Sequence[str | Path], start: Artifact) -> tuple[Artifact, LatentShards]:
    """The one artifact of latents, which the autoencoder of the start has made."""
    if len(inputs) != 1:
        raise UserError(f"--in: got {len(inputs)} directories, allowed: one of latents")
    artifact = open_artifact(inputs[0], "latents", verify=rank() == 0)
    made_by, expected = artifact.manifest.get("autoencoder"), autoencoder_digest(start)
    if made_by != expected:
        raise UserError(
            f"{artifact.path}: made by autoencoder {str(made_by)[:12]}, allowed: {expected[:12]}, "
            f"that of {start.path.name}; encode with it"
        )
    return artifact, LatentShards(artifact.path)
