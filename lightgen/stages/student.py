"""A checkpoint behind the teacher's port."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from lightgen.core.artifact import Artifact
from lightgen.core.errors import UserError
from lightgen.sampling.decode import DecodeConfig
from lightgen.stages.checkpoint import cast, load_parts, open_checkpoint, pick_device, require_part
from lightgen.stages.pipeline import LightGenPipeline


@dataclass(frozen=True, kw_only=True)
class StudentTeacherConfig:
    """How a student draws; which student, the start checkpoint says.

    Attributes:
        decode: iterations, steps and guidance.
        precision: of text encoder and transformer; the autoencoder stays in fp32.
    """

    decode: DecodeConfig = field(default_factory=DecodeConfig)
    precision: Literal["bf16", "fp32"] = "bf16"


class StudentGenerator:
    """An ImageGenerator that samples from a checkpoint."""

    def __init__(self, config: StudentTeacherConfig, checkpoint: Artifact) -> None:
        require_part(checkpoint, "transformer")
        self.config, self.name = config, f"student-{checkpoint.digest[:12]}"
        parts = load_parts(checkpoint.path)
        if config.precision == "bf16":
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

        Raises:
            UserError: a size that the model does not make, or a source or mask.
        """
        if source is not None or mask is not None:
            raise UserError("student: got a source or mask to edit, allowed: text prompts only")
        decode = self.config.decode
        pixels = self._pipeline(
            list(prompts),
            height=height,
            width=width,
            num_inference_steps=decode.num_iterations,
            num_head_steps=decode.num_head_steps,
            guidance_scale=decode.guidance_scale,
            guidance_rise=decode.guidance_rise,
            temperature=decode.temperature,
            seeds=seeds,
            output_type="np",
            return_dict=False,
        )[0]
        return np.rint(pixels * 255).astype(np.uint8)
