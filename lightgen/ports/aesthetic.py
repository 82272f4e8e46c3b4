"""Aesthetic scores: a head on the image features of a CLIP that tells how much people like a picture."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import CLIPModel
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from lightgen.core.errors import UserError
from lightgen.ports.released_file import read_state_dict

# Layers of the released heads by their place in the file; those between them are dropout, which does nothing
# to a picture that is scored. Heads with ReLU have other places (0, 3, 6, 9, 11): taken as these, they would
# score wrongly in silence.
_PLACES = {(): ("",), (0, 2, 4, 6, 7): ("layers.0.", "layers.2.", "layers.4.", "layers.6.", "layers.7.")}


class AestheticScorer:
    """A CLIP and a head of linear layers; the prompt does not count.

    Answers are about 1 (ugly) to 10. The head sees features of unit length.

    Source: github christophschuhmann/improved-aesthetic-predictor `simple_inference.py`.
    """

    def __init__(self, model: CLIPModel, processor: CLIPImageProcessorPil, head: nn.Sequential) -> None:
        self.model, self.processor = model.eval().requires_grad_(False), processor
        self.head = head.eval().requires_grad_(False)

    @torch.no_grad()
    def score(self, images: np.ndarray, prompts: Sequence[str]) -> np.ndarray:
        """Scores float32 [B], higher is better, of images uint8 [B, H, W, 3]."""
        assert len(images) == len(prompts), (len(images), len(prompts))
        pixels = self.processor(list(images), return_tensors="pt")["pixel_values"]
        vision: Any = self.model.vision_model(pixel_values=pixels.to(self.model.device, self.model.dtype))
        features = self.model.visual_projection(vision.pooler_output)
        return self.head(functional.normalize(features.float(), dim=-1))[:, 0].cpu().numpy()


def load_head(path: Path, width: int) -> nn.Sequential:
    """Head of linear layers, float32, of a released .pth or safetensors: one score for features of a width.

    Raises:
        UserError: the file is damaged, or its layers are not those of a released head for this width.
    """
    tensors = read_state_dict(path)
    numbers = {int(found[1]) for name in tensors if (found := re.match(r"layers\.(\d{1,3})\.", name))}
    names = _PLACES.get(tuple(sorted(numbers)))
    wanted = {f"{name}{part}" for name in names or () for part in ("weight", "bias")}
    if names is None or set(tensors) != wanted:
        got = ", ".join(sorted(tensors)[:3])[:120]
        raise UserError(
            f"{path}: holds {len(tensors)} tensors ({got}), allowed: weight and bias of one layer, or of "
            "layers 0, 2, 4, 6 and 7, a head without activations"
        )
    return nn.Sequential(*_layers([(tensors[f"{n}weight"], tensors[f"{n}bias"]) for n in names], width, path))


def _layers(pairs: Sequence[tuple[Tensor, Tensor]], width: int, path: Path) -> list[nn.Module]:
    """The layers, checked to lead from the width to one number."""
    found: list[nn.Module] = []
    for weight, bias in pairs:
        fits = weight.ndim == 2 and weight.shape[1] == width and tuple(bias.shape) == (len(weight),)
        if not fits or not (weight.isfinite().all() and bias.isfinite().all()):
            got = f"a layer {list(weight.shape)}, {list(bias.shape)} or numbers that are not finite"
            raise UserError(f"{path}: holds {got}, allowed: finite, from {width} numbers")
        width = len(weight)
        layer = nn.Linear(weight.shape[1], width)
        layer.weight.data, layer.bias.data = weight.float().clone(), bias.float().clone()
        found.append(layer)
    if width != 1:
        raise UserError(f"{path}: ends in {width} numbers, allowed: 1, the score")
    return found
