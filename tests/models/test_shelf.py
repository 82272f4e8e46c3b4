"""Rows of keys and values: each query finds those of its own row, whoever came, left or grew."""

import numpy as np
import pytest
import torch

from lightgen.core.draws import torch_draws
from lightgen.models.shelf import Shelf

HEADS, WIDTH = 2, 8
CPU = torch.device("cpu")


def randn(*shape, seed=0):
    return torch.randn(shape, generator=torch_draws(seed, "test"), dtype=torch.float64)


def mixed(q, k, v):
    """What attention gives of one row [N, D], spelled out."""
    q, k, v = (each.unflatten(-1, (HEADS, -1)).transpose(0, 1) for each in (q, k, v))
    weights = (q @ k.transpose(1, 2) / (WIDTH // HEADS) ** 0.5).softmax(-1)
    return (weights @ v).transpose(0, 1).flatten(1)


class World:
    """A shelf, and beside it what each row holds."""

    def __init__(self):
        self.shelf = Shelf(HEADS, WIDTH, CPU)
        self.shelf.keep(True)
        self.held, self.number = {}, 0

    def add(self, length):
        self.number += 1
        self.shelf.add(self.number, length)
        self.held[self.number] = {block: randn(2, length, WIDTH, seed=self.number) for block in "ab"}
        self.put({self.number: (0, length)})

    def put(self, spans):
        """Put what is held of slots from, to of each owner, in the order of the rows."""
        pairs = [spans.get(owner, (0, 0)) for owner in self.shelf.owners]
        places = torch.from_numpy(self.shelf.places(*zip(*pairs, strict=True))[1])
        for block in "ab":
            cut = [self.held[o][block][:, a:b] for o, (a, b) in zip(self.shelf.owners, pairs, strict=True)]
            self.shelf.put(block, places, *torch.cat(cut, dim=1))

    def check(self, counts, seen_from=None):
        owners = self.shelf.owners
        starts = seen_from or [0] * len(owners)
        asked = self.shelf.asked(np.array(counts), seen_from)
        for block in "ab":
            q = randn(sum(counts), WIDTH, seed=99)
            found = self.shelf.attend(block, q, asked).split(counts)
            for owner, start, own, result in zip(owners, starts, q.split(counts), found, strict=True):
                k, v = self.held[owner][block][:, start:]
                torch.testing.assert_close(result, mixed(own, k, v), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("counts", [[3, 5, 1], [4, 20, 1], [0, 6, 2], [1, 16, 0], [2, 2, 2]])
def test_queries_see_their_own_row(counts):
    world = World()
    for length in (5, 9, 3):
        world.add(length)
    world.check(counts)
    world.check(counts, seen_from=[2, 8, 0])


def test_rows_come_and_go_and_grow_and_keep_what_they_hold():
    world, random = World(), np.random.default_rng(0)
    for turn in range(60):
        owners = world.shelf.owners
        if len(owners) < 2 or (len(owners) < 7 and random.random() < 0.55):
            world.add(int(random.integers(1, 30)))
        else:
            world.shelf.remove(int(random.integers(len(owners))))
        owner = owners[int(random.integers(len(owners)))]
        length = len(world.held[owner]["a"][0])
        world.held[owner] = {block: randn(2, length, WIDTH, seed=1000 + turn) for block in "ab"}
        world.put({owner: (0, length)})
        world.check([int(count) for count in random.integers(0, 12, len(owners))])


def test_what_a_row_leaves_behind_does_not_spread():
    world = World()
    world.add(4)
    world.add(9)
    world.held[2] = {block: torch.full((2, 9, WIDTH), torch.nan, dtype=torch.float64) for block in "ab"}
    world.put({2: (0, 9)})
    world.shelf.remove(1)
    world.add(3)
    world.check([2, 2])


def test_blocks_that_share_are_right_one_after_the_other():
    shelf = Shelf(HEADS, WIDTH, CPU)
    shelf.add("only", 4)
    places, asked = torch.arange(4), shelf.asked(np.array([2]))
    for seed, block in enumerate("ab"):
        k, v, q = randn(4, WIDTH, seed=seed), randn(4, WIDTH, seed=seed + 5), randn(2, WIDTH, seed=9)
        shelf.put(block, places, k, v)
        torch.testing.assert_close(shelf.attend(block, q, asked), mixed(q, k, v))
