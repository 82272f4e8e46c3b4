"""Benchmarks whose pictures are judged by questions: GenEval 2 by Soft-TIFA, and DPG-Bench."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from lightgen.core.artifact import Artifact
from lightgen.core.config import config_to_dict, digest
from lightgen.core.directory import json_bytes, whole_file
from lightgen.core.errors import UserError
from lightgen.core.prompt import Prompt
from lightgen.core.questions import QuestionedPrompt
from lightgen.data.question_files import read_questions
from lightgen.evals.questions import (
    ATOMS,
    CATEGORIES,
    SKILLS,
    asked_answers,
    dpg_marks,
    dpg_scores,
    soft_tifa,
    soft_tifa_marks,
)
from lightgen.evals.tables import Mark
from lightgen.ports.nano.questions import nano_question_prompts
from lightgen.ports.protocols import Answerer
from lightgen.stages.answerer import AnswererConfig, AnswererPlace, find_answerer
from lightgen.stages.answerer_test import AnswererTestConfig, answerer_test
from lightgen.stages.engine import Work, Writer, cut
from lightgen.stages.inputs import ImageInputs, open_images
from lightgen.stages.judge import SHARD, Judged, Scoring

Benchmark = Literal["geneval2", "dpg"]

_AM = "all atoms (arithmetic mean)"
_NAMES = {"geneval2": "GenEval 2", "dpg": "DPG-Bench"}
_MEASURES = {
    "geneval2": "Soft-TIFA: probability of right answers, by geometric mean of each picture",
    "dpg": "share of questions answered yes, with all that they depend on",
}
_NANO_NOTE = (
    "A nano score is no score of {name}: the world, the prompts and what answers the questions are its own."
)
_NOTE = {
    "geneval2": "Compare only scores of one answering model; published ones are of Qwen3-VL-8B-Instruct.",
    "dpg": "Published scores are of mPLUG-large, which answers otherwise than the model that judged here.",
}


@dataclass(frozen=True, kw_only=True)
class NanoQuestions:
    """Prompts of the nano grammar with several things to get right at once, and questions on them.

    Attributes:
        num: how many, of 3 to 10 atoms by turns.
        seed: of the draws.
    """

    num: int = 160
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class QuestionJudgeConfig:
    """Who answers, and how answers become scores.

    Attributes:
        benchmark: geneval2: Soft-TIFA by the probabilities of right answers; dpg: shares of yes, where one
            that is answered no spoils those that depend on it.
        answerer: reads the pictures.
        self_test: what it must show before it judges.
    """

    benchmark: Benchmark = "geneval2"
    answerer: AnswererConfig = field(default_factory=AnswererConfig)
    self_test: AnswererTestConfig = field(default_factory=AnswererTestConfig)


class QuestionJudge:
    """See `Judge`.

    Args:
        config: of the judge.
        built_in: prompts where no file is named.
        paths: one file of GenEval 2 or DPG-Bench, or none.

    Raises:
        UserError: no prompts or more than one file, questions that the benchmark cannot score, or an answerer
            that is not here.
    """

    def __init__(
        self, config: QuestionJudgeConfig, built_in: NanoQuestions | None, paths: Sequence[str | Path]
    ) -> None:
        self._config = config
        self._asked = _questioned(built_in, paths)
        if config.benchmark == "dpg":
            _check_yes(self._asked)
        self._place = find_answerer(config.answerer)
        self._plain = bool(paths)
        is_nano, name = config.answerer.kind == "nano", _NAMES[config.benchmark]
        self.scoring = Scoring(
            name=f"nano-{name.replace(' ', '')}" if is_nano else name,
            measure=_MEASURES[config.benchmark],
            note=_NANO_NOTE.format(name=name) if is_nano else _NOTE[config.benchmark],
            overall="images",
            order=CATEGORIES if config.benchmark == "dpg" else (*SKILLS, _AM, *ATOMS),
        )
        self.parents: tuple[Artifact, ...] = ()

    def identity(self) -> dict[str, Any]:
        """Hashes of the answerer's files, and of the questions where a file holds them."""
        questions = [config_to_dict(each) for each in self._asked.values()] if self._plain else None
        asked = {"questions": digest(questions)} if questions is not None else {}
        return {"answerer_files": self._place.identity(), **asked}

    def prompts(self) -> Sequence[Prompt]:
        """The prompts, without their questions."""
        return [Prompt(prompt=text) for text in self._asked]

    def check(self, images: ImageInputs) -> None:
        """Raises UserError: an image on which nobody asks anything."""
        for i in range(len(images)):
            questioned_of(images.meta(i), self._asked)

    def self_test(self) -> dict[str, float]:
        """Shares of known answers; see `answerer_test`."""
        return answerer_test(self._place.load(), self._config.self_test, self._config.answerer.kind)

    def work(self, images: str, *, test: bool) -> Work:
        """Shards of answers; see `Judge`."""
        return _QuestionWork(self._config, images, self._place, self._asked, test)

    def judged(self, images: ImageInputs, records: Sequence[Any]) -> list[Judged]:
        """Findings of all images; see `Judge`."""
        prompts = [questioned_of(images.meta(i), self._asked) for i in range(len(records))]
        answers = [np.array(record, np.float64) for record in records]
        if self._config.benchmark == "dpg":
            marks = dpg_marks(prompts, answers)
            return [self._by_dpg(*each) for each in zip(prompts, answers, marks, strict=True)]
        right = [each[:, 0] for each in answers]
        marks = soft_tifa_marks(prompts, right)
        return [self._by_tifa(*each) for each in zip(prompts, right, marks, strict=True)]

    def _by_tifa(self, prompt: QuestionedPrompt, right: np.ndarray, mark: Mark) -> Judged:
        means = soft_tifa(right)
        parts = (*mark.parts, (_AM, means.am))
        if prompt.atom_count is not None:
            parts = ((f"{prompt.atom_count} atoms", means.gm), *parts)
        wrong = [(q, p) for q, p in zip(prompt.questions, right, strict=True) if p < 0.5]
        return Judged(
            prompt.prompt,
            Mark(mark.prompt, mark.score, parts),
            not wrong,
            "\n".join(f"{q.text} {q.answer}: {p:.2f}" for q, p in wrong),
            tuple(q.skill for q, _ in wrong),
            {
                "prompt": prompt.prompt,
                "soft_tifa_am": means.am,
                "soft_tifa_gm": means.gm,
                "scores": right.tolist(),
            },
        )

    def _by_dpg(self, prompt: QuestionedPrompt, answers: np.ndarray, mark: Mark) -> Judged:
        scores = dpg_scores(prompt.questions, answers)
        wrong = [q for q, right in zip(prompt.questions, scores.right, strict=True) if not right]
        return Judged(
            prompt.prompt,
            mark,
            not wrong,
            "\n".join(f"{q.text} no, or what it depends on" for q in wrong),
            tuple(q.skill for q in wrong),
            {"prompt": prompt.prompt, "score": scores.score, "said": scores.said, "right": scores.right},
        )


