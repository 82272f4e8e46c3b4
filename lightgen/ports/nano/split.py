"""Which combinations training never shows: the split of the nano world into training and test.

A combination is a tuple of words: ("count", class, number), ("color", color, class), ("pair", class, class)
of two classes in one picture, and ("relation", class, "left of" | "above", class). A held-out pair never
shares a training picture, so it holds out all relations of its two classes as well.
"""

from functools import lru_cache
from itertools import combinations as subsets
from itertools import permutations

from lightgen.core.draws import draw_key
from lightgen.ports.nano.world import CLASSES, COLORS, MAX_COUNT, UNCOLORED, Scene

Combination = tuple[str, ...]

_KEY = 20250308
_PAIRS = 0.12
_RELATIONS = 0.08
# One count of about every third class and one or two colours of every class: 12 % of either kind.
_COUNTS_OF_A_CLASS = 0.36
_SECOND_COLOR_OF_A_CLASS = 0.2


def _share(*words: str) -> float:
    """Keyed hash of the words in 0..1."""
    return draw_key(_KEY, "split/" + "/".join(words)) / 2**63


def scene_combinations(scene: Scene) -> frozenset[Combination]:
    """All combinations that a picture of the scene shows."""
    found: set[Combination] = set()
    for group in scene.objects:
        if group.count > 1:
            found.add(("count", group.name, str(group.count)))
        if group.color is not None:
            found.add(("color", group.color, group.name))
    if scene.relation is not None:
        first, second = scene.objects[0].name, scene.objects[1].name
        found.add(relation_combination(first, scene.relation, second))
    else:
        names = sorted({group.name for group in scene.objects})
        found.update(("pair", one, other) for one, other in subsets(names, 2))
    return frozenset(found)


def relation_combination(first: str, relation: str, second: str) -> Combination:
    """The combination of `first relation second`; a right of b is b left of a, a below b is b above a."""
    if relation == "right of":
        return ("relation", second, "left of", first)
    if relation == "below":
        return ("relation", second, "above", first)
    return ("relation", first, relation, second)


def is_held_out(combination: Combination) -> bool:
    """Whether the combination belongs to the test prompts alone."""
    if combination[0] == "relation" and tuple(sorted((combination[1], combination[3]))) in _held_pairs():
        return True
    return combination in held_out(combination[0])


@lru_cache(maxsize=1)
def _held_pairs() -> frozenset[tuple[str, ...]]:
    return frozenset(combination[1:] for combination in held_out("pair"))


@lru_cache(maxsize=8)
def held_out(kind: str) -> frozenset[Combination]:
    """Held-out combinations of a kind: count, color, pair, or relation (beside those of held-out pairs)."""
    if kind == "count":
        return frozenset(("count", name, str(_held_count(name))) for name in CLASSES if _held_count(name))
    if kind == "color":
        names = [name for name in CLASSES if name not in UNCOLORED]
        return frozenset(("color", color, name) for name in names for color in _held_colors(name))
    if kind == "pair":
        pairs = subsets(sorted(CLASSES), 2)
        return frozenset(("pair", *pair) for pair in pairs if _share("pair", *pair) < _PAIRS)
    assert kind == "relation", kind
    triples = ((a, relation, b) for a, b in permutations(CLASSES, 2) for relation in ("left of", "above"))
    return frozenset(("relation", *triple) for triple in triples if _share("relation", *triple) < _RELATIONS)


def _held_count(name: str) -> int:
    """The count of a class that is held out, or 0."""
    share = _share("count", name) / _COUNTS_OF_A_CLASS
    return 2 + int(share * (MAX_COUNT - 1)) if share < 1 else 0


def _held_colors(name: str) -> list[str]:
    """The one or two colours of a class that are held out."""
    ranked = sorted(COLORS, key=lambda color: _share("color", color, name))
    return ranked[: 1 + (_share("colors", name) < _SECOND_COLOR_OF_A_CLASS)]
