"""Compositional nano prompts: drawable, all different, held out, and asked for in full."""

from collections import Counter

import pytest

from lightgen.core.errors import UserError
from lightgen.core.questions import COUNT_WORDS
from lightgen.data.question_files import read_questions, write_geneval2
from lightgen.ports.nano import questions as module
from lightgen.ports.nano.answerer import _read
from lightgen.ports.nano.emoji import EmojiTeacher
from lightgen.ports.nano.language import describe_plainly, parse
from lightgen.ports.nano.questions import MAX_ATOMS, MIN_ATOMS, nano_question_prompts, questions_of
from lightgen.ports.nano.split import is_held_out, relation_combination
from lightgen.ports.nano.world import MAX_COUNT, MAX_OBJECTS, RELATIONS, Scene, SceneObject

PROMPTS = nano_question_prompts(400, 0)


def test_a_scene_is_asked_for_in_full_after_the_templates_of_geneval_2() -> None:
    scene = Scene(
        objects=(SceneObject(name="bicycle", count=4, color="white"), SceneObject(name="sheep")),
        relation="left of",
    )
    found = questions_of(scene)
    assert found.prompt == "a photo of four white bicycles left of a sheep"
    assert found.atom_count == 5, "two classes, one number above one, a colour, a relation"
    assert [(q.text, q.answer, q.skill) for q in found.questions] == [
        ("How many bicycles are in the image?", "four", "count"),
        ("Are the bicycles white?", "Yes", "attribute"),
        ("Are there any bicycles in the image?", "Yes", "object"),
        ("Are the bicycles left of the sheep?", "Yes", "position"),
        ("How many sheep are in the image?", "one", "count"),
        ("Are there any sheep in the image?", "Yes", "object"),
    ]


def test_prompts_differ_and_the_first_are_always_the_same() -> None:
    assert len({each.prompt for each in PROMPTS}) == 400
    assert nano_question_prompts(50, 0) == PROMPTS[:50]
    assert nano_question_prompts(50, 1) != PROMPTS[:50]
    assert nano_question_prompts(0, 0) == []
    atoms = Counter(each.atom_count for each in PROMPTS)
    assert atoms == dict.fromkeys(range(MIN_ATOMS, MAX_ATOMS + 1), 50)
    asked = Counter(question.skill for each in PROMPTS for question in each.questions)
    assert set(asked) == {"count", "attribute", "object", "position"} and min(asked.values()) > 60


def test_each_prompt_is_understood_as_it_was_meant_and_held_out() -> None:
    related = set()
    for each in PROMPTS:
        scene = parse(each.prompt)
        assert questions_of(scene) == each and describe_plainly(scene) == each.prompt
        assert 2 <= scene.total <= MAX_OBJECTS and (scene.background, scene.style) == (None, "flat")
        for group in scene.objects:
            assert 1 <= group.count <= MAX_COUNT
            assert group.count == 1 or is_held_out(("count", group.name, str(group.count)))
            assert group.color is None or is_held_out(("color", group.color, group.name))
        names = [group.name for group in scene.objects]
        assert len(set(names)) == len(names)
        if scene.relation is not None:
            related.add(scene.relation)
            assert is_held_out(relation_combination(names[0], scene.relation, names[1]))
        else:
            for pair in zip(names, names[1:], strict=False):
                assert is_held_out(("pair", *sorted(pair)))
        for question in each.questions:
            _read(question.text)
            assert question.answer in ("Yes", *COUNT_WORDS[1:5])
    assert related == set(RELATIONS)


def test_the_teacher_draws_each_prompt() -> None:
    teacher = EmojiTeacher()
    for seed, each in enumerate(PROMPTS[:80]):
        drawn = teacher.draw(each.prompt, seed, 128, 128)
        shown = Counter((o["class"], o["color"]) for o in drawn.objects)
        assert shown == {(g.name, g.color): g.count for g in parse(each.prompt).objects}


def test_prompts_come_back_from_a_file(tmp_path) -> None:
    assert write_geneval2(tmp_path / "q.jsonl", PROMPTS) == 400
    assert read_questions(tmp_path / "q.jsonl") == PROMPTS


def test_more_than_there_are_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(objects=(SceneObject(name="dog"),))
    monkeypatch.setattr(module, "_draw_scene", lambda atoms, random: scene)
    with pytest.raises(UserError, match="got 2 prompts, allowed: about 1"):
        nano_question_prompts(2, 0)
