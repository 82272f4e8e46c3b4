"""Text encoders of transformers behind one port."""

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase, T5Config, T5EncoderModel

from lightgen.core.errors import UserError


class T5TextEncoder:
    """A T5 encoder with its tokenizer; features are its last hidden states."""

    def __init__(self, encoder: T5EncoderModel, tokenizer: PreTrainedTokenizerBase, max_length: int) -> None:
        self.encoder, self.tokenizer, self.max_length = encoder.eval(), tokenizer, max_length
        self.dim: int = encoder.config.d_model
        self._offloaded_to: torch.device | None = None

    @torch.no_grad()
    def encode(self, texts: Sequence[str], padded_to: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """(features, mask): [B, T, dim] and bool [B, T], True = real token; T as of `tokenize`."""
        ids, mask = tokenize(self.tokenizer, texts, self.max_length, padded_to)
        device = self._offloaded_to or self.encoder.device
        return self.encoder(input_ids=ids.to(device), attention_mask=mask.to(device)).last_hidden_state, mask

    def offload(self, device: torch.device) -> None:
        """Keep the weights in the CPU's memory, and from now on bring each layer to the device as it runs.

        Raises:
            UserError: accelerate is not installed.
        """
        try:
            from accelerate import cpu_offload
        except ImportError as error:
            raise UserError(
                "text encoder: got offload without accelerate, allowed: pip install 'lightgen[teacher]'"
            ) from error
        cpu_offload(self.encoder, execution_device=device, preload_module_classes=["T5Block"])
        self._offloaded_to = device

    def lengths(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text, uncut."""
        return [len(row) for row in self.tokenizer(list(texts), verbose=False)["input_ids"]]  # pyright: ignore[reportArgumentType]


def tokenize(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], limit: int, padded_to: int | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """(ids, mask): int64 and bool [N, T], True = real token.

    Args:
        tokenizer: of the text encoder.
        texts: one or more.
        limit: most tokens of a text; what is beyond is cut.
        padded_to: T; None = the next multiple of 8, so that a text mostly meets the same shapes alone and
            among others.
    """
    rows = tokenizer(list(texts), truncation=True, max_length=limit)["input_ids"]
    longest = max(map(len, rows))  # pyright: ignore[reportArgumentType]
    length = padded_to or max(8, math.ceil(longest / 8) * 8)
    ids = torch.full((len(texts), length), int(tokenizer.pad_token_id or 0))  # pyright: ignore[reportArgumentType]
    mask = torch.zeros(len(texts), length, dtype=torch.bool)
    for row, found in enumerate(rows):  # pyright: ignore[reportArgumentType]
        ids[row, : len(found)] = torch.tensor(found, dtype=torch.int64)
        mask[row, : len(found)] = True
    return ids, mask


def load_text_encoder(
    folder: Path, tokenizer_folder: Path, dtype: torch.dtype = torch.float32
) -> T5TextEncoder:
    """T5 encoder stored in `folder` (safetensors only) with the tokenizer in `tokenizer_folder`.

    Raises:
        UserError: a folder lacks its files.
    """
    _check_folders(folder, tokenizer_folder)
    encoder = T5EncoderModel.from_pretrained(folder, use_safetensors=True, dtype=dtype)
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder, local_files_only=True)
    return T5TextEncoder(encoder, tokenizer, tokenizer.model_max_length)


def outline_text_encoder(folder: Path, tokenizer_folder: Path) -> T5TextEncoder:
    """As `load_text_encoder`, but of weights without storage: its shape and tokenizer alone.

    Raises:
        UserError: a folder lacks its files.
    """
    _check_folders(folder, tokenizer_folder)
    with torch.device("meta"):
        encoder = T5EncoderModel(T5Config.from_pretrained(folder, local_files_only=True))
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder, local_files_only=True)
    return T5TextEncoder(encoder, tokenizer, tokenizer.model_max_length)


def _check_folders(folder: Path, tokenizer_folder: Path) -> None:
    for path in (folder / "config.json", tokenizer_folder / "tokenizer_config.json"):
        if not path.is_file():
            raise UserError(f"text encoder {path.parent}: no {path.name}; expected a transformers folder")
