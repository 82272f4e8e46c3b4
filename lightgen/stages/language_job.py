"""Training the nano text encoder to read the order of words, on captions that are drawn."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from lightgen.core.artifact import Artifact
from lightgen.core.errors import UserError
from lightgen.models.reader import Reader
from lightgen.objectives.language import NOT_ASKED, LanguageObjective
from lightgen.ports.nano.language import draw_prompt
from lightgen.ports.nano.reading import KINDS, Reading, read
from lightgen.ports.nano.text import build_nano_text_encoder
from lightgen.ports.text import T5TextEncoder, load_text_encoder, tokenize
from lightgen.stages.checkpoint import copy_part, forget_origin, has_part, pick_device, require_part
from lightgen.stages.encode_text import start_outline
from lightgen.stages.sources import frozen
from lightgen.stages.tasks import Job, LanguageTask, TrainConfig
from lightgen.training.config import FitConfig
from lightgen.training.fit import Training

_INDEX = "model_index.json"


def language_job(
    config: TrainConfig, task: LanguageTask, inputs: Sequence[str | Path], start: Artifact | None
) -> Job:
    """The language objective made ready: a new nano text encoder, and beside it the start's other parts.

    Raises:
        UserError: inputs, or a start with neither an autoencoder nor a text encoder, or with one of another
            language.
    """
    task.objective.check()
    if inputs:
        raise UserError(f"--in: got {len(inputs)} directories, allowed: none, as captions are drawn")
    text = build_nano_text_encoder(task.seed)
    old = None if start is None else _old_encoder(start, text)
    if old is not None:
        # the words keep their meaning: what was lost is their order
        text.encoder.shared.load_state_dict(old.encoder.shared.state_dict())
        frozen(old.encoder, torch.bfloat16 if config.fit.precision == "bf16" else torch.float32)
    sizes = {kind: len(values) for kind, values in KINDS.items()}
    device = pick_device()
    learner = Reader(text.encoder, text.dim, sizes, task.seed).to(device)
    source = CaptionSource(config.fit, task.caption_seed, text.tokenizer, device)

    def make(folder: Path | None) -> Training:
        unknown = text.tokenizer.unk_token_id
        assert isinstance(unknown, int), unknown
        compared = None if old is None else old.encoder.to(device)  # pyright: ignore[reportArgumentType]
        objective: Any = LanguageObjective(task.objective, unknown, compared)
        return Training(learner=learner, objective=objective, source=source, held_out=[source.held_out])

    def save(folder: Path, averaged: Mapping[str, torch.Tensor]) -> None:
        prefix = "text_encoder."
        weights = {n.removeprefix(prefix): each for n, each in averaged.items() if n.startswith(prefix)}
        made = build_nano_text_encoder(task.seed)
        made.encoder.load_state_dict(weights, strict=False)
        made.encoder.save_pretrained(folder / "text_encoder")
        made.tokenizer.save_pretrained(folder / "tokenizer")
        if start is not None:
            _copy_others(start.path, folder)
        forget_origin(folder)

    return Job(inputs=(), identity={}, learner=learner, training=make, save=save, facts={})


class CaptionSource:
    """Micro-batches of drawn captions with what they say; the first `fit.held_out` ids are test captions."""

    def __init__(
        self, fit: FitConfig, seed: int, tokenizer: PreTrainedTokenizerBase, device: torch.device
    ) -> None:
        self._seed, self._size = seed, fit.global_batch_size
        self._tokenizer, self._device = tokenizer, device
        self.held_out = range(fit.held_out)

    def ids(self, step: int) -> Sequence[int]:
        """Captions of an optimizer step, each met once."""
        first = len(self.held_out) + step * self._size
        return range(first, first + self._size)

    def load(self, ids: Sequence[int], step: int) -> dict[str, Any]:
        """Micro-batch as `LanguageObjective` takes it; a caption depends on its id alone."""
        captions = [self._caption(sample) for sample in ids]
        text_ids, mask = tokenize(self._tokenizer, captions, self._tokenizer.model_max_length, None)
        labels, names = label_words([_read(caption) for caption in captions], text_ids.shape[1])
        return {
            "text_ids": text_ids.to(self._device),
            "text_mask": mask.to(self._device),
            "labels": {kind: table.to(self._device) for kind, table in labels.items()},
            "names": names,
            "ids": list(ids),
        }

    def _caption(self, sample: int) -> str:
        count = len(self.held_out)
        if sample < count:
            return draw_prompt(self._seed, sample, "test").prompt
        return draw_prompt(self._seed, sample - count, "train").prompt


def label_words(
    readings: Sequence[Sequence[Reading]], length: int
) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """(Labels int [B, T] of each kind at the last word of each name, else NOT_ASKED; names int [B, T]).

    Args:
        readings: objects of each caption.
        length: T.
    """
    names = torch.zeros(len(readings), length, dtype=torch.int64)
    labels = {kind: torch.full_like(names, NOT_ASKED) for kind in KINDS}
    for row, objects in enumerate(readings):
        for number, each in enumerate(objects, start=1):
            names[row, each.start : each.end] = number
            for kind, label in each.labels.items():
                labels[kind][row, each.end - 1] = label
    return labels, names


def _read(caption: str) -> tuple[Reading, ...]:
    found = read(caption)
    assert found is not None, caption
    return found


def _old_encoder(start: Artifact, text: T5TextEncoder) -> T5TextEncoder | None:
    """The start's text encoder, whose tokens and width are those of `text`; None where it has none."""
    if not has_part(start, "text_encoder"):
        require_part(start, "vae")
        return None
    outline = start_outline(start)
    words = outline.tokenizer.get_vocab()
    if words != text.tokenizer.get_vocab() or outline.dim != text.dim:
        raise UserError(
            f"{start.path}: got a text encoder of {len(words):,} tokens and width {outline.dim}, "
            f"allowed: one of the nano language ({len(text.tokenizer)} tokens, width {text.dim})"
        )
    return load_text_encoder(start.path / "text_encoder", start.path / "tokenizer")


def _copy_others(start: Path, folder: Path) -> None:
    """Copy the parts that read and draw, as they are, and what says that they are a student."""
    for part in ("transformer", "vae"):
        if (start / part).is_dir():
            copy_part(start / part, folder / part)
    if (start / _INDEX).is_file():
        (folder / _INDEX).write_bytes((start / _INDEX).read_bytes())
