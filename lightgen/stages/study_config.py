"""Numbers of a study: arms that differ in one thing each, and what is claimed of them."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from lightgen.core.errors import UserError
from lightgen.core.prompt import TAGS
from lightgen.ports.nano.emoji import EmojiTeacherConfig
from lightgen.stages.align import AlignConfig
from lightgen.stages.distill import NanoPrompts
from lightgen.stages.student import StudentTeacherConfig
from lightgen.stages.tasks import PretrainTask, TrainConfig

Expected = Literal["higher", "lower", "same"]
CLAIMED = ("overall", *TAGS, "loss")  # what a claim may be about
_MOST_SEEDS = 100


@dataclass(frozen=True, kw_only=True)
class StudyData:
    """What a phase learns from: a perfect or imperfect teacher's pictures, as latents.

    Attributes:
        prompts: of the pictures; a seed of the study is added to theirs.
        images_per_prompt: pictures of each prompt.
        size: side of the pictures, px.
        flip: whether each picture is mirrored with probability 1/2, its caption unchanged.
    """

    prompts: NanoPrompts
    teacher: EmojiTeacherConfig
    images_per_prompt: int = 1
    size: int = 128
    flip: bool = False

    def check(self) -> None:
        """Raises UserError: a number out of range."""
        for name in ("images_per_prompt", "size"):
            if vars(self)[name] < 1:
                raise UserError(f"study: got {name} {vars(self)[name]}, allowed: a whole number from 1")


@dataclass(frozen=True, kw_only=True)
class Phase:
    """One run of train, which begins where the phase before it ended.

    Attributes:
        share: of the arm's training budget.
    """

    data: StudyData
    train: TrainConfig
    share: float = 1.0

    def check(self) -> None:
        """Raises UserError: a number out of range, or a task that trains no student from latents."""
        self.data.check()
        if not isinstance(self.train.task, PretrainTask):
            got = type(self.train.task).__name__
            raise UserError(f"study: got a phase of {got}, allowed: a PretrainTask")
        if not 0 < self.share <= 1:
            raise UserError(f"study: got share {self.share}, allowed: above 0 to 1")
        self.train.task.objective.check()
        self.train.fit.check()
        self.train.run.check()


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One way to train, or to draw.

    Attributes:
        name: words of the figure.
        x: its place on the axis; None = by order.
        series: the line that it belongs to.
        phases: each starts from the one before, the first from the study's start; without any, that start
            itself draws.
        align: what follows the phases.
        draws: how test pictures are drawn.
        tflop: whether a training budget sets the steps of the phases; else they keep their own number.
    """

    name: str
    phases: tuple[Phase, ...]
    draws: StudentTeacherConfig
    x: float | None = None
    series: str = ""
    align: AlignConfig | None = None
    tflop: bool = True

    def check(self) -> None:
        """Raises UserError: no name, shares above the whole budget, or numbers that cannot be."""
        if not self.name.strip():
            raise UserError("study: got an arm without a name, allowed: some words")
        for phase in self.phases:
            phase.check()
        total = sum(phase.share for phase in self.phases)
        if len(self.phases) and not total <= 1 + 1e-6:
            raise UserError(f"study: got shares of {total:g} in arm {self.name!r}, allowed: up to 1 together")
        if self.align is not None:
            self.align.check()


@dataclass(frozen=True, kw_only=True)
class Claim:
    """What a paper says, as a comparison of two arms that can fail.

    Attributes:
        source: paper, and figure, table or section.
        first, second: names of arms.
        expected: how the second is to be, compared with the first.
        task: `overall`, one of the six tasks, or `loss`.
    """

    text: str
    source: str
    first: str
    second: str
    expected: Expected
    task: str = "overall"


