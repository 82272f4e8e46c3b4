"""One evaluation at work: pictures are drawn, judged and measured, in shards that no kill loses."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from lightgen.core.artifact import Workspace
from lightgen.core.prompt import Prompt
from lightgen.core.ranks import meet, rank
from lightgen.data.prompts import write_prompts
from lightgen.evals.tables import score_table
from lightgen.ports.nano.emoji import EmojiTeacherConfig
from lightgen.stages.distill import distill
from lightgen.stages.engine import EngineConfig
from lightgen.stages.evaluate_config import EvaluateConfig
from lightgen.stages.features import default_cache
from lightgen.stages.fidelity import Fidelity, measure_fidelity
from lightgen.stages.image_score import MeanScore, image_scores, mean_score
from lightgen.stages.inputs import ImageInputs, open_images
from lightgen.stages.journal import Journal
from lightgen.stages.judge import Judge, Judged, judge_images
from lightgen.stages.result import Result
from lightgen.stages.scorer import ScorerPlace
from lightgen.stages.subjects import Subject, cost_of, images_of

WORK = "work"
_PROMPTS = f"{WORK}/prompts.jsonl"

_Images = tuple[ImageInputs, Path]


@dataclass
class EvaluateRun:
    """An evaluation that runs on every rank.

    Attributes:
        config: how pictures are made and judged.
        judge: of single pictures, or None.
        prompts: what checkpoints draw.
        reference: images that fidelity is measured against; None = renders of the prompts, where it is.
        scorer: of pictures and prompts, or None.
        workspace: of the report.
        engine: who draws and judges.
        tested: what the judge showed of itself.
        journal: seconds of each part, interrupted runs included.
    """

    config: EvaluateConfig
    judge: Judge | None
    prompts: Sequence[Prompt]
    reference: Subject | None
    scorer: ScorerPlace | None
    workspace: Workspace
    engine: EngineConfig

    def __post_init__(self) -> None:
        """Name the journal."""
        self.journal = Journal(self.workspace.path / WORK / f"journal-{rank()}.jsonl")
        self.tested: dict[str, float] = {}

    def results(self, subjects: Sequence[Subject]) -> list[Result]:
        """What was found of each subject.

        Raises:
            UserError: a judge that fails its self-test, or images that cannot be read or judged.
        """
        began, used = time.monotonic(), time.process_time()
        if self.judge is not None:
            self.tested = self.judge.self_test()
        # only now: a judge that is refused leaves nothing behind
        (self.workspace.path / WORK).mkdir(exist_ok=True)
        self.journal.note("self-test", time.monotonic() - began, time.process_time() - used)
        if rank() == 0 and self.prompts and not self.workspace.has(_PROMPTS):
            with self.workspace.file(_PROMPTS) as temporary:
                write_prompts(temporary, self.prompts)
        meet()
        real = self._real()
        return [self._result(number, subject, real) for number, subject in enumerate(subjects)]

    def _result(self, number: int, subject: Subject, real: _Images | None) -> Result:
        drawing, asked = self.config.drawing(), self.workspace.path / _PROMPTS
        with self.journal.stage(f"draw {subject.name}"):
            at = images_of(subject, drawing, self.workspace, f"{WORK}/{number}", asked, self.engine)
        with self.journal.stage(f"judge {subject.name}"):
            judged = self._judged(number, subject, *at)
        with self.journal.stage(f"measure {subject.name}"):
            fidelity = None if real is None else self._fidelity(number, subject, at, real)
            score = None if self.scorer is None else self._score(number, subject, *at)
        table = None
        if self.judge is not None:
            scoring, marks = self.judge.scoring, (each.mark for each in judged)
            table = score_table(marks, self.config.bootstrap, scoring.overall, scoring.order)
        costs = self.journal.costs()
        parts = ("draw", "judge") if subject.checkpoint is not None else ("judge",)
        seconds = {part: costs[f"{part} {subject.name}"][0] for part in parts}
        cost = cost_of(subject, drawing, self.engine, seconds, len(at[0]))
        return Result(
            name=subject.name,
            digest=subject.digest,
            images=at[0],
            judged=judged,
            table=table,
            fidelity=fidelity,
            score=score,
            cost=cost,
        )

    def _judged(self, number: int, subject: Subject, images: ImageInputs, place: Path) -> list[Judged]:
        if self.judge is None:
            return []
        test = self.engine.name == "ray"  # other processes than this, which was tested
        folder, name = f"{WORK}/{number}-judged", subject.name
        return judge_images(self.engine, self.workspace, folder, self.judge, images, place, name, test=test)

    def _real(self) -> _Images | None:
        """Images that fidelity is measured against."""
        if self.config.fidelity is None:
            return None
        if self.reference is not None:
            assert self.reference.images is not None
            return self.reference.images, self.reference.path
        drawing = replace(self.config.drawing(), teacher=EmojiTeacherConfig())
        with self.journal.stage("draw reference"):
            asked = [self.workspace.path / _PROMPTS]
            made = distill(drawing, self.workspace.path / WORK / "reference", asked, engine=self.engine)
        return open_images([made.path]), made.path

    def _fidelity(self, number: int, subject: Subject, images: _Images, real: _Images) -> Fidelity:
        assert self.config.fidelity is not None
        return measure_fidelity(
            self.config.fidelity,
            self.engine,
            self.workspace,
            f"{WORK}/{number}-features",
            images,
            real,
            default_cache() if self.reference is not None else None,
            subject.name,
            f"{WORK}/reference-features",
        )

    def _score(self, number: int, subject: Subject, images: ImageInputs, place: Path) -> MeanScore:
        assert self.scorer is not None
        folder = f"{WORK}/{number}-scores"
        scores = image_scores(self.engine, self.workspace, folder, self.scorer, images, place, subject.name)
        prompts = [images.meta(i)["prompt"] for i in range(len(images))]
        return mean_score(self.scorer.config.kind, scores, prompts, self.config.bootstrap)
