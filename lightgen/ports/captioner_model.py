"""Captioners of transformers: language models that expand texts, and those that see images too."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList
from transformers.generation.logits_process import TemperatureLogitsWarper, TopPLogitsWarper

from lightgen.core.draws import numpy_draws
from lightgen.core.errors import UserError
from lightgen.ports.captioner import AskConfig, ModelCaptionerConfig, expand_task, whole_sentences
from lightgen.ports.vision_language import (
    FILES,
    IMAGE_MODELS,
    TEXT_MODELS,
    VisionLanguageModel,
    load_vision_language,
    model_files,
)

# What a folder is read for; nothing else of a repository is needed.
PATTERNS = FILES
_ENDING = "Description:"
_MAX_TEXT = 4096  # characters of a caption; what is longer is no short caption


class ModelCaptioner:
    """A language model of transformers; made by `load_captioner`.

    Texts are padded on the left and each draws by its own seed, so that a text's answer does not depend on
    the batch, up to the rounding of sums that lets near ties fall either way.
    """

    def __init__(self, config: ModelCaptionerConfig, language: VisionLanguageModel) -> None:
        self._config, self._ask = config, config.ask
        self._language, self.model = language, language.model
        # of the model's own settings nothing is kept but where it ends
        self.model.generation_config = GenerationConfig(
            max_new_tokens=config.ask.max_tokens,
            do_sample=False,
            eos_token_id=list(language.ends) or None,
            pad_token_id=language.pad,
        )

    @torch.no_grad()
    def expand(self, texts: Sequence[str], seeds: Sequence[int]) -> list[str]:
        """Answers to the task and each text, without special tokens."""
        assert len(texts) == len(seeds), (len(texts), len(seeds))
        found: list[str] = []
        for batch, keys in _batches(texts, seeds, self._config.batch_size):
            # words that end a turn or stand for an image must not come out of a caption
            plain = (self._language.plain(text)[:_MAX_TEXT] for text in batch)
            found += self._answers([self._ids(expand_task(self._ask, text)) for text in plain], keys, {})
        return found

    @torch.no_grad()
    def describe(self, images: Sequence[np.ndarray], seeds: Sequence[int]) -> list[str]:
        """Answers to the task and each image uint8 [H, W, 3].

        Raises:
            UserError: the model sees no images.
        """
        assert len(images) == len(seeds), (len(images), len(seeds))
        if self._language.processor is None:
            raise UserError(
                f"captioner {self._config.model}: got images, allowed: texts; images take a model of "
                f"{', '.join(IMAGE_MODELS)}"
            )
        found: list[str] = []
        for batch, keys in _batches(images, seeds, self._config.batch_size):
            inputs, counts = self._language.see(batch)
            found += self._answers([self._with_image(count) for count in counts], keys, inputs)
        return found

    def _with_image(self, count: int) -> list[int]:
        """Token ids of the task with the place of an image of `count` tokens."""
        return self._language.chat_with_image(self._ask.describe, count, _ENDING)

    def _ids(self, content: str) -> list[int]:
        """Token ids of a chat in which the user says the content; without a template, of the text alone."""
        return self._language.chat(content, _ENDING)

    def _answers(
        self, ids: list[list[int]], seeds: Sequence[int], inputs: Mapping[str, torch.Tensor]
    ) -> list[str]:
        """Answers to chats of token ids, each decoded by its own seed."""
        length = max(map(len, ids))
        written = self.model.generate(
            logits_processor=_draws(self._ask, seeds, length), **self._language.batch(ids, inputs)
        )
        return [self._text(row.tolist()) for row in written[:, length:]]

    def _text(self, tokens: list[int]) -> str:
        end = next((at for at, token in enumerate(tokens) if token in self._language.ends), None)
        text: Any = self._language.tokenizer.decode(tokens[:end], skip_special_tokens=True)
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
    return model_files("captioner", folder)


def load_captioner(config: ModelCaptionerConfig, folder: Path, device: torch.device) -> ModelCaptioner:
    """Captioner of a local folder on a device; nothing is downloaded and no code of the folder is run.

    Raises:
        UserError: the files are missing, damaged, of another model, or do not fit together.
    """
    kinds = {**TEXT_MODELS, **IMAGE_MODELS}
    return ModelCaptioner(
        config, load_vision_language("captioner", config.model, folder, kinds, config.precision, device)
    )
