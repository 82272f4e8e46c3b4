"""The student: a transformer together with the text encoder that it reads through."""

from typing import Any

import torch
from torch import nn

from lightgen.models.transformer import LightGenTransformer


class Student(nn.Module):
    """Transformer and text encoder as one module, so that they can be trained together or the encoder frozen.

    Args:
        text_encoder: called as `text_encoder(input_ids=, attention_mask=)`, gives `last_hidden_state` [B, T,
            Dt].
        train_text_encoder: whether gradients reach it; where not, it also stays in eval mode.
    """

    def __init__(
        self, transformer: LightGenTransformer, text_encoder: nn.Module, train_text_encoder: bool
    ) -> None:
        super().__init__()
        self.transformer = transformer
        self.text_encoder = text_encoder
        self.train_text_encoder = train_text_encoder
        text_encoder.requires_grad_(train_text_encoder)

    def train(self, mode: bool = True) -> "Student":
        """Set training mode, except on a frozen text encoder."""
        super().train(mode)
        self.text_encoder.train(mode and self.train_text_encoder)
        return self

    def embed_text(
        self, text_ids: torch.Tensor, text_mask: torch.Tensor, kept: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Text tokens [B, T, D] and their mask [B, T] for the trunk; see `LightGenTransformer.place_text`.

        Dropped texts cost nothing: only those kept go through text encoder and aligner; where all are
        dropped, one does, of no effect, so that the same weights have a gradient on every rank.

        Args:
            text_ids: int [B, T] of the tokenizer.
            text_mask: bool [B, T], True = real token.
            kept: rows whose text is read, int; the others are unconditional.
        """
        rows = kept if len(kept) else kept.new_zeros(1)
        ids, mask = text_ids[rows], text_mask[rows]
        with torch.set_grad_enabled(self.train_text_encoder and torch.is_grad_enabled()):
            output: Any = self.text_encoder(input_ids=ids, attention_mask=mask)
        text = self.transformer.embed_text(output.last_hidden_state, mask)[: len(kept)]
        return self.transformer.place_text(text, mask[: len(kept)], kept, len(text_ids))
