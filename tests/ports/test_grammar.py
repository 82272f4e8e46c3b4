"""The grammar of everyday captions: the same for ever, distinct, grammatical, and judged as GenEval would."""

import re
from collections import Counter
from dataclasses import replace

import pytest

from lightgen.core.errors import UserError
from lightgen.core.prompt import COLORS, TAGS, Prompt, Requirement
from lightgen.ports import grammar_words as words
from lightgen.ports.grammar import GrammarConfig, GrammarKnobs, draw_caption, name_group
from lightgen.ports.grammar import _Group as Group
from lightgen.ports.grammar_words import NOUNS, plural_of, with_article
from lightgen.ports.nano.world import PLURALS

CONFIG = GrammarConfig()


@pytest.fixture(scope="module")
def drawn() -> list[Prompt]:
    return [draw_caption(CONFIG, i) for i in range(10_000)]


def only(**shares: float) -> GrammarKnobs:
    return replace(GrammarKnobs(**dict.fromkeys(vars(GrammarKnobs()), 0.0)), **shares)


def test_ten_thousand_draws_are_distinct_and_keyed(drawn: list[Prompt]) -> None:
    assert len({prompt.prompt.lower() for prompt in drawn}) >= 9_900
    more = replace(CONFIG, num=5)
    assert [draw_caption(more, i) for i in (9_999, 0, 17)] == [drawn[i] for i in (9_999, 0, 17)]
    assert draw_caption(replace(CONFIG, seed=1), 0) != drawn[0]
    # a caption that is drawn today must be drawn tomorrow
    assert drawn[0].prompt == "a picture of a motorcycle on the left of a fan in a greenhouse"


def test_the_shares_are_kept(drawn: list[Prompt]) -> None:
    tags = Counter(prompt.tag for prompt in drawn)
    assert set(tags) == {None, *TAGS}
    weights = vars(CONFIG.shares)
    for tag in ("counting", "single_object"):
        assert abs(tags[tag] / 10_000 - weights[tag] * CONFIG.coco) < 0.015
    counted = replace(CONFIG, shares=only(counting=2.0), coco=1.0, max_count=3)
    prompts = [draw_caption(counted, i) for i in range(200)]
    assert {prompt.tag for prompt in prompts} == {"counting"}
    assert {prompt.include[0].count for prompt in prompts} == {2, 3}
    plain = replace(CONFIG, plain=1.0, shares=only(position=1.0), coco=1.0)
    pattern = r"a photo of an? [\w ]+ (left of|right of|above|below) an? [\w ]+"
    assert all(re.fullmatch(pattern, draw_caption(plain, i).prompt) for i in range(100))


def test_what_a_picture_must_show_is_what_the_caption_says(drawn: list[Prompt]) -> None:
    plurals = {noun.name: noun.plural for noun in NOUNS}
    for prompt in drawn:
        assert (prompt.tag is None) == (not prompt.include)
        text = prompt.prompt.lower()
        for need in prompt.include:
            noun = re.escape(need.name if need.count == 1 else plurals[need.name])
            color = f"{need.color} " if need.color else ""
            number = r"\ban?" if need.count == 1 else words.NUMBERS[need.count]
            assert re.search(rf"{number} ((pairs?|heads?) of )?{color}{noun}\b", text), prompt
        assert [each.count - 1 for each in prompt.exclude] == [n.count for n in prompt.include if n.count > 1]
        # and nothing that it does not ask for
        colors = {need.color for need in prompt.include} - {None}
        named = " ".join(need.name for need in prompt.include)
        said = set(re.findall(r"\w+", text)) & set(COLORS)
        assert not prompt.include or said - colors <= set(named.split()), prompt


