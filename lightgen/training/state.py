"""Train state on disk: everything that an exact resume needs, whole or not at all."""

import hashlib
import json
import os
import shutil
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from lightgen.core.errors import UserError

_FILE = "state.safetensors"
_META = "state.json"


def save_state(folder: Path, step: int, tensors: dict[str, torch.Tensor], keep: int = 2) -> None:
    """Write `folder/step-N/` (tensors, then their hash) and keep only the newest `keep` states."""
    final = folder / f"step-{step:08d}"
    work = folder / f".step-{step:08d}.tmp"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    try:
        save_file({n: t.contiguous() for n, t in tensors.items()}, work / _FILE)
        meta = {"step": step, "sha256": _sha256(work / _FILE)}
        (work / _META).write_text(json.dumps(meta))
        for path in (work / _FILE, work / _META, work):
            _sync(path)
        shutil.rmtree(final, ignore_errors=True)
        work.rename(final)
        _sync(folder)
    except (OSError, SafetensorError):  # the latter is what a full disk gives in save_file
        shutil.rmtree(work, ignore_errors=True)
        raise
    for old in sorted(folder.glob("step-*"))[:-keep]:
        shutil.rmtree(old, ignore_errors=True)


def load_newest_state(folder: Path) -> tuple[int, dict[str, torch.Tensor]] | None:
    """(step, tensors) of the newest state whose hash holds; None if there is no state at all.

    Raises:
        UserError: states exist and every one of them is damaged.
    """
    found = sorted(folder.glob("step-*"), reverse=True)
    for path in found:
        try:
            meta = json.loads((path / _META).read_text())
            step = int(meta["step"])
            if path.name == f"step-{step:08d}" and _sha256(path / _FILE) == meta["sha256"]:
                return step, load_file(path / _FILE)
        except (OSError, ValueError, KeyError, TypeError):
            continue
    if found:
        raise UserError(
            f"train state {folder}: all {len(found)} saved states are damaged; remove it to start anew"
        )
    return None


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
