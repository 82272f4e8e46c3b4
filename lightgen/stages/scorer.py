"""Scorers as a stage finds them: in local folders or the Hub's cache, told apart by their files' hashes."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightgen.core.errors import UserError
from lightgen.ports.protocols import Scorer
from lightgen.ports.scorer import (
    CLIP_H,
    DEFAULT_MODELS,
    MODEL_PATTERNS,
    PROCESSOR_PATTERNS,
    ScorerConfig,
    has_processor,
    load_scorer,
    scorer_files,
)
from lightgen.stages.checkpoint import pick_device
from lightgen.stages.hub import cached, hash_files


@dataclass(frozen=True)
class ScorerPlace:
    """Where a scorer's files are: model (folder or file), folder of its processor, file of its head."""

    config: ScorerConfig
    model: Path
    processor: Path
    head: Path | None = None

    def identity(self) -> dict[str, Any]:
        """SHA-256 of each file, by name; they are what scores, wherever they lie."""
        found = scorer_files(self.model, self.processor, self.head)
        named = {(part, path.name): path for part, paths in found.items() for path in paths}
        hashes = hash_files(self.model.name, named)
        return {part: {path.name: hashes[part, path.name] for path in paths} for part, paths in found.items()}

    def load(self) -> Scorer:
        """The scorer, on the accelerator where there is one."""
        return load_scorer(self.config, self.model, self.processor, pick_device(), self.head)


def find_scorer(config: ScorerConfig) -> ScorerPlace:
    """Place of a scorer; nothing is downloaded.

    Raises:
        UserError: no model is named where there is no usual one, or it is not on this machine.
    """
    if config.batch_size < 1:
        raise UserError(f"--scorer.batch-size: got {config.batch_size}, allowed: a whole number from 1")
    head = _find_head(config)
    name = config.model if config.model is not None else DEFAULT_MODELS.get(config.kind)
    if name is None:
        raise UserError(
            "--scorer.model: got none, allowed: for hps-v2 a CLIP folder, or the file of "
            "`hf download xswu/HPSv2 HPS_v2.1_compressed.pt`"
        )
    model = cached(name, (*MODEL_PATTERNS, *PROCESSOR_PATTERNS))
    if config.processor is not None:
        processor = cached(config.processor, PROCESSOR_PATTERNS)
    elif model.is_dir() and (has_processor(model) or config.kind in ("clip-score", "aesthetic")):
        processor = model
    else:
        processor = cached(CLIP_H, PROCESSOR_PATTERNS)
    scorer_files(model, processor, head)
    return ScorerPlace(config, model, processor, head)


def _find_head(config: ScorerConfig) -> Path | None:
    """File of the head that the kind needs; None where it needs none."""
    if config.kind != "aesthetic":
        if config.head is not None:
            raise UserError(f"--scorer.head: got {config.head!r} for {config.kind}, allowed: for aesthetic")
        return None
    if config.head is None or not Path(config.head).is_file():
        got = "none" if config.head is None else f"no file {config.head!r}"
        raise UserError(
            f"--scorer.head: got {got}, allowed: the file of a head such as sac+logos+ava1-l14-linearMSE.pth "
            "of github christophschuhmann/improved-aesthetic-predictor"
        )
    return Path(config.head)
