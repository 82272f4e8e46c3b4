"""Recipes of train in the nano world: what is learned, how long, and with which numbers."""

from dataclasses import replace

from lightgen.objectives.dpo import DPOConfig
from lightgen.objectives.masked import MaskedConfig
from lightgen.objectives.reconstruction import ReconstructionConfig
from lightgen.ports.nano.emoji import EmojiTeacherConfig, ErrorKnob
from lightgen.recipes.encode import nano as nano_encode
from lightgen.recipes.model import nano
from lightgen.stages.distill import DistillConfig, NanoPrompts
from lightgen.stages.lora import LoraConfig
from lightgen.stages.nano_weights import NanoWeightsConfig
from lightgen.stages.tasks import (
    AutoencoderTask,
    DetectorTask,
    DPOTask,
    LanguageTask,
    PretrainTask,
    TrainConfig,
)
from lightgen.training.config import FitConfig, RunConfig
from lightgen.training.optimizer import OptimizerConfig
from lightgen.training.schedule import ScheduleConfig


def nano_autoencoder() -> TrainConfig:
    """The nano autoencoder from nothing, on images of the emoji teacher.

    Hardware: one core. Time: about 45 minutes. Expected: 29 dB PSNR on held-out scenes.
    The shipped one (32.0 dB): 2,560 steps of 128 on a GPU, by `benchmarks/gpu_weights.py autoencoder`.
    """
    return TrainConfig(
        task=AutoencoderTask(objective=ReconstructionConfig()),
        fit=FitConfig(
            num_steps=2_600,
            global_batch_size=16,
            optimizer=OptimizerConfig(lr=2e-3, weight_decay=0.0),
            schedule=ScheduleConfig(warmup_steps=100, decay_steps=1_000),
            ema_decay=0.995,
        ),
        run=RunConfig(save_every=200),
    )


def nano_detector() -> TrainConfig:
    """The nano detector from nothing, on images of the emoji teacher that hold every combination.

    Hardware: one core. Time: about 2 hours. Expected: more than 0.99 of verdicts as the truth's.
    The shipped one: 4,550 steps without crowds and with whole centres, then 1,700 from there at rate 1e-3
    with this objective (docs/log.md, 2026-11-27).
    """
    return TrainConfig(
        task=DetectorTask(objective=replace(DetectorTask().objective, scramble=0.1, crowd=0.4, spread=True)),
        fit=FitConfig(
            num_steps=4_000,
            global_batch_size=32,
            optimizer=OptimizerConfig(lr=2e-3, weight_decay=0.01),
            schedule=ScheduleConfig(warmup_steps=100, decay_steps=2_000),
            max_grad_norm=10.0,
            ema_decay=0.99,
            # Convolutions in bf16 are ten times slower on processors that only emulate it.
            precision="fp32",
        ),
        run=RunConfig(save_every=200),
    )


def nano_language() -> TrainConfig:
    """A new nano text encoder learns to read, on captions alone; it goes on from the words of `--start`.

    Takes no `--in`. With a `--start` that has a text encoder, features stay near its, so that its transformer
    reads on. Hardware: one core. Time: about 5 minutes.
    Expected: colour, count and place of at least 0.99 of the objects of held-out captions.
    """
    return TrainConfig(
        task=LanguageTask(),
        fit=FitConfig(
            num_steps=400,
            global_batch_size=128,
            optimizer=OptimizerConfig(lr=1e-3, weight_decay=0.0),
            schedule=ScheduleConfig(warmup_steps=30, decay_steps=160),
            ema_decay=0.98,
            precision="fp32",
            held_out=600,
        ),
        run=RunConfig(save_every=100, held_out_every=100),
    )


