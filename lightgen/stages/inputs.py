"""The images that a stage reads: artifacts, and public sets as they are, as one sequence."""

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np

from lightgen.core.artifact import Artifact, open_artifact
from lightgen.core.config import digest
from lightgen.core.errors import UserError
from lightgen.core.progress import Progress, say
from lightgen.data.folders import FolderPairs
from lightgen.data.geneval_folder import GenEvalFolder, is_geneval_folder
from lightgen.data.images import EncodedRecord, ImageReader, ImageRecord, ImageShards, Skipped
from lightgen.data.parquet import ParquetImages

Kind = Literal["tars", "parquet", "folder", "geneval"]

_TOLD = ("caption", "image")
_PICTURES = (".png", ".jpg", ".jpeg", ".webp")
_LOOKED_AT = 100_000
_NUMBER = re.compile(r"\d+")


@dataclass(frozen=True)
class ImageInputs:
    """Records of all directories, one after the other.

    Attributes:
        sources: reader of each directory.
        artifacts: those of them that are artifacts, the parents of what is made from them.
        plain: names and sizes of the files of each of the others; beside artifacts, also their place among
            all, on which keys and shards depend.
    """

    sources: tuple[ImageReader, ...]
    artifacts: tuple[Artifact, ...]
    plain: tuple[dict[str, Any], ...]

    def __len__(self) -> int:
        """Number of records."""
        return int(self._ends[-1])

    def __getitem__(self, i: int) -> ImageRecord:
        """Record i, decoded; raises CorruptRecord."""
        source, inner = self.locate(i)
        return self.sources[source][inner]

    def meta(self, i: int) -> dict[str, Any]:
        """What is told of record i, at least its `prompt`; raises CorruptRecord."""
        source, inner = self.locate(i)
        return self.sources[source].meta(inner)

    def encoded(self, i: int) -> EncodedRecord:
        """Record i with its image as stored; raises CorruptRecord."""
        source, inner = self.locate(i)
        return self.sources[source].encoded(inner)

    def key(self, i: int) -> str:
        """Key of record i; led by the number of its directory where there are several."""
        source, inner = self.locate(i)
        key = self.sources[source].key(inner)
        return key if len(self.sources) == 1 else f"{source}/{key}"

    @property
    def skipped(self) -> Iterator[Skipped]:
        """What the readers left out, with the reasons."""
        return (each for source in self.sources for each in source.skipped)

    def locate(self, i: int) -> tuple[int, int]:
        """Number of the directory of record i, and the record's number in it."""
        ends = self._ends
        if not 0 <= i < ends[-1]:
            raise IndexError(f"record {i} of {ends[-1]}")
        source = int(np.searchsorted(ends, i, side="right"))
        return source, i - (int(ends[source - 1]) if source else 0)

    def identity(self) -> dict[str, Any]:
        """What the config of a stage must hold to tell these inputs from others, beside the parents."""
        return {"plain_inputs": list(self.plain)} if self.plain else {}

    @cached_property
    def _ends(self) -> np.ndarray:
        return np.cumsum([len(source) for source in self.sources])


def open_images(paths: Sequence[str | Path], *, verify: bool = True) -> ImageInputs:
    """Records of artifacts of images, or of public sets as they are.

    A path is an artifact; a directory of tars (`KEY.png|jpg|webp` with `KEY.json`, `KEY.txt` or both); one of
    parquet files with the bytes of images; a folder of images with a `.txt` or `.json` beside each, with its
    folders within; a folder in GenEval's layout; or one tar or parquet file. A path may end in
    `::caption=NAME`, the key or column of its captions (`txt`: the text files), and for parquet
    `::image=NAME` or `::caption=NAME,image=NAME`.

    Args:
        paths: as above.
        verify: also hash every file of the artifacts, and say what is left out of public sets.

    Raises:
        UserError: nothing is given, or a path holds none of these, or more than one kind.
    """
    if not paths:
        raise UserError("--in: got nothing, allowed: one or more directories of images")
    sources: list[ImageReader] = []
    artifacts, plain, places = [], [], []
    for number, named in enumerate(paths):
        path, told = _split_told(named)
        kind = kind_of_images(path)
        if kind is None:
            if told:
                raise UserError(f"{named}: got {' and '.join(told)} of an artifact, allowed: of a public set")
            artifacts.append(open_artifact(path, "images", verify=verify))
            sources.append(ImageShards(path))
            continue
        source = _open_plain(path, kind, told, aloud=verify)
        sources.append(source)
        plain.append({"name": path.resolve().name, **_files(path, kind, source), **told})
        places.append(number)
        if source.skipped and verify:  # workers would only repeat it
            say(f"{path.name}: left out {summary(source.skipped)}")
    if artifacts:
        plain = [{**each, "place": place} for each, place in zip(plain, places, strict=True)]
    return ImageInputs(tuple(sources), tuple(artifacts), tuple(plain))


