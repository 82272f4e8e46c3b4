"""Language models of transformers, those that see images among them: loading, chats, places of images."""

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from jinja2 import TemplateError
from safetensors import SafetensorError
from transformers import PreTrainedTokenizerFast
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from lightgen.core.errors import UserError

# Classes by `model_type` of the config. Named ones only: none of them can run code of the folder.
TEXT_MODELS = {
    "gemma2": "Gemma2ForCausalLM",
    "gemma3_text": "Gemma3ForCausalLM",
    "granite": "GraniteForCausalLM",
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "olmo2": "Olmo2ForCausalLM",
    "phi3": "Phi3ForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "smollm3": "SmolLM3ForCausalLM",
}
IMAGE_MODELS = {
    "llava": "LlavaForConditionalGeneration",
    "qwen2_vl": "Qwen2VLForConditionalGeneration",
    "qwen2_5_vl": "Qwen2_5_VLForConditionalGeneration",
    "qwen3_vl": "Qwen3VLForConditionalGeneration",
}
_PROCESSORS: dict[str, Any] = {
    "CLIPImageProcessor": CLIPImageProcessorPil,
    "LlavaImageProcessor": LlavaImageProcessorPil,
    "Qwen2VLImageProcessor": Qwen2VLImageProcessorPil,
    "SiglipImageProcessor": SiglipImageProcessorPil,
}
_PICTURES = "preprocessor_config.json"
_NEEDED = ("config.json", "tokenizer.json")
# What a folder is read for; nothing else of a repository is needed.
FILES = (
    *_NEEDED,
    *("model*.safetensors", "model.safetensors.index.json", "generation_config.json", _PICTURES),
    *("tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja", "chat_template.json"),
)
_AILMENTS = (
    *(OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError),
    *(SafetensorError, StrictDataclassError),
)


