"""Features of images: extractors as a stage finds them, features by shards and in a cache."""

import hashlib
import itertools
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save, save_file

from lightgen.core.artifact import Workspace
from lightgen.core.cache import cache_folder
from lightgen.core.config import digest
from lightgen.core.directory import lock_file, whole_file
from lightgen.core.errors import UserError
from lightgen.core.progress import say
from lightgen.core.ranks import from_first, meet, num_ranks, rank
from lightgen.ports.features import (
    DEFAULT_MODELS,
    PATTERNS,
    FeaturesConfig,
    features_files,
    load_features,
)
from lightgen.ports.inception import WEIGHTS
from lightgen.ports.nano.features import VERSION, NanoFeatures
from lightgen.ports.protocols import FeatureExtractor
from lightgen.stages.checkpoint import load_detector, open_detector, part_digest, pick_device
from lightgen.stages.engine import EngineConfig, Writer, cut, write_shards
from lightgen.stages.hub import cached, hash_files
from lightgen.stages.inputs import ImageInputs, content_digest, open_images

_PREPARED = 1  # how images are prepared for an extractor; another number is other features
_SHARD = 512  # images at least, in whole batches: an image meets the model in the same company
_NAME, _HASH = "features", "sha256"


@dataclass(frozen=True)
class FeaturesPlace:
    """Where an extractor's files are: the folder of its model or its file, or None for nano."""

    config: FeaturesConfig
    path: Path | None

    def identity(self) -> dict[str, Any]:
        """What features depend on beside the images: kind, precision and SHA-256 of each file, by name."""
        found: dict[str, Any] = {"kind": self.config.kind, "prepared": _PREPARED}
        if self.path is None:
            detector = part_digest(open_detector(self.config.model), "detector")
            return {**found, "nano": VERSION, "detector": detector}
        named = {path.name: path for path in features_files(self.config, self.path)}
        return {**found, "precision": self.config.precision, **hash_files(self.path.name, named)}

    def load(self) -> FeatureExtractor:
        """The extractor, on the accelerator where there is one (nano: on the CPU)."""
        if self.path is None:
            return NanoFeatures(load_detector(open_detector(self.config.model)), self.config.batch_size)
        return load_features(self.config, self.path, pick_device())


def find_features(config: FeaturesConfig) -> FeaturesPlace:
    """Place of an extractor; nothing is downloaded.

    Raises:
        UserError: it is not on this machine, or lacks what its kind needs.
    """
    if config.batch_size < 1:
        raise UserError(f"features: got batch size {config.batch_size}, allowed: a whole number from 1")
    if config.kind in ("nano", "inception") and config.precision != "fp32":
        raise UserError(f"features {config.kind}: got precision {config.precision}, allowed: fp32")
    if config.kind == "nano":
        at = open_detector(config.model).path.absolute()  # another process may work in another directory
        return FeaturesPlace(config if config.model is None else replace(config, model=str(at)), None)
    if config.kind == "inception":
        if config.model is None:
            raise UserError(
                f"features inception: got no model, allowed: the file {WEIGHTS} of torch-fidelity"
            )
        path = Path(config.model)
    else:
        path = cached(
            config.model if config.model is not None else DEFAULT_MODELS[config.kind], PATTERNS[config.kind]
        )
    features_files(config, path)
    return FeaturesPlace(config, path.absolute())


def default_cache() -> Path:
    """Folder in which features of reference sets are kept, unless another is named."""
    return cache_folder(_NAME)


def image_features(
    engine: EngineConfig,
    workspace: Workspace,
    folder: str,
    place: FeaturesPlace,
    images: ImageInputs,
    path: str | Path,
    cache: Path | None = None,
    name: str = "",
) -> np.ndarray:
    """Features float32 [N, D] of all images, in order.

    Args:
        engine: who runs the extractor; the features do not depend on that.
        workspace: of the stage; what an interrupted run has found is not found again.
        folder: name of the folder in it that keeps the shards.
        place: of the extractor.
        images: the images.
        path: that they were opened from.
        cache: folder where they are looked for and kept, by the hashes of the extractor's files and of the
            images; None keeps nothing. A file there that is damaged is made anew.
        name: shown beside the progress.

    Raises:
        UserError: an image that cannot be read, or features that are not finite.
    """
    kept = None if cache is None else cache / f"{_key(place, images, name)}.safetensors"
    found = None if kept is None or rank() else read_features(kept, len(images))
    if from_first(int(found is not None)):
        return _shared(workspace, folder, found)
    shards = cut(len(images), _shard_size(place.config))
    names = [f"{folder}/features-{number:05d}.safetensors" for number in range(len(shards))]
    # absolute: another process may work in another directory
    work = FeaturesWork(place, str(Path(path).absolute()))
    task = f"{place.config.kind} features {name}".strip()
    write_shards(engine, workspace, task, names, [len(shard) for shard in shards], work)
    parts = [load((workspace.path / each).read_bytes())[_NAME] for each in names]
    for each, part, shard in zip(names, parts, shards, strict=True):
        if part.shape != (len(shard), parts[0].shape[1]):
            raise UserError(
                f"{workspace.path / each}: got features {part.shape}, allowed: those of {len(shard)} images; "
                "delete the folder"
            )
    found = np.concatenate(parts)
    if kept is not None and not rank():
        keep_features(kept, found)
    return found


