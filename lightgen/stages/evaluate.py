"""Evaluate: checkpoints or images become a report that says what they show, and how sure that is."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lightgen.core.artifact import Artifact, Workspace
from lightgen.core.config import config_to_dict
from lightgen.core.errors import UserError
from lightgen.core.prompt import Prompt
from lightgen.core.ranks import answers_expected, meet, num_ranks, rank
from lightgen.core.together import PATIENCE_S, begin_together, commit_together
from lightgen.data.prompts import read_prompts
from lightgen.data.results_file import result_lines
from lightgen.evals.tables import Comparison, compare_runs
from lightgen.stages.distill import NanoPrompts, load_prompts, nano_prompts
from lightgen.stages.engine import LOCAL, EngineConfig
from lightgen.stages.evaluate_config import EvaluateConfig
from lightgen.stages.evaluate_run import WORK, EvaluateRun
from lightgen.stages.features import find_features
from lightgen.stages.fetch import GENEVAL, fetch
from lightgen.stages.fidelity import FidelityConfig, check_counts
from lightgen.stages.inputs import open_images
from lightgen.stages.judge import Judge
from lightgen.stages.object_judge import ObjectJudge, ObjectJudgeConfig
from lightgen.stages.question_judge import QuestionJudge, QuestionJudgeConfig
from lightgen.stages.result import Result
from lightgen.stages.score_page import score_page
from lightgen.stages.scorer import ScorerPlace, find_scorer
from lightgen.stages.subjects import Subject, open_subjects


def evaluate(
    config: EvaluateConfig,
    out: str | Path,
    subjects: Sequence[str | Path],
    prompts: Sequence[str | Path] = (),
    detector: str | Path | None = None,
    engine: EngineConfig = LOCAL,
    reference: str | Path | None = None,
) -> Artifact:
    """Report artifact: a page, `report.json` with `overall` and `tasks` (of the first subject), results.

    Under torchrun all ranks call it and share the work, on a file system that all see.

    Args:
        config: how pictures are made and judged.
        out: where the artifact will be.
        subjects: checkpoints (`nano` too), or directories of images whose records hold their prompts.
        prompts: files of what is asked: in GenEval's schema, of GenEval 2, or of DPG-Bench; or an artifact of
            prompts. Images whose records do not say what they must show are looked up there by their prompt.
        detector: checkpoint or folder of the detector; the recipe's own unless named.
        engine: who draws and judges; the numbers do not depend on that.
        reference: images that fidelity is measured against; unnamed, with nano prompts, their own
            perfect renders.

    Raises:
        UserError: a subject, prompt, reference or judge that cannot be used, or a judge that fails its
            self-test.
    """
    if not subjects:
        raise UserError(
            "--in: got nothing, allowed: one or more of a checkpoint, `nano`, a directory of images"
        )
    config.check()
    opened = open_subjects(subjects)
    asked = _Asked.find(config, prompts, detector, draws=any(each.checkpoint for each in opened))
    real = _open_reference(config, reference)
    _check_images(config, asked, opened, real)
    scorer = None if config.scorer is None else find_scorer(config.scorer)
    all_images = [*opened, *([real] if real else [])]
    parents = [
        *asked.parents,
        *(artifact for each in all_images for artifact in each.artifacts),
        *(asked.judge.parents if asked.judge else ()),
    ]
    settings = {
        "stage": "evaluate",
        **config_to_dict(config),
        **asked.identity,
        **({"scorer_files": scorer.identity()} if scorer else {}),
        **({"features": _extractors(config.fidelity)} if config.fidelity else {}),
        "subjects": [each.identity() for each in opened],
        "reference": real.identity() if real else None,
    }
    with answers_expected(lambda: "an evaluation", PATIENCE_S):
        return _evaluate(config, Path(out), opened, asked, real, scorer, settings, parents, engine)


def _evaluate(
    config: EvaluateConfig,
    out: Path,
    opened: Sequence[Subject],
    asked: "_Asked",
    real: Subject | None,
    scorer: ScorerPlace | None,
    settings: dict[str, Any],
    parents: Sequence[Artifact],
    engine: EngineConfig,
) -> Artifact:
    found = begin_together(out, "report", settings, parents)
    if isinstance(found, Artifact):
        return found
    with found as workspace:
        if not workspace.has("report.html"):
            run = EvaluateRun(config, asked.judge, asked.prompts, real, scorer, workspace, engine)
            results = run.results(opened)
            if rank() == 0:
                _write(config, asked.judge, run, results, settings, parents, workspace)
            meet()
        report = json.loads((workspace.path / "report.json").read_bytes())
        counts = {"subjects": len(opened), "images": sum(each["num_images"] for each in report["subjects"])}
        if rank() == 0:  # only now: a run killed before this line still has its pictures
            workspace.remove(WORK)
        return commit_together(workspace, counts)


@dataclass(frozen=True)
class _Asked:
    """What is asked of the subjects, by whom, and where that comes from."""

    judge: Judge | None
    prompts: Sequence[Prompt]
    parents: Sequence[Artifact]
    identity: dict[str, Any]

    @staticmethod
    def find(
        config: EvaluateConfig, paths: Sequence[str | Path], detector: str | Path | None, *, draws: bool
    ) -> "_Asked":
        """What is asked; GenEval's own prompts are fetched only where a checkpoint draws them."""
        how, built_in = config.judge, config.prompts
        if detector is not None and not isinstance(how, ObjectJudgeConfig):
            raise UserError("--detector: got one, allowed: for benchmarks that a detector judges")
        if isinstance(how, QuestionJudgeConfig):
            if isinstance(built_in, NanoPrompts):
                raise UserError("prompts: got nano prompts without questions, allowed: a file with them")
            judge = QuestionJudge(how, built_in, paths)
            return _Asked(judge, judge.prompts(), (), judge.identity())
        asked: Sequence[Prompt] = []
        parents, identity = [], {}
        if paths:
            asked, _, parents, identity = load_prompts(config.drawing(), paths)
        elif isinstance(built_in, NanoPrompts):
            asked = nano_prompts(built_in)
        elif built_in is not None:
            raise UserError("prompts: got questions, allowed: with a judge that asks them")
        elif draws and how is None:
            raise UserError("--prompts: got nothing, allowed: what the checkpoints are to draw")
        elif draws:
            asked = read_prompts(fetch(GENEVAL))
        if how is None:
            return _Asked(None, asked, parents, identity)
        judge = ObjectJudge(how, list(asked), detector)
        return _Asked(judge, judge.prompts(), parents, {**identity, **judge.identity()})


