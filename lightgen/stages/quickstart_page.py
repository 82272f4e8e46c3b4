"""The page of the quickstart: pictures at every stage, curves, scores and cost."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightgen.core.artifact import open_artifact
from lightgen.core.metrics import read_metrics
from lightgen.data.images import ImageShards
from lightgen.evals.bars import Bar
from lightgen.evals.report import Fact, Picture, Report
from lightgen.stages.journal import Journal
from lightgen.stages.score_page import tidy
from lightgen.stages.tasks import PretrainTask
from lightgen.stages.train import STATE, TrainConfig

_TEACHER_PICTURES = 18
_PROMPTS_SHOWN = 6
_PAIRS_SHOWN = 24
# p-value below which a difference is called one
_CLEAR = 0.05


def quickstart_page(pretrain: TrainConfig, out: Path, journal: Journal) -> str:
    """HTML of the report on a finished quickstart in `out`."""
    scores = json.loads((out / "scores" / "report.json").read_text())
    before, after = scores["subjects"]
    comparison = scores["comparisons"][0]["overall"]
    is_clear = comparison["p"] < _CLEAR
    verdict = "more than chance explains" if is_clear else "no more than chance can explain"
    minutes = sum(seconds for seconds, _ in journal.costs().values()) / 60
    page = Report(
        "LightGen in a quarter of an hour",
        "A teacher draws, a student learns, preferences repair it, a benchmark measures it: the whole "
        f"paradigm at nano scale. Preferences moved the score from {before['overall']:.3f} to "
        f"{after['overall']:.3f} (p = {comparison['p']:.3f}), {verdict}.\n\nThe scores are nano-GenEval, on "
        "test prompts whose combinations of words occur in no training caption; they are no GenEval scores.",
    )
    page.facts(
        [
            _score_fact("before preferences", before),
            _score_fact("after preferences", after),
            Fact(f"{minutes:.1f} min", "in all"),
        ]
    )
    _teacher(page, out)
    _student(page, out, pretrain)
    _samples(page, out)
    _preferences(page, out)
    _scores(page, out, scores)
    page.section("Time and cost")
    page.timeline(journal.rows(), "Every stage, interrupted runs included")
    page.settings("Artifacts", {p.name: open_artifact(p, verify=False).digest for p in _artifacts(out)})
    return page.html()


def _score_fact(label: str, subject: Mapping[str, Any]) -> Fact:
    low, high = subject["intervals"]["overall"]
    return Fact(f"{subject['overall']:.3f}", label, f"{low:.3f} to {high:.3f}")


def _artifacts(out: Path) -> list[Path]:
    return sorted(path.parent for path in out.glob("*/manifest.json"))


def _teacher(page: Report, out: Path) -> None:
    shards = ImageShards(out / "teacher")
    wrong = sum(bool(shards.meta(i).get("errors")) for i in range(len(shards)))
    page.section(
        "The teacher",
        f"{len(shards):,} scenes, composed of emoji after captions. Like real teachers this one errs: "
        f"{wrong / len(shards):.0%} of its pictures have a wrong count, place or colour, or are blurred.",
    )
    pictures = []
    for i in range(min(_TEACHER_PICTURES, len(shards))):
        meta = shards.meta(i)
        errors = ", ".join(each.replace("_", " ") for each in meta.get("errors", []))
        caption = meta["prompt"] + (f" ({errors})" if errors else "")
        pictures.append(Picture(shards.encoded(i).data, caption, not errors))
    page.pictures(pictures, "The first scenes; the student is not told which are wrong")


def _student(page: Report, out: Path, pretrain: TrainConfig) -> None:
    task = pretrain.task
    fresh = isinstance(task, PretrainTask) and task.model is not None
    manifest = open_artifact(out / "student", verify=False).manifest
    origin = "from nothing" if fresh else "on from the shipped student"
    page.section(
        "The student learns",
        f"{manifest['counts']['steps']:,} optimizer steps, {origin}: part of each picture is hidden, and the "
        "student predicts it from the rest and the caption.",
    )
    metrics = _metrics(out, "student")
    page.plot({"loss": _line(metrics, "loss")}, "step", "loss", "Masked flow loss", smooth=9)


def _samples(page: Report, out: Path) -> None:
    shards = ImageShards(out / "ranked")
    right = sum(bool(shards.meta(i).get("correct")) for i in range(len(shards)))
    groups: dict[str, list[int]] = {}
    for i in range(len(shards)):
        groups.setdefault(shards.meta(i)["prompt"], []).append(i)
    page.section(
        "Its own pictures, judged",
        f"{len(shards):,} pictures of {len(groups):,} training prompts; the detector calls "
        f"{right / len(shards):.0%} of them right. Prompts with both kinds teach the difference.",
    )
    mixed = [g for g in groups.values() if len({bool(shards.meta(i).get("correct")) for i in g}) == 2]
    chosen = [i for group in (mixed or list(groups.values()))[:_PROMPTS_SHOWN] for i in group]
    columns = max(len(group) for group in groups.values())
    page.pictures(
        [_judged(shards, i) for i in chosen], "Pictures of one prompt side by side", columns=columns
    )


def _preferences(page: Report, out: Path) -> None:
    manifest = open_artifact(out / "preferred", verify=False).manifest
    pairs = manifest["pairs"]
    page.section(
        "Preferences",
        f"{pairs['pairs']} pairs of a right and a wrong picture of one prompt, of {pairs['prompts']} "
        f"prompts; {manifest['counts']['steps']:,} steps of direct preference optimization. Accuracy is the "
        "share of pairs on which the student has moved more towards the right picture than the wrong one.",
    )
    metrics = _metrics(out, "preferred")
    page.plot({"loss": _line(metrics, "loss")}, "step", "loss", "Preference loss", smooth=5)
    page.plot({"accuracy": _line(metrics, "accuracy")}, "step", "accuracy", "Preference accuracy", smooth=5)
    page.plot(
        {name.split("_")[0]: _line(metrics, name) for name in ("chosen_change", "rejected_change")},
        "step",
        "change of error",
        "Error of the student minus that of the reference, on chosen and rejected pictures",
        smooth=5,
    )


def _scores(page: Report, out: Path, scores: Mapping[str, Any]) -> None:
    subjects = scores["subjects"]
    page.section("Before and after", "Scores on test prompts, with 95 % intervals over prompts.")
    names = ["overall", *subjects[0]["tasks"]]
    page.bars(
        {each["name"]: [_bar(each, name) for name in names] for each in subjects},
        "Share of right pictures",
        maximum=1.0,
    )
    entries = {"overall": scores["comparisons"][0]["overall"], **scores["comparisons"][0]["tasks"]}
    page.table(
        ["task", "before", "after", "difference", "from", "to", "p"],
        [
            [name, *(_value(each, name) for each in subjects), tidy(e["difference"]), *e["interval"], e["p"]]
            for name, e in entries.items()
        ],
        "Paired by prompt; p is the probability of so large a difference if there were none",
    )
    before, after = ImageShards(out / "before"), ImageShards(out / "after")
    pictures = []
    for i in range(min(_PAIRS_SHOWN, len(before))):
        for shards, subject in zip((before, after), subjects, strict=True):
            judged = subject["images"][i]
            pictures.append(Picture(shards.encoded(i).data, judged["prompt"], judged["correct"]))
    page.pictures(
        pictures, "The same prompt and seed", headings=("before", "after") * 2 if len(pictures) > 2 else None
    )


def _judged(shards: ImageShards, i: int) -> Picture:
    meta = shards.meta(i)
    return Picture(shards.encoded(i).data, meta["prompt"], bool(meta.get("correct")))


def _metrics(out: Path, name: str) -> list[dict[str, Any]]:
    return read_metrics(out / name / STATE / "metrics.jsonl")


def _line(metrics: Sequence[Mapping[str, Any]], name: str) -> list[tuple[float, float]]:
    return [(m["step"], m[name]) for m in metrics if m.get(name) is not None]


def _value(subject: Mapping[str, Any], name: str) -> float:
    return subject["overall"] if name == "overall" else subject["tasks"][name]


def _bar(subject: Mapping[str, Any], name: str) -> Bar:
    low, high = subject["intervals"][name]
    return Bar(name, _value(subject, name), low, high)