def test_a_position_is_seen_from_the_first_object() -> None:
    config = replace(CONFIG, shares=only(position=1.0), coco=1.0)
    seen = set()
    for i in range(400):
        prompt = draw_caption(config, i)
        first, second = prompt.include
        assert first.position is None and second.position is not None and second.position[1] == 0
        text = prompt.prompt.lower()
        found = (re.search(rf"\b(an?|pair of|head of) {n.name}\b", text) for n in (second, first))
        a, b = (each.start() for each in found if each)
        turned = " with " in text or bool(re.search(rf"on the left and an? [\w ]*{second.name} on the", text))
        assert (a > b) == turned, prompt
        seen.add(second.position[0])
    assert seen == {"left of", "right of", "above", "below"}


def test_the_80_classes_of_coco_are_there_under_genevals_names() -> None:
    coco = [noun.name for noun in NOUNS if noun.is_coco]
    assert len(coco) == len(set(coco)) == 80
    for name, plural in PLURALS.items():
        noun = next(noun for noun in NOUNS if noun.name == name)
        assert noun.is_coco and (noun.measure or noun.plural == plural)
    assert len({noun.name for noun in NOUNS}) == len(NOUNS) > 200


def test_scenery_and_styles_name_nothing_that_a_verdict_counts() -> None:
    phrases = (*words.OUTDOORS, *words.INDOORS, *words.TIMES, *words.WEATHER)
    phrases += (*words.PHOTOS, *words.ARTWORKS, *words.LOOKS)
    assert len(set(phrases)) == len(phrases)
    forbidden = {*COLORS, *words.NUMBERS.values(), "left", "right", "above", "below"}
    forbidden |= {each for noun in NOUNS if noun.is_coco for each in (noun.name, noun.plural)}
    for phrase in phrases:
        assert forbidden.isdisjoint(re.findall(r"[\w-]+", phrase)), phrase


def test_english(drawn: list[Prompt]) -> None:
    noun = {each.name: each for each in NOUNS}
    assert name_group(Group(noun["apple"], color="red")) == "a red apple"
    assert name_group(Group(noun["orange"])) == "an orange"
    assert name_group(Group(noun["chair"], 3, size="small", material="wooden")) == "three small wooden chairs"
    assert name_group(Group(noun["scissors"], color="red")) == "a pair of red scissors"
    assert name_group(Group(noun["broccoli"], 2)) == "two heads of broccoli"
    assert [
        plural_of(name) for name in ("bus", "cherry", "toy", "box", "bench", "person", "loaf of bread")
    ] == [*("buses", "cherries", "toys", "boxes", "benches", "people", "loaves of bread")]
    assert [with_article(each) for each in ("hourglass", "unicorn", "umbrella")] == [
        *("an hourglass", "a unicorn", "an umbrella")
    ]
    ages = {"young", "old", "elderly"}  # an elderly child
    assert ages.isdisjoint(words.TEXTURES["people"])
    for prompt in drawn:
        text = prompt.prompt
        assert not re.search(
            r"  |\ba [aeio]|\ban [^aeiouh]| ,|\bthere is (two|three|four|five|six)\b", text
        ), text
        assert not re.search(r"(?<!the )\b(left|right) of (it|them)", text), text
        assert (text[0].isupper()) == text.endswith("."), text


@pytest.mark.parametrize(
    "config",
    [
        GrammarConfig(num=0),
        GrammarConfig(max_count=7),
        GrammarConfig(coco=1.5),
        GrammarConfig(shares=only()),
        GrammarConfig(shares=only(colors=-1.0)),
    ],
)
def test_numbers_out_of_range_are_refused(config: GrammarConfig) -> None:
    with pytest.raises(UserError, match="allowed: "):
        config.check()


def test_a_requirement_counts_at_most_what_is_said() -> None:
    config = replace(CONFIG, shares=only(counting=1.0), coco=1.0)
    prompt = next(p for p in (draw_caption(config, i) for i in range(999)) if p.include[0].name == "cat")
    count = prompt.include[0].count
    assert prompt.exclude == (Requirement(name="cat", count=count + 1),)
