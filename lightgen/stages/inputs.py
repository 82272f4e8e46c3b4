"""The images that a stage reads: directories, ours or plain tars of strangers, as one sequence."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lightgen.core.artifact import Artifact, open_artifact
from lightgen.core.errors import UserError
from lightgen.data.images import EncodedRecord, ImageRecord, ImageShards


@dataclass(frozen=True)
class ImageInputs:
    """Records of all directories, one after the other.

    Attributes:
        sources: shards of each directory.
        artifacts: those of them that are artifacts, the parents of what is made from them.
        plain: name and size of each shard of the others.
    """

    sources: tuple[ImageShards, ...]
    artifacts: tuple[Artifact, ...]
    plain: tuple[dict[str, Any], ...]

    def __len__(self) -> int:
        """Number of records."""
        return sum(len(source) for source in self.sources)

    def __getitem__(self, i: int) -> ImageRecord:
        """Record i, decoded; raises CorruptRecord."""
        source, inner = self.locate(i)
        return self.sources[source][inner]

    def meta(self, i: int) -> dict[str, Any]:
        """JSON of record i."""
        source, inner = self.locate(i)
        return self.sources[source].meta(inner)

    def encoded(self, i: int) -> EncodedRecord:
        """Record i with its image as stored."""
        source, inner = self.locate(i)
        return self.sources[source].encoded(inner)

    def key(self, i: int) -> str:
        """Key of record i; led by the number of its directory where there are several."""
        source, inner = self.locate(i)
        key = self.sources[source].key(inner)
        return key if len(self.sources) == 1 else f"{source}/{key}"

    def locate(self, i: int) -> tuple[int, int]:
        """Number of the directory of record i, and the record's number in it."""
        ends = np.cumsum([len(source) for source in self.sources])
        if not 0 <= i < ends[-1]:
            raise IndexError(f"record {i} of {ends[-1]}")
        source = int(np.searchsorted(ends, i, side="right"))
        return source, i - (int(ends[source - 1]) if source else 0)

    def identity(self) -> dict[str, Any]:
        """What the config of a stage must hold to tell these inputs from others, beside the parents."""
        return {"plain_inputs": list(self.plain)} if self.plain else {}


def open_images(paths: Sequence[str | Path]) -> ImageInputs:
    """Records of artifacts of images, or of directories of plain tars (`KEY.png|jpg|webp` + `KEY.json`).

    Raises:
        UserError: no directory is given, or one holds neither.
    """
    if not paths:
        raise UserError("--in: got nothing, allowed: one or more directories of images")
    sources, artifacts, plain = [], [], []
    for path in map(Path, paths):
        if path.is_dir() and not (path / "manifest.json").exists() and any(path.glob("*.tar")):
            sizes = {tar.name: tar.stat().st_size for tar in sorted(path.glob("*.tar"))}
            plain.append({"name": path.resolve().name, "shards": sizes})
        else:
            artifacts.append(open_artifact(path, "images"))
        sources.append(ImageShards(path))
    return ImageInputs(tuple(sources), tuple(artifacts), tuple(plain))


def require_size(image: np.ndarray, height: int, width: int, key: str) -> np.ndarray:
    """The image itself, uint8 [height, width, 3].

    Raises:
        UserError: it has another size.
    """
    if image.shape[:2] != (height, width):
        got = f"{image.shape[1]}x{image.shape[0]}"
        raise UserError(
            f"record {key!r}: image of {got} px, allowed: one size for all, here {width}x{height}"
        )
    return image
