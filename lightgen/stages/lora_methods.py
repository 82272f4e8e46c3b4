"""The methods with which diffusers' pipelines take LoRAs."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from lightgen.core.errors import UserError
from lightgen.models.transformer import LightGenTransformer
from lightgen.stages import lora


class LoraMethods:
    """What a pipeline with a transformer does with LoRAs; all methods raise UserError on what cannot be."""

    transformer: LightGenTransformer

    def load_lora_weights(
        self,
        source: str | Path | Mapping[str, torch.Tensor],
        adapter_name: str = lora.DEFAULT,
        weight: float = 1.0,
    ) -> None:
        """Add a LoRA (folder, file or tensors) to the transformer; it alone is active then.

        Its scale, alpha / rank, stands in the folder's config; tensors by themselves are added as they are.
        """
        lora.load_lora(self.transformer, source, adapter_name, weight)

    def set_adapters(
        self, adapter_names: str | Sequence[str], adapter_weights: Sequence[float] | None = None
    ) -> None:
        """Let the named LoRAs be active, each with a weight (1 by default), and no others."""
        names = [adapter_names] if isinstance(adapter_names, str) else list(adapter_names)
        weights = [1.0] * len(names) if adapter_weights is None else list(adapter_weights)
        if len(weights) != len(names) or len(set(names)) != len(names):
            got = f"{len(weights)} weights for {names}"
            raise UserError(f"set_adapters: got {got}, allowed: one for each name, and a name once")
        lora.set_lora(self.transformer, dict(zip(names, weights, strict=True)))

    def fuse_lora(self) -> None:
        """Add the active LoRAs to the transformer's weights for good, and take all of them off."""
        lora.fuse_lora(self.transformer)

    def unload_lora_weights(self) -> None:
        """Take all LoRAs off."""
        lora.remove_lora(self.transformer)

    def save_lora_weights(self, save_directory: str | Path, adapter_name: str = lora.DEFAULT) -> None:
        """Write a LoRA in peft's layout."""
        lora.save_lora(self.transformer, save_directory, adapter_name)
