"""The small embedder that needs no download: words of a text, and what the nano detector sees in a picture.

Texts and pictures have each a space of their own; a cosine between the two means nothing.
"""

import functools
import hashlib
import math
import re
from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch
from torch.nn import functional

from lightgen.core.draws import numpy_draws
from lightgen.core.errors import UserError
from lightgen.ports.nano.detector import SIDE, NanoDetector

DIM = 256
VERSION = 1  # of the numbers below; another one is another embedder

_WORD = re.compile(r"\w+")
# Words that nearly every caption holds, and that say little of what is in it.
_COMMON = frozenset(
    ("a", "an", "the", "this", "that", "there", "it", "its", "is", "are", "and", "or", "of", "in", "on", "at")
    + ("to", "by", "with", "photo", "image")
)
_COMMON_WEIGHT, _PAIR_WEIGHT = 0.2, 0.5
_LAYOUT_CELLS = 4
# Classes, colours, classes with colours, places of objects, the picture's colours by place. Pairs of renders
# of one prompt are then near 0.84, of two prompts near 0.1, of a picture and its JPEG above 0.99.
_WEIGHTS = (1.0, 0.5, 1.0, 0.7, 0.5)

# Shapes: B images, C classes, K colours, h w cells of the detector.


class NanoEmbedder:
    """Embedder of 256 dimensions by counts of words, or by a detector's classes, colours and places.

    Args:
        detector: what pictures are seen with; None where only texts are embedded.
        batch_size: most images per pass.
    """

    def __init__(self, detector: NanoDetector | None, batch_size: int = 64) -> None:
        self._detector, self._batch_size = detector, batch_size

    @property
    def dim(self) -> int:
        """Width of the embeddings."""
        return DIM

    def embed_texts(self, texts: Sequence[str]) -> np.ndarray:
        """Embeddings float32 [N, 256] at unit length of words and pairs of neighbouring words, in any case.

        Each word has a direction of its own, of signs that its hash names, so two texts are as near as the
        words that they share make them, up to about 1/16.
        """
        rows = np.zeros((len(texts), DIM), np.float32)
        for row, text in zip(rows, texts, strict=True):
            words = _WORD.findall(text.lower()) or [""]
            counts = Counter([*words, *(" ".join(pair) for pair in zip(words, words[1:], strict=False))])
            for word, count in counts.items():
                row += _weight(word) * math.sqrt(count) * _direction(word)
        return _unit(rows)

    @torch.no_grad()
    def embed_images(self, images: np.ndarray) -> np.ndarray:
        """Embeddings float32 [B, 256] at unit length of images uint8 [B, H, W, 3].

        Raises:
            UserError: this embedder came without a detector.
        """
        if self._detector is None:
            raise UserError("embedder nano: got images and no detector, allowed: texts")
        found = [
            self._features(images[start : start + self._batch_size])
            for start in range(0, len(images), self._batch_size)
        ]
        features = np.concatenate(found) if found else np.zeros((0, len(_WEIGHTS)), np.float32)
        return _unit(features @ _projection(features.shape[1]))

    def _features(self, images: np.ndarray) -> np.ndarray:
        assert self._detector is not None
        pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float().div(127.5).sub(1)
        if tuple(pixels.shape[2:]) != (SIDE, SIDE):
            pixels = functional.interpolate(pixels, (SIDE, SIDE), mode="bilinear", antialias=True)
        maps = {name: value.float() for name, value in self._detector.network(pixels).items()}
        center = maps["center"].sigmoid()  # [B, 1, h, w]
        label, color = maps["label"].softmax(1) * center, maps["color"].softmax(1)
        # The root of a count: three dogs are more than one, and not three times as much.
        parts = (
            label.sum((2, 3)).sqrt(),
            (color * center).sum((2, 3)).sqrt(),
            torch.einsum("bchw,bkhw->bck", label, color).flatten(1).sqrt(),
            functional.adaptive_avg_pool2d(center, _LAYOUT_CELLS).flatten(1).sqrt(),
            functional.adaptive_avg_pool2d(pixels, _LAYOUT_CELLS).flatten(1),
        )
        weighted = (w * functional.normalize(part) for w, part in zip(_WEIGHTS, parts, strict=True))
        return torch.cat(list(weighted), dim=1).numpy()


def _weight(word: str) -> float:
    if " " in word:
        return _PAIR_WEIGHT
    return _COMMON_WEIGHT if word in _COMMON else 1.0


@functools.lru_cache(maxsize=1 << 16)
def _direction(word: str) -> np.ndarray:
    """Signs float32 [256] that the word's hash names."""
    digest = hashlib.blake2b(word.encode("utf-8", "surrogatepass"), digest_size=DIM // 8).digest()
    return np.unpackbits(np.frombuffer(digest, np.uint8)).astype(np.float32) * 2 - 1


@functools.cache
def _projection(size: int) -> np.ndarray:
    """Matrix float32 [size, 256] that keeps lengths and angles, up to about 1/16."""
    draws = numpy_draws(VERSION, "nano embedding").standard_normal((size, DIM))
    return (draws / math.sqrt(DIM)).astype(np.float32)


def _unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True).clip(1e-12)
