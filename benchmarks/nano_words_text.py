"""The text of `nano_words.py`: an encoder that knows the order of words, for a student that does not.

First a new encoder learns to read captions, with features near the old ones. Then the features of objects'
names get codes added of what is said of the object, so that the student's transformer need not find the
adjective that belongs to a name by itself.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from transformers import PreTrainedTokenizerBase, T5EncoderModel

from lightgen.models.reader import Reader
from lightgen.objectives.language import NOT_ASKED
from lightgen.ports.nano.language import draw_prompt
from lightgen.ports.nano.reading import KINDS, Reading, read
from lightgen.ports.nano.world import COLORS, RELATIONS
from lightgen.ports.text import tokenize
from lightgen.stages.language_job import label_words

WIDTH, LENGTH = 256, 48
SEED, CODES_FROM = 991, 2_000_000  # of the captions; the number of the first one that codes are learned from
HIDDEN = 0.3  # share of names that are hidden while the encoder learns to read
KEEP = 3.0  # weight of the distance to the old features
CODE = 0.7  # size of the codes, and of those of counts and roles relative to it
COUNT_CODE, ROLE_CODE, ROLE_NORM, ROLE_SEED = 0.7, 0.6, 16.0, 3
NAME_WEIGHT = 4.0  # of the names' features among those of all words
COUNTED = ("two", "three", "four")
_BIAS = "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"

# Number of the step, and what it gave.
Note = Callable[[int, dict[str, float]], None]


@dataclass(frozen=True)
class Texts:
    """Some captions.

    Attributes:
        ids, mask: int and bool [N, T].
        labels: by kind, int [N, T]: what is said of an object at the last word of its name, else NOT_ASKED.
    """

    ids: torch.Tensor
    mask: torch.Tensor
    labels: dict[str, torch.Tensor]

    @property
    def names(self) -> torch.Tensor:
        """Last words of objects' names, bool [N, T], whether hidden or not."""
        return self.labels["color"] != NOT_ASKED


def draw_texts(
    tokenizer: PreTrainedTokenizerBase, first: int, count: int, hidden: float = 0.0
) -> Iterator[Texts]:
    """`count` captions of the training split at a time, in order from number `first` on.

    Args:
        tokenizer: of the text encoder.
        first: number of the first caption.
        count: N.
        hidden: share of names that `<unk>` stands for, and whose class is not asked.
    """
    number = first
    while True:
        captions: list[str] = []
        readings: list[tuple[Reading, ...]] = []
        while len(captions) < count:
            caption = draw_prompt(SEED, number, "train").prompt
            number += 1
            found = read(caption)
            if found is not None:
                captions.append(caption)
                readings.append(found)
        ids, mask = tokenize(tokenizer, captions, LENGTH, LENGTH)
        length = int(mask.sum(1).max())
        ids, mask = ids[:, :length].clone(), mask[:, :length]
        texts = Texts(ids, mask, label_words(readings, length)[0])
        if hidden:
            chosen = torch.from_numpy(np.random.default_rng(number).random((count, length)) < hidden)
            ids[texts.names & chosen] = int(tokenizer.unk_token_id)  # pyright: ignore[reportArgumentType]
            texts.labels["class"][texts.names & chosen] = NOT_ASKED
        yield texts


def features_of(encoder: T5EncoderModel, texts: Texts) -> torch.Tensor:
    """Features [N, T, D]."""
    return encoder(input_ids=texts.ids, attention_mask=texts.mask).last_hidden_state


def learn_to_read(
    encoder: T5EncoderModel,
    old: T5EncoderModel,
    tokenizer: PreTrainedTokenizerBase,
    steps: int,
    batch: int,
    note: Note,
) -> None:
    """Teach a new encoder, in place, with the old one's words, to say of each name what its caption says.

    Args:
        encoder: new.
        old: whose features are kept.
        tokenizer: of both.
        steps: how many.
        batch: captions of each.
        note: of the cross-entropy, and of how far the features are from the old ones, relative to their size.
    """
    with torch.no_grad():
        encoder.shared.weight.copy_(old.shared.weight)
    reader = Reader(encoder, WIDTH, {kind: len(values) for kind, values in KINDS.items()}, 0)
    source = draw_texts(tokenizer, 0, batch, HIDDEN)

    def loss_of() -> tuple[torch.Tensor, dict[str, float]]:
        texts = next(source)
        features, said = reader(texts.ids, texts.mask)
        with torch.no_grad():
            kept = features_of(old, texts)
        missed = features.new_zeros(())
        for kind, logits in said.items():
            wanted = texts.labels[kind].flatten()
            missed = missed + functional.cross_entropy(logits.flatten(0, 1), wanted, ignore_index=NOT_ASKED)
        moved = (features - kept)[texts.mask].square().mean() / kept[texts.mask].square().mean()
        return missed + KEEP * moved, {"missed": missed.item(), "moved": moved.item()}

    _learn(encoder, steps, loss_of, note, reader.readouts)


