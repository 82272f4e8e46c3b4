"""Captioners of transformers: language models that expand texts, and those that see images too."""

import contextlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from jinja2 import TemplateError
from safetensors import SafetensorError
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, PreTrainedTokenizerFast
from transformers.generation.logits_process import TemperatureLogitsWarper, TopPLogitsWarper
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from lightgen.core.draws import numpy_draws
from lightgen.core.errors import UserError
from lightgen.ports.captioner import AskConfig, ModelCaptionerConfig, expand_task, whole_sentences

# Classes by `model_type` of the config. Named ones only: none of them can run code of the folder.
_TEXT_MODELS = {
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
_IMAGE_MODELS = {
    "llava": "LlavaForConditionalGeneration",
    "qwen2_vl": "Qwen2VLForConditionalGeneration",
    "qwen2_5_vl": "Qwen2_5_VLForConditionalGeneration",
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
PATTERNS = (
    *_NEEDED,
    *("model*.safetensors", "model.safetensors.index.json", "generation_config.json", _PICTURES),
    *("tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja", "chat_template.json"),
)
_AILMENTS = (
    *(OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError),
    *(SafetensorError, StrictDataclassError),
)
_MAX_TEXT = 4096  # characters of a caption; what is longer is no short caption


class ModelCaptioner:
    """A language model of transformers; made by `load_captioner`.

    Texts are padded on the left and each draws by its own seed, so that a text's answer does not depend on
    the batch, up to the rounding of sums that lets near ties fall either way.
    """

    def __init__(
        self,
        config: ModelCaptionerConfig,
        model: Any,  # noqa: ANN401  (one of the classes above)
        tokenizer: PreTrainedTokenizerFast,
        processor: Any,  # noqa: ANN401  (an image processor, or None)
    ) -> None:
        self._config, self._ask = config, config.ask
        self.model = model.eval().requires_grad_(False)
        self._tokenizer, self._processor = tokenizer, processor
        ends: Any = model.generation_config.eos_token_id
        ends = [tokenizer.eos_token_id] if ends is None else ends
        self._ends: list[int] = [
            end for end in (ends if isinstance(ends, list) else [ends]) if end is not None
        ]
        self._pad = next(each for each in (tokenizer.pad_token_id, *self._ends, 0) if each is not None)
        # of the model's own settings nothing is kept but where it ends
        model.generation_config = GenerationConfig(
            max_new_tokens=config.ask.max_tokens,
            do_sample=False,
            eos_token_id=self._ends or None,
            pad_token_id=self._pad,
        )
        # words that end a turn or stand for an image must not come out of a caption
        self._special = sorted(tokenizer.get_added_vocab(), key=len, reverse=True)

    @torch.no_grad()
    def expand(self, texts: Sequence[str], seeds: Sequence[int]) -> list[str]:
        """Answers to the task and each text, without special tokens."""
        assert len(texts) == len(seeds), (len(texts), len(seeds))
        found: list[str] = []
        for batch, keys in _batches(texts, seeds, self._config.batch_size):
            ids = []
            for text in batch:
                for word in self._special:
                    text = text.replace(word, " ")
                ids.append(self._ids(expand_task(self._ask, text[:_MAX_TEXT])))
            found += self._answers(ids, keys, {})
        return found

    @torch.no_grad()
    def describe(self, images: Sequence[np.ndarray], seeds: Sequence[int]) -> list[str]:
        """Answers to the task and each image uint8 [H, W, 3].

        Raises:
            UserError: the model sees no images.
        """
        assert len(images) == len(seeds), (len(images), len(seeds))
        if self._processor is None:
            raise UserError(
                f"captioner {self._config.model}: got images, allowed: texts; images take a model of "
                f"{', '.join(_IMAGE_MODELS)}"
            )
        found: list[str] = []
        for batch, keys in _batches(images, seeds, self._config.batch_size):
            seen = self._processor(list(batch), return_tensors="pt")
            ids = [self._with_image(count) for count in self._image_tokens(seen, len(batch))]
            inputs = {
                name: value.to(self.model.device, self.model.dtype if value.is_floating_point() else None)
                for name, value in seen.items()
                if name in ("pixel_values", "image_grid_thw")
            }
            found += self._answers(ids, keys, inputs)
        return found

    def _image_tokens(self, seen: Any, num: int) -> list[int]:  # noqa: ANN401  (what a processor returns)
        """Tokens that each image takes."""
        config = self.model.config
        if "image_grid_thw" in seen:
            merged = config.vision_config.spatial_merge_size**2
            return [int(grid.prod()) // merged for grid in seen["image_grid_thw"]]
        vision = config.vision_config
        height, width = seen["pixel_values"].shape[-2:]
        if (height, width) != (vision.image_size, vision.image_size):
            raise UserError(
                f"captioner {self._config.model}: prepares images of {width}x{height} px, allowed: the "
                f"model's {vision.image_size}x{vision.image_size}"
            )
        count = (vision.image_size // vision.patch_size) ** 2 + (vision.model_type == "clip_vision_model")
        return [count - (config.vision_feature_select_strategy == "default")] * num

    def _with_image(self, count: int) -> list[int]:
        """Token ids of the task with the place of an image of `count` tokens."""
        mark = self.model.config.image_token_id
        ids = self._ids([{"type": "image"}, {"type": "text", "text": self._ask.describe}])
        if ids.count(mark) != 1:
            raise UserError(
                f"captioner {self._config.model}: its chat template has {ids.count(mark)} places for an "
                "image, allowed: one"
            )
        at = ids.index(mark)
        return [*ids[:at], *[mark] * count, *ids[at + 1 :]]

    def _ids(self, content: Any) -> list[int]:  # noqa: ANN401  (text, or parts with an image)
        """Token ids of a chat in which the user says the content; without a template, of the text alone."""
        if self._tokenizer.chat_template is None:
            if not isinstance(content, str):
                content = (
                    f"{self._tokenizer.convert_ids_to_tokens(self.model.config.image_token_id)}\n"
                    + (content[1]["text"])
                )
            return list(self._tokenizer(f"{content}\n\nDescription:")["input_ids"])
        try:
            chat: Any = self._tokenizer.apply_chat_template(
                [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
            )
        except TemplateError as error:
            told = " ".join(str(error).split())[:200]
            raise UserError(f"captioner {self._config.model}: its chat template fails ({told})") from error
        return list(self._tokenizer(chat, add_special_tokens=False)["input_ids"])

    def _answers(self, ids: list[list[int]], seeds: Sequence[int], inputs: dict[str, Any]) -> list[str]:
        """Answers to chats of token ids, each decoded by its own seed."""
        length = max(map(len, ids))
        rows = [[self._pad] * (length - len(each)) + each for each in ids]
        mask = [[0] * (length - len(each)) + [1] * len(each) for each in ids]
        device = self.model.device
        if "image_grid_thw" in inputs:  # where its places are, which are counted in two directions
            image = self.model.config.image_token_id
            kinds = [[int(token == image) for token in row] for row in rows]
            inputs = {**inputs, "mm_token_type_ids": torch.tensor(kinds, device=device)}
        written = self.model.generate(
            input_ids=torch.tensor(rows, device=device),
            attention_mask=torch.tensor(mask, device=device),
            logits_processor=_draws(self._ask, seeds, length),
            **inputs,
        )
        return [self._text(row.tolist()) for row in written[:, length:]]

    def _text(self, tokens: list[int]) -> str:
        end = next((at for at, token in enumerate(tokens) if token in self._ends), None)
        text: Any = self._tokenizer.decode(tokens[:end], skip_special_tokens=True)
        return whole_sentences(text) if end is None else text


class _Draws(LogitsProcessor):
    """Gumbel noise, keyed by seed and position: the likeliest token under it is a draw of the model's."""

    def __init__(self, seeds: Sequence[int], length: int) -> None:
        self._seeds, self._length = seeds, length

    def __call__(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, input_ids: torch.Tensor, scores: torch.Tensor
    ) -> torch.Tensor:
        """Scores float [B, V] with the noise."""
        at = input_ids.shape[1] - self._length
        noise = [
            numpy_draws(seed, "caption token", at).gumbel(size=scores.shape[1]).astype(np.float32)
            for seed in self._seeds
        ]
        return scores.float() + torch.from_numpy(np.stack(noise)).to(scores.device)


def _draws(ask: AskConfig, seeds: Sequence[int], length: int) -> LogitsProcessorList:
    if ask.temperature == 0:
        return LogitsProcessorList()
    steps: list[Any] = [TemperatureLogitsWarper(float(ask.temperature))]
    if ask.top_p < 1:
        steps.append(TopPLogitsWarper(ask.top_p))
    return LogitsProcessorList([*steps, _Draws(seeds, length)])


def _batches(things: Sequence[Any], seeds: Sequence[int], size: int) -> Iterator[tuple[Any, Sequence[int]]]:
    for start in range(0, len(things), size):
        yield things[start : start + size], seeds[start : start + size]


def captioner_files(folder: Path) -> list[Path]:
    """Files that a captioner is read from.

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
                f"captioner {folder}: no {name}, allowed: a language model in transformers' layout, with "
                "tokenizer.json and safetensors"
            )
    rest = [folder / name for name in PATTERNS if "*" not in name]
    return [*weights, *(path for path in rest if path.is_file())]


def load_captioner(config: ModelCaptionerConfig, folder: Path, device: torch.device) -> ModelCaptioner:
    """Captioner of a local folder on a device; nothing is downloaded and no code of the folder is run.

    Raises:
        UserError: the files are missing, damaged, of another model, or do not fit together.
    """
    captioner_files(folder)
    with _told(folder):
        kind = json.loads((folder / "config.json").read_bytes()).get("model_type")
        name = _TEXT_MODELS.get(kind) or _IMAGE_MODELS.get(kind)
        if name is None:
            raise UserError(f"holds a {kind!r}, allowed: {', '.join((*_TEXT_MODELS, *_IMAGE_MODELS))}")
        model, told = getattr(transformers, name).from_pretrained(
            folder,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
            dtype=torch.bfloat16 if config.precision == "bf16" else torch.float32,
        )
        absent = sorted(told["missing_keys"])
        if absent:
            raise UserError(f"{len(absent)} weights missing ({absent[0]}), allowed: a whole {kind}")
        tokenizer = PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
        processor = _load_processor(folder) if kind in _IMAGE_MODELS else None
        vocabulary = model.get_input_embeddings().num_embeddings
        if len(tokenizer) > vocabulary:
            raise UserError(f"got {len(tokenizer)} tokens, allowed: the {vocabulary} of the model, or fewer")
    return ModelCaptioner(config, model.to(device), tokenizer, processor)


def _load_processor(folder: Path) -> Any:  # noqa: ANN401  (one of _PROCESSORS)
    kind = json.loads((folder / _PICTURES).read_bytes()).get("image_processor_type", "")
    found = _PROCESSORS.get(kind.removesuffix("Pil").removesuffix("Fast"))
    if found is None:
        raise UserError(f"prepares images by {kind!r}, allowed: {', '.join(_PROCESSORS)}")
    return found.from_pretrained(folder, local_files_only=True)


@contextlib.contextmanager
def _told(path: Path) -> Iterator[None]:
    """Context in which whatever ails other people's files becomes one line."""
    try:
        yield
    except _AILMENTS as error:
        name = "" if isinstance(error, UserError) else f"{type(error).__name__} "
        raise UserError(f"captioner {path}: {' '.join(f'{name}{error}'.split())[:300]}") from error
