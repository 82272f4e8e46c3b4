"""Renders of the nano world whose truth is known: right ones, and ones that are wrong in one thing."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np

from lightgen.core.draws import draw_key, numpy_draws
from lightgen.core.prompt import Prompt
from lightgen.evals.verdict import VerdictConfig, own_colors, verdict
from lightgen.ports.known import KnownPicture
from lightgen.ports.nano.emoji import EmojiTeacher, EmojiTeacherConfig, ErrorKnob
from lightgen.ports.nano.language import describe, draw_prompt, parse
from lightgen.ports.nano.words import OPPOSITE
from lightgen.ports.nano.world import MAX_COUNT, Scene, SceneObject
from lightgen.ports.protocols import Detection

SIDE = 128
Split = Literal["test", "train"]


def right_renders(num: int, seed: int, split: Split = "test") -> list[KnownPicture]:
    """Renders of the first `num` prompts of a split, with a seed each.

    One is not right where GenEval's rules do not take the truth itself for right, as with two objects so
    close that neither is left of the other.

    Raises:
        UserError: the emoji font is missing.
    """
    teacher = EmojiTeacher()
    return [
        _known(teacher, prompt, prompt.prompt, draw_key(seed, "right", index), "right")
        for index, prompt in _prompts(split, num, seed)
    ]


def wrong_renders(kind: str, num: int, seed: int, split: Split = "test") -> list[KnownPicture]:
    """Renders that are wrong in one thing, of those of `num` prompts where GenEval's rules can see it.

    Args:
        kind: one of WRONG_KINDS.
        num: prompts that are tried.
        seed: of prompts and renders.
        split: of the prompts.
    """
    tried = (_wrong(kind, p, draw_key(seed, f"wrong {kind}", i)) for i, p in _prompts(split, num, seed))
    return [known for known in tried if known is not None and not known.right]


def mixed_wrong_renders(num: int, seed: int) -> list[KnownPicture]:
    """A wrong render of each of `num` test prompts, of the next kind that the prompt leaves room for."""
    found = []
    for index, prompt in _prompts("test", num, seed):
        # a step more every six prompts, which are one of each task: every kind meets every task
        first = index + index // 6
        kinds = (WRONG_KINDS[(first + step) % len(WRONG_KINDS)] for step in range(len(WRONG_KINDS)))
        tried = (_wrong(kind, prompt, draw_key(seed, "mixed", index)) for kind in kinds)
        found.append(next(known for known in tried if known is not None and not known.right))
    return found


def truth_detections(objects: Sequence[dict[str, Any]]) -> tuple[Detection, ...]:
    """What a perfect detector answers to a render: every object for sure, in its colour ("none" as it comes).

    Args:
        objects: the renderer's records.
    """
    found = []
    for each in objects:
        x0, y0, x1, y1 = map(float, each["box"])
        found.append(Detection(each["class"], 1.0, (x0, y0, x1, y1), colors={each["color"] or "none": 1.0}))
    return tuple(found)


def _prompts(split: Split, num: int, seed: int) -> Iterator[tuple[int, Prompt]]:
    return ((index, draw_prompt(seed, index, split)) for index in range(num))


def _known(teacher: EmojiTeacher, prompt: Prompt, text: str, seed: int, kind: str) -> KnownPicture:
    rendered = teacher.draw(text, seed, SIDE, SIDE)
    found = truth_detections(rendered.objects)
    answer = verdict(prompt, found, (SIDE, SIDE), own_colors, VerdictConfig())
    return KnownPicture(rendered.image, prompt, answer.correct, kind, found)


def _wrong(kind: str, prompt: Prompt, seed: int) -> KnownPicture | None:
    """Render of a prompt with one error, or None where the prompt leaves no room for it."""
    if kind in _KNOBS:
        teacher = EmojiTeacher(EmojiTeacherConfig(errors=_KNOBS[kind]))
        return _known(teacher, prompt, prompt.prompt, seed, kind)
    random = numpy_draws(seed, "changed scene")
    scene = _CHANGES[kind](parse(prompt.prompt), random)
    if scene is None:
        return None
    text = describe(scene, random)
    assert parse(text) == scene, (text, scene)
    return _known(EmojiTeacher(), prompt, text, seed, kind)


def _one_missing(scene: Scene, random: np.random.Generator) -> Scene | None:
    """The scene with one object less; nobody draws a scene of none."""
    groups = list(scene.objects)
    at = int(random.integers(len(groups)))
    if scene.total == 1:
        return None
    if groups[at].count > 1:
        groups[at] = replace(groups[at], count=groups[at].count - 1)
        return replace(scene, objects=tuple(groups))
    return replace(scene, objects=tuple(g for i, g in enumerate(groups) if i != at), relation=None)


def _one_too_many(scene: Scene, random: np.random.Generator) -> Scene | None:
    """The scene with one object more, of a kind that is counted; beside four it is a group of its own."""
    groups = list(scene.objects)
    counted = [i for i, group in enumerate(groups) if group.count > 1]
    if not counted:
        return None
    at = counted[int(random.integers(len(counted)))]
    if groups[at].count < MAX_COUNT:
        groups[at] = replace(groups[at], count=groups[at].count + 1)
    elif len(groups) == 1:
        groups.append(SceneObject(name=groups[at].name, color=groups[at].color))
    else:
        return None
    return replace(scene, objects=tuple(groups))


def _swapped_sides(scene: Scene, random: np.random.Generator) -> Scene | None:
    return None if scene.relation is None else replace(scene, relation=OPPOSITE[scene.relation])


def _swapped_colors(scene: Scene, random: np.random.Generator) -> Scene | None:
    if len(scene.objects) < 2 or None in (colors := [group.color for group in scene.objects]):
        return None
    groups = (replace(g, color=c) for g, c in zip(scene.objects, reversed(colors), strict=True))
    return replace(scene, objects=tuple(groups))


_KNOBS = {
    "wrong_count": ErrorKnob(wrong_count=1.0),
    "wrong_place": ErrorKnob(wrong_place=1.0),
    "wrong_color": ErrorKnob(wrong_color=1.0),
    "wrong_class": ErrorKnob(wrong_class=1.0),
}
_CHANGES: dict[str, Callable[[Scene, np.random.Generator], Scene | None]] = {
    "one_missing": _one_missing,
    "one_too_many": _one_too_many,
    "swapped_sides": _swapped_sides,
    "swapped_colors": _swapped_colors,
}
WRONG_KINDS = (*_CHANGES, *_KNOBS)
