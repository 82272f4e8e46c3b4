"""Detectors and judges of colours as a stage finds them: shipped, in local folders or the Hub's cache."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lightgen.core.artifact import Artifact
from lightgen.core.errors import UserError
from lightgen.ports.color import DEFAULT_MODEL, ColorConfig, color_files, load_colors
from lightgen.ports.detector import (
    DEFAULT_MODELS,
    PATTERNS,
    DetectorConfig,
    detector_files,
    load_foreign_detector,
)
from lightgen.ports.embedding import PATTERNS as CLIP_PATTERNS
from lightgen.ports.nano.detector import VERSION
from lightgen.ports.protocols import ColorClassifier, Detector
from lightgen.stages.checkpoint import load_detector, open_detector, part_digest, pick_device
from lightgen.stages.hub import cached, hash_files


@dataclass(frozen=True)
class DetectorPlace:
    """Where a detector's files are; a worker on this machine can be handed it, and load the same.

    Attributes:
        config: its kind, and how it runs.
        artifact: checkpoint of a nano detector, a parent of what it judges; None for any other.
        folder: of any other, absolute; None for nano.
    """

    config: DetectorConfig
    artifact: Artifact | None = None
    folder: Path | None = None

    def identity(self) -> dict[str, Any]:
        """SHA-256 by name of each file, or of the nano detector: what finds, wherever it lies."""
        if self.artifact is not None:
            return {"nano": str(VERSION), "detector": part_digest(self.artifact, "detector")}
        assert self.folder is not None
        return _hashes(self.folder, detector_files(self.config, self.folder))

    def load(self) -> Detector:
        """The detector, on the accelerator where there is one (nano: on the CPU)."""
        if self.artifact is not None:
            return load_detector(self.artifact)
        assert self.folder is not None
        return load_foreign_detector(self.config, self.folder, pick_device())


@dataclass(frozen=True)
class ColorPlace:
    """Where the files of a colour classifier are: its folder, absolute."""

    config: ColorConfig
    folder: Path

    def identity(self) -> dict[str, Any]:
        """SHA-256 of each file, by name; they are what names colours, wherever they lie."""
        return _hashes(self.folder, color_files(self.config, self.folder))

    def load(self) -> ColorClassifier:
        """The classifier, on the accelerator where there is one."""
        return load_colors(self.config, self.folder, pick_device())


def find_detector(config: DetectorConfig, named: str | Path | None = None) -> DetectorPlace:
    """Place of a detector; nothing is downloaded.

    Args:
        config: its kind, and how it runs.
        named: checkpoint (nano), folder or repository in place of the config's model.

    Raises:
        UserError: it is not on this machine, or lacks what its kind needs.
    """
    if config.batch_size < 1:
        raise UserError(f"--detector.batch-size: got {config.batch_size}, allowed: a whole number from 1")
    name = config.model if named is None else str(named)
    if config.kind == "nano":
        artifact = open_detector(name)
        return DetectorPlace(config, artifact=replace(artifact, path=artifact.path.absolute()))
    folder = cached(name if name is not None else DEFAULT_MODELS[config.kind], PATTERNS).absolute()
    detector_files(config, folder)
    return DetectorPlace(config, folder=folder)


def find_colors(config: ColorConfig) -> ColorPlace:
    """Place of a colour classifier; nothing is downloaded.

    Raises:
        UserError: it is not on this machine, or lacks what a CLIP needs.
    """
    if config.batch_size < 1:
        raise UserError(f"--colors.batch-size: got {config.batch_size}, allowed: a whole number from 1")
    folder = cached(config.model if config.model is not None else DEFAULT_MODEL, CLIP_PATTERNS).absolute()
    color_files(config, folder)
    return ColorPlace(config, folder)


def _hashes(folder: Path, paths: list[Path]) -> dict[str, str]:
    return hash_files(folder.name, {path.relative_to(folder).as_posix(): path for path in paths})
