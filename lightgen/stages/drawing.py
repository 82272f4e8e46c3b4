"""What the commands share that draw pictures into files."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightgen.core.config import config_to_dict
from lightgen.core.progress import say
from lightgen.core.provenance import library_versions
from lightgen.sampling.decode import DecodeConfig
from lightgen.stages.checkpoint import is_shipped, load_parts, open_checkpoint, pick_device, require_part
from lightgen.stages.pipeline import LightGenPipeline
from lightgen.stages.prompt_text import PromptCutWarning

_BATCH_PX = 256 * 256


def open_pipeline(model: str | Path) -> tuple[LightGenPipeline, dict[str, str]]:
    """Pipeline of a checkpoint directory or a shipped student, and what a picture notes of its model.

    Raises:
        UserError: there is no such checkpoint, or it lacks a part.
    """
    checkpoint = require_part(open_checkpoint(model), "transformer")
    pipeline = LightGenPipeline.from_parts(load_parts(checkpoint.path)).to(pick_device())
    name = str(model) if is_shipped(model) else checkpoint.path.resolve().name
    return pipeline, {"model": name, "model_digest": checkpoint.digest}


def decoding_facts(preset: str | None, resolved: DecodeConfig) -> dict[str, Any]:
    """What a picture notes of its decoding: preset, every setting, and the version that drew it."""
    version = library_versions().get("lightgen", "unknown")
    return {"preset": preset or "exact", **config_to_dict(resolved), "lightgen_version": version}


def encode_aloud(
    pipeline: LightGenPipeline, prompts: Sequence[str], negative_prompt: str | None
) -> dict[str, Any]:
    """The pipeline's arguments for the prompts as features; a line is said for each text that is cut."""
    for note in pipeline.cut_notes(prompts, [] if negative_prompt is None else [negative_prompt]):
        say(note)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PromptCutWarning)  # it was said
        features, mask, negative, negative_mask = pipeline.encode_prompt(prompts, negative_prompt)
    return {
        "prompt_embeds": features,
        "prompt_attention_mask": mask,
        "negative_prompt_embeds": negative,
        "negative_prompt_attention_mask": negative_mask,
    }


def pictures_at_once(batch_size: int, pixels: int) -> int:
    """Pictures of so many pixels in a batch of bounded size; batch_size holds for 256 px."""
    return max(1, min(batch_size, batch_size * _BATCH_PX // pixels))
