"""The language of the nano world: captions of scenes, and scenes of captions and of users' own words."""

import difflib
import re
from dataclasses import replace
from functools import lru_cache
from typing import Literal

import numpy as np

from lightgen.core.draws import numpy_draws, permuted
from lightgen.core.errors import UserError
from lightgen.core.prompt import TAGS, Prompt, Requirement
from lightgen.ports.nano.scenes import ALL_WORDS, Words, draw_scene, pick, test_scenes
from lightgen.ports.nano.split import Combination, is_held_out, scene_combinations
from lightgen.ports.nano.words import (
    ALIAS_PLURALS,
    ALIASES,
    BACKGROUND_WORDS,
    BREAKS,
    ENDINGS,
    NUMBER_WORDS,
    OPENINGS,
    OPPOSITE,
    PLAIN_OPENING,
    RELATION_PHRASES,
    RELATION_WORDS,
    SCENERY,
    STYLE_WORDS,
    TOGETHER,
)
from lightgen.ports.nano.world import (
    BACKGROUNDS,
    CLASSES,
    COLORS,
    MAX_COUNT,
    MAX_OBJECTS,
    NUMBERS,
    PLURALS,
    STYLES,
    Scene,
    SceneObject,
)

# Share of captions in GenEval's own wording, where the scene has no background and no style to tell.
_PLAIN_SHARE = 0.6
# Shares of the kinds of training prompts; rich ones mix counts, colours and relations and carry no tag.
_KINDS = {
    "single_object": 0.17,
    "two_object": 0.14,
    "counting": 0.19,
    "colors": 0.13,
    "position": 0.15,
    "color_attr": 0.14,
    "rich": 0.08,
}
# Scenes of one training prompt, of which some hold what belongs to the tests.
_MOST_TRIES = 1_000
# Shares of training captions that name a background, and a style.
_SCENERY_SHARE = 0.12
_STYLE_SHARE = 0.06


def with_article(phrase: str) -> str:
    """The phrase with a or an, by GenEval's rule: an before a written vowel."""
    return f"an {phrase}" if phrase[0] in "aeiou" else f"a {phrase}"


def name_group(group: SceneObject) -> str:
    """Words of one group, as `a red apple` or `three cats`."""
    color = "" if group.color is None else f"{group.color} "
    if group.count == 1:
        return with_article(color + group.name)
    return f"{NUMBERS[group.count]} {color}{PLURALS[group.name]}"


def describe_plainly(scene: Scene) -> str:
    """Caption in GenEval's own wording, which says nothing of background and style."""
    joint = f" {scene.relation or 'and'} "
    return f"{PLAIN_OPENING} {joint.join(name_group(group) for group in scene.objects)}"


def describe(scene: Scene, random: np.random.Generator) -> str:
    """Caption of a scene of one or two groups: most often in GenEval's wording, else a paraphrase of it."""
    assert len(scene.objects) in (1, 2), scene
    bare = scene.background is None and scene.style == "flat"
    if bare and random.random() < _PLAIN_SHARE:
        return describe_plainly(scene)
    if len(scene.objects) == 1:
        words = name_group(scene.objects[0])
    else:
        joint = pick(TOGETHER if scene.relation is None else RELATION_PHRASES[scene.relation], random)
        words = f"{name_group(scene.objects[0])} {joint} {name_group(scene.objects[1])}"
    opening = pick(OPENINGS[scene.style], random)
    if opening == "there":
        opening = "there is" if scene.objects[0].count == 1 else "there are"
        if scene.total == 1:
            words = f"{NUMBERS[1]} {words.split(' ', 1)[1]}"
    scenery = "" if scene.background is None else pick(SCENERY[scene.background], random)
    return " ".join(part for part in (opening, words, scenery, ENDINGS[scene.style]) if part)


