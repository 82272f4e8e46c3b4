"""Recipes of distill: who draws how many pictures."""

from lightgen.ports.endpoint import EndpointTeacherConfig
from lightgen.ports.nano.emoji import EmojiTeacherConfig, ErrorKnob
from lightgen.ports.teacher import DiffusersTeacherConfig
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


def pipeline() -> DistillConfig:
    """Pictures of `--in` by any text-to-image pipeline of diffusers, which `--teacher.model` names.

    Hardware: what the pipeline needs; `--teacher.offload` for less. Time: not run here. Whether its licence
    lets others learn from its pictures is for you to read.
    """
    return _drawn("", batch_size=4, size=512)


def flux_schnell() -> DistillConfig:
    """Pictures of `--in` at 512 px by FLUX.1-schnell in 4 steps, which must be in the Hub's cache.

    Source: the model's card (Apache-2.0). Hardware: one GPU of 40 GB, or `--teacher.offload model` in 24.
    Time: not run here.
    """
    return _drawn("black-forest-labs/FLUX.1-schnell", batch_size=8, size=512)


def sd35_medium() -> DistillConfig:
    """Pictures of `--in` at 1024 px by Stable Diffusion 3.5 Medium, which must be in the Hub's cache.

    Source: the model's card (Stability's community licence). Hardware: one GPU of 24 GB. Time: not run here.
    """
    return _drawn("stabilityai/stable-diffusion-3.5-medium", batch_size=4, size=1_024)


def sana() -> DistillConfig:
    """Pictures of `--in` at 512 px by Sana 1.6B, which must be in the Hub's cache.

    Source: arXiv 2410.10629. Hardware: one GPU of 24 GB. Time: not run here.
    """
    return _drawn("Efficient-Large-Model/Sana_1600M_512px_diffusers", batch_size=16, size=512)


def pixart() -> DistillConfig:
    """Pictures of `--in` at 512 px by PixArt-Sigma, which must be in the Hub's cache.

    Source: arXiv 2403.04692. Hardware: one GPU of 24 GB. Time: not run here.
    """
    return _drawn("PixArt-alpha/PixArt-Sigma-XL-2-512-MS", batch_size=16, size=512)


def endpoint() -> DistillConfig:
    """Pictures of `--in` at 1024 px by a server with OpenAI's images API, named by `--teacher.base-url`.

    Its key is read from the environment. Hardware: none here. Time: not run here; the server's, as is the
    price. Prompts that it refuses are listed beside the shards.
    """
    teacher = EndpointTeacherConfig(base_url="", model="")
    return DistillConfig(teacher=teacher, height=1_024, width=1_024, shard_size=1_000, format="jpg")


def _drawn(model: str, batch_size: int, size: int) -> DistillConfig:
    teacher = DiffusersTeacherConfig(model=model, batch_size=batch_size)
    return DistillConfig(teacher=teacher, height=size, width=size, shard_size=1_000, format="jpg")
