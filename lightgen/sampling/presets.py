"""Named trades of quality against cost."""

from dataclasses import replace
from typing import Literal

from lightgen.models.head import Prediction
from lightgen.sampling.decode import DecodeConfig

PresetName = Literal["exact", "balanced", "fast"]
PRESETS: tuple[PresetName, ...] = ("exact", "balanced", "fast")


def preset(name: PresetName, prediction: Prediction) -> DecodeConfig:
    """Settings of a preset for models of a prediction; `benchmarks/` measure what each costs and keeps.

    `exact` is how the model is meant to be sampled: for ddpm heads the released schedule of 64 iterations
    and 100 steps. Source: arXiv 2503.08619, section 5.1, and its code for the steps. The others approximate.

    Args:
        name: one of PRESETS.
        prediction: of the head.
    """
    if prediction == "ddpm":
        exact = DecodeConfig(
            num_iterations=64, num_head_steps=100, solver="ancestral", spacing="even", guidance_scale=4.0
        )
        balanced = replace(
            exact, num_head_steps=30, last_head_steps=10, solver="dpm++", spacing="stride", refresh_every=2
        )
        fast = replace(balanced, num_iterations=48, num_head_steps=15, last_head_steps=5, refresh_every=3)
    else:
        exact = DecodeConfig(num_iterations=16, num_head_steps=12)
        balanced = replace(exact, num_head_steps=6, last_head_steps=4, solver="dpm++")
        fast = replace(balanced, refresh_every=2)
    return {"exact": exact, "balanced": balanced, "fast": fast}[name]
