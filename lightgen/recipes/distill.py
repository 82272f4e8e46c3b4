"""Recipes of distill: who draws how many pictures."""

from lightgen.ports.nano.emoji import EmojiTeacherConfig, ErrorKnob
from lightgen.stages.distill import DistillConfig, NanoPrompts
from lightgen.stages.student import StudentTeacherConfig


def nano_teacher() -> DistillConfig:
    """20,000 scenes of training captions by the emoji teacher, without errors.

    Source: the built-in grammar. Hardware: one core. Time: about 2 minutes. Disk: 0.3 GB.
    """
    return DistillConfig(prompts=NanoPrompts(num=20_000))


def nano_teacher_imperfect() -> DistillConfig:
    """3,000 scenes of training captions by a teacher with wrong counts, places, colours and some blur.

    Source: the built-in grammar. Hardware: one core. Time: about 20 seconds. Disk: 0.05 GB.
    """
    errors = ErrorKnob(wrong_count=0.2, wrong_place=0.2, wrong_color=0.1, wrong_class=0.02, blur=0.03)
    return DistillConfig(teacher=EmojiTeacherConfig(errors=errors), prompts=NanoPrompts(num=3_000))


def student() -> DistillConfig:
    """Four pictures each of 150 training prompts of counting, place and colour, by the student of `--start`.

    Source: the built-in grammar. Hardware: two cores. Time: about 90 seconds for `nano`.
    """
    return DistillConfig(
        teacher=StudentTeacherConfig(),
        prompts=NanoPrompts(num=150, seed=1, tags=("counting", "colors", "position", "color_attr")),
        images_per_prompt=4,
        shard_size=50,
    )
