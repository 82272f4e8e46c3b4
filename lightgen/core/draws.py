"""Random draws keyed by (seed, purpose, ids): the same whatever ran before, on any rank, in any batch."""

import hashlib
from collections.abc import Sequence

import numpy as np
import torch

_ROUNDS = 6
_ADD = 0x9E3779B97F4A7C15  # this and the next two: the finaliser of splitmix64
_FACTORS = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_SHIFTS = np.uint64(30), np.uint64(27), np.uint64(31)


def draw_key(seed: int, purpose: str, *ids: int) -> int:
    """Key [63-bit int] of the draw named by seed, purpose and ids; different names give independent keys."""
    text = "/".join([str(int(seed)), purpose, *(str(int(i)) for i in ids)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def numpy_draws(seed: int, purpose: str, *ids: int) -> np.random.Generator:
    """NumPy generator of the named draw."""
    return np.random.Generator(np.random.PCG64(draw_key(seed, purpose, *ids)))


def torch_draws(seed: int, purpose: str, *ids: int) -> torch.Generator:
    """Torch generator (CPU) of the named draw."""
    return torch.Generator().manual_seed(draw_key(seed, purpose, *ids))


def permuted(
    seed: int, purpose: str, epoch: int, positions: Sequence[int] | np.ndarray, size: int
) -> np.ndarray:
    """Indices int64 [P] in [0, size) at positions [P] of the permutation named by seed, purpose and epoch.

    It takes no memory of the order of size: a balanced Feistel network on the next even power of two, walked
    until it lands inside the range.
    """
    places = np.asarray(positions)
    assert places.ndim == 1 and (places.dtype.kind in "iu" or places.size == 0), (places.ndim, places.dtype)
    assert places.size == 0 or (places.min() >= 0 and places.max() < size), (places.min(), places.max(), size)
    half = np.uint64(max(1, ((size - 1).bit_length() + 1) // 2))
    low = (np.uint64(1) << half) - np.uint64(1)
    keys = [np.uint64((draw_key(seed, purpose, epoch, r) + _ADD) % 2**64) for r in range(_ROUNDS)]
    values = places.astype(np.uint64)
    outside = np.arange(len(values))
    while outside.size:
        left, right = values[outside] >> half, values[outside] & low
        for key in keys:
            left, right = right, left ^ (_mix(right, key) & low)
        values[outside] = landed = (left << half) | right
        outside = outside[landed >= np.uint64(size)]
    return values.astype(np.int64)


def _mix(values: np.ndarray, key: np.uint64) -> np.ndarray:
    """Well-mixed hashes uint64 of values uint64 under key, modulo 2**64."""
    values = values + key
    values = (values ^ (values >> _SHIFTS[0])) * _FACTORS[0]
    values = (values ^ (values >> _SHIFTS[1])) * _FACTORS[1]
    return values ^ (values >> _SHIFTS[2])