def _open_reference(config: EvaluateConfig, path: str | Path | None) -> Subject | None:
    """Reference images as a subject; None where there are none, or where renders take their place."""
    if config.fidelity is None:
        if path is not None:
            raise UserError("--reference: got one, allowed: with a recipe that measures fidelity")
        return None
    if path is not None:
        return Subject("reference", Path(path), None, open_images([path]))
    if not isinstance(config.prompts, NanoPrompts):
        raise UserError("--reference: got nothing, allowed: images that fidelity is measured against")
    return None


def _check_images(
    config: EvaluateConfig, asked: _Asked, subjects: Sequence[Subject], real: Subject | None
) -> None:
    """Refuse what cannot be judged or measured before anything is begun."""
    drawn = len(asked.prompts) * config.images_per_prompt
    reference = drawn if real is None or real.images is None else len(real.images)
    for each in subjects:
        if each.images is not None and asked.judge is not None:
            asked.judge.check(each.images)
        if config.fidelity is not None:
            check_counts(config.fidelity, drawn if each.images is None else len(each.images), reference)


def _extractors(config: FidelityConfig) -> list[dict[str, Any]]:
    """Hashes of the extractors of features, in order of the metrics."""
    places = dict.fromkeys(config.features(metric) for metric in config.metrics)
    return [find_features(each).identity() for each in places]


def _comparisons(
    config: EvaluateConfig, judge: Judge | None, results: Sequence[Result]
) -> list[tuple[str, str, Comparison]]:
    """Each later subject against the first, where both drew the same prompts."""
    first, found = results[0], []
    if judge is None:
        return []
    for other in results[1:]:
        marks = [[each.mark for each in result.judged] for result in (first, other)]
        if len({frozenset(mark.prompt for mark in each) for each in marks}) == 1:
            scoring = judge.scoring
            compared = compare_runs(marks[0], marks[1], config.bootstrap, scoring.overall, scoring.order)
            found.append((first.name, other.name, compared))
    return found


def _write(
    config: EvaluateConfig,
    judge: Judge | None,
    run: EvaluateRun,
    results: Sequence[Result],
    settings: dict[str, Any],
    parents: Sequence[Artifact],
    workspace: Workspace,
) -> None:
    """The page, last, and before it all other files of the report."""
    comparisons = _comparisons(config, judge, results)
    table = results[0].table
    report = {
        **({"scoring": asdict(judge.scoring)} if judge else {}),
        **(table.to_json() if table else {}),
        "subjects": [result.to_json() for result in results],
        "comparisons": [
            {"first": first, "second": second, **comparison.to_json()}
            for first, second, comparison in comparisons
        ],
        "self_test": run.tested,
        "seconds": {name: round(spent, 3) for name, (spent, _) in run.journal.costs().items()},
        "ranks": num_ranks(),
        "settings": settings,
        "parents": [{"name": p.path.resolve().name, "kind": p.kind, "digest": p.digest} for p in parents],
    }
    for number, result in enumerate(results, 1) if judge else ():
        name = "results.jsonl" if len(results) == 1 else f"results-{number}.jsonl"
        workspace.write_bytes(name, result_lines(result.records()))
    workspace.write_json("report.json", report)
    page = score_page(judge.scoring if judge else None, results, comparisons, report, config.pictures)
    workspace.write_bytes("report.html", page.encode())
