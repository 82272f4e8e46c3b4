"""Export: a trained checkpoint becomes the small files that ship inside the package."""

from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from lightgen.core.artifact import Artifact, begin_artifact
from lightgen.stages.checkpoint import (
    NANO,
    SHARD_BYTES,
    SHIPPED_DETECTOR,
    copy_part,
    forget_origin,
    load_detector,
    load_parts,
    require_part,
    save_detector,
)
from lightgen.stages.pipeline import LightGenPipeline


def export_nano(checkpoint: Artifact, detector: Artifact | None, out: str | Path) -> list[Artifact]:
    """Artifacts `nano` and (with a detector) `nano-detector` in `out`: fp16, small shards, no train state.

    Raises:
        UserError: the checkpoint is no student, or the detector holds none.
    """
    exported = [export_student(checkpoint, Path(out) / NANO)]
    if detector is not None:
        exported.append(export_detector(detector, Path(out) / SHIPPED_DETECTOR.name))
    return exported


def export_student(checkpoint: Artifact, out: Path) -> Artifact:
    """Checkpoint artifact with the four parts in fp16; an autoencoder in fp16 already keeps its files."""
    require_part(checkpoint, "transformer")
    found = begin_artifact(out, "checkpoint", _settings(), [checkpoint])
    if isinstance(found, Artifact):
        return found
    with found as workspace:
        parts = load_parts(checkpoint.path)
        parts.cast(torch.float16)
        LightGenPipeline.from_parts(parts).save_pretrained(workspace.path, max_shard_size=SHARD_BYTES)
        if _is_fp16(checkpoint.path / "vae"):
            copy_part(checkpoint.path / "vae", workspace.path / "vae")
            forget_origin(workspace.path)
        parameters = sum(p.numel() for p in parts.transformer.parameters())
        return workspace.commit({"parameters": parameters})


def export_detector(detector: Artifact, out: Path) -> Artifact:
    """Checkpoint artifact with the detector in fp16."""
    found = begin_artifact(out, "checkpoint", _settings(), [detector])
    if isinstance(found, Artifact):
        return found
    with found as workspace:
        network = load_detector(detector).network.half()
        save_detector(network, workspace.path / "detector")
        return workspace.commit({"parameters": sum(p.numel() for p in network.parameters())})


def _settings() -> dict[str, Any]:
    return {"stage": "export", "dtype": "fp16", "shard_bytes": SHARD_BYTES}


def _is_fp16(folder: Path) -> bool:
    return all(_dtypes(path) == {"F16"} for path in folder.glob("*.safetensors"))


def _dtypes(path: Path) -> set[str]:
    """Dtypes of the tensors of a safetensors file, from its header."""
    with safe_open(path, framework="pt") as file:
        return {file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118  (not a dict)
