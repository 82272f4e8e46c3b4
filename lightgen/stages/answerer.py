"""Answerers as a stage finds them: on a nano detector, in local folders or the Hub's cache."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lightgen.ports.answerer import ModelAnswererConfig
from lightgen.ports.answerer_model import answerer_files, load_answerer
from lightgen.ports.nano.answerer import VERSION, NanoAnswerer
from lightgen.ports.protocols import Answerer
from lightgen.ports.vision_language import FILES
from lightgen.stages.checkpoint import load_detector, open_detector, part_digest, pick_device
from lightgen.stages.hub import cached, hash_files


@dataclass(frozen=True, kw_only=True)
class AnswererConfig:
    """Who answers questions on images, and how it is asked.

    Attributes:
        kind: nano: what a nano detector sees, for questions on the nano world, without a download; model: a
            model of transformers that sees.
        model: local folder in the layout of transformers, or OWNER/NAME of a repository in the Hub's cache;
            for nano the checkpoint of a detector. None names the usual one.
        prompt: what a model reads after the image; {question} stands for the question.
        batch_size: most questions, each with its image, per pass.
        precision: of a model; probabilities are computed in fp32 in any case.
    """

    kind: Literal["nano", "model"] = "nano"
    model: str | None = None
    prompt: str = ModelAnswererConfig.prompt
    batch_size: int = ModelAnswererConfig.batch_size
    precision: Literal["bf16", "fp32"] = ModelAnswererConfig.precision

    def for_model(self) -> ModelAnswererConfig:
        """The same for a model of transformers."""
        return ModelAnswererConfig(
            model=ModelAnswererConfig.model if self.model is None else self.model,
            prompt=self.prompt,
            batch_size=self.batch_size,
            precision=self.precision,
        )


@dataclass(frozen=True)
class AnswererPlace:
    """Where an answerer's files are: the folder of its model, or None for nano."""

    config: AnswererConfig
    folder: Path | None

    def identity(self) -> dict[str, Any]:
        """SHA-256 of each file, by name; they are what answers, wherever they lie."""
        if self.folder is None:
            return {"nano": VERSION, "detector": part_digest(open_detector(self.config.model), "detector")}
        return hash_files(self.folder.name, {path.name: path for path in answerer_files(self.folder)})

    def load(self) -> Answerer:
        """The answerer, on the accelerator where there is one (nano: on the CPU)."""
        if self.folder is None:
            return NanoAnswerer(load_detector(open_detector(self.config.model)), self.config.batch_size)
        return load_answerer(self.config.for_model(), self.folder, pick_device())


def find_answerer(config: AnswererConfig) -> AnswererPlace:
    """Place of an answerer; nothing is downloaded.

    Raises:
        UserError: a number or prompt of the config is none, or the model is not on this machine or lacks what
            its kind needs.
    """
    model = config.for_model()
    model.check()
    if config.kind == "nano":
        open_detector(config.model)
        return AnswererPlace(config, None)
    folder = cached(model.model, FILES)
    answerer_files(folder)
    return AnswererPlace(config, folder)
