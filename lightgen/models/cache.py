"""Keys and values of a trunk's blocks, kept from one decoding iteration to the next."""

import torch

# Shapes: B batch, A heads, N tokens of a sequence, E head width.


class TrunkCache:
    """Keys and values by block and rank; what is put last at a rank counts."""

    def __init__(self) -> None:
        self._kept: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}

    def put(
        self, block: str, rank: int, total: int, k: torch.Tensor, v: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values [B, A, total, E] of a block, with those given in their place.

        Args:
            block: name of the block.
            rank: place of the first key given; ranks that were never put must not be read.
            total: length of the sequence.
            k: keys [B, A, N, E].
            v: values [B, A, N, E].
        """
        if block not in self._kept:
            shape = (*k.shape[:2], total, k.shape[3])
            self._kept[block] = (k.new_empty(shape), v.new_empty(shape))
        for kept, new in zip(self._kept[block], (k, v), strict=True):
            kept[:, :, rank : rank + new.shape[2]] = new
        return self._kept[block]
