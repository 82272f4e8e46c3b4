import math

import numpy as np
import pytest

from lightgen.core.draws import numpy_draws
from lightgen.core.errors import UserError
from lightgen.evals import diversity as module
from lightgen.evals.diversity import diversity, vendi_score


def rows(num, dim):
    return numpy_draws(0, "rows", num, dim).standard_normal((num, dim)) + 0.5


def cosines(x):
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    return unit @ unit.T


def vendi_of_all_pairs(x, order):
    shares = np.linalg.eigvalsh(cosines(x) / len(x))
    shares = shares[shares > 1e-9]
    if order == 1:
        return math.exp(-(shares * np.log(shares)).sum())
    return 1 / shares.max() if math.isinf(order) else (shares**order).sum() ** (1 / (1 - order))


@pytest.mark.parametrize(("num", "dim"), [(1, 5), (7, 20), (60, 8), (200, 31)])
@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
def test_numbers_are_those_of_all_pairs(monkeypatch, num, dim, kind):
    monkeypatch.setattr(module, "_CHUNK_BYTES", 4 * dim * 33)
    x = rows(num, dim).astype(kind)
    wide = x.astype(np.float64)
    found = diversity(x)
    assert found.num == num and found.coverage is None and found.num_cells == 0
    for order in (0, 0.5, 1, 2, math.inf):
        assert vendi_score(x, order) == pytest.approx(vendi_of_all_pairs(wide, order), rel=1e-4)
    assert found.vendi == vendi_score(x) and found.vendi_inf == vendi_score(x, math.inf)
    pairs = cosines(wide)[np.triu_indices(num, 1)]
    assert found.mean_distance == pytest.approx(1 - pairs.mean() if num > 1 else 0, abs=1e-5)


def test_closed_forms():
    same = np.repeat(rows(1, 6), 50, axis=0)
    assert diversity(same).vendi == pytest.approx(1, abs=1e-4)
    assert diversity(same).mean_distance == pytest.approx(0, abs=1e-6)
    apart = np.linalg.qr(rows(9, 9))[0]
    assert diversity(apart * np.arange(1, 10)[:, None]).vendi == pytest.approx(9, rel=1e-5)
    assert diversity(apart).mean_distance == pytest.approx(1, abs=1e-6)
    assert diversity(np.concatenate([apart, -apart])).mean_distance == pytest.approx(1 + 1 / 17, abs=1e-6)
    # two directions, 3 to 1
    shares = np.array([0.75, 0.25])
    mixed = np.repeat(np.eye(2), [75, 25], axis=0)
    assert vendi_score(mixed) == pytest.approx(math.exp(-(shares * np.log(shares)).sum()), rel=1e-5)
    assert vendi_score(mixed, math.inf) == pytest.approx(4 / 3, rel=1e-5)
    assert vendi_score(mixed, 2) == pytest.approx(1 / (shares**2).sum(), rel=1e-5)
    assert vendi_score(mixed, 0) == pytest.approx(2)


def test_length_and_order_of_rows_change_nothing():
    x = rows(80, 9)
    wanted = diversity(x)
    for other in (x[::-1], x * 1e-180, x * np.exp(rows(80, 1)), x * 1e180):
        found = diversity(other)
        assert found.vendi == pytest.approx(wanted.vendi, rel=1e-5)
        assert found.mean_distance == pytest.approx(wanted.mean_distance, abs=1e-6)


def test_cells():
    x = rows(12, 4)
    found = diversity(x, np.repeat([0, 1, 2], 4), 6)
    assert (found.num_cells, found.coverage) == (6, 0.5)
    assert found.effective_cells == pytest.approx(3) and found.entropy == pytest.approx(
        math.log(3) / math.log(6)
    )
    even = diversity(x, np.arange(12) % 4, 4)
    assert (
        even.coverage == 1 and even.entropy == pytest.approx(1) and even.effective_cells == pytest.approx(4)
    )
    one = diversity(x, np.zeros(12, np.int32), 1)
    assert (one.coverage, one.entropy, one.effective_cells) == (1, 1, 1)
    assert set(one.to_json()) >= {"vendi", "mean_distance", "coverage", "entropy", "num"}


def test_a_memory_map_is_as_good(tmp_path):
    x = rows(3000, 12).astype(np.float16)
    np.save(tmp_path / "x.npy", x)
    assert diversity(np.load(tmp_path / "x.npy", mmap_mode="r")) == diversity(x)


def test_bad_rows_are_one_line(monkeypatch):
    monkeypatch.setattr(module, "_CHUNK_BYTES", 4 * 4 * 3)
    for bad in (0.0, np.nan, np.inf):
        x = rows(10, 4)
        x[7] = bad
        with pytest.raises(UserError, match="row 7 is zero or not finite"):
            diversity(x)
    for x in (rows(10, 4)[0], rows(0, 4), rows(5, 4).astype(int)):
        with pytest.raises(UserError, match="allowed: floats of shape NxD, N from 1"):
            vendi_score(x)
