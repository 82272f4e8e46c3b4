"""The answerer of the nano world: questions on its pictures, by what the nano detector finds in them.

Probabilities follow from the detections of a class, with scores s_i from MIN_SCORE up, as if each were a
separate yes or no:

- any at all: 1 - product of (1 - s_i);
- a number: the Poisson-binomial distribution of the s_i, that is of a sum of independent draws;
- a colour: (any at all) times the mean of the colour's probability over the detections, weighted by s_i;
- a relation of class A to class B: (any A) times (any B), where the mean box of A (weighted by s_i) stands in
  the relation to that of B by GenEval's rule, and 0 where it does not; times the share of the pairs of an A
  and a B, weighted by their scores, whose centres lie on the right side of each other. For one A and one B
  this is s_A s_B times the rule itself.

`No` takes the rest of `yes`. An answer of another kind, as a colour where a number is asked for, has
probability 0.
"""

import math
import re
from collections.abc import Callable, Sequence
from functools import cache, lru_cache

import numpy as np

from lightgen.core.errors import UserError
from lightgen.core.questions import answer_key, count_of
from lightgen.ports.nano.detector import NanoDetector
from lightgen.ports.nano.looks import MIN_SCORE, find_objects
from lightgen.ports.nano.words import ALIAS_PLURALS, ALIASES, RELATION_PHRASES
from lightgen.ports.nano.world import CLASSES, COLORS, PLURALS
from lightgen.ports.protocols import Detection

VERSION = 2  # of the formulas above and of the looks; another one is another answerer
# GenEval's numbers for relations, as in `lightgen.evals.verdict`.
_MARGIN = 0.1
_MIN_DIRECTION = 0.5
_MIN_OFFSET_PX = 1e-3

UNDERSTOOD = (
    '"Are there any dogs in the image?", "Is there a dog in the image?", "How many dogs are in the image?", '
    '"Is the dog red?", "Are the dogs red?", "Is the dog left of the cat?", "Are the dogs above the cats?" '
    "of the nano world's classes, colours and relations"
)

# What is found in a picture; the probability of an answer, by its key.
_Found = Sequence[Detection]
_Answers = Callable[[_Found, str], float]


class NanoAnswerer:
    """An answerer on a detector of the nano world, which looks at each picture twice (see `looks`).

    Args:
        detector: finds the objects and names their colours.
        batch_size: most pictures per pass of the detector.
    """

    def __init__(self, detector: NanoDetector, batch_size: int = 64) -> None:
        self._detector, self._batch_size = detector, batch_size

    def answer(
        self, images: np.ndarray, questions: Sequence[str], answers: Sequence[Sequence[str]]
    ) -> list[np.ndarray]:
        """Probability float32 [A] in [0, 1] of each of A given answers, by image uint8 [H, W, 3].

        A picture that comes with several questions is looked at once.

        Raises:
            UserError: a question that is not of the nano world.
        """
        assert len(images) == len(questions) == len(answers), (len(images), len(questions), len(answers))
        read = [_read(question) for question in questions]
        places: dict[bytes, int] = {}
        which, first = [], list[int]()
        for i, image in enumerate(images):
            which.append(places.setdefault(image.tobytes(), len(places)))
            if len(places) > len(first):
                first.append(i)
        found: list[list[Detection]] = []
        for start in range(0, len(first), self._batch_size):
            found += find_objects(self._detector, images[first[start : start + self._batch_size]])
        return [
            np.array([probability(found[place], answer_key(answer)) for answer in asked], np.float32)
            for place, probability, asked in zip(which, read, answers, strict=True)
        ]


def count_distribution(scores: Sequence[float]) -> np.ndarray:
    """Probability float64 [N + 1] of each number of objects from N independent detections."""
    found = np.ones(1)
    for score in scores:
        found = np.convolve(found, [1 - score, score])
    return found


def stands(
    box: tuple[float, float, float, float], relation: str, other: tuple[float, float, float, float]
) -> bool:
    """Whether a box stands in a relation (one of RELATIONS) to the other, by GenEval's rule.

    The offset of the centres along the relation's axis, less the margin times the sum of the two sizes, must
    point the right way and make up more than half of the distance of the centres.
    Source: djghosh13/geneval:evaluation/evaluate_images.py @16f1681; the same as
    `lightgen.evals.verdict.relations`, which this room may not import.
    """
    offsets = _center(box) - _center(other)
    axis = int(relation in ("above", "below"))
    sizes = [abs(each[axis + 2] - each[axis]) for each in (box, other)]
    offset = float(offsets[axis])
    left = max(abs(offset) - _MARGIN * sum(sizes), 0.0)
    return (
        left >= _MIN_OFFSET_PX
        and _is_beside(offset, relation)
        and left / math.hypot(*offsets) > _MIN_DIRECTION
    )


