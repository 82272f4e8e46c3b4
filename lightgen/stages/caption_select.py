"""Which of the clean captions are taken, and how diverse those are: by embeddings, made in shards."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lightgen.core.artifact import Workspace
from lightgen.core.directory import whole_file
from lightgen.data.prompts import PromptLines
from lightgen.data.select import How, select
from lightgen.evals.diversity import diversity
from lightgen.stages.embedder import EmbedderPlace, measure_diversity
from lightgen.stages.engine import EngineConfig, Writer, cut, write_shards

_PARTS = "state/embeddings"
_ALL = "state/embeddings.npy"
_TAKEN, _SOME = "state/taken.npy", "state/taken-embeddings.npy"
_BATCH = 1024
_SHARD = 16_384


@dataclass(frozen=True)
class EmbedWork:
    """Shards of embeddings float16 [n, D] of captions.

    Attributes:
        place: of the embedder.
        source: file of the captions.
    """

    place: EmbedderPlace
    source: Path

    def open(self) -> Writer:
        """Function that writes a shard; see `Work`."""
        embedder, prompts = self.place.load(), PromptLines(self.source)
        shards = cut(len(prompts), _SHARD)

        def write(path: Path, number: int, advance: Callable[[int], None]) -> None:
            shard, found = shards[number], []
            for start in range(shard.start, shard.stop, _BATCH):
                texts = [prompt.prompt for prompt in prompts[start : min(start + _BATCH, shard.stop)]]
                found.append(embedder.embed_texts(texts).astype(np.float16))
                advance(len(texts))
            with whole_file(path) as temporary, temporary.open("wb") as file:
                np.save(file, np.concatenate(found))

        return write


def embed(engine: EngineConfig, workspace: Workspace, work: EmbedWork, total: int) -> np.ndarray:
    """Embeddings float16 [total, D] of all captions, as a memory map of one file of the workspace."""
    if not workspace.has(_ALL):
        shards = cut(total, _SHARD)
        names = [f"{_PARTS}/{number:06d}.npy" for number in range(len(shards))]
        (workspace.path / _PARTS).mkdir(parents=True, exist_ok=True)
        write_shards(engine, workspace, "embed", names, [len(s) for s in shards], work, "captions")
        first = np.load(workspace.path / names[0], mmap_mode="r")
        with workspace.file(_ALL) as temporary:
            whole = _map(temporary, first.dtype, (total, first.shape[1]))
            for name, shard in zip(names, shards, strict=True):
                whole[shard.start : shard.stop] = np.load(workspace.path / name)
            whole.flush()
        workspace.remove(_PARTS)
    return np.load(workspace.path / _ALL, mmap_mode="r")


def take(workspace: Workspace, embeddings: np.ndarray, num: int, how: How, seed: int) -> np.ndarray:
    """Numbers int64 [num] of the captions that are taken, ascending; chosen once, whatever interrupts."""
    if not workspace.has(_TAKEN):
        found = select(embeddings, num, how, seed)
        with workspace.file(_TAKEN) as temporary, temporary.open("wb") as file:
            np.save(file, found)
    return np.load(workspace.path / _TAKEN)


def measure(
    workspace: Workspace, embeddings: np.ndarray, rows: np.ndarray | None, num_cells: int, seed: int
) -> dict[str, Any]:
    """How diverse the captions of some rows (None = of all) are; beside those, as many drawn at random.

    Numbers of diversity are compared at one size only. With cells, these are k-means cells of all captions:
    coverage says how many of them are reached.
    """

    def found(some: np.ndarray, reference: np.ndarray | None) -> dict[str, Any]:
        if not num_cells:
            return diversity(some).to_json()
        return measure_diversity(some, num_cells, seed, reference).to_json()

    if rows is None:
        return {"taken": found(embeddings, None)}
    told = {}
    for name, chosen in (("taken", rows), ("random", select(embeddings, len(rows), "random", seed))):
        with workspace.file(_SOME) as temporary:  # on disk, as those taken may be millions
            some = _map(temporary, embeddings.dtype, (len(chosen), embeddings.shape[1]))
            for part in cut(len(chosen), _SHARD):
                some[part.start : part.stop] = embeddings[chosen[part.start : part.stop]]
            told[name] = found(some, embeddings)
    return told


def _map(path: Path, dtype: np.dtype, shape: tuple[int, int]) -> np.memmap:
    return np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)
