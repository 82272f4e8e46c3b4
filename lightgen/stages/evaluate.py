"""Evaluate: checkpoints or images become a report that says how often they show what was asked for."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from lightgen.core.artifact import Artifact, Workspace, begin_artifact, open_artifact
from lightgen.core.config import config_to_dict
from lightgen.core.errors import UserError
from lightgen.evals.scores import (
    Comparison,
    ScoreTable,
    compare_runs,
    score_table,
)
from lightgen.evals.statistics import BootstrapConfig
from lightgen.evals.verdict import VerdictConfig
from lightgen.stages.checkpoint import NANO, load_detector, open_checkpoint, open_detector, require_part
from lightgen.stages.distill import DistillConfig, NanoPrompts, distill, load_prompts
from lightgen.stages.engine import LOCAL, EngineConfig
from lightgen.stages.inputs import ImageInputs, open_images
from lightgen.stages.judge import judge
from lightgen.stages.score_page import Subject, score_page
from lightgen.stages.self_test import SelfTestConfig, self_test
from lightgen.stages.student import StudentTeacherConfig

_WORK = "work"


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """What is asked of a checkpoint, and how its pictures are judged.

    Attributes:
        prompts: built-in prompts, used where no file is handed in.
        images_per_prompt, height, width, batch_size, seed, student: how a checkpoint draws.
        self_test: what the detector must show first.
        pictures: most pictures of each subject on the page.
    """

    prompts: NanoPrompts = field(default_factory=lambda: NanoPrompts(num=60, split="test"))
    images_per_prompt: int = 2
    height: int = 128
    width: int = 128
    batch_size: int = 50
    seed: int = 0
    student: StudentTeacherConfig = field(default_factory=StudentTeacherConfig)
    verdict: VerdictConfig = field(default_factory=VerdictConfig)
    bootstrap: BootstrapConfig = field(default_factory=BootstrapConfig)
    self_test: SelfTestConfig = field(default_factory=SelfTestConfig)
    pictures: int = 48


def evaluate(
    config: EvaluateConfig,
    out: str | Path,
    subjects: Sequence[str | Path],
    prompts: Sequence[str | Path] = (),
    detector: str | Path | None = None,
    engine: EngineConfig = LOCAL,
) -> Artifact:
    """Report artifact: a page, and `report.json` with `overall` and `tasks` (of the first subject).

    Args:
        config: how pictures are made and judged.
        out: where the artifact will be.
        subjects: checkpoints (`nano` too), or directories of images whose records hold their prompts.
        prompts: file in GenEval's schema, or artifact of prompts, for the checkpoints.
        detector: checkpoint of the detector; the shipped one unless named.
        engine: who draws and judges; the numbers do not depend on that.

    Raises:
        UserError: a subject, prompt or detector that cannot be used, or a detector that fails its self-test.
    """
    if not subjects:
        raise UserError(
            "--in: got nothing, allowed: one or more of a checkpoint, `nano`, a directory of images"
        )
    asked, wanted, parents, identity = load_prompts(_sampling(config), prompts)
    unjudged = next((p for p in asked if p.tag is None), None)
    if unjudged is not None:
        raise UserError(
            f"prompt {unjudged.prompt[:60]!r}: has no tag, allowed: GenEval's fields in every prompt"
        )
    opened = _named_apart([_open_subject(subject) for subject in subjects])
    judging = open_detector(detector)
    parents = [*parents, *(a for each in opened for a in each.artifacts), judging]
    # the first subject is the one of the report, and parents do not tell how plain images lie among them
    mixed = any(each.artifacts for each in opened)
    plain = [
        {**entry, "place": number} if mixed else entry
        for number, each in enumerate(opened)
        for entry in (each.images.plain if each.images else ())
    ]
    settings = {"stage": "evaluate", **config_to_dict(config), **identity, "plain_images": plain}
    found = begin_artifact(out, "report", settings, parents)
    if isinstance(found, Artifact):
        return found
    with found as workspace:
        if not workspace.has("report.html"):
            judged = _judge(config, wanted, prompts, opened, judging, workspace, engine)
            _write(config, judged, settings, parents, workspace)
        # only now: a run killed before this line still has its pictures
        workspace.remove(_WORK)
        return workspace.commit({"subjects": len(opened), "prompts": len(asked)})


@dataclass(frozen=True)
class _Opened:
    """A subject: its name as given, where it is, and either a checkpoint or images."""

    name: str
    path: Path
    checkpoint: Artifact | None
    images: ImageInputs | None

    @property
    def artifacts(self) -> tuple[Artifact, ...]:
        if self.checkpoint is not None:
            return (self.checkpoint,)
        return self.images.artifacts if self.images is not None else ()


@dataclass(frozen=True)
class _Judged:
    subjects: list[Subject]
    comparisons: list[tuple[str, str, Comparison]]
    self_test: dict[str, float]
    seconds: dict[str, float]


def _sampling(config: EvaluateConfig) -> DistillConfig:
    """How a checkpoint's pictures are made: by the stage that makes all pictures."""
    return DistillConfig(
        teacher=config.student,
        prompts=config.prompts,
        images_per_prompt=config.images_per_prompt,
        height=config.height,
        width=config.width,
        shard_size=config.batch_size,
        batch_size=config.batch_size,
        seed=config.seed,
    )


