"""Where image tokens lie, in the order in which they are decoded."""

from typing import NamedTuple

import torch
from torch.nn import functional

from lightgen.models.blocks import Projected, TextMemory
from lightgen.models.positions import Rotation, diagonal_angles, turns

# Shapes: B batch, A heads, N tokens of a sequence, L image tokens, T text tokens, D width, E head width.
# Image tokens stand in the order in which they are decoded, last first: ranks 0 to U - 1 are unknown, ranks U
# to L - 1 known, and those predicted now are the last of the unknown. So every set of tokens is a slice, and
# a token keeps its rank while the picture grows.


class Layout(NamedTuple):
    """Everything that depends on the grid alone, and each picture's order.

    Attributes:
        order: position of the token at each rank, int [B, L].
        num_heads: A.
        angles: [L, E/2] by position; None without rotary positions.
        tables: learned positions [L, D] of encoder, decoder and cross stage, by position; empty without.
        unknown: mask tokens at the door of the decoder's first block, by position: x, queries, keys and
            values, each [L, D].
    """

    order: torch.Tensor
    num_heads: int
    angles: torch.Tensor | None
    tables: tuple[torch.Tensor, ...]
    unknown: tuple[torch.Tensor, ...]

    def table(self, stage: int, start: int, end: int) -> torch.Tensor:
        """Learned positions [B, end - start, D] of a stage at ranks start to end."""
        return functional.embedding(self.order[:, start:end], self.tables[stage])

    def rotation(
        self, start: int, end: int, dtype: torch.dtype, text: torch.Tensor | None = None
    ) -> Rotation | None:
        """Turns of ranks start to end and, after them, of text tokens of angles [B, T, E/2]."""
        if self.angles is None:
            return None
        angles = functional.embedding(self.order[:, start:end], self.angles)
        if text is not None:
            angles = torch.cat([angles, text], dim=1)
        return turns(angles, dtype)

    def unknown_at(self, start: int, end: int) -> Projected:
        """Mask tokens of ranks start to end at the door of the decoder's first block."""
        at = self.order[:, start:end]
        x, *qkv = (functional.embedding(at, each) for each in self.unknown)
        return Projected(x, *(each.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for each in qkv))


class Context(NamedTuple):
    """A text as image tokens read it.

    Attributes:
        prefix: text tokens, and registers before them if any, at the door of the encoder's first block; None
            unless fusion is joint.
        prefix_mask: bool [B, T], True = register or real token; None = all may be attended to.
        memories: for each cross block, what it keeps of the text, or a constant.
        angles: of the prefix, [B, T, E/2], 0 where a token has no place; None without rotary positions.
    """

    prefix: Projected | None
    prefix_mask: torch.Tensor | None
    memories: tuple[TextMemory | torch.Tensor, ...]
    angles: torch.Tensor | None = None

    @property
    def num_text(self) -> int:
        """Text tokens in the sequence of image tokens."""
        return 0 if self.prefix is None else self.prefix.x.shape[1]

    def attendable(self, num_image: int) -> torch.Tensor | None:
        """Mask bool [B, 1, 1, num_image + T] of image tokens, all seen, and the prefix; None = all seen."""
        if self.prefix_mask is None:
            return None
        image = self.prefix_mask.new_ones(self.prefix_mask.shape[0], num_image)
        return torch.cat([image, self.prefix_mask], dim=1)[:, None, None]


def prefix_angles(seen: torch.Tensor, channels: int, *, placed: bool, registers: int) -> torch.Tensor:
    """Angles [B, R + T, channels] of R registers and of T text tokens, 0 where a token has no place.

    Args:
        seen: bool [B, T], True = may be attended to; the others are not counted.
        channels: of the angles.
        placed: whether text tokens have places: (-1, -1), (-2, -2) and so on.
        registers: R.
    """
    places = -seen.cumsum(dim=1).float() if placed else torch.zeros_like(seen, dtype=torch.float32)
    return diagonal_angles(functional.pad(places, (registers, 0)), channels)


NO_TEXT = Context(None, None, ())


def joined(first: Projected, second: Projected) -> Projected:
    """Sequence of the tokens of both, in this order."""
    x = torch.cat([first.x, second.x], dim=1)
    return Projected(x, *(torch.cat(each, dim=2) for each in zip(first[1:], second[1:], strict=True)))
