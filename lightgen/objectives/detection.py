"""Detection objective: which cell holds an object's centre, what it is, where, and in which colour."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from lightgen.core.draws import numpy_draws, torch_draws
from lightgen.objectives.crowd import crowd

# Shapes: B images, h w cells of `stride` px.


@dataclass(frozen=True, kw_only=True)
class DetectionConfig:
    """Numbers of the detection objective.

    Attributes:
        classes, colors: names in the order of the network's outputs.
        stride: of the cells, in px.
        soften: share of pictures that are blurred and made noisy, as generated ones are.
        scramble: share of pictures of which one object has its tiles shuffled and then counts as none, so
            that fragments are not taken for objects.
        crowd: share of pictures to which smaller copies of one of their objects are added, apart or
            overlapping; see `crowd`.
        spread: whether a centre is shared by the four cells around it, each by its nearness, so that on a
            border none must be chosen; else the one cell that holds it takes all of it.
    """

    classes: tuple[str, ...]
    colors: tuple[str, ...]
    stride: int = 8
    soften: float = 0.5
    scramble: float = 0.15
    crowd: float = 0.0
    spread: bool = False
    seed: int = 0


class DetectionObjective:
    """Binary (centre), categorical (class, colour) and absolute (box) errors, summed over a picture."""

    def __init__(self, config: DetectionConfig) -> None:
        self._config = config

    def __call__(
        self, learner: nn.Module, batch: Mapping[str, Any], step: int
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Loss of a batch: `pixels` uint8 [B, 3, H, W], `objects` and `ids`.

        Records of objects hold class, color and box, and may hold a mask (bool [H, W]).
        """
        pixels, objects = self._degrade(batch["pixels"], batch["objects"], batch["ids"], step)
        maps = {name: value.float() for name, value in learner(pixels).items()}
        device = maps["center"].device
        targets = {n: t.to(device) for n, t in self._targets(objects, maps["center"].shape[-2:]).items()}
        image, row, column = targets["near"].unbind(1)
        label, box, color = (maps[name][image, :, row, column] for name in ("label", "box", "color"))
        tinted = targets["color"] >= 0
        # Sums per image, nine cells an object, so that micro-batches add up and pictures without objects
        # count.
        terms = {
            "center": functional.binary_cross_entropy_with_logits(
                maps["center"], targets["center"], reduction="sum"
            ),
            "label": functional.cross_entropy(label, targets["label"], reduction="sum") / 9,
            "color": functional.cross_entropy(color[tinted], targets["color"][tinted], reduction="sum") / 9,
            "box": functional.l1_loss(box, targets["box"], reduction="sum") / (2 * 9),
        }
        terms = {name: term / len(objects) for name, term in terms.items()}
        wrong = (label.argmax(1) != targets["label"]).float().sum() / (9 * len(objects))
        return sum(terms.values(), torch.zeros(())), {**terms, "wrong_labels": wrong}

    def _degrade(
        self, pixels: torch.Tensor, objects: Sequence[Sequence[dict[str, Any]]], ids: Sequence[int], step: int
    ) -> tuple[torch.Tensor, list[list[dict[str, Any]]]]:
        """Pixels [B, 3, H, W] in [-1, 1], some softened or scrambled, and the objects that are left."""
        images, left = [], []
        for picture, records, sample in zip(pixels, objects, ids, strict=True):
            random = numpy_draws(self._config.seed, "degrade", step, sample)
            image, kept = picture.float().div(127.5).sub(1), list(records)
            if kept and self._config.crowd:
                crowding = numpy_draws(self._config.seed, "crowd", step, sample)
                if crowding.random() < self._config.crowd:
                    image, kept = crowd(image, kept, crowding)
            if kept and random.random() < self._config.scramble:
                x0, y0, x1, y1 = kept.pop(int(random.integers(len(kept))))["box"]
                image = image.clone()
                image[:, y0:y1, x0:x1] = _shuffle_tiles(
                    image[:, y0:y1, x0:x1], random.permutation(9).tolist()
                )
            if random.random() < self._config.soften:
                height, width = image.shape[1:]
                factor = random.uniform(0.4, 1.0)
                small = (max(16, int(height * factor)), max(16, int(width * factor)))
                image = functional.interpolate(image[None], small, mode="bilinear", antialias=True)
                image = functional.interpolate(image, (height, width), mode="bilinear")[0]
                noise = torch.randn(
                    image.shape, generator=torch_draws(self._config.seed, "soften", step, sample)
                )
                image = image + random.uniform(0, 0.08) * noise.to(image.device)
            images.append(image)
            left.append(kept)
        return torch.stack(images), left

    def _targets(
        self, objects: Sequence[Sequence[dict[str, Any]]], shape: Sequence[int]
    ) -> dict[str, torch.Tensor]:
        """Targets: `center` [B, 1, h, w]; each cell near a centre as its place `near` [N, 3] and answers [N].

        Near cells are the centre's own and its neighbours, so that any of them may be asked; colour -1 = as
        it comes.
        """
        config = self._config
        center = torch.zeros(len(objects), 1, *shape)
        near, labels, colors, boxes = [], [], [], []
        for image, records in enumerate(objects):
            for record in records:
                x0, y0, x1, y1 = record["box"]
                row = min(shape[0] - 1, int((y0 + y1) / 2 / config.stride))
                column = min(shape[1] - 1, int((x0 + x1) / 2 / config.stride))
                if config.spread:
                    _spread_center(
                        center[image, 0], (y0 + y1) / 2 / config.stride, (x0 + x1) / 2 / config.stride
                    )
                else:
                    center[image, 0, row, column] = 1
                for r in range(max(0, row - 1), min(shape[0], row + 2)):
                    for c in range(max(0, column - 1), min(shape[1], column + 2)):
                        x, y = (c + 0.5) * config.stride, (r + 0.5) * config.stride
                        near.append((image, r, c))
                        labels.append(config.classes.index(record["class"]))
                        colors.append(config.colors.index(record["color"]) if record["color"] else -1)
                        boxes.append([(x - x0) / 32, (y - y0) / 32, (x1 - x) / 32, (y1 - y) / 32])
        return {
            "center": center,
            "near": torch.tensor(near, dtype=torch.long).reshape(-1, 3),
            "label": torch.tensor(labels, dtype=torch.long),
            "color": torch.tensor(colors, dtype=torch.long),
            "box": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        }


def _spread_center(cells: torch.Tensor, down: float, across: float) -> None:
    """Add one centre to cells [h, w] in place, linearly between the middles of the four cells around it."""
    height, width = cells.shape
    top, left = math.floor(down - 0.5), math.floor(across - 0.5)
    for row, column in ((top, left), (top, left + 1), (top + 1, left), (top + 1, left + 1)):
        share = (1 - abs(down - 0.5 - row)) * (1 - abs(across - 0.5 - column))
        place = min(max(row, 0), height - 1), min(max(column, 0), width - 1)
        cells[place] = min(1.0, float(cells[place]) + share)


def _shuffle_tiles(image: torch.Tensor, order: Sequence[int]) -> torch.Tensor:
    """Image [3, h, w] with its 3 x 3 tiles in another order; what no tile covers stays."""
    height, width = image.shape[1] // 3, image.shape[2] // 3
    out = image.clone()
    for target, source in enumerate(order):
        (r, c), (p, q) = divmod(target, 3), divmod(source, 3)
        tile = image[:, p * height : (p + 1) * height, q * width : (q + 1) * width]
        out[:, r * height : (r + 1) * height, c * width : (c + 1) * width] = tile
    return out
