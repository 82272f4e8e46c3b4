"""Language objective: features of an object's name say all that its caption says of the object."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from lightgen.core.draws import torch_draws
from lightgen.core.errors import UserError
from lightgen.models.reader import Reader

# Label of a word that nothing is asked of.
NOT_ASKED = -100
# The kind of label that a name itself says, which is not asked where the name is hidden.
CLASS = "class"


@dataclass(frozen=True, kw_only=True)
class LanguageConfig:
    """What is asked of the text encoder.

    Attributes:
        keep: weight of the distance to the features of the start's text encoder, so that a transformer that
            reads those goes on with the new ones; without one it has no effect.
        hide: share of objects whose name is hidden in training, so that colour, count and place are read from
            the order of the words and not from which class often has which.
        seed: of which names are hidden.
    """

    keep: float = 5.0
    hide: float = 0.3
    seed: int = 0

    def check(self) -> None:
        """Raises UserError: a number out of range."""
        if self.keep < 0 or not 0 <= self.hide < 1:
            got = f"keep {self.keep}, hide {self.hide}"
            raise UserError(f"language: got {got}, allowed: keep from 0, hide from 0 to below 1")


class LanguageObjective:
    """Cross-entropy of all labels of a caption's objects, with features that stay near those of the start.

    Args:
        config: weights.
        unknown: token that hides a word.
        start: frozen text encoder whose features are kept, on the device of the learner; None = none are.

    Source: hidden words as in arXiv 1810.04805, section 3.1; kept features as the hints of arXiv 1412.6550,
    eq. 3, here relative to their size.
    """

    def __init__(self, config: LanguageConfig, unknown: int, start: nn.Module | None) -> None:
        self._config, self._unknown, self._start = config, unknown, start

    def __call__(
        self, learner: Reader, batch: Mapping[str, Any], step: int
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Loss of a batch; share of right labels of each kind, and how far the features are from the start's.

        Args:
            learner: the reader.
            batch: `text_ids` int and `text_mask` bool [B, T]; `labels`, int [B, T] of each kind, where
                NOT_ASKED or a label; `names` int [B, T] on the CPU, 0 or 1 + the number of the object whose
                name the word is part of; `ids`, one per caption. In eval mode no name is hidden.
            step: of the optimizer.
        """
        text_ids, mask, labels = batch["text_ids"], batch["text_mask"], dict(batch["labels"])
        if learner.training:
            hidden = self._hidden(batch["names"], batch["ids"], step).to(text_ids.device)
            text_ids = text_ids.masked_fill(hidden, self._unknown)
            labels[CLASS] = labels[CLASS].masked_fill(hidden, NOT_ASKED)
        features, said = learner(text_ids, mask)
        loss, shown = features.new_zeros((), dtype=torch.float32), {}
        for kind, logits in said.items():
            wanted, logits = labels[kind].flatten(), logits.flatten(0, 1).float()
            missed = functional.cross_entropy(logits, wanted, ignore_index=NOT_ASKED, reduction="sum")
            loss = loss + missed / len(mask)
            right = (logits.argmax(1) == wanted).sum()
            shown[f"accuracy_{kind}"] = torch.stack([right, (wanted != NOT_ASKED).sum()])
        if self._start is not None:
            with torch.no_grad():
                kept = self._start(input_ids=text_ids, attention_mask=mask).last_hidden_state
            moved = distance(features, kept, mask)
            loss, shown["moved"] = loss + self._config.keep * moved, moved.detach()
        return loss, shown

    def _hidden(self, names: torch.Tensor, ids: Sequence[int], step: int) -> torch.Tensor:
        """Words bool [B, T] of the names that are hidden, each whole."""
        rows = []
        for row, sample in zip(names, ids, strict=True):
            random = torch_draws(self._config.seed, "hidden name", step, sample)
            chosen = torch.rand(int(row.max()), generator=random) < self._config.hide
            rows.append(torch.cat([chosen.new_zeros(1), chosen])[row])
        return torch.stack(rows)


def distance(features: torch.Tensor, kept: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Mean over texts of the squared difference of features [B, T, D] relative to the square of `kept`.

    Args:
        features: of texts.
        kept: of the same texts.
        mask: bool [B, T], True = real token.
    """
    there = mask[:, :, None].float()
    changed = ((features.float() - kept.float()).square() * there).sum((1, 2))
    return (changed / (kept.float().square() * there).sum((1, 2))).mean()
