"""What lightgen asks of others' models: one Protocol per port, filled by adapters, fakes and the student."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch


@dataclass(frozen=True)
class Detection:
    """One object that a detector found in one image.

    Attributes:
        label: class of the object.
        score: confidence in [0, 1].
        box: (x0, y0, x1, y1) in pixels, x to the right, y downwards, x0 <= x1 and y0 <= y1.
        mask: bool [H, W] at the image's size, True on the object; None where the detector draws no masks.
        colors: probability of each of the ten colours, from a detector that judges colours itself; else None.
    """

    label: str
    score: float
    box: tuple[float, float, float, float]
    mask: np.ndarray | None = field(default=None, compare=False, repr=False)
    colors: Mapping[str, float] | None = field(default=None, compare=False)


class ImageGenerator(Protocol):
    """A teacher or a student: prompts become images."""

    @property
    def name(self) -> str:
        """Name that the manifest of its images carries."""
        ...

    def generate(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        height: int,
        width: int,
        source: np.ndarray | None = None,
        mask: np.ndarray | None = None,
    ) -> np.ndarray:
        """Images uint8 [B, H, W, 3]; the same prompt and seed give the same image in any batch.

        Args:
            prompts: one text per image.
            seeds: one seed per image.
            height: of every image, in pixels.
            width: of every image, in pixels.
            source: uint8 [B, H, W, 3], images to edit; comes with `mask` or not at all.
            mask: bool [B, H, W], True = to be repainted.
        """
        ...


class TextEncoder(Protocol):
    """Texts become features."""

    @property
    def dim(self) -> int:
        """Width D of the features."""
        ...

    @property
    def max_length(self) -> int:
        """Most tokens L that a text is cut to."""
        ...

    def encode(self, texts: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """Features float [B, L, D] and mask bool [B, L], True = real token; L is that of the longest text."""
        ...


class Autoencoder(Protocol):
    """Pixels become latents of unit variance, and back; shift and scale happen here and nowhere else."""

    @property
    def channels(self) -> int:
        """Channels C of the latents."""
        ...

    @property
    def stride(self) -> int:
        """Pixels per latent position along each side: h = H / stride."""
        ...

    def encode(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and std, each float [B, C, h, w], of the latents of pixels float [B, 3, H, W] in [-1, 1]."""
        ...

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Pixels float [B, 3, H, W] in [-1, 1] of latents float [B, C, h, w]."""
        ...


class Scorer(Protocol):
    """A judge of how well, or how faithfully, an image is drawn."""

    def score(self, images: np.ndarray, prompts: Sequence[str]) -> np.ndarray:
        """Scores float [B], higher is better, of images uint8 [B, H, W, 3]."""
        ...


class SafetyChecker(Protocol):
    """A judge of what an image shows."""

    def unsafe(self, images: np.ndarray) -> np.ndarray:
        """Probability float [B] in [0, 1] that each of images uint8 [B, H, W, 3] is unsafe to show."""
        ...


class Embedder(Protocol):
    """Texts or images become points: what is alike lies near."""

    @property
    def dim(self) -> int:
        """Width D of the embeddings."""
        ...

    def embed_texts(self, texts: Sequence[str]) -> np.ndarray:
        """Embeddings float32 [N, D] at unit length; a UserError where it reads no texts."""
        ...

    def embed_images(self, images: np.ndarray) -> np.ndarray:
        """Embeddings float32 [B, D] at unit length of images uint8 [B, H, W, 3]; or a UserError, as above."""
        ...


class Captioner(Protocol):
    """A writer of captions: from shorter ones, or from images."""

    def expand(self, texts: Sequence[str], seeds: Sequence[int]) -> list[str]:
        """A detailed caption of each text, as written, empty where none came; the same in any batch.

        Raises:
            UserError: it reads no texts, or fails.
        """
        ...

    def describe(self, images: Sequence[np.ndarray], seeds: Sequence[int]) -> list[str]:
        """A caption of each image uint8 [H, W, 3], of any sizes; as expand.

        Raises:
            UserError: it sees no images, or fails.
        """
        ...


class Answerer(Protocol):
    """A reader of images that answers questions on them."""

    def answer(
        self, images: np.ndarray, questions: Sequence[str], answers: Sequence[Sequence[str]]
    ) -> list[np.ndarray]:
        """Probability float32 [A] in [0, 1] of each of A given answers, by image; the same in any batch.

        Args:
            images: uint8 [B, H, W, 3].
            questions: one per image.
            answers: of each question, such as ("yes", "no") or ("four",); the rest of the probability is for
                all other answers.
        """
        ...


class FeatureExtractor(Protocol):
    """Images become points whose distribution is compared with that of other images."""

    @property
    def dim(self) -> int:
        """Width D of the features."""
        ...

    def features(self, images: np.ndarray) -> np.ndarray:
        """Features float32 [B, D], of any length, of images uint8 [B, H, W, 3]; the same in any batch."""
        ...


class Detector(Protocol):
    """A finder of objects."""

    def detect(self, images: np.ndarray, labels: Sequence[str]) -> list[list[Detection]]:
        """Objects of the classes `labels` in each of images uint8 [B, H, W, 3], in any order and confidence.

        Thresholds belong to the verdict, so detections down to about .05 should be handed over.
        """
        ...


class ColorClassifier(Protocol):
    """A judge of colours."""

    def classify(self, image: np.ndarray, detections: Sequence[Detection], label: str) -> list[str]:
        """Name, out of the ten colours, of each detection of class `label` in image uint8 [H, W, 3]."""
        ...
