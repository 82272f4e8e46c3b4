"""Prompts of some words of the nano world."""

import pytest

from lightgen.core.errors import UserError
from lightgen.stages.distill import NanoPrompts, nano_prompts

FEW = {"classes": ("dog", "cat", "car", "apple", "clock", "umbrella"), "colors": ("red", "green", "blue")}


def test_prompts_name_the_wanted_words_alone():
    prompts = nano_prompts(NanoPrompts(num=200, **FEW))
    named = [requirement for prompt in prompts for requirement in prompt.include]
    assert {each.name for each in named} == set(FEW["classes"])
    assert {each.color for each in named} == {None, *FEW["colors"]}
    with pytest.raises(UserError, match="without a test prompt of color_attr"):
        nano_prompts(NanoPrompts(num=6, split="test", **FEW))


def test_distinct_captions_begin_alike_and_end_where_there_are_no_more():
    wanted = NanoPrompts(num=150, distinct=True, **FEW)
    captions = [prompt.prompt for prompt in nano_prompts(wanted)]
    assert len(set(captions)) == 150
    assert [p.prompt for p in nano_prompts(NanoPrompts(num=50, distinct=True, **FEW))] == captions[:50]
    with pytest.raises(UserError, match="up to 65 of these"):
        nano_prompts(NanoPrompts(num=66, split="test", tags=("single_object",), distinct=True))


@pytest.mark.parametrize(
    "changes", [{"classes": ("dog", "dragon")}, {"classes": ("dog",)}, {"colors": ("red", "red")}]
)
def test_words_that_make_no_prompts_are_refused(changes):
    with pytest.raises(UserError, match="two or more different of"):
        nano_prompts(NanoPrompts(num=1, **changes))
