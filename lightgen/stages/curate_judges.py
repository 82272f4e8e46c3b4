"""The models that curate asks about pictures: found on this machine, told apart by their files."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lightgen.ports.protocols import Embedder, SafetyChecker, Scorer
from lightgen.ports.safety import SAFETY_PATTERNS, SafetyConfig, load_safety, safety_files
from lightgen.ports.scorer import COLUMNS
from lightgen.stages.checkpoint import pick_device
from lightgen.stages.curate_config import CurateConfig
from lightgen.stages.embedder import EmbedderPlace, find_embedder
from lightgen.stages.hub import cached, hash_files
from lightgen.stages.scorer import ScorerPlace, find_scorer


@dataclass(frozen=True)
class SafetyPlace:
    """Where the files of a safety checker are."""

    config: SafetyConfig
    folder: Path

    def identity(self) -> dict[str, Any]:
        """SHA-256 of each file, by name."""
        return hash_files(self.folder.name, {path.name: path for path in safety_files(self.folder)})

    def load(self) -> SafetyChecker:
        """The checker, on the accelerator where there is one."""
        return load_safety(self.config, self.folder, pick_device())


@dataclass(frozen=True)
class LoadedJudges:
    """Models in memory.

    Attributes:
        scorers: each with its most images per pass, by the column of its answers.
        safety: the checker and its most images per pass, or None.
        embedder: or None.
    """

    scorers: Mapping[str, tuple[Scorer, int]]
    safety: tuple[SafetyChecker, int] | None
    embedder: Embedder | None


@dataclass(frozen=True)
class Judges:
    """Where the models are that look at pictures; it travels to other processes."""

    scorers: tuple[ScorerPlace, ...]
    safety: SafetyPlace | None
    embedder: EmbedderPlace | None

    def identity(self) -> dict[str, Any]:
        """What tells these models' answers from others'."""
        found: dict[str, Any] = {"scorers": {COLUMNS[p.config.kind]: p.identity() for p in self.scorers}}
        if self.scorers:  # bf16 answers a little otherwise, and so may other batches
            one = self.scorers[0].config
            found["scorers_run"] = {"precision": one.precision, "batch_size": one.batch_size}
        if self.safety is not None:
            run = self.safety.config
            found["safety_files"] = self.safety.identity()
            found["safety_run"] = {
                "precision": run.precision, "batch_size": run.batch_size, "labels": list(run.labels)
            }  # fmt: skip
        if self.embedder is not None:
            run = self.embedder.config
            found["embedder_files"] = self.embedder.identity()
            found["embedder_run"] = {
                "kind": run.kind, "precision": run.precision, "batch_size": run.batch_size
            }  # fmt: skip
        return found

    def safety_state(self) -> str:
        """What a manifest says of safety."""
        return "not checked" if self.safety is None else f"checked by {self.safety.config.model}"

    def load(self) -> LoadedJudges:
        """The models, on the accelerator where there is one."""
        scorers = {COLUMNS[p.config.kind]: (p.load(), p.config.batch_size) for p in self.scorers}
        safety = None if self.safety is None else (self.safety.load(), self.safety.config.batch_size)
        return LoadedJudges(scorers, safety, None if self.embedder is None else self.embedder.load())


def find_judges(config: CurateConfig) -> Judges:
    """Places of the models that a config asks for; nothing is downloaded.

    Raises:
        UserError: one is not on this machine.
    """
    scorers = tuple(
        find_scorer(
            replace(config.scorer, kind=kind, head=config.scorer.head if kind == "aesthetic" else None)
        )
        for kind in dict.fromkeys(config.score)
    )
    safety = None
    if config.safety.model is not None:
        folder = cached(config.safety.model, SAFETY_PATTERNS)
        safety_files(folder)
        safety = SafetyPlace(config.safety, folder)
    return Judges(scorers, safety, find_embedder(config.embedder) if config.needs_embeddings() else None)