@dataclass(frozen=True)
class FeaturesWork:
    """Shards of features.

    Attributes:
        place: of the extractor.
        images: path of the images.
    """

    place: FeaturesPlace
    images: str

    def open(self) -> Writer:
        """Function that writes a shard; see `Work`."""
        inputs = open_images([self.images], verify=False)
        extractor, config = self.place.load(), self.place.config
        shards = cut(len(inputs), _shard_size(config))

        def write(path: Path, number: int, advance: Callable[[int], None]) -> None:
            rows = []
            read = ((i, inputs[i].image) for i in shards[number])
            for _, same_size in itertools.groupby(read, key=lambda item: item[1].shape):
                while batch := list(itertools.islice(same_size, config.batch_size)):
                    ids, pixels = zip(*batch, strict=True)
                    found = extractor.features(np.stack(pixels))
                    odd = np.flatnonzero(~np.isfinite(found).all(axis=1))
                    if len(odd):
                        raise UserError(
                            f"record {inputs.key(ids[int(odd[0])])!r}: its {config.kind} features are not "
                            "finite, allowed: finite; precision fp32 may help"
                        )
                    rows.append(found)
                    advance(len(batch))
            with whole_file(path) as temporary:
                save_file({_NAME: np.concatenate(rows)}, temporary)

        return write


def keep_features(path: Path, features: np.ndarray) -> None:
    """Write features with their own hash, whole or not at all; a cache that cannot be written is said.

    Where another process is writing them, they are left to it.
    """
    rows = np.ascontiguousarray(features, np.float32)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = lock_file(path.with_suffix(".lock"))
        if lock is not None:
            with lock, whole_file(path) as temporary:
                temporary.write_bytes(save({_NAME: rows}, {_HASH: _hash(path, rows)}))
    except OSError as error:
        say(f"features: not kept in {path.parent} ({error.strerror or error})")


def read_features(path: Path, num: int) -> np.ndarray | None:
    """Features float32 [num, D] that were kept; None where there are none or they are damaged."""
    try:
        data = path.read_bytes()
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        rows, stated = load(data)[_NAME], header["__metadata__"][_HASH]
    except FileNotFoundError:
        return None
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, RecursionError):
        rows, stated = np.zeros((0, 1), np.float32), None
    if rows.dtype != np.float32 or rows.ndim != 2 or len(rows) != num or _hash(path, rows) != stated:
        say(f"features: {path} is damaged and is made anew")
        return None
    say(f"features: {num:,} found in {path}")
    return rows


def _shared(workspace: Workspace, folder: str, found: np.ndarray | None) -> np.ndarray:
    """What the first of several ranks found, for all of them."""
    name = f"{folder}/{_NAME}.safetensors"
    if num_ranks() > 1:
        if found is not None:
            workspace.write_bytes(name, save({_NAME: found}))
        meet()
        found = load((workspace.path / name).read_bytes())[_NAME]
    assert found is not None
    return found


def _hash(path: Path, rows: np.ndarray) -> str:
    """SHA-256 [64 hex digits] of features and of the name that says what they are of."""
    found = hashlib.sha256(f"{path.stem} {rows.shape}".encode())
    found.update(np.ascontiguousarray(rows).data)
    return found.hexdigest()


def _key(place: FeaturesPlace, images: ImageInputs, name: str) -> str:
    """Digest [32 hex digits] of all that features depend on: the extractor's files, and each image's."""
    return digest({"extractor": place.identity(), "images": content_digest(images, name)})[:32]


def _shard_size(config: FeaturesConfig) -> int:
    return -(-_SHARD // config.batch_size) * config.batch_size
