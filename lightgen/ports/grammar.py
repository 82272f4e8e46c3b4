"""Captions of the everyday world, composed of objects, attributes, counts, relations, scenes and styles."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import TypeVar

import numpy as np

from lightgen.core.draws import numpy_draws
from lightgen.core.errors import UserError
from lightgen.core.prompt import COLORS, Prompt
from lightgen.core.prompt import RELATIONS as CHECKED_RELATIONS
from lightgen.ports.grammar_words import (
    ARTWORKS,
    CONTAINERS,
    HANDY,
    INDOORS,
    LOOKS,
    MATERIALS,
    MORE_COLORS,
    NOUNS,
    NUMBERS,
    OUTDOORS,
    PHOTOS,
    PLAIN_OPENING,
    RELATIONS,
    SHELTERS,
    SIZES,
    SUPPORTS,
    TEXTURES,
    TIMES,
    TOGETHER,
    WEATHER,
    Noun,
    with_article,
)
from lightgen.ports.nano.language import prompt_of
from lightgen.ports.nano.world import Scene, SceneObject

_T = TypeVar("_T")
# GenEval's tasks, which a verdict can judge; the other kinds mix what it has no words for.
_TASKS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
_PLACES = tuple(relation for relation in RELATIONS if relation not in CHECKED_RELATIONS)
_TARGETS = {"on": SUPPORTS, "inside": CONTAINERS, "under": SHELTERS}


@dataclass(frozen=True, kw_only=True)
class GrammarKnobs:
    """How often each kind of caption is drawn, as weights of any sum.

    Attributes:
        single_object, two_object, counting, colors, position, color_attr: GenEval's tasks, each of which
            carries what its picture must show where all its objects are of COCO and its colours of the ten.
        attributes: one thing of some size, condition, colour or material.
        relation: two things, one in front of, behind, on, under, inside or next to the other.
        counted_relation: two groups, counted, and where one is as seen from the other.
        rich: two or three groups with counts, colours and attributes.
    """

    single_object: float = 0.05
    two_object: float = 0.07
    counting: float = 0.18
    colors: float = 0.09
    position: float = 0.18
    color_attr: float = 0.09
    attributes: float = 0.07
    relation: float = 0.11
    counted_relation: float = 0.1
    rich: float = 0.06


@dataclass(frozen=True, kw_only=True)
class GrammarConfig:
    """Captions of the grammar: caption i of a seed and shares is the same however many are drawn.

    Attributes:
        num: how many are drawn; a hundredth of them or so repeat others, and cleaning drops those.
        shares: of the kinds of captions; by default half of them count or place things.
        coco: share of objects that are of COCO's 80 classes.
        scenery: share of captions that name a place, a time or the weather.
        style: share of captions that say more of the picture than that it is one.
        plain: share of captions in GenEval's own wording, without scenery and style.
        max_count: most things of a kind, 2 to 6.
    """

    num: int = 10_000
    seed: int = 0
    shares: GrammarKnobs = GrammarKnobs()
    coco: float = 0.65
    scenery: float = 0.6
    style: float = 0.55
    plain: float = 0.08
    max_count: int = 6

    def check(self) -> None:
        """Raises UserError: a number out of its range."""
        weights = list(vars(self.shares).values())
        if min(weights) < 0 or sum(weights) <= 0:
            raise UserError(f"--source.shares: got {weights}, allowed: weights from 0, one of them above 0")
        shares = (self.coco, self.scenery, self.style, self.plain)
        if not all(0 <= share <= 1 for share in shares):
            raise UserError(f"--source: got coco, scenery, style, plain {shares}, allowed: 0 to 1 each")
        if self.num < 1 or not 2 <= self.max_count <= max(NUMBERS):
            raise UserError(
                f"--source: got num {self.num}, max-count {self.max_count}, allowed: 1 or more, "
                f"2 to {max(NUMBERS)}"
            )


@dataclass(frozen=True)
class _Group:
    """`count` things of a noun with attributes; an empty one says nothing."""

    noun: Noun
    count: int = 1
    color: str = ""
    size: str = ""
    texture: str = ""
    material: str = ""

    @property
    def is_checkable(self) -> bool:
        """Whether GenEval's schema has words for all that is said of it."""
        said = self.size or self.texture or self.material
        return self.noun.is_coco and not said and self.color in ("", *COLORS)


