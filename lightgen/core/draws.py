"""Random draws keyed by (seed, purpose, ids): the same whatever ran before, on any rank, in any batch."""

import hashlib

import numpy as np
import torch

_ROUNDS = 6
_MASK64 = (1 << 64) - 1


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


def _mix(value: int, key: int) -> int:
    """Well-mixed 64-bit hash of value under key (the finaliser of splitmix64)."""
    value = (value + key + 0x9E3779B97F4A7C15) & _MASK64
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK64
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK64
    return value ^ (value >> 31)


def permuted(seed: int, purpose: str, epoch: int, position: int, size: int) -> int:
    """Index in [0, size) at `position` of the permutation named by seed, purpose and epoch, in O(1) memory.

    A balanced Feistel network on the next even power of two, walked until it lands inside the range.
    """
    assert 0 <= position < size, (position, size)
    half = max(1, ((size - 1).bit_length() + 1) // 2)
    low = (1 << half) - 1
    keys = [draw_key(seed, purpose, epoch, r) for r in range(_ROUNDS)]
    value = position
    while True:
        left, right = value >> half, value & low
        for key in keys:
            left, right = right, left ^ (_mix(right, key) & low)
        value = (left << half) | right
        if value < size:
            return value
