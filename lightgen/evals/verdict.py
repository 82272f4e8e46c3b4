"""GenEval's verdict: does a picture, known by the objects detected in it, show what its prompt asks for?

Source of the rules: arXiv 2310.11513 and djghosh13/geneval:evaluation/evaluate_images.py @16f1681.
"""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from lightgen.core.errors import UserError
from lightgen.core.prompt import Prompt, Requirement
from lightgen.ports.protocols import Detection

# Offsets below this, in pixels and after the margin is taken off, are no relation at all.
_MIN_OFFSET_PX = 1e-3
# A direction counts when it makes up more than this share of the distance between the centres.
_MIN_DIRECTION = 0.5

ColorOf = Callable[[Sequence[Detection], str], list[str]]


@dataclass(frozen=True, kw_only=True)
class VerdictConfig:
    """Numbers of the verdict; the defaults are GenEval's.

    Attributes:
        threshold: a detection counts if its score is above this.
        counting_threshold: the same for prompts tagged "counting".
        max_objects: most detections kept per class, the most confident first.
        position_margin: share of the two boxes' summed size that an offset must exceed to be a relation.
    """

    threshold: float = 0.3
    counting_threshold: float = 0.9
    max_objects: int = 16
    position_margin: float = 0.1

    def __post_init__(self) -> None:
        """Refuse numbers with which no verdict makes sense.

        Raises:
            UserError: a threshold outside [0, 1), no objects at all, or a negative margin.
        """
        for name in ("threshold", "counting_threshold"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}, allowed: from 0 up to, not including, 1")
        if self.max_objects < 1:
            raise UserError(f"max_objects is {self.max_objects}, allowed: a whole number from 1")
        if not self.position_margin >= 0:
            raise UserError(f"position_margin is {self.position_margin}, allowed: from 0")


@dataclass(frozen=True)
class Verdict:
    """Answer for one picture.

    Attributes:
        correct: whether every requirement holds.
        reason: one line per requirement that does not hold; empty for a correct picture.
        broken: the rule behind each line: "count", "color", "position", "target" or "exclude".
    """

    correct: bool
    reason: str
    broken: tuple[str, ...] = ()


def verdict(
    prompt: Prompt,
    detections: Sequence[Detection],
    size: tuple[int, int],
    color_of: ColorOf,
    config: VerdictConfig,
) -> Verdict:
    """Verdict on one picture: every `include` must hold (AND), and no `exclude` may (OR spoils the picture).

    Args:
        prompt: what was asked for.
        detections: what was found, in any order and at any confidence.
        size: (height, width) of the picture, which boxes and masks must fit.
        color_of: names the colours of detections of one class; called only where a colour is asked for.
        config: numbers of the rules.

    Raises:
        UserError: the prompt requires nothing, or places an object by one that comes no earlier.
        ValueError: a detection does not fit the picture, so the detector is broken or mis-sized.
    """
    _check_prompt(prompt)
    for detection in detections:
        check_detection(detection, size)
    objects = keep_objects(detections, confidence_threshold(prompt.tag, config), config.max_objects)
    failures: list[tuple[str, str]] = []
    groups: list[list[Detection] | None] = []
    for requirement in prompt.include:
        group = objects.get(requirement.name, [])[: requirement.count]
        failure = (
            count_failure(requirement, len(group))
            or color_failure(requirement, group, color_of)
            or position_failure(requirement, group, groups, config.position_margin)
        )
        groups.append(None if failure else group)
        if failure:
            failures.append(failure)
    for requirement in prompt.exclude:
        failure = exclude_failure(requirement, len(objects.get(requirement.name, [])))
        if failure:
            failures.append(failure)
    return Verdict(not failures, "\n".join(text for _, text in failures), tuple(rule for rule, _ in failures))


def confidence_threshold(tag: str | None, config: VerdictConfig) -> float:
    """Score that a detection must exceed: stricter when objects are counted."""
    return config.counting_threshold if tag == "counting" else config.threshold


def keep_objects(
    detections: Sequence[Detection], threshold: float, max_objects: int
) -> dict[str, list[Detection]]:
    """Detections above the threshold by class, most confident first, cut to max_objects; overlaps stay."""
    kept: dict[str, list[Detection]] = {}
    for detection in sorted(detections, key=lambda d: -d.score):
        same = kept.setdefault(detection.label, []) if detection.score > threshold else None
        if same is not None and len(same) < max_objects:
            same.append(detection)
    return kept


def count_failure(requirement: Requirement, found: int) -> tuple[str, str] | None:
    """Failure (rule, text) if fewer objects were found than asked for, or None."""
    if found >= requirement.count:
        return None
    return "count", f"expected {requirement.name}>={requirement.count}, found {found}"


