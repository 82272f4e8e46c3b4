"""Embedders as a stage finds them: shipped, in local folders or the Hub's cache, told apart by files."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from lightgen.core.errors import UserError
from lightgen.data.clusters import find_centroids, nearest_cells
from lightgen.evals.diversity import Diversity, diversity
from lightgen.ports.embedding import (
    DEFAULT_MODELS,
    PATTERNS,
    EmbedderConfig,
    embedder_files,
    load_embedder,
)
from lightgen.ports.nano.embedding import VERSION, NanoEmbedder
from lightgen.ports.protocols import Embedder
from lightgen.stages.checkpoint import load_detector, open_detector, part_digest, pick_device
from lightgen.stages.hub import cached, hash_files


@dataclass(frozen=True)
class EmbedderPlace:
    """Where an embedder's files are: the folder of its model, or None for nano."""

    config: EmbedderConfig
    folder: Path | None

    def identity(self) -> dict[str, Any]:
        """SHA-256 of each file, by name; they are what embeds, wherever they lie."""
        if self.folder is None:
            return {"nano": VERSION, "detector": part_digest(open_detector(self.config.model), "detector")}
        paths = embedder_files(self.config, self.folder)
        named = {path.relative_to(self.folder).as_posix(): path for path in paths}
        return hash_files(self.folder.name, named)

    def load(self) -> Embedder:
        """The embedder, on the accelerator where there is one (nano: on the CPU)."""
        if self.folder is None:
            return NanoEmbedder(load_detector(open_detector(self.config.model)), self.config.batch_size)
        return load_embedder(self.config, self.folder, pick_device())


def find_embedder(config: EmbedderConfig) -> EmbedderPlace:
    """Place of an embedder; nothing is downloaded.

    Raises:
        UserError: it is not on this machine, or lacks what its kind needs.
    """
    if config.batch_size < 1:
        raise UserError(f"--embedder.batch-size: got {config.batch_size}, allowed: a whole number from 1")
    if config.kind == "nano":
        open_detector(config.model)
        return EmbedderPlace(config, None)
    folder = cached(config.model if config.model is not None else DEFAULT_MODELS[config.kind], PATTERNS)
    embedder_files(config, folder)
    return EmbedderPlace(config, folder)


def measure_diversity(
    embeddings: np.ndarray, num_cells: int = 256, seed: int = 0, reference: np.ndarray | None = None
) -> Diversity:
    """Diversity of rows, with the cells of k-means of a reference that covers more, or of themselves.

    Args:
        embeddings: float [N, D], N from 1; an array or a memory map.
        num_cells: of k-means, or fewer where there are fewer rows.
        seed: of k-means.
        reference: float [M, D], as all that a set was chosen from; None = the rows themselves, which
            leaves coverage out, as none of their own cells is empty. Sets are to be compared by the cells of
            one reference.

    Raises:
        UserError: there are no rows, one has no direction, or faiss is missing.
    """
    everything = embeddings if reference is None else reference
    centroids = find_centroids(everything, num_cells, seed, by_spread=True)
    found = diversity(embeddings, nearest_cells(embeddings, centroids)[:, 0], len(centroids))
    return replace(found, coverage=None) if reference is None else found
