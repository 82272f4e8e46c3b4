"""Recipes of evaluate: which prompts, how many pictures, which rules."""

from lightgen.stages.distill import NanoPrompts
from lightgen.stages.evaluate import EvaluateConfig


def nano_geneval() -> EvaluateConfig:
    """nano-GenEval: 40 test prompts of each of the six tasks, 2 pictures each; overall is the mean of tasks.

    Source: GenEval's rules; test prompts of held-out combinations.
    Hardware: two cores. Time: about 1.5 minutes a checkpoint.
    """
    return EvaluateConfig(
        prompts=NanoPrompts(num=240, split="test"),
        images_per_prompt=2,
    )