def color_failure(
    requirement: Requirement, group: Sequence[Detection], color_of: ColorOf
) -> tuple[str, str] | None:
    """Failure (rule, text) if fewer than `count` objects of the group have the colour asked for, or None."""
    if requirement.color is None:
        return None
    colors = color_of(group, requirement.name)
    assert len(colors) == len(group), (colors, len(group))
    counts = Counter(colors)
    if counts[requirement.color] >= requirement.count:
        return None
    found = ", ".join(f"{count} {color}" for color, count in sorted(counts.items()))
    return "color", f"expected {requirement.color} {requirement.name}>={requirement.count}, found {found}"


def position_failure(
    requirement: Requirement,
    group: Sequence[Detection],
    groups: Sequence[list[Detection] | None],
    margin: float,
) -> tuple[str, str] | None:
    """Failure (rule, text) if any object of the group stands wrongly to any object of its target, or None.

    Args:
        requirement: names relation and target, as an index into `groups`.
        group: objects to place.
        groups: objects of the requirements before this one; None for one that does not hold.
        margin: see VerdictConfig.
    """
    if requirement.position is None:
        return None
    relation, target = requirement.position
    targets = groups[target]
    if targets is None:
        return "target", f"no target for {requirement.name} to be {relation}"
    for placed in group:
        for other in targets:
            found = relations(placed.box, other.box, margin)
            if relation not in found:
                shown = " and ".join(sorted(found)) or "no relation"
                text = f"expected {requirement.name} {relation} {other.label}, found {shown}"
                return "position", text
    return None


def exclude_failure(requirement: Requirement, found: int) -> tuple[str, str] | None:
    """Failure (rule, text) if `count` or more objects were found that must not be there, or None."""
    if found < requirement.count:
        return None
    return "exclude", f"expected {requirement.name}<{requirement.count}, found {found}"


def relations(
    box: tuple[float, float, float, float], other: tuple[float, float, float, float], margin: float
) -> frozenset[str]:
    """Relations ("left of", "right of", "above", "below") of a box to the other: none, one or two.

    Along each axis the offset of the centres is shortened by margin * (sum of the two sizes), down to zero;
    what is left counts as a direction if it exceeds half of the (unshortened) distance of the centres.
    """
    offsets = [(box[i] + box[i + 2] - other[i] - other[i + 2]) / 2 for i in (0, 1)]
    sizes = [abs(box[i + 2] - box[i]) + abs(other[i + 2] - other[i]) for i in (0, 1)]
    left = [math.copysign(max(abs(o) - margin * s, 0.0), o) for o, s in zip(offsets, sizes, strict=True)]
    if all(abs(value) < _MIN_OFFSET_PX for value in left):
        return frozenset()
    distance = math.hypot(*offsets)
    names = (("left of", "right of"), ("above", "below"))
    return frozenset(
        names[axis][value > 0] for axis, value in enumerate(left) if abs(value) / distance > _MIN_DIRECTION
    )


def own_colors(detections: Sequence[Detection], label: str) -> list[str]:
    """Most probable colour of each detection, from a detector that judges colours itself.

    Raises:
        ValueError: a detection carries no colours.
    """
    names = []
    for detection in detections:
        if not detection.colors:
            raise ValueError(f"detector gives no colours for {label!r}, so a colour classifier is needed")
        names.append(_most_probable(detection.colors))
    return names


def check_detection(detection: Detection, size: tuple[int, int]) -> None:
    """Refuse a detection that cannot come from a picture of (height, width) `size`.

    Raises:
        ValueError: a score outside [0, 1], a box that is not finite, has its corners swapped or lies outside
            the picture, or a mask of another size.
    """
    (height, width), (x0, y0, x1, y1) = size, detection.box
    if not 0 <= detection.score <= 1:
        raise ValueError(f"detector gives {detection.label!r} a score of {detection.score}, allowed: 0 to 1")
    inside = x0 <= x1 and y0 <= y1 and x1 >= 0 and y1 >= 0 and x0 <= width and y0 <= height
    if not (inside and all(math.isfinite(v) for v in detection.box)):
        raise ValueError(
            f"detector gives {detection.label!r} the box {detection.box} in a {width}x{height} picture"
        )
    if detection.mask is not None and detection.mask.shape != (height, width):
        raise ValueError(
            f"detector gives {detection.label!r} a mask of shape {detection.mask.shape}, "
            f"expected {(height, width)}"
        )


def _most_probable(colors: Mapping[str, float]) -> str:
    return max(colors, key=lambda name: colors[name])


def _check_prompt(prompt: Prompt) -> None:
    if not prompt.include and not prompt.exclude:
        raise UserError(
            f"prompt {prompt.prompt[:80]!r} has neither include nor exclude, so nothing can be judged"
        )
    for index, requirement in enumerate(prompt.include):
        if requirement.position is not None and not 0 <= requirement.position[1] < index:
            raise UserError(
                f"prompt {prompt.prompt[:80]!r}: object {index} is placed by object "
                f"{requirement.position[1]}, allowed: one that comes earlier"
            )
