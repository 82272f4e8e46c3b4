"""Study: arms that differ in one thing each are trained, drawn, judged, and compared in one report."""

import json
import shutil
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from lightgen.core.artifact import Artifact, begin_artifact, kind_of, open_artifact
from lightgen.core.config import config_from_dict, config_to_dict, digest
from lightgen.core.device import multiplies_bf16
from lightgen.core.directory import json_bytes, whole_file
from lightgen.core.errors import UserError
from lightgen.core.metrics import read_metrics
from lightgen.core.progress import say
from lightgen.core.ranks import num_ranks
from lightgen.models.shape import TransformerConfig
from lightgen.stages.align import AlignConfig, align
from lightgen.stages.checkpoint import NANO, open_checkpoint, pick_device, transformer_shape
from lightgen.stages.distill import DistillConfig, distill, nano_prompts
from lightgen.stages.evaluate import evaluate
from lightgen.stages.evaluate_config import EvaluateConfig
from lightgen.stages.journal import Journal
from lightgen.stages.object_judge import ObjectJudgeConfig
from lightgen.stages.snapshots import steps_folder
from lightgen.stages.study_answers import answers
from lightgen.stages.study_config import Arm, ArmResult, Phase, StudyConfig, folder_name, seeded
from lightgen.stages.study_cost import align_tflop, draw_tflop, shapes_of, train_tflop, within_budget
from lightgen.stages.study_data import study_data
from lightgen.stages.study_page import study_page
from lightgen.stages.tasks import TrainConfig
from lightgen.stages.train import STATE, train

RESULT, REPORT = "result.json", "report"
_BATCH = 60  # test pictures drawn at once


def study(config: StudyConfig, out: str | Path, command: str = "") -> Artifact:
    """Report artifact, `out/report`: scores of every arm, and what became of every claim.

    Everything else lies beside it: `data` and `phases`, which arms share, and a folder for each arm and seed
    with its test pictures, their scores and `result.json`. The same command continues a killed run; more
    seeds or arms are added to those that are there.

    Args:
        config: the question, arms and claims.
        out: directory of everything.
        command: what makes the study again, for the page.

    Raises:
        UserError: numbers that cannot be, `out` holds an arm of the same name and other numbers, or a stage
            refuses.
    """
    config.check()
    config = config.chosen()
    if num_ranks() > 1:
        raise UserError(f"study: got {num_ranks()} ranks, allowed: one process; its trainings are small")
    out = Path(out)
    if out.exists() and not out.is_dir():
        raise UserError(f"--out: got the file {out}, allowed: a directory, or a new one")
    start = open_checkpoint(config.start or NANO)
    shape = transformer_shape(start)
    # all of them now: what is wrong with the last arm would show after hours else
    plans = [
        _Plan(config, arm, seed, within_budget(arm, config.tflop, shape), start, shape)
        for seed in range(config.seeds)
        for arm in config.arms
    ]
    for plan in plans:
        plan.check(out)
    out.mkdir(parents=True, exist_ok=True)
    results = []
    for number, plan in enumerate(plans):
        say(f"study: {plan.arm.name}, seed {plan.seed} ({number + 1} of {len(plans)})")
        results.append(plan.result(out))
    return _report(_placed(config, results), results, start, out / REPORT, command)


def _placed(config: StudyConfig, results: list[ArmResult]) -> StudyConfig:
    """The study with its arms where they lie on an axis of what they cost."""
    if config.x_is == "given":
        return config
    costs = {each.arm: vars(each)[config.x_is] for each in results}
    return replace(config, arms=tuple(replace(arm, x=costs[arm.name]) for arm in config.arms))


