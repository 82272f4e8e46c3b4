import pytest

from lightgen.core.errors import UserError
from lightgen.core.prompt import Prompt, Requirement

GENEVAL = {
    "tag": "position",
    "include": [
        {"class": "dog", "count": 1},
        {"class": "car", "count": 2, "color": "red", "position": ["left of", 0]},
    ],
    "exclude": [{"class": "dog", "count": 2}],
    "prompt": "a photo of two red cars left of a dog",
}


def test_a_geneval_record_survives():
    prompt = Prompt.from_json(GENEVAL)
    assert prompt.include[1] == Requirement(name="car", count=2, color="red", position=("left of", 0))
    assert prompt.to_json() == GENEVAL
    edit = {"prompt": "a red car", "source": "in.png", "mask": "mask.png", "seed": 0}
    assert Prompt.from_json(edit).to_json() == edit
    assert Prompt.from_json({"prompt": "x", "note": "of another tool"}) == Prompt(prompt="x")
    empty = {"prompt": "x", "tag": None, "include": None, "exclude": [], "source": None, "seed": None}
    assert Prompt.from_json(empty) == Prompt(prompt="x")


@pytest.mark.parametrize("record", [None, [], "a dog", {}, {"prompt": 5}])
def test_a_record_without_a_prompt_is_refused(record):
    with pytest.raises(UserError, match="'prompt' string"):
        Prompt.from_json(record)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"prompt": None}, "'prompt' string"),
        ({"tag": "colour"}, "'colour' is unknown, allowed: single_object"),
        ({"include": [{"count": 1}]}, "'class' string"),
        ({"include": [{"class": "dog", "count": 0}]}, "count 0 of 'dog'"),
        ({"include": [{"class": "dog", "count": True}]}, "count True"),
        ({"include": [{"class": "dog", "color": "mauve"}]}, "'mauve' is unknown, allowed: red"),
        ({"include": [{"class": "dog", "position": ["under", 0]}]}, "position"),
        ({"include": [{"class": "dog", "position": ["above", 1]}]}, "object 1 of 1"),
        ({"include": [{"class": "dog"}, {"class": "cat", "position": ["above", True]}]}, "position"),
        ({"include": [{"class": "dog", "position": "above"}]}, "position 'above'"),
        ({"include": 5}, "include '5', allowed: a list"),
        ({"include": {}}, "include '{}', allowed: a list"),
        ({"include": "dog"}, "include 'dog', allowed: a list"),
        ({"include": ["dog"]}, "'class' string"),
        ({"exclude": {"class": "dog"}}, "exclude \"{'class': 'dog'}\""),
        ({"source": 5}, "source '5', allowed: a path"),
        ({"mask": ["m.png"]}, "mask"),
        ({"seed": 1.5}, "seed '1.5', allowed: a whole number"),
        ({"seed": "7"}, "seed '7'"),
        ({"seed": True}, "seed 'True'"),
    ],
)
def test_a_bad_record_is_refused_in_one_line(changes, said):
    with pytest.raises(UserError) as caught:
        Prompt.from_json({**GENEVAL, **changes})
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
