"""Intervals and verdicts against answers that are known beforehand."""

import json
from dataclasses import replace

import numpy as np
import pytest

from lightgen.core.errors import UserError
from lightgen.core.prompt import TAGS
from lightgen.stages.study_answers import (
    AGREES,
    CONTRADICTS,
    UNKNOWN,
    Outcomes,
    answers,
    student_quantile,
    verdict,
)
from lightgen.stages.study_config import ArmResult
from tests.stages.study_results import arm_result, claim, study_config


def renamed(result: ArmResult, name: str) -> ArmResult:
    return replace(result, arm=name)


def test_the_same_pictures_differ_by_nothing_within_what_prompts_could_hide() -> None:
    first = [arm_result("base", seed, 0.5) for seed in range(2)]
    found = Outcomes([*first, *(renamed(each, "alike") for each in first)]).difference(
        "base", "alike", "overall"
    )
    assert found is not None
    assert found.value == 0
    # of 120 prompts that all agree, up to 1 - .025 ** (1 / 120) of others may have stayed unseen
    unseen = 1 - 0.025 ** (1 / 120)
    assert (found.low, found.high) == pytest.approx((-unseen, unseen))


def test_arms_of_one_chance_are_rarely_told_apart() -> None:
    missed = 0
    for trial in range(10):
        pair = [arm_result(f"{arm}{trial}", seed, 0.5) for arm in "ab" for seed in range(2)]
        found = Outcomes(pair).difference(f"a{trial}", f"b{trial}", "overall")
        assert found is not None
        assert found.low is not None and found.high is not None
        missed += not found.low <= 0 <= found.high
    assert missed <= 2


def test_a_planted_difference_is_found_at_its_size() -> None:
    results = [arm_result(name, s, p) for name, p in (("base", 0.4), ("better", 0.6)) for s in range(3)]
    found = Outcomes(results).difference("base", "better", "overall")
    assert found is not None
    assert found.low is not None and found.high is not None
    assert 0 < found.low < 0.2 < found.high < 0.4
    back = Outcomes(results).difference("better", "base", "overall")
    assert back is not None
    assert (back.value, back.low, back.high) == pytest.approx(
        (-found.value, -found.high, -found.low), abs=1e-6
    )


def test_overall_is_the_plain_mean_of_tasks_of_any_size() -> None:
    tasks = ["counting"] * 3 + ["position"]
    result = ArmResult("base", 0, [[1, 1], [1, 0], [0, 0], [0, 0]], tasks, None, 1, 1, {})
    outcomes = Outcomes([result])
    assert outcomes.tasks == ["counting", "position"]
    assert outcomes.score("base", "counting").value == 0.5
    assert outcomes.score("base").value == 0.25


def test_scores_of_nothing_and_of_everything_are_not_certain() -> None:
    for chance in (0.0, 1.0):
        right = [[chance] * 2] * 120
        found = Outcomes([replace(arm_result("base", s, 0.5), right=right) for s in range(2)]).score("base")
        assert found.value == chance
        bound = 0.025 ** (1 / 120)
        assert (found.low, found.high) == pytest.approx((bound, 1) if chance else (0, 1 - bound))


def test_more_prompts_and_the_spread_of_seeds_set_the_length() -> None:
    def length(per_task: int, spread: float, seeds: int = 3) -> float:
        runs = [arm_result("base", s, 0.5, per_task=per_task, spread=spread) for s in range(seeds)]
        found = Outcomes(runs).score("base")
        assert found.low is not None and found.high is not None
        return found.high - found.low

    assert length(80, 0.0) < 0.7 * length(20, 0.0)
    assert length(20, 0.2) > 1.5 * length(20, 0.0)


def test_of_two_seeds_the_interval_holds_both() -> None:
    low, high = ([[value] * 2] * 120 for value in (0.25, 0.75))
    runs = [replace(arm_result("base", s, 0.5), right=right) for s, right in enumerate((low, high))]
    found = Outcomes(runs).score("base")
    assert (found.value, found.low, found.high, found.seeds) == (0.5, 0.25, 0.75, 2)


def test_seeds_that_one_arm_lacks_do_not_count_in_a_difference() -> None:
    results = [arm_result("base", 0, 0.5), arm_result("base", 1, 1.0), arm_result("better", 0, 0.5)]
    outcomes = Outcomes(results)
    found = outcomes.difference("base", "better", "overall")
    assert found is not None
    assert found.seeds == 1
    expected = outcomes.score("better").value - outcomes.seed_scores("base")[0]
    assert found.value == pytest.approx(expected, abs=1e-8)
    assert Outcomes([*results[1:]]).difference("base", "better", "overall") is None


