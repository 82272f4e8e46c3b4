"""What a frozen model says of each part of a picture: features on the grid of a student's tokens."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from lightgen.core.errors import UserError
from lightgen.ports.features import FeaturesConfig, features_files, load_model, refused_whole
from lightgen.ports.nano.detector import SIDE, STRIDE, NanoDetector

NANO_VERSION = 1  # of which layer is read, and how; another one is other features
_IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # mean and deviation of red, green, blue

# Shapes: B images, h w rows and columns of tokens, D features.

Grid = tuple[int, int]


class PatchFeatures:
    """A frozen network and how it looks at pictures; made by `nano_patches` and `load_patches`.

    Args:
        network: pixels float [B, 3, H, W] in [-1, 1] and a grid to maps [B, D, h, w].
        dim: D.
    """

    def __init__(self, network: Callable[[torch.Tensor, Grid], torch.Tensor], dim: int) -> None:
        self._network, self.dim = network, dim

    @torch.no_grad()
    def patches(self, pixels: torch.Tensor, grid: Grid) -> torch.Tensor:
        """Features float32 [B, h*w, D], row by row, of pixels float [B, 3, H, W] in [-1, 1].

        Args:
            pixels: on the network's device; the same in any batch.
            grid: (h, w), of the proportions of the pixels.
        """
        # unasked, PyTorch computes convolutions in TF32, of ten bits
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            return self._network(pixels.float(), grid).float().flatten(2).mT


def nano_patches(detector: NanoDetector, device: torch.device) -> PatchFeatures:
    """What the detector's last block reads, pictures looked at with a shorter side of 128 px.

    Its batch normalisation has centred that by its own statistics. Before it, and after the block, all parts
    of all pictures point one way (a cosine of .6 to .7 on the mean, after it .1), and a student would be paid
    for a constant.
    """
    network = detector.network.to(device)
    blocks = list(network.body)
    early, last = nn.Sequential(network.stem, *blocks[:-1]), blocks[-1]
    centre = last.get_submodule("norm1")

    def maps(pixels: torch.Tensor, grid: Grid) -> torch.Tensor:
        height, width = pixels.shape[2:]
        scale = SIDE / min(height, width)
        seen = [STRIDE * round(side * scale / STRIDE) for side in (height, width)]
        if [height, width] != seen:
            pixels = functional.interpolate(pixels, seen, mode="bilinear", antialias=True)
        found = centre(early(pixels.contiguous(memory_format=torch.channels_last)))
        return functional.adaptive_avg_pool2d(found, grid)

    return PatchFeatures(maps, network.head.in_channels)


def load_patches(config: FeaturesConfig, folder: Path, device: torch.device) -> PatchFeatures:
    """DINOv2's patch tokens after its last norm: each token of a student is one of its patches, of 14 px.

    Args:
        config: of kind dinov2.
        folder: in the layout of transformers.
        device: where it runs.

    Raises:
        UserError: the files are missing, damaged, or of another kind.

    Source: arXiv 2410.06940, appendix: pictures of 256 px are looked at in 224 px.
    """
    with refused_whole(folder):
        stated = str(json.loads((folder / "config.json").read_text()).get("model_type"))
        if stated != "dinov2":
            raise UserError(f"holds a {stated!r}, allowed: 'dinov2'")
        model: Any = load_model(config, folder, features_files(config, folder)).to(device)
    patch = model.config.patch_size
    mean, deviation = (torch.tensor(each, device=device)[:, None, None] for each in _IMAGENET)

    def maps(pixels: torch.Tensor, grid: Grid) -> torch.Tensor:
        seen = [patch * side for side in grid]
        if list(pixels.shape[2:]) != seen:
            pixels = functional.interpolate(pixels, seen, mode="bicubic", antialias=True).clamp(-1, 1)
        pixels = ((pixels + 1) / 2 - mean) / deviation
        tokens = model(pixel_values=pixels.to(model.dtype)).last_hidden_state[:, 1:]
        return tokens.mT.unflatten(2, grid)

    return PatchFeatures(maps, model.config.hidden_size)
