"""Captions out of language models' answers."""

import pytest

from lightgen.core.prompt import Prompt, Requirement
from lightgen.data.answers import caption_of_answer, description_of_answer, tidy_answer

SHORT = Prompt(
    prompt="a photo of two red cups left of a dog",
    include=(Requirement(name="dog"), Requirement(name="cup", count=2, color="red", position=("left of", 0))),
)
LONG = "Two red cups stand to the left of a sleeping dog in the morning light."


@pytest.mark.parametrize(
    "answer",
    [
        LONG,
        f'"{LONG}"',
        f"\u201c{LONG}\u201d\n",
        f"Here is a detailed caption:\n\n{LONG}",
        f"Sure! Here's the rewritten description: {LONG}",
        f"Description: {LONG}",
        f"**Detailed caption:** {LONG}",
        f"<think>cups, dog\nok</think>\n{LONG}",
        f"{LONG}\n\nLet me know if you want another one!",
        LONG.replace(" in ", "\n in "),
        f"The image shows {LONG[0].lower()}{LONG[1:]}",
    ],
)
def test_what_surrounds_a_caption_goes(answer: str) -> None:
    assert tidy_answer(answer) == LONG
    assert caption_of_answer(SHORT, answer, 2000, 4096) == (LONG, None)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("", "empty answer"),
        (" \n** ", "empty answer"),
        ("<think>I wonder", "empty answer"),
        ("I'm sorry, but I cannot describe that.", "refused"),
        ("I can\u2019t help with that", "refused"),
        (LONG * 40, "too long"),
        (LONG.replace("Two", "Three"), "lost content"),
        (LONG.replace("red", "blue"), "lost content"),
        (LONG.replace("left", "right"), "lost content"),
        (LONG.replace("dog", "puppy"), "lost content"),
    ],
)
def test_what_is_no_caption_falls_back(answer: str, reason: str) -> None:
    assert caption_of_answer(SHORT, answer, 2000, 4096) == (SHORT.prompt, reason)


def test_what_is_not_checked_is_free_but_for_numbers_and_colours() -> None:
    free = Prompt(prompt="2 old dogs, one red ball")
    assert caption_of_answer(free, "2 hounds chase a red ball.", None, None)[1] is None
    assert caption_of_answer(free, "Two hounds chase a red ball.", None, None)[1] == "lost content"
    assert description_of_answer("A cat.", None, 6) == ("A cat.", None)
    assert description_of_answer("A cat.", None, 5) == ("", "too long")
    assert description_of_answer("Sorry, no.", None, None) == ("", "refused")
    assert tidy_answer("It's a 'test'") == "It's a 'test'"
