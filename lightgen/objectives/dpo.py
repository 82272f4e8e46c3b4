"""Direct preference optimization for a masked student with a generative head per token."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from lightgen.models.student import Student
from lightgen.objectives.masked import MaskedConfig, image_errors


@dataclass(frozen=True, kw_only=True)
class DPOConfig:
    """Numbers of the preference objective.

    Attributes:
        beta: how far the student may move from the reference; larger is closer. On errors that are means over
            hidden tokens and channels.
        supervised: weight of the plain masked error of the chosen image.
        masking: mask, order, times and noise; shared by student and reference and by chosen and rejected.
    """

    beta: float = 200.0
    supervised: float = 0.0
    masking: MaskedConfig = MaskedConfig(text_drop=0.0, draws_per_token=4)


def preference_loss(
    chosen: torch.Tensor,
    rejected: torch.Tensor,
    reference_chosen: torch.Tensor,
    reference_rejected: torch.Tensor,
    beta: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(Loss, margin), both [B], that prefer the chosen image over the rejected one relative to the reference.

    loss = -log sigmoid(beta m),
    m = 1/2 ((reference_chosen - chosen) - (reference_rejected - rejected)); a positive
    margin m means that the student improved more on the chosen image than on the rejected one.

    Args: four float [B]: squared error per image, averaged over tokens and channels *before* the sigmoid.
    Source: arXiv 2311.12908, eq. 14 (T folded into beta, constant weight, factor 1/2 with mean errors); one
    error per
        image for per-token heads: arXiv 2509.18928.
    """
    margin = 0.5 * ((reference_chosen - chosen) - (reference_rejected - rejected))
    return -functional.logsigmoid(beta * margin), margin


class DPOObjective:
    """Mean preference loss of a batch of pairs; the reference is the student as it was at the start.

    Dropout ends here: on one side of the comparison it would look like a preference.
    """

    def __init__(self, config: DPOConfig, student: Student) -> None:
        assert not student.train_text_encoder, "the reference reads through the same text encoder"
        self._config = config
        for module in student.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        frozen = copy.deepcopy(student.transformer).requires_grad_(False)
        self._reference = Student(frozen, student.text_encoder, train_text_encoder=False).eval()

    def __call__(
        self, learner: Student, batch: Mapping[str, Any], step: int
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Loss of a batch: `chosen` and `rejected` latents [B, C, h, w], `text_ids`, `text_mask`, `masking`.

        The masking is of every picture, the chosen and then the rejected, which share theirs.
        """
        config, transformer = self._config, learner.transformer
        # Same precision on both sides, or rounding would look like a preference.
        nn.Module.to(self._reference.transformer, transformer.mask_token.dtype)
        pairs = torch.cat([batch["chosen"], batch["rejected"]])
        size, masking = len(batch["chosen"]), batch["masking"]
        both = {
            "latents": pairs,
            "text_ids": batch["text_ids"].repeat(2, 1),
            "text_mask": batch["text_mask"].repeat(2, 1),
        }
        chosen, rejected = image_errors(learner, both, masking).split(size)
        with torch.no_grad():
            reference_chosen, reference_rejected = image_errors(self._reference, both, masking).split(size)
        losses, margin = preference_loss(chosen, rejected, reference_chosen, reference_rejected, config.beta)
        loss = losses.mean() + config.supervised * chosen.mean()
        shown = {
            "accuracy": (margin > 0).float(),
            "margin": margin,
            "chosen_error": chosen,
            "rejected_error": rejected,
            "chosen_change": chosen - reference_chosen,
            "rejected_change": rejected - reference_rejected,
        }
        return loss, {name: value.detach().mean() for name, value in shown.items()}
