"""Recipes of inpaint: how pictures are changed."""

from lightgen.stages.inpaint import InpaintConfig


def nano() -> InpaintConfig:
    """Changes by the shipped student, made for 128 px, with the preset exact: 16 iterations of 12 steps.

    Hardware: one core. Time: about 0.3 seconds a picture of 128 px.
    """
    return InpaintConfig()
