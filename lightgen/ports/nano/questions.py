"""Compositional prompts of the nano world with the questions that judge their pictures, after GenEval 2.

An atom is a class, a number above one, a colour, or a relation. As in GenEval 2, the number of a single
object is asked for too, and is no atom. A score on these prompts is nano-GenEval2, never GenEval 2.

Source of the templates: arXiv 2512.16853; facebookresearch/GenEval2:README.md @c088ab7.
"""

from functools import cache
from itertools import product

import numpy as np

from lightgen.core.draws import numpy_draws
from lightgen.core.errors import UserError
from lightgen.core.questions import Question, QuestionedPrompt
from lightgen.ports.nano.language import describe_plainly, parse
from lightgen.ports.nano.split import held_out, is_held_out, relation_combination
from lightgen.ports.nano.world import (
    CLASSES,
    MAX_OBJECTS,
    NUMBERS,
    PLURALS,
    RELATIONS,
    UNCOLORED,
    Scene,
    SceneObject,
)

MIN_ATOMS, MAX_ATOMS = 3, 10
_MAX_GROUPS = 4
_MAX_TRIES = 10_000

# Which groups are counted and which coloured, and whether the first stands in a relation to the second.
_Shape = tuple[tuple[tuple[bool, ...], ...], bool]


def nano_question_prompts(num: int, seed: int) -> list[QuestionedPrompt]:
    """Prompts of 3 to 10 atoms by turns, all different; the first of them are the same for any `num`.

    All counts and colours, and the pair or relation of each group with the next, are held out from training
    (see `split`); of more than two groups, other pairs may have been seen.

    Raises:
        UserError: there are not so many.
    """
    found: dict[str, QuestionedPrompt] = {}
    for index in range(num):
        random = numpy_draws(seed, "nano questions", index)
        for _ in range(_MAX_TRIES):
            scene = _draw_scene(MIN_ATOMS + index % (MAX_ATOMS - MIN_ATOMS + 1), random)
            if scene is not None and describe_plainly(scene) not in found:
                break
        else:
            raise UserError(f"nano questions: got {num} prompts, allowed: about {index} with seed {seed}")
        found[describe_plainly(scene)] = questions_of(scene)
    return list(found.values())


def questions_of(scene: Scene) -> QuestionedPrompt:
    """The scene's plain caption with a question for each thing that it asks for."""
    questions: list[Question] = []
    atoms = int(scene.relation is not None)
    for place, group in enumerate(scene.objects):
        plural, the = PLURALS[group.name], _the(group)
        atoms += 1 + (group.count > 1) + (group.color is not None)
        questions.append(_question(f"How many {plural} are in the image?", NUMBERS[group.count], "count"))
        if group.color is not None:
            questions.append(_question(f"{the} {group.color}?", "Yes", "attribute"))
        questions.append(_question(f"Are there any {plural} in the image?", "Yes", "object"))
        if scene.relation is not None and place == 0:
            other = _the(scene.objects[1]).split(" ", 1)[1]
            questions.append(_question(f"{the} {scene.relation} {other}?", "Yes", "position"))
    return QuestionedPrompt(prompt=describe_plainly(scene), questions=tuple(questions), atom_count=atoms)


def _question(text: str, answer: str, skill: str) -> Question:
    return Question(text=text, answer=answer, skill=skill)


def _the(group: SceneObject) -> str:
    return f"Is the {group.name}" if group.count == 1 else f"Are the {PLURALS[group.name]}"


@cache
def _shapes(atoms: int) -> tuple[tuple[_Shape, ...], ...]:
    """Shapes of a number of atoms, by how many groups they have and whether these are related."""
    kinds = [(groups, False) for groups in range(1, _MAX_GROUPS + 1)] + [(2, True)]
    by_kind = [
        tuple(
            (flags, related)
            for flags in product(product((False, True), repeat=2), repeat=groups)
            if groups + sum(map(sum, flags)) + related == atoms
        )
        for groups, related in kinds
    ]
    return tuple(shapes for shapes in by_kind if shapes)


def _draw_scene(atoms: int, random: np.random.Generator) -> Scene | None:
    """A scene of so many atoms, all of them held out, or None where a draw found none."""
    kinds = _shapes(atoms)
    shapes = kinds[int(random.integers(len(kinds)))]
    flags, related = shapes[int(random.integers(len(shapes)))]
    relation = RELATIONS[int(random.integers(len(RELATIONS)))] if related else None
    names: list[str] = []
    groups: list[SceneObject] = []
    for counted, colored in flags:
        fitting = [
            name
            for name in CLASSES
            if name not in names
            and (not counted or name in _held_counts())
            and (not colored or name not in UNCOLORED)
            and (not names or _is_new(names[-1], relation, name))
        ]
        if not fitting:
            return None
        names.append(fitting[int(random.integers(len(fitting)))])
        colors = _held_colors().get(names[-1], ())
        groups.append(
            SceneObject(
                name=names[-1],
                count=_held_counts()[names[-1]] if counted else 1,
                color=colors[int(random.integers(len(colors)))] if colored else None,
            )
        )
    scene = Scene(objects=tuple(groups), relation=relation)
    # an orange before another object would be read as its colour, for one
    return scene if scene.total <= MAX_OBJECTS and parse(describe_plainly(scene)) == scene else None


def _is_new(name: str, relation: str | None, other: str) -> bool:
    """Whether two groups side by side, in that relation if there is one, are held out."""
    if relation is None:
        return is_held_out(("pair", *sorted((name, other))))
    return is_held_out(relation_combination(name, relation, other))


@cache
def _held_counts() -> dict[str, int]:
    return {name: int(count) for _, name, count in held_out("count")}


@cache
def _held_colors() -> dict[str, tuple[str, ...]]:
    found: dict[str, tuple[str, ...]] = {}
    for _, color, name in sorted(held_out("color")):
        found[name] = (*found.get(name, ()), color)
    return found
