"""Files of a LoRA in peft's layout: `adapter_config.json` and `adapter_model.safetensors`."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from lightgen.core.directory import json_bytes, read_json_object, whole_file
from lightgen.core.errors import UserError

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
MAX_RANK = 1024
_PREFIX = "base_model.model."
_KEY = re.compile(r"(?:base_model\.model\.|transformer\.)?(.+)\.lora_([AB])(?:\.default)?\.weight")
_UNLIKE = ("use_dora", "use_rslora", "lora_bias", "modules_to_save", "fan_in_fan_out")

Pair = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class Adapter:
    """What a LoRA adds to each module.

    Attributes:
        where: what messages call it.
        weights: A [r, inputs] and B [outputs, r], by name of the module.
        alphas: the addition is scaled by alpha / r; by name too.
    """

    where: str
    weights: dict[str, Pair]
    alphas: dict[str, float]


def open_adapter(source: str | Path | Mapping[str, torch.Tensor]) -> Adapter:
    """Adapter of a folder, of a safetensors file, or of tensors by peft's names.

    Without a config (beside the file) the additions are not scaled.

    Raises:
        UserError: it is missing, damaged or of another kind than plain LoRA.
    """
    if isinstance(source, Mapping):
        return _adapter("of tensors", source, None)
    path = Path(source)
    weights = path / WEIGHTS if path.is_dir() else path
    if weights.suffix != ".safetensors" or not weights.is_file():
        raise UserError(f"lora {path}: not found, allowed: a folder with {WEIGHTS}, or a .safetensors file")
    config = weights.parent / CONFIG
    if path.is_dir() and not config.is_file():
        raise UserError(f"lora {path}: no {CONFIG}, allowed: a folder in peft's layout")
    try:
        tensors = load_file(weights)
    except SafetensorError as error:
        raise UserError(f"lora {weights}: damaged ({error}), allowed: a safetensors file") from error
    if not config.is_file():
        return _adapter(str(path), tensors, None)
    found = read_json_object(config)
    if found is None:
        raise UserError(f"lora {config}: damaged, allowed: a JSON object")
    return _adapter(str(path), tensors, found[0])


def write_adapter(folder: Path, weights: Mapping[str, Pair], config: Mapping[str, Any]) -> None:
    """Write both files, each whole; the config last."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {
        f"{_PREFIX}{name}.lora_{letter}.weight": half.detach().cpu().contiguous()
        for name, pair in weights.items()
        for letter, half in zip("AB", pair, strict=True)
    }
    with whole_file(folder / WEIGHTS) as temporary:
        save_file(tensors, temporary, metadata={"format": "pt"})
    with whole_file(folder / CONFIG) as temporary:
        temporary.write_bytes(json_bytes(config))


def _adapter(where: str, tensors: Mapping[str, torch.Tensor], config: Mapping[str, Any] | None) -> Adapter:
    weights = _pairs(where, tensors)
    if config is None:
        return Adapter(where, weights, {name: float(len(a)) for name, (a, _) in weights.items()})
    unlike = [name for name in _UNLIKE if config.get(name)]
    kind, bias = config.get("peft_type"), config.get("bias", "none")
    if kind != "LORA" or unlike or bias != "none":
        got = ", ".join([f"peft_type {kind!r}", f"bias {bias!r}", *unlike])
        raise UserError(f"lora {where}: {CONFIG} says {got}, allowed: plain LORA")
    return Adapter(where, weights, {name: _alpha(where, name, config) for name in weights})


def _pairs(where: str, tensors: Mapping[str, torch.Tensor]) -> dict[str, Pair]:
    halves: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in tensors.items():
        match = _KEY.fullmatch(key)
        if match is None or tensor.ndim != 2 or not tensor.is_floating_point():
            raise UserError(
                f"lora {where}: got tensor {key[:80]!r}, allowed: MODULE.lora_A.weight and lora_B"
            )
        halves.setdefault(match[1], {})[match[2]] = tensor
    alone = [name for name, pair in halves.items() if len(pair) != 2]
    if not halves or alone:
        got = f"one half of {alone[0][:80]!r}" if alone else "no tensors"
        raise UserError(f"lora {where}: got {got}, allowed: lora_A and lora_B of each module")
    return {name: (pair["A"], pair["B"]) for name, pair in halves.items()}


def _alpha(where: str, name: str, config: Mapping[str, Any]) -> float:
    """Alpha of a module: its own, where the config lists one, else that of all."""
    given = config.get("alpha_pattern") or {}
    listed = {} if not isinstance(given, Mapping) else {str(k).removeprefix("^"): v for k, v in given.items()}
    own = [value for key, value in listed.items() if name == key or name.endswith(f".{key}")]
    alpha = own[0] if own else config.get("lora_alpha")
    if not isinstance(alpha, int | float) or not math.isfinite(alpha):
        raise UserError(f"lora {where}: lora_alpha: got {alpha!r}, allowed: a finite number")
    return float(alpha)
