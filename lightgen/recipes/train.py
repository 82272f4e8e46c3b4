"""Recipes of train: what is learned, how long, and with which numbers."""

from lightgen.objectives.dpo import DPOConfig
from lightgen.objectives.masked import MaskedConfig
from lightgen.objectives.reconstruction import ReconstructionConfig
from lightgen.ports.nano.emoji import EmojiTeacherConfig
from lightgen.recipes.encode import nano as nano_encode
from lightgen.stages.distill import DistillConfig, NanoPrompts
from lightgen.stages.nano_weights import NanoWeightsConfig
from lightgen.stages.tasks import AutoencoderTask, DetectorTask, DPOTask, PretrainTask, TransformerConfig
from lightgen.stages.train import TrainConfig
from lightgen.training.fit import FitConfig
from lightgen.training.optimizer import OptimizerConfig
from lightgen.training.schedule import ScheduleConfig


def nano_autoencoder() -> TrainConfig:
    """The nano autoencoder from nothing, on images of the emoji teacher.

    Hardware: one core. Time: about 1.5 hours. Expected: 28 dB PSNR on held-out scenes.
    """
    return TrainConfig(
        task=AutoencoderTask(objective=ReconstructionConfig()),
        fit=FitConfig(
            num_steps=4_000,
            global_batch_size=32,
            optimizer=OptimizerConfig(lr=2e-3),
            schedule=ScheduleConfig(warmup_steps=100, decay_steps=1_500),
            ema_decay=0.995,
            save_every=200,
        ),
    )


def nano_detector() -> TrainConfig:
    """The nano detector from nothing, on images of the emoji teacher.

    Hardware: one core. Time: about 1 hour. Expected: 0.98 of right renders called right, 0.05 of wrong ones.
    """
    return TrainConfig(
        task=DetectorTask(),
        fit=FitConfig(
            num_steps=3_000,
            global_batch_size=32,
            optimizer=OptimizerConfig(lr=2e-3),
            schedule=ScheduleConfig(warmup_steps=100, decay_steps=1_200),
            ema_decay=0.995,
            save_every=200,
        ),
    )


def pretrain_nano() -> TrainConfig:
    """The nano student from nothing, with its text encoder, on latents; `--start` gives the autoencoder.

    Source: arXiv 2503.08619 for the objective; Muon and the joint sequence by measurements at nano scale.
    Hardware: two cores. Time: hours. Expected: nano-GenEval 0.4.
    """
    return TrainConfig(
        task=PretrainTask(
            objective=MaskedConfig(),
            model=TransformerConfig(),
            text_encoder="new",
            train_text_encoder=True,
        ),
        fit=FitConfig(
            num_steps=12_000,
            global_batch_size=48,
            optimizer=OptimizerConfig(name="muon", lr=1e-3, muon_lr=2e-3),
            schedule=ScheduleConfig(warmup_steps=200, decay_steps=5_000),
            ema_decay=0.998,
            save_every=250,
        ),
    )


def finetune_nano() -> TrainConfig:
    """The student of `--start` (default: the shipped one) goes on learning; its text encoder stays frozen.

    Hardware: two cores. Time: about 3 minutes.
    """
    return TrainConfig(
        task=PretrainTask(),
        fit=FitConfig(
            num_steps=200,
            global_batch_size=48,
            optimizer=OptimizerConfig(name="muon", lr=1e-4, muon_lr=2e-4),
            schedule=ScheduleConfig(kind="cosine", warmup_steps=20),
            ema_decay=0.98,
            save_every=50,
            log_every=5,
        ),
    )


def dpo_nano() -> TrainConfig:
    """The student of `--start` learns to prefer images of high score over those of low score of one prompt.

    Source: arXiv 2311.12908 with one error per image. Hardware: two cores. Time: about 3 minutes.
    """
    return TrainConfig(
        task=DPOTask(objective=DPOConfig(), margin=0.5),
        fit=FitConfig(
            num_steps=100,
            global_batch_size=16,
            optimizer=OptimizerConfig(lr=1e-5, weight_decay=0.0),
            schedule=ScheduleConfig(kind="constant", warmup_steps=10),
            ema_decay=0.95,
            save_every=20,
            log_every=2,
        ),
    )


def nano_weights() -> NanoWeightsConfig:
    """The whole chain behind the shipped files, from nothing: scenes, autoencoder, detector, student, export.

    Takes no `--in`. Source: the built-in grammar. Hardware: two cores. Time: hours. Disk: 2 GB.
    """
    return NanoWeightsConfig(
        scenes=DistillConfig(
            teacher=EmojiTeacherConfig(), prompts=NanoPrompts(num=60_000), shard_size=1_000, seed=7
        ),
        autoencoder=nano_autoencoder(),
        detector=nano_detector(),
        encode=nano_encode(),
        student=pretrain_nano(),
    )
