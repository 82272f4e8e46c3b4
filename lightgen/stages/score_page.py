"""The page of an evaluation: scores with intervals, pictures with right and wrong, reasons, cost."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lightgen.evals.bars import Bar
from lightgen.evals.published import published
from lightgen.evals.report import Fact, Report
from lightgen.evals.tables import OVERALL, Comparison, Score, ScoreTable
from lightgen.stages.fidelity_page import add_fidelity, fidelity_facts
from lightgen.stages.judge import Scoring
from lightgen.stages.result import Result
from lightgen.stages.score_pictures import Thumbnails, add_pictures, add_won_and_lost, score_text

# Prompts of a benchmark, fewer of which are not it.
_WHOLE = {"GenEval": 553, "GenEval 2": 800}


def score_page(
    scoring: Scoring | None,
    results: Sequence[Result],
    comparisons: Sequence[tuple[str, str, Comparison]],
    report: Mapping[str, Any],
    pictures: int,
) -> str:
    """HTML of the report on all results; at most `pictures` of them show what was judged."""
    page = _headed(scoring, results)
    shown = Thumbnails(results, pictures)
    if scoring is not None:
        add_scores(page, judged_of(results), comparisons, scoring.measure)
        _add_published(page, scoring.name, results)
    add_fidelity(page, results)
    for first, second, _ in comparisons:
        add_won_and_lost(page, shown, _named(results, first), _named(results, second))
    for result in results:
        add_pictures(page, shown, result)
    _add_cost(page, results, report)
    page.section("How it was made")
    page.settings("Settings", report["settings"])
    page.settings("Self-test of the judge", report["self_test"])
    page.settings("Parents", {each["name"]: each["digest"] for each in report["parents"]})
    return page.html()


def _headed(scoring: Scoring | None, results: Sequence[Result]) -> Report:
    """Report with its heading and the headline numbers."""
    if scoring is None:
        page = Report("Fidelity", "How far sets of pictures are from reference images, as sets.")
        page.facts([fact for result in results for fact in fidelity_facts(result)])
        return page
    judged = judged_of(results)
    overall = ", ".join(f"{each.name} {each.table.overall.value:.3f}" for each in judged)
    measure = scoring.measure[0].upper() + scoring.measure[1:]
    note = f"\n\n{scoring.note}" if scoring.note else ""
    page = Report(scoring.name, f"{measure}, overall: {overall}.{note}")
    page.facts([_fact(each) for each in judged])
    return page


@dataclass(frozen=True)
class Scored:
    """A name and the scores of it."""

    name: str
    table: ScoreTable


def judged_of(results: Sequence[Result]) -> list[Scored]:
    """Names and scores of the results that were judged."""
    return [Scored(result.name, result.table) for result in results if result.table is not None]


def add_scores(
    page: Report,
    results: Sequence[Scored],
    comparisons: Sequence[tuple[str, str, Comparison]],
    measure: str,
) -> None:
    """Add the section with the table, bars and paired differences."""
    counts = ", ".join(
        f"{r.name} {r.table.overall.num_prompts:,} prompts of {len(r.table.tasks)} tasks" for r in results
    )
    text = "Intervals hold 95 % of resampled sets of prompts, unless set otherwise. Judged:"
    page.section("Scores", f"{text} {counts}.")
    tasks = list(dict.fromkeys(task for result in results for task in result.table.tasks))
    names = (OVERALL, *tasks)
    rows = [[name, *(score_text(_score(r.table, name)) for r in results)] for name in names]
    caption = measure[0].upper() + measure[1:]
    page.table(["task", *(r.name for r in results)], rows, f"{caption}, with intervals")
    bars = {
        r.name: [Bar(n, score.value, score.low, score.high) for n in names if (score := _score(r.table, n))]
        for r in results
    }
    page.bars(bars, caption, maximum=1.0)
    for first, second, comparison in comparisons:
        entries = {OVERALL: comparison.overall, **comparison.tasks}
        page.table(
            ["task", "difference", "from", "to", "p"],
            [[name, tidy(d.value), d.low, d.high, d.p] for name, d in entries.items()],
            f"{second} minus {first}, paired by prompt; p is the probability of so large a difference if "
            "there were none",
        )


def tidy(difference: float) -> float:
    """The difference without the last-digit noise of subtracting means, which a table would show as 1e-18."""
    return round(difference, 9) + 0.0


def _add_published(page: Report, benchmark: str, results: Sequence[Result]) -> None:
    rows = published(benchmark)
    whole = all(each.table.overall.num_prompts >= _WHOLE.get(benchmark, 1) for each in judged_of(results))
    if not rows or not whole:  # a part of a benchmark is none
        return
    judged = judged_of(results)
    tasks = [task for task in judged[0].table.tasks if any(task in row.tasks for row in rows)]
    own = [
        [f"{each.name} (this report)", *(_value(each.table, name) for name in (OVERALL, *tasks)), ""]
        for each in judged
    ]
    others = [
        [row.model, row.overall, *(row.tasks.get(t) for t in tasks), row.source]
        for row in sorted(rows, key=lambda row: -row.overall)
    ]
    page.section("Beside published numbers", "As printed in their sources, under their own settings.")
    page.table(["model", OVERALL, *tasks, "source"], own + others, f"{benchmark}, best first")


def _add_cost(page: Report, results: Sequence[Result], report: Mapping[str, Any]) -> None:
    parts = {
        "decoding, TFLOP an image": "tflop_per_image",
        "drawing, seconds an image": "draw_s_per_image",
        "judging, seconds an image": "judge_s_per_image",
        "most memory of this process, GB": "memory_gb",
    }
    page.section(
        "Cost",
        "TFLOP are counted on the decoder that ran, without text encoder and autoencoder. Seconds are those "
        "of this machine, all ranks together taken as one, interrupted runs included.",
    )
    page.table(
        ["cost", *(r.name for r in results)],
        [[words, *(r.cost.get(key) for r in results)] for words, key in parts.items()],
        "Cost of one picture",
    )
    page.timeline([(name, value, "") for name, value in report["seconds"].items()], "Seconds of each part")


def _named(results: Sequence[Result], name: str) -> Result:
    return next(result for result in results if result.name == name)


def _fact(scored: Scored) -> Fact:
    score = scored.table.overall
    return Fact(f"{score.value:.3f}", scored.name, f"{score.low:.3f} to {score.high:.3f}")


def _score(table: ScoreTable, name: str) -> Score | None:
    return table.overall if name == OVERALL else table.tasks.get(name)


def _value(table: ScoreTable, name: str) -> float | None:
    score = _score(table, name)
    return None if score is None else score.value
