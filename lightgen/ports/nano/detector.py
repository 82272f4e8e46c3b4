"""The small detector that stands for Mask2Former and CLIP in the nano world: classes, boxes and colours."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional

from lightgen.core.draws import draw_key
from lightgen.core.errors import UserError
from lightgen.ports.nano.world import CLASSES, COLORS
from lightgen.ports.protocols import Detection

SIDE = 128
STRIDE = 8
VERSION = 2  # of how maps are read; another one finds other objects with the same weights
WEIGHTS = "model.safetensors"
CONFIG = "config.json"
# A peak's mass is what the 3 x 3 cells around it say together: near 1 at an object, wherever in its cell the
# centre lies. Below the first number no peak is read. The others are of the logistic curve that turns a mass
# into the share of such peaks at which an object is, fitted to 6,333 peaks in blurred, noisy and crowded
# renders with scrambled objects (docs/log.md, 2026-11-27): a score of .3 is a mass of .37, one of .9 of .67.
_MIN_MASS, _MASS_SLOPE, _MASS_HALF = 0.05, 10.0, 0.45

# Shapes: B images, h w = 16 16 cells of 8 px.


class DetectorNetwork(nn.Module):
    """Convolutions from a picture of 128 px to cells of 8 px, which say whether they hold a centre."""

    def __init__(self, width: int = 128, num_blocks: int = 5) -> None:
        super().__init__()
        half = width // 2
        self.stem = nn.Sequential(
            nn.PixelUnshuffle(4), nn.Conv2d(48, half, 3, padding=1), ResidualBlock(half)
        )
        self.body = nn.Sequential(
            nn.PixelUnshuffle(2),
            nn.Conv2d(4 * half, width, 1),
            *(ResidualBlock(width) for _ in range(num_blocks)),
        )
        self.head = nn.Conv2d(width, 1 + 4 + len(COLORS) + len(CLASSES), 1)
        nn.init.constant_(self.head.bias[:1], -4.0)  # pyright: ignore[reportOptionalSubscript]

    def forward(self, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
        """Maps [B, n, h, w] of pixels [B, 3, 8h, 8w] in [-1, 1].

        `center` [1]: logit that an object's centre lies in the cell; `box` [4]: distance from the cell's
        centre to
        left, top, right and bottom, in units of 32 px; `color` and `label`: logits of the nano world's names.
        """
        x = pixels.to(self.head.weight.dtype).contiguous(memory_format=torch.channels_last)
        out = self.head(self.body(self.stem(x)))
        center, box, color, label = out.split([1, 4, len(COLORS), len(CLASSES)], dim=1)
        return {"center": center, "box": box, "color": color, "label": label}


class ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions with batch normalisation beside the identity."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.BatchNorm2d(width), nn.BatchNorm2d(width)
        self.conv1 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map of x's shape."""
        hidden = self.conv1(functional.relu(self.norm1(x)))
        return x + self.conv2(functional.relu(self.norm2(hidden)))


class NanoDetector:
    """A detector that judges colours itself; pictures of other sizes are looked at in 128 px."""

    def __init__(self, network: DetectorNetwork) -> None:
        self.network = network.eval().requires_grad_(False)

    @torch.no_grad()
    def detect(self, images: np.ndarray, labels: Sequence[str], side: int = SIDE) -> list[list[Detection]]:
        """Objects of the named classes in each of images uint8 [B, H, W, 3], best first, with colours.

        Args:
            images: of any size.
            labels: classes asked for.
            side: px in which they are looked at; more than usual shows small objects in sizes that it knows.

        Raises:
            UserError: a label is no class of the nano world.
        """
        unknown = sorted(set(labels) - set(CLASSES))
        if unknown:
            raise UserError(f"nano detector: class {unknown[0]!r} is unknown, allowed: {', '.join(CLASSES)}")
        pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float().div(127.5).sub(1)
        height, width = pixels.shape[2:]
        if (height, width) != (side, side):
            mode = "bilinear" if side == SIDE else "bicubic"
            pixels = functional.interpolate(pixels, (side, side), mode=mode, antialias=True).clamp(-1, 1)
        maps = {name: value.float() for name, value in self.network(pixels).items()}
        scale = (width / side, height / side)
        return [
            self._read({n: m[i] for n, m in maps.items()}, set(labels), scale) for i in range(len(images))
        ]

    def _read(
        self, maps: dict[str, torch.Tensor], wanted: set[str], scale: tuple[float, float]
    ) -> list[Detection]:
        center = maps["center"].sigmoid()[None]  # [1, 1, h, w]
        # A centre is shared between the cells around it, so what counts is the sum around the peak.
        mass = 9 * functional.avg_pool2d(center, 3, stride=1, padding=1)
        score = torch.sigmoid(_MASS_SLOPE * (mass.clamp(max=1) - _MASS_HALF))
        peak = (center == functional.max_pool2d(center, 3, stride=1, padding=1)) & (mass > _MIN_MASS)
        found = []
        taken: set[tuple[int, int]] = set()
        for row, column in peak[0, 0].nonzero().tolist():
            # Neighbours can both be peaks where both are sure to the last bit: one object, one detection.
            if any((row + r, column + c) in taken for r in (-1, 0, 1) for c in (-1, 0, 1)):
                continue
            taken.add((row, column))
            likely = maps["label"][:, row, column].softmax(0)
            index = int(likely.argmax())
            if CLASSES[index] not in wanted:
                continue
            left, top, right, bottom = (32 * maps["box"][:, row, column]).clamp_min(0).tolist()
            x, y = (column + 0.5) * STRIDE, (row + 0.5) * STRIDE
            corners = np.clip([x - left, y - top, x + right, y + bottom], 0, STRIDE * center.shape[-1])
            colors = maps["color"][:, row, column].softmax(0).tolist()
            box = corners * np.array([scale[0], scale[1], scale[0], scale[1]])
            confidence = float(score[0, 0, row, column]) * float(likely[index])
            found.append(
                Detection(
                    label=CLASSES[index],
                    score=confidence,
                    box=(float(box[0]), float(box[1]), float(box[2]), float(box[3])),
                    colors=dict(zip(COLORS, colors, strict=True)),
                )
            )
        return sorted(found, key=lambda d: -d.score)


def build_nano_detector(seed: int) -> DetectorNetwork:
    """Untrained network of about 1.7M parameters."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(draw_key(seed, "detector-weights"))
        return DetectorNetwork().to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]


def load_nano_detector(folder: Path) -> NanoDetector:
    """Detector stored in `folder`, in fp32.

    Raises:
        UserError: the folder holds no detector, or one for other classes or colours.
    """
    if not (folder / CONFIG).is_file() or not (folder / WEIGHTS).is_file():
        raise UserError(f"nano detector {folder}: no {CONFIG} and {WEIGHTS}; expected a `detector` folder")
    config = json.loads((folder / CONFIG).read_text())
    if config != detector_config():
        raise UserError(
            f"nano detector {folder}: made for other classes or colours than this version of lightgen"
        )
    network = build_nano_detector(0)
    tensors = load_file(folder / WEIGHTS)
    network.load_state_dict({n: t.float() if t.is_floating_point() else t for n, t in tensors.items()})
    return NanoDetector(network)


def detector_config() -> dict[str, list[str]]:
    """What a stored detector must agree on with this code: the names behind its outputs, in order."""
    return {"classes": list(CLASSES), "colors": list(COLORS)}
