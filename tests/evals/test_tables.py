"""Tables of tasks, their intervals, and paired tests."""

import json
import random
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from lightgen.core.errors import UserError
from lightgen.evals.statistics import BootstrapConfig, Shares, interval, p_value, resampled_shares
from lightgen.evals.tables import Mark, compare_runs, score_table

CONFIG = BootstrapConfig(resamples=2000)


def run(task: str, right: Sequence[Sequence[float]]) -> list[Mark]:
    """Marks of a task from right (1) and wrong (0) images by prompt."""
    return [
        Mark(f"{task} {i}", float(value), ((task, float(value)),))
        for i, values in enumerate(right)
        for value in values
    ]


def test_table_is_the_plain_mean_of_the_tasks_present() -> None:
    table = score_table(run("counting", [[1, 0, 0, 0]] * 8) + run("single_object", [[1, 1]] * 2), CONFIG)
    assert list(table.tasks) == ["single_object", "counting"]
    assert table.tasks["counting"].value == 0.25
    assert table.tasks["single_object"].value == 1.0
    assert table.overall.value == 0.625
    assert (table.overall.num_prompts, table.overall.num_images) == (10, 36)
    assert (table.tasks["counting"].num_prompts, table.tasks["counting"].num_images) == (8, 32)


def test_task_is_a_mean_over_images() -> None:
    """As in GenEval: a prompt with more images weighs more."""
    table = score_table(run("colors", [[1, 1, 1], [0]]), CONFIG)
    assert table.tasks["colors"].value == 0.75


def test_table_as_json() -> None:
    record = score_table(run("colors", [[1, 0], [0, 0]] * 10), CONFIG).to_json()
    assert json.loads(json.dumps(record)) == record
    assert record["overall"] == 0.25
    assert record["tasks"] == {"colors": 0.25}
    assert record["counts"]["colors"] == {"prompts": 20, "images": 40}
    low, high = record["intervals"]["colors"]
    assert low < 0.25 < high


def test_table_does_not_depend_on_order() -> None:
    answers = run("colors", [[1, 0], [0, 0], [1, 1]] * 5) + run("counting", [[0], [1], [1], [0]])
    shuffled = list(answers)
    random.Random(3).shuffle(shuffled)
    assert shuffled != answers
    assert score_table(shuffled, CONFIG) == score_table(answers, CONFIG)


def test_interval_of_independent_prompts_matches_theory() -> None:
    """One image per prompt, half right, N = 400: the share's standard error is .025."""
    score = score_table(run("colors", [[1], [0]] * 200), CONFIG).tasks["colors"]
    assert score.low == pytest.approx(0.5 - 1.96 * 0.025, abs=0.006)
    assert score.high == pytest.approx(0.5 + 1.96 * 0.025, abs=0.006)


def test_interval_resamples_prompts_not_images() -> None:
    """Four images that always agree are one fact, not four."""
    together = score_table(run("colors", [[1] * 4, [0] * 4] * 25), CONFIG).tasks["colors"]
    apart = score_table(run("colors", [[1], [0]] * 100), CONFIG).tasks["colors"]
    assert (together.high - together.low) / (apart.high - apart.low) == pytest.approx(2, rel=0.15)


def test_overall_interval_is_narrower_than_its_tasks() -> None:
    table = score_table(run("colors", [[1], [0]] * 50) + run("counting", [[1], [0]] * 50), CONFIG)
    widths = [score.high - score.low for score in table.tasks.values()]
    assert table.overall.high - table.overall.low == pytest.approx(max(widths) / 2**0.5, rel=0.15)


@pytest.mark.parametrize("answer", [0, 1])
def test_unanimous_task_is_not_certain(answer: int) -> None:
    table = score_table(run("colors", [[answer]] * 10), CONFIG)
    score = table.tasks["colors"]
    assert score.value == answer
    # Ten of ten: the exact interval starts at .025 ** (1 / 10).
    expected = (0.6915, 1.0) if answer else (0.0, 0.3085)
    assert (score.low, score.high) == pytest.approx(expected, abs=1e-4)
    assert (table.overall.low, table.overall.high) == (score.low, score.high)