def _report(
    config: StudyConfig, results: list[ArmResult], start: Artifact, out: Path, command: str
) -> Artifact:
    """The report on the results; one on fewer of them makes room for it."""
    settings = {
        "stage": "study",
        **config_to_dict(config),
        "results": digest([asdict(each) for each in results]),
    }
    if kind_of(out) == "report":
        old = open_artifact(out, "report", verify=False)
        if old.config.get("stage") == "study" and digest(old.config) != digest(settings):
            shutil.rmtree(out)
    found = begin_artifact(out, "report", settings, [start])
    if isinstance(found, Artifact):
        return found
    with found as workspace:
        said = answers(config, results)
        workspace.write_bytes("report.html", study_page(config, results, said, command).html().encode())
        workspace.write_json("report.json", said)
        pictures = sum(len(row) for each in results for row in each.right)
        return workspace.commit({"arms": len(config.arms), "seeds": config.seeds, "pictures": pictures})


@dataclass(frozen=True)
class _Plan:
    """An arm and seed to be run.

    Attributes:
        phases: with the steps of the training budget, before the seed is put in.
        shape: of the start's transformer.
    """

    study: StudyConfig
    arm: Arm
    seed: int
    phases: tuple[Phase, ...]
    start: Artifact
    shape: TransformerConfig

    def identity(self) -> str:
        """Digest of all that the result depends on; words of the figure are left out."""
        study, arm = self.study, self.arm
        align = None if arm.align is None else config_to_dict(arm.align)
        return digest(
            {
                "phases": [config_to_dict(phase) for phase in self.phases],
                "align": align,
                "draws": config_to_dict(arm.draws),
                "test": config_to_dict(study.test),
                "test_images": study.test_images,
                "test_size": study.test_size,
                "start": self.start.digest,
                "seed": self.seed,
            }
        )

    def folder(self, out: Path) -> Path:
        """Directory of the arm and seed."""
        return out / f"{folder_name(self.arm.name)}-{self.seed}"

    def found(self, out: Path) -> ArmResult | None:
        """What an earlier run found.

        Raises:
            UserError: the result of other numbers, or none that can be read.
        """
        place = self.folder(out) / RESULT
        if not place.is_file():
            return None
        try:
            record = json.loads(place.read_bytes())
            made_of = record.pop("made_of")
            result = config_from_dict(ArmResult, record)
        except (ValueError, KeyError, AttributeError) as error:
            raise UserError(f"{place}: is damaged, allowed: as a study wrote it; delete it") from error
        if made_of != self.identity():
            raise UserError(f"{place}: was made with other numbers, allowed: the same; name another --out")
        return replace(result, arm=self.arm.name)

    def check(self, out: Path) -> None:
        """Raises UserError: numbers that cannot be counted or drawn with, or the work of others in `out`."""
        shapes = shapes_of(self.phases, self.shape)
        draw_tflop(self.arm.draws, shapes[-1], self.study.test_size)
        for phase in self.phases:
            phase.check()
        self.found(out)

    def result(self, out: Path) -> ArmResult:
        """What comes of the arm; found where it was run before."""
        found = self.found(out)
        if found is not None:
            return found
        folder = self.folder(out)
        folder.mkdir(exist_ok=True)
        journal, seconds = Journal(folder / "journal.jsonl"), _Seconds()
        phases = tuple(_for_here(seeded(phase, self.seed)) for phase in self.phases)
        student, loss = self._train(phases, out, seconds)
        shape = shapes_of(phases, self.shape)[-1]
        tflop = train_tflop(phases, self.shape)
        if self.arm.align is not None:
            with journal.stage("align"):
                student = align(_of_seed(self.arm.align, self.seed), folder / "align", start=student).path
            rounds = len(json.loads((folder / "align" / "rounds.json").read_text())["rounds"]) - 1
            tflop += align_tflop(self.arm.align, rounds, shape)
        tasks, right = self._judge(student, folder, journal)
        seconds.add(journal)
        result = ArmResult(
            arm=self.arm.name,
            seed=self.seed,
            right=right,
            tasks=tasks,
            loss=loss,
            train_tflop=tflop,
            draw_tflop=draw_tflop(self.arm.draws, shape, self.study.test_size),
            seconds=seconds.found,
        )
        with whole_file(folder / RESULT) as temporary:
            temporary.write_bytes(json_bytes({**asdict(result), "made_of": self.identity()}))
        return result

    def _train(self, phases: tuple[Phase, ...], out: Path, seconds: "_Seconds") -> tuple[Path, float | None]:
        """(Student after the last phase, its held-out loss); arms with the same first phases share them."""
        student, loss = self.start.path, None
        for number, phase in enumerate(phases):
            latents, journal = study_data(phase.data, self.seed, out, self.start)
            seconds.add(journal)
            made_of = {"start": self.start.digest, "seed": self.seed}
            made_of["phases"] = [config_to_dict(each) for each in phases[: number + 1]]
            folder = out / "phases" / digest(made_of)[:16]
            folder.mkdir(parents=True, exist_ok=True)
            journal = Journal(folder / "journal.jsonl")
            with journal.stage("train"):
                student = train(phase.train, folder / "student", [latents], student).path
            shutil.rmtree(steps_folder(student), ignore_errors=True)  # of weights that the student holds
            seconds.add(journal)
            losses = [
                record["held_out_loss_ema"]
                for record in read_metrics(student / STATE / "metrics.jsonl")
                if record.get("held_out_loss_ema") is not None
            ]
            loss = losses[-1] if losses else None
        return student, loss

    def _judge(self, student: Path, folder: Path, journal: Journal) -> tuple[list[str], list[list[float]]]:
        """Task and right pictures of each distinct test prompt."""
        study = self.study
        drawn = DistillConfig(
            teacher=self.arm.draws,
            prompts=study.test,
            images_per_prompt=study.test_images,
            height=study.test_size,
            width=study.test_size,
            shard_size=_BATCH,
            batch_size=_BATCH,
            seed=3 + self.seed,
        )
        with journal.stage("draw"):
            images = distill(drawn, folder / "test", start=student)
        judge = EvaluateConfig(judge=ObjectJudgeConfig(), height=study.test_size, width=study.test_size)
        with journal.stage("judge"):
            report = evaluate(judge, folder / "scores", [images.path])
        judged = json.loads((report.path / "report.json").read_bytes())["subjects"][0]["images"]
        right: dict[str, list[float]] = {}
        for image in judged:
            right.setdefault(image["prompt"], []).append(float(image["correct"]))
        tasks = {prompt.prompt: str(prompt.tag) for prompt in nano_prompts(study.test)}
        return [tasks[prompt] for prompt in right], list(right.values())


