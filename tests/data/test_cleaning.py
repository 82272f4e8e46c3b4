"""Cleaning captions: each reason, duplicates exact and near, and what must never count as one."""

from pathlib import Path

import numpy as np
import pytest

from lightgen.core.errors import UserError
from lightgen.core.prompt import Prompt
from lightgen.data import text_duplicates
from lightgen.data.cleaning import (
    REASONS,
    BlockList,
    CleaningConfig,
    Verdicts,
    fault,
    held_out_hashes,
    judge,
    tidy,
)
from lightgen.data.english import is_english
from lightgen.data.text_duplicates import similarity, words_of

ANY = CleaningConfig()
LONG = (
    "an old fisherman mends his nets on a wooden pier while gulls circle above the harbour, and behind him "
    "the painted boats of the village rock gently on the evening tide under a wide pale sky"
)


def judged(captions: list[str], config: CleaningConfig = ANY, held_out: tuple[str, ...] = ()) -> Verdicts:
    prompts = [Prompt(prompt=caption) for caption in captions]
    hashes = held_out_hashes(held_out)
    return judge(config, prompts, len(captions), captions.__getitem__, BlockList(), hashes)


def named(verdicts: Verdicts) -> list[str]:
    return [REASONS[reason - 1] if reason else "" for reason in verdicts.reasons]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a red apple", None),
        ("caf\u00e9 at night, 5 o'clock & rain", None),
        ("A < B and C > D", None),
        ("the zip code 12345.", None),
        ("", "empty"),
        (" \u2028 \n", "empty"),
        ("a\x00b", "control characters"),
        ("a \ud83d b", "control characters"),
        ("a <b>red</b> apple", "markup"),
        ("salt &amp; pepper", "markup"),
        ("see https://example.test/x", "link"),
        ("photo from www.example", "link"),
        ("IMG_0231.JPG", "link"),
        ("ask me@example.com", "email"),
        ("x" * 2001, "too many characters"),
        ("\u732b" * 1366, "too many bytes"),
        ("dog dog dog Dog.", "repeated words"),
        ("sale big sale red sale hat sale sale sale", "repeated words"),
        ("a dog and a cat and a cow and a hen", None),
    ],
)
def test_the_first_fault_is_told(text: str, reason: str | None) -> None:
    assert fault(ANY, text) == reason
    assert reason is None or reason in REASONS


def test_limits_can_be_moved_and_removed() -> None:
    tight = CleaningConfig(min_words=3, max_words=5, min_chars=8, max_chars=20, max_bytes=22)
    told = [fault(tight, text) for text in ("a cat", "a b c d e f", "a b c", "a" * 9 + " b " + "c" * 9)]
    assert told == ["too few words", "too many words", "too few characters", "too many characters"]
    free = CleaningConfig(
        min_words=None, max_chars=None, max_bytes=None, markup=False, repeated=False, language="any"
    )
    assert fault(free, "<b> http://x.test " + "dog " * 5000) is None
    for wrong in (CleaningConfig(min_words=-1), CleaningConfig(min_similarity=0.2)):
        with pytest.raises(UserError, match="allowed: "):
            wrong.check()


@pytest.mark.parametrize(
    ("text", "english"),
    [
        ("a photo of a dog", True),
        ("two cats on the left of a caf\u00e9 table", True),
        ("masterpiece, best quality, castle", True),
        ("ein Hund mit einem roten Ball auf der Wiese", False),
        ("un chien dans la rue avec une balle", False),
        ("un perro con una pelota en la calle", False),
        ("\u0441\u043e\u0431\u0430\u043a\u0430 \u0431\u0435\u0436\u0438\u0442", False),
        ("\u4e00\u53ea\u72d7", False),
    ],
)
def test_english_is_told_apart_as_far_as_promised(text: str, english: bool) -> None:
    assert is_english(text) == english
    assert (fault(CleaningConfig(language="en"), text) == "other language") == (not english)


def test_blocked_words_are_found_in_disguise_and_only_as_words(tmp_path: Path) -> None:
    (tmp_path / "b.txt").write_text("\ufeff# a list\n\nKitten  # one\nevil clown\n", encoding="utf-8")
    listed = BlockList.read(tmp_path / "b.txt")
    for text in (
        "a KITTEN.",
        "a k\u0131tten k\u00eftt\u00e9n",
        "a kit\u200bten",
        "a k1tten",
        "a k!773n",
        "an Evil, clown!",
        "an ev1l cl0wn",
    ):
        assert listed.find(text), text
    for text in ("kittens", "an evil red clown", "evilclown", "clown evil", "ki tten"):
        assert listed.find(text) is None, text
    assert fault(ANY, "a kitten", listed) == "blocked"
    (tmp_path / "e.txt").write_text("# nothing\n")
    (tmp_path / "x.txt").write_bytes(b"\xff\xfe")
    for name in ("e.txt", "x.txt", "none.txt"):
        with pytest.raises(UserError, match=name):
            BlockList.read(tmp_path / name)


