"""The trunk over the iterations of a decoding: what lasts is made once, and only what changed passes."""

from collections.abc import Sequence

import torch
from torch.nn import functional

from lightgen.models.blocks import Projected
from lightgen.models.cache import TrunkCache
from lightgen.models.layout import Context, joined
from lightgen.models.transformer import LightGenTransformer

# Shapes: B images, L tokens, N some of them, P predicted now, D width, d token channels. Ranks: see
# `lightgen.models.layout`.


class Trunk:
    """Conditions of the tokens that an iteration predicts.

    Exact, and as cheap as that can be: text keys and values, positions and mask tokens are made once; a known
    token enters once; the encoder, and with late fusion the decoder, runs once for all contexts; the last
    block and the late stage run for predicted tokens alone; and with late fusion the first iteration, in
    which no image differs from another, runs once for the batch.

    Args:
        transformer: in eval mode.
        contexts: texts that conditions are wanted under; with joint fusion one, whose rows are a multiple of
            B: all images under the first text, all under the second.
        order: positions by rank, int [B, L].
        grid: rows and columns of tokens.
        keeps: whether keys and values are kept for passes that are not full.
    """

    def __init__(
        self,
        transformer: LightGenTransformer,
        contexts: Sequence[Context],
        order: torch.Tensor,
        grid: tuple[int, int],
        keeps: bool,
    ) -> None:
        self._transformer, self._contexts = transformer, contexts
        self._layout = transformer.lay_out(order, grid)
        self._is_late = transformer.shape.fusion == "late"
        prefix = contexts[0].prefix
        self._copies = 1 if prefix is None else len(prefix.x) // len(order)
        self._wide = self._layout._replace(order=order.repeat(self._copies, 1))
        self._caches = [TrunkCache() if keeps else None for _ in contexts]
        self._known: Projected | None = None
        self._unknown = order.shape[1]

    def forget(self) -> None:
        """Let known tokens enter anew: they may have been changed."""
        self._known = None

    def conditions(self, tokens: torch.Tensor, left: int, unknown: int, is_full: bool = True) -> torch.Tensor:
        """Conditions [C * B, P, D] of ranks left to unknown under each of C texts, one after the other.

        Args:
            tokens: by rank, [B, L, d].
            left: first rank to predict.
            unknown: first known rank.
            is_full: whether all tokens pass, or, with kept keys and values, only the predicted ones and those
                that became known since the last call.
        """
        known = self._enter(tokens, unknown)
        first = 0
        if not is_full:
            known, first = _first_tokens(known, self._unknown - unknown), left
        self._unknown = unknown
        if self._is_late:
            decoded = self._decode_late(known, (first, left, unknown))
            fuse = self._transformer.fuse
            return torch.cat([fuse(decoded, self._layout, left, context) for context in self._contexts])
        context, cache = self._contexts[0], self._caches[0]
        known = _repeated(known, self._copies)
        encoded = self._transformer.encode(known, self._wide, unknown, context, cache)
        return torch.cat(
            [
                self._transformer.decode(encoded, self._wide, (first, left, unknown), context, cache)
                for context, cache in zip(self._contexts, self._caches, strict=True)
            ]
        )

    def _decode_late(self, known: Projected, ranks: tuple[int, int, int]) -> torch.Tensor:
        """Decoded tokens [B, P, D], in which no text has part."""
        layout, cache, (_, left, unknown) = self._layout, self._caches[0], ranks
        length = layout.order.shape[1]
        if unknown == length and cache is None and len(layout.order) > 1:
            positions = torch.arange(length, device=layout.order.device)[None]
            nothing = known.x[:1]
            by_position = self._transformer.decode(nothing, layout._replace(order=positions), (0, 0, length))
            return functional.embedding(layout.order[:, left:], by_position[0])
        encoded = self._transformer.encode(known, layout, unknown, cache=cache)
        return self._transformer.decode(encoded, layout, ranks, cache=cache)

    def _enter(self, tokens: torch.Tensor, unknown: int) -> Projected:
        """All known tokens at the door of the encoder, those that became known last first."""
        end = tokens.shape[1] if self._known is None else self._unknown
        newest = self._transformer.enter(tokens[:, unknown:end], self._layout, unknown)
        self._known = newest if self._known is None else joined(newest, self._known)
        return self._known


def _first_tokens(projected: Projected, count: int) -> Projected:
    return Projected(projected.x[:, :count], *(each[:, :, :count] for each in projected[1:]))


def _repeated(projected: Projected, copies: int) -> Projected:
    return Projected(*(each.repeat(copies, *([1] * (each.ndim - 1))) for each in projected))
