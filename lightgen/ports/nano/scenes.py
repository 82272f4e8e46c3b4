"""Scenes that prompts of the nano world are drawn from: of all its words, or of some."""

from dataclasses import dataclass
from functools import lru_cache
from itertools import product

import numpy as np

from lightgen.core.errors import UserError
from lightgen.ports.nano.split import held_out
from lightgen.ports.nano.words import OPPOSITE
from lightgen.ports.nano.world import CLASSES, COLORS, MAX_COUNT, RELATIONS, UNCOLORED, Scene, SceneObject


@dataclass(frozen=True, kw_only=True)
class Words:
    """Classes and colours that drawn prompts name; all of the nano world unless named."""

    classes: tuple[str, ...] = tuple(CLASSES)
    colors: tuple[str, ...] = tuple(COLORS)

    @classmethod
    def of(cls, classes: tuple[str, ...], colors: tuple[str, ...]) -> "Words":
        """The named words, all where none is named; raises UserError as `check`."""
        words = cls(classes=classes or tuple(CLASSES), colors=colors or tuple(COLORS))
        words.check()
        return words

    def check(self) -> None:
        """Raises UserError: a word that the nano world has not, or fewer than two of a kind."""
        for name, known in (("classes", CLASSES), ("colors", COLORS)):
            got = vars(self)[name]
            unknown = sorted(set(got) - set(known))
            if unknown or len(set(got)) < max(2, len(got)):
                allowed = f"two or more different of {', '.join(known)}"
                raise UserError(f"nano prompts: got {name} {unknown or list(got)}, allowed: {allowed}")


ALL_WORDS = Words()


def pick(choices: tuple[str, ...], random: np.random.Generator) -> str:
    """One of the choices."""
    return choices[int(random.integers(len(choices)))]


def draw_scene(kind: str, random: np.random.Generator, words: Words) -> Scene:
    """Scene of one of the six tasks, or a rich one: counts, colours and relations together."""
    colored = kind in ("colors", "color_attr")
    classes = [name for name in words.classes if not (colored and name in UNCOLORED)]
    pair = kind in ("two_object", "position", "color_attr") or (kind == "rich" and random.random() < 0.75)
    names = [classes[i] for i in random.choice(len(classes), 2 if pair else 1, replace=False)]
    colors: list[str | None] = [None, None]
    counts = [1, 1]
    if colored:
        colors = [words.colors[i] for i in random.choice(len(words.colors), 2, replace=False)]
    if kind == "counting":
        counts[0] = int(random.integers(2, MAX_COUNT + 1))
    relation = kind == "position"
    if kind == "rich":
        colors = [pick(words.colors, random) if random.random() < 0.6 else None for _ in range(2)]
        relation = pair and random.random() < 0.6
        if not relation:
            counts[0] = int(random.integers(1, MAX_COUNT + (not pair)))
            counts[1] = int(random.integers(1, MAX_COUNT + 1 - counts[0])) if pair else 1
    objects = tuple(
        SceneObject(name=name, count=count, color=None if name in UNCOLORED else color)
        for name, count, color in zip(names, counts, colors, strict=False)
    )
    return Scene(objects=objects, relation=pick(RELATIONS, random) if relation else None)


@lru_cache(maxsize=32)
def test_scenes(tag: str, words: Words) -> tuple[Scene, ...]:
    """All scenes of a task that name only the words, and whose combinations are all held out."""
    return tuple(
        scene
        for scene in _held_out_scenes(tag)
        if all(g.name in words.classes and g.color in (None, *words.colors) for g in scene.objects)
    )


@lru_cache(maxsize=8)
def _held_out_scenes(tag: str) -> tuple[Scene, ...]:
    """All scenes of a task whose combinations are all held out, in a fixed order."""
    if tag == "single_object":
        return tuple(Scene(objects=(SceneObject(name=name),)) for name in CLASSES)
    if tag == "counting":
        held = sorted(held_out("count"))
        return tuple(Scene(objects=(SceneObject(name=name, count=int(count)),)) for _, name, count in held)
    if tag == "colors":
        held = sorted(held_out("color"))
        return tuple(Scene(objects=(SceneObject(name=name, color=color),)) for _, color, name in held)
    if tag == "two_object":
        pairs = sorted(held_out("pair"))
        ordered = [order for _, one, other in pairs for order in ((one, other), (other, one))]
        return tuple(Scene(objects=(SceneObject(name=a), SceneObject(name=b))) for a, b in ordered)
    if tag == "position":
        return tuple(
            Scene(objects=(SceneObject(name=a), SceneObject(name=b)), relation=relation)
            for _, one, canonical, other in sorted(held_out("relation"))
            for a, relation, b in ((one, canonical, other), (other, OPPOSITE[canonical], one))
        )
    assert tag == "color_attr", tag
    colors: dict[str, list[str]] = {}
    for _, color, name in sorted(held_out("color")):
        colors.setdefault(name, []).append(color)
    return tuple(
        Scene(objects=(SceneObject(name=a, color=first), SceneObject(name=b, color=second)))
        for _, a, b in sorted(held_out("pair"))
        for first, second in product(colors.get(a, ()), colors.get(b, ()))
        if first != second
    )