@dataclass(frozen=True, kw_only=True)
class StudyConfig:
    """One question, asked of arms with the same seeds and the same training budget.

    Attributes:
        start: checkpoint with the autoencoder, and with the student where a phase goes on with it.
        seeds: times that each arm is run, with other pictures, prompts, weights and draws of training.
        tflop: training budget of each arm and seed: the steps of each phase are its share of it, warm-up and
            decay alike. None = the phases' own steps.
        test: prompts of the scores.
        test_images: pictures of each.
        test_size: side of the pictures, px.
        x_label: of the axis on which arms lie.
        x_is: what that axis shows: the arms' own places, or what they cost in training or for a picture.
        log_x: whether that axis is logarithmic.
        only: names of the arms that are run, where not all of them are; claims about others are left out.
    """

    title: str
    question: str
    arms: tuple[Arm, ...]
    claims: tuple[Claim, ...]
    test: NanoPrompts
    x_label: str
    start: str | None = "nano"
    seeds: int = 2
    tflop: float | None = None
    test_images: int = 2
    test_size: int = 128
    log_x: bool = False
    x_is: Literal["given", "train_tflop", "draw_tflop"] = "given"
    only: tuple[str, ...] = ()

    def chosen(self) -> "StudyConfig":
        """The study of the arms of `only`.

        Raises:
            UserError: there is no such arm.
        """
        names = [arm.name for arm in self.arms]
        unknown = [name for name in self.only if name not in names]
        if unknown:
            raise UserError(f"--only: got {unknown[0]!r}, allowed: {', '.join(names)}")
        if not self.only:
            return self
        arms = tuple(arm for arm in self.arms if arm.name in self.only)
        claims = tuple(each for each in self.claims if {each.first, each.second} <= set(self.only))
        return replace(self, arms=arms, claims=claims, only=())

    def check(self) -> None:
        """Raises UserError: a number out of range, arms of one name, or a claim about what is not there."""
        if not 1 <= self.seeds <= _MOST_SEEDS:
            raise UserError(f"--seeds: got {self.seeds}, allowed: a whole number from 1 to {_MOST_SEEDS}")
        if self.tflop is not None and not 0 < self.tflop < float("inf"):
            raise UserError(f"--tflop: got {self.tflop}, allowed: above 0")
        for name in ("test_images", "test_size"):
            if vars(self)[name] < 1:
                option = f"--{name.replace('_', '-')}"
                raise UserError(f"{option}: got {vars(self)[name]}, allowed: a whole number from 1")
        names = [arm.name for arm in self.arms]
        if not names or len(set(names)) < len(names):
            raise UserError(f"study: got arms {names}, allowed: at least one, each of its own name")
        folders = [folder_name(name) for name in names]
        alike = sorted({name for name in names if folders.count(folder_name(name)) > 1})
        if alike or not all(folders):
            got = f"names {alike}" if alike else f"names {names}"
            raise UserError(f"study: got {got}, allowed: those that differ in letters or digits")
        for arm in self.arms:
            arm.check()
        for claim in self.claims:
            _check_claim(claim, names)

    def arm(self, name: str) -> Arm:
        """The arm of a name."""
        return next(arm for arm in self.arms if arm.name == name)


def folder_name(name: str) -> str:
    """Letters and digits of an arm's name, lowercase, with dashes for all else."""
    return re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-.")


def _check_claim(claim: Claim, names: Sequence[str]) -> None:
    for name in (claim.first, claim.second):
        if name not in names:
            raise UserError(f"study: got a claim about arm {name!r}, allowed: {', '.join(names)}")
    if claim.first == claim.second:
        raise UserError(f"study: got a claim that compares {claim.first!r} with itself, allowed: two arms")
    if claim.task not in CLAIMED:
        raise UserError(f"study: got a claim about {claim.task!r}, allowed: {', '.join(CLAIMED)}")
    if claim.expected not in ("higher", "lower", "same"):
        raise UserError(f"study: got a claim of {claim.expected!r}, allowed: higher, lower, same")


@dataclass(frozen=True)
class ArmResult:
    """What came of an arm and seed.

    Attributes:
        right: for each distinct test prompt, 1.0 for each right picture and 0.0 for each wrong one; prompts
            that were drawn several times have more pictures, so rows differ in length.
        tasks: of each distinct test prompt.
        loss: held-out loss of the average at the end of the last phase; None where it has none.
        train_tflop: of all phases and rounds.
        draw_tflop: of one test picture.
        seconds: of clock, by stage: distill, encode, train, align, draw, judge.
    """

    arm: str
    seed: int
    right: list[list[float]]
    tasks: list[str]
    loss: float | None
    train_tflop: float
    draw_tflop: float
    seconds: dict[str, float]


def seeded(phase: Phase, seed: int) -> Phase:
    """The phase with the prompts, pictures, weights, order and draws of a seed."""
    data, train = phase.data, phase.train
    assert isinstance(train.task, PretrainTask)
    prompts = replace(data.prompts, seed=data.prompts.seed + 1_000 * seed)
    objective = replace(train.task.objective, seed=train.task.objective.seed + seed)
    task = replace(train.task, objective=objective, seed=train.task.seed + seed)
    fit = replace(train.fit, seed=train.fit.seed + seed)
    return replace(phase, data=replace(data, prompts=prompts), train=replace(train, task=task, fit=fit))
