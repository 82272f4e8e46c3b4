"""A way round some blocks of the decoder, which a share of the image tokens takes in training."""

from typing import NamedTuple

import torch

from lightgen.models.positions import Rotation

# Shapes: B batch, N tokens of a sequence, L image tokens, U unknown, T text tokens, D width, E head width.


class Route(NamedTuple):
    """Who skips what.

    Source: TREAD, arXiv 2501.04765, section 3.2: tokens skip blocks and join the others again, unchanged.

    Attributes:
        share: of the unknown and of the known image tokens that skip, in [0, 1). They are those of lowest
            rank of either kind, which in training is chance.
        first: first block that they skip, from 1.
        end: block that they join again at, which is not after the last one.
    """

    share: float
    first: int
    end: int

    def fits(self, num_blocks: int) -> bool:
        """Whether a decoder of so many blocks has this route: its last block is for all tokens."""
        return 0 <= self.share < 1 and 1 <= self.first < self.end < num_blocks


class Detour:
    """A route on its way through the blocks.

    Args:
        route: who skips what.
        unknown: U.
        length: L; text tokens come after and skip nothing.
    """

    def __init__(self, route: Route, unknown: int, length: int) -> None:
        self._route, self._unknown = route, unknown
        self._skips = int(route.share * unknown), int(route.share * (length - unknown))
        self._away: tuple[torch.Tensor, torch.Tensor] | None = None
        self._seen: tuple[torch.Tensor | None, Rotation | None] = (None, None)

    def at(
        self, block: int, x: torch.Tensor, mask: torch.Tensor | None, rotation: Rotation | None
    ) -> tuple[torch.Tensor, torch.Tensor | None, Rotation | None]:
        """Tokens [B, N, D], mask [B, 1, 1, N] and rotation [B, 1, N, E/2] as a block reads them.

        Args:
            block: number of the block.
            x: what the block before gave.
            mask: under which it ran.
            rotation: by which it turned.
        """
        (unknown, known), start = self._skips, self._unknown
        if block == self._route.first:
            self._away, self._seen = (x[:, :unknown], x[:, start : start + known]), (mask, rotation)
            mask = None if mask is None else self._stay(mask, 3)
            rotation = None if rotation is None else (self._stay(rotation[0], 2), self._stay(rotation[1], 2))
            return self._stay(x, 1), mask, rotation
        if block == self._route.end:
            assert self._away is not None
            staying = start - unknown
            whole = [self._away[0], x[:, :staying], self._away[1], x[:, staying:]]
            return torch.cat(whole, dim=1), *self._seen
        return x, mask, rotation

    def _stay(self, x: torch.Tensor, dim: int) -> torch.Tensor:
        """The entries along an axis of all tokens of those that do not skip."""
        (unknown, known), start = self._skips, self._unknown
        first = x.narrow(dim, unknown, start - unknown)
        return torch.cat([first, x.narrow(dim, start + known, x.shape[dim] - start - known)], dim=dim)
