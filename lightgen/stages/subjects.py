"""What is evaluated: checkpoints, which draw first, or images; and what their pictures cost."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lightgen.core.artifact import Artifact, Workspace, open_artifact
from lightgen.core.config import config_to_dict, digest
from lightgen.core.device import peak_memory
from lightgen.core.ranks import num_ranks
from lightgen.ports.autoencoder import read_stride
from lightgen.sampling.decode import DecodeConfig
from lightgen.stages.checkpoint import (
    is_shipped,
    open_checkpoint,
    pick_device,
    require_part,
    transformer_shape,
)
from lightgen.stages.decoding import resolve
from lightgen.stages.distill import DistillConfig, distill
from lightgen.stages.engine import EngineConfig
from lightgen.stages.inputs import ImageInputs, content_digest, open_images
from lightgen.stages.sampling_cost import sample_flops
from lightgen.stages.student import StudentTeacherConfig


@dataclass(frozen=True)
class Subject:
    """A subject: its name as given, where it is, and either a checkpoint or images."""

    name: str
    path: Path
    checkpoint: Artifact | None
    images: ImageInputs | None

    @property
    def artifacts(self) -> tuple[Artifact, ...]:
        """Parents of what is found out about it."""
        if self.checkpoint is not None:
            return (self.checkpoint,)
        return self.images.artifacts if self.images is not None else ()

    def identity(self) -> str:
        """Digest of all that findings depend on: the checkpoint, or every image and what is told of it."""
        if self.images is None:
            return self.digest
        told = [[self.images.key(i), self.images.meta(i)] for i in range(len(self.images))]
        plain = told if self.images.plain else []
        return digest([content_digest(self.images, self.name), plain])

    @property
    def digest(self) -> str:
        """Of its artifact; of plain images, that of their names and sizes where there is one."""
        if self.artifacts:
            return self.artifacts[0].digest
        plain = self.images.plain if self.images is not None else ()
        return str(plain[0].get("digest", "")) if plain else ""


def open_subjects(paths: Sequence[str | Path]) -> list[Subject]:
    """The subjects, numbered where two have one name.

    Raises:
        UserError: a path is neither a checkpoint nor images.
    """
    opened = [_open(path) for path in paths]
    names = [each.name for each in opened]
    if len(set(names)) == len(names):
        return opened
    return [replace(each, name=f"{number}-{each.name}") for number, each in enumerate(opened, 1)]


def _open(subject: str | Path) -> Subject:
    path, name = Path(subject), Path(subject).resolve().name
    if is_shipped(subject):
        return Subject(str(subject), path, open_checkpoint(subject), None)
    if (path / "manifest.json").is_file() or not path.exists():
        kind = open_artifact(path, "checkpoint", "images", verify=False).kind
        if kind == "checkpoint":
            return Subject(name, path, require_part(open_checkpoint(path), "transformer"), None)
    return Subject(name, path, None, open_images([path]))


def images_of(
    subject: Subject,
    drawing: DistillConfig,
    workspace: Workspace,
    folder: str,
    prompts: Path,
    engine: EngineConfig,
) -> tuple[ImageInputs, Path]:
    """(Images, directory that they were opened from) of a subject; a checkpoint draws them first.

    Args:
        subject: the subject.
        drawing: how a checkpoint draws.
        workspace: of the stage.
        folder: name of the folder in it for what a checkpoint draws.
        prompts: file of what it is asked to draw.
        engine: who draws.
    """
    if subject.images is not None:
        return subject.images, subject.path
    assert subject.checkpoint is not None
    made = distill(drawing, workspace.path / folder, [prompts], subject.checkpoint.path, engine)
    return open_images([made.path]), made.path


def decoding_of(subject: Subject, student: StudentTeacherConfig) -> DecodeConfig | None:
    """Every setting by which a checkpoint decodes; None for images."""
    if subject.checkpoint is None:
        return None
    return resolve(transformer_shape(subject.checkpoint).prediction, student.preset, student.overrides)


def cost_of(
    subject: Subject, drawing: DistillConfig, engine: EngineConfig, seconds: dict[str, float], num_images: int
) -> dict[str, Any]:
    """What the pictures of a subject cost, one by one, as far as it is known.

    Args:
        subject: the subject.
        drawing: how a checkpoint drew.
        engine: who drew.
        seconds: of each part of the work, interrupted runs included.
        num_images: that were drawn and judged.

    Returns:
        Seconds per image of each part, all ranks and workers together taken as one; `tflop_per_image` of
        decoding, without text encoder and autoencoder; `memory_gb`, the most that this process held.
    """
    found: dict[str, Any] = {f"{part}_s_per_image": each / num_images for part, each in seconds.items()}
    student = drawing.teacher
    if subject.checkpoint is not None and isinstance(student, StudentTeacherConfig):
        unit = read_stride(subject.checkpoint.path / "vae") * transformer_shape(subject.checkpoint).patch_size
        grid, decode = (drawing.height // unit, drawing.width // unit), decoding_of(subject, student)
        assert decode is not None
        batch = min(drawing.batch_size, num_images)
        flops = sample_flops(transformer_shape(subject.checkpoint), grid, decode, batch)
        found["tflop_per_image"] = flops / 1e12
        found["decoding"] = config_to_dict(decode)
    if engine.name == "local":
        found["memory_gb"] = peak_memory(pick_device()) / 1e9
    return {**found, "ranks": num_ranks()}
