"""Sample order: every id once per epoch, whatever the batch size."""

from itertools import chain

import pytest

from lightgen.data.order import sample_ids


def _sequence(seed: int, batch: int, size: int, length: int) -> list[int]:
    steps = -(-length // batch)
    return list(chain.from_iterable(sample_ids(seed, step, batch, size) for step in range(steps)))[:length]


@pytest.mark.parametrize("size", [1, 2, 5, 64, 97])
@pytest.mark.parametrize("batch", [1, 3, 64, 200])
def test_every_id_comes_once_per_epoch(size: int, batch: int) -> None:
    ids = _sequence(7, batch, size, 3 * size)
    for epoch in range(3):
        assert sorted(ids[epoch * size : (epoch + 1) * size]) == list(range(size))


def test_sequence_is_the_same_for_any_batch_size() -> None:
    sequences = [_sequence(0, batch, 31, 150) for batch in (1, 2, 7, 31, 50, 150)]
    assert all(sequence == sequences[0] for sequence in sequences)


def test_a_step_needs_no_earlier_step() -> None:
    late = sample_ids(3, 10**9, 4, 1000)
    assert late == sample_ids(3, 10**9, 4, 1000)
    assert len(late) == 4 and all(0 <= i < 1000 for i in late)


def test_epochs_and_seeds_are_shuffled_apart() -> None:
    first, second = (sample_ids(0, epoch, 100, 100) for epoch in (0, 1))
    assert first != second and first != sample_ids(1, 0, 100, 100)
    assert first != sorted(first)


def test_first_sample_is_spread_evenly() -> None:
    counts = [0] * 5
    for seed in range(1000):
        counts[sample_ids(seed, 0, 1, 5)[0]] += 1
    assert all(140 < count < 260 for count in counts)  # 200 expected, standard deviation 13


def test_bad_sizes_are_programmer_errors() -> None:
    for step, batch, size in ((-1, 1, 1), (0, 0, 1), (0, 1, 0)):
        with pytest.raises(AssertionError):
            sample_ids(0, step, batch, size)
