"""The words of captions of the everyday world: objects and their attributes, places, styles and relations."""

from dataclasses import dataclass

# The classes of COCO under GenEval's names, and more that everybody knows, by kind.
_COCO = {
    "people": "person",
    "animals": "bird,cat,dog,horse,sheep,cow,elephant,bear,zebra,giraffe",
    "vehicles": "bicycle,car,motorcycle,airplane,bus,train,truck,boat",
    "street": "traffic light,fire hydrant,stop sign,parking meter",
    "furniture": "bench,chair,couch,bed,dining table,toilet",
    "kitchen": "bottle,wine glass,cup,fork,knife,spoon,bowl",
    "food": "banana,apple,sandwich,orange,broccoli,carrot,hot dog,pizza,donut,cake",
    "devices": "tv,laptop,computer mouse,tv remote,computer keyboard,cell phone,microwave,oven,"
    "toaster,refrigerator,hair drier",
    "sports": "frisbee,skis,snowboard,sports ball,kite,baseball bat,baseball glove,skateboard,"
    "surfboard,tennis racket",
    "wear": "backpack,umbrella,handbag,tie,suitcase",
    "household": "sink,potted plant,book,clock,vase,scissors,teddy bear,toothbrush",
}
_MORE = {
    "people": "man,woman,child,farmer,chef,dancer,firefighter,astronaut,musician,nurse,painter,fisherman",
    "animals": "rabbit,fox,deer,wolf,lion,tiger,monkey,penguin,owl,parrot,duck,goose,chicken,"
    "turtle,frog,butterfly,squirrel,hedgehog,camel,goat,pig,donkey,kangaroo,panda,koala,swan,peacock,"
    "lizard,snail,crab",
    "vehicles": "van,taxi,tractor,helicopter,sailboat,canoe,scooter,ambulance,fire engine,"
    "hot air balloon,rocket",
    "street": "mailbox,street lamp,fountain,statue,tent,windmill,lighthouse,ladder,barrel,"
    "wheelbarrow,birdhouse,snowman,tree,cactus,sunflower,rose,scarecrow,telephone booth",
    "furniture": "desk,stool,armchair,wardrobe,bookshelf,rocking chair,bathtub,cradle,nightstand",
    "kitchen": "mug,plate,teapot,kettle,frying pan,pitcher,jar,cutting board,saucepan,whisk,rolling pin",
    "food": "strawberry,lemon,pear,peach,tomato,potato,cupcake,croissant,burger,pumpkin,"
    "watermelon,pineapple,cookie,egg,cherry,mushroom,loaf of bread,mango,bell pepper,slice of cheese,"
    "ice cream cone",
    "devices": "camera,radio,speaker,lamp,fan,typewriter,printer,record player,telescope,microscope,drone",
    "sports": "basketball,helmet,golf club,trophy,canoe paddle,bowling pin,boxing glove,hockey stick,whistle",
    "wear": "hat,scarf,shoe,boot,jacket,sweater,watch,necklace,crown,sock,dress,belt,apron",
    "household": "candle,pillow,mirror,blanket,rug,basket,box,bucket,broom,key,pen,pencil,"
    "notebook,globe,hourglass,lantern,picture frame,alarm clock,watering can,sponge,comb,envelope",
    "toys": "guitar,piano,violin,drum,trumpet,toy robot,balloon,doll,rubber duck,"
    "rocking horse,music box,yo-yo",
}
_IRREGULAR = {
    "person": "people",
    "man": "men",
    "woman": "women",
    "child": "children",
    "fisherman": "fishermen",
    "snowman": "snowmen",
    "sheep": "sheep",
    "deer": "deer",
    "goose": "geese",
    "wolf": "wolves",
    "knife": "knives",
    "scarf": "scarves",
    "bookshelf": "bookshelves",
    "computer mouse": "computer mice",
    "cactus": "cacti",
    "potato": "potatoes",
    "tomato": "tomatoes",
    "mango": "mangoes",
    "loaf of bread": "loaves of bread",
    "slice of cheese": "slices of cheese",
    "hot air balloon": "hot air balloons",
}
# Counted by another word, with no other form themselves: "a pair of scissors", "two heads of broccoli".
_MEASURES = {"scissors": "pair", "skis": "pair", "broccoli": "head"}


def _list(text: str) -> tuple[str, ...]:
    return tuple(text.split(","))


@dataclass(frozen=True)
class Noun:
    """A thing to draw.

    Attributes:
        kind: one of KINDS.
        is_coco: whether it is one of COCO's 80 classes, under GenEval's name.
        measure: word that counts it (`pair` of scissors), or empty.
    """

    name: str
    plural: str
    kind: str
    is_coco: bool
    measure: str = ""


def plural_of(name: str) -> str:
    """Plural of a noun of English."""
    if name in _IRREGULAR:
        return _IRREGULAR[name]
    if name.endswith(("s", "x", "z", "ch", "sh")):
        return name + "es"
    if name.endswith("y") and name[-2] not in "aeiou":
        return name[:-1] + "ies"
    return name + "s"


def with_article(phrase: str) -> str:
    """The phrase with a or an, by its first sound as far as the words of this file go."""
    sounds_open = phrase[0] in "aeiou" and not phrase.startswith(("uni", "use", "one", "eu"))
    return f"an {phrase}" if sounds_open or phrase.startswith(("hour", "honest")) else f"a {phrase}"


