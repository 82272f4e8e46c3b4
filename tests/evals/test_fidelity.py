import math

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from torchmetrics.image.fid import FrechetInceptionDistance

from lightgen.core.draws import numpy_draws
from lightgen.core.errors import UserError
from lightgen.evals.fidelity import (
    feature_statistics,
    frechet,
    frechet_distance,
    halves_distance,
    normal_interval,
)


def drawn(num, dim, shift=0.0, scale=1.0, seed=0):
    """Rows of unequal and correlated columns."""
    mix = numpy_draws(9, "mix", dim).standard_normal((dim, dim)) * np.linspace(1, 0.05, dim)
    return (numpy_draws(seed, "rows", num, dim).standard_normal((num, dim)) @ mix * scale + shift).astype(
        np.float32
    )


class Identity(torch.nn.Module):
    def __init__(self, num_features):
        super().__init__()
        self.num_features = num_features

    def forward(self, features):
        return features


def test_two_gaussians_of_known_moments():
    variances = np.array([4.0, 1.0, 0.25]), np.array([1.0, 9.0, 0.25])
    found = frechet_distance(np.zeros(3), np.diag(variances[0]), np.array([0, 1, 2]), np.diag(variances[1]))
    assert found == pytest.approx(1 + 4 + (2 - 1) ** 2 + (1 - 3) ** 2, rel=1e-14)
    a, b = np.array([[2.0, 0.5], [0.5, 1.0]]), np.array([[1.0, -0.7], [-0.7, 3.0]])  # which do not commute
    root = math.sqrt(np.trace(a @ b) + 2 * math.sqrt(np.linalg.det(a @ b)))
    assert frechet_distance(np.zeros(2), a, np.zeros(2), b) == pytest.approx(7 - 2 * root, rel=1e-13)


def test_a_distribution_without_width_is_a_point():
    cov, nothing = np.diag([1.0, 4.0]), np.zeros((2, 2))
    assert frechet_distance(np.zeros(2), cov, np.array([3.0, 0]), nothing) == pytest.approx(9 + 5)
    assert frechet_distance(np.zeros(2), nothing, np.zeros(2), nothing) == 0


@pytest.mark.parametrize(("num", "other", "dim"), [(900, 700, 24), (60, 50, 200)])
def test_as_scipy_and_torchmetrics_compute_it(num, other, dim):
    a, b = drawn(num, dim), drawn(other, dim, shift=0.3, scale=1.2, seed=1)
    found = frechet(a, b)
    first, second = np.cov(a.astype(np.float64).T), np.cov(b.astype(np.float64).T)
    apart = a.mean(0, dtype=np.float64) - b.mean(0, dtype=np.float64)
    root = sqrtm(first @ second).real
    assert found == pytest.approx(apart @ apart + np.trace(first + second - 2 * root), rel=1e-6)
    metric = FrechetInceptionDistance(feature=Identity(dim)).set_dtype(torch.float64)
    metric.update(torch.from_numpy(a).double(), real=True)
    metric.update(torch.from_numpy(b).double(), real=False)
    assert found == pytest.approx(float(metric.compute()), rel=1e-6)


def test_a_shift_adds_its_square_and_order_nothing():
    a = drawn(300, 12)
    far = (a.astype(np.float64) + np.arange(12) / 7).astype(np.float64)
    assert frechet(a, a) == pytest.approx(0, abs=1e-10)
    assert frechet(a.astype(np.float64), far) == pytest.approx(((np.arange(12) / 7) ** 2).sum(), rel=1e-10)
    b = drawn(280, 12, shift=0.2, seed=3)
    shuffled = b[numpy_draws(0, "order").permutation(len(b))]
    assert frechet(a, b) == pytest.approx(frechet(a, shuffled), rel=1e-10)
    assert frechet(a, b) == pytest.approx(frechet(b, a), rel=1e-10)


def test_fewer_images_than_features():
    """All the mass lies in few directions: those that are empty must not add their rounding errors."""
    a, b = drawn(20, 400), drawn(30, 400, seed=1)
    centered = [(x - x.mean(0)).astype(np.float64) / math.sqrt(len(x) - 1) for x in (a, b)]
    shared = np.linalg.svd(centered[0] @ centered[1].T, compute_uv=False).sum()
    apart = a.mean(0, dtype=np.float64) - b.mean(0, dtype=np.float64)
    wanted = apart @ apart + sum((x**2).sum() for x in centered) - 2 * shared
    assert frechet(a, b) == pytest.approx(wanted, rel=1e-6)
    assert frechet(a, a) == pytest.approx(0, abs=1e-9 * np.trace(np.cov(a.T)))


def test_statistics_merge_shards_in_their_order():
    rows = drawn(1000, 17, shift=50)
    whole = feature_statistics([rows])
    parts = [rows[:100], rows[100:101], rows[101:101], rows[101:]]
    merged = feature_statistics(parts)
    assert merged.num == whole.num == 1000
    np.testing.assert_allclose(merged.mean, rows.mean(0, dtype=np.float64), rtol=1e-12)
    np.testing.assert_allclose(merged.cov, np.cov(rows.astype(np.float64).T), rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(whole.cov, merged.cov, rtol=1e-10, atol=1e-10)
    again = feature_statistics(iter(parts))
    assert (again.cov == merged.cov).all() and (again.mean == merged.mean).all()


def test_halves_show_what_no_difference_looks_like():
    """The bias of the distance shrinks about as one over the number of images."""
    few, many = halves_distance(drawn(200, 16)), halves_distance(drawn(1600, 16))
    assert 4 < few / many < 16
    assert frechet(drawn(1600, 16), drawn(1600, 16, shift=1, seed=1)) > 10 * many
    assert halves_distance(drawn(200, 16), seed=1) != few == halves_distance(drawn(200, 16))


def test_an_interval_of_a_normal_distribution():
    assert normal_interval(2.0, 0.5, 0.95) == pytest.approx((2 - 0.979982, 2 + 0.979982), abs=1e-6)


def test_what_no_distance_is_of():
    with pytest.raises(UserError, match="features of 1 images, allowed: 2 or more"):
        frechet(drawn(1, 4), drawn(9, 4))
    with pytest.raises(UserError, match="width 4 and 5, allowed: one width"):
        frechet(drawn(9, 4), drawn(9, 5))
    with pytest.raises(UserError, match="widths 4 and 5, allowed: one width"):
        feature_statistics([drawn(9, 4), drawn(9, 5)])
    with pytest.raises(UserError, match="not finite"):
        frechet(np.full((3, 4), np.nan), drawn(9, 4))
    with pytest.raises(UserError, match=r"uint8 \(3, 4\), allowed: floats"):
        frechet(np.zeros((3, 4), np.uint8), drawn(9, 4))
    with pytest.raises(UserError, match="3 images to halve, allowed: 4 or more"):
        halves_distance(drawn(3, 4))