def draw_caption(config: GrammarConfig, index: int) -> Prompt:
    """Caption `index` of the grammar, with what its picture must show where GenEval's schema can say it."""
    random = numpy_draws(config.seed, "grammar caption", index)
    names = [field.name for field in fields(config.shares)]
    weights = np.cumsum([vars(config.shares)[name] for name in names])
    kind = names[int(np.searchsorted(weights, random.random() * weights[-1], side="right"))]
    groups, relation = _draw_scene(config, kind, random)
    text = _word(config, groups, relation, random)
    is_judged = kind in _TASKS and all(group.is_checkable for group in groups)
    if not is_judged or (relation is not None and relation not in CHECKED_RELATIONS):
        return Prompt(prompt=text)
    objects = tuple(
        SceneObject(name=group.noun.name, count=group.count, color=group.color or None) for group in groups
    )
    return prompt_of(Scene(objects=objects, relation=relation), text, kind)


def _draw_scene(
    config: GrammarConfig, kind: str, random: np.random.Generator
) -> tuple[list[_Group], str | None]:
    """(Groups in the order of the text, relation of the first to the second, or None)."""

    def count() -> int:
        return int(random.integers(1, config.max_count + 1))

    nouns = _draw_nouns(config, 3, random, uncolored=kind not in ("colors", "color_attr"))
    one, two, three = nouns
    if kind == "single_object":
        return [_Group(one)], None
    if kind == "two_object":
        return [_Group(one), _Group(two)], None
    if kind == "counting":
        return [_Group(one, count=int(random.integers(2, config.max_count + 1)))], None
    if kind == "colors":
        return [_Group(one, color=_draw_color(one, "", random))], None
    if kind == "color_attr":
        first = _draw_color(one, "", random)
        return [_Group(one, color=first), _Group(two, color=_draw_color(two, first, random))], None
    if kind == "position":
        return [_Group(one), _Group(two)], _pick(CHECKED_RELATIONS, random)
    if kind == "attributes":
        return [_adorned(one, 1, random, least=True)], None
    if kind == "relation":
        relation = _pick(_PLACES, random)
        one, two = _fitting(config, relation, one, two, random)
        return [_adorned(one, 1, random), _adorned(two, 1, random)], relation
    if kind == "counted_relation":
        relation = _pick(tuple(RELATIONS), random)
        one, two = _fitting(config, relation, one, two, random)
        second = 1 if relation in _TARGETS else min(count(), count())
        return [_Group(one, count=count()), _Group(two, count=second)], relation
    assert kind == "rich", kind
    wanted = nouns if random.random() < 0.4 else nouns[:2]
    return [_adorned(noun, min(count(), count()), random) for noun in wanted], None


def _draw_nouns(config: GrammarConfig, num: int, random: np.random.Generator, uncolored: bool) -> list[Noun]:
    """Different nouns; people only where no colour is wanted, as GenEval asks for no coloured ones."""
    found: list[Noun] = []
    while len(found) < num:
        noun = _pick(_nouns_of(bool(random.random() < config.coco), uncolored), random)
        if noun not in found:
            found.append(noun)
    return found


@lru_cache(maxsize=4)
def _nouns_of(is_coco: bool, people: bool) -> tuple[Noun, ...]:
    return tuple(noun for noun in NOUNS if noun.is_coco == is_coco and (people or noun.kind != "people"))


def _fitting(
    config: GrammarConfig, relation: str, one: Noun, two: Noun, random: np.random.Generator
) -> tuple[Noun, Noun]:
    """The nouns, or others that can lie on, in or under each other where the relation says so."""
    if relation not in _TARGETS:
        return one, two
    targets = tuple(noun for noun in NOUNS if noun.name in _TARGETS[relation])
    two = _pick(targets, random)
    while one.kind not in HANDY or one == two or one in targets:
        (one,) = _draw_nouns(config, 1, random, uncolored=True)
    return one, two


def _draw_color(noun: Noun, other: str, random: np.random.Generator) -> str:
    """A colour, of GenEval's ten nine times of ten; not that of another thing, nor a fruit's own name."""
    while True:
        color = _pick(COLORS if random.random() < 0.9 else MORE_COLORS, random)
        if color not in (other, noun.name):
            return color


