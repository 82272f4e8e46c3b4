"""Features that need no download: what the nano detector's layers answer, pooled, and a picture's grain.

A detector learns not to see slight blur, noise and the marks of an autoencoder, which a distance should see;
so there are fine differences of the pixels beside its layers.
"""

import numpy as np
import torch
from torch.nn import functional

from lightgen.ports.nano.detector import SIDE, DetectorNetwork, NanoDetector

VERSION = 1  # of the numbers below; another one is another extractor

# Perfect renders then vary about alike in textures (how much the early layers vary over a picture), contents
# (the mean of the late ones) and grain, and their squared length is about D, which KID's kernel counts on.
_TEXTURE_SCALE, _CONTENT_SCALE, _GRAIN_SCALE = 1.2, 8.6, 0.36
_GRAIN_PX = (1, 2, 4)  # of the pixels that are compared with their neighbours

# Shapes: B images, D features, h w cells of the detector.


class NanoFeatures:
    """Extractor of textures, contents and grain; pictures of other sizes are looked at in 128 px.

    Args:
        detector: whose layers are asked.
        batch_size: most images per pass.
    """

    def __init__(self, detector: NanoDetector, batch_size: int = 64) -> None:
        self._network, self._batch_size = detector.network, batch_size

    @property
    def dim(self) -> int:
        """Width of the features, 210 for the shipped detector."""
        textures, contents = _widths(self._network)
        return textures + contents + 6 * len(_GRAIN_PX)

    @torch.no_grad()
    def features(self, images: np.ndarray) -> np.ndarray:
        """Features float32 [B, D] of images uint8 [B, H, W, 3]."""
        found = [
            self._pooled(images[start : start + self._batch_size])
            for start in range(0, len(images), self._batch_size)
        ]
        return np.concatenate(found) if found else np.zeros((0, self.dim), np.float32)

    def _pooled(self, images: np.ndarray) -> np.ndarray:
        pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float().div(127.5).sub(1)
        if tuple(pixels.shape[2:]) != (SIDE, SIDE):
            pixels = functional.interpolate(pixels, (SIDE, SIDE), mode="bilinear", antialias=True)
        early = self._network.stem(pixels.contiguous(memory_format=torch.channels_last))  # [B, n, 2h, 2w]
        late = self._network.body(early)  # [B, m, h, w]
        textures = early.flatten(2).std(2, correction=0) / _TEXTURE_SCALE
        contents = late.flatten(2).mean(2) / _CONTENT_SCALE
        return torch.cat([textures, contents, _grain(pixels) / _GRAIN_SCALE], dim=1).numpy()


def _grain(pixels: torch.Tensor) -> torch.Tensor:
    """Means [B, 18] over a picture of how far pixels are from their neighbours, and of the root of that.

    The mean sees the sharpness of edges, the root what lies on plain grounds; by colour, at three scales.
    """
    found = []
    for side in _GRAIN_PX:
        x = functional.avg_pool2d(pixels, side)
        across = x[:, :, 1:-1, :-2] + x[:, :, 1:-1, 2:]
        down = x[:, :, :-2, 1:-1] + x[:, :, 2:, 1:-1]
        apart = (across + down - 4 * x[:, :, 1:-1, 1:-1]).abs()
        found += [apart.mean((2, 3)), apart.sqrt().mean((2, 3))]
    return torch.cat(found, dim=1)


def _widths(network: DetectorNetwork) -> tuple[int, int]:
    """Channels of the early and of the late layers."""
    early, late = network.stem[1], network.body[1]
    assert isinstance(early, torch.nn.Conv2d) and isinstance(late, torch.nn.Conv2d)
    return early.out_channels, late.out_channels