def test_prompts_that_all_agree_are_not_certain_either() -> None:
    """Four prompts of one right image in two: resamples are alike, and four prompts say little."""
    score = score_table(run("colors", [[1, 0]] * 4), CONFIG).tasks["colors"]
    # Wilson, n = 4, p = .5: .5 -+ 1.96 * sqrt(1/16 + (1.96/8)^2) / (1 + 1.96^2/4)
    assert (score.low, score.high) == pytest.approx((0.15, 0.85), abs=1e-3)
    more = score_table(run("colors", [[1, 0]] * 400), CONFIG).tasks["colors"]
    assert (more.low, more.high) == pytest.approx((0.4512, 0.5488), abs=1e-3)


def test_coverage_widens_the_interval() -> None:
    answers = run("colors", [[1], [0]] * 30)
    narrow, wide = (score_table(answers, replace(CONFIG, coverage=c)).overall for c in (0.5, 0.99))
    assert wide.low < narrow.low < narrow.high < wide.high


def test_seed_moves_the_interval_but_not_the_score() -> None:
    answers = run("colors", [[1, 0, 0], [0, 1, 1], [0, 0, 0]] * 7)
    first, second = (score_table(answers, BootstrapConfig(resamples=200, seed=s)).overall for s in (0, 1))
    assert first.value == second.value
    assert (first.low, first.high) != (second.low, second.high)


def test_resamples_in_parts_cover_them_all(monkeypatch: pytest.MonkeyPatch) -> None:
    shares = Shares(np.array([1, 0, 1]), np.array([1, 1, 1]))
    whole = resampled_shares(shares, CONFIG, "x")
    monkeypatch.setattr("lightgen.evals.statistics._DRAWS_AT_ONCE", 21)
    parts = resampled_shares(shares, CONFIG, "x")
    np.testing.assert_array_equal(parts, whole)
    assert whole.shape == (2000,)


def test_scoring_needs_marks() -> None:
    with pytest.raises(UserError, match="nothing to score"):
        score_table([], CONFIG)


def test_comparison_of_a_run_with_itself() -> None:
    answers = run("colors", [[1, 0], [0, 0]] * 10)
    result = compare_runs(answers, answers, CONFIG).overall
    assert (result.value, result.p) == (0.0, 1.0)
    # of other prompts nothing is known beyond these twenty: 1 - .025 ** (1 / 20)
    assert (result.low, result.high) == pytest.approx((-0.1684, 0.1684), abs=1e-4)


def test_comparison_finds_a_clear_difference() -> None:
    first, second = run("colors", [[0], [0], [1]] * 20), run("colors", [[1], [0], [1]] * 20)
    better = compare_runs(first, second, CONFIG)
    assert better.overall.value == pytest.approx(1 / 3)
    assert 0 < better.overall.low < 1 / 3 < better.overall.high
    assert better.overall.p < 0.01
    worse = compare_runs(second, first, CONFIG)
    assert worse.overall.value == pytest.approx(-1 / 3)
    assert worse.overall.low == pytest.approx(-better.overall.high)
    assert worse.tasks["colors"].p == better.tasks["colors"].p
    assert set(better.to_json()) == {"overall", "tasks"}
    assert better.to_json()["tasks"]["colors"]["difference"] == better.overall.value


def test_comparison_is_paired() -> None:
    """A small gain on a sixth of the prompts: unpaired intervals overlap, the paired one excludes zero."""
    first = run("colors", [[0], [0], [1], [1], [0], [1]] * 10)
    second = run("colors", [[0], [1], [1], [1], [0], [1]] * 10)
    a, b = (score_table(answers, CONFIG).overall for answers in (first, second))
    assert a.high > b.low
    assert compare_runs(first, second, CONFIG).overall.low > 0


def test_an_interval_is_never_of_no_width() -> None:
    """Resamples are alike where a task's prompts agree, also where tasks differ, and in differences."""
    half, right = run("colors", [[1, 0, 1, 0]] * 8), run("counting", [[1, 1]] * 8)
    whole = score_table(half + right, CONFIG)
    assert whole.overall.value == 0.75
    ends = [np.mean([getattr(s, side) for s in whole.tasks.values()]) for side in ("low", "high")]
    assert [whole.overall.low, whole.overall.high] == pytest.approx(ends)
    better = compare_runs(run("colors", [[0]] * 10), run("colors", [[1]] * 10), CONFIG).overall
    # up to 1 - .025 ** (1 / 10) of the prompts may be of another kind, and differ by -1 instead of 1
    assert (better.low, better.high) == pytest.approx((1 - 2 * 0.3085, 1.0), abs=1e-3)


