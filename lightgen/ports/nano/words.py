"""The words of the nano world's language: tables for saying and for understanding."""

from lightgen.ports.nano.world import NUMBERS

PLAIN_OPENING = "a photo of"
# "" begins with the objects; "there" becomes "there is" or "there are".
OPENINGS = {
    "flat": (PLAIN_OPENING, "a picture of", "an image of", "there", ""),
    "sketch": ("a pencil sketch of", "a sketch of", "a pencil drawing of"),
    "pixel": ("a pixel art picture of", "pixel art of", "a pixel art image of"),
    "night": (PLAIN_OPENING, "a picture of", "an image of", "there", ""),
}
ENDINGS = {"flat": "", "sketch": "", "pixel": "", "night": "at night"}
SCENERY = {
    "grass": ("on green grass", "on the grass", "in a green field", "on green grass under a blue sky"),
    "beach": ("on a sandy beach", "on the beach", "on the sand by the sea", "at the beach under a blue sky"),
    "snow": ("in a snowy field", "in the snow", "in the snow under a blue sky"),
    "stars": ("under a starry sky", "in a starry sky"),
    "room": ("in a room", "in a room with a wooden floor"),
}
# The first wording of each is GenEval's.
RELATION_PHRASES = {
    "left of": ("left of", "to the left of", "on the left of"),
    "right of": ("right of", "to the right of", "on the right of"),
    "above": ("above", "over"),
    "below": ("below", "under"),
}
TOGETHER = ("and", "and", "next to", "with")

# What words of a text mean where they stand outside the names of objects; the first hit decides.
BACKGROUND_WORDS = {
    "snow": ("snow", "snowy", "winter", "ice"),
    "stars": ("starry", "stars", "space"),
    "beach": ("beach", "sandy", "sand", "sea", "ocean", "shore"),
    "room": ("room", "floor", "wall", "indoors", "inside", "kitchen"),
    "grass": ("grass", "field", "meadow", "park", "lawn", "garden", "sky", "outdoors"),
}
STYLE_WORDS = {
    "pixel": ("pixel", "pixelated"),
    "sketch": ("sketch", "pencil", "drawing", "sketched"),
    "night": ("night", "midnight"),
}
RELATION_WORDS = {
    "left": "left of",
    "right": "right of",
    "above": "above",
    "over": "above",
    "top": "above",
    "atop": "above",
    "below": "below",
    "under": "below",
    "beneath": "below",
    "underneath": "below",
}
OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
NUMBER_WORDS = {
    **{word: number for number, word in NUMBERS.items()},
    "couple": 2,
    "pair": 2,
    "five": 5,
    "six": 6,
    "seven": 7,
    "eight": 8,
    "nine": 9,
    "ten": 10,
}
# Words that end the run of adjectives before an object's name.
BREAKS = frozenset(
    (
        *(
            "a",
            "an",
            "the",
            ",",
            "and",
            "or",
            "with",
            "is",
            "are",
            "next",
            "near",
            "beside",
            "of",
            "to",
            "at",
        ),
        *("by", "in", "on", *RELATION_WORDS),
    )
)
ALIASES = {
    "man": "person",
    "woman": "person",
    "bike": "bicycle",
    "motorbike": "motorcycle",
    "plane": "airplane",
    "aeroplane": "airplane",
    "sailboat": "boat",
    "ball": "sports ball",
    "football": "sports ball",
    "racket": "tennis racket",
    "wineglass": "wine glass",
    "sofa": "couch",
    "plant": "potted plant",
    "television": "tv",
    "mouse": "computer mouse",
    "keyboard": "computer keyboard",
    "phone": "cell phone",
    "cellphone": "cell phone",
    "teddy": "teddy bear",
    "doughnut": "donut",
    "hotdog": "hot dog",
    "ski": "skis",
    "necktie": "tie",
}
ALIAS_PLURALS = {"men": "person", "women": "person", "mice": "computer mouse"}
