import re

import numpy as np
import pytest

from lightgen.core.draws import numpy_draws
from lightgen.core.errors import UserError
from lightgen.core.prompt import TAGS, Prompt
from lightgen.ports.nano.language import combinations, describe, draw_prompt, parse, vocabulary
from lightgen.ports.nano.split import held_out, is_held_out
from lightgen.ports.nano.world import (
    BACKGROUNDS,
    CLASSES,
    COLORS,
    MAX_COUNT,
    RELATIONS,
    STYLES,
    UNCOLORED,
    Scene,
    SceneObject,
)


def random_scene(random: np.random.Generator) -> Scene:
    """Any scene that captions can tell, held out or not."""
    names = [CLASSES[i] for i in random.choice(len(CLASSES), 1 + int(random.integers(2)), replace=False)]
    colors = [None, *COLORS]
    objects = tuple(
        SceneObject(
            name=name,
            count=int(random.integers(1, MAX_COUNT + 1)),
            color=colors[int(random.integers(len(colors)))],
        )
        for name in names
    )
    relation = RELATIONS[int(random.integers(4))] if len(names) == 2 and random.random() < 0.5 else None
    background = [None, *BACKGROUNDS][int(random.integers(len(BACKGROUNDS) + 1))]
    style = STYLES[int(random.integers(len(STYLES)))]
    return Scene(objects=objects, relation=relation, background=background, style=style)


def test_parse_inverts_describe() -> None:
    random = numpy_draws(0, "test scenes")
    words = set(vocabulary())
    for _ in range(5000):
        scene = random_scene(random)
        text = describe(scene, random)
        assert parse(text) == scene, text
        assert set(text.split()) <= words, text


def test_every_word_is_said() -> None:
    random = numpy_draws(1, "test scenes")
    said = {word for _ in range(20000) for word in describe(random_scene(random), random).split()}
    assert said == set(vocabulary())
    assert all(re.fullmatch("[a-z]+", word) for word in vocabulary())


def one(name: str, count: int = 1, color: str | None = None) -> SceneObject:
    return SceneObject(name=name, count=count, color=color)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "A photo of a red apple left of a blue car.",
            ((one("apple", 1, "red"), one("car", 1, "blue")), "left of"),
        ),
        ("my dog on top of the sofa", ((one("dog"), one("couch")), "above")),
        (
            "two cats underneath a big shiny purple umbrella",
            ((one("cat", 2), one("umbrella", 1, "purple")), "below"),
        ),
        ("On the left a dog, on the right a hot dog", ((one("dog"), one("hot dog")), "left of")),
        ("an orange", ((one("orange"),), None)),
        ("an orange orange and an orange cat", ((one("orange", 1, "orange"), one("cat", 1, "orange")), None)),
        ("4 oranges", ((one("orange", 4),), None)),
        ("three teddy bears with a bear", ((one("teddy bear", 3), one("bear")), None)),
        ("a photo of three knifes", ((one("knife", 3),), None)),
        ("two persons", ((one("person", 2),), None)),
        ("sheep", ((one("sheep"),), None)),
        ("dogs", ((one("dog", 2),), None)),
        ("a cat, a dog and a car", ((one("cat"), one("dog"), one("car")), None)),
        ("a cat under a blue sky", ((one("cat"),), None)),
    ],
)
def test_parse_free_text(text: str, expected: tuple[tuple[SceneObject, ...], str | None]) -> None:
    scene = parse(text)
    assert (scene.objects, scene.relation) == expected


def test_parse_background_and_style() -> None:
    assert parse("pixelated horse in the park").style == "pixel"
    assert parse("pixelated horse in the park").background == "grass"
    assert parse("a dog in a snowy field at night").background == "snow"
    assert parse("a dog in a snowy field at night").style == "night"
    assert parse("a photo of a dog") == Scene(objects=(one("dog"),))


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("a photo of a girafe", "'giraffe'"),
        ("", "allowed"),
        ("five cats", "1 to 4"),
        ("0 cats", "1 to 4"),
        ("four cats, four dogs and a car", "1 to 8"),
    ],
)
def test_parse_refuses_in_one_line(text: str, named: str) -> None:
    with pytest.raises(UserError) as caught:
        parse(text)
    assert named in str(caught.value)
    assert "\n" not in str(caught.value)


