"""Text encoders of transformers behind one port."""

from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase, T5EncoderModel

from lightgen.core.errors import UserError


class T5TextEncoder:
    """A T5 encoder with its tokenizer; features are its last hidden states."""

    def __init__(self, encoder: T5EncoderModel, tokenizer: PreTrainedTokenizerBase, max_length: int) -> None:
        self.encoder, self.tokenizer, self.max_length = encoder.eval(), tokenizer, max_length
        self.dim: int = encoder.config.d_model

    def tokenize(self, texts: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """(ids, mask) int64 and bool [B, T]; True = real token; T of the longest text, at most max_length."""
        out = self.tokenizer(
            list(texts), padding=True, truncation=True, max_length=self.max_length, return_tensors="pt"
        )
        return out["input_ids"], out["attention_mask"].bool()  # pyright: ignore[reportReturnType, reportAttributeAccessIssue]

    @torch.no_grad()
    def encode(self, texts: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """(features, mask): [B, T, dim] and bool [B, T], True = real token."""
        ids, mask = self.tokenize(texts)
        device = self.encoder.device
        return self.encoder(input_ids=ids.to(device), attention_mask=mask.to(device)).last_hidden_state, mask


def load_text_encoder(folder: Path, tokenizer_folder: Path) -> T5TextEncoder:
    """T5 encoder stored in `folder` (safetensors only, fp32) with the tokenizer in `tokenizer_folder`.

    Raises:
        UserError: a folder lacks its files.
    """
    for path in (folder / "config.json", tokenizer_folder / "tokenizer_config.json"):
        if not path.is_file():
            raise UserError(f"text encoder {path.parent}: no {path.name}; expected a transformers folder")
    encoder = T5EncoderModel.from_pretrained(folder, use_safetensors=True, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder, local_files_only=True)
    return T5TextEncoder(encoder, tokenizer, tokenizer.model_max_length)