def test_few_prompts_prove_little() -> None:
    """Two prompts, both better: of four ways to exchange results, two are as extreme, so p is about .5."""
    result = compare_runs(run("colors", [[0], [0]]), run("colors", [[1], [1]]), CONFIG).overall
    assert result.value == 1.0
    assert result.p == pytest.approx(0.5, abs=0.05)


def test_p_values_are_uniform_when_runs_do_not_differ() -> None:
    generator = np.random.default_rng(5)
    small = BootstrapConfig(resamples=200)
    ps = []
    for _ in range(150):
        first, second = (run("colors", generator.integers(2, size=(40, 2)).tolist()) for _ in range(2))
        ps.append(compare_runs(first, second, small).overall.p)
    assert 0.01 <= np.mean(np.array(ps) <= 0.1) <= 0.19
    assert 0.4 <= np.mean(ps) <= 0.7


def test_comparison_counts_each_task_the_same() -> None:
    first = run("colors", [[0]] * 4) + run("counting", [[1]] * 40)
    second = run("colors", [[1]] * 4) + run("counting", [[1]] * 40)
    result = compare_runs(first, second, CONFIG)
    assert result.overall.value == 0.5
    assert (result.tasks["colors"].value, result.tasks["counting"].value) == (1.0, 0.0)


def test_runs_over_different_prompts_are_refused() -> None:
    with pytest.raises(UserError, match=r"1 only in the first, 0 in the second"):
        compare_runs(run("colors", [[1], [0]]), run("colors", [[1]]), CONFIG)


def test_p_value_counts_ties_and_is_never_zero() -> None:
    assert p_value(0.3, np.array([0.1, -0.3, 0.2, 0.1 + 0.2])) == 3 / 5
    assert p_value(1.0, np.zeros(99)) == 0.01


def test_interval_is_the_middle_of_the_replicates() -> None:
    assert interval(np.arange(101) / 100, 0.9) == pytest.approx((0.05, 0.95))


@pytest.mark.parametrize("field", [{"resamples": 10}, {"coverage": 1.0}])
def test_settings_out_of_range_are_refused(field: dict[str, float]) -> None:
    with pytest.raises(UserError, match=next(iter(field))):
        BootstrapConfig(**field)  # pyright: ignore[reportArgumentType]


def test_soft_values_and_several_tasks_an_image() -> None:
    marks = [
        Mark("a", 0.5, (("count", 0.25), ("count", 0.75), ("object", 1.0))),
        Mark("b", 0.1, (("object", 0.5),)),
    ]
    table = score_table(marks, CONFIG, overall="images", order=("object", "count"))
    assert list(table.tasks) == ["object", "count"]
    assert (table.tasks["count"].value, table.tasks["count"].num_images) == (0.5, 2)
    assert table.tasks["object"].value == 0.75
    assert table.overall.value == pytest.approx(0.3), "the mean of the images' own scores, not of the tasks"
    assert (table.overall.num_prompts, table.overall.num_images) == (2, 2)
    assert score_table(marks, CONFIG).overall.value == 0.625, "the plain mean of the tasks"


def test_soft_runs_are_compared_by_their_images_scores() -> None:
    first = [Mark(f"{i}", 0.2, (("object", 0.9),)) for i in range(20)]
    second = [Mark(f"{i}", 0.2 + 0.01 * i, (("object", 0.9),)) for i in range(20)]
    found = compare_runs(first, second, CONFIG, overall="images")
    assert found.overall.value == pytest.approx(0.095)
    assert found.overall.p < 0.01
    assert (found.tasks["object"].value, found.tasks["object"].p) == (0.0, 1.0)


def test_the_order_of_a_prompts_images_does_not_show() -> None:
    values = [0.1, 0.2, 0.3, 1e-17, 0.7]
    tables = [score_table(run("a", [list(order)]), CONFIG) for order in (values, values[::-1])]
    assert tables[0] == tables[1]
