"""From answers to scores: GenEval 2's Soft-TIFA and DPG-Bench, by the probabilities of answers.

Source: arXiv 2512.16853 (Soft-TIFA) and facebookresearch/GenEval2:README.md @c088ab7; arXiv 2403.05135
(DPG-Bench) and TencentQQGYLab/ELLA:dpg_bench/compute_dpg_bench.py @025f650.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from lightgen.core.questions import Question, QuestionedPrompt
from lightgen.evals.tables import Mark

# In the order of tables: skills and numbers of atoms of GenEval 2, categories of DPG-Bench's first level.
SKILLS = ("object", "attribute", "count", "position", "verb")
ATOMS = tuple(f"{count} atoms" for count in range(1, 33))
CATEGORIES = ("global", "entity", "attribute", "relation", "other")
YES_NO = ("yes", "no")

# Shapes: Q questions of one prompt.


@dataclass(frozen=True)
class SoftTifa:
    """Arithmetic and geometric mean in [0, 1] of the probabilities of one image's right answers."""

    am: float
    gm: float


@dataclass(frozen=True)
class DpgScores:
    """Marks of one image by DPG-Bench.

    Attributes:
        score: share of the questions that count as right.
        said: whether each question was answered yes, whatever it depends on.
        right: whether each counts as right: it and all that it depends on, near or far, were answered yes.
    """

    score: float
    said: tuple[bool, ...]
    right: tuple[bool, ...]


def asked_answers(question: Question, benchmark: Literal["geneval2", "dpg"]) -> tuple[str, ...]:
    """Answers whose probabilities an answerer is to give: the right one, or yes and no."""
    return (question.answer,) if benchmark == "geneval2" else YES_NO


def soft_tifa(probabilities: np.ndarray) -> SoftTifa:
    """Means of the probabilities float [Q] of an image's right answers; one of 0 makes the geometric mean 0.

    Raises:
        ValueError: they are none, or no probabilities, so that the answerer is broken.
    """
    values = _checked(probabilities, (len(probabilities),)).astype(np.float64)
    gm = math.exp(math.fsum(math.log(each) for each in values) / len(values)) if values.all() else 0.0
    return SoftTifa(math.fsum(values) / len(values), min(1.0, gm))


def soft_tifa_marks(
    prompts: Sequence[QuestionedPrompt],
    probabilities: Sequence[np.ndarray],
    mean: Literal["am", "gm"] = "gm",
) -> list[Mark]:
    """Mark of each image: its score is that mean, its parts are the probabilities by skill.

    Args:
        prompts: one per image.
        probabilities: float [Q] of the right answers, per image.
        mean: am for the level of atoms, gm for that of prompts.

    Raises:
        ValueError: the answerer is broken, as `soft_tifa`; or answers are missing.
    """
    marks = []
    for prompt, values in zip(prompts, probabilities, strict=True):
        _checked(values, (len(prompt.questions),))
        found = soft_tifa(values)
        skills = [question.skill for question in prompt.questions]
        parts = tuple(zip(skills, map(float, values), strict=True))
        marks.append(Mark(prompt.prompt, found.gm if mean == "gm" else found.am, parts))
    return marks


def atom_marks(prompts: Sequence[QuestionedPrompt], probabilities: Sequence[np.ndarray]) -> list[Mark]:
    """Mark of each image whose prompt's atoms are counted: its geometric mean, as the part `3 atoms` or so.

    Args:
        prompts: one per image.
        probabilities: float [Q] of the right answers, per image.

    Raises:
        ValueError: as `soft_tifa_marks`.
    """
    marks = soft_tifa_marks(prompts, probabilities)
    return [
        Mark(mark.prompt, mark.score, ((f"{prompt.atom_count} atoms", mark.score),))
        for prompt, mark in zip(prompts, marks, strict=True)
        if prompt.atom_count is not None
    ]


def dpg_scores(questions: Sequence[Question], probabilities: np.ndarray) -> DpgScores:
    """Scores of one image by the probabilities float [Q, 2] of yes and no.

    A question is answered yes where yes is likelier than no; where both are as likely, it is no. It counts
    as wrong where one that it depends on is wrong, and so on along the chain. DPG-Bench's script does the
    same as long as parents come before their children.

    Raises:
        ValueError: they are no probabilities, so that the answerer is broken.
    """
    values = _checked(probabilities, (len(questions), 2))
    said = tuple(bool(yes > no) for yes, no in values)
    right = tuple(all(said[each] for each in _lineage(questions, place)) for place in range(len(questions)))
    return DpgScores(sum(right) / len(right), said, right)


def dpg_marks(prompts: Sequence[QuestionedPrompt], probabilities: Sequence[np.ndarray]) -> list[Mark]:
    """Mark of each image: its score by dependencies, and 0 or 1 for each question by category.

    Categories take each answer for itself, before dependencies, as in DPG-Bench's script. That script counts
    for them the last of a prompt's images only; here all count.

    Args:
        prompts: one per image.
        probabilities: float [Q, 2] of yes and no, per image.

    Raises:
        ValueError: the answerer is broken, as `dpg_scores`.
    """
    marks = []
    for prompt, values in zip(prompts, probabilities, strict=True):
        found = dpg_scores(prompt.questions, values)
        skills = [question.skill for question in prompt.questions]
        marks.append(
            Mark(prompt.prompt, found.score, tuple(zip(skills, map(float, found.said), strict=True)))
        )
    return marks


def _lineage(questions: Sequence[Question], place: int) -> set[int]:
    """Places of a question and of all that it depends on, near or far; circles do no harm."""
    found, left = set[int](), [place]
    while left:
        each = left.pop()
        if each not in found:
            found.add(each)
            left += questions[each].parents
    return found


def _checked(probabilities: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    if probabilities.shape != shape or not shape[0]:
        raise ValueError(f"answerer gives probabilities of shape {probabilities.shape}, expected {shape}")
    if not ((probabilities >= 0) & (probabilities <= 1)).all():
        raise ValueError(f"answerer gives probabilities {probabilities.tolist()}, expected 0 to 1")
    return probabilities
