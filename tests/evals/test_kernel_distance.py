import math

import numpy as np
import pytest
import torch
from torchmetrics.image.kid import KernelInceptionDistance

from lightgen.core.draws import numpy_draws
from lightgen.core.errors import UserError
from lightgen.evals import kernel_distance as module
from lightgen.evals.kernel_distance import cmmd, kernel_distance
from tests.evals.test_fidelity import Identity, drawn


@pytest.mark.parametrize("num", [40, 150])
def test_kid_as_torchmetrics_computes_it(num):
    a, b = drawn(num, 20).astype(np.float64), drawn(num, 20, shift=0.2, seed=1).astype(np.float64)
    metric = KernelInceptionDistance(feature=Identity(20), subsets=1, subset_size=num)
    metric.update(torch.from_numpy(a), real=True)
    metric.update(torch.from_numpy(b), real=False)
    found = kernel_distance(a, b)
    assert found.value == pytest.approx(float(metric.compute()[0]), rel=1e-9)
    assert (found.std, found.subset_size, found.subsets) == (None, num, 1)


def test_kid_of_subsets():
    a, b = drawn(400, 8), drawn(300, 8, shift=0.5, seed=1)
    whole = kernel_distance(a[:300], b)
    found = kernel_distance(a, b, subsets=60, subset_size=50)
    assert found.std is not None and found.subset_size == 50 and found.subsets == 60
    assert abs(found.value - whole.value) < 4 * found.std / math.sqrt(60)
    assert kernel_distance(a, b, subsets=60, subset_size=50) == found
    assert kernel_distance(a, b, subsets=60, subset_size=50, seed=1).value != found.value
    small = kernel_distance(a, b[:30], subsets=5)  # no more than the smaller side has
    assert small.subset_size == 30 and small.std is not None


def test_kid_of_one_distribution_is_about_zero():
    values = [
        kernel_distance(drawn(200, 8, seed=seed), drawn(200, 8, seed=seed + 1)).value
        for seed in range(0, 60, 2)
    ]
    error = np.std(values) / math.sqrt(len(values))
    assert abs(np.mean(values)) < 4 * error and min(values) < 0 < max(values)
    assert kernel_distance(drawn(200, 8), drawn(200, 8, shift=1.0, seed=1)).value > 10 * max(values)


def by_pairs(a, b):
    """CMMD by two loops over all pairs."""
    unit = [
        [np.asarray(row, np.float64) / math.sqrt(math.fsum(row.astype(float) ** 2)) for row in x]
        for x in (a, b)
    ]

    def mean(first, second):
        return math.fsum(
            math.exp(-float(((x - y) ** 2).sum()) / (2 * 10.0**2)) for x in first for y in second
        ) / (len(first) * len(second))

    x, y = unit
    return 1000 * (mean(x, x) + mean(y, y) - 2 * mean(x, y))


def test_cmmd_as_two_loops_compute_it(monkeypatch):
    a, b = drawn(50, 16, shift=1), drawn(37, 16, shift=1.5, seed=1)
    wanted = by_pairs(a, b)
    assert wanted > 0.01
    found = cmmd(a, b)
    assert found.value == pytest.approx(wanted, rel=1e-9)
    assert cmmd(3 * a, b / 7).value == pytest.approx(wanted, rel=1e-6)  # length does not count
    monkeypatch.setattr(module, "_BLOCK", 8)
    blocks = cmmd(a, b)
    for name in ("value", "standard_error", "floor"):
        assert vars(blocks)[name] == pytest.approx(vars(found)[name], rel=1e-9)


def test_cmmd_of_a_set_with_itself_and_of_another_order():
    a, b = drawn(80, 16, shift=1), drawn(70, 16, shift=1.2, seed=1)
    assert cmmd(a, a).value == pytest.approx(0, abs=1e-12)
    shuffled = b[numpy_draws(0, "order").permutation(len(b))]
    assert cmmd(a, shuffled).value == pytest.approx(cmmd(a, b).value, rel=1e-9)
    assert cmmd(b, a).value == pytest.approx(cmmd(a, b).value, rel=1e-9)


def test_cmmd_says_how_sure_it_is():
    """Over many draws the floor is the mean without a difference, and the error the deviation with one."""
    null = [cmmd(drawn(60, 8, shift=1, seed=s), drawn(60, 8, shift=1, seed=s + 500)) for s in range(60)]
    values, floors = np.array([each.value for each in null]), [each.floor for each in null]
    assert abs(values.mean() - np.mean(floors)) < 4 * values.std() / math.sqrt(60)
    some = [cmmd(drawn(60, 8, shift=1, seed=s), drawn(60, 8, shift=2.5, seed=s + 500)) for s in range(60)]
    values = np.array([each.value for each in some])
    assert np.mean([each.standard_error for each in some]) == pytest.approx(values.std(), rel=0.3)


def test_what_is_refused():
    with pytest.raises(UserError, match="features of 1 images, allowed: 2 or more"):
        kernel_distance(drawn(1, 4), drawn(9, 4))
    with pytest.raises(UserError, match="width 4 and 5"):
        cmmd(drawn(9, 4), drawn(9, 5))
    with pytest.raises(UserError, match="length 0, allowed: features with a direction"):
        cmmd(np.zeros((3, 4), np.float32), drawn(9, 4))
