"""Mask2Former behind the port of detectors, prepared and read as GenEval's detector was.

The image processor that comes with these checkpoints squeezes every image to 384 x 384 pixels and its
post-processing squeezes the masks once more; GenEval's numbers come from 800 x 1333 at the image's own ratio.
"""

from collections.abc import Callable, Collection, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.nn import functional

from lightgen.ports.coco import check_labels
from lightgen.ports.detector_boxes import LEAST_SCORE, finite, in_batches
from lightgen.ports.protocols import Detection

KIND = "mask2former"
# Pixels of the shorter side, and most of the longer one.
EDGES = (800, 1333)
_DIVISOR = 32
_MAX_INSTANCES = 100

# Shapes: B images, Q queries, K classes, h w of the mask logits, H W of the image.


class Mask2FormerDetector:
    """A Mask2Former of COCO's instances: masks, and boxes around them; made by `load_foreign_detector`.

    `mean` and `std` are those of red, green and blue in [0, 1], `edges` as EDGES.

    Source: open-mmlab/mmdetection `configs/mask2former/mask2former_r50_lsj_8x2_50e_coco.py` (test pipeline)
    and `maskformer_fusion_head.py` (instance post-processing). Images are resized by Pillow, as those of
    facebookresearch/Mask2Former, whose weights these are; mmdetection's OpenCV differs where it makes an
    image smaller.
    """

    def __init__(
        self,
        model: Any,  # noqa: ANN401  (Mask2FormerForUniversalSegmentation)
        classes: Sequence[str],
        mean: Sequence[float],
        std: Sequence[float],
        batch_size: int,
        edges: tuple[int, int] = EDGES,
    ) -> None:
        self.model = model.eval().requires_grad_(False)
        self._classes, self._batch_size, self._edges = tuple(classes), batch_size, edges
        self._mean, self._std = (
            torch.tensor(each, dtype=torch.float32, device=model.device)[:, None, None]
            for each in (mean, std)
        )

    @torch.no_grad()
    def detect(self, images: np.ndarray, labels: Sequence[str]) -> list[list[Detection]]:
        """Objects of the classes `labels` in each of images uint8 [B, H, W, 3], best first, with masks.

        Raises:
            UserError: a label is none of COCO's.
            ValueError: the model answers with numbers that are not finite.
        """
        check_labels(KIND, labels)
        wanted, size = frozenset(labels), (images.shape[1], images.shape[2])
        resized = resized_size(size, self._edges)
        padded = (-(-resized[0] // _DIVISOR) * _DIVISOR, -(-resized[1] // _DIVISOR) * _DIVISOR)
        found: list[list[Detection]] = []
        for batch in in_batches(images, self._batch_size):
            out = self.model(pixel_values=self._pixels(batch, resized, padded))
            logits = finite(KIND, out.class_queries_logits)  # [B, Q, K + 1]
            masks = finite(KIND, out.masks_queries_logits)  # [B, Q, h, w]
            for each in range(len(batch)):
                seen = _Masks(masks[each], padded, resized, size)
                found.append(find_instances(logits[each], seen.of, self._classes, wanted))
        return found

    def _pixels(self, images: np.ndarray, resized: tuple[int, int], padded: tuple[int, int]) -> torch.Tensor:
        """What the model is shown [B, 3, *padded], zero (the mean colour) right of and below the images."""
        (height, width), kind = resized, Image.Resampling.BILINEAR
        rows = [np.asarray(Image.fromarray(image).resize((width, height), kind)) for image in images]
        pixels = torch.from_numpy(np.stack(rows)).to(self.model.device).permute(0, 3, 1, 2)
        pixels = (pixels.float() / 255 - self._mean) / self._std
        pixels = functional.pad(pixels, (0, padded[1] - width, 0, padded[0] - height))
        return pixels.to(self.model.dtype)


class _Masks:
    """Masks of one image's queries at the image's own size, each made when it is first asked for."""

    def __init__(
        self, logits: torch.Tensor, padded: tuple[int, int], resized: tuple[int, int], size: tuple[int, int]
    ) -> None:
        self._logits, self._padded, self._resized, self._size = logits, padded, resized, size
        self._made: dict[int, tuple[np.ndarray, float]] = {}

    def of(self, query: int) -> tuple[np.ndarray, float]:
        """Mask bool [H, W] of a query, and the mean probability in it (0 where the mask is empty)."""
        if query not in self._made:
            logits = image_logits(self._logits[query], self._padded, self._resized, self._size)
            mask = logits > 0
            share = float(logits[mask].sigmoid().mean()) if bool(mask.any()) else 0.0
            self._made[query] = mask.cpu().numpy(), share
        return self._made[query]


def resized_size(size: tuple[int, int], edges: tuple[int, int] = EDGES) -> tuple[int, int]:
    """(height, width) at which an image of (height, width) `size` is shown: as large as both edges allow."""
    scale = min(edges[0] / min(size), edges[1] / max(size))
    return max(int(size[0] * scale + 0.5), 1), max(int(size[1] * scale + 0.5), 1)


def image_logits(
    logits: torch.Tensor, padded: tuple[int, int], resized: tuple[int, int], size: tuple[int, int]
) -> torch.Tensor:
    """Mask logits float [H, W] at the image's own size.

    Args:
        logits: float [h, w], over what the model was shown.
        padded: (height, width) of what the model was shown.
        resized: (height, width) of the image in it, at the top left.
        size: (height, width) of the image itself.
    """

    def to(size: tuple[int, int], logits: torch.Tensor) -> torch.Tensor:
        return functional.interpolate(logits[None, None], size, mode="bilinear", align_corners=False)[0, 0]

    return to(size, to(padded, logits)[: resized[0], : resized[1]])


def find_instances(
    logits: torch.Tensor,
    masks: Callable[[int], tuple[np.ndarray, float]],
    classes: Sequence[str],
    wanted: Collection[str],
) -> list[Detection]:
    """Objects of one image, best first: score = probability of the class x mean probability in the mask.

    Args:
        logits: float [Q, K + 1], the last for no object.
        masks: gives, for a query, its mask bool [H, W] and the mean probability in it.
        classes: K names.
        wanted: names of those to return; all classes compete for the best hundred nevertheless.
    """
    likely = logits.softmax(-1)[:, :-1]  # [Q, K]
    best, places = likely.flatten().topk(min(_MAX_INSTANCES, likely.numel()))
    found = []
    for probability, place in zip(best.tolist(), places.tolist(), strict=True):
        query, label = divmod(int(place), likely.shape[1])
        # the mask only lowers a score, so what is too low already needs none
        if classes[label] not in wanted or probability < LEAST_SCORE:
            continue
        mask, share = masks(query)
        score = min(probability * share, 1.0)
        if score >= LEAST_SCORE:
            found.append(Detection(classes[label], score, mask_box(mask), mask))
    return sorted(found, key=lambda each: -each.score)


def mask_box(mask: np.ndarray) -> tuple[float, float, float, float]:
    """Smallest box (x0, y0, x1, y1) around a mask bool [H, W] that is not empty; x1, y1 = last pixel + 1."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)
