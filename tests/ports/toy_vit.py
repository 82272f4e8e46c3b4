"""A tiny image classifier of random weights with its processor, in the layout of transformers."""

from pathlib import Path

import torch
from transformers import ViTConfig, ViTForImageClassification
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

SIDE = 16


def toy_vit(labels: tuple[str, ...] = ("normal", "nsfw", "gore"), seed: int = 0) -> ViTForImageClassification:
    config = ViTConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=SIDE,
        patch_size=4,
        id2label=dict(enumerate(labels)),
        label2id={label: number for number, label in enumerate(labels)},
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = ViTForImageClassification(config)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.6)
    return model.eval()


def save_vit(folder: Path, seed: int = 0, side: int = SIDE) -> Path:
    toy_vit(seed=seed).save_pretrained(folder)
    ViTImageProcessorPil(size={"height": side, "width": side}).save_pretrained(folder)
    return folder
