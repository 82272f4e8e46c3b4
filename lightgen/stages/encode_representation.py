"""Pictures become features of a frozen model beside their latents, for training that aligns (REPA)."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch

from lightgen.core.artifact import Artifact
from lightgen.core.config import digest
from lightgen.core.errors import UserError
from lightgen.data.latents import LatentShards
from lightgen.data.representation import Representation
from lightgen.ports.features import FeaturesConfig
from lightgen.ports.patches import NANO_VERSION, PatchFeatures, load_patches, nano_patches
from lightgen.stages.checkpoint import load_detector, open_detector, pick_device
from lightgen.stages.features import FeaturesPlace, find_features


@dataclass(frozen=True, kw_only=True)
class RepresentationConfig:
    """Which frozen model's features are stored with the latents, for REPA.

    Attributes:
        stored: whether they are.
        kind: nano: the shipped detector; dinov2: its patch tokens.
        model: as of `FeaturesConfig`; None names the usual one.
        precision: of the model; features are stored in bf16 in any case. nano is always fp32.
        token: side of a student's token, px: the autoencoder's stride times the transformer's patch.
    """

    stored: bool = False
    kind: Literal["nano", "dinov2"] = "nano"
    model: str | None = None
    precision: Literal["bf16", "fp32"] = "fp32"
    token: int = 16

    def check(self) -> None:
        """Raises UserError: a number out of range."""
        if self.token < 1:
            raise UserError(f"encode: got representation token {self.token}, allowed: a side in px")

    def recorded(self) -> "RepresentationConfig":
        """The config without what changes nothing that is stored."""
        return self if self.stored else RepresentationConfig()


@dataclass(frozen=True)
class RepresentationPlace:
    """Where the frozen model is, and the side of a token in px."""

    features: FeaturesPlace
    token: int

    def facts(self) -> dict[str, Any]:
        """What the manifest tells: kind, token, and a digest of all that the features depend on."""
        kind = self.features.config.kind
        version = {"patches": NANO_VERSION} if kind == "nano" else {}
        made_by = digest({**self.features.identity(), **version})
        return {"kind": kind, "model": made_by, "token": self.token}

    def check(self, shapes: list[tuple[int, int]]) -> None:
        """Raises UserError: pictures of (height, width) px that are not of whole tokens."""
        for height, width in shapes:
            if height % self.token or width % self.token:
                got = f"images of {width}x{height} px"
                allowed = f"sides in multiples of representation.token, {self.token} px"
                raise UserError(f"encode: got {got}, allowed: {allowed}")

    def load(self) -> Callable[[torch.Tensor], torch.Tensor]:
        """Function from pixels float [B, 3, H, W] in [-1, 1], on this device, to features [B, L, D]."""
        extractor = self._extractor()
        return lambda pixels: extractor.patches(
            pixels, (pixels.shape[2] // self.token, pixels.shape[3] // self.token)
        )

    def _extractor(self) -> PatchFeatures:
        config, device = self.features.config, pick_device()
        if self.features.path is None:
            return nano_patches(load_detector(open_detector(config.model)), device)
        return load_patches(config, self.features.path, device)


def find_representation(config: RepresentationConfig) -> RepresentationPlace | None:
    """Place of the frozen model; None where nothing is stored.

    Raises:
        UserError: it is not on this machine, or lacks what its kind needs.
    """
    if not config.stored:
        return None
    features = FeaturesConfig(kind=config.kind, model=config.model, precision=config.precision)
    return RepresentationPlace(find_features(features), config.token)


def open_representation(
    artifact: Artifact, latents: LatentShards, patch_size: int, dim: int
) -> Representation:
    """Features of the pictures behind latents, one for each token of a transformer of this patch size.

    Raises:
        UserError: there are none, or they are of another width or of tokens of another size.
    """
    if "representation" not in artifact.manifest:
        raise UserError(
            f"{artifact.path}: got latents without features of their pictures and task.repa, allowed: "
            "latents that were encoded with representation.stored"
        )
    found = Representation(artifact.path)
    if found.dim != dim:
        raise UserError(
            f"{artifact.path}: got task.repa.dim {dim}, allowed: {found.dim}, as the features are"
        )
    if len(found) != len(latents):
        raise UserError(
            f"{artifact.path}: features of {len(found)} pictures, allowed: of {len(latents)}, as latents"
        )
    for group in latents.groups():
        row = group[0].start
        _, height, width = latents.shape(row)
        if found.length(row) * patch_size**2 != height * width:
            raise UserError(
                f"{artifact.path}: features of {found.length(row)} tokens, allowed: "
                f"{height * width // patch_size**2}, as the transformer has; encode with its "
                "representation.token"
            )
    return found