def changed_at(paths: Sequence[str | Path]) -> str:
    """SHA-256 [64 hex digits] of the times of change and sizes of all files of public sets.

    Names and sizes, which say what a set is, stay when a file is exchanged for another of one size; what is
    kept about a set's pictures beyond a run must notice.
    """
    found = hashlib.sha256()
    for path in (_split_told(named)[0] for named in paths):
        if kind_of_images(path) is not None:
            for file in [path] if path.is_file() else sorted(path.rglob("*")):
                known = file.stat() if file.is_file() else None
                if known is not None:
                    found.update(f"{file.name} {known.st_size} {known.st_mtime_ns}\n".encode())
    return found.hexdigest()


def content_digest(images: ImageInputs, name: str = "") -> str:
    """SHA-256 [64 hex digits] of every image, told by artifacts' manifests and by the bytes of public sets.

    Args:
        images: all of them.
        name: shown beside the progress where bytes are read.
    """
    if not images.plain:
        return digest([artifact.digest for artifact in images.artifacts])
    found = hashlib.sha256()
    with Progress(f"hash {name}".strip(), len(images), "images") as progress:
        for i in range(len(images)):
            found.update(hashlib.sha256(images.encoded(i).data).digest())
            progress.advance()
    return found.hexdigest()


def kind_of_images(path: Path) -> Kind | None:
    """What kind of public set a path is; None for an artifact, and where nothing of the kind is there.

    Raises:
        UserError: more than one kind, or tar or parquet files in folders within alone.
    """
    suffix = path.suffix.lower()
    if path.is_file() and suffix in (".tar", ".parquet"):
        return "tars" if suffix == ".tar" else "parquet"
    if not path.is_dir() or (path / "manifest.json").exists():
        return None
    names = [each.name for each in path.iterdir() if each.name[0] != "." and each.is_file()]
    stems = {name.rpartition(".")[0] for name in names if name.endswith((".txt", ".json"))}
    paired = any(name.lower().endswith(_PICTURES) and name.rpartition(".")[0] in stems for name in names)
    kinds: list[Kind] = []
    if any(name.endswith(".tar") for name in names):
        kinds.append("tars")
    if any(name.endswith(".parquet") for name in names):
        kinds.append("parquet")
    if paired:
        kinds.append("folder")
    if len(kinds) > 1:
        got = " and ".join("images" if kind == "folder" else kind for kind in kinds)
        raise UserError(f"{path}: got {got} in one directory, allowed: one kind; part them")
    if not kinds and is_geneval_folder(path):
        return "geneval"
    return kinds[0] if kinds else _kind_within(path)


def summary(skipped: Sequence[Skipped]) -> str:
    """Skipped files counted by reason, the most frequent first."""
    reasons = count_reasons(each.reason for each in skipped)
    return ", ".join(f"{count} {reason}" for reason, count in list(reasons.items())[:8])


def count_reasons(reasons: Iterable[str]) -> dict[str, int]:
    """How often each reason is given, the most frequent first; those that differ in a number are one."""
    found = Counter(_NUMBER.sub("N", each) for each in reasons)
    return dict(found.most_common())


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


def _split_told(named: str | Path) -> tuple[Path, dict[str, str]]:
    """Path, and what is told of it after `::`."""
    text, mark, rest = str(named).rpartition("::")
    if not mark or Path(named).exists():
        return Path(named), {}
    told: dict[str, str] = {}
    for part in rest.split(","):
        key, _, told[key] = part.partition("=")
        if key not in _TOLD or not told[key]:
            raise UserError(f"{named}: got '::{rest}', allowed: ::caption=NAME, or ::caption=NAME,image=NAME")
    return Path(text), told


def _open_plain(path: Path, kind: Kind, told: dict[str, str], *, aloud: bool) -> ImageReader:
    if kind == "parquet":
        return ParquetImages(path, told.get("caption"), told.get("image"))
    if kind == "geneval":
        if told:
            raise UserError(f"{path}: got {' and '.join(told)} of GenEval's layout, allowed: its prompts")
        found = GenEvalFolder(path)
        if found.collated and aloud:  # workers would only repeat it
            say(f"{path.name}: {found.collated} prompts have metadata wrapped in lists, taken without them")
        return found
    if "image" in told:
        raise UserError(f"{path}: got ::image={told['image']}, allowed: of parquet files alone")
    return (ImageShards if kind == "tars" else FolderPairs)(path, told.get("caption"))


def _files(path: Path, kind: Kind, source: ImageReader) -> dict[str, Any]:
    """Names and sizes of the files of a public set; of a folder a digest of them."""
    if isinstance(source, FolderPairs | GenEvalFolder):
        return {"images": len(source), "bytes": source.size, "digest": source.digest}
    files = [path] if path.is_file() else sorted(path.glob("*.tar" if kind == "tars" else "*.parquet"))
    return {"shards": {file.name: file.stat().st_size for file in files if file.is_file()}}


def _kind_within(path: Path) -> Kind | None:
    """Kind of a directory without images of its own: a folder if there are any in the folders within."""
    shards = None
    for number, each in enumerate(path.rglob("*")):
        if number > _LOOKED_AT:
            break
        if any(part[0] == "." for part in each.relative_to(path).parts):
            continue
        if each.suffix.lower() in _PICTURES and each.is_file():
            return "folder"
        if each.suffix in (".tar", ".parquet"):
            shards = each
    if shards is not None:
        raise UserError(
            f"{path}: got {shards.suffix[1:]} files in folders within, allowed: --in {shards.parent}"
        )
    return None