def test_losses_have_students_interval_over_seeds() -> None:
    losses = {"base": (0.30, 0.32, 0.34), "better": (0.20, 0.24, 0.22)}
    results = [arm_result(name, s, 0.5, each[s]) for name, each in losses.items() for s in range(3)]
    found = Outcomes(results).difference("base", "better", "loss")
    assert found is not None
    gains = np.array([-0.10, -0.08, -0.12])
    half = 4.3027 * gains.std(ddof=1) / np.sqrt(3)
    assert (found.value, found.low, found.high) == pytest.approx((-0.1, -0.1 - half, -0.1 + half), abs=1e-4)


@pytest.mark.parametrize(
    ("freedom", "known"), [(1, 12.7062), (2, 4.3027), (3, 3.1824), (5, 2.5706), (30, 2.0423)]
)
def test_students_quantiles(freedom: int, known: float) -> None:
    assert student_quantile(0.95, freedom) == pytest.approx(known, rel=0.01)


@pytest.mark.parametrize(
    ("expected", "low", "high", "known"),
    [
        ("higher", 0.01, 0.2, AGREES),
        ("higher", 0.0, 0.2, UNKNOWN),
        ("higher", -0.3, -0.1, CONTRADICTS),
        ("lower", -0.3, -0.1, AGREES),
        ("lower", 0.01, 0.2, CONTRADICTS),
        ("lower", -0.1, 0.1, UNKNOWN),
        ("same", -0.1, 0.1, AGREES),
        ("same", -0.1, 0.11, UNKNOWN),
        ("same", 0.01, 0.05, CONTRADICTS),
    ],
)
def test_verdicts(expected: str, low: float, high: float, known: str) -> None:
    assert expected in ("higher", "lower", "same")
    assert verdict(expected, low, high) == known


def test_answers_hold_every_arm_and_claim_and_are_the_same_in_any_order() -> None:
    chances = {"base": 0.3, "better": 0.6, "alike": 0.3}
    results = [arm_result(name, s, p, 0.3 + 0.001 * s) for name, p in chances.items() for s in range(2)]
    claims = (
        claim("higher"),
        claim("lower", task="position"),
        claim("lower", second="alike", task="loss"),
        claim("same", second="alike", task="loss"),
    )
    config = study_config(claims=claims)
    found = answers(config, results)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert answers(config, results[::-1]) == found
    assert [each["verdict"] for each in found["claims"]] == [AGREES, CONTRADICTS, UNKNOWN, AGREES]
    assert list(found["arms"]) == list(chances)
    assert (found["seeds"], found["prompts"], found["images_per_prompt"]) == (2, 120, 2)
    arm = found["arms"]["better"]
    assert set(arm["tasks"]) == set(TAGS)
    low, high = arm["overall"]["interval"]
    assert low < arm["overall"]["value"] < high
    assert arm["loss_by_seed"] == {"0": 0.3, "1": 0.301}
    assert (arm["train_tflop"], arm["draw_tflop"]) == (6.25, 0.5)
    assert arm["seconds"] == {"distill": 2.5, "train": 100.5, "draw": 30.0}


def test_one_seed_and_no_losses_tell_nothing_of_losses() -> None:
    results = [arm_result(name, 0, 0.5) for name in ("base", "better", "alike")]
    found = answers(study_config(claims=(claim("lower", task="loss"),)), results)
    assert found["seeds"] == 1
    assert found["arms"]["base"]["loss"] is None
    assert (found["claims"][0]["difference"], found["claims"][0]["verdict"]) == (None, UNKNOWN)
    lone = [arm_result(name, 0, 0.5, loss) for name, loss in (("base", 0.3), ("better", 0.1), ("alike", 0.2))]
    told = answers(study_config(claims=(claim("lower", task="loss"),)), lone)["claims"][0]
    assert (told["difference"]["interval"], told["verdict"]) == (None, UNKNOWN)


def test_results_that_cannot_be_compared_are_refused() -> None:
    results = [arm_result(name, 0, 0.5) for name in ("base", "better")]
    with pytest.raises(UserError, match="no result of arm 'alike', allowed"):
        answers(study_config(), results)
    with pytest.raises(UserError, match="arm 'alike' judged on other prompts, allowed"):
        answers(study_config(), [*results, arm_result("alike", 0, 0.5, per_task=10)])
    with pytest.raises(UserError, match="no results, allowed"):
        Outcomes([])
