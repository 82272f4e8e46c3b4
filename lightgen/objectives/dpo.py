"""Direct preference optimization for a masked student with a generative head per token."""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from lightgen.core.errors import UserError
from lightgen.models.head import Head
from lightgen.models.student import Student
from lightgen.models.transformer import LightGenTransformer
from lightgen.objectives.masked import MaskedConfig, Masking, Prediction, draw_masking, predict

# Gives, for a learner, a context with the student that it is compared with.
Reference = Callable[[Student], contextlib.AbstractContextManager[Student]]


@dataclass(frozen=True, kw_only=True)
class Shared:
    """Which draws two predictions have in common; what they share cannot look like a preference.

    Attributes:
        order: which tokens are hidden.
        time: how noisy each of them is.
        noise: with which noise.
    """

    order: bool = True
    time: bool = True
    noise: bool = True


@dataclass(frozen=True, kw_only=True)
class DPOConfig:
    """Numbers of the preference objective.

    Attributes:
        beta: how far the student may move from the reference; larger is closer. On errors that are means over
            hidden tokens and channels.
        supervised: weight of the plain squared error of the chosen image; it teaches a ddpm head no variance.
        masking: mask, order, times and noise; `per_image_time` is one time per image instead of per token.
        within_pair: what the chosen and the rejected image share.
        with_reference: what student and reference share.
    """

    beta: float = 200.0
    supervised: float = 0.0
    masking: MaskedConfig = MaskedConfig(text_drop=0.0, draws_per_token=4)
    within_pair: Shared = Shared()
    with_reference: Shared = Shared()

    def check(self) -> None:
        """Raises UserError: a number out of range."""
        if not (0 <= self.beta < float("inf") and 0 <= self.supervised < float("inf")):
            got = f"beta {self.beta}, supervised {self.supervised}"
            raise UserError(f"preferences: got {got}, allowed: finite numbers from 0")
        self.masking.check()
        if self.masking.route_share:
            got = f"route_share {self.masking.route_share}"
            raise UserError(f"preferences: got {got}, allowed: 0, as errors of all tokens are compared")


def draw_pair_maskings(
    config: DPOConfig, step: int, ids: Sequence[int], length: int, head: Head
) -> dict[str, Masking]:
    """`masking` of the chosen and then the rejected images, and `reference_masking` if that differs.

    Args:
        config: laws of the draws, and what is shared.
        step: of the optimizer.
        ids: of the pairs.
        length: L, tokens of an image.
        head: whose tokens and times are drawn.
    """

    def drawn(purpose: str) -> Masking:
        return draw_masking(config.masking, step, ids, length, head, purpose)

    chosen = drawn("masking")
    rejected = _mixed(chosen, drawn("masking of the rejected"), config.within_pair)
    found = {"masking": _joined(chosen, rejected)}
    if config.with_reference != Shared():
        other = drawn("masking of the reference")
        # what a pair does not share, it does not share under the reference either
        worse = _mixed(other, drawn("masking of the rejected, reference"), config.within_pair)
        own = _mixed(chosen, other, config.with_reference), _mixed(rejected, worse, config.with_reference)
        found["reference_masking"] = _joined(*own)
    return found


