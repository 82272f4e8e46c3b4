import pytest

from lightgen.core.errors import UserError
from lightgen.ports.nano.language import draw_prompt, parse
from lightgen.ports.nano.reading import KINDS, Reading, read, split_words
from lightgen.ports.nano.text import build_nano_text_encoder


def told(reading: Reading) -> tuple[str, ...]:
    """Values of the labels of an object, in the order of the kinds."""
    assert tuple(reading.labels) == tuple(KINDS)
    return tuple(KINDS[kind][label] for kind, label in reading.labels.items())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a photo of a dog", {(4, 5): ("dog", "none", "one", "none")}),
        ("three red teddy bears", {(2, 4): ("teddy bear", "red", "three", "none")}),
        ("there are four sheep in the snow", {(3, 4): ("sheep", "none", "four", "none")}),
        ("an orange orange", {(2, 3): ("orange", "orange", "one", "none")}),
        (
            "a photo of a red dog and a blue car",
            {(5, 6): ("dog", "red", "one", "none"), (9, 10): ("car", "blue", "one", "none")},
        ),
        (
            "a hot dog left of a dog",
            {(1, 3): ("hot dog", "none", "one", "left of"), (6, 7): ("dog", "none", "one", "right of")},
        ),
        (
            "an image of a cat to the right of a wine glass",
            {(4, 5): ("cat", "none", "one", "right of"), (10, 12): ("wine glass", "none", "one", "left of")},
        ),
        (
            "a pencil sketch of a potted plant over two white vases",
            {
                (5, 7): ("potted plant", "none", "one", "above"),
                (10, 11): ("vase", "white", "two", "below"),
            },
        ),
        (
            "a tv under a computer mouse under a starry sky",
            {(1, 2): ("tv", "none", "one", "below"), (4, 6): ("computer mouse", "none", "one", "above")},
        ),
        (
            "two cell phones next to one green book",
            {(1, 3): ("cell phone", "none", "two", "none"), (7, 8): ("book", "green", "one", "none")},
        ),
        (
            "a cow with three purple birds on the grass at night",
            {(1, 2): ("cow", "none", "one", "none"), (5, 6): ("bird", "purple", "three", "none")},
        ),
        (
            "my sofa, on top of it 2 persons.",
            {(1, 2): ("couch", "none", "one", "above"), (8, 9): ("person", "none", "two", "below")},
        ),
        (
            "a cat, a dog and a car",
            {
                (1, 2): ("cat", "none", "one", "none"),
                (4, 5): ("dog", "none", "one", "none"),
                (7, 8): ("car", "none", "one", "none"),
            },
        ),
    ],
)
def test_what_captions_say_and_where(text, expected):
    found = read(text)
    assert found is not None
    assert {(each.start, each.end): told(each) for each in found} == expected
    assert list(expected) == sorted(expected)


@pytest.mark.parametrize("split", ["train", "test"])
def test_every_caption_is_read_as_it_is_parsed(split):
    for i in range(300):
        caption = draw_prompt(7, i, split).prompt
        found, scene = read(caption), parse(caption)
        assert found is not None
        labels = [told(each) for each in found]
        assert [each[0] for each in labels] == [group.name for group in scene.objects]
        assert [each[1] for each in labels] == [group.color or "none" for group in scene.objects]
        assert [KINDS["count"].index(each[2]) + 1 for each in labels] == [g.count for g in scene.objects]


def test_a_text_that_words_and_parser_cut_in_two_ways_is_not_read():
    assert parse("a wine-glass").objects[0].name == "wine glass"
    assert read("a wine-glass") is None
    with pytest.raises(UserError, match="names no object"):
        read("nothing of this world")


def test_words_are_the_tokens_of_the_text_encoder():
    tokenizer = build_nano_text_encoder(0).tokenizer
    for text in ("A photo of a Dog, two cats...", "it's 3 wine-glasses!", "a_b c"):
        words = split_words(text)
        assert [tokenizer.convert_tokens_to_ids(word) for word in words] == tokenizer(text)["input_ids"][:-1]
