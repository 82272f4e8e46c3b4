"""Pixels in the forms that people want them in."""

from typing import Literal

import numpy as np
import torch
from PIL import Image

from lightgen.core.config import suggestion
from lightgen.core.errors import UserError

OutputType = Literal["pil", "np", "pt", "latent"]
OUTPUT_TYPES = ("pil", "np", "pt", "latent")


def check_output_type(name: object) -> None:
    """Check a form that images are wanted in.

    Raises:
        UserError: it is none of OUTPUT_TYPES.
    """
    if name not in OUTPUT_TYPES:
        hint = suggestion(str(name), OUTPUT_TYPES) or f", allowed: {', '.join(OUTPUT_TYPES)}"
        raise UserError(f"output_type: got {name!r}{hint}")


def to_uint8(pixels: torch.Tensor) -> np.ndarray:
    """Images uint8 [B, H, W, 3] of pixels [B, 3, H, W] in [-1, 1]."""
    scaled = (pixels.float().clamp(-1, 1) + 1).mul(127.5).round()
    return scaled.to(torch.uint8).permute(0, 2, 3, 1).contiguous().cpu().numpy()


def as_bytes(pictures: np.ndarray) -> np.ndarray:
    """Pictures as uint8, of pictures that are uint8 or float in [0, 1]."""
    return pictures if pictures.dtype == np.uint8 else np.rint(pictures * 255).astype(np.uint8)


def to_output(pixels: torch.Tensor, output_type: OutputType) -> list[Image.Image] | np.ndarray | torch.Tensor:
    """Images of pixels [B, 3, H, W] in [-1, 1]: pil, np [B, H, W, 3] or pt [B, 3, H, W], both in [0, 1]."""
    assert output_type != "latent", "latents are no pixels"
    if output_type == "pil":
        return [Image.fromarray(image) for image in to_uint8(pixels)]
    unit = (pixels.float() + 1) / 2
    return unit if output_type == "pt" else unit.permute(0, 2, 3, 1).cpu().numpy()
