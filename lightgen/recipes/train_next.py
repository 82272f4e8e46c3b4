"""Recipes of train for the shipped nano's design, at the paper's size."""

from dataclasses import replace

from lightgen.objectives.masked import MaskedConfig
from lightgen.recipes.model import next as next_model
from lightgen.recipes.train import pretrain_256, pretrain_512, pretrain_1024
from lightgen.stages.tasks import PretrainTask, TrainConfig
from lightgen.training.optimizer import OptimizerConfig
from lightgen.training.schedule import ScheduleConfig


def pretrain_next_256() -> TrainConfig:
    """The model `next` at 256 px from nothing, in half the steps of `pretrain-256`.

    Muon on the matrices of blocks, a rate that falls to 0 over the last 40 % of the run, no cut of the mask
    law: as the shipped nano was trained. Rates and steps are carried over from nano and were not tuned at
    this size.
    Source: trials on nano (docs/study.md). Hardware: 8 GPUs of 80 GB. Time: `lightgen doctor
    pretrain-next-256` counts; not run here. Expected: nothing known at this size.
    """
    config = pretrain_256()
    return replace(
        config,
        task=PretrainTask(objective=MaskedConfig(), image_size=256, model=next_model()),
        fit=replace(
            config.fit,
            num_steps=50_000,
            optimizer=OptimizerConfig(name="muon", lr=3e-4, muon_lr=6e-4, weight_decay=0.01),
            schedule=ScheduleConfig(warmup_steps=1_000, decay_steps=20_000),
            max_grad_norm=2.0,
            ema_decay=0.999,
        ),
    )


def pretrain_next_512() -> TrainConfig:
    """`pretrain-next-256` goes on at 512 px, tokens at half the distance; `--start` is its checkpoint.

    Source: as `pretrain-512` for the number of images. Hardware: 8 GPUs of 80 GB. Time: `lightgen doctor
    pretrain-next-512` counts; not run here. Expected: nothing known at this size.
    """
    return _later(pretrain_512(), 0.5)


def pretrain_next_1024() -> TrainConfig:
    """`pretrain-next-512` goes on at 1024 px, tokens at half the distance; `--start` is its checkpoint.

    Source: as `pretrain-1024` for the number of images. Hardware: 8 GPUs of 80 GB. Time: `lightgen doctor
    pretrain-next-1024` counts; not run here. Expected: nothing known at this size.
    """
    return _later(pretrain_1024(), 0.25)


def _later(config: TrainConfig, position_step: float) -> TrainConfig:
    """A later stage of the paper with the optimizer of `next` at a tenth of its rate."""
    assert isinstance(config.task, PretrainTask)
    rates = OptimizerConfig(name="muon", lr=3e-5, muon_lr=6e-5, weight_decay=0.01)
    steps = config.fit.num_steps
    schedule = ScheduleConfig(warmup_steps=min(100, steps // 10), decay_steps=2 * steps // 5)
    return replace(
        config,
        task=replace(config.task, objective=MaskedConfig(), position_step=position_step),
        fit=replace(config.fit, optimizer=rates, schedule=schedule, max_grad_norm=2.0, ema_decay=0.999),
    )