def questioned_of(meta: dict[str, Any], asked: dict[str, QuestionedPrompt]) -> QuestionedPrompt:
    """Questions on an image, by the prompt of its record.

    Raises:
        UserError: nobody asks anything on this prompt.
    """
    text = Prompt.from_json(meta).prompt
    if text not in asked:
        raise UserError(
            f"prompt {text[:60]!r}: has no questions, allowed: images of the prompts of --prompts FILE"
        )
    return asked[text]


@dataclass(frozen=True)
class _QuestionWork:
    """Shards of answers: for each image a list of the probabilities of each question's asked answers.

    Attributes:
        config: of the judge.
        images: directory of the images.
        place: of the answerer.
        asked: questions by prompt.
        test: whether the process tests itself first.
    """

    config: QuestionJudgeConfig
    images: str
    place: AnswererPlace
    asked: dict[str, QuestionedPrompt]
    test: bool

    def open(self) -> Writer:
        """Function that writes a shard; see `Work`."""
        inputs, answerer = open_images([self.images], verify=False), self.place.load()
        if self.test:
            answerer_test(answerer, self.config.self_test, self.config.answerer.kind)
        shards = cut(len(inputs), SHARD)

        def write(path: Path, number: int, advance: Callable[[int], None]) -> None:
            found = []
            for i in shards[number]:
                prompt = questioned_of(inputs.meta(i), self.asked)
                found.append(_answers(answerer, inputs[i].image, prompt, self.config.benchmark))
                advance(1)
            with whole_file(path) as temporary:
                temporary.write_bytes(json_bytes(found))

        return write


def _answers(
    answerer: Answerer, image: np.ndarray, prompt: QuestionedPrompt, benchmark: Benchmark
) -> list[list[float]]:
    """Probabilities of the asked answers of each question on one image."""
    count = len(prompt.questions)
    images = np.broadcast_to(image, (count, *image.shape))
    asked = [asked_answers(question, benchmark) for question in prompt.questions]
    found = answerer.answer(images, [question.text for question in prompt.questions], asked)
    return [each.astype(float).tolist() for each in found]


def _questioned(built_in: NanoQuestions | None, paths: Sequence[str | Path]) -> dict[str, QuestionedPrompt]:
    """Questions by prompt, in order."""
    if len(paths) > 1:
        raise UserError(f"--prompts: got {len(paths)} files, allowed: one of GenEval 2 or DPG-Bench")
    if paths:
        prompts = read_questions(Path(paths[0]))
    elif built_in is not None:
        if built_in.num < 1:
            raise UserError(f"--prompts.num: got {built_in.num}, allowed: a whole number from 1")
        prompts = nano_question_prompts(built_in.num, built_in.seed)
    else:
        raise UserError("--prompts: got nothing, allowed: the file of GenEval 2 or DPG-Bench")
    return {prompt.prompt: prompt for prompt in prompts}


def _check_yes(asked: dict[str, QuestionedPrompt]) -> None:
    """Raises UserError: a question whose right answer is not yes."""
    for question in itertools.chain.from_iterable(each.questions for each in asked.values()):
        if question.answer.lower() != "yes":
            raise UserError(
                f"question {question.text[:60]!r}: its answer is {question.answer!r}, allowed by dpg: yes; "
                "take a recipe of GenEval 2"
            )
