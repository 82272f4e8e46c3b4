"""Files of released LightGen weights, read without running anything that they hold."""

import argparse
import contextlib
import re
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from lightgen.core.directory import file_entry
from lightgen.core.errors import UserError

_MAX_TENSORS, _MAX_HEADER, _MAX_ENTRIES, _MAX_PICKLE = 5_000, 10**6, 50_000, 64 * 2**20
_LONGEST_NAME = 80
_BEFORE_ZIP = b"\x80\x02\x8a\nl\xfc\x9cF\xf9"  # how files of torch.save began before PyTorch 1.6


@dataclass(frozen=True)
class ReleasedWeights:
    """Tensors of a file.

    Attributes:
        tensors: under the file's names, without the prefixes of wrappers; they may lie in the mapped file.
        part: the entry that they were, or `all` where the file held them alone.
    """

    tensors: dict[str, Tensor]
    part: Literal["model", "model_ema", "all"]


def read_released(path: Path, ema: bool = True) -> ReleasedWeights:
    """Weights of a safetensors file or of a checkpoint that torch.save wrote; no code in it is ever run.

    Args:
        path: the file.
        ema: whether to take `model_ema` rather than `model`, where the file holds such entries.

    Raises:
        UserError: the file is of another kind, damaged, asks for code to be run, or lacks the entry.
    """
    found, is_archive = _read(path)
    part: Literal["model", "model_ema", "all"] = "all"
    if is_archive:
        found, part = _pick(found, path, ema)
    return ReleasedWeights(_without_prefixes(_checked(found, part, path), path), part)


def read_state_dict(path: Path, pinned: str | None = None) -> dict[str, Tensor]:
    """Tensors of a safetensors file, or of a checkpoint of torch.save, whose entry `state_dict` they may be.

    Args:
        path: the file.
        pinned: SHA-256 [64 hex digits] of the one file that may be of the format of torch.save before PyTorch
            1.6; it is read by the same unpickler.

    Raises:
        UserError: as `read_released`.
    """
    found, is_archive = _read(path, pinned)
    if is_archive and isinstance(found, Mapping) and isinstance(found.get("state_dict"), Mapping):
        found = found["state_dict"]
    return _without_prefixes(_checked(found, "state_dict", path), path)


def _read(path: Path, pinned: str | None = None) -> tuple[object, bool]:
    """What the file holds, and whether torch.save wrote it."""
    if not path.is_file():
        raise UserError(f"{path}: no such file, allowed: a released .pth, or .safetensors")
    with path.open("rb") as file:
        start = file.read(9)
    if start.startswith(b"PK\x03\x04"):
        return _read_archive(path), True
    if start == _BEFORE_ZIP and pinned is not None and file_entry(path)["sha256"] == pinned:
        return torch.load(path, map_location="cpu", weights_only=True), True
    if start[8:] == b"{":
        return _read_safetensors(path, int.from_bytes(start[:8], "little")), False
    raise UserError(f"{path}: is neither, allowed: a zip that torch.save wrote, or safetensors")


def _without_prefixes(found: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """The tensors under their names without the prefixes of wrappers."""
    tensors = {}
    for name, tensor in found.items():
        plain = re.sub(r"^(?:(?:module|_orig_mod)\.)+", "", name)
        if plain in tensors:
            raise UserError(
                f"{path}: holds {plain[:_LONGEST_NAME]!r} twice, with and without a prefix, allowed: once"
            )
        tensors[plain] = tensor
    return tensors


def _read_safetensors(path: Path, header: int) -> dict[str, Tensor]:
    if header > _MAX_HEADER:
        raise UserError(f"{path}: got a header of {header} bytes, allowed: up to {_MAX_HEADER}")
    try:
        with safe_open(path, framework="pt") as file:
            names = list(file.keys())
            if len(names) > _MAX_TENSORS:
                raise UserError(f"{path}: got {len(names)} tensors, allowed: up to {_MAX_TENSORS}")
            return {name: file.get_tensor(name) for name in names}
    except SafetensorError as error:
        raise UserError(f"{path}: is damaged ({error}), allowed: whole safetensors") from None


def _read_archive(path: Path) -> object:
    """What a checkpoint of torch.save holds, by the unpickler that knows tensors and plain values only."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
        pickles = [entry for entry in entries if entry.filename.rpartition("/")[2] == "data.pkl"]
        is_plain = all(entry.compress_type == zipfile.ZIP_STORED for entry in entries)
        is_script = any(entry.filename.endswith("constants.pkl") for entry in entries)
        is_small = len(entries) <= _MAX_ENTRIES and all(entry.file_size <= _MAX_PICKLE for entry in pickles)
        if len(pickles) != 1 or is_script or not is_plain or not is_small:
            raise UserError(
                f"{path}: is no such archive, allowed: a zip that torch.save wrote, with weights only"
            )
        # mapped, so that the optimizer's state is never read
        with _allowing([argparse.Namespace]):
            return torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except UserError:
        raise
    except Exception as error:  # a hostile file may fail in any way; all of them are refusals
        asked = re.search(r"GLOBAL (\S+) (?:was not an allowed|whose module)", str(error))
        what = (
            f"asks for {asked[1][:_LONGEST_NAME]!r}"
            if asked
            else "is damaged or holds more than plain values"
        )
        raise UserError(f"{path}: {what}, allowed: tensors and plain values; nothing in it was run") from None


@contextlib.contextmanager
def _allowing(classes: list[Any]) -> Iterator[None]:
    """Context in which the unpickler knows these beside plain values, and nothing that others allowed."""
    others = torch.serialization.get_safe_globals()
    torch.serialization.clear_safe_globals()
    try:
        with torch.serialization.safe_globals(classes):
            yield
    finally:
        torch.serialization.add_safe_globals(others)


def _pick(
    found: object, path: Path, ema: bool
) -> tuple[Mapping[Any, Any], Literal["model", "model_ema", "all"]]:
    """The asked entry of what a file holds."""
    if not isinstance(found, Mapping):
        raise UserError(f"{path}: holds a {type(found).__name__}, allowed: a dict with model and model_ema")
    part = "model_ema" if ema else "model"
    entry = found.get(part)
    if not isinstance(entry, Mapping):
        if isinstance(found.get("model"), Mapping):
            raise UserError(f"{path}: holds no model_ema, allowed: --raw, which takes the weights as trained")
        if isinstance(found.get("model_ema"), Mapping):
            raise UserError(f"{path}: holds no model beside model_ema, allowed: without --raw")
        part, entry = "all", found
    return entry, part


def _checked(entry: object, part: str, path: Path) -> dict[str, Tensor]:
    """An entry, checked to be dense tensors that lie in the file."""
    if not isinstance(entry, Mapping):
        raise UserError(f"{path}: {part} is a {type(entry).__name__}, allowed: a dict of named tensors")
    for name, tensor in entry.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            got = f"{str(name)[:_LONGEST_NAME]!r}, a {type(tensor).__name__}"
            raise UserError(f"{path}: {part} holds {got}, allowed: named tensors")
        if tensor.layout != torch.strided or tensor.device.type != "cpu" or tensor.is_quantized:
            raise UserError(f"{path}: {name[:_LONGEST_NAME]!r} is no dense tensor, allowed: dense tensors")
    size, stored = (
        sum(tensor.numel() * tensor.element_size() for tensor in entry.values()),
        path.stat().st_size,
    )
    if size > stored or len(entry) > _MAX_TENSORS:
        got = f"{len(entry)} tensors of {size} bytes"
        raise UserError(f"{path}: claims {got}, allowed: {_MAX_TENSORS} of the {stored} bytes in the file")
    return dict(entry)