def pretrain_nano() -> TrainConfig:
    """The nano student from nothing, with its text encoder, on latents; `--start` gives the autoencoder.

    Source: arXiv 2503.08619 for the objective; Muon and the joint sequence by measurements at nano scale.
    Hardware: two cores. Time: 10 hours. The shipped student saw half as many pictures again, in 7 minutes of
    one GPU: `benchmarks/gpu_weights.py student` (docs/log.md, 2026-11-28).
    """
    return TrainConfig(
        task=PretrainTask(
            objective=MaskedConfig(),
            model=nano(),
            text_encoder="new",
            train_text_encoder=True,
        ),
        fit=FitConfig(
            num_steps=16_000,
            global_batch_size=64,
            optimizer=OptimizerConfig(name="muon", lr=1e-3, muon_lr=2e-3, weight_decay=0.01),
            schedule=ScheduleConfig(warmup_steps=100, decay_steps=6_400),
            max_grad_norm=2.0,
            ema_decay=0.998,
            held_out=256,
        ),
        run=RunConfig(save_every=250, held_out_every=250, keep_every=1_000),
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
        ),
        run=RunConfig(save_every=50, log_every=5),
    )


def lora_nano() -> TrainConfig:
    """A LoRA of rank 8 on the student of `--start` (default: the shipped one): 0.2M weights learn.

    The checkpoint holds the additions alone in `lora/`, for `load_lora_weights`, and a student with them.
    Source: arXiv 2106.09685. Hardware: two cores. Time: about 3 minutes.
    """
    config = finetune_nano()
    return replace(
        config,
        task=PretrainTask(lora=LoraConfig()),
        fit=replace(config.fit, optimizer=OptimizerConfig(lr=1e-3, weight_decay=0.0), precision="fp32"),
    )


def dpo_nano() -> TrainConfig:
    """The student of `--start` learns to prefer images of high score over those of low score of one prompt.

    Source: arXiv 2311.12908 with one error per image; rate and beta by trials (docs/log.md, 2026-11-23).
    Hardware: two cores. Time: about 3 minutes.
    """
    return TrainConfig(
        task=DPOTask(objective=DPOConfig(beta=500.0), how="all", per_prompt=3),
        fit=FitConfig(
            num_steps=100,
            global_batch_size=16,
            optimizer=OptimizerConfig(lr=1e-5, weight_decay=0.0),
            schedule=ScheduleConfig(kind="constant", warmup_steps=5),
            ema_decay=0.9,
        ),
        run=RunConfig(save_every=50, log_every=5),
    )


def dpo_lora_nano() -> TrainConfig:
    """`dpo-nano` by a LoRA of rank 8: the weights below it are the reference, which takes no memory then.

    Source: arXiv 2106.09685. Hardware: two cores. Time: about 4 minutes.
    """
    config = dpo_nano()
    return replace(
        config,
        task=replace(config.task, lora=LoraConfig()),
        fit=replace(config.fit, optimizer=OptimizerConfig(lr=1e-4, weight_decay=0.0), precision="fp32"),
    )


def raft_nano() -> TrainConfig:
    """The student of `--start` goes on with those of its own pictures that are right; needs ranked latents.

    Source: arXiv 2304.06767. Hardware: two cores. Time: about 3 minutes.
    """
    return replace(finetune_nano(), task=PretrainTask(min_score=1.0))


def nano_weights() -> NanoWeightsConfig:
    """The whole chain behind the shipped files, from nothing: scenes, stand-ins, student, export.

    Takes no `--in`. The student reads through a frozen text encoder, as the paper's does (arXiv 2503.08619);
    its teacher errs now and then, as real ones do. Source of the captions: the built-in grammar.
    Hardware: two cores. Time: half a day. Disk: 3 GB.
    """
    student = pretrain_nano()
    assert isinstance(student.task, PretrainTask)
    return NanoWeightsConfig(
        scenes=DistillConfig(
            teacher=EmojiTeacherConfig(
                rotation_degrees=0.0,
                rotation_steps=1,
                errors=ErrorKnob(wrong_count=0.1, wrong_place=0.1, wrong_color=0.05, blur=0.05),
            ),
            prompts=NanoPrompts(num=60_000),
            shard_size=1_000,
        ),
        judged_scenes=DistillConfig(prompts=NanoPrompts(num=40_000, split="both"), shard_size=1_000, seed=1),
        autoencoder=nano_autoencoder(),
        language=nano_language(),
        detector=nano_detector(),
        encode=nano_encode(),
        student=replace(student, task=replace(student.task, text_encoder="start", train_text_encoder=False)),
    )
