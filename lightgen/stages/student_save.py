"""Writing a student: the trained parts from averaged weights, the others as the start has them."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import torch

from lightgen.core.artifact import Artifact
from lightgen.models.transformer import LightGenTransformer
from lightgen.ports.autoencoder import load_autoencoder
from lightgen.ports.nano.text import build_nano_text_encoder
from lightgen.ports.text import T5TextEncoder, load_text_encoder
from lightgen.stages.checkpoint import Parts, copy_part, forget_origin, load_transformer
from lightgen.stages.lora import LoraConfig, add_lora, fuse_lora, save_lora
from lightgen.stages.pipeline import LightGenPipeline

Weights = Mapping[str, torch.Tensor]


@dataclasses.dataclass(frozen=True)
class StudentWriter:
    """What a student is made of, besides its averaged weights; used while the student itself is trained on.

    Attributes:
        start: checkpoint that it began from.
        config: arguments of its transformer.
        text: its text encoder, whose class and tokenizer are noted.
        new_text: seed of a text encoder that is not that of the start.
        trains_text: whether the text encoder learns.
        lora: of a student that learns additions, and the seed of their start.
    """

    start: Artifact
    config: Mapping[str, object]
    text: T5TextEncoder
    new_text: int | None = None
    trains_text: bool = False
    lora: tuple[LoraConfig, int] | None = None

    def write(self, folder: Path, averaged: Weights) -> None:
        """Write all four parts, in fp32 and in the diffusers layout.

        The autoencoder is that of the start byte for byte, so that its latents stay valid. A student with
        LoRA
        is written twice: the additions alone in `lora/`, and a transformer that holds them.
        """
        transformer = self._transformer(folder, _part(averaged, "transformer"))
        transformer.save_pretrained(folder / "transformer")
        copy_part(self.start.path / "vae", folder / "vae")
        if self.new_text is None and not self.trains_text:
            copy_part(self.start.path / "text_encoder", folder / "text_encoder")
            copy_part(self.start.path / "tokenizer", folder / "tokenizer")
        else:
            text = self._text_encoder()
            text.encoder.load_state_dict(dict(_part(averaged, "text_encoder")), strict=False)
            text.encoder.save_pretrained(folder / "text_encoder")
            text.tokenizer.save_pretrained(folder / "tokenizer")
        vae = load_autoencoder(self.start.path / "vae").vae
        parts = Parts(transformer, vae, self.text.encoder, self.text.tokenizer)
        LightGenPipeline.from_parts(parts).save_config(folder)
        forget_origin(folder)

    def _transformer(self, folder: Path, weights: Weights) -> LightGenTransformer:
        if self.lora is None:
            with torch.device("meta"):
                transformer = LightGenTransformer(**self.config)  # pyright: ignore[reportArgumentType]
            transformer.load_state_dict(dict(weights), assign=True)
            return transformer.eval()
        config, seed = self.lora
        transformer = load_transformer(self.start.path / "transformer")
        add_lora(transformer, config.rank, config.alpha, config.targets, seed)
        missing = transformer.load_state_dict(dict(weights), strict=False)
        assert not missing.unexpected_keys, missing.unexpected_keys
        save_lora(transformer, folder / "lora")
        fuse_lora(transformer)
        return transformer

    def _text_encoder(self) -> T5TextEncoder:
        if self.new_text is not None:
            return build_nano_text_encoder(self.new_text)
        return load_text_encoder(self.start.path / "text_encoder", self.start.path / "tokenizer")


def _part(averaged: Weights, name: str) -> Weights:
    """Tensors of one part, by their names in it."""
    return {
        key.removeprefix(f"{name}."): tensor for key, tensor in averaged.items() if key.startswith(f"{name}.")
    }
