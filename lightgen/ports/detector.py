"""Detectors of others behind one port: Mask2Former, RT-DETRv2 and OWLv2, all of transformers."""

import contextlib
import importlib.util
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import (
    CLIPTokenizer,
    Mask2FormerForUniversalSegmentation,
    Owlv2ForObjectDetection,
    RTDetrV2ForObjectDetection,
)
from transformers.models.owlv2.image_processing_pil_owlv2 import Owlv2ImageProcessorPil
from transformers.models.rt_detr.image_processing_pil_rt_detr import RTDetrImageProcessorPil

from lightgen.core.errors import UserError
from lightgen.ports.coco import coco_classes
from lightgen.ports.detector_mask2former import Mask2FormerDetector
from lightgen.ports.detector_owlv2 import OWLv2Detector
from lightgen.ports.detector_rt_detr import RTDetrDetector
from lightgen.ports.protocols import Detector
from lightgen.ports.scorer import one_line

Kind = Literal["nano", "mask2former", "rt-detr-v2", "owlv2"]
DEFAULT_MODELS: dict[Kind, str] = {
    "mask2former": "facebook/mask2former-swin-small-coco-instance",
    "rt-detr-v2": "PekingU/rtdetr_v2_r50vd",
    "owlv2": "google/owlv2-base-patch16-ensemble",
}

_PICTURES = "preprocessor_config.json"
_VOCABULARIES = (("tokenizer.json",), ("vocab.json", "merges.txt"))
_BESIDE = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
# What a folder is read for; nothing else of a repository is needed.
PATTERNS = (
    *("config.json", "model*.safetensors", "model.safetensors.index.json", _PICTURES, *_BESIDE),
    *(name for names in _VOCABULARIES for name in names),
)

# `model_type` of the config, and the class.
_MODELS: dict[Kind, tuple[str, Any]] = {
    "mask2former": ("mask2former", Mask2FormerForUniversalSegmentation),
    "rt-detr-v2": ("rt_detr_v2", RTDetrV2ForObjectDetection),
    "owlv2": ("owlv2", Owlv2ForObjectDetection),
}
_NEED_SCIPY = ("mask2former", "owlv2")
# Of what a model holds, what only its training reads.
_OF_TRAINING = ("criterion.", "num_batches_tracked")
_STRIDE = 32  # of RT-DETRv2's coarsest features


@dataclass(frozen=True, kw_only=True)
class DetectorConfig:
    """Which model finds objects, and how it runs.

    Attributes:
        kind: nano: the shipped detector of the nano world, which judges colours too; mask2former: that of
            GenEval, with masks; rt-detr-v2: boxes of the same 80 classes; owlv2: boxes of any class.
        model: local folder in the layout of transformers, or OWNER/NAME of a repository in the Hub's cache;
            for nano the checkpoint of a detector. None names the usual one.
        batch_size: most images per pass.
        precision: of the model (nano: always fp32); scores and boxes are computed in fp32.
    """

    kind: Kind = "nano"
    model: str | None = None
    batch_size: int = 8
    precision: Literal["bf16", "fp32"] = "fp32"


def detector_files(config: DetectorConfig, folder: Path) -> list[Path]:
    """Files of a folder that a detector, any but nano, is read from.

    Raises:
        UserError: the folder lacks what the kind needs.
    """
    weights = sorted(folder.glob("model*.safetensors"))
    if not weights or not (folder / "config.json").is_file():
        lack = "config.json" if weights else "model.safetensors"
        raise UserError(
            f"detector {folder}: no {lack}, allowed: {config.kind} in transformers' layout, safetensors only"
        )
    if not (folder / _PICTURES).is_file():
        raise UserError(f"detector {folder}: no {_PICTURES}, allowed: a folder with the image processor")
    beside = [name for name in PATTERNS if "*" not in name]
    if config.kind == "owlv2":
        if not any(all((folder / name).is_file() for name in names) for names in _VOCABULARIES):
            raise UserError(f"detector {folder}: no tokenizer.json, allowed: a folder with the tokenizer")
    else:
        words = {name for names in _VOCABULARIES for name in names} | set(_BESIDE)
        beside = [name for name in beside if name not in words]
    return [*weights, *(folder / name for name in beside if (folder / name).is_file())]


def load_foreign_detector(config: DetectorConfig, folder: Path, device: torch.device) -> Detector:
    """Detector of a local folder on a device; nothing is downloaded and no code of the files is run.

    Args:
        config: its kind, any but nano.
        folder: in the layout of transformers.
        device: where it runs.

    Raises:
        UserError: the files are missing, damaged, of another kind or for other classes, or scipy is missing.
    """
    assert config.kind != "nano", config
    detector_files(config, folder)
    if config.kind in _NEED_SCIPY and importlib.util.find_spec("scipy") is None:
        raise UserError(
            f"detector {config.kind}: scipy is not installed, allowed: after `pip install 'lightgen[eval]'`"
        )
    with _told(folder):
        stated = _read_json(folder / "config.json")
        family, model_class = _MODELS[config.kind]
        if stated.get("model_type") != family:
            raise UserError(f"holds a {stated.get('model_type')!r}, allowed: a {family!r}")
        model = _load_model(folder, model_class, config)
        if config.kind == "owlv2":
            return _owlv2(config, folder, model.to(device))
        classes = coco_classes(model.config.id2label)
        if config.kind == "mask2former":
            mean, std = _pixel_statistics(folder / _PICTURES)
            return Mask2FormerDetector(model.to(device), classes, mean, std, config.batch_size)
        return _rt_detr(config, folder, model.to(device), classes)


