"""Which samples make up which optimizer step: a function of (seed, step), so no state is kept or restored."""

from lightgen.core.draws import permuted


def sample_ids(seed: int, step: int, global_batch_size: int, size: int) -> list[int]:
    """Ids [global_batch_size] in [0, size) of one optimizer step, in batch order.

    Steps read one endless sequence of epochs, each its own permutation of all ids: every id comes once per
    epoch, a batch may straddle two epochs, and any split of the batch over ranks sees the same samples.
    """
    assert step >= 0 and global_batch_size >= 1 and size >= 1, (step, global_batch_size, size)
    first = step * global_batch_size
    return [
        permuted(seed, "order", position // size, position % size, size)
        for position in range(first, first + global_batch_size)
    ]
