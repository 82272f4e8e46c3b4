"""Which tokens are decoded when: random orders and iteration schedules."""

import math

import torch

from lightgen.core.draws import torch_draws


def draw_order(seed: int, length: int) -> torch.Tensor:
    """Permutation [length] in which an image's tokens are decoded: a pure function of the image's seed."""
    return torch.randperm(length, generator=torch_draws(seed, "order"))


def unknown_after(num_unknown: int, num_iterations: int) -> list[int]:
    """Tokens still unknown after each iteration: a cosine from num_unknown to 0, one or more per iteration.

    Fewer entries than num_iterations come back where there are fewer tokens than iterations.
    Source: arXiv 2202.04200, section 3.2 (cosine schedule).
    """
    counts: list[int] = []
    left = num_unknown
    for k in range(num_iterations):
        target = math.floor(num_unknown * math.cos(math.pi / 2 * (k + 1) / num_iterations))
        left = 0 if k == num_iterations - 1 else max(0, min(left - 1, target))
        counts.append(left)
        if left == 0:
            break
    return counts