def test_the_first_of_equal_captions_stays() -> None:
    captions = [
        "A red apple",
        "two dogs",
        "a  RED apple!",
        "\u732b",
        "\U0001f600",
        "\U0001f601",
        "two dogs",
        "",
    ]
    verdicts = judged(captions, CleaningConfig(duplicates="exact"))
    assert named(verdicts) == ["", "", "duplicate", "", "", "", "duplicate", "empty"]
    assert verdicts.twins.tolist() == [0, 1, 0, 3, 4, 5, 1, 7]
    assert verdicts.counts() == {"empty": 1, "duplicate": 2}
    assert named(judged(captions, CleaningConfig(duplicates="keep"))) == [""] * 7 + ["empty"]


def test_near_duplicates_are_dropped_but_not_what_asks_for_another_picture() -> None:
    captions = [
        LONG,
        LONG.replace("village", "town"),
        LONG.replace("an old", "two old"),
        LONG.replace("painted", "red"),
        LONG.replace("above", "below"),
        "a cat left of a dog",
        "a dog left of a cat",
        "a cat right of a dog",
    ]
    verdicts = judged(captions)
    assert named(verdicts) == ["", "near duplicate", *[""] * 6]
    assert verdicts.twins[1] == 0
    assert named(judged(captions, CleaningConfig(min_similarity=1.0))) == [""] * 8


def test_near_duplicates_are_those_of_a_plain_comparison(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    words = [f"w{i}" for i in range(300)]
    captions = [" ".join(random.choice(words, 60)) for _ in range(60)]
    for base in range(40):  # copies with one to three words changed
        copy = captions[base].split()
        for place in random.choice(60, random.integers(1, 4), replace=False):
            copy[place] = "new"
        captions.append(" ".join(copy))
    expected = []
    for number, caption in enumerate(captions):
        pairs = [similarity(words_of(caption), words_of(other)) for other in captions[:number]]
        expected.append("near duplicate" if max(pairs, default=0) >= 0.8 else "")
    assert 10 < sum(map(bool, expected)) < 40
    assert named(judged(captions)) == expected
    # the pass is the same in batches of any size
    monkeypatch.setattr("lightgen.data.cleaning._BATCH", 7)
    assert named(judged(captions)) == expected


def test_signatures_estimate_the_similarity() -> None:
    one, other = words_of(LONG), words_of(LONG.replace("village", "town"))
    signed = text_duplicates.signatures([one, other, ["cat"], ["cat"]])
    agree = (signed[0] == signed[1]).mean()
    assert abs(agree - similarity(one, other)) < 0.2
    assert (signed[2] == signed[3]).all()
    assert (signed[0] == signed[2]).mean() < 0.1
    assert (text_duplicates.signatures([one])[0] == signed[0]).all()


def test_held_out_captions_never_stay() -> None:
    verdicts = judged(["a cat", "a dog", "A Dog."], held_out=("a dog", "a cow"))
    assert named(verdicts) == ["", "held out", "held out"]
    written = [Prompt(prompt="a dog in the sun", original_prompt="a Dog"), Prompt(prompt="a hen")]
    found = judge(ANY, written, 2, lambda i: "", BlockList(), held_out_hashes(["a dog"]))
    assert named(found) == ["held out", ""]


@pytest.mark.parametrize("text", ["3 dogs, 12 cats", "three do\u00adgs twelve cats", "3 DOGS 12 c\u200dats"])
def test_held_out_captions_are_known_in_another_spelling(text: str) -> None:
    for one, other in ((text, "three dogs twelve cats"), ("Three dogs, twelve cats.", text)):
        assert named(judged([one, "13 dogs 12 cats"], held_out=(other,))) == ["held out", ""]


def test_no_captions_and_blanks() -> None:
    assert judged([]).counts() == {}
    assert tidy(" a\u2028b \n c\t ") == "a b c"


@pytest.mark.parametrize(
    "text",
    [
        "red van",
        "white van parked outside",
        "Vincent van Gogh self-portrait",
        "Los Angeles freeway",
        "Del Mar racetrack",
        "El Capitan, Yosemite",
        "La Tomatina festival",
        "Model T Ford w/ rust",
        "Y-junction railway track",
        "A piñata",
        "les paul guitar",
        "Z-shaped staircase",
        "a jalapeño",
        "Crème brûlée",
    ],
)
def test_names_and_accents_are_english_too(text):
    assert is_english(text)


@pytest.mark.parametrize(
    "text", ["!!!", "null", "None", "nan", "null\u200b", "N/A", "[deleted]", "{caption}", "123"]
)
def test_what_says_nothing_is_empty(text):
    assert fault(CleaningConfig(), text) == "empty"


def test_what_cannot_be_seen_goes():
    assert tidy("two\u200b  dogs\u202e \ufeff") == "two dogs"
    assert named(judged(["a kitten", "a kit\u200bten"])) == ["", "duplicate"]
    assert tidy("a \U0001f468\u200d\U0001f373") == "a \U0001f468\u200d\U0001f373"
