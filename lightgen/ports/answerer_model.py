"""Answerers of transformers: models that see an image, read a question and write the answer's tokens."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from transformers import GenerationConfig

from lightgen.core.errors import UserError
from lightgen.core.questions import answer_key
from lightgen.ports.answerer import (
    ModelAnswererConfig,
    Tokens,
    add_up,
    rivals,
    spellings,
    telling_tokens,
)
from lightgen.ports.vision_language import (
    IMAGE_MODELS,
    VisionLanguageModel,
    load_vision_language,
    model_files,
)

_ENDING = "Answer:"
# What is begun with less than this probability is not followed further; an answer loses less than that by it.
_FOLLOWED = 1e-6


class ModelAnswerer:
    """A model of transformers that sees; made by `load_answerer`.

    One pass answers a question, by a softmax in fp32 over the whole vocabulary at the place of the first
    token. Only where an answer needs a second token (see `lightgen.ports.answerer`), and its first is likely
    enough to matter, does another pass follow.
    """

    def __init__(self, config: ModelAnswererConfig, language: VisionLanguageModel) -> None:
        self._config, self._language = config, language
        # of the model's own settings nothing is kept but where it ends
        language.model.generation_config = GenerationConfig(
            max_new_tokens=1,
            do_sample=False,
            eos_token_id=list(language.ends) or None,
            pad_token_id=language.pad,
        )
        self._spelled: dict[str, tuple[Tokens, ...]] = {}

    @torch.no_grad()
    def answer(
        self, images: np.ndarray, questions: Sequence[str], answers: Sequence[Sequence[str]]
    ) -> list[np.ndarray]:
        """Probability float32 [A] in [0, 1] of each of A given answers, by image; as lightgen.ports.answerer.

        Raises:
            UserError: an answer is empty or cannot be written in the model's vocabulary.
        """
        assert len(images) == len(questions) == len(answers), (len(images), len(questions), len(answers))
        found = []
        for start in range(0, len(images), self._config.batch_size):
            part = slice(start, start + self._config.batch_size)
            found += self._answers(images[part], questions[part], answers[part])
        return found

    def _answers(
        self, images: np.ndarray, questions: Sequence[str], answers: Sequence[Sequence[str]]
    ) -> list[np.ndarray]:
        """As `answer`, of one batch."""
        telling = [self._telling(each) for each in answers]
        known: list[dict[Tokens, float]] = [{(): 1.0} for _ in questions]
        stems: list[tuple[int, Tokens]] = [(row, ()) for row, each in enumerate(telling) if each]
        while stems:
            further: list[tuple[int, Tokens]] = []
            for start in range(0, len(stems), self._config.batch_size):
                batch = stems[start : start + self._config.batch_size]
                rows = [row for row, _ in batch]
                next_tokens = self._next(images[rows], [questions[row] for row in rows], batch)
                for (row, stem), probabilities in zip(batch, next_tokens, strict=True):
                    further += _go_on(row, stem, telling[row], known[row], probabilities)
            stems = further
        added = [add_up(each, probability) for each, probability in zip(telling, known, strict=True)]
        return [
            np.array([each[answer_key(answer)] for answer in asked], np.float32)
            for each, asked in zip(added, answers, strict=True)
        ]

    def _next(
        self, images: np.ndarray, questions: Sequence[str], stems: Sequence[tuple[int, Tokens]]
    ) -> torch.Tensor:
        """Probability float32 [N, V] of the token after each question's chat and the stem of an answer."""
        inputs, counts = self._language.see(list(images))
        ids = [
            [*self._language.chat_with_image(self._asked(question), count, _ENDING), *stem]
            for question, count, (_, stem) in zip(questions, counts, stems, strict=True)
        ]
        written = self._language.model.generate(
            **self._language.batch(ids, inputs), output_logits=True, return_dict_in_generate=True
        )
        return written.logits[0].float().softmax(dim=1).cpu()

    def _asked(self, question: str) -> str:
        return self._language.plain(self._config.asked(question))

    def _telling(self, answers: Sequence[str]) -> dict[Tokens, str]:
        """Asked answer, by its key, that each sequence of tokens says."""
        asked: dict[str, tuple[Tokens, ...]] = {}
        for answer in answers:
            key = answer_key(answer)
            asked[key] = (*asked.get(key, ()), *self._tokens(answer))
        return telling_tokens(asked, {key: self._tokens(key, needed=False) for key in rivals(answers)})

    def _tokens(self, answer: str, needed: bool = True) -> tuple[Tokens, ...]:
        """Tokens of the answer's spellings, but of those that the vocabulary lacks letters for."""
        if answer not in self._spelled:
            tokenizer = self._language.tokenizer
            listed = [tokenizer(each, add_special_tokens=False)["input_ids"] for each in spellings(answer)]
            unknown = tokenizer.unk_token_id
            written = [tuple(ids) for ids in listed if ids and (unknown is None or unknown not in ids)]
            self._spelled[answer] = tuple(dict.fromkeys(written))
        if needed and not self._spelled[answer]:
            raise UserError(
                f"{self._language.title}: got the answer {answer[:60]!r}, allowed: one in letters of its "
                "vocabulary"
            )
        return self._spelled[answer]


def _go_on(
    row: int,
    stem: Tokens,
    telling: Mapping[Tokens, str],
    known: dict[Tokens, float],
    probabilities: torch.Tensor,
) -> list[tuple[int, Tokens]]:
    """Stems that are to be followed; notes in `known` how probable one more token after the stem is."""
    further = []
    for tokens in telling:
        begun = tokens[: len(stem) + 1]
        if len(begun) <= len(stem) or begun[:-1] != stem:
            continue
        seen = begun in known
        known[begun] = known[stem] * float(probabilities[begun[-1]])
        if not seen and known[begun] >= _FOLLOWED and _goes_on(begun, telling):
            further.append((row, begun))
    return further


def _goes_on(begun: Tokens, telling: Mapping[Tokens, str]) -> bool:
    return any(len(each) > len(begun) and each[: len(begun)] == begun for each in telling)


def answerer_files(folder: Path) -> list[Path]:
    """Files that an answerer is read from.

    Raises:
        UserError: the folder lacks what it needs.
    """
    return model_files("answerer", folder)


def load_answerer(config: ModelAnswererConfig, folder: Path, device: torch.device) -> ModelAnswerer:
    """Answerer of a local folder on a device; nothing is downloaded and no code of the folder is run.

    Raises:
        UserError: the files are missing, damaged, of another model, or do not fit together; or a number of
            the config is out of its range.
    """
    config.check()
    return ModelAnswerer(
        config, load_vision_language("answerer", config.model, folder, IMAGE_MODELS, config.precision, device)
    )
