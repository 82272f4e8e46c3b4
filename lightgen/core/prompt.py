"""Prompts, with the optional fields of GenEval's schema that say what a right picture must show."""

from dataclasses import dataclass
from typing import Any

from lightgen.core.errors import UserError

TAGS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
RELATIONS = ("left of", "right of", "above", "below")


@dataclass(frozen=True, kw_only=True)
class Requirement:
    """Objects that a picture must (include) or must not (exclude) show.

    Attributes:
        name: class of the objects.
        count: include: at least this many; exclude: not this many or more. An exact number n takes
            both: include n and exclude n + 1.
        color: one of COLORS, or None for any.
        position: (relation, i): where these objects are as seen from the i-th included requirement, or None.
    """

    name: str
    count: int = 1
    color: str | None = None
    position: tuple[str, int] | None = None


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """One prompt; `tag`, `include`, `exclude` as in GenEval's metadata, empty where nothing can be checked.

    Attributes:
        source, mask: paths of an image to edit and of its mask (white is repainted), or None.
        seed: seed of the image, or None where the stage decides.
        origin: where the text comes from, as `captions.txt:12`, or None.
        original_prompt: the text that a model wrote this one from, or None.
    """

    prompt: str
    tag: str | None = None
    include: tuple[Requirement, ...] = ()
    exclude: tuple[Requirement, ...] = ()
    source: str | None = None
    mask: str | None = None
    seed: int | None = None
    origin: str | None = None
    original_prompt: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Record of this prompt under GenEval's key names, without empty fields."""
        record: dict[str, Any] = {"prompt": self.prompt}
        if self.tag is not None:
            record["tag"] = self.tag
        for key, requirements in (("include", self.include), ("exclude", self.exclude)):
            if requirements:
                record[key] = [_requirement_to_json(r) for r in requirements]
        for key in ("source", "mask", "seed", "origin", "original_prompt"):
            value = vars(self)[key]
            if value is not None:
                record[key] = value
        return record

    @staticmethod
    def from_json(record: Any) -> "Prompt":  # noqa: ANN401  (any JSON value may be handed in)
        """Prompt of a record; unknown keys (of other tools) are ignored.

        Raises:
            UserError: the record is not an object with a `prompt` string, or a field is out of its range.
        """
        if not isinstance(record, dict) or not isinstance(record.get("prompt"), str):
            raise UserError(
                f"prompt record: got {str(record)[:80]!r}, allowed: object with a 'prompt' string"
            )
        tag = record.get("tag")
        if tag is not None and tag not in TAGS:
            raise UserError(f"prompt record: tag {tag!r} is unknown, allowed: {', '.join(TAGS)}")
        include = _requirements(record, "include")
        for requirement in include:
            if requirement.position is not None and requirement.position[1] >= len(include):
                target = requirement.position[1]
                raise UserError(f"prompt record: position refers to object {target} of {len(include)}")
        for key in ("source", "mask"):
            if not isinstance(record.get(key), str | None):
                raise UserError(f"prompt record: {key} {str(record[key])[:80]!r}, allowed: a path as text")
        # names that strangers' records may use for something else: only a text is taken
        origin, original = (
            value if isinstance(value := record.get(key), str) else None
            for key in ("origin", "original_prompt")
        )
        seed = record.get("seed")
        if not isinstance(seed, int | None) or isinstance(seed, bool):
            raise UserError(f"prompt record: seed {str(seed)[:80]!r}, allowed: a whole number")
        return Prompt(
            prompt=record["prompt"],
            tag=tag,
            include=include,
            exclude=_requirements(record, "exclude"),
            source=record.get("source"),
            mask=record.get("mask"),
            seed=seed,
            origin=origin,
            original_prompt=original,
        )


def _requirements(record: dict[str, Any], key: str) -> tuple[Requirement, ...]:
    listed = record.get(key)
    if listed is None:
        return ()
    if not isinstance(listed, list | tuple):
        raise UserError(f"prompt record: {key} {str(listed)[:80]!r}, allowed: a list of objects")
    return tuple(_requirement_from_json(each) for each in listed)


def _requirement_to_json(requirement: Requirement) -> dict[str, Any]:
    record: dict[str, Any] = {"class": requirement.name, "count": requirement.count}
    if requirement.color is not None:
        record["color"] = requirement.color
    if requirement.position is not None:
        record["position"] = list(requirement.position)
    return record


def _requirement_from_json(record: Any) -> Requirement:  # noqa: ANN401
    if not isinstance(record, dict) or not isinstance(record.get("class"), str):
        raise UserError(f"prompt record: got {str(record)[:80]!r}, allowed: object with a 'class' string")
    count, color, position = record.get("count", 1), record.get("color"), record.get("position")
    if not isinstance(count, int) or isinstance(count, bool) or count < 1:
        raise UserError(f"prompt record: count {count!r} of {record['class']!r}, allowed: 1 or more")
    if color is not None and color not in COLORS:
        raise UserError(f"prompt record: color {color!r} is unknown, allowed: {', '.join(COLORS)}")
    if position is not None:
        is_pair = isinstance(position, list | tuple) and len(position) == 2 and type(position[1]) is int
        if not is_pair or position[0] not in RELATIONS or position[1] < 0:
            allowed = f"[{' | '.join(RELATIONS)}, index]"
            raise UserError(f"prompt record: position {str(position)[:80]!r}, allowed: {allowed}")
        position = (position[0], position[1])
    return Requirement(name=record["class"], count=count, color=color, position=position)
