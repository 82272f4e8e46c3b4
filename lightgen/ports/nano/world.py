"""The nano world: what its pictures can hold, as words and as numbers."""

from dataclasses import dataclass

from lightgen.core.prompt import COLORS as COLOR_NAMES

PLURALS = {
    "person": "people",
    "bicycle": "bicycles",
    "car": "cars",
    "motorcycle": "motorcycles",
    "airplane": "airplanes",
    "bus": "buses",
    "train": "trains",
    "truck": "trucks",
    "boat": "boats",
    "traffic light": "traffic lights",
    "stop sign": "stop signs",
    "bird": "birds",
    "cat": "cats",
    "dog": "dogs",
    "horse": "horses",
    "sheep": "sheep",
    "cow": "cows",
    "elephant": "elephants",
    "bear": "bears",
    "zebra": "zebras",
    "giraffe": "giraffes",
    "backpack": "backpacks",
    "umbrella": "umbrellas",
    "handbag": "handbags",
    "tie": "ties",
    "suitcase": "suitcases",
    "frisbee": "frisbees",
    "skis": "skis",
    "sports ball": "sports balls",
    "kite": "kites",
    "skateboard": "skateboards",
    "tennis racket": "tennis rackets",
    "bottle": "bottles",
    "wine glass": "wine glasses",
    "cup": "cups",
    "fork": "forks",
    "knife": "knives",
    "spoon": "spoons",
    "bowl": "bowls",
    "banana": "bananas",
    "apple": "apples",
    "sandwich": "sandwiches",
    "orange": "oranges",
    "broccoli": "broccolis",
    "carrot": "carrots",
    "hot dog": "hot dogs",
    "pizza": "pizzas",
    "donut": "donuts",
    "cake": "cakes",
    "chair": "chairs",
    "couch": "couches",
    "potted plant": "potted plants",
    "bed": "beds",
    "toilet": "toilets",
    "tv": "tvs",
    "laptop": "laptops",
    "computer mouse": "computer mice",
    "computer keyboard": "computer keyboards",
    "cell phone": "cell phones",
    "book": "books",
    "clock": "clocks",
    "vase": "vases",
    "scissors": "scissors",
    "teddy bear": "teddy bears",
    "toothbrush": "toothbrushes",
}
CLASSES = tuple(PLURALS)
# GenEval asks for no coloured people, so neither do the captions.
UNCOLORED = ("person",)
COLORS = {
    "red": (218, 32, 38),
    "orange": (247, 133, 18),
    "yellow": (250, 214, 24),
    "green": (44, 160, 58),
    "blue": (36, 92, 224),
    "purple": (134, 48, 178),
    "pink": (250, 138, 190),
    "brown": (124, 74, 34),
    "black": (40, 40, 44),
    "white": (244, 244, 246),
}
assert tuple(COLORS) == COLOR_NAMES
RELATIONS = ("left of", "right of", "above", "below")
NUMBERS = {1: "one", 2: "two", 3: "three", 4: "four"}
MAX_COUNT = 4
MAX_OBJECTS = 8
BACKGROUNDS = ("grass", "beach", "snow", "stars", "room")
STYLES = ("flat", "sketch", "pixel", "night")


@dataclass(frozen=True, kw_only=True)
class SceneObject:
    """A group of like objects: `count` of class `name`, all of `color` (None: as they come)."""

    name: str
    count: int = 1
    color: str | None = None


@dataclass(frozen=True, kw_only=True)
class Scene:
    """What a text asks for.

    Attributes:
        objects: groups in the order of the text.
        relation: where objects[0] is as seen from objects[1] (one of RELATIONS), or None.
        background: one of BACKGROUNDS, or None where the text leaves it open.
        style: one of STYLES.
    """

    objects: tuple[SceneObject, ...]
    relation: str | None = None
    background: str | None = None
    style: str = "flat"

    @property
    def total(self) -> int:
        """Number of single objects."""
        return sum(group.count for group in self.objects)