@lru_cache(maxsize=1)
def vocabulary() -> tuple[str, ...]:
    """All words that captions can hold, lowercase, sorted."""
    phrases = ["a an and there is are", *CLASSES, *PLURALS.values(), *COLORS, *NUMBERS.values()]
    for table in (OPENINGS, SCENERY, RELATION_PHRASES):
        phrases += [phrase for wordings in table.values() for phrase in wordings]
    phrases += [*TOGETHER, *ENDINGS.values()]
    return tuple(sorted({word for phrase in phrases for word in phrase.split()}))


@lru_cache(maxsize=1)
def _forms() -> dict[tuple[str, ...], tuple[str, bool]]:
    """Class and whether it is a plural for each way to write it, as tuples of words."""
    forms: dict[tuple[str, ...], tuple[str, bool]] = {}
    for name, plural in PLURALS.items():
        # GenEval adds -s or -es to any name ("knifes", "persons").
        for written in (name + "s", name + "es", plural):
            forms[tuple(written.split())] = (name, True)
    for alias, name in ALIASES.items():
        forms[(alias + "s",)] = (name, True)
        forms[(alias,)] = (name, False)
    for alias, name in ALIAS_PLURALS.items():
        forms[(alias,)] = (name, True)
    # Last, so that what is both (sheep, skis, scissors) counts as one where no number is given.
    for name in CLASSES:
        forms[tuple(name.split())] = (name, False)
    return forms


def _match(words: list[str], start: int) -> tuple[str, bool, int] | None:
    """The longest name at `start`: its class, whether it is a plural, and the index after it; or None."""
    for length in (2, 1):
        found = _forms().get(tuple(words[start : start + length]))
        if found is not None and start + length <= len(words):
            return found[0], found[1], start + length
    return None


def match_name(words: list[str], start: int) -> tuple[str, bool, int] | None:
    """The object named at `start`: class, whether it is a plural, and the index after its name; or None."""
    # The fruit and the colour share their word: before another object's name it is the colour.
    if words[start] == "orange" and _match(words, start + 1) is not None:
        return None
    return _match(words, start)


def _modifiers(words: list[str], start: int, plural: bool, begin: int) -> tuple[int, str | None]:
    """Count and colour that the words before an object's name give it."""
    count, color = 2 if plural else 1, None
    i = start - 1
    while i >= begin and words[i] not in BREAKS:
        if words[i] in COLORS and color is None:
            color = words[i]
        number = int(words[i]) if words[i].isdigit() else NUMBER_WORDS.get(words[i])
        if number is not None:
            if not 1 <= number <= MAX_COUNT:
                raise UserError(f"prompt: {words[i]!r} objects of a kind, allowed: 1 to {MAX_COUNT}")
            return number, color
        i -= 1
    return count, color


@lru_cache(maxsize=65536)
def parse(text: str) -> Scene:
    """Scene that a text asks for; words it does not know are passed over.

    Raises:
        UserError: no class of the nano world is named, or more objects are asked for than fit.
    """
    words = re.findall(r"[a-z]+|[0-9]+|,", text.lower())
    groups: list[SceneObject] = []
    spans: list[tuple[int, int]] = []
    i = 0
    while i < len(words):
        found = match_name(words, i)
        if found is None:
            i += 1
            continue
        name, plural, end = found
        count, color = _modifiers(words, i, plural, spans[-1][1] if spans else 0)
        groups.append(SceneObject(name=name, count=count, color=color))
        spans.append((i, end))
        i = end
    if not groups:
        raise UserError(_nothing_known(text, words))
    scene = Scene(
        objects=tuple(groups),
        relation=_relation(words, spans) if len(groups) == 2 else None,
        background=_keyed(BACKGROUND_WORDS, words, spans),
        style=_keyed(STYLE_WORDS, words, spans) or "flat",
    )
    if scene.total > MAX_OBJECTS:
        raise UserError(f"prompt {text[:60]!r}: {scene.total} objects, allowed: 1 to {MAX_OBJECTS}")
    return scene


