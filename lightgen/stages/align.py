"""Align: rounds in which a student draws, a judge ranks, and the student learns from what was ranked."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from lightgen.core.artifact import Artifact, Workspace, begin_artifact
from lightgen.core.config import config_to_dict, first_difference
from lightgen.core.directory import json_bytes, whole_file
from lightgen.core.errors import UserError
from lightgen.core.progress import say
from lightgen.core.ranks import num_ranks
from lightgen.stages.checkpoint import NANO, copy_part, open_checkpoint, require_part
from lightgen.stages.distill import DistillConfig, distill, load_prompts
from lightgen.stages.encode import EncodeConfig, encode
from lightgen.stages.evaluate import evaluate
from lightgen.stages.evaluate_config import EvaluateConfig
from lightgen.stages.journal import Journal
from lightgen.stages.rank import RankConfig, rank
from lightgen.stages.student import StudentTeacherConfig
from lightgen.stages.tasks import DPOTask, PretrainTask, TrainConfig
from lightgen.stages.train import train


@dataclass(frozen=True, kw_only=True)
class AlignConfig:
    """What a round does, and when there are enough of them.

    Attributes:
        rounds: most rounds.
        sample: the student's own pictures, several per prompt; round k draws those of seed + k, and other
            prompts where they are built in.
        teacher: pictures of the same prompts, ranked before the student's own; None = none.
        rank: how pictures are scored.
        encode: of the ranked pictures.
        train: of a round, by preferences or by the masked objective on the best pictures.
        reference: what preferences compare with: the student before each round, or always the first one.
        validate: how a student is judged after each round, on prompts of its own.
        patience: rounds without a better student after which no more are begun.
        test: how the best student is compared with the first one at the end; None = not at all.
    """

    rounds: int
    sample: DistillConfig
    rank: RankConfig
    encode: EncodeConfig
    train: TrainConfig
    validate: EvaluateConfig
    teacher: DistillConfig | None = None
    reference: Literal["moving", "fixed"] = "moving"
    patience: int = 1
    test: EvaluateConfig | None = None

    def check(self) -> None:
        """Raises UserError: numbers or stages that cannot be."""
        if self.rounds < 1 or self.patience < 1:
            got = f"rounds {self.rounds}, patience {self.patience}"
            raise UserError(f"align: got {got}, allowed: whole numbers from 1")
        if not isinstance(self.sample.teacher, StudentTeacherConfig):
            raise UserError("align: got a sample that no student draws, allowed: by the student of the round")
        if not isinstance(self.train.task, DPOTask | PretrainTask):
            raise UserError("align: got a training of no student, allowed: dpo, or the masked objective")
        self.train.fit.check()
        self.train.run.check()
        if isinstance(self.train.task, DPOTask):
            self.train.task.check()
            if self.train.task.lora is not None and self.reference == "fixed" and self.rounds > 1:
                got = f"a fixed reference over {self.rounds} rounds of additions"
                raise UserError(f"align: got {got}, allowed: a moving one, which they learn against")
        else:
            self.train.task.objective.check()


@dataclass(frozen=True)
class Round:
    """What came of a round; number 0 is the start.

    Attributes:
        student: checkpoint.
        scores: `report.json` on the prompts of the rounds.
        facts: counts of its pairs or samples.
    """

    number: int
    student: Path
    scores: Mapping[str, Any]
    facts: Mapping[str, Any]


def align(
    config: AlignConfig,
    out: str | Path,
    prompts: Sequence[str | Path] = (),
    start: str | Path = NANO,
    detector: str | Path | None = None,
) -> Artifact:
    """Checkpoint artifact of the best student, `out/aligned`; all stages of all rounds lie beside it.

    Each is an artifact of its own, so the same command continues a killed run. `out/rounds.json` tells what
    each round brought.

    Args:
        config: what a round does.
        out: directory of everything.
        prompts: artifacts of prompts, or files of JSON lines, for the student's own pictures.
        start: checkpoint to begin from.
        detector: checkpoint of the detector behind verdicts; the shipped one unless named.

    Raises:
        UserError: a part is missing, `out` holds the work of another config, or a stage refuses.
    """
    config.check()
    work = Work(config, Path(out), tuple(prompts), start, detector)
    work.keep_to("align.json", config_to_dict(config))
    rounds = [work.begin()]
    while len(rounds) <= config.rounds and not _has_ended(config, rounds):
        rounds.append(work.round(rounds))
        work.note(rounds)
    return work.finish(rounds)


def _best(rounds: Sequence[Round]) -> Round:
    return max(rounds, key=lambda each: (each.scores["overall"], -each.number))


def _has_ended(config: AlignConfig, rounds: Sequence[Round]) -> bool:
    return rounds[-1].number - _best(rounds).number >= config.patience


class Work:
    """The stages of all rounds, in the directory.

    Attributes:
        start: checkpoint of the first student.
    """

    def __init__(
        self,
        config: AlignConfig,
        out: Path,
        prompts: Sequence[str | Path],
        start: str | Path,
        detector: str | Path | None,
    ) -> None:
        self._config, self._out, self._prompts, self._detector = config, out, prompts, detector
        self.start = require_part(open_checkpoint(start), "transformer").path
        if num_ranks() > 1:
            raise UserError(f"align: got {num_ranks()} ranks, allowed: one process; its trainings are small")
        if out.exists() and not out.is_dir():
            raise UserError(f"--out: got the file {out}, allowed: a directory, or a new one")
        out.mkdir(parents=True, exist_ok=True)
        self._journal = Journal(out / "journal.jsonl")
        load_prompts(config.sample, prompts)  # or what is wrong with them would show after the first stage

    def keep_to(self, name: str, settings: Mapping[str, Any]) -> None:
        """Write down the settings; raises UserError where the directory holds the work of others."""
        path = self._out / name
        if path.is_file():
            difference = first_difference(json.loads(path.read_text()), json.loads(json_bytes(settings)))
            if difference:
                raise UserError(f"{self._out}: {difference}, allowed: the same; name another --out")
            return
        with whole_file(path) as temporary:
            temporary.write_bytes(json_bytes(settings))

    def begin(self) -> Round:
        """The start, judged."""
        with self._journal.stage("validate-0"):
            scores = self._judge(self.start, self._out / "round-0" / "scores")
        return Round(0, self.start, scores, {})

    def latents(self, number: int, student: Path) -> Path:
        """What a round learns from: pictures by the student and perhaps a teacher, ranked and encoded."""
        config, folder = self._config, self._out / f"round-{number}"
        folder.mkdir(exist_ok=True)
        sample = _of_round(config.sample, number)
        with self._journal.stage(f"sample-{number}"):
            images = [distill(sample, folder / "samples", self._prompts, student).path]
        if config.teacher is not None:
            teacher = _of_round(replace(config.teacher, prompts=config.sample.prompts), number)
            with self._journal.stage(f"teacher-{number}"):
                images.insert(0, distill(teacher, folder / "teacher", self._prompts).path)
        with self._journal.stage(f"rank-{number}"):
            rank(config.rank, folder / "ranked", images, self._detector)
        with self._journal.stage(f"encode-{number}"):
            return encode(config.encode, folder / "latents", [folder / "ranked"], student).path

    def round(self, rounds: Sequence[Round]) -> Round:
        """One more round, from the student of the last."""
        config, number, student = self._config, len(rounds), rounds[-1].student
        say(f"align: round {number} of at most {config.rounds}")
        latents, folder = self.latents(number, student), self._out / f"round-{number}"
        reference = self.start if config.reference == "fixed" and number > 1 else None
        if not isinstance(config.train.task, DPOTask):
            reference = None
        with self._journal.stage(f"train-{number}"):
            made = train(config.train, folder / "student", [latents], student, reference)
        with self._journal.stage(f"validate-{number}"):
            scores = self._judge(made.path, folder / "scores")
        facts = {name: made.manifest[name] for name in ("pairs", "samples") if name in made.manifest}
        return Round(number, made.path, scores, facts)

    def note(self, rounds: Sequence[Round]) -> None:
        """Write down what the rounds brought so far."""
        costs = self._journal.costs()
        records = [
            {
                "round": each.number,
                "overall": each.scores["overall"],
                "tasks": each.scores["tasks"],
                "intervals": each.scores["intervals"],
                **each.facts,
                "seconds": {
                    stage.removesuffix(f"-{each.number}"): round(seconds, 1)
                    for stage, (seconds, _) in costs.items()
                    if stage.endswith(f"-{each.number}")
                },
            }
            for each in rounds
        ]
        record = {"best": _best(rounds).number, "rounds": records}
        with whole_file(self._out / "rounds.json") as temporary:
            temporary.write_bytes(json_bytes(record))
        say(
            f"align: after round {rounds[-1].number} overall {records[-1]['overall']:.3f}, "
            f"at the start {records[0]['overall']:.3f}"
        )

    def finish(self, rounds: Sequence[Round]) -> Artifact:
        """The best student as an artifact, and its comparison with the start."""
        best = open_checkpoint(_best(rounds).student)
        found = self._aligned(_best(rounds).number, best.path)
        if isinstance(found, Workspace):
            with found as workspace:
                for part in sorted(path for path in best.path.iterdir() if path.is_dir()):
                    if part.name != "train_state":
                        copy_part(part, workspace.path / part.name)
                index = (best.path / "model_index.json").read_bytes()
                workspace.write_bytes("model_index.json", index)
                found = workspace.commit({"rounds": len(rounds) - 1, "best_round": _best(rounds).number})
        if self._config.test is not None:
            with self._journal.stage("test"):
                subjects = [self.start, found.path]
                evaluate(self._config.test, self._out / "scores", subjects, detector=self._detector)
        return found

    def _aligned(self, number: int, student: Path) -> Artifact | Workspace:
        """Where the student of a round is kept, or what is there already."""
        settings = {"stage": "align", **config_to_dict(self._config), "round": number}
        return begin_artifact(self._out / "aligned", "checkpoint", settings, [open_checkpoint(student)])

    def _judge(self, student: Path, out: Path) -> dict[str, Any]:
        out.parent.mkdir(exist_ok=True)
        report = evaluate(self._config.validate, out, [student], detector=self._detector)
        return json.loads((report.path / "report.json").read_text())


def _of_round(config: DistillConfig, number: int) -> DistillConfig:
    """The pictures of a round: of other seeds, and of other prompts where they are built in."""
    prompts = config.prompts and replace(config.prompts, seed=config.prompts.seed + number)
    return replace(config, seed=config.seed + number, prompts=prompts)
