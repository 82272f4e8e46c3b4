"""What a caption of the nano language says of each object that it names, and at which words."""

import re
from dataclasses import dataclass

from lightgen.ports.nano.language import match_name, parse
from lightgen.ports.nano.words import OPPOSITE
from lightgen.ports.nano.world import CLASSES, COLORS, NUMBERS, RELATIONS, Scene

NOTHING = "none"
# What is said of an object, and all that can be said. A role is where it is as seen from the other object.
KINDS: dict[str, tuple[str, ...]] = {
    "class": CLASSES,
    "color": (NOTHING, *COLORS),
    "count": tuple(NUMBERS.values()),
    "role": (NOTHING, *RELATIONS),
}


@dataclass(frozen=True)
class Reading:
    """One object of a caption.

    Attributes:
        start, end: its name is the words `start` to before `end`, as `split_words` cuts them.
        labels: by kind, the place of what is said in `KINDS`.
    """

    start: int
    end: int
    labels: dict[str, int]


def split_words(text: str) -> list[str]:
    """Words and runs of other signs of a text, lowercase, each a token of the nano text encoder."""
    return re.findall(r"\w+|[^\w\s]+", text.lower())


def read(text: str) -> tuple[Reading, ...] | None:
    """Objects of a text in its order, by the text alone; None where the parser finds other names in it.

    Raises:
        UserError: see `parse`.
    """
    scene, found = parse(text), _names(split_words(text))
    if [name for name, _, _ in found] != [group.name for group in scene.objects]:
        return None
    return tuple(Reading(start, end, _labels(scene, number)) for number, (_, start, end) in enumerate(found))


def _names(words: list[str]) -> list[tuple[str, int, int]]:
    """(Class, first word, word after the last) of each name, by the parser's rules."""
    found, i = [], 0
    while i < len(words):
        match = match_name(words, i)
        if match is None:
            i += 1
            continue
        found.append((match[0], i, match[2]))
        i = match[2]
    return found


def _labels(scene: Scene, number: int) -> dict[str, int]:
    """Labels of one object of a scene."""
    group, role = scene.objects[number], NOTHING
    if scene.relation is not None:
        role = scene.relation if number == 0 else OPPOSITE[scene.relation]
    said = {
        "class": group.name,
        "color": group.color or NOTHING,
        "count": NUMBERS[group.count],
        "role": role,
    }
    return {kind: KINDS[kind].index(value) for kind, value in said.items()}
