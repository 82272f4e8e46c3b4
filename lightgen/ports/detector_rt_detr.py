"""RT-DETRv2 behind the port of detectors: boxes without masks, a second opinion on COCO's classes."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from lightgen.ports.coco import check_labels
from lightgen.ports.detector_boxes import LEAST_SCORE, corners, finite, in_batches, inside
from lightgen.ports.protocols import Detection

KIND = "rt-detr-v2"

# Shapes: B images, Q queries, K classes.


class RTDetrDetector:
    """An RT-DETRv2 of COCO; images are squeezed to the square that its processor names, 640 px as released.

    Of all queries and classes, as many as there are queries are the best ones and count.

    Source: arXiv 2407.17140 and github lyuwenyu/RT-DETR, `rtdetrv2_postprocessor.py`.
    """

    def __init__(
        self,
        model: Any,  # noqa: ANN401  (RTDetrV2ForObjectDetection)
        processor: Any,  # noqa: ANN401  (RTDetrImageProcessorPil)
        classes: Sequence[str],
        batch_size: int,
    ) -> None:
        self.model = model.eval().requires_grad_(False)
        self._processor, self._classes, self._batch_size = processor, tuple(classes), batch_size

    @torch.no_grad()
    def detect(self, images: np.ndarray, labels: Sequence[str]) -> list[list[Detection]]:
        """Objects of the classes `labels` in each of images uint8 [B, H, W, 3], best first, without masks.

        Raises:
            UserError: a label is none of COCO's.
            ValueError: the model answers with numbers that are not finite.
        """
        check_labels(KIND, labels)
        wanted, size = frozenset(labels), (images.shape[1], images.shape[2])
        found: list[list[Detection]] = []
        for batch in in_batches(images, self._batch_size):
            pixels = self._processor(list(batch), return_tensors="pt")["pixel_values"]
            out = self.model(pixel_values=pixels.to(self.model.device, self.model.dtype))
            logits, boxes = finite(KIND, out.logits), finite(KIND, out.pred_boxes)  # [B, Q, K], [B, Q, 4]
            found += [
                self._read(logits[each], corners(boxes[each], (size[1], size[0])), wanted, size)
                for each in range(len(batch))
            ]
        return found

    def _read(
        self,
        logits: torch.Tensor,
        boxes: Sequence[tuple[float, float, float, float]],
        wanted: frozenset[str],
        size: tuple[int, int],
    ) -> list[Detection]:
        """Objects of one image, of logits [Q, K] and Q boxes."""
        best, places = logits.sigmoid().flatten().topk(len(logits))
        found = []
        for score, place in zip(best.tolist(), places.tolist(), strict=True):
            query, label = divmod(place, logits.shape[1])
            box = inside(boxes[query], size)
            if self._classes[label] in wanted and score >= LEAST_SCORE and box is not None:
                found.append(Detection(self._classes[label], score, box))
        return found