def learn_codes(
    encoder: T5EncoderModel,
    old: T5EncoderModel,
    tokenizer: PreTrainedTokenizerBase,
    steps: int,
    batch: int,
    note: Note,
) -> None:
    """Teach an encoder that reads, in place, to give the old features, with codes added to those of names.

    Args:
        encoder: from `learn_to_read`.
        old: whose features are kept.
        tokenizer: of both.
        steps: how many.
        batch: captions of each.
        note: of the squared error over all words, and over names.
    """
    codes = make_codes(old, tokenizer)
    source = draw_texts(tokenizer, CODES_FROM, batch)

    def loss_of() -> tuple[torch.Tensor, dict[str, float]]:
        texts = next(source)
        added = sum(codes[kind][texts.labels[kind].clamp(min=0)] for kind in codes)
        with torch.no_grad():
            wanted = features_of(old, texts) + CODE * added * texts.names[..., None]
        errors = (features_of(encoder, texts) - wanted).square().mean(-1)
        everywhere, names = errors[texts.mask].mean(), errors[texts.names].mean()
        shown = {"error": everywhere.item(), "error_names": names.item()}
        return everywhere + NAME_WEIGHT * names, shown

    _learn(encoder, steps, loss_of, note)


def make_codes(old: T5EncoderModel, tokenizer: PreTrainedTokenizerBase) -> dict[str, torch.Tensor]:
    """Code [N, D] of each colour, count and role, by label: nothing where nothing is said, and for one.

    A colour's is where the old features of its word are from the mean of all colours, a count's likewise, so
    that the transformer knows the directions; those of roles are orthogonal to each other.
    """
    mean = _mean_features(old, tokenizer, (*COLORS, *COUNTED))
    colors = torch.stack([mean[word] for word in COLORS])
    counts = torch.stack([mean[word] for word in COUNTED])
    normal = torch.randn(WIDTH, len(RELATIONS), generator=torch.Generator().manual_seed(ROLE_SEED))
    roles = torch.linalg.qr(normal)[0].T * ROLE_NORM
    nothing = torch.zeros(1, WIDTH)
    return {
        "color": torch.cat([nothing, colors - colors.mean(0)]),
        "count": torch.cat([nothing, counts - counts.mean(0)]) * COUNT_CODE,
        "role": torch.cat([nothing, roles]) * ROLE_CODE,
    }


@torch.no_grad()
def _mean_features(
    old: T5EncoderModel, tokenizer: PreTrainedTokenizerBase, words: tuple[str, ...]
) -> dict[str, torch.Tensor]:
    """Mean features [D] of each word over the first 1,800 captions."""
    ids = [int(tokenizer.convert_tokens_to_ids(word)) for word in words]  # pyright: ignore[reportArgumentType]
    sums, counts = torch.zeros(len(words), WIDTH), [0] * len(words)
    source = draw_texts(tokenizer, 0, 300)
    for _ in range(6):
        texts = next(source)
        features = features_of(old, texts)
        for place, token in enumerate(ids):
            there = texts.ids == token
            sums[place] += features[there].sum(0)
            counts[place] += int(there.sum())
    return {word: sums[place] / counts[place] for place, word in enumerate(words)}


def _learn(
    encoder: T5EncoderModel,
    steps: int,
    loss_of: Callable[[], tuple[torch.Tensor, dict[str, float]]],
    note: Note,
    readouts: nn.Module | None = None,
) -> None:
    """Steps of AdamW: rates rise over the first 30 steps and fall over the last four tenths."""
    bias = encoder.get_parameter(_BIAS)
    others = [weight for name, weight in encoder.named_parameters() if name != _BIAS]
    # biases by distance and readouts begin further from where they end
    groups = [{"params": others, "peak": 1e-3}, {"params": [bias], "peak": 5e-3}]
    if readouts is not None:
        groups.append({"params": list(readouts.parameters()), "peak": 3e-3})
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95), weight_decay=0.0)
    for step in range(steps):
        factor = min(1, (step + 1) / 30) * min(1, (steps - step) / (steps * 0.4))
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * factor
        loss, shown = loss_of()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(encoder.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        note(step, {"loss": loss.item(), **shown})