class _Seconds:
    """Seconds of clock by stage, of several journals."""

    def __init__(self) -> None:
        self.found: dict[str, float] = {}

    def add(self, journal: Journal) -> None:
        """Take in what a journal noted."""
        for stage, (seconds, _) in journal.costs().items():
            self.found[stage] = round(self.found.get(stage, 0.0) + seconds, 1)


def _for_here(phase: Phase) -> Phase:
    """The phase in fp32 where bf16 would be slower."""
    return replace(phase, train=_precise(phase.train))


def _precise(train: TrainConfig) -> TrainConfig:
    if multiplies_bf16(pick_device()):
        return train
    return replace(train, fit=replace(train.fit, precision="fp32"))


def _of_seed(config: AlignConfig, seed: int) -> AlignConfig:
    """The rounds with prompts, pictures and order of a seed, and without their own test."""
    sample = config.sample
    prompts = sample.prompts and replace(sample.prompts, seed=sample.prompts.seed + 1_000 * seed)
    train_config: Any = replace(
        config.train, fit=replace(config.train.fit, seed=config.train.fit.seed + seed)
    )
    return replace(
        config,
        sample=replace(sample, seed=sample.seed + 1_000 * seed, prompts=prompts),
        train=_precise(train_config),
        test=None,
    )