def _open_subject(subject: str | Path) -> _Opened:
    path, name = Path(subject), str(subject) if str(subject) == NANO else Path(subject).resolve().name
    if name == NANO and str(subject) == NANO:
        return _Opened(name, path, open_checkpoint(NANO), None)
    if (path / "manifest.json").is_file() or not path.is_dir():
        kind = open_artifact(path, "checkpoint", "images", verify=False).kind
        if kind == "checkpoint":
            return _Opened(name, path, require_part(open_checkpoint(path), "transformer"), None)
    return _Opened(name, path, None, open_images([path]))


def _named_apart(opened: list[_Opened]) -> list[_Opened]:
    """The subjects, numbered where two have one name."""
    names = [each.name for each in opened]
    if len(set(names)) == len(names):
        return opened
    return [replace(each, name=f"{number}-{each.name}") for number, each in enumerate(opened, 1)]


def _judge(
    config: EvaluateConfig,
    sampling: DistillConfig,
    prompts: Sequence[str | Path],
    opened: Sequence[_Opened],
    judging: Artifact,
    workspace: Workspace,
    engine: EngineConfig,
) -> _Judged:
    seconds: dict[str, float] = {}
    began = time.monotonic()
    shares = self_test(load_detector(judging), config.verdict, config.self_test)
    seconds["self-test"] = time.monotonic() - began
    subjects: list[Subject] = []
    for number, each in enumerate(opened):
        began = time.monotonic()
        if each.checkpoint is not None:
            start = each.checkpoint.path
            made = distill(sampling, workspace.path / _WORK / str(number), prompts, start, engine)
            images, place = open_images([made.path]), made.path
            seconds[f"draw {each.name}"] = time.monotonic() - began
            began = time.monotonic()
        else:
            assert each.images is not None
            images, place = each.images, each.path
        folder = f"{_WORK}/{number}-judged"
        verdicts = judge(engine, workspace, folder, config.verdict, images, place, judging.path, each.name)
        seconds[f"judge {each.name}"] = time.monotonic() - began
        digest = each.artifacts[0].digest if each.artifacts else ""
        subjects.append(Subject(each.name, digest, images, verdicts, score_table(verdicts, config.bootstrap)))
    return _Judged(subjects, _comparisons(subjects, config.bootstrap), shares, seconds)


def _comparisons(subjects: Sequence[Subject], config: BootstrapConfig) -> list[tuple[str, str, Comparison]]:
    """Each later subject against the first, where both drew the same prompts."""
    first, found = subjects[0], []
    for other in subjects[1:]:
        asked = [{v.prompt.prompt for v in each.verdicts} for each in (first, other)]
        if asked[0] == asked[1]:
            found.append((first.name, other.name, compare_runs(first.verdicts, other.verdicts, config)))
    return found


def _write(
    config: EvaluateConfig,
    judged: _Judged,
    settings: dict[str, Any],
    parents: Sequence[Artifact],
    workspace: Workspace,
) -> None:
    tables: list[ScoreTable] = [subject.table for subject in judged.subjects]
    report = {
        **tables[0].to_json(),
        "subjects": [
            {
                "name": s.name,
                "digest": s.digest,
                **s.table.to_json(),
                "broken": s.broken(),
                "images": s.records(),
            }
            for s in judged.subjects
        ],
        "comparisons": [
            {"first": first, "second": second, **comparison.to_json()}
            for first, second, comparison in judged.comparisons
        ],
        "self_test": judged.self_test,
        "seconds": {name: round(value, 3) for name, value in judged.seconds.items()},
        "settings": settings,
        "parents": [{"name": p.path.resolve().name, "kind": p.kind, "digest": p.digest} for p in parents],
    }
    workspace.write_json("report.json", report)
    page = score_page(judged.subjects, judged.comparisons, report, config.pictures)
    workspace.write_bytes("report.html", page.encode())
