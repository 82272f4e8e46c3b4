import math

import pytest

from lightgen.core.prompt import Prompt, Requirement
from lightgen.evals.concepts import AXES, OBJECTS, concept_coverage


def of(*texts):
    return concept_coverage(Prompt(prompt=text) for text in texts)


def read(text):
    """What is understood of one caption, as sets of strings."""
    from lightgen.evals import concepts

    objects, relations = concepts._read(text)
    names = [name for name, _, _ in objects]
    said = {f"{n or '?'} {c or '-'} {name}" for name, n, c in objects}
    return said | {f"{names[i]} {relation} {names[j]}" for i, relation, j in relations}


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("a red dog", {"1 red dog"}),
        ("Two blue cats, and a chair", {"2 blue cat", "1 - chair"}),
        (
            "a photo of a dog to the left of three Wine Glasses",
            {"1 - dog", "3 - wine glass", "dog left of wine glass"},
        ),
        ("a cake under an orange umbrella", {"1 - cake", "1 orange umbrella", "cake below umbrella"}),
        ("an orange on a brown dining table", {"1 - orange", "1 brown dining table"}),
        ("oranges", {"? - orange"}),
        ("a herd of cows", {"? - cow"}),
        ("12 people above two buses", {"12 - person", "2 - bus", "person above bus"}),
        ("a hot dog and a teddy bear", {"1 - hot dog", "1 - teddy bear"}),
        ("a sofa right of a bike", {"1 - couch", "1 - bicycle", "couch right of bicycle"}),
        ("a black and white cat", {"1 white cat"}),
        ("carpet, scarf, catapult: dogma", set()),
        ("left left left a dog", {"1 - dog"}),
        ("", set()),
    ],
)
def test_captions_are_read_by_whole_words(text, wanted):
    assert read(text) == wanted


def test_requirements_are_taken_at_their_word():
    prompt = Prompt(
        prompt="words that say nothing, and a cat",
        include=(
            Requirement(name="dog", count=2, color="red"),
            Requirement(name="chair", position=("above", 0)),
        ),
    )
    found = concept_coverage([prompt])
    assert {axis: each["distinct"] for axis, each in found.items()} == {
        "objects": 2,
        "colors": 1,
        "counts": 2,
        "relations": 1,
        "object pairs": 1,
        "colored objects": 1,
        "counted objects": 2,
        "related objects": 1,
    }
    # the same caption in words
    assert found == of("two red dogs below a chair") | {"related objects": found["related objects"]}


def test_numbers_of_a_set():
    found = of("a dog", "a dog", "a cat", "a cat")
    assert list(found) == list(AXES)
    assert found["objects"] == {
        "distinct": 2,
        "mentions": 4,
        "entropy": pytest.approx(math.log(2)),
        "effective": pytest.approx(2),
    }
    assert found["colors"] == {"distinct": 0, "mentions": 0, "entropy": 0, "effective": 0}
    assert found["counted objects"]["distinct"] == 2 and found["counts"]["effective"] == 1
    pairs = of("a dog and a cat", "a cat and a dog")["object pairs"]
    assert pairs["distinct"] == 1 and pairs["mentions"] == 2
    skewed = of(*["a dog"] * 9, "a cat")["objects"]
    assert 1 < skewed["effective"] < 1.5
    assert of()["objects"]["distinct"] == 0


def test_every_class_is_found_by_its_name():
    assert len(OBJECTS) == len(set(OBJECTS)) == 80
    assert of(*(f"a {name}" for name in OBJECTS))["objects"]["distinct"] == 80
