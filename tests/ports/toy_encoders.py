"""Tiny encoders of random weights, one folder of each family in the layout of transformers."""

import json
from pathlib import Path

import torch
from transformers import (
    BertConfig,
    BertModel,
    BertTokenizer,
    Dinov2Config,
    Dinov2Model,
    PreTrainedModel,
    Siglip2Config,
    Siglip2Model,
    Siglip2Tokenizer,
    SiglipConfig,
    SiglipModel,
)
from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil
from transformers.models.siglip2.image_processing_pil_siglip2 import Siglip2ImageProcessorPil

from tests.ports.toy_clip import save_clip

SIDE, PATCH, LENGTH = 28, 7, 16
LETTERS = [chr(ord("a") + i) for i in range(26)]
GEMMA = {w: i for i, w in enumerate(["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "\u2581", *LETTERS])}
PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *LETTERS, *(f"##{each}" for each in LETTERS)]
_TOWER = {"num_attention_heads": 4, "num_hidden_layers": 2, "intermediate_size": 64, "hidden_size": 32}
_TEXT = {**_TOWER, "vocab_size": len(GEMMA), "max_position_embeddings": LENGTH, "projection_size": 32}
_TEXT |= {"bos_token_id": 2, "eos_token_id": 1, "pad_token_id": 0}


def save_encoder(family: str, folder: Path) -> Path:
    """Folder of a family: clip, siglip, siglip2, dinov2 or bert."""
    if family == "clip":
        return save_clip(folder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = _model(family)
        for name, parameter in model.named_parameters():
            torch.nn.init.normal_(parameter, std=0.05 if name.endswith("bias") else 0.3)
    model.save_pretrained(folder)
    if family == "dinov2":
        cut = {"height": SIDE, "width": SIDE}
        BitImageProcessorPil(size={"shortest_edge": 32}, crop_size=cut).save_pretrained(folder)
    elif family == "bert":
        BertTokenizer(vocab={w: i for i, w in enumerate(PIECES)}).save_pretrained(folder)
    else:
        _save_gemma(folder)
        size = {"height": SIDE, "width": SIDE}
        pictures = (
            SiglipImageProcessorPil(size=size)
            if family == "siglip"
            else Siglip2ImageProcessorPil(patch_size=PATCH, max_num_patches=16)
        )
        pictures.save_pretrained(folder)
    return folder


def _model(family: str) -> PreTrainedModel:
    if family == "dinov2":
        return Dinov2Model(Dinov2Config(**_TOWER, image_size=SIDE, patch_size=PATCH, mlp_ratio=2))
    if family == "bert":
        return BertModel(BertConfig(**_TOWER, vocab_size=len(PIECES), max_position_embeddings=LENGTH))
    vision = {**_TOWER, "patch_size": PATCH}
    if family == "siglip":
        return SiglipModel(SiglipConfig(text_config=_TEXT, vision_config={**vision, "image_size": SIDE}))
    return Siglip2Model(Siglip2Config(text_config=_TEXT, vision_config={**vision, "num_patches": 16}))


def _save_gemma(folder: Path) -> None:
    """A tokenizer that ends a text with <eos>, as that of SigLIP 2 does."""
    Siglip2Tokenizer(vocab=GEMMA, merges=[]).save_pretrained(folder)
    path = folder / "tokenizer.json"
    stored = json.loads(path.read_text())
    stored["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": "<eos>", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<eos>": {"id": "<eos>", "ids": [1], "tokens": ["<eos>"]}},
    }
    path.write_text(json.dumps(stored))