def test_no_test_combination_occurs_in_training() -> None:
    tested = {c for i in range(1200) for c in combinations(draw_prompt(0, i, "test"))}
    assert {c[0] for c in tested} == {"count", "color", "pair", "relation"}
    assert all(is_held_out(c) for c in tested)
    trained = {c for i in range(8000) for c in combinations(draw_prompt(0, i, "train"))}
    assert not trained & tested
    assert not any(is_held_out(c) for c in trained)
    # Neither do the classes of a tested pair meet in any other way.
    pairs = {frozenset(c[1:]) for c in tested if c[0] == "pair"}
    assert not pairs & {frozenset((c[1], c[3])) for c in trained if c[0] == "relation"}


def test_relations_are_held_out_either_way_round() -> None:
    left, right = parse("a dog left of a cat"), parse("a cat right of a dog")
    assert combinations(left) == combinations(right) == {("relation", "dog", "left of", "cat")}
    assert combinations(parse("a cat left of a dog")) != combinations(left)
    assert combinations(parse("a cat below a dog")) == combinations(parse("a dog above a cat"))


def test_training_shows_every_class_and_color() -> None:
    scenes = [parse(draw_prompt(3, i, "train").prompt) for i in range(6000)]
    shown = [group for scene in scenes for group in scene.objects]
    assert {group.name for group in shown} == set(CLASSES)
    assert {group.color for group in shown} == {None, *COLORS}
    for name in CLASSES:
        assert sum(is_held_out(("count", name, str(n))) for n in range(2, MAX_COUNT + 1)) <= 1
        assert sum(is_held_out(("color", color, name)) for color in COLORS) <= 2
    assert {scene.background for scene in scenes} == {None, *BACKGROUNDS}
    assert {scene.style for scene in scenes} == set(STYLES)


def test_held_out_shares() -> None:
    sizes = {
        "count": len(CLASSES) * (MAX_COUNT - 1),
        "color": (len(CLASSES) - len(UNCOLORED)) * len(COLORS),
        "pair": len(CLASSES) * (len(CLASSES) - 1) // 2,
    }
    for kind, size in sizes.items():
        assert 0.09 < len(held_out(kind)) / size < 0.16, kind
    assert {c[2] for c in held_out("count")} == {"2", "3", "4"}
    assert {c[1] for c in held_out("color")} == set(COLORS)


def test_test_prompts_cycle_through_the_tasks_without_repeats() -> None:
    prompts = [draw_prompt(0, i, "test") for i in range(6 * 28)]
    assert [prompt.tag for prompt in prompts] == list(TAGS) * 28
    assert len({prompt.prompt for prompt in prompts}) == len(prompts)
    assert prompts == [draw_prompt(0, i, "test") for i in range(6 * 28)]
    assert prompts != [draw_prompt(1, i, "test") for i in range(6 * 28)]
    assert all(prompt.prompt.startswith("a photo of ") for prompt in prompts)


@pytest.mark.parametrize("split", ["train", "test"])
def test_prompts_say_what_their_fields_ask(split: str) -> None:
    for i in range(1500):
        prompt = draw_prompt(5, i, split)  # type: ignore[arg-type]
        assert Prompt.from_json(prompt.to_json()) == prompt
        scene = parse(prompt.prompt)
        asked = [SceneObject(name=r.name, count=r.count, color=r.color) for r in prompt.include]
        if scene.relation is not None:
            asked.reverse()
            assert prompt.include[1].position == (scene.relation, 0)
            assert prompt.include[0].position is None
        assert tuple(asked) == scene.objects
        many = [(g.name, g.count + 1) for g in scene.objects if g.count > 1]
        assert [(r.name, r.count) for r in prompt.exclude] == many


def test_plain_wording_leads_in_training() -> None:
    plain = re.compile("a photo of (?!.* (?:to|on|over|under|in|with|next|at) )")
    prompts = [draw_prompt(0, i, "train") for i in range(2000)]
    assert 0.4 < sum(bool(plain.match(prompt.prompt)) for prompt in prompts) / len(prompts) < 0.75
    assert sum(prompt.tag is None for prompt in prompts) > 100
