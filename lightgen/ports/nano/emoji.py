"""The emoji teacher: draws scenes from text, with exact ground truth and errors on request."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from PIL import Image, ImageFilter

from lightgen.core.draws import numpy_draws
from lightgen.core.errors import UserError
from lightgen.ports.nano.backdrop import apply_style, darken_backdrop, draw_backdrop
from lightgen.ports.nano.font import find_font
from lightgen.ports.nano.language import parse
from lightgen.ports.nano.layout import place
from lightgen.ports.nano.sprites import SpriteCache, emoji_table, encode_mask, mean_color
from lightgen.ports.nano.world import CLASSES, COLORS, MAX_COUNT, RELATIONS, Scene

MIN_SIDE, MAX_SIDE = 64, 512
_OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
_SPRITES = SpriteCache()


@dataclass(frozen=True, kw_only=True)
class ErrorKnob:
    """Probability of each kind of error where the prompt leaves room for it.

    A count can only be wrong where more than one is asked for, since GenEval's "a dog" means at least one.
    """

    wrong_count: float = 0.0
    wrong_place: float = 0.0
    wrong_color: float = 0.0
    wrong_class: float = 0.0
    blur: float = 0.0


@dataclass(frozen=True, kw_only=True)
class EmojiTeacherConfig:
    """How the teacher draws.

    Attributes:
        errors: how often it draws something else than asked.
        mirror: probability of a mirrored glyph.
        rotation_degrees: largest turn to either side.
        rotation_steps: number of different turns, an odd number.
        alternatives: probability of another emoji of the class than the main one.
        gradient: share of gradients among backgrounds that the text leaves open; the rest is plain.
    """

    errors: ErrorKnob = field(default_factory=ErrorKnob)
    mirror: float = 0.0
    rotation_degrees: float = 8.0
    rotation_steps: int = 5
    alternatives: float = 0.0
    gradient: float = 0.3


@dataclass(frozen=True, kw_only=True)
class Rendered:
    """A picture and its truth.

    Attributes:
        image: uint8 [H, W, 3].
        objects: a record each: class, color (or None), box [x0, y0, x1, y1] in px, mask (see `encode_mask`).
        errors: the kinds of error that were made.
    """

    image: np.ndarray
    objects: list[dict[str, Any]]
    errors: list[str]


@dataclass(frozen=True)
class _Item:
    """One object to draw: what it is and how it is turned."""

    name: str
    color: str | None
    degrees: float
    mirror: bool
    variant: int


class EmojiTeacher:
    """An image generator for the nano world.

    Raises:
        UserError: the emoji font is missing.
    """

    name = "emoji"

    def __init__(self, config: EmojiTeacherConfig | None = None) -> None:
        self.config = config or EmojiTeacherConfig()
        find_font()

    def generate(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        height: int,
        width: int,
        source: np.ndarray | None = None,
        mask: np.ndarray | None = None,
    ) -> np.ndarray:
        """Pictures [B, height, width, 3] uint8, each from its own prompt and seed alone.

        Raises:
            UserError: see `draw`; or a source or mask is given, since this teacher draws from text only.
        """
        if source is not None or mask is not None:
            raise UserError("emoji teacher: got a source or mask to edit, allowed: text prompts only")
        assert len(prompts) == len(seeds), (len(prompts), len(seeds))
        images = np.empty((len(prompts), height, width, 3), np.uint8)
        for image, prompt, seed in zip(images, prompts, seeds, strict=True):
            image[...] = self._compose(prompt, seed, height, width)[0]
        return images

    def draw(self, prompt: str, seed: int, height: int, width: int) -> Rendered:
        """Picture of the prompt with its truth.

        Raises:
            UserError: the size is outside 64-512 px, or the text names no known class.
        """
        image, placed, errors = self._compose(prompt, seed, height, width)
        objects = []
        for item, x, y, mask in placed:
            h, w = mask.shape
            full = np.zeros((height, width), bool)
            full[y : y + h, x : x + w] = mask
            box = [x, y, x + w, y + h]
            objects.append({"class": item.name, "color": item.color, "box": box, "mask": encode_mask(full)})
        return Rendered(image=image, objects=objects, errors=errors)

    def _compose(
        self, prompt: str, seed: int, height: int, width: int
    ) -> tuple[np.ndarray, list[tuple[_Item, int, int, np.ndarray]], list[str]]:
        for side in (height, width):
            if not MIN_SIDE <= side <= MAX_SIDE:
                size = f"{width}x{height} px"
                raise UserError(f"emoji teacher: size {size}, allowed: {MIN_SIDE} to {MAX_SIDE} px a side")
        random = numpy_draws(seed, f"emoji/{prompt}")
        scene, errors = _misread(parse(prompt), self.config.errors, random)
        items = self._items(scene, random)
        avoid = [mean_color(group.name, group.color) for group in scene.objects]
        image = draw_backdrop(scene.background, height, width, self.config.gradient, avoid, random)
        if scene.style == "night":
            image = darken_backdrop(image)

        def measure(index: int, size: int) -> tuple[int, int]:
            item = items[index]
            return _SPRITES.extent(item.name, size, item.degrees, item.mirror, item.variant)

        counts = [group.count for group in scene.objects]
        spots = place(counts, scene.relation, height, width, random, measure)
        placed = []
        for item, spot in zip(items, spots, strict=True):
            shape = (spot.size, item.degrees, item.mirror, item.variant)
            sprite = _SPRITES.sprite(item.name, item.color, *shape)
            h, w = sprite.mask.shape
            window = image[spot.y : spot.y + h, spot.x : spot.x + w]
            window[...] = sprite.rgb + window * sprite.clear
            placed.append((item, spot.x, spot.y, sprite.mask))
        image = apply_style(image, scene.style)
        if "blur" in errors:
            radius = min(height, width) * float(random.uniform(0.025, 0.045))
            image = np.array(Image.fromarray(image).filter(ImageFilter.GaussianBlur(radius)))
        return image, placed, errors

    def _items(self, scene: Scene, random: np.random.Generator) -> list[_Item]:
        config = self.config
        half = config.rotation_steps // 2
        items = []
        for group in scene.objects:
            others = len(emoji_table()[group.name]) - 1
            for _ in range(group.count):
                step = int(random.integers(-half, half + 1))
                mirror = bool(random.random() < config.mirror)
                other = bool(random.random() < config.alternatives) and others > 0
                variant = 1 + int(random.integers(others)) if other else 0
                degrees = config.rotation_degrees * step / half if half else 0.0
                items.append(_Item(group.name, group.color, degrees, mirror, variant))
        return items


def _misread(scene: Scene, knob: ErrorKnob, random: np.random.Generator) -> tuple[Scene, list[str]]:
    """The scene as a teacher with these error rates takes it, and the errors made."""
    if knob == ErrorKnob():
        return scene, []
    errors: list[str] = []
    objects = list(scene.objects)
    relation = scene.relation
    # Every draw is made whether it is used or not, so that one rate does not change another kind's errors.
    count_draw, place_draw, color_draw, class_draw, blur_draw = random.random(5)
    picks = random.random((4, 2))
    many = [i for i, group in enumerate(objects) if group.count > 1]
    if many and count_draw < knob.wrong_count:
        i = many[int(picks[0, 0] * len(many))]
        others = [n for n in range(1, MAX_COUNT + 1) if n != objects[i].count]
        objects[i] = replace(objects[i], count=others[int(picks[0, 1] * len(others))])
        errors.append("wrong_count")
    if relation is not None and place_draw < knob.wrong_place:
        others = [r for r in RELATIONS if r not in (relation, _OPPOSITE[relation])]
        relation = _OPPOSITE[relation] if picks[1, 0] < 0.5 else others[int(picks[1, 1] * len(others))]
        errors.append("wrong_place")
    colored = [i for i, group in enumerate(objects) if group.color is not None]
    if colored and color_draw < knob.wrong_color:
        i = colored[int(picks[2, 0] * len(colored))]
        others = [color for color in COLORS if color != objects[i].color]
        objects[i] = replace(objects[i], color=others[int(picks[2, 1] * len(others))])
        errors.append("wrong_color")
    if class_draw < knob.wrong_class:
        i = int(picks[3, 0] * len(objects))
        asked = {group.name for group in scene.objects}
        others = [name for name in CLASSES if name not in asked]
        objects[i] = replace(objects[i], name=others[int(picks[3, 1] * len(others))])
        errors.append("wrong_class")
    if blur_draw < knob.blur:
        errors.append("blur")
    return replace(scene, objects=tuple(objects), relation=relation), errors