def _center(box: tuple[float, float, float, float]) -> np.ndarray:
    return np.array([box[0] + box[2], box[1] + box[3]]) / 2


def _is_beside(offset: float, relation: str) -> bool:
    return offset < 0 if relation in ("left of", "above") else offset > 0


def _of(found: _Found, name: str) -> list[Detection]:
    return [each for each in found if each.label == name and each.score >= MIN_SCORE]


def _any(objects: Sequence[Detection]) -> float:
    return 1.0 - math.prod(1.0 - each.score for each in objects)


def _yes_or_no(yes: float, key: str) -> float:
    yes = min(1.0, max(0.0, yes))
    return {"yes": yes, "no": 1.0 - yes}.get(key, 0.0)


def _ask_any(name: str) -> _Answers:
    return lambda found, key: _yes_or_no(_any(_of(found, name)), key)


def _ask_count(name: str) -> _Answers:
    def answers(found: _Found, key: str) -> float:
        number = count_of(key)
        distribution = count_distribution([each.score for each in _of(found, name)])
        return float(distribution[number]) if number is not None and number < len(distribution) else 0.0

    return answers


def _ask_color(name: str, color: str) -> _Answers:
    def answers(found: _Found, key: str) -> float:
        objects = _of(found, name)
        total = sum(each.score for each in objects)
        share = sum(each.score * (each.colors or {}).get(color, 0.0) for each in objects) / (total or 1.0)
        return _yes_or_no(_any(objects) * share, key)

    return answers


def _ask_relation(name: str, relation: str, other: str) -> _Answers:
    axis = int(relation in ("above", "below"))

    def answers(found: _Found, key: str) -> float:
        both = _of(found, name), _of(found, other)
        if not all(both) or not stands(_mean_box(both[0]), relation, _mean_box(both[1])):
            return _yes_or_no(0.0, key)
        right = total = 0.0
        for one in both[0]:
            for two in both[1]:
                offset = float(_center(one.box)[axis] - _center(two.box)[axis])
                total += one.score * two.score
                right += one.score * two.score * _is_beside(offset, relation)
        return _yes_or_no(_any(both[0]) * _any(both[1]) * right / total, key)

    return answers


def _mean_box(objects: Sequence[Detection]) -> tuple[float, float, float, float]:
    weights = [each.score for each in objects]
    x0, y0, x1, y1 = np.average([each.box for each in objects], axis=0, weights=weights).tolist()
    return x0, y0, x1, y1


@cache
def _names() -> dict[str, str]:
    """Class by all ways to write it, in singular and plural; GenEval 2 adds -s to any name."""
    found = {alias + ending: name for alias, name in ALIASES.items() for ending in ("s", "")} | ALIAS_PLURALS
    for name, plural in PLURALS.items():
        found |= dict.fromkeys((name + "s", name + "es", plural), name)
    return found | {name: name for name in CLASSES}


@cache
def _grammar() -> list[tuple[re.Pattern[str], Callable[..., _Answers]]]:
    """What a question looks like, and what answers it by the names in it."""

    def either(words: Sequence[str]) -> str:
        return "(" + "|".join(sorted(map(re.escape, words), key=len, reverse=True)) + ")"

    name, color = either(list(_names())), either(list(COLORS))
    relation = either([phrase for phrases in RELATION_PHRASES.values() for phrase in phrases])
    place = r"(?: in (?:the|this) (?:image|picture|photo))?"
    questions: list[tuple[str, Callable[..., _Answers]]] = [
        (f"(?:is|are) there (?:any |an? |the |some )?{name}{place}", lambda a: _ask_any(a)),
        (f"how many {name} (?:are|is)(?: there)?{place}", lambda a: _ask_count(a)),
        (f"(?:is|are) the {name} {color}", lambda a, color: _ask_color(a, color)),
        (f"(?:is|are) the {name} {relation} the {name}", _relation_of),
    ]
    return [(re.compile(pattern), ask) for pattern, ask in questions]


def _relation_of(name: str, phrase: str, other: str) -> _Answers:
    relation = next(key for key, phrases in RELATION_PHRASES.items() if phrase in phrases)
    return _ask_relation(name, relation, other)


@lru_cache(maxsize=65536)
def _read(question: str) -> _Answers:
    """What answers a question.

    Raises:
        UserError: it is not of the nano world.
    """
    text = " ".join(question.lower().split()).removesuffix("?").strip()
    for pattern, ask in _grammar():
        match = pattern.fullmatch(text)
        if match:
            return ask(*(_names().get(each, each) for each in match.groups()))
    raise UserError(f"nano answerer: got the question {question[:100]!r}, allowed: {UNDERSTOOD}")
