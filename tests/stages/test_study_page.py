"""The page says what was asked and found, for studies of every shape."""

import pytest

from lightgen.stages.study_answers import answers
from lightgen.stages.study_page import study_page
from tests.stages.study_results import arm_result, claim, study_config


def results_of(names: tuple[str, ...], seeds: int = 2, loss: float | None = 0.3):
    return [
        arm_result(name, s, 0.3 + 0.1 * i, None if loss is None else loss - 0.01 * i)
        for i, name in enumerate(names)
        for s in range(seeds)
    ]


def test_arms_with_places_are_points_and_others_are_bars() -> None:
    names = ("base", "better", "alike")
    placed = study_page(study_config(places=(1.0, 2.0, 3.0)), results_of(names)).html()
    named = study_page(study_config(), results_of(names)).html()
    assert placed.count('class="plot"') == 2  # score and loss
    assert 'class="bars"' not in placed
    assert 'class="plot"' not in named
    assert named.count('class="bars"') == 3  # score, its difference from the first arm, and that of the loss
    assert "minus that of “base”" in named


def test_claims_are_told_with_source_numbers_and_verdict() -> None:
    config = study_config(claims=(claim("higher"), claim("lower", second="alike", task="position")))
    page = study_page(config, results_of(("base", "better", "alike"))).html()
    assert "1. It is higher. (section 3) Expected here: “better” against “base”, overall higher." in page
    assert "✗ contradicts" in page or "? cannot be told" in page
    assert "Position score of each arm" in page
    assert page.count("<td") > 40


def test_a_study_without_claims_says_nothing_of_them() -> None:
    page = study_page(study_config(), results_of(("base", "better", "alike"))).html()
    assert "laim" not in page.replace("&quot;claims&quot;: []", "")


@pytest.mark.parametrize(
    ("seeds", "said", "unsaid"),
    [(1, "with one seed", "so few"), (2, "so few", "one seed"), (5, "", "seeds,")],
)
def test_what_few_seeds_cannot_tell_is_said(seeds: int, said: str, unsaid: str) -> None:
    summary = (
        study_page(study_config(), results_of(("base", "better", "alike"), seeds))
        .html()
        .partition("<main>")[0]
    )
    assert said in summary
    assert unsaid not in summary


def test_missing_losses_are_said_or_leave_no_section() -> None:
    config, names = study_config(), ("base", "better", "alike")
    assert "Held-out loss" not in study_page(config, results_of(names, loss=None)).html()
    some = [*results_of(names[:2]), *(arm_result("alike", s, 0.5) for s in range(2))]
    assert "Only 2 of 3 arms have one." in study_page(study_config(places=(1.0, 2.0, 3.0)), some).html()


def test_the_page_holds_cost_command_and_escaped_words() -> None:
    config, results = study_config(tflop=6), results_of(("base", "better", "alike"))
    page = study_page(config, results, answers(config, results), "lightgen study x --out y").html()
    assert "A &lt;study&gt;" in page
    assert "<study>" not in page
    assert "lightgen study x --out y" in page
    assert '<td class="number">6.250</td><td class="number">0.500</td>' in page
    assert page == study_page(config, results, command="lightgen study x --out y").html()
