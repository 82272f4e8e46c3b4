"""The ranks of a run started by torchrun: how many there are, which one this is, and what they agree on."""

from collections.abc import Sequence

import torch
from torch import distributed

from lightgen.core.config import environment


def rank() -> int:
    """Number of this process in the run; 0 outside torchrun."""
    return int(environment("RANK") or 0)


def num_ranks() -> int:
    """Processes in the run; 1 outside torchrun."""
    return int(environment("WORLD_SIZE") or 1)


def join_ranks() -> None:
    """Meet the other processes of the run; nothing to do outside torchrun or when already met."""
    if num_ranks() > 1 and not distributed.is_initialized():
        distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo")


def average_over_ranks(tensors: Sequence[torch.Tensor]) -> None:
    """Overwrite each tensor, on every rank, by its mean over the ranks; one exchange for all of them."""
    if num_ranks() == 1 or not tensors:
        return
    flat = torch.cat([t.flatten() for t in tensors])
    distributed.all_reduce(flat)
    flat /= num_ranks()
    for tensor, mean in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
        tensor.copy_(mean.view_as(tensor))