def _nouns() -> tuple[Noun, ...]:
    found = []
    for table, is_coco in ((_COCO, True), (_MORE, False)):
        for kind, names in table.items():
            for name in names.split(","):
                measure = _MEASURES.get(name, "")
                found.append(Noun(name, name if measure else plural_of(name), kind, is_coco, measure))
    return tuple(found)


NOUNS = _nouns()
KINDS = tuple(_MORE)

NUMBERS = {1: "one", 2: "two", 3: "three", 4: "four", 5: "five", 6: "six"}
MORE_COLORS = ("gray", "turquoise", "golden", "silver", "beige", "maroon", "navy blue", "teal", "lavender")
SIZES = ("small", "large", "tiny", "huge")
# By kind of thing; what has no row takes none.
TEXTURES = {
    "people": ("cheerful", "smiling", "waving", "tall"),
    "animals": ("fluffy", "sleepy", "wet", "curious", "muddy"),
    "vehicles": ("rusty", "shiny", "vintage", "dusty", "muddy"),
    "street": ("old", "tall", "weathered", "crooked"),
    "furniture": ("polished", "worn", "antique", "carved"),
    "kitchen": ("shiny", "chipped", "painted", "polished"),
    "food": ("fresh", "half-eaten", "shiny", "freshly cut"),
    "devices": ("old", "dusty", "sleek", "broken"),
    "sports": ("worn", "brand-new", "scratched", "striped"),
    "wear": ("striped", "checkered", "worn", "folded"),
    "household": ("old", "ornate", "plain", "dusty"),
    "toys": ("antique", "colorful", "shiny", "hand-painted"),
}
MATERIALS = {
    "furniture": ("wooden", "metal", "plastic", "wicker"),
    "kitchen": ("ceramic", "porcelain", "copper", "steel", "plastic", "wooden"),
    "devices": ("metal", "plastic", "wooden"),
    "sports": ("wooden", "plastic", "rubber"),
    "wear": ("leather", "woolen", "cotton", "silk", "denim"),
    "household": ("wooden", "metal", "plastic", "glass"),
    "toys": ("wooden", "plastic", "tin"),
    "street": ("stone", "metal", "wooden"),
}
# Kinds of things that lie on or in others, and what they lie on, in and under.
HANDY = ("animals", "kitchen", "food", "wear", "household", "toys")
SUPPORTS = ("dining table", "bench", "chair", "couch", "bed", "desk", "stool", "armchair", "suitcase", "rug")
CONTAINERS = ("bowl", "basket", "box", "bucket", "backpack", "handbag", "suitcase", "wheelbarrow", "bathtub")
SHELTERS = ("dining table", "bench", "chair", "bed", "desk", "umbrella", "tree", "street lamp")

# The first wording of the first four is GenEval's.
RELATIONS = {
    "left of": ("left of", "to the left of", "on the left of", "on the left side of"),
    "right of": ("right of", "to the right of", "on the right of", "on the right side of"),
    "above": ("above", "over", "directly above"),
    "below": ("below", "beneath", "directly below"),
    "in front of": ("in front of", "just in front of"),
    "behind": ("behind", "just behind"),
    "on": ("on", "on top of"),
    "under": ("under", "underneath"),
    "inside": ("inside", "in"),
    "next to": ("next to", "beside", "right next to"),
}
TOGETHER = ("and", "and", "with", "together with")

OUTDOORS = _list(
    "on a sandy beach,in a flower meadow,in a pine forest,on a cobblestone street,in a city park,"
    "on a mountain trail,by a calm lake,in a desert,in a vineyard,on a farm,in a backyard,at a harbor,"
    "in a narrow alley,on a rooftop terrace,in a wheat field,in a town square,on a snowy hill,"
    "by a river,at a playground,on a country road,in a garden,at a campsite,on a wooden pier,"
    "in a rocky canyon,at an open-air market,on a bridge"
)
INDOORS = _list(
    "in a cozy kitchen,in a sunlit living room,in a library,in a workshop,in an art studio,in a cafe,"
    "in a hotel lobby,in a museum,in a classroom,in a greenhouse,in an office,in a grocery store,"
    "in a gym,in a bakery,in an attic,in a garage,in a hallway,in a laundry room,"
    "in a hospital corridor,on a wooden floor,on a marble counter,against a plain background,"
    "in a bathroom,in a theater,in a warehouse,in a basement"
)
TIMES = _list("at dawn,at sunrise,in the morning,at noon,in the late afternoon,at sunset,at dusk,at night")
WEATHER = _list(
    "in light rain,in heavy rain,in thick fog,during a snowfall,on a windy day,under a clear sky,"
    "under a cloudy sky,after a storm"
)

PLAIN_OPENING = "a photo of"
PHOTOS = _list(
    "a photo of,a picture of,an image of,a photograph of,a close-up photo of,a wide-angle photo of,"
    "a studio photo of,a candid snapshot of,a film photo of,a macro shot of,an aerial photo of,"
    "a long-exposure photo of"
)
ARTWORKS = _list(
    "a watercolor painting of,an oil painting of,a pencil sketch of,a charcoal drawing of,"
    "a 3D render of,a pixel art image of,a flat vector illustration of,a storybook illustration of,"
    "a woodcut print of,a pastel drawing of,a comic panel of,a low-poly render of,"
    "a claymation scene of,an ink drawing of,an embroidery of,a mosaic of,an isometric illustration of,"
    "a chalk drawing of"
)
LOOKS = _list(
    "shallow depth of field,soft natural light,dramatic lighting,highly detailed,vintage look,"
    "warm light,backlit,minimalist composition,cinematic,soft shadows,sharp focus,view from the side,"
    "seen from a low angle,seen from a high angle,centered composition"
)