def _load_model(folder: Path, model_class: Any, config: DetectorConfig) -> Any:  # noqa: ANN401
    """The model in its dtype; a weight that is not stored, which the library would draw, is refused."""
    model, told = model_class.from_pretrained(
        folder,
        dtype=torch.bfloat16 if config.precision == "bf16" else torch.float32,
        use_safetensors=True,
        local_files_only=True,
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # refused below, where it can be named
    )
    absent = [name for name in sorted(told["missing_keys"]) if not any(part in name for part in _OF_TRAINING)]
    absent += sorted(str(each[0]) for each in told["mismatched_keys"])
    if absent:
        raise UserError(
            f"{len(absent)} weights missing or of another shape ({absent[0]}), allowed: a whole {config.kind}"
        )
    return model


def _rt_detr(
    config: DetectorConfig,
    folder: Path,
    model: Any,  # noqa: ANN401
    classes: tuple[str, ...],
) -> RTDetrDetector:
    processor: Any = RTDetrImageProcessorPil.from_pretrained(folder, local_files_only=True)
    height, width = processor.size.height, processor.size.width
    if not processor.do_resize or not height or not width or height % _STRIDE or width % _STRIDE:
        raise UserError(f"scales to {width}x{height} px, allowed: multiples of {_STRIDE}")
    if processor.do_pad:
        raise UserError("pads images, allowed: images squeezed to one size")
    anchors = model.config.anchor_image_size
    if anchors is not None and list(anchors) != [height, width]:
        raise UserError(f"scales to {width}x{height} px, allowed: the model's {anchors[1]}x{anchors[0]}")
    return RTDetrDetector(model, processor, classes, config.batch_size)


def _owlv2(config: DetectorConfig, folder: Path, model: Any) -> OWLv2Detector:  # noqa: ANN401
    processor: Any = Owlv2ImageProcessorPil.from_pretrained(folder, local_files_only=True)
    tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    side, size = model.config.vision_config.image_size, processor.size
    if not processor.do_resize or (size.height, size.width) != (side, side):
        raise UserError(f"scales to {size.width}x{size.height} px, allowed: the model's {side}x{side}")
    if not processor.do_pad:
        raise UserError("squeezes images to squares, allowed: a processor that pads them (do_pad)")
    known = model.config.text_config.vocab_size
    if len(tokenizer) > known:
        raise UserError(f"got {len(tokenizer)} words, allowed: the {known} of the model, or fewer")
    tokenizer.padding_side = "right"  # as it was trained
    return OWLv2Detector(model, tokenizer, processor, config.batch_size)


def _pixel_statistics(path: Path) -> tuple[list[float], list[float]]:
    """Mean and std of red, green and blue in [0, 1], as an image processor's file states them.

    Nothing else of the file is taken: its size is not the one at which the model is tested.
    """
    stated = _read_json(path)
    found: list[list[float]] = []
    for name, least in (("image_mean", 0.0), ("image_std", 1e-3)):
        stated_numbers = stated.get(name)
        numbers = stated_numbers if isinstance(stated_numbers, list) else []
        if len(numbers) != 3 or not all(isinstance(x, float | int) and least <= x <= 1 for x in numbers):
            raise UserError(f"{path.name} has no {name}, allowed: three numbers from {least:g} to 1")
        found.append([float(each) for each in numbers])
    scale = stated.get("rescale_factor", 1 / 255)
    if not isinstance(scale, float) or not math.isclose(scale, 1 / 255, rel_tol=1e-4):
        raise UserError(f"{path.name} scales pixels by {str(scale)[:20]}, allowed: 1/255")
    if not (stated.get("do_normalize", True) is True and stated.get("do_rescale", True) is True):
        raise UserError(f"{path.name} does not normalise pixels, allowed: a processor that does")
    return found[0], found[1]


def _read_json(path: Path) -> dict[str, Any]:
    found = json.loads(path.read_bytes())
    if not isinstance(found, dict):
        raise UserError(f"{path.name} holds a {type(found).__name__}, allowed: an object")
    return found


@contextlib.contextmanager
def _told(folder: Path) -> Iterator[None]:
    """Context in which whatever ails other people's files becomes one line."""
    with one_line("detector", folder):
        try:
            yield
        except (AttributeError, LookupError, ArithmeticError, StrictDataclassError) as error:
            raise ValueError(f"{type(error).__name__} {error}") from error