def preference_loss(
    chosen: torch.Tensor,
    rejected: torch.Tensor,
    reference_chosen: torch.Tensor,
    reference_rejected: torch.Tensor,
    beta: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(Loss, margin), both [B], that prefer the chosen image over the rejected one relative to the reference.

    loss = -log sigmoid(beta m), m = 1/2 ((reference_chosen - chosen) - (reference_rejected - rejected)); a
    positive margin m means that the student improved more on the chosen image than on the rejected one.

    Args: four float [B]: squared error per image, averaged over tokens and channels *before* the sigmoid.
    Source: arXiv 2311.12908, eq. 14 (T folded into beta, constant weight, factor 1/2 with mean errors); one
        error per image for per-token heads: arXiv 2509.18928.
    """
    margin = 0.5 * ((reference_chosen - chosen) - (reference_rejected - rejected))
    return -functional.logsigmoid(beta * margin), margin


def frozen_reference(transformer: LightGenTransformer, text_encoder: nn.Module) -> Reference:
    """A reference that stays what it is: the transformer, which is frozen from now on."""
    reference = Student(transformer.requires_grad_(False), text_encoder, train_text_encoder=False).eval()

    def same_precision(learner: Student) -> contextlib.AbstractContextManager[Student]:
        # or rounding would look like a preference
        nn.Module.to(reference.transformer, learner.transformer.mask_token.dtype)
        return contextlib.nullcontext(reference)

    return same_precision


class DPOObjective:
    """Mean preference loss of a batch of pairs, relative to a reference.

    Dropout ends here: on one side of the comparison it would look like a preference.

    Args:
        config: its numbers.
        student: will be the learner.
        reference: what it is compared with; None where batches bring the errors of the reference.
    """

    def __init__(self, config: DPOConfig, student: Student, reference: Reference | None) -> None:
        assert not student.train_text_encoder, "the reference reads through the same text encoder"
        self._config, self._reference = config, reference
        end_dropout(student)

    def __call__(
        self, learner: Student, batch: Mapping[str, Any], step: int
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Loss of a batch: `chosen` and `rejected` latents [B, C, h, w], with texts as of `predict`.

        With the maskings of `draw_pair_maskings`, or with `masking` and `reference_errors` float32 [B, 2].

        To watch, besides margins and errors: `divergence`, the mean square of the difference between what
        student and reference say. Kullback and Leibler's divergence between their steps of denoising, which
        are Gaussians of equal variance around it, is a multiple of that.
        """
        config, both = self._config, paired(batch)
        meant = None
        if "reference_errors" in batch:
            reference = batch["reference_errors"]
        else:
            assert self._reference is not None
            with self._reference(learner) as other:
                meant = _meant(other, batch)
            reference = meant.image_errors().view(2, -1).T
        said = predict(learner, both, batch["masking"])
        (chosen, rejected), (reference_chosen, reference_rejected) = said.image_errors().chunk(2), reference.T
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
        if meant is not None and "reference_masking" not in batch:
            shown["divergence"] = (said.said.detach() - meant.said).square()
        return loss, {name: value.detach().mean() for name, value in shown.items()}


def reference_errors(reference: Student, batch: Mapping[str, Any]) -> torch.Tensor:
    """Errors of the reference on chosen and rejected, float32 [B, 2], for `DPOObjective` to use later."""
    return _meant(reference, batch).image_errors().view(2, -1).T


@torch.no_grad()
def _meant(reference: Student, batch: Mapping[str, Any]) -> Prediction:
    """What the reference says of the chosen and then the rejected images."""
    return predict(reference, paired(batch), batch.get("reference_masking", batch["masking"]))


def paired(batch: Mapping[str, Any]) -> dict[str, Any]:
    """The batch as images: the chosen and then the rejected ones, each with its text."""
    words = "text_features" if "text_features" in batch else "text_ids"
    return {
        "latents": torch.cat([batch["chosen"], batch["rejected"]]),
        words: torch.cat([batch[words], batch[words]]),
        "text_mask": batch["text_mask"].repeat(2, 1),
    }


def end_dropout(student: Student) -> None:
    """Let no part of the student drop anything from now on."""
    for module in student.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0


def _mixed(one: Masking, other: Masking, shared: Shared) -> Masking:
    """What is shared from the one, the rest from the other."""
    return replace(
        other,
        order=(one if shared.order else other).order,
        time=(one if shared.time else other).time,
        noise=(one if shared.noise else other).noise,
        kept=one.kept,
    )


def _joined(chosen: Masking, rejected: Masking) -> Masking:
    count = len(chosen.order)
    return Masking(
        order=torch.cat([chosen.order, rejected.order]),
        time=torch.cat([chosen.time, rejected.time], dim=1),
        noise=torch.cat([chosen.noise, rejected.noise], dim=1),
        kept=torch.cat([chosen.kept, rejected.kept + count]),
    )
