"""Concepts of captions: which objects, colours, counts, relations and combinations a set of prompts asks for.

A prompt that says in `include` what must be seen is taken at its word. Of any other the text is read by whole
words: the 80 classes of COCO, ten colours, numbers, and the relation between one object and the next. That
reading is simple and the same for all sets, which is what comparing sets needs; it is no parser.
"""

import functools
import math
import re
from collections import Counter
from collections.abc import Iterable
from typing import Any

from lightgen.core.prompt import COLORS, Prompt

# Under the names of GenEval, which differ from COCO's in a few.
_LISTED = """
person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light, fire hydrant, stop sign,
parking meter, bench, bird, cat, dog, horse, sheep, cow, elephant, bear, zebra, giraffe, backpack, umbrella,
handbag, tie, suitcase, frisbee, skis, snowboard, sports ball, kite, baseball bat, baseball glove, skateboard,
surfboard, tennis racket, bottle, wine glass, cup, fork, knife, spoon, bowl, banana, apple, sandwich, orange,
broccoli, carrot, hot dog, pizza, donut, cake, chair, couch, potted plant, bed, dining table, toilet, tv,
laptop, computer mouse, tv remote, computer keyboard, cell phone, microwave, oven, toaster, sink,
refrigerator, book, clock, vase, scissors, teddy bear, hair drier, toothbrush
"""
OBJECTS = tuple(" ".join(name.split()) for name in _LISTED.split(","))
AXES = (
    "objects", "colors", "counts", "relations",
    "object pairs", "colored objects", "counted objects", "related objects",
)  # fmt: skip
_PLURALS = {
    "people": "person",
    "knives": "knife",
    "buses": "bus",
    "benches": "bench",
    "couches": "couch",
    "sandwiches": "sandwich",
    "wine glasses": "wine glass",
    "toothbrushes": "toothbrush",
}
_NO_PLURAL = ("sheep", "skis", "scissors", "broccoli", *_PLURALS.values())
_SAME_THING = {
    "bike": "bicycle",
    "motorbike": "motorcycle",
    "plane": "airplane",
    "sofa": "couch",
    "television": "tv",
    "cellphone": "cell phone",
    "doughnut": "donut",
}
_NUMBERS = {"a": 1, "an": 1, "one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7}
_NUMBERS |= {"eight": 8, "nine": 9, "ten": 10}
_SIDES = {"left": "left of", "right": "right of", "above": "above", "over": "above", "below": "below"}
_SIDES |= {"under": "below", "beneath": "below", "underneath": "below"}
_WORD = re.compile(r"\w+")
_LONGEST = 2  # words of an object's name
_BEFORE = 4  # words before an object that may say its colour or number

# (object, count, color) in the order of the text, and (from, relation, to) by their places.
_Read = tuple[list[tuple[str, int | None, str | None]], list[tuple[int, str, int]]]


def concept_coverage(prompts: Iterable[Prompt]) -> dict[str, dict[str, Any]]:
    """For each of AXES: `distinct` concepts, `mentions`, `entropy` in nats and `effective` number, exp of it.

    The pairs are of objects in one caption, in no order; `related objects` keeps both and the relation.
    """
    seen: dict[str, Counter[Any]] = {axis: Counter() for axis in AXES}
    for prompt in prompts:
        objects, relations = _stated(prompt) if prompt.include else _read(prompt.prompt)
        names = [name for name, _, _ in objects]
        seen["objects"].update(names)
        seen["colors"].update(color for _, _, color in objects if color)
        seen["counts"].update(count for _, count, _ in objects if count)
        seen["relations"].update(relation for _, relation, _ in relations)
        seen["object pairs"].update(
            tuple(sorted(pair)) for i, a in enumerate(names) for pair in ((a, b) for b in names[:i])
        )
        seen["colored objects"].update((color, name) for name, _, color in objects if color)
        seen["counted objects"].update((count, name) for name, count, _ in objects if count)
        seen["related objects"].update((names[i], relation, names[j]) for i, relation, j in relations)
    return {axis: _summary(counts) for axis, counts in seen.items()}


def _summary(counts: "Counter[Any]") -> dict[str, Any]:
    total = counts.total()
    # sorted, so that the sum is the same whatever came first
    entropy = -sum(n / total * math.log(n / total) for n in sorted(counts.values()))
    return {
        "distinct": len(counts),
        "mentions": total,
        "entropy": abs(entropy),
        "effective": math.exp(entropy) if total else 0.0,
    }


def _stated(prompt: Prompt) -> _Read:
    objects = [(each.name, each.count, each.color) for each in prompt.include]
    related = [(i, each.position) for i, each in enumerate(prompt.include) if each.position is not None]
    return [*objects], [(i, relation, other) for i, (relation, other) in related]


def _read(text: str) -> _Read:
    words: list[str] = _WORD.findall(text.lower())
    objects: list[tuple[str, int | None, str | None]] = []
    relations: list[tuple[int, str, int]] = []
    start = end = 0  # of the words that may speak of the next object
    while start < len(words):
        name, length, is_plural = _object_at(words, start)
        if name is None:
            start += 1
            continue
        before = words[max(end, start - _BEFORE) : start]
        color = next((word for word in reversed(before) if word in COLORS), None)
        number = next((_number(word) for word in reversed(before) if _number(word)), None)
        side = next((_SIDES[word] for word in words[end:start] if word in _SIDES), None)
        if objects and side is not None:
            relations.append((len(objects) - 1, side, len(objects)))
        # "a" of "a herd of cows" counts no cow
        objects.append((name, None if is_plural and number == 1 else number, color))
        start = end = start + length
    return objects, relations


def _object_at(words: list[str], start: int) -> tuple[str | None, int, bool]:
    """(Object or None, its number of words, whether a plural) at a place, the longest name first."""
    known = _names()
    for length in range(_LONGEST, 0, -1):
        found = known.get(" ".join(words[start : start + length]))
        # an orange cat is no orange: a colour is an object only where no word follows that it may colour
        if found is not None and not (found[0] in COLORS and _colors_what_follows(words, start)):
            return found[0], length, found[1]
    return None, 0, False


def _colors_what_follows(words: list[str], start: int) -> bool:
    known = _names()
    return (
        any(" ".join(words[start + 1 : start + 1 + length]) in known for length in range(1, _LONGEST + 1))
        and words[start] in COLORS
    )


def _number(word: str) -> int | None:
    return int(word) if word.isascii() and word.isdigit() and len(word) < 4 else _NUMBERS.get(word)


@functools.cache
def _names() -> dict[str, tuple[str, bool]]:
    """Object and whether a plural, by what it is called."""
    known = {name: (name, False) for name in OBJECTS}
    known |= {f"{name}s": (name, True) for name in OBJECTS if name not in _NO_PLURAL}
    known |= {word: (name, True) for word, name in _PLURALS.items()}
    known |= {word: (name, False) for word, name in _SAME_THING.items()}
    return known | {f"{word}s": (name, True) for word, name in _SAME_THING.items()}
