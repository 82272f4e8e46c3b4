"""The student: a transformer together with the text encoder that it reads through."""

from typing import Any

import torch
from torch import nn

from lightgen.models.transformer import LightGenTransformer


class Student(nn.Module):
    """Transformer and text encoder as one module, so that they can be trained together or the encoder frozen.

    Args:
        text_encoder: called as `text_encoder(input_ids=, attention_mask=)`, gives `last_hidden_state` [B, T,
            Dt]; any module will do where it is frozen and all texts come as features.
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
        self, words: torch.Tensor, text_mask: torch.Tensor, kept: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Text tokens [B, T, D] and their mask [B, T] for the trunk.

        Dropped texts cost nothing: only those kept go through text encoder and aligner; where all are
        dropped, one does, of no effect, so that the same weights have a gradient on every rank.

        Args:
            words: int [B, T] of the tokenizer, or features [B, T, Dt] that the frozen text encoder made of
                them before.
            text_mask: bool [B, T], True = real token.
            kept: rows whose text is read, int; the others get the learned null vector at every position, or,
                where padding is hidden, at one.
        """
        rows = kept if len(kept) else kept.new_zeros(1)
        features, mask = words[rows], text_mask[rows]
        if not features.is_floating_point():
            with torch.set_grad_enabled(self.train_text_encoder and torch.is_grad_enabled()):
                output: Any = self.text_encoder(input_ids=features, attention_mask=mask)
            features = output.last_hidden_state
        text = self.transformer.embed_text(features, mask)[: len(kept)]
        null, null_mask = self.transformer.null_text_of(len(words), text.shape[1])
        text_mask = null_mask.index_copy(0, kept, mask[: len(kept)])
        return null.to(text.dtype).index_copy(0, kept, text), text_mask
