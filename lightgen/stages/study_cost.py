"""What the arms of a study cost, counted before they run; and their steps out of a training budget."""

from dataclasses import replace
from functools import lru_cache

from lightgen.core.errors import UserError
from lightgen.models.shape import TransformerConfig
from lightgen.stages.align import AlignConfig
from lightgen.stages.budget import Grid, build_text_encoder, flops_per_image
from lightgen.stages.decoding import resolve
from lightgen.stages.plan import STRIDE_PX, find_shape
from lightgen.stages.sampling_cost import sample_flops
from lightgen.stages.student import StudentTeacherConfig
from lightgen.stages.study_config import Arm, Phase
from lightgen.stages.tasks import DPOTask, PretrainTask, TrainConfig

_TERA = 1e12
_COUNTED_IMAGES = 2  # FLOPs of drawing are proportional to images


def shapes_of(phases: tuple[Phase, ...], start: TransformerConfig) -> list[TransformerConfig]:
    """Shape of the transformer before the first phase and after each."""
    shapes = [start]
    for phase in phases:
        task = phase.train.task
        assert isinstance(task, PretrainTask)
        shape = find_shape(task, None, shapes[-1])
        shapes.append(replace(shape, latent_channels=start.latent_channels))
    return shapes


def within_budget(arm: Arm, tflop: float | None, start: TransformerConfig) -> tuple[Phase, ...]:
    """Phases of an arm, each with the steps that its share of a training budget pays for.

    Warm-up and decay keep their share of the steps.

    Raises:
        UserError: a share that pays for no step.
    """
    if tflop is None or not arm.tflop:
        return arm.phases
    found = []
    for phase, shape in zip(arm.phases, shapes_of(arm.phases, start)[1:], strict=True):
        cost = step_tflop(phase.train, shape, phase.data.size)
        steps = round(phase.share * tflop / cost)
        if steps < 1:
            got = f"{phase.share * tflop:.3g} TFLOP for a phase of arm {arm.name!r}"
            raise UserError(f"--tflop: got {got}, allowed: at least {cost:.3g}, one step")
        found.append(replace(phase, train=_of_steps(phase.train, steps)))
    return tuple(found)


def _of_steps(train: TrainConfig, steps: int) -> TrainConfig:
    fit, factor = train.fit, steps / train.fit.num_steps
    schedule = replace(
        fit.schedule,
        warmup_steps=round(fit.schedule.warmup_steps * factor),
        decay_steps=min(steps, round(fit.schedule.decay_steps * factor)),
    )
    return replace(train, fit=replace(fit, num_steps=steps, schedule=schedule))


def step_tflop(train: TrainConfig, shape: TransformerConfig, size: int) -> float:
    """TFLOP of an optimizer step: forward and backward pass of its samples, the text encoder's too.

    Args:
        train: the training.
        shape: of its transformer.
        size: side of the pictures, px.
    """
    assert isinstance(train.task, PretrainTask | DPOTask)
    return train.fit.global_batch_size * _sample_flops(train.task, shape, _grid(shape, size)) / _TERA


@lru_cache(maxsize=256)
def _sample_flops(task: PretrainTask | DPOTask, shape: TransformerConfig, grid: Grid) -> float:
    encoder = build_text_encoder(task, shape.text_width)
    return flops_per_image(task, shape, grid, text_encoder=encoder)


def train_tflop(phases: tuple[Phase, ...], start: TransformerConfig) -> float:
    """TFLOP of all steps of the phases."""
    shapes = shapes_of(phases, start)[1:]
    steps = (
        phase.train.fit.num_steps * step_tflop(phase.train, shape, phase.data.size)
        for phase, shape in zip(phases, shapes, strict=True)
    )
    return sum(steps)


def align_tflop(config: AlignConfig, rounds: int, shape: TransformerConfig) -> float:
    """TFLOP of so many rounds: the steps of their trainings, and the student's pictures they are made of."""
    sample = config.sample
    assert sample.prompts is not None and isinstance(sample.teacher, StudentTeacherConfig)
    pictures = sample.prompts.num * sample.images_per_prompt
    learned = config.train.fit.num_steps * step_tflop(config.train, shape, sample.height)
    return rounds * (learned + pictures * draw_tflop(sample.teacher, shape, sample.height))


@lru_cache(maxsize=256)
def draw_tflop(draws: StudentTeacherConfig, shape: TransformerConfig, size: int) -> float:
    """TFLOP of one picture, without text encoder and autoencoder.

    Args:
        draws: how.
        shape: of the student's transformer.
        size: side of the picture, px.
    """
    config = resolve(shape.prediction, draws.preset, draws.overrides)
    return sample_flops(shape, _grid(shape, size), config, _COUNTED_IMAGES) / _TERA


def _grid(shape: TransformerConfig, size: int) -> Grid:
    """Rows and columns of tokens.

    Raises:
        UserError: the size is not a multiple of what a token covers.
    """
    unit = STRIDE_PX * shape.patch_size
    if size % unit:
        raise UserError(f"study: got pictures of {size} px, allowed: multiples of {unit} px")
    return size // unit, size // unit
