"""Tiny detectors of random weights with their processors, in the layout of transformers."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    CLIPTokenizer,
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    Owlv2Config,
    Owlv2ForObjectDetection,
    RTDetrResNetConfig,
    RTDetrV2Config,
    RTDetrV2ForObjectDetection,
    SwinConfig,
)
from transformers.models.mask2former.image_processing_pil_mask2former import Mask2FormerImageProcessorPil
from transformers.models.owlv2.image_processing_pil_owlv2 import Owlv2ImageProcessorPil
from transformers.models.rt_detr.image_processing_pil_rt_detr import RTDetrImageProcessorPil

from lightgen.core.draws import numpy_draws
from lightgen.ports.coco import GENEVAL_NAMES
from lightgen.ports.detector import DetectorConfig, load_foreign_detector
from lightgen.ports.detector_mask2former import Mask2FormerDetector
from tests.ports.toy_clip import words

# As checkpoints of COCO have them: some names are older than COCO's own, which GenEval changed once more.
OLD_NAMES = {"motorcycle": "motorbike", "airplane": "aeroplane", "couch": "sofa", "tv": "tvmonitor"}
OLD_NAMES |= {"potted plant": "pottedplant", "dining table": "diningtable"}
OLD_NAMES |= {"computer mouse": "mouse", "tv remote": "remote", "computer keyboard": "keyboard"}
LABELS = {number: OLD_NAMES.get(name, name) for number, name in enumerate(GENEVAL_NAMES)}
OWL_SIDE, OWL_TOKENS, RT_SIDE = 48, 32, 96
KINDS = ("mask2former", "rt-detr-v2", "owlv2")
ASKED = {**dict.fromkeys(KINDS, GENEVAL_NAMES), "owlv2": ("cat", "computer mouse", "red dog")}


def pictures(height: int = 60, width: int = 90, count: int = 3) -> np.ndarray:
    """Noise on patches of chance colours."""
    random = numpy_draws(0, "pictures", height, width)
    patches = random.integers(0, 236, (count, 5, 5, 3)).repeat(30, 1).repeat(30, 2)[:, :height, :width]
    return (patches + random.integers(0, 20, patches.shape)).astype(np.uint8)


def save_detector(kind: str, folder: Path, labels: dict[int, str] | None = None) -> Path:
    makers = {"mask2former": mask2former, "rt-detr-v2": rt_detr, "owlv2": owlv2}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        makers[kind](folder, LABELS if labels is None else labels)
    return folder


def mask2former(folder: Path, labels: dict[int, str]) -> None:
    stages = [f"stage{n}" for n in (1, 2, 3, 4)]
    swin = {"embed_dim": 8, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 2, 2], "window_size": 4}
    config = Mask2FormerConfig(
        backbone_config=SwinConfig(**swin, out_features=stages, drop_path_rate=0.0),
        **{"feature_size": 32, "mask_feature_size": 32, "hidden_dim": 32, "num_attention_heads": 4},
        **{"encoder_feedforward_dim": 32, "dim_feedforward": 32, "encoder_layers": 1, "decoder_layers": 2},
        num_queries=12,
        id2label=labels,
        label2id={name: number for number, name in labels.items()},
    )
    model = Mask2FormerForUniversalSegmentation(config)
    spread(model)
    torch.nn.init.normal_(model.class_predictor.weight, std=2.0)
    model.save_pretrained(folder)
    # as these checkpoints come: squares of 384 px
    Mask2FormerImageProcessorPil(size={"height": 384, "width": 384}).save_pretrained(folder)


def rt_detr(folder: Path, labels: dict[int, str]) -> None:
    stages = ["stage2", "stage3", "stage4"]
    net = {"embedding_size": 8, "hidden_sizes": [8, 16, 32, 64], "depths": [1, 1, 1, 1]}
    config = RTDetrV2Config(
        backbone_config=RTDetrResNetConfig(**net, layer_type="basic", out_features=stages),
        **{"encoder_hidden_dim": 32, "encoder_in_channels": [16, 32, 64], "encoder_ffn_dim": 32},
        **{"encoder_attention_heads": 4, "decoder_attention_heads": 4, "d_model": 32, "num_queries": 20},
        **{"decoder_in_channels": [32, 32, 32], "decoder_ffn_dim": 32, "decoder_layers": 2},
        id2label=labels,
        label2id={name: number for number, name in labels.items()},
    )
    model = RTDetrV2ForObjectDetection(config)
    spread(model)
    processor = RTDetrImageProcessorPil(size={"height": RT_SIDE, "width": RT_SIDE})
    with torch.no_grad():
        shown = processor(list(pictures()), return_tensors="pt")
        mean = model.eval()(**shown).last_hidden_state.mean((0, 1))
        for head in model.model.decoder.class_embed:  # by what queries do not have in common
            torch.nn.init.normal_(head.weight, std=8.0)
            head.bias.copy_(-head.weight @ mean - 1)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def owlv2(folder: Path, labels: dict[int, str]) -> None:
    known = len(words())
    tower: dict[str, Any] = {"num_attention_heads": 4, "num_hidden_layers": 2}
    text = {**tower, "hidden_size": 16, "intermediate_size": 32, "vocab_size": known}
    text |= {"bos_token_id": known - 2, "eos_token_id": known - 1, "max_position_embeddings": OWL_TOKENS}
    vision = {**tower, "hidden_size": 32, "intermediate_size": 64, "image_size": OWL_SIDE, "patch_size": 8}
    model = Owlv2ForObjectDetection(Owlv2Config(text_config=text, vision_config=vision, projection_dim=16))
    spread(model)
    torch.nn.init.constant_(model.class_head.logit_shift.bias, -0.5)
    model.save_pretrained(folder)
    CLIPTokenizer(vocab=words(), merges=[]).save_pretrained(folder)
    Owlv2ImageProcessorPil(size={"height": OWL_SIDE, "width": OWL_SIDE}).save_pretrained(folder)


def spread(model: torch.nn.Module) -> None:
    """Weights large enough that answers differ from place to place."""
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=1.2 * (parameter[0].numel() ** -0.5))
        elif name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.1)


def load(folder, kind, **changes):
    """The detector; Mask2Former with smaller pictures than in use, for speed."""
    detector = load_foreign_detector(DetectorConfig(kind=kind, **changes), folder, torch.device("cpu"))
    if isinstance(detector, Mask2FormerDetector):
        assert detector._edges == (800, 1333)
        detector._edges = (96, 160)
    return detector


def assert_like(found, wanted):
    assert [len(each) for each in found] == [len(each) for each in wanted]
    for one, other in zip(sum(found, []), sum(wanted, []), strict=True):
        assert one.label == other.label
        assert one.score == pytest.approx(other.score, abs=1e-5)
        np.testing.assert_allclose(one.box, other.box, atol=1e-3)


def change(path: Path, **entries: Any) -> None:
    """Change entries of a JSON file."""
    found = {**json.loads(path.read_text()), **entries}
    path.write_text(json.dumps({name: value for name, value in found.items() if value is not ...}))
