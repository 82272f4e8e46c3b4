"""Embedders of others behind one port: CLIP, SigLIP 2, DINOv2 and sentence encoders, all of transformers."""

import contextlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors import SafetensorError
from torch.nn import functional
from transformers import (
    BertModel,
    BertTokenizer,
    CLIPModel,
    CLIPTokenizer,
    Dinov2Model,
    Siglip2Model,
    Siglip2Tokenizer,
    SiglipModel,
)
from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil
from transformers.models.siglip2.image_processing_pil_siglip2 import Siglip2ImageProcessorPil

from lightgen.core.errors import UserError

Kind = Literal["nano", "clip", "siglip2", "dinov2", "sentence"]
DEFAULT_MODELS: dict[Kind, str] = {
    "clip": "openai/clip-vit-large-patch14",
    "siglip2": "google/siglip2-base-patch16-224",
    "dinov2": "facebook/dinov2-base",
    "sentence": "sentence-transformers/all-MiniLM-L6-v2",
}
TEXT_KINDS = ("nano", "clip", "siglip2", "sentence")
IMAGE_KINDS = ("nano", "clip", "siglip2", "dinov2")

_POOLING = "1_Pooling/config.json"
_PICTURES = "preprocessor_config.json"
_VOCABULARIES = (("tokenizer.json",), ("vocab.json", "merges.txt"), ("vocab.txt",))
_BESIDE = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
# What a folder is read for; nothing else of a repository is needed.
PATTERNS = (
    *("config.json", "model*.safetensors", "model.safetensors.index.json", _PICTURES, _POOLING, *_BESIDE),
    *(name for names in _VOCABULARIES for name in names),
)

# By `model_type` of the config: which kind it fills, and its classes by name. Google's SigLIP 2 of one fixed
# size call themselves "siglip"; those of any size ("naflex") are "siglip2".
_FAMILIES: dict[str, tuple[Kind, Any, Any, Any]] = {
    "clip": ("clip", CLIPModel, CLIPTokenizer, CLIPImageProcessorPil),
    "siglip": ("siglip2", SiglipModel, Siglip2Tokenizer, SiglipImageProcessorPil),
    "siglip2": ("siglip2", Siglip2Model, Siglip2Tokenizer, Siglip2ImageProcessorPil),
    "dinov2": ("dinov2", Dinov2Model, None, BitImageProcessorPil),
    "bert": ("sentence", BertModel, BertTokenizer, None),
}
_SENTENCE_TOKENS = 256


@dataclass(frozen=True, kw_only=True)
class EmbedderConfig:
    """Which model embeds, and how it runs.

    Attributes:
        kind: nano: words of texts, and what the shipped detector sees in images, without a download; clip,
            siglip2: texts and images; dinov2: images; sentence: texts, by a BERT with mean (or CLS) pooling.
        model: local folder in the layout of transformers, or OWNER/NAME of a repository in the Hub's cache;
            for nano the checkpoint of a detector. None names the usual one.
        batch_size: most texts or images per pass.
        precision: of the model; embeddings are float32 in any case.
    """

    kind: Kind = "nano"
    model: str | None = None
    batch_size: int = 64
    precision: Literal["bf16", "fp32"] = "fp32"


class ModelEmbedder:
    """An encoder of transformers; made by `load_embedder`."""

    def __init__(
        self,
        config: EmbedderConfig,
        model: Any,  # noqa: ANN401  (one of five classes, as are the next two)
        tokenizer: Any,  # noqa: ANN401
        processor: Any,  # noqa: ANN401
        by_cls: bool = False,
    ) -> None:
        self._config, self._by_cls = config, by_cls
        self.model = model.eval().requires_grad_(False)
        self._tokenizer, self._processor = tokenizer, processor
        self._dim = _width(config.kind, model.config)

    @property
    def dim(self) -> int:
        """Width of the embeddings."""
        return self._dim

    def embed_texts(self, texts: Sequence[str]) -> np.ndarray:
        """Embeddings float32 [N, D] at unit length; a text longer than the model reads is cut.

        Raises:
            UserError: the kind reads no texts.
        """
        if self._tokenizer is None:
            raise UserError(
                f"embedder {self._config.kind}: got texts, allowed: images ({_named(TEXT_KINDS)})"
            )
        return self._in_batches(list(texts), self._texts)

    def embed_images(self, images: np.ndarray) -> np.ndarray:
        """Embeddings float32 [B, D] at unit length of images uint8 [B, H, W, 3], prepared as the model asks.

        Raises:
            UserError: the kind sees no images.
        """
        if self._processor is None:
            raise UserError(
                f"embedder {self._config.kind}: got images, allowed: texts ({_named(IMAGE_KINDS)})"
            )
        return self._in_batches(list(images), self._images)

    @torch.no_grad()
    def _in_batches(self, given: list[Any], embed: Callable[[list[Any]], torch.Tensor]) -> np.ndarray:
        size = self._config.batch_size
        rows = [
            functional.normalize(embed(given[start : start + size]).float()).cpu().numpy()
            for start in range(0, len(given), size)
        ]
        return np.concatenate(rows) if rows else np.zeros((0, self._dim), np.float32)

    def _texts(self, texts: list[str]) -> torch.Tensor:
        is_sentence = self._config.kind == "sentence"
        config = self.model.config if is_sentence else self.model.config.text_config
        longest = config.max_position_embeddings
        tokens = self._tokenizer(
            texts,
            padding=True if is_sentence else "max_length",
            truncation=True,
            max_length=min(longest, _SENTENCE_TOKENS) if is_sentence else longest,
            return_tensors="pt",
        ).to(self.model.device)
        highest = int(tokens["input_ids"].max())
        if highest >= config.vocab_size:
            raise UserError(
                f"embedder {self._config.kind}: got word {highest} of its tokenizer, allowed: those below "
                f"{config.vocab_size}, which the model knows"
            )
        if not is_sentence:
            # SigLIP was trained without a mask: its padding is read too.
            mask = {"attention_mask": tokens["attention_mask"]} if self._config.kind == "clip" else {}
            return self.model.get_text_features(input_ids=tokens["input_ids"], **mask).pooler_output
        hidden = self.model(**tokens).last_hidden_state.float()  # [B, T, D]
        mask = tokens["attention_mask"][..., None].float()
        return hidden[:, 0] if self._by_cls else (hidden * mask).sum(1) / mask.sum(1).clamp(min=1)

    def _images(self, images: list[np.ndarray]) -> torch.Tensor:
        given = self._processor(images, return_tensors="pt").to(self.model.device)
        given["pixel_values"] = given["pixel_values"].to(self.model.dtype)
        if self._config.kind == "dinov2":
            return self.model(pixel_values=given["pixel_values"]).last_hidden_state[:, 0]
        return self.model.get_image_features(**given).pooler_output


