"""Prompts as a pipeline takes them: checked, and never cut without a word."""

import warnings
from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from lightgen.core.errors import UserError

MAX_CHARACTERS = 2000
MAX_BYTES = 4096
_SHOWN = 200


class PromptCutWarning(UserWarning):
    """A prompt has more tokens than the model takes."""


def check_texts(name: str, texts: object, *, may_be_blank: bool = False) -> list[str]:
    """The texts as a list, before anything is done with them.

    Args:
        name: what messages call one of them.
        texts: one text, or several.
        may_be_blank: whether an empty one means something.

    Raises:
        UserError: there is none, or one is no text, blank, too long or not valid Unicode.
    """
    found: list[Any] = [texts] if isinstance(texts, str) or not isinstance(texts, Sequence) else list(texts)
    if not found:
        raise UserError(f"{name}: got none, allowed: one text or several")
    for number, text in enumerate(found, start=1):
        where = f"{name} {number}" if len(found) > 1 else name
        if not isinstance(text, str):
            raise UserError(f"{where}: got {type(text).__name__}, allowed: text")
        if len(text) > MAX_CHARACTERS:
            raise UserError(f"{where}: got {len(text)} characters, allowed: at most {MAX_CHARACTERS}")
        try:
            num_bytes = len(text.encode())
        except UnicodeEncodeError:
            raise UserError(f"{where}: got text that is not valid Unicode, allowed: valid Unicode") from None
        if num_bytes > MAX_BYTES:
            raise UserError(f"{where}: got {num_bytes} bytes, allowed: at most {MAX_BYTES}")
        if not may_be_blank and not text.strip():
            raise UserError(f"{where}: got a blank text, allowed: at least one word")
    return found


def check_pair(prompt: object, negative_prompt: object) -> tuple[list[str], list[str]]:
    """Prompts, and one negative prompt for all, one for each, or none.

    Raises:
        UserError: as `check_texts`, or another number of negative prompts.
    """
    prompts = check_texts("prompt", prompt)
    others = (
        [] if negative_prompt is None else check_texts("negative_prompt", negative_prompt, may_be_blank=True)
    )
    if len(others) not in (0, 1, len(prompts)):
        raise UserError(
            f"negative_prompt: got {len(others)} for {len(prompts)} prompts, allowed: one, or one per prompt"
        )
    return prompts, others


def cut_notes(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], limit: int, name: str) -> list[str]:
    """One line for each text of more tokens than the limit: how many, and which words are lost."""
    rows = tokenizer(list(texts), verbose=False)["input_ids"] if texts else []
    notes = []
    for number, (text, row) in enumerate(zip(texts, rows, strict=True), start=1):  # pyright: ignore[reportArgumentType]
        if len(row) <= limit:
            continue
        if tokenizer.is_fast:
            kept = tokenizer(text, truncation=True, max_length=limit, return_offsets_mapping=True)
            lost = text[max(end for _, end in kept["offset_mapping"]) :]  # pyright: ignore[reportGeneralTypeIssues]
        else:
            special = tokenizer.num_special_tokens_to_add()
            lost = str(tokenizer.decode(row[limit - special :], skip_special_tokens=True))
        words = " ".join(lost.split())
        shown = words if len(words) <= _SHOWN else words[:_SHOWN] + "..."
        where = f"{name} {number}" if len(texts) > 1 else name
        notes.append(f"{where}: {len(row)} tokens, {limit} fit; cut: {shown!r}")
    return notes


def warn_of_cuts(notes: Sequence[str]) -> None:
    """Tell each note as a PromptCutWarning, each time: Python tells a warning of one place and text once."""
    for note in notes:
        warnings.warn_explicit(note, PromptCutWarning, "lightgen", 0, registry=None)
