"""What the recipes of study share: a small world, two ways to learn it, and how arms and claims are said."""

from dataclasses import replace

from lightgen.objectives.masked import MaskedConfig
from lightgen.ports.nano.emoji import EmojiTeacherConfig
from lightgen.recipes.align import DRAWS, TASKS
from lightgen.recipes.model import nano as nano_shape
from lightgen.stages.distill import NanoPrompts
from lightgen.stages.study_config import Arm, Claim, Expected, Phase, StudyData
from lightgen.stages.tasks import PretrainTask, TrainConfig
from lightgen.training.config import FitConfig, RunConfig
from lightgen.training.optimizer import OptimizerConfig
from lightgen.training.schedule import ScheduleConfig

PAPER = "arXiv 2503.08619"
TEACHER = EmojiTeacherConfig(rotation_degrees=0.0, rotation_steps=1)
# A small world, so that words are learned in minutes.
WORLD = NanoPrompts(
    num=1_024,
    tags=TASKS,
    classes=(
        *("dog", "cat", "car", "apple", "banana", "chair"),
        *("clock", "umbrella", "bird", "boat", "pizza", "book"),
    ),
    colors=("red", "yellow", "green", "blue", "purple", "black"),
    distinct=True,
)
# 20 prompts of each task; where there are fewer, some are drawn several times
TEST = replace(WORLD, num=120, split="test", seed=11, distinct=False)
RUN = RunConfig(save_every=100_000, held_out_every=100_000)


def language(steps: int = 140) -> TrainConfig:
    """The student of the start loses its language: it gets a new text encoder, and learns words again."""
    return TrainConfig(
        task=PretrainTask(objective=MaskedConfig(), text_encoder="new", train_text_encoder=True),
        fit=FitConfig(
            num_steps=steps,
            global_batch_size=32,
            optimizer=OptimizerConfig(name="muon", lr=5e-4, muon_lr=1e-3, weight_decay=0.01),
            schedule=ScheduleConfig(warmup_steps=round(0.2 * steps), decay_steps=round(0.4 * steps)),
            max_grad_norm=2.0,
            ema_decay=0.98,
        ),
        run=RUN,
    )


def from_nothing(steps: int = 200) -> TrainConfig:
    """The shape of the shipped student, with its text encoder, from nothing."""
    config = language(steps)
    return replace(
        config,
        task=replace(config.task, model=nano_shape()),
        fit=replace(
            config.fit,
            optimizer=OptimizerConfig(name="muon", lr=1e-3, muon_lr=2e-3, weight_decay=0.01),
            schedule=ScheduleConfig(warmup_steps=round(0.1 * steps), decay_steps=round(0.4 * steps)),
            held_out=128,
        ),
    )


def world(num: int = WORLD.num, images_per_prompt: int = 1) -> StudyData:
    """Pictures of so many distinct captions of the small world, by a perfect teacher."""
    return StudyData(prompts=replace(WORLD, num=num), teacher=TEACHER, images_per_prompt=images_per_prompt)


def learned(
    name: str,
    data: StudyData,
    train: TrainConfig,
    x: float | None = None,
    series: str = "",
    *,
    tflop: bool = True,
) -> Arm:
    """Arm of one training, with a place on the axis if it is a number that tells the arms apart."""
    return Arm(
        name=name, x=x, series=series, phases=(Phase(data=data, train=train),), draws=DRAWS, tflop=tflop
    )


def paper_claim(
    text: str, first: str, second: str, expected: Expected, where: str, task: str = "overall"
) -> Claim:
    """What the paper says, and where."""
    return Claim(
        text=text,
        source=f"{PAPER}, {where}",
        first=first,
        second=second,
        expected=expected,
        task=task,
    )
