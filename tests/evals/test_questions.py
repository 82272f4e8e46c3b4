"""Soft-TIFA and DPG-Bench by hand."""

import math

import numpy as np
import pytest

from lightgen.core.questions import Question, QuestionedPrompt
from lightgen.evals.questions import (
    CATEGORIES,
    SKILLS,
    asked_answers,
    atom_marks,
    dpg_marks,
    dpg_scores,
    soft_tifa,
    soft_tifa_marks,
)
from lightgen.evals.statistics import BootstrapConfig
from lightgen.evals.tables import Mark, score_table

FEW = BootstrapConfig(resamples=100)


def asked(prompt: str, *skills: str, atoms: int | None = None, parents=()) -> QuestionedPrompt:
    of = dict(parents)
    questions = tuple(
        Question(text=f"{n}?", answer="Yes", skill=skill, parents=of.get(n, ()))
        for n, skill in enumerate(skills)
    )
    return QuestionedPrompt(prompt=prompt, questions=questions, atom_count=atoms)


def sure(*answers: int) -> np.ndarray:
    return np.array([[0.9, 0.1] if each else [0.2, 0.3] for each in answers], np.float32)


def test_means_of_one_image() -> None:
    found = soft_tifa(np.array([0.5, 1.0, 0.25, 0.5]))
    assert found.am == 0.5625 and found.gm == pytest.approx((0.5 * 0.25 * 0.5) ** 0.25)
    assert soft_tifa(np.array([1.0, 0.0], np.float32)).gm == 0.0
    assert soft_tifa(np.array([0.0, 0.0])) == soft_tifa(np.array([0.0]))
    small = soft_tifa(np.full(3, 1e-30, np.float32))
    assert small.gm == pytest.approx(1e-30, rel=1e-5), "no floor under a small probability"
    one = soft_tifa(np.ones(7, np.float32))
    assert one.am == one.gm == 1.0
    random = np.random.default_rng(0)
    for _ in range(50):
        values = random.random(random.integers(1, 12)).astype(np.float32)
        found = soft_tifa(values)
        assert 0 <= found.gm <= found.am + 1e-12 <= 1


def test_marks_of_a_benchmark() -> None:
    prompts = [
        asked("a", "count", "object", atoms=3),
        asked("b", "object", "position", "object", atoms=4),
        asked("a", "count", "object", atoms=3),
        asked("c", "verb"),
    ]
    values = [np.array(v) for v in ([0.25, 1.0], [0.8, 0.5, 0.1], [1.0, 1.0], [0.5])]
    marks = soft_tifa_marks(prompts, values)
    assert marks[0] == Mark("a", 0.5, (("count", 0.25), ("object", 1.0)))
    assert [m.score for m in marks] == pytest.approx([0.5, 0.04 ** (1 / 3), 1.0, 0.5])
    by_am = soft_tifa_marks(prompts, values, mean="am")
    assert [m.score for m in by_am] == pytest.approx([0.625, 1.4 / 3, 1.0, 0.5])
    assert [m.parts for m in by_am] == [m.parts for m in marks]
    table = score_table(marks, FEW, overall="images", order=SKILLS)
    assert list(table.tasks) == ["object", "count", "position", "verb"]
    assert table.tasks["object"].value == pytest.approx((1.0 + 0.8 + 0.1 + 1.0) / 4), "a mean over questions"
    assert table.overall.value == pytest.approx((0.5 + 0.04 ** (1 / 3) + 1.0 + 0.5) / 4)
    atoms = atom_marks(prompts, values)
    assert [m.parts for m in atoms] == [
        (("3 atoms", m.score),) if m.prompt == "a" else (("4 atoms", m.score),) for m in atoms
    ]
    assert [m.score for m in atoms] == [m.score for m in marks[:3]], "nobody counted the atoms of c"


def test_a_question_is_wrong_where_one_before_it_in_the_chain_is() -> None:
    # cat -> grey cat -> dark grey cat; mat; the cat on the mat needs both
    prompt = asked(
        "p",
        *("entity", "attribute", "attribute", "entity", "relation"),
        parents={1: (0,), 2: (1,), 4: (0, 3)}.items(),
    )
    for answers, right in (
        ((1, 1, 1, 1, 1), (1, 1, 1, 1, 1)),
        ((0, 1, 1, 1, 1), (0, 0, 0, 1, 0)),
        ((1, 0, 1, 1, 1), (1, 0, 0, 1, 1)),
        ((1, 1, 0, 0, 1), (1, 1, 0, 0, 0)),
        ((0, 0, 0, 0, 0), (0, 0, 0, 0, 0)),
    ):
        found = dpg_scores(prompt.questions, sure(*answers))
        assert (found.said, found.right) == (tuple(map(bool, answers)), tuple(map(bool, right)))
        assert found.score == sum(right) / 5
    (mark,) = dpg_marks([prompt], [sure(0, 1, 1, 1, 1)])
    assert mark.score == 0.2
    assert mark.parts == tuple(
        zip(
            ("entity", "attribute", "attribute", "entity", "relation"), (0.0, 1.0, 1.0, 1.0, 1.0), strict=True
        )
    )


def test_parents_may_come_later_and_run_in_circles() -> None:
    later = asked("p", "entity", "entity", "entity", parents={0: (2,), 2: (1,)}.items())
    assert dpg_scores(later.questions, sure(1, 0, 1)).right == (False, False, False)
    circle = asked("p", "entity", "entity", "entity", parents={0: (1,), 1: (0,), 2: (2,)}.items())
    assert dpg_scores(circle.questions, sure(1, 1, 1)).right == (True, True, True)
    assert dpg_scores(circle.questions, sure(1, 0, 1)).right == (False, False, True)


def test_yes_is_what_is_likelier_than_no() -> None:
    questions = asked("p", "other", "other", "other").questions
    found = dpg_scores(questions, np.array([[0.02, 0.01], [0.4, 0.4], [0.0, 0.0]]))
    assert found.said == (True, False, False)


def test_four_images_of_a_prompt_make_its_score() -> None:
    prompts = [asked("p", "entity", "other")] * 4 + [asked("q", "global")] * 4
    values = [sure(1, 1), sure(1, 0), sure(0, 0), sure(1, 1), sure(1), sure(1), sure(1), sure(0)]
    table = score_table(dpg_marks(prompts, values), FEW, overall="images", order=CATEGORIES)
    assert table.overall.value == pytest.approx((0.625 + 0.75) / 2)
    assert {name: score.value for name, score in table.tasks.items()} == pytest.approx(
        {"global": 0.75, "entity": 0.75, "other": 0.5}
    )
    assert list(table.tasks) == ["global", "entity", "other"]


def test_what_is_asked() -> None:
    question = Question(text="How many?", answer="four", skill="count")
    assert asked_answers(question, "geneval2") == ("four",)
    assert asked_answers(question, "dpg") == ("yes", "no")


@pytest.mark.parametrize("broken", [[], [0.5, 1.5], [0.5, -0.1], [0.5, math.nan]])
def test_a_broken_answerer_is_told(broken: list[float]) -> None:
    with pytest.raises(ValueError, match="answerer gives"):
        soft_tifa(np.array(broken))
    with pytest.raises(ValueError, match="answerer gives"):
        soft_tifa_marks([asked("p", "object", "count")], [np.array(broken)])


def test_missing_answers_are_told() -> None:
    with pytest.raises(ValueError, match="expected"):
        soft_tifa_marks([asked("p", "object", "count")], [np.array([0.5])])
    with pytest.raises(ValueError, match="shape"):
        dpg_scores(asked("p", "object").questions, np.array([0.5, 0.5]))
