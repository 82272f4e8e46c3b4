"""Compare: what several reports found, side by side, and whether the later ones are better than the first."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lightgen.core.artifact import Artifact, begin_artifact, open_artifact
from lightgen.core.config import config_from_dict, differences
from lightgen.core.errors import UserError
from lightgen.evals.published import published
from lightgen.evals.report import Fact, Report
from lightgen.evals.statistics import BootstrapConfig
from lightgen.evals.tables import OVERALL, Comparison, Mark, ScoreTable, compare_runs, score_table
from lightgen.stages.judge import mark_of
from lightgen.stages.score_page import Scored, add_scores, tidy

_MAX_PROMPTS = 24
# What names a run and says nothing of how it was judged.
_PASSING = ("subjects", "reference", "bootstrap", "pictures", "fidelity", "features", "scorer")


@dataclass(frozen=True)
class Run:
    """One subject of a report.

    Attributes:
        name: of report and subject, or of the report alone where it has one subject.
        marks: of all its images.
        texts: prompt of each mark's prompt, by its name there.
        table: its scores.
        settings: how it was made and judged.
    """

    name: str
    marks: list[Mark]
    texts: dict[str, str]
    table: ScoreTable
    settings: dict[str, Any]


@dataclass(frozen=True)
class Compared:
    """Runs, and each later one against the first.

    Attributes:
        benchmark, measure: of all of them.
        runs: at least two.
        comparisons: (first, later, differences), for those that judged the same prompts.
        unlike: (run, key, value of the first, value of the run): settings that are not those of the first.
    """

    benchmark: str
    measure: str
    runs: list[Run]
    comparisons: list[tuple[str, str, Comparison]]
    unlike: list[tuple[str, str, str, str]]

    def lines(self) -> Iterator[str]:
        """Text of the tables, a line each."""
        tasks = list(dict.fromkeys(task for run in self.runs for task in run.table.tasks))
        width = max(map(len, (OVERALL, *tasks)))
        yield f"{self.benchmark}: {self.measure}"
        for run in self.runs:
            yield f"\n{run.name}"
            scores = {OVERALL: run.table.overall, **run.table.tasks}
            for name in (OVERALL, *tasks):
                if name in scores:
                    s = scores[name]
                    yield f"  {name:<{width}}  {s.value:.3f} ({s.low:.3f} to {s.high:.3f})"
        for first, second, comparison in self.comparisons:
            yield f"\n{second} minus {first}, paired by prompt"
            for name, d in {OVERALL: comparison.overall, **comparison.tasks}.items():
                value = f"{tidy(d.value):+.3f} ({d.low:+.3f} to {d.high:+.3f})"
                yield f"  {name:<{width}}  {value}  p {d.p:.4f}"
        for run, key, was, now in self.unlike:
            yield f"note: {run} has {key} {now}, the first {was}"


def compare(reports: Sequence[str | Path]) -> Compared:
    """The subjects of all reports against the first subject of the first, by its intervals and tests.

    Args:
        reports: report artifacts of one benchmark, made by `evaluate`.

    Raises:
        UserError: fewer than two subjects, a report of something else, or of another benchmark.
    """
    if not reports:
        raise UserError("compare: got no report, allowed: one or more that hold two runs together")
    found = [_read(path) for path in reports]
    bootstrap = config_from_dict(BootstrapConfig, found[0][1]["settings"]["bootstrap"])
    names = {report["scoring"]["name"] for _, report in found}
    if len(names) > 1:
        raise UserError(f"compare: got reports of {' and '.join(sorted(names))}, allowed: of one benchmark")
    runs = [run for path, report in found for run in _runs(path, report, bootstrap)]
    if len(runs) < 2:
        raise UserError(f"compare: got {len(runs)} run, allowed: two or more, of one or more reports")
    twice = {run.name for run in runs if sum(other.name == run.name for other in runs) > 1}
    runs = [replace(r, name=f"{n}-{r.name}") if r.name in twice else r for n, r in enumerate(runs, 1)]
    scoring = found[0][1]["scoring"]
    first, comparisons, unlike = runs[0], [], []
    for run in runs[1:]:
        if {mark.prompt for mark in first.marks} == {mark.prompt for mark in run.marks}:
            how = scoring["overall"], scoring["order"]
            comparisons.append((first.name, run.name, compare_runs(first.marks, run.marks, bootstrap, *how)))
        else:
            counts = [str(len({mark.prompt for mark in each.marks})) for each in (first, run)]
            unlike.append((run.name, "prompts, which are others, so nothing is paired:", *counts))
        unlike += [(run.name, *each) for each in differences(first.settings, run.settings)]
    return Compared(scoring["name"], scoring["measure"], runs, comparisons, unlike)


def write_comparison(out: str | Path, reports: Sequence[str | Path]) -> tuple[Artifact, Compared]:
    """Report artifact of a comparison, and the comparison; arguments and refusals as of `compare`."""
    compared = compare(reports)
    parents = [open_artifact(path, "report") for path in reports]
    found = begin_artifact(out, "report", {"stage": "compare"}, parents)
    if isinstance(found, Artifact):
        return found, compared
    with found as workspace:
        workspace.write_json("report.json", _to_json(compared))
        workspace.write_bytes("report.html", _page(compared).encode())
        return workspace.commit({"subjects": len(compared.runs)}), compared


def _read(path: str | Path) -> tuple[Path, dict[str, Any]]:
    artifact = open_artifact(path, "report")
    file = artifact.path / "report.json"
    report = json.loads(file.read_bytes()) if file.is_file() else {}
    if "scoring" not in report or not all("images" in each for each in report["subjects"]):
        raise UserError(f"{path}: holds no verdicts on images, allowed: a report of `lightgen evaluate`")
    return Path(path), report


def _runs(path: Path, report: dict[str, Any], bootstrap: BootstrapConfig) -> Iterator[Run]:
    place = path.resolve().name
    settings = {key: value for key, value in report["settings"].items() if key not in _PASSING}
    for subject in report["subjects"]:
        marks = [mark_of(image) for image in subject["images"]]
        table = score_table(marks, bootstrap, report["scoring"]["overall"], report["scoring"]["order"])
        alone = len(report["subjects"]) == 1
        name = place if alone else f"{place}/{subject['name']}"
        texts = {image["prompt_id"]: image["prompt"] for image in subject["images"]}
        yield Run(name, marks, texts, table, settings)


def _to_json(compared: Compared) -> dict[str, Any]:
    return {
        "benchmark": compared.benchmark,
        "measure": compared.measure,
        "subjects": [{"name": run.name, **run.table.to_json()} for run in compared.runs],
        "comparisons": [
            {"first": first, "second": second, **comparison.to_json()}
            for first, second, comparison in compared.comparisons
        ],
        "unlike": [list(each) for each in compared.unlike],
    }


def _page(compared: Compared) -> str:
    """HTML of the comparison."""
    overall = ", ".join(f"{run.name} {run.table.overall.value:.3f}" for run in compared.runs)
    page = Report(f"{compared.benchmark}, compared", f"Overall: {overall}.")
    page.facts([Fact(f"{run.table.overall.value:.3f}", run.name, _span(run.table)) for run in compared.runs])
    runs = [Scored(run.name, run.table) for run in compared.runs]
    add_scores(page, runs, compared.comparisons, compared.measure)
    rows = published(compared.benchmark)
    if rows:
        page.section("Beside published numbers", "As printed in their sources, under their own settings.")
        page.table(
            ["model", OVERALL, "source"],
            [[run.name, run.table.overall.value, "this comparison"] for run in compared.runs]
            + [[row.model, row.overall, row.source] for row in rows],
            compared.benchmark,
        )
    by_name = {run.name: run for run in compared.runs}
    for first, second, _ in compared.comparisons:
        _add_prompts(page, by_name[first], by_name[second])
    if compared.unlike:
        page.section("What was not the same", "Settings of a run that are not those of the first.")
        page.table(
            ["run", "setting", "first", "this run"],
            [list(each) for each in compared.unlike],
            "A difference of scores may come from these",
        )
    return page.html()


def _add_prompts(page: Report, first: Run, second: Run) -> None:
    """Add the prompts whose mean score changed the most."""
    means = [_means(run) for run in (first, second)]
    changed = [(means[1][p] - means[0][p], p) for p in means[0] if means[1][p] != means[0][p]]
    changed.sort(key=lambda each: (-abs(each[0]), each[1]))
    if changed:
        won = sum(gain > 0 for gain, _ in changed)
        page.section(
            f"Prompts: {second.name} against {first.name}",
            f"{won} of {len(means[0])} prompts score higher, {len(changed) - won} lower.",
        )
        page.table(
            ["prompt", first.name, second.name, "change"],
            [
                [first.texts[prompt], means[0][prompt], means[1][prompt], tidy(gain)]
                for gain, prompt in changed[:_MAX_PROMPTS]
            ],
            "The largest changes",
        )


def _means(run: Run) -> dict[str, float]:
    found: dict[str, list[float]] = {}
    for mark in run.marks:
        found.setdefault(mark.prompt, []).append(mark.score)
    return {prompt: sum(scores) / len(scores) for prompt, scores in found.items()}


def _span(table: ScoreTable) -> str:
    return f"{table.overall.low:.3f} to {table.overall.high:.3f}"
