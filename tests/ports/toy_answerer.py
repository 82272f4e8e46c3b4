"""Tiny models of random weights that see: one folder of each family, in the layout of transformers."""

from pathlib import Path
from typing import Any

from transformers import (
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
)
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from tests.ports.toy_captioner import SMALL, SPECIAL, TEMPLATE, _save, save_llava, save_seer, toy_tokenizer

FAMILIES = ("llava", "qwen2_vl", "qwen2_5_vl", "qwen3_vl")


def save_family(family: str, folder: Path, template: str | None = TEMPLATE) -> Path:
    """Folder of one of FAMILIES; all have one letter per token."""
    if family == "llava":
        return save_llava(folder)
    if family == "qwen2_5_vl":
        return save_seer(folder)
    marks = {
        "image_token_id": SPECIAL.index("<image>"),
        "vision_start_token_id": SPECIAL.index("<see>"),
        "vision_end_token_id": SPECIAL.index("</see>"),
        "video_token_id": SPECIAL.index("<video>"),
    }
    text: dict[str, Any] = {
        **SMALL,
        "vocab_size": len(toy_tokenizer()),
        "intermediate_size": 48,
        "max_position_embeddings": 2048,
        "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0},
    }
    if family == "qwen2_vl":
        Qwen2VLImageProcessorPil(min_pixels=56 * 56, max_pixels=112 * 112).save_pretrained(folder)
        vision = {"depth": 2, "embed_dim": 32, "hidden_size": 32, "num_heads": 2, "mlp_ratio": 2}
        config = Qwen2VLConfig(text_config=text, vision_config=vision, **marks)
        return _save(Qwen2VLForConditionalGeneration(config), folder, template)
    assert family == "qwen3_vl", family
    Qwen2VLImageProcessorPil(patch_size=16, min_pixels=64 * 64, max_pixels=128 * 128).save_pretrained(folder)
    vision = {
        "depth": 3,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_heads": 2,
        "out_hidden_size": 32,
        "num_position_embeddings": 16,
        "deepstack_visual_indexes": [0, 1],
    }
    config = Qwen3VLConfig(text_config={**text, "head_dim": 8}, vision_config=vision, **marks)
    return _save(Qwen3VLForConditionalGeneration(config), folder, template)
