"""The colour classifier of GenEval: CLIP compares what a box shows with sentences on ten colours."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image

from lightgen.core.prompt import COLORS
from lightgen.ports.embedding import DEFAULT_MODELS, EmbedderConfig, embedder_files, load_embedder
from lightgen.ports.protocols import Detection, Embedder
from lightgen.ports.scorer import one_line

DEFAULT_MODEL = DEFAULT_MODELS["clip"]
TEMPLATES = (
    "a photo of a {color} {name}",
    "a photo of a {color}-colored {name}",
    "a photo of a {color} object",
)
_GREY = 0x99
# CLIP sees the middle square of a crop. Of a sliver, so many times as long as wide, only the middle is
# enlarged: a line of one pixel would else become 224 x 200,000.
_LONGEST = 8

# Shapes: D width of the embeddings.


@dataclass(frozen=True, kw_only=True)
class ColorConfig:
    """Which CLIP names colours, and how it runs.

    Attributes:
        model: local folder in the layout of transformers, or OWNER/NAME of a repository in the Hub's cache;
            None names OpenAI's ViT-L/14, as GenEval.
        batch_size: most crops or texts per pass.
        precision: of the model; colours are compared in fp32.
    """

    model: str | None = None
    batch_size: int = 16
    precision: Literal["bf16", "fp32"] = "fp32"


class CLIPColorClassifier:
    """Colours by an embedder of texts and images; made by `load_colors`.

    OpenAI's weights want the activation quick-GELU, and their config says so; it is taken from there.

    Source: github djghosh13/geneval `evaluation/evaluate_images.py` @16f1681 (crops, sentences), LAION-AI
    CLIP_benchmark `zeroshot_classification.py` (mean of sentences).
    """

    def __init__(self, embedder: Embedder) -> None:
        self._embedder = embedder
        self._rows: dict[str, np.ndarray] = {}

    def classify(self, image: np.ndarray, detections: Sequence[Detection], label: str) -> list[str]:
        """Name, out of the ten colours, of each detection of class `label` in image uint8 [H, W, 3]."""
        if not detections:
            return []
        # crops are of several sizes, each cut to one square by the embedder's own preparation
        crops: Any = [color_crop(image, detection) for detection in detections]
        likeness = self._embedder.embed_images(crops) @ self.color_rows(label).T  # [crops, 10]
        return [COLORS[index] for index in likeness.argmax(1).tolist()]

    def color_rows(self, label: str) -> np.ndarray:
        """Embedding float32 [10, D] at unit length of each colour for a class, made once per class."""
        if label not in self._rows:
            texts = [each.format(color=color, name=label) for color in COLORS for each in TEMPLATES]
            rows = self._embedder.embed_texts(texts).reshape(len(COLORS), len(TEMPLATES), -1).mean(1)
            self._rows[label] = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        return self._rows[label]


def color_crop(image: np.ndarray, detection: Detection) -> np.ndarray:
    """What is looked at, uint8 [h, w, 3]: the box of an image on grey outside the mask, at least one pixel.

    Args:
        image: uint8 [H, W, 3].
        detection: its box is rounded to whole pixels, half to even; where that leaves no pixel, or none of
            the image, the box holds the nearest one. Without a mask nothing is grey.
    """
    if detection.mask is not None:
        image = np.where(detection.mask[..., None], image, np.uint8(_GREY))
    x0, x1 = _span(detection.box[0], detection.box[2], image.shape[1])
    y0, y1 = _span(detection.box[1], detection.box[3], image.shape[0])
    crop = np.asarray(Image.fromarray(image).crop((x0, y0, x1, y1)))
    down, across = (_spare(crop.shape[axis], crop.shape[1 - axis]) for axis in (0, 1))
    return crop[down : crop.shape[0] - down, across : crop.shape[1] - across]


def color_files(config: ColorConfig, folder: Path) -> list[Path]:
    """Files of a folder that a colour classifier is read from.

    Raises:
        UserError: the folder lacks what a CLIP needs.
    """
    return embedder_files(_embedder_config(config), folder)


def load_colors(config: ColorConfig, folder: Path, device: torch.device) -> CLIPColorClassifier:
    """Colour classifier of a local CLIP on a device; nothing is downloaded and no code of the files is run.

    Raises:
        UserError: the files are missing, damaged, of another model, or do not fit together.
    """
    embedder = load_embedder(_embedder_config(config), folder, device)
    classifier = CLIPColorClassifier(embedder)
    with one_line("colors", folder):  # a processor for another size, or a foreign vocabulary, shows here
        classifier.classify(np.zeros((2, 2, 3), np.uint8), [Detection("object", 1.0, (0, 0, 2, 2))], "object")
    return classifier


def _span(start: float, end: float, size: int) -> tuple[int, int]:
    """Whole pixels [first, last + 1) from start to end on a side of `size` pixels, at least one of them."""
    first, last = round(start), round(end)
    if last <= first or last <= 0 or first >= size:
        first = min(max(int((start + end) / 2), 0), size - 1)
        last = first + 1
    return first, last


def _spare(side: int, other: int) -> int:
    """Pixels to cut at both ends of a side of a sliver; the same at both, so that the middle stays."""
    return max(side - _LONGEST * other, 0) // 2


def _embedder_config(config: ColorConfig) -> EmbedderConfig:
    return EmbedderConfig(
        kind="clip", model=config.model, batch_size=config.batch_size, precision=config.precision
    )
