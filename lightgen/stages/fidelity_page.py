"""Fidelity on the page of an evaluation: distances of sets of pictures to reference images."""

from collections.abc import Sequence

from lightgen.evals.report import Cell, Fact, Report
from lightgen.stages.fidelity import Measured
from lightgen.stages.result import Result


def fidelity_facts(result: Result) -> list[Fact]:
    """Headline number of a result: the first distance that was measured."""
    if result.fidelity is None:
        return []
    first = result.fidelity.measured[0]
    return [Fact(f"{first.value:.4g}", result.name, f"{first.name}, {first.better} is better")]


def add_fidelity(page: Report, results: Sequence[Result]) -> None:
    """Add the section with the distances of all results, their mean scores, and what to know of them."""
    if not any(result.fidelity or result.score for result in results):
        return
    page.section("Fidelity", "Numbers on sets of pictures, which do not say whether any of them is right.")
    rows = [row for result in results for row in _rows(result)]
    names = list(dict.fromkeys(row[0] for row in rows))
    rows.sort(key=lambda row: names.index(row[0]))  # stable: results of one metric side by side
    page.table(
        ["metric", "pictures", "value", "interval or spread", "without a difference", "better"],
        rows,
        "Distances to the reference; intervals and spreads as docs/evaluation.md says",
    )
    notes = dict.fromkeys(note for r in results if r.fidelity is not None for note in r.fidelity.notes)
    page.text("\n\n".join(f"{note}." for note in notes))


def _rows(result: Result) -> list[list[Cell]]:
    measured = result.fidelity.measured if result.fidelity is not None else ()
    rows: list[list[Cell]] = [
        [each.name, result.name, each.value, _spread(each), each.floor, each.better] for each in measured
    ]
    if result.score is not None:
        low, high = result.score.interval
        rows.append(
            [result.score.name, result.name, result.score.value, f"{low:.3f} to {high:.3f}", None, "higher"]
        )
    return rows


def _spread(measured: Measured) -> str | None:
    if measured.interval is not None:
        return f"{measured.interval[0]:.3f} to {measured.interval[1]:.3f}"
    return None if measured.std is None else f"± {measured.std:.4f} over subsets"
