"""Checks of what an image shows: a classifier that the user names; none comes with lightgen."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from transformers import ViTConfig, ViTForImageClassification
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from lightgen.core.errors import UserError
from lightgen.ports.scorer import one_line

# What a folder of a classifier is read for.
SAFETY_PATTERNS = ("config.json", "model.safetensors", "preprocessor_config.json")


@dataclass(frozen=True, kw_only=True)
class SafetyConfig:
    """Which model says whether an image is unsafe, and how it runs.

    Attributes:
        model: local folder, or OWNER/NAME of a repository in the Hub's cache, of a ViT that classifies images
            (as Falconsai/nsfw_image_detection); None checks nothing.
        labels: its classes that count as unsafe.
        batch_size: most images per pass.
        precision: of the model.
    """

    model: str | None = None
    labels: tuple[str, ...] = ("nsfw",)
    batch_size: int = 32
    precision: Literal["bf16", "fp32"] = "fp32"


class ViTSafetyChecker:
    """A classifier whose probability of the unsafe classes, all together, is the answer."""

    def __init__(
        self, model: ViTForImageClassification, processor: ViTImageProcessorPil, unsafe: Sequence[int]
    ) -> None:
        self.model, self.processor = model.eval().requires_grad_(False), processor
        self._unsafe = list(unsafe)

    @torch.no_grad()
    def unsafe(self, images: np.ndarray) -> np.ndarray:
        """Probability float32 [B] in [0, 1] that each of images uint8 [B, H, W, 3] is unsafe."""
        pixels = self.processor(list(images), return_tensors="pt")["pixel_values"]
        found: Any = self.model(pixel_values=pixels.to(self.model.device, self.model.dtype))
        shares = found.logits.float().softmax(-1)[:, self._unsafe].sum(-1)
        return shares.clamp(0, 1).cpu().numpy()


def safety_files(folder: Path) -> list[Path]:
    """Files that a checker is read from.

    Raises:
        UserError: one is missing.
    """
    paths = [folder / name for name in SAFETY_PATTERNS]
    lack = next((path.name for path in paths if not path.is_file()), None)
    if lack is not None:
        raise UserError(
            f"safety {folder}: no {lack}, allowed: a ViT classifier in transformers' layout, safetensors only"
        )
    return paths


def load_safety(config: SafetyConfig, folder: Path, device: torch.device) -> ViTSafetyChecker:
    """Checker of local files on a device; nothing is downloaded and no code of the files is run.

    Raises:
        UserError: the files are missing, damaged, of another model, or have no such classes.
    """
    safety_files(folder)
    dtype = torch.bfloat16 if config.precision == "bf16" else torch.float32
    with one_line("safety", folder):
        kind = ViTConfig.get_config_dict(folder, local_files_only=True)[0].get("model_type")
        if kind != "vit":
            raise UserError(f"holds a {kind!r}, allowed: a 'vit'")
        options: dict[str, Any] = {
            "dtype": dtype, "output_loading_info": True, "ignore_mismatched_sizes": True
        }  # fmt: skip
        loaded: Any = ViTForImageClassification.from_pretrained(
            folder, use_safetensors=True, local_files_only=True, **options
        )
        model, told = loaded
        absent = sorted(told["missing_keys"]) + sorted(str(each[0]) for each in told["mismatched_keys"])
        if absent:
            raise UserError(
                f"{len(absent)} weights missing or of another shape ({absent[0]}), allowed: a whole model"
            )
        processor: Any = ViTImageProcessorPil.from_pretrained(folder, local_files_only=True)
        side, size = model.config.image_size, (processor.size["height"], processor.size["width"])
        if size != (side, side):
            raise UserError(f"scales to {size[1]}x{size[0]} px, allowed: the model's {side}x{side}")
        names = {str(name): int(number) for number, name in model.config.id2label.items()}
        unknown = [label for label in config.labels if label not in names]
        if unknown or not config.labels:
            got = repr(unknown[0]) if unknown else "none"
            raise UserError(f"--safety.labels: got {got}, allowed: of {', '.join(sorted(names)[:20])}")
    return ViTSafetyChecker(model.to(device), processor, [names[label] for label in config.labels])