def embedder_files(config: EmbedderConfig, folder: Path) -> list[Path]:
    """Files of a folder that an embedder is read from.

    Raises:
        UserError: the folder lacks what the kind needs.
    """
    weights = sorted(folder.glob("model*.safetensors"))
    if not weights or not (folder / "config.json").is_file():
        lack = "config.json" if weights else "model.safetensors"
        raise UserError(
            f"embedder {folder}: no {lack}, allowed: {config.kind} in transformers' layout, safetensors only"
        )
    if config.kind in IMAGE_KINDS and not (folder / _PICTURES).is_file():
        raise UserError(f"embedder {folder}: no {_PICTURES}, allowed: a folder with the image processor")
    has_words = any(all((folder / name).is_file() for name in names) for names in _VOCABULARIES)
    if config.kind in TEXT_KINDS and not has_words:
        raise UserError(f"embedder {folder}: no tokenizer.json, allowed: a folder with the tokenizer")
    beside = [folder / name for name in PATTERNS if "*" not in name]
    return [*weights, *(path for path in beside if path.is_file())]


def load_embedder(config: EmbedderConfig, folder: Path, device: torch.device) -> ModelEmbedder:
    """Embedder of a local folder on a device; nothing is downloaded and no code of the files is run.

    Args:
        config: its kind, any but nano.
        folder: in the layout of transformers.
        device: where it runs.

    Raises:
        UserError: the files are missing, damaged, or of another kind.
    """
    assert config.kind != "nano", config
    embedder_files(config, folder)
    with _told(folder):
        family = str(json.loads((folder / "config.json").read_text()).get("model_type"))
        kind, model_class, tokenizer_class, processor_class = _FAMILIES.get(family, ("", None, None, None))
        if kind != config.kind:
            allowed = " or ".join(repr(name) for name, each in _FAMILIES.items() if each[0] == config.kind)
            raise UserError(f"holds a {family!r}, allowed: {allowed}")
        by_cls = kind == "sentence" and _is_cls_pooled(folder)
        model = _load_model(folder, model_class, config)
        processor = processor_class and processor_class.from_pretrained(folder, local_files_only=True)
        tokenizer = tokenizer_class and tokenizer_class.from_pretrained(folder, local_files_only=True)
        if tokenizer is not None:
            tokenizer.padding_side = "right"  # as all of these were trained
        return ModelEmbedder(config, model.to(device), tokenizer, processor, by_cls)


def _load_model(folder: Path, model_class: Any, config: EmbedderConfig) -> Any:  # noqa: ANN401
    """The model in its dtype; a weight that is not stored, which the library would draw, is refused."""
    more = {"add_pooling_layer": False} if config.kind == "sentence" else {}
    model, told = model_class.from_pretrained(
        folder,
        dtype=torch.bfloat16 if config.precision == "bf16" else torch.float32,
        use_safetensors=True,
        local_files_only=True,
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # refused below, where it can be named
        **more,
    )
    absent = sorted(told["missing_keys"]) + sorted(str(each[0]) for each in told["mismatched_keys"])
    if absent:
        raise UserError(
            f"{len(absent)} weights missing or of another shape ({absent[0]}), allowed: a whole {config.kind}"
        )
    return model


def _is_cls_pooled(folder: Path) -> bool:
    """Whether a sentence encoder takes the CLS token; it takes the mean where it says nothing.

    Raises:
        UserError: it pools in another way.
    """
    if not (folder / _POOLING).is_file():
        return False
    stated = json.loads((folder / _POOLING).read_text())
    modes = sorted(
        name for name, value in stated.items() if name.startswith("pooling_mode") and value is True
    )
    if modes not in (["pooling_mode_cls_token"], ["pooling_mode_mean_tokens"]):
        raise UserError(f"{_POOLING} says {', '.join(modes) or 'nothing'}, allowed: mean or cls tokens")
    return modes == ["pooling_mode_cls_token"]


def _width(kind: Kind, config: Any) -> int:  # noqa: ANN401
    if kind == "clip":
        return config.projection_dim
    return config.vision_config.hidden_size if kind == "siglip2" else config.hidden_size


def _named(kinds: Sequence[str]) -> str:
    return f"or a kind out of {', '.join(kinds)}"


@contextlib.contextmanager
def _told(path: Path) -> Iterator[None]:
    """Context in which whatever ails other people's files becomes one line."""
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, AttributeError, SafetensorError) as error:
        name = "" if isinstance(error, UserError) else f"{type(error).__name__} "
        raise UserError(f"embedder {path}: {' '.join(f'{name}{error}'.split())[:300]}") from error
