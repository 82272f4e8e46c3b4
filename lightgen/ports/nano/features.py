"""Features that need no download: what the nano detector's layers answer, pooled over a picture's cells."""

import numpy as np
import torch
from torch.nn import functional

from lightgen.ports.nano.detector import SIDE, DetectorNetwork, NanoDetector

VERSION = 1  # of the numbers below; another one is another extractor

# Perfect renders then vary alike in textures (how much the early layers vary over a picture) and in contents
# (the mean of the late ones), and their squared length is about D, which KID's kernel counts on.
_TEXTURE_SCALE, _CONTENT_SCALE = 1.2, 8.6

# Shapes: B images, D features, h w cells of the detector.


class NanoFeatures:
    """Extractor of textures and contents; pictures of other sizes are looked at in 128 px.

    Args:
        detector: whose layers are asked.
        batch_size: most images per pass.
    """

    def __init__(self, detector: NanoDetector, batch_size: int = 64) -> None:
        self._network, self._batch_size = detector.network, batch_size

    @property
    def dim(self) -> int:
        """Width of the features, 192 for the shipped detector."""
        textures, contents = _widths(self._network)
        return textures + contents

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
        return torch.cat([textures, contents], dim=1).numpy()


def _widths(network: DetectorNetwork) -> tuple[int, int]:
    """Channels of the early and of the late layers."""
    early, late = network.stem[1], network.body[1]
    assert isinstance(early, torch.nn.Conv2d) and isinstance(late, torch.nn.Conv2d)
    return early.out_channels, late.out_channels
