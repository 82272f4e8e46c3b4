"""Pictures whose content is known: photographs on plain grounds for detectors, balls for judging colours."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from lightgen.core.prompt import COLORS, Prompt, Requirement
from lightgen.ports.nano.world import COLORS as RGB
from lightgen.ports.protocols import Detection

SIDE = 512
BALL = "sports ball"
_FOLDER = Path(__file__).parents[1] / "weights" / "known"
# What each photograph shows, with boxes in its own pixels. Origin and licences: README.md beside them.
_SHOWN = {
    "cat": (("cat", (0, 0, 318, 238)),),
    "cup": (("cup", (82, 12, 256, 226)), ("spoon", (192, 48, 266, 237))),
    "person": (("person", (6, 5, 224, 320)),),
}
_GROUNDS = ((201, 204, 208), (222, 214, 200), (150, 168, 158), (172, 180, 204))

# A photograph's name, its width in the picture, and where its top left corner is.
_Place = tuple[str, int, tuple[int, int]]
_ALONE = (320, (96, 120))
_LEFT, _RIGHT = (224, (20, 150)), (224, (268, 150))
_TOP, _BOTTOM = (224, (144, 20)), (224, (144, 286))
_THIRDS = ((150, (11, 190)), (150, (181, 60)), (150, (351, 250)))


@dataclass(frozen=True)
class KnownPicture:
    """A picture, what it was asked to show, and whether it does.

    Attributes:
        image: uint8 [512, 512, 3].
        prompt: in GenEval's schema.
        right: whether the picture shows what the prompt asks for.
        kind: what is wrong with it: "missing", "swapped", "too many", "too few", "another class" or
            "empty"; "right" for a right one.
        objects: what is surely there, with boxes.
    """

    image: np.ndarray
    prompt: Prompt
    right: bool
    kind: str
    objects: tuple[Detection, ...]


@dataclass(frozen=True)
class KnownColor:
    """A ball of one colour.

    Attributes:
        image: uint8 [256, 256, 3].
        ball: its class, box and mask.
        color: one of COLORS.
    """

    image: np.ndarray
    ball: Detection
    color: str


def known_pictures() -> list[KnownPicture]:
    """The pictures, right and wrong ones of the tasks without colours; the same in every call."""
    found = []
    for number, (kind, prompt, places) in enumerate(_scenes()):
        image, objects = compose(places, _GROUNDS[number % len(_GROUNDS)])
        found.append(KnownPicture(image, prompt, kind == "right", kind, objects))
    return found


def compose(
    places: Sequence[_Place], ground: tuple[int, int, int]
) -> tuple[np.ndarray, tuple[Detection, ...]]:
    """Picture uint8 [512, 512, 3] of photographs on a plain ground, and what it shows.

    Args:
        places: name of each photograph, width in pixels, and (x, y) of its top left corner.
        ground: its colour.
    """
    picture = Image.new("RGB", (SIDE, SIDE), ground)
    objects = []
    for name, width, (x, y) in places:
        with Image.open(_FOLDER / f"{name}.jpg") as photo:
            scale = width / photo.width
            size = (width, round(photo.height * scale))
            picture.paste(photo.convert("RGB").resize(size, Image.Resampling.BICUBIC), (x, y))
        for label, (x0, y0, x1, y1) in _SHOWN[name]:
            box = (x + x0 * scale, y + y0 * scale, x + x1 * scale, y + y1 * scale)
            objects.append(Detection(label, 1.0, box))
    return np.asarray(picture), tuple(objects)


def known_colors() -> list[KnownColor]:
    """A shaded ball of each colour, in the order of COLORS, on a grey ground."""
    return [_ball(color, number) for number, color in enumerate(COLORS)]


def _scenes() -> list[tuple[str, Prompt, list[_Place]]]:
    """Kind, prompt and places of each picture."""
    beside = [("cat", *_LEFT), ("cup", *_RIGHT)]
    across = [("cup", *_LEFT), ("cat", *_RIGHT)]
    upright = [("cup", *_TOP), ("cat", *_BOTTOM)]
    turned = [("cat", *_TOP), ("cup", *_BOTTOM)]
    people = [("person", 200, (28, 115)), ("cup", *_RIGHT)]
    two = [("cat", *_LEFT), ("cat", *_RIGHT)]
    three = [("cat", *place) for place in _THIRDS]
    cup_above_cat = _placed("cup", "above", "cat")
    cat_left_of_cup = _placed("cat", "left of", "cup")
    return [
        ("right", _one("cat"), [("cat", *_ALONE)]),
        ("right", _one("cup"), [("cup", *_ALONE)]),
        ("right", _one("person"), [("person", 300, (106, 45))]),
        ("right", _both("cat", "cup"), beside),
        ("right", _both("person", "cup"), people),
        ("right", _counted("cat", 2), two),
        ("right", _counted("cat", 3), three),
        ("right", cat_left_of_cup, beside),
        ("right", _placed("cat", "right of", "cup"), across),
        ("right", cup_above_cat, upright),
        ("right", _placed("cup", "below", "cat"), turned),
        ("right", _placed("cup", "right of", "person"), people),
        ("empty", _one("cat"), []),
        ("another class", _one("dog"), [("cat", *_ALONE)]),
        ("another class", _one("cup"), [("person", 300, (106, 45))]),
        ("another class", _one("person"), [("cup", *_ALONE)]),
        ("missing", _both("cat", "cup"), [("cat", *_ALONE)]),
        ("missing", _both("person", "cup"), [("cup", *_RIGHT)]),
        ("too few", _counted("cat", 2), [("cat", *_ALONE)]),
        ("too few", _counted("cat", 3), two),
        ("too many", _counted("cat", 2), three),
        ("swapped", cat_left_of_cup, across),
        ("swapped", _placed("cat", "right of", "cup"), beside),
        ("swapped", cup_above_cat, turned),
        ("swapped", _placed("cup", "below", "cat"), upright),
        ("missing", cat_left_of_cup, [("cat", *_LEFT)]),
    ]


def _one(name: str) -> Prompt:
    return Prompt(prompt=f"a photo of a {name}", tag="single_object", include=(Requirement(name=name),))


def _both(first: str, second: str) -> Prompt:
    return Prompt(
        prompt=f"a photo of a {first} and a {second}",
        tag="two_object",
        include=(Requirement(name=first), Requirement(name=second)),
    )


def _counted(name: str, count: int) -> Prompt:
    return Prompt(
        prompt=f"a photo of {('zero', 'one', 'two', 'three')[count]} {name}s",
        tag="counting",
        include=(Requirement(name=name, count=count),),
        exclude=(Requirement(name=name, count=count + 1),),
    )


def _placed(name: str, relation: str, other: str) -> Prompt:
    return Prompt(
        prompt=f"a photo of a {name} {relation} a {other}",
        tag="position",
        include=(Requirement(name=other), Requirement(name=name, position=(relation, 0))),
    )


def _ball(color: str, number: int) -> KnownColor:
    """A ball lit from the upper left: dull light by the angle, a small shine, edges smoothed."""
    side, fine = 256, 2
    radius, center = 76.0 + 3 * (number % 4), (104.0 + 5 * number, 140.0 - 3 * number)
    steps = (np.arange(side * fine) + 0.5) / fine
    x, y = (steps[None, :] - center[0]) / radius, (steps[:, None] - center[1]) / radius
    inside = x**2 + y**2 < 1
    z = np.sqrt(np.clip(1 - x**2 - y**2, 0, 1))
    light = np.array([-0.45, -0.6, 0.66]) / np.linalg.norm([-0.45, -0.6, 0.66])
    facing = np.clip(light[0] * x + light[1] * y + light[2] * z, 0, 1)
    shine = 0.35 * np.clip(2 * facing * z - light[2], 0, 1) ** 40  # of the light's image, seen from the front
    lit = (0.68 + 0.32 * facing)[..., None] * np.array(RGB[color], np.float64)
    lit = lit + shine[..., None] * (255 - lit)
    drawn = np.where(inside[..., None], lit, 168.0)

    def coarse(values: np.ndarray) -> np.ndarray:
        return values.reshape(side, fine, side, fine, -1).mean((1, 3))

    image, mask = np.rint(coarse(drawn)).astype(np.uint8), coarse(inside)[..., 0] > 0.5
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    box = (float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1))
    return KnownColor(image, Detection(BALL, 1.0, box, mask), color)
