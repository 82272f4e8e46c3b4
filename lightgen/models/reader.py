"""The reader: a text encoder that says of each word, by linear maps of its features, what the text says."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from lightgen.core.draws import draw_key


class Reader(nn.Module):
    """Text encoder and readouts as one module; only the text encoder is of use after training.

    Args:
        text_encoder: called as `text_encoder(input_ids=, attention_mask=)`, gives `last_hidden_state` [B, T,
            Dt].
        width: Dt.
        kinds: number of labels of each kind.
        seed: of the readouts.
    """

    def __init__(self, text_encoder: nn.Module, width: int, kinds: Mapping[str, int], seed: int) -> None:
        super().__init__()
        self.text_encoder = text_encoder
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(draw_key(seed, "readout-weights"))
            self.readouts = nn.ModuleDict({kind: nn.Linear(width, size) for kind, size in kinds.items()})

    def forward(
        self, text_ids: torch.Tensor, text_mask: torch.Tensor
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Features [B, T, Dt], and logits [B, T, N] of each kind.

        Args:
            text_ids: int [B, T] of the tokenizer.
            text_mask: bool [B, T], True = real token.
        """
        output: Any = self.text_encoder(input_ids=text_ids, attention_mask=text_mask)
        features: torch.Tensor = output.last_hidden_state
        return features, {kind: readout(features) for kind, readout in self.readouts.items()}