def _relation(words: list[str], spans: list[tuple[int, int]]) -> str | None:
    """Relation of the first of two objects to the second, by the words between them."""
    before = [RELATION_WORDS[word] for word in words[: spans[0][0]] if word in RELATION_WORDS]
    between = [RELATION_WORDS[word] for word in words[spans[0][1] : spans[1][0]] if word in RELATION_WORDS]
    if not between:
        return None
    # "On the left a dog, on the right a cat" tells each object its own side.
    if before and between[0] == OPPOSITE[before[-1]]:
        return before[-1]
    return between[0]


def _keyed(table: dict[str, tuple[str, ...]], words: list[str], spans: list[tuple[int, int]]) -> str | None:
    """First key of the table one of whose words the text holds outside the names of objects."""
    named = {i for start, end in spans for i in range(start, end)}
    free = {word for i, word in enumerate(words) if i not in named}
    return next((key for key, hints in table.items() if not free.isdisjoint(hints)), None)


def _nothing_known(text: str, words: list[str]) -> str:
    single = {form[0]: name for form, (name, _) in _forms().items() if len(form) == 1}
    unknown = [word for word in words if word not in vocabulary()]
    near = [match for word in unknown for match in difflib.get_close_matches(word, single, 1, 0.6)]
    hint = f"did you mean {single[near[0]]!r}? " if near else ""
    some = f"{', '.join(CLASSES[1:8])} ... ({len(CLASSES)} classes)"
    return f"prompt {text[:60]!r} names no object of the nano world; {hint}allowed: {some}"


def combinations(thing: Scene | Prompt) -> frozenset[Combination]:
    """All combinations (see `split`) in a scene, or in what a prompt's text asks for."""
    return scene_combinations(parse(thing.prompt) if isinstance(thing, Prompt) else thing)


def draw_prompt(seed: int, index: int, split: Literal["train", "test"], words: Words = ALL_WORDS) -> Prompt:
    """The prompt at `index` of a split; test prompts cycle through the six tasks, plainly worded.

    Raises:
        UserError: the words make no prompt of the split.
    """
    if split == "train":
        return _draw_training_prompt(numpy_draws(seed, "train prompt", index), words)
    tag = TAGS[index % len(TAGS)]
    scenes = test_scenes(tag, words)
    if not scenes:
        raise UserError(f"nano prompts: got words without a test prompt of {tag}, allowed: more words")
    epoch, position = divmod(index // len(TAGS), len(scenes))
    scene = scenes[permuted(seed, f"test prompt/{tag}", epoch, [position], len(scenes))[0]]
    return prompt_of(scene, describe_plainly(scene), tag)


def prompt_of(scene: Scene, text: str, tag: str | None) -> Prompt:
    """Prompt of a scene with what its picture must and must not show, after GenEval's schema."""
    groups = scene.objects
    include = [Requirement(name=group.name, count=group.count, color=group.color) for group in groups]
    if scene.relation is not None:
        # GenEval lists what the relation is seen from first.
        include = [include[1], replace(include[0], position=(scene.relation, 0))]
    exclude = [Requirement(name=group.name, count=group.count + 1) for group in groups if group.count > 1]
    return Prompt(prompt=text, tag=tag, include=tuple(include), exclude=tuple(exclude))


def _draw_training_prompt(random: np.random.Generator, words: Words) -> Prompt:
    shares = np.cumsum(list(_KINDS.values()))
    kind = list(_KINDS)[int(np.searchsorted(shares, random.random() * shares[-1], side="right"))]
    for _ in range(_MOST_TRIES):
        scene = draw_scene(kind, random, words)
        if not any(is_held_out(combination) for combination in scene_combinations(scene)):
            break
    else:
        raise UserError(f"nano prompts: got words without a training prompt of {kind}, allowed: more words")
    background = pick(BACKGROUNDS, random) if random.random() < _SCENERY_SHARE else None
    style = pick(STYLES[1:], random) if random.random() < _STYLE_SHARE else "flat"
    scene = Scene(objects=scene.objects, relation=scene.relation, background=background, style=style)
    return prompt_of(scene, describe(scene, random), None if kind == "rich" else kind)
