"""Representation alignment (REPA): the trunk's hidden state learns to say what a frozen model sees."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from lightgen.core.draws import draw_key
from lightgen.core.errors import UserError
from lightgen.models.student import Student
from lightgen.objectives.masked import MaskedConfig, MaskedObjective, Masking

PROJECTION = "projection"

# Shapes: B batch, L tokens, T text tokens, D width, d features of the frozen model.


@dataclass(frozen=True, kw_only=True)
class RepaConfig:
    """Numbers of representation alignment.

    Attributes:
        layer: the hidden state is that after so many decoder blocks, from 1 to two before the last: those
            that all tokens of the picture go through, known and hidden. On a route round it (see
            `MaskedConfig`), only the tokens that stay are aligned.
        weight: of the term beside the masked objective.
        hidden: width of the two inner layers of the projection.
        dim: width of the frozen model's features: 128 of nano's, 768 or 1024 of DINOv2's base or large.

    Source: arXiv 2410.06940, section 3.2: an early layer, weight .5, a projection of three layers.
    """

    layer: int = 2
    weight: float = 0.5
    hidden: int = 256
    dim: int = 128

    def check(self, decoder_layers: int) -> None:
        """Raises UserError: a number out of range for a transformer of so many decoder blocks."""
        if not 1 <= self.layer <= decoder_layers - 2:
            got = f"layer {self.layer} of {decoder_layers} decoder blocks"
            raise UserError(f"repa: got {got}, allowed: from 1 to two before the last")
        if not (math.isfinite(self.weight) and self.weight >= 0) or min(self.hidden, self.dim) < 1:
            got = f"weight {self.weight}, hidden {self.hidden}, dim {self.dim}"
            raise UserError(f"repa: got {got}, allowed: a finite weight from 0, widths from 1")


def add_projection(student: Student, config: RepaConfig, seed: int) -> None:
    """Give a student a projection from D to d features, which learns with it beside the transformer."""
    width, hidden = student.transformer.shape.width, config.hidden
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(draw_key(seed, "projection-weights"))
        projection = nn.Sequential(
            nn.Linear(width, hidden),
            nn.SiLU(),
            nn.Linear(hidden, hidden),
            nn.SiLU(),
            nn.Linear(hidden, config.dim),
        )
    student.add_module(PROJECTION, projection.to(student.transformer.null_text.device))


def projection_flops(config: RepaConfig, width: int, length: int) -> float:
    """FLOPs per image of the projection, forward and backward: 6 per weight and token."""
    return 6.0 * length * config.hidden * (width + config.hidden + config.dim)


def alignment(said: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Mean cosine similarity [scalar, float32] of features [B, L, d]."""
    return functional.cosine_similarity(said.float(), wanted.float(), dim=-1).mean()


class AlignedObjective:
    """The masked objective, less the weighted mean cosine similarity of what the student projects.

    Args:
        config: layer and weight.
        masking: of the masked objective beside it; the trunk runs once for both.
        student: with its projection; its chosen block tells what it reads, as long as the student lives.

    Source: arXiv 2410.06940, eq. 8.
    """

    def __init__(self, config: RepaConfig, masking: MaskedConfig, student: Student) -> None:
        self._config, self._masking = config, masking
        self._masked = MaskedObjective(masking)
        self._hidden: torch.Tensor | None = None
        self._is_open = False
        # One hook for good: compiled blocks do not look again whether there are others.
        student.transformer.decoder_blocks[config.layer].register_forward_pre_hook(self._keep)

    def __call__(
        self, learner: Student, batch: Mapping[str, Any], step: int
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Loss of a batch; the masked loss, the similarity, and what the masked objective shows.

        Args:
            learner: the student.
            batch: as of `MaskedObjective`, with `representation` [B, L, d] of the clean pictures, by position
                of the token.
            step: of the optimizer.
        """
        self._is_open = True
        try:
            loss, shown = self._masked(learner, batch, step)
        finally:
            self._is_open = False
        hidden, self._hidden = self._hidden, None
        order = self._order(learner, batch["masking"])
        assert hidden is not None, "the block was not reached"
        said = learner.get_submodule(PROJECTION)(hidden[:, : order.shape[1]])  # text follows the picture
        wanted: torch.Tensor = batch["representation"]
        index = order[:, :, None].expand(-1, -1, wanted.shape[2])
        similarity = alignment(said, wanted.gather(1, index))
        told = {"loss_masked": loss.detach(), "alignment": similarity.detach()}
        return loss - self._config.weight * similarity, {**shown, **told}

    def _order(self, learner: Student, masking: Masking) -> torch.Tensor:
        """Positions int [B, N] of the tokens that the block reads, as they lie there; see `Route`."""
        order, unknown = masking.order, masking.noise.shape[2]
        layers = learner.transformer.shape.decoder_layers
        route = self._masking.route_in(layers) if learner.training else None
        if route is None or not route.first <= self._config.layer < route.end:
            return order
        hidden, known = order[:, :unknown], order[:, unknown:]
        skips = int(route.share * hidden.shape[1]), int(route.share * known.shape[1])
        return torch.cat([hidden[:, skips[0] :], known[:, skips[1] :]], dim=1)

    def _keep(self, block: nn.Module, arguments: tuple[torch.Tensor, ...]) -> None:
        """Hook: keep what the block reads, but not when checkpointing makes it anew."""
        if self._is_open:
            self._hidden = arguments[0]
