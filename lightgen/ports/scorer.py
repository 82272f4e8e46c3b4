"""Scorers of others behind one port: CLIPScore, PickScore, HPSv2, aesthetics; each a CLIP of transformers."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors import SafetensorError
from torch.nn import functional
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from lightgen.core.errors import UserError
from lightgen.ports.aesthetic import AestheticScorer, load_head
from lightgen.ports.open_clip import from_open_clip, open_clip_config
from lightgen.ports.released_file import read_state_dict

Kind = Literal["clip-score", "pick-score", "hps-v2", "aesthetic"]
# Name under which an image's record keeps the score, whatever scores it next.
COLUMNS: dict[Kind, str] = {
    "clip-score": "clip_score",
    "pick-score": "pick_score",
    "hps-v2": "hps_v2",
    "aesthetic": "aesthetic",
}
DEFAULT_MODELS: dict[Kind, str] = {
    "clip-score": "openai/clip-vit-large-patch14",
    "pick-score": "yuvalkirstain/PickScore_v1",
    "aesthetic": "openai/clip-vit-large-patch14",
}
CLIP_H = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"

_PREPROCESSOR = ("preprocessor_config.json", "processor_config.json")
_VOCABULARY = ("tokenizer.json", "vocab.json", "merges.txt")
_BESIDE = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
# What a folder of a model and of a processor is read for; nothing else of a repository is needed.
MODEL_PATTERNS = ("config.json", "model*.safetensors", "model.safetensors.index.json")
PROCESSOR_PATTERNS = (*_PREPROCESSOR, *_VOCABULARY, *_BESIDE)

VIT_H_WIDTHS = (1024, 1280)  # of the text and the vision tower


@dataclass(frozen=True, kw_only=True)
class ScorerConfig:
    """Which model scores, and how it runs.

    Attributes:
        kind: clip-score: how well the image fits the prompt (2.5 max(cos, 0)); pick-score, hps-v2: how much
            people would prefer it among images of the prompt; aesthetic: how much people like it, whatever
            the prompt, about 1 to 10.
        model: local folder in the layout of transformers, or OWNER/NAME of a repository in the Hub's cache;
            for a model of open_clip (hps-v2) its file, .pt or .safetensors. None names the usual repository;
            hps-v2 has none.
        processor: folder or repository of image processor and tokenizer; None means the model's own where it
            has them, else those of CLIP-H.
        head: of aesthetic, file of the layers on top of the CLIP (.pth or .safetensors); none comes with it.
        batch_size: most images per pass.
        precision: of the model.
    """

    kind: Kind = "clip-score"
    model: str | None = None
    processor: str | None = None
    head: str | None = None
    batch_size: int = 32
    precision: Literal["bf16", "fp32"] = "fp32"


class CLIPScorer:
    """A CLIP whose cosine of image and prompt is the score, scaled as the kind wants it.

    CLIPScore is taken without the words "A photo depicts" of its paper, as prompts are no captions.
    PickScore is the cosine times the learned scale, about 100 times; HPSv2 the cosine alone. HPSv2's own code
    shows the whole of an image that is not square, with black bars; the others see the middle.

    Source: arXiv 2104.08718 (CLIPScore); arXiv 2305.01569 (PickScore); arXiv 2306.09341 and
    github tgxs002/HPSv2 `img_score.py` (HPSv2).
    """

    def __init__(
        self, model: CLIPModel, tokenizer: CLIPTokenizer, processor: CLIPImageProcessorPil, kind: Kind
    ) -> None:
        self.model, self.kind = model.eval().requires_grad_(False), kind
        self.tokenizer, self.processor = tokenizer, processor

    @torch.no_grad()
    def score(self, images: np.ndarray, prompts: Sequence[str]) -> np.ndarray:
        """Scores float32 [B], higher is better, of images uint8 [B, H, W, 3]."""
        assert len(images) == len(prompts), (len(images), len(prompts))
        shown = squared(images) if self.kind == "hps-v2" else images
        pixels = self.processor(list(shown), return_tensors="pt")["pixel_values"]
        config: Any = self.model.config.text_config
        tokens: Any = self.tokenizer(
            list(prompts),
            padding="max_length",
            truncation=True,
            max_length=config.max_position_embeddings,
            return_tensors="pt",
        )
        device, dtype = self.model.device, self.model.dtype
        found: Any = self.model(
            input_ids=tokens["input_ids"].to(device),
            attention_mask=tokens["attention_mask"].to(device),
            pixel_values=pixels.to(device, dtype),
        )
        cosine = functional.cosine_similarity(found.image_embeds.float(), found.text_embeds.float())
        if self.kind == "clip-score":
            return (2.5 * cosine.clamp(min=0)).cpu().numpy()
        if self.kind == "pick-score":
            return (self.model.logit_scale.float().exp() * cosine).cpu().numpy()
        return cosine.cpu().numpy()


def squared(images: np.ndarray) -> np.ndarray:
    """Images uint8 [B, S, S, 3] with black bars on both sides, S the longer side of [B, H, W, 3]."""
    height, width = images.shape[1:3]
    down, across = max(width - height, 0), max(height - width, 0)
    bars = [(0, 0), (down // 2, down - down // 2), (across // 2, across - across // 2), (0, 0)]
    return np.pad(images, bars)


def scorer_files(model: Path, processor: Path, head: Path | None = None) -> dict[str, list[Path]]:
    """Files that a scorer is read from, by `model` and `processor`, and `head` where there is one.

    Raises:
        UserError: a folder lacks what a model or a processor needs.
    """
    weights = (
        [model] if model.is_file() else [model / "config.json", *sorted(model.glob("model*.safetensors"))]
    )
    if model.is_dir() and (len(weights) == 1 or not weights[0].is_file()):
        lack = "config.json" if len(weights) > 1 else "model.safetensors"
        raise UserError(
            f"scorer {model}: no {lack}, allowed: a CLIP in transformers' layout, safetensors only"
        )
    if not has_processor(processor):
        raise UserError(
            f"scorer {processor}: no {_PREPROCESSOR[0]} or no tokenizer, allowed: a folder with both "
            "(--scorer.processor)"
        )
    index = [model / "model.safetensors.index.json"] if model.is_dir() else []
    beside = [processor / name for name in PROCESSOR_PATTERNS]
    return {
        "model": [*weights, *(path for path in index if path.is_file())],
        "processor": [path for path in beside if path.is_file()],
        **({"head": [head]} if head is not None else {}),
    }


def has_processor(folder: Path) -> bool:
    """Whether a folder holds an image processor and a tokenizer."""
    has_words = (folder / _VOCABULARY[0]).is_file() or all((folder / n).is_file() for n in _VOCABULARY[1:])
    return has_words and any((folder / name).is_file() for name in _PREPROCESSOR)


def load_scorer(
    config: ScorerConfig, model: Path, processor: Path, device: torch.device, head: Path | None = None
) -> CLIPScorer | AestheticScorer:
    """Scorer of local files on a device; nothing is downloaded and no code of the files is run.

    Args:
        config: its kind and precision.
        model: folder in the layout of transformers, or file of an open_clip model.
        processor: folder of image processor and tokenizer.
        device: where it runs.
        head: file of the head of `aesthetic`.

    Raises:
        UserError: the files are missing, damaged, of another model, or do not fit together.
    """
    scorer_files(model, processor, head)
    dtype = torch.bfloat16 if config.precision == "bf16" else torch.float32
    with one_line("scorer", model):
        network: Any = _load_model(model, dtype)
    with one_line("scorer", processor):
        images = CLIPImageProcessorPil.from_pretrained(processor, local_files_only=True)
        words = CLIPTokenizer.from_pretrained(processor, local_files_only=True)
        vision, text = network.config.vision_config, network.config.text_config
        side, crop = vision.image_size, images.crop_size
        if (crop["height"], crop["width"]) != (side, side):
            raise UserError(
                f"cuts to {crop['width']}x{crop['height']} px, allowed: the model's {side}x{side}"
            )
        if len(words) > text.vocab_size:
            raise UserError(f"got {len(words)} words, allowed: the {text.vocab_size} of the model, or fewer")
    if config.kind == "aesthetic":
        assert head is not None
        with one_line("scorer", head):
            layers = load_head(head, network.config.projection_dim)
        return AestheticScorer(network.to(device), images, layers.to(device))
    return CLIPScorer(network.to(device), words, images, config.kind)


def _load_model(path: Path, dtype: torch.dtype) -> CLIPModel:
    """The model in a dtype; a weight that is not stored, which the library would draw, is refused."""
    # a shape that does not fit is refused below, where it can be named
    options: dict[str, Any] = {"dtype": dtype, "output_loading_info": True, "ignore_mismatched_sizes": True}
    if path.is_file():
        tensors = from_open_clip(read_state_dict(path), "file")
        config = open_clip_config(tensors)
        towers: Any = (config.text_config, config.vision_config)
        widths = tuple(tower.hidden_size for tower in towers)
        if widths != VIT_H_WIDTHS:  # the file does not say how many heads a tower has
            raise UserError(f"holds towers of widths {widths}, allowed: {VIT_H_WIDTHS}, ViT-H-14 as in HPSv2")
        loaded: Any = CLIPModel.from_pretrained(None, config=config, state_dict=tensors, **options)
    else:
        kind = CLIPConfig.get_config_dict(path, local_files_only=True)[0].get("model_type")
        if kind != "clip":
            raise UserError(f"holds a {kind!r}, allowed: a 'clip'")
        loaded = CLIPModel.from_pretrained(path, use_safetensors=True, local_files_only=True, **options)
    model, told = loaded
    absent = sorted(told["missing_keys"]) + sorted(str(each[0]) for each in told["mismatched_keys"])
    if absent:
        raise UserError(
            f"{len(absent)} weights missing or of another shape ({absent[0]}), allowed: a whole CLIP"
        )
    return model


@contextlib.contextmanager
def one_line(what: str, path: Path) -> Iterator[None]:
    """Context in which whatever ails other people's files becomes one line that names what they are for."""
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        name = "" if isinstance(error, UserError) else f"{type(error).__name__} "
        raise UserError(f"{what} {path}: {' '.join(f'{name}{error}'.split())[:300]}") from error