@dataclass(frozen=True)
class VisionLanguageModel:
    """A language model with what prepares its inputs; made by `load_vision_language`.

    Attributes:
        title: how errors name it, such as `captioner OWNER/NAME`.
        model: in eval mode, without gradients, on its device.
        tokenizer: of texts.
        processor: of images, or None for a model that only reads.
        ends: tokens that end an answer.
        pad: token that fills up the shorter rows of a batch.
        special: words of the vocabulary that end a turn or stand for an image, the longest first.
    """

    title: str
    model: Any
    tokenizer: PreTrainedTokenizerFast
    processor: Any
    ends: tuple[int, ...]
    pad: int
    special: tuple[str, ...]

    def plain(self, text: str) -> str:
        """The text without words that would end a turn or stand for an image."""
        for word in self.special:
            text = text.replace(word, " ")
        return text

    def see(self, images: Sequence[np.ndarray]) -> tuple[dict[str, torch.Tensor], list[int]]:
        """(Inputs for images uint8 [H, W, 3] of any sizes, number of tokens that each image takes).

        Raises:
            UserError: images are prepared in another size than the model's.
        """
        seen = self.processor(list(images), return_tensors="pt")
        inputs = {
            name: value.to(self.model.device, self.model.dtype if value.is_floating_point() else None)
            for name, value in seen.items()
            if name in ("pixel_values", "image_grid_thw")
        }
        return inputs, self.image_tokens(seen, len(images))

    def image_tokens(self, seen: Mapping[str, Any], num: int) -> list[int]:
        """Tokens that each of `num` images takes, by what the processor returned.

        Raises:
            UserError: images are prepared in another size than the model's.
        """
        config = self.model.config
        if "image_grid_thw" in seen:
            merged = config.vision_config.spatial_merge_size**2
            return [int(grid.prod()) // merged for grid in seen["image_grid_thw"]]
        vision = config.vision_config
        height, width = seen["pixel_values"].shape[-2:]
        if (height, width) != (vision.image_size, vision.image_size):
            raise UserError(
                f"{self.title}: prepares images of {width}x{height} px, allowed: the "
                f"model's {vision.image_size}x{vision.image_size}"
            )
        count = (vision.image_size // vision.patch_size) ** 2 + (vision.model_type == "clip_vision_model")
        return [count - (config.vision_feature_select_strategy == "default")] * num

    def chat_with_image(self, text: str, count: int, ending: str) -> list[int]:
        """Token ids as of `chat` with the place of an image of `count` tokens before the text.

        Raises:
            UserError: the chat template fails, or has no place for an image.
        """
        mark = self.model.config.image_token_id
        ids = self.chat([{"type": "image"}, {"type": "text", "text": text}], ending)
        if ids.count(mark) != 1:
            raise UserError(
                f"{self.title}: its chat template has {ids.count(mark)} places for an image, allowed: one"
            )
        at = ids.index(mark)
        return [*ids[:at], *[mark] * count, *ids[at + 1 :]]

    def chat(self, content: Any, ending: str) -> list[int]:  # noqa: ANN401  (text, or parts with an image)
        """Token ids of a chat in which the user says the content and the model is to answer.

        Args:
            content: text, or an image and a text as chat templates want them.
            ending: what follows the content where there is no template, such as `Answer:`.

        Raises:
            UserError: the chat template fails.
        """
        if self.tokenizer.chat_template is None:
            if not isinstance(content, str):
                content = (
                    f"{self.tokenizer.convert_ids_to_tokens(self.model.config.image_token_id)}\n"
                    + (content[1]["text"])
                )
            return list(self.tokenizer(f"{content}\n\n{ending}")["input_ids"])
        try:
            chat: Any = self.tokenizer.apply_chat_template(
                [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
            )
        except TemplateError as error:
            told = " ".join(str(error).split())[:200]
            raise UserError(f"{self.title}: its chat template fails ({told})") from error
        return list(self.tokenizer(chat, add_special_tokens=False)["input_ids"])

    def batch(self, ids: Sequence[list[int]], inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Arguments of `generate` for rows of token ids, padded on the left, and what `see` returned."""
        length = max(map(len, ids))
        rows = [[self.pad] * (length - len(each)) + each for each in ids]
        mask = [[0] * (length - len(each)) + [1] * len(each) for each in ids]
        device = self.model.device
        found = {
            "input_ids": torch.tensor(rows, device=device),
            "attention_mask": torch.tensor(mask, device=device),
            **inputs,
        }
        if "image_grid_thw" in inputs:  # where its places are, which are counted in two directions
            image = self.model.config.image_token_id
            kinds = [[int(token == image) for token in row] for row in rows]
            found["mm_token_type_ids"] = torch.tensor(kinds, device=device)
        return found


def model_files(what: str, folder: Path) -> list[Path]:
    """Files that a model is read from.

    Args:
        what: it is used as, such as `captioner`.
        folder: with the files, in the layout of transformers.

    Raises:
        UserError: the folder lacks what it needs.
    """
    weights = sorted(folder.glob("model*.safetensors"))
    for name, there in (
        *((name, (folder / name).is_file()) for name in _NEEDED),
        ("safetensors", bool(weights)),
    ):
        if not there:
            raise UserError(
                f"{what} {folder}: no {name}, allowed: a language model in transformers' layout, with "
                "tokenizer.json and safetensors"
            )
    rest = [folder / name for name in FILES if "*" not in name]
    return [*weights, *(path for path in rest if path.is_file())]


def load_vision_language(
    what: str,
    name: str,
    folder: Path,
    kinds: Mapping[str, str],
    precision: Literal["bf16", "fp32"],
    device: torch.device,
) -> VisionLanguageModel:
    """Model of a local folder on a device; nothing is downloaded and no code of the folder is run.

    Args:
        what: it is used as, such as `captioner`.
        name: that errors say after `what` later on.
        folder: with its files.
        kinds: of TEXT_MODELS and IMAGE_MODELS that are allowed.
        precision: of its weights.
        device: it runs on.

    Raises:
        UserError: the files are missing, damaged, of another model, or do not fit together.
    """
    model_files(what, folder)
    with _told(what, folder):
        kind = json.loads((folder / "config.json").read_bytes()).get("model_type")
        if kind not in kinds:
            raise UserError(f"holds a {kind!r}, allowed: {', '.join(kinds)}")
        model, told = getattr(transformers, kinds[kind]).from_pretrained(
            folder,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
            dtype=torch.bfloat16 if precision == "bf16" else torch.float32,
        )
        absent = sorted(told["missing_keys"])
        if absent:
            raise UserError(f"{len(absent)} weights missing ({absent[0]}), allowed: a whole {kind}")
        tokenizer = PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
        processor = _load_processor(folder) if kind in IMAGE_MODELS else None
        vocabulary = model.get_input_embeddings().num_embeddings
        if len(tokenizer) > vocabulary:
            raise UserError(f"got {len(tokenizer)} tokens, allowed: the {vocabulary} of the model, or fewer")
    ends: Any = model.generation_config.eos_token_id
    ends = tokenizer.eos_token_id if ends is None else ends
    ends = tuple(end for end in (ends if isinstance(ends, list) else [ends]) if end is not None)
    return VisionLanguageModel(
        title=f"{what} {name}",
        model=model.to(device).eval().requires_grad_(False),
        tokenizer=tokenizer,
        processor=processor,
        ends=ends,
        pad=next(each for each in (tokenizer.pad_token_id, *ends, 0) if each is not None),
        special=tuple(sorted(tokenizer.get_added_vocab(), key=len, reverse=True)),
    )


def _load_processor(folder: Path) -> Any:  # noqa: ANN401  (one of _PROCESSORS)
    kind = json.loads((folder / _PICTURES).read_bytes()).get("image_processor_type", "")
    found = _PROCESSORS.get(kind.removesuffix("Pil").removesuffix("Fast"))
    if found is None:
        raise UserError(f"prepares images by {kind!r}, allowed: {', '.join(_PROCESSORS)}")
    return found.from_pretrained(folder, local_files_only=True)


@contextlib.contextmanager
def _told(what: str, path: Path) -> Iterator[None]:
    """Context in which whatever ails other people's files becomes one line."""
    try:
        yield
    except _AILMENTS as error:
        name = "" if isinstance(error, UserError) else f"{type(error).__name__} "
        raise UserError(f"{what} {path}: {' '.join(f'{name}{error}'.split())[:300]}") from error
