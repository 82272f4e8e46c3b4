"""OWLv2 behind the port of detectors: boxes of whatever a text names, without masks."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from lightgen.core.errors import UserError
from lightgen.ports.detector_boxes import LEAST_SCORE, corners, finite, in_batches, inside
from lightgen.ports.protocols import Detection

KIND = "owlv2"
_QUERY = "a photo of a {}"

# Shapes: B images, P patches with a box each, D width of an image's features, E of what texts share with it.


class OWLv2Detector:
    """An OWLv2 that is asked for each class alone, so that no other class changes the answer.

    The library's own post-processing gives each box to the best of the classes asked for; here a box may be
    found for several. Scores are lower than those of closed detectors: GenEval's thresholds were not made
    for them.

    Source: arXiv 2306.09683; images are padded with black to squares at the bottom and on the right, as in
    github google-research/scenic `projects/owl_vit` and huggingface/transformers#41938.
    """

    def __init__(
        self,
        model: Any,  # noqa: ANN401  (Owlv2ForObjectDetection)
        tokenizer: Any,  # noqa: ANN401  (CLIPTokenizer)
        processor: Any,  # noqa: ANN401  (Owlv2ImageProcessorPil)
        batch_size: int,
    ) -> None:
        self.model = model.eval().requires_grad_(False)
        self._tokenizer, self._processor, self._batch_size = tokenizer, processor, batch_size
        self._queries: dict[str, torch.Tensor] = {}

    @torch.no_grad()
    def detect(self, images: np.ndarray, labels: Sequence[str]) -> list[list[Detection]]:
        """Objects named by `labels` in each of images uint8 [B, H, W, 3], best first, without masks.

        Raises:
            UserError: a label is empty or longer than the model reads.
            ValueError: the model answers with numbers that are not finite.
        """
        queries = {label: self._query(label) for label in dict.fromkeys(labels)}
        size = (images.shape[1], images.shape[2])
        found: list[list[Detection]] = []
        for batch in in_batches(images, self._batch_size):
            pixels = self._processor(list(batch), return_tensors="pt")["pixel_values"]
            grid = self.model.image_embedder(pixel_values=pixels.to(self.model.device, self.model.dtype))[0]
            features = grid.flatten(1, 2)  # [B, P, D]
            boxes = finite(KIND, self.model.box_predictor(features, grid))  # [B, P, 4]
            scores = {label: self._scores(features, query).cpu() for label, query in queries.items()}
            for each in range(len(batch)):
                # the padding makes a square of the longer side
                places = [inside(box, size) for box in corners(boxes[each], (max(size), max(size)))]
                seen = [
                    Detection(label, float(rows[each, place]), box)
                    for label, rows in scores.items()
                    for place in (rows[each] >= LEAST_SCORE).nonzero()[:, 0].tolist()
                    if (box := places[place]) is not None
                ]
                found.append(sorted(seen, key=lambda one: -one.score))
        return found

    def _scores(self, features: torch.Tensor, query: torch.Tensor) -> torch.Tensor:
        """Scores [B, P] of one query [E]; by itself, so that its bits do not depend on other queries."""
        head = self.model.class_head
        points = _unit(head.dense0(features).float())  # [B, P, E]
        shift, scale = head.logit_shift(features).float()[..., 0], head.logit_scale(features).float()[..., 0]
        logits = (points @ query + shift) * (head.elu(scale) + 1)
        return finite(KIND, logits).sigmoid()

    def _query(self, label: str) -> torch.Tensor:
        """Embedding [E] of the text that asks for a class, at unit length."""
        if label in self._queries:
            return self._queries[label]
        longest = self.model.config.text_config.max_position_embeddings
        words = self._tokenizer(_QUERY.format(label))["input_ids"]
        if not label.strip() or len(words) > longest:
            got = f"{label[:60]!r} of {len(words)} tokens" if label.strip() else "an empty name"
            raise UserError(f"detector {KIND}: class {got}, allowed: a name of {longest} tokens at most")
        tokens = self._tokenizer(
            [_QUERY.format(label)], padding="max_length", max_length=longest, return_tensors="pt"
        ).to(self.model.device)
        found = self.model.owlv2.get_text_features(
            input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]
        )
        self._queries[label] = _unit(finite(KIND, found.pooler_output[0]))
        return self._queries[label]


def _unit(rows: torch.Tensor) -> torch.Tensor:
    return rows / (rows.norm(dim=-1, keepdim=True) + 1e-6)
