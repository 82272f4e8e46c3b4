"""A checkpoint behind the teacher's port."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from lightgen.core.artifact import Artifact
from lightgen.core.device import multiplies_bf16
from lightgen.core.errors import UserError
from lightgen.sampling.presets import PresetName
from lightgen.stages.checkpoint import cast, load_parts, open_checkpoint, pick_device, require_part
from lightgen.stages.decoding import DecodeOverrides, pipeline_arguments
from lightgen.stages.pipeline import LightGenPipeline
from lightgen.stages.pixels import as_bytes


@dataclass(frozen=True, kw_only=True)
class StudentTeacherConfig:
    """How a student draws; which student, the start checkpoint says.

    Attributes:
        preset: how tokens are decoded.
        overrides: what differs from the preset.
        precision: of text encoder and transformer; the autoencoder stays in fp32. A CPU that does not
            multiply bf16 itself draws in fp32, which is several times as fast there.
    """

    preset: PresetName = "exact"
    overrides: DecodeOverrides = field(default_factory=DecodeOverrides)
    precision: Literal["bf16", "fp32"] = "bf16"


def student_name(checkpoint: Artifact) -> str:
    """Name that the manifest of a student's images carries."""
    return f"student-{checkpoint.digest[:12]}"


class StudentGenerator:
    """An ImageGenerator that samples from a checkpoint."""

    def __init__(self, config: StudentTeacherConfig, checkpoint: Artifact) -> None:
        require_part(checkpoint, "transformer")
        self.config, self.name = config, student_name(checkpoint)
        parts = load_parts(checkpoint.path)
        if config.precision == "bf16" and multiplies_bf16(pick_device()):
            # cast once: autocast would cast activations at every layer, at nearly twice the cost of sampling
            for module in (parts.transformer, parts.text_encoder):
                cast(module, torch.bfloat16)
        self._pipeline = LightGenPipeline.from_parts(parts).to(pick_device())

    @classmethod
    def from_checkpoint(
        cls, name: str | Path, config: StudentTeacherConfig | None = None
    ) -> "StudentGenerator":
        """Generator of a checkpoint directory or of the word `nano`."""
        return cls(config or StudentTeacherConfig(), open_checkpoint(name))

    def generate(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        height: int,
        width: int,
        source: np.ndarray | None = None,
        mask: np.ndarray | None = None,
    ) -> np.ndarray:
        """Images uint8 [B, height, width, 3], one per prompt and seed.

        Args:
            prompts: one text per image.
            seeds: one per image.
            height: px.
            width: px.
            source: uint8 [B, height, width, 3], images to edit; comes with `mask` or not at all.
            mask: bool [B, height, width], True = to be repainted; all else comes back bit-identical.

        Raises:
            UserError: a size that the model does not make, or a source without a mask or the other way round.
        """
        if (source is None) != (mask is None):
            raise UserError("student: got a source or mask alone, allowed: both or neither")
        pixels = self._pipeline(
            list(prompts),
            height=height,
            width=width,
            seeds=seeds,
            image=source,
            mask_image=mask,
            output_type="np",
            return_dict=False,
            **pipeline_arguments(self._pipeline.resolve(self.config.preset, self.config.overrides)),
        )[0]
        return as_bytes(pixels)
