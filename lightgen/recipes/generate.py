"""Recipes of generate: how pictures are decoded."""

from lightgen.sampling.decode import DecodeConfig
from lightgen.stages.generate import GenerateConfig


def nano() -> GenerateConfig:
    """Pictures of 128 px by the shipped student.

    Hardware: one core. Time: about 0.3 seconds a picture.
    """
    return GenerateConfig(decode=DecodeConfig(num_iterations=16, num_head_steps=12, guidance_scale=3.0))
