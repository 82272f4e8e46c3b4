"""The page of an evaluation: scores with intervals, pictures with right and wrong, reasons, cost."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lightgen.core.prompt import TAGS
from lightgen.evals.bars import Bar
from lightgen.evals.report import Fact, Picture, Report
from lightgen.evals.scores import Comparison, ImageVerdict, Score, ScoreTable
from lightgen.stages.inputs import ImageInputs

_MAX_REASONS = 12


@dataclass(frozen=True)
class Subject:
    """One judged run: its pictures, a verdict each in the same order, and the scores."""

    name: str
    digest: str
    images: ImageInputs
    verdicts: Sequence[ImageVerdict]
    table: ScoreTable

    def broken(self) -> dict[str, int]:
        """How often each rule was broken."""
        return dict(Counter(rule for verdict in self.verdicts for rule in verdict.broken).most_common())

    def records(self) -> list[dict[str, Any]]:
        """Key, prompt and verdict of each picture."""
        return [
            {"key": self.images.key(i), "prompt": v.prompt.prompt, "correct": v.correct, "reason": v.reason}
            for i, v in enumerate(self.verdicts)
        ]

    def shown(self, most: int) -> Iterator[int]:
        """Numbers of at most `most` pictures: the first of each task, in turn."""
        by_task = [[i for i, v in enumerate(self.verdicts) if v.prompt.tag == tag] for tag in TAGS]
        count = 0
        for place in range(len(self.verdicts)):
            for task in by_task:
                if place < len(task) and count < most:
                    count += 1
                    yield task[place]


def score_page(
    subjects: Sequence[Subject],
    comparisons: Sequence[tuple[str, str, Comparison]],
    report: Mapping[str, Any],
    pictures: int,
) -> str:
    """HTML of the report on all subjects."""
    overall = ", ".join(f"{s.name} {s.table.overall.value:.3f}" for s in subjects)
    page = Report(
        "nano-GenEval",
        f"Share of pictures that show what their prompt asks for, by the nano detector: {overall}.\n\n"
        "A nano score is not a GenEval score: the world, the detector and the prompts are its own.",
    )
    page.facts([_fact(subject) for subject in subjects])
    add_scores(page, subjects, comparisons)
    for subject in subjects:
        add_pictures(page, subject, pictures)
    page.section("Cost")
    page.timeline([(name, value, "") for name, value in report["seconds"].items()], "Seconds of each part")
    page.section("How it was made")
    page.settings("Settings", report["settings"])
    page.settings("Self-test of the detector", report["self_test"])
    page.settings("Parents", {each["name"]: each["digest"] for each in report["parents"]})
    return page.html()


def add_scores(
    page: Report, subjects: Sequence[Subject], comparisons: Sequence[tuple[str, str, Comparison]]
) -> None:
    """Add the section with the table, bars and paired differences."""
    page.section("Scores", "Intervals hold 95 % of resampled sets of prompts, unless set otherwise.")
    names = ("overall", *(tag for tag in TAGS if any(tag in s.table.tasks for s in subjects)))
    rows = [[name, *(_score_text(_score(s.table, name)) for s in subjects)] for name in names]
    page.table(["task", *(s.name for s in subjects)], rows, "Share of right pictures, with intervals")
    bars = {
        s.name: [Bar(n, score.value, score.low, score.high) for n in names if (score := _score(s.table, n))]
        for s in subjects
    }
    page.bars(bars, "Share of right pictures", maximum=1.0)
    for first, second, comparison in comparisons:
        entries = {"overall": comparison.overall, **comparison.tasks}
        page.table(
            ["task", "difference", "from", "to", "p"],
            [[name, tidy(d.value), d.low, d.high, d.p] for name, d in entries.items()],
            f"{second} minus {first}, paired by prompt",
        )


def add_pictures(page: Report, subject: Subject, most: int) -> None:
    """Add the section with a subject's pictures, marked right or wrong, and why pictures are wrong."""
    page.section(f"Pictures of {subject.name}")
    page.pictures(
        [
            Picture(
                subject.images.encoded(i).data, subject.verdicts[i].prompt.prompt, subject.verdicts[i].correct
            )
            for i in subject.shown(most)
        ],
        "Taken in turn from each task, not chosen",
    )
    wrong = [verdict for verdict in subject.verdicts if not verdict.correct]
    if wrong:
        page.table(
            ["broken rule", "times"],
            [[rule, times] for rule, times in subject.broken().items()],
            "What went wrong",
        )
        page.table(
            ["prompt", "reason"],
            [[verdict.prompt.prompt, verdict.reason.replace("\n", "; ")] for verdict in wrong[:_MAX_REASONS]],
            f"The first of {len(wrong)} wrong pictures",
        )


def tidy(difference: float) -> float:
    """The difference without the last-digit noise of subtracting means, which a table would show as 1e-18."""
    return round(difference, 9) + 0.0


def _fact(subject: Subject) -> Fact:
    score = subject.table.overall
    return Fact(f"{score.value:.3f}", subject.name, f"{score.low:.3f} to {score.high:.3f}")


def _score(table: ScoreTable, name: str) -> Score | None:
    return table.overall if name == "overall" else table.tasks.get(name)


def _score_text(score: Score | None) -> str | None:
    return None if score is None else f"{score.value:.3f} ({score.low:.3f} to {score.high:.3f})"