def _adorned(noun: Noun, count: int, random: np.random.Generator, least: bool = False) -> _Group:
    """Group with up to three attributes, at least one if `least`."""
    while True:
        size = _pick(SIZES, random) if noun.kind != "people" and random.random() < 0.25 else ""
        texture = _pick(TEXTURES[noun.kind], random) if random.random() < 0.4 else ""
        colored = noun.kind not in ("people", "animals") and random.random() < 0.4
        color = _draw_color(noun, "", random) if colored else ""
        materials = MATERIALS.get(noun.kind, ())
        material = _pick(materials, random) if materials and random.random() < 0.3 else ""
        material = "" if material in noun.name.split() else material
        if not least or size or texture or color or material:
            return _Group(noun, count, color, size, texture, material)


def name_group(group: _Group) -> str:
    """Words of one group, as `a red apple`, `three small wooden chairs` or `two pairs of scissors`."""
    noun = group.noun
    adjectives = [word for word in (group.size, group.texture, group.color, group.material) if word]
    if noun.measure:
        counted = noun.measure if group.count == 1 else f"{noun.measure}s"
        words = " ".join([counted, "of", *adjectives, noun.name])
    else:
        words = " ".join([*adjectives, noun.name if group.count == 1 else noun.plural])
    return with_article(words) if group.count == 1 else f"{NUMBERS[group.count]} {words}"


def _word(
    config: GrammarConfig, groups: Sequence[_Group], relation: str | None, random: np.random.Generator
) -> str:
    """Caption of groups: a phrase, or a sentence with a full stop."""
    names = [name_group(group) for group in groups]
    if random.random() < config.plain and len(groups) < 3:
        joint = relation or "and"
        return f"{PLAIN_OPENING} {f' {joint} '.join(names)}"
    words, leads = _join(groups, names, relation, random)
    scenery = _draw_scenery(random) if random.random() < config.scenery else ""
    styled = random.random() < config.style
    look = _pick(LOOKS, random) if styled and random.random() < 0.5 else ""
    form = random.random()
    if form < 0.25:  # a sentence
        be = "is" if leads.count == 1 else "are"
        if scenery and random.random() < 0.5:
            sentence = f"{scenery}, there {be} {words}."
        else:
            sentence = " ".join(part for part in (f"there {be} {words}", scenery) if part) + "."
        sentence = sentence[0].upper() + sentence[1:]
        return f"{sentence} {look[0].upper()}{look[1:]}." if look else sentence
    opening = _pick(ARTWORKS if random.random() < 0.5 else PHOTOS, random) if styled else ""
    if not styled and form < 0.7:
        opening = _pick(PHOTOS[:4], random)
    phrase = " ".join(part for part in (opening, words, scenery) if part)
    return f"{phrase}, {look}" if look else phrase


def _join(
    groups: Sequence[_Group], names: Sequence[str], relation: str | None, random: np.random.Generator
) -> tuple[str, _Group]:
    """(Words of all groups, the group that the words begin with)."""
    if len(groups) == 1:
        return names[0], groups[0]
    if len(groups) == 3:
        return f"{names[0]}, {names[1]} and {names[2]}", groups[0]
    if relation is None:
        return f"{names[0]} {_pick(TOGETHER, random)} {names[1]}", groups[0]
    wording, turn = _pick(RELATIONS[relation], random), random.random()
    if turn < 0.15 and relation in ("left of", "right of"):
        left, right = (0, 1) if relation == "left of" else (1, 0)
        return f"{names[left]} on the left and {names[right]} on the right", groups[left]
    if turn < 0.3:
        if wording in CHECKED_RELATIONS[:2]:  # "left of it" is no English
            wording = f"to the {wording}"
        it = "it" if groups[1].count == 1 else "them"
        return f"{names[1]} with {names[0]} {wording} {it}", groups[1]
    return f"{names[0]} {wording} {names[1]}", groups[0]


def _draw_scenery(random: np.random.Generator) -> str:
    """Where and when: an outdoor place may have weather."""
    if random.random() < 0.45:
        return _pick(INDOORS, random)
    parts = [_pick(OUTDOORS, random)]
    if random.random() < 0.4:
        parts.append(_pick(TIMES, random))
    if random.random() < 0.3:
        parts.append(_pick(WEATHER, random))
    return " ".join(parts)


def _pick(choices: Sequence[_T], random: np.random.Generator) -> _T:
    return choices[int(random.integers(len(choices)))]
