import numpy as np
import pytest
from prdc import compute_prdc

from lightgen.core.draws import numpy_draws
from lightgen.core.errors import UserError
from lightgen.evals import prdc as module
from lightgen.evals.prdc import prdc
from tests.evals.test_fidelity import drawn

NAMES = ("precision", "recall", "density", "coverage")


@pytest.mark.parametrize(("num", "other", "k"), [(120, 90, 5), (60, 200, 1), (40, 40, 12)])
@pytest.mark.parametrize("block", [2048, 16])
def test_as_the_package_of_its_authors_computes_it(num, other, k, block, monkeypatch, capsys):
    monkeypatch.setattr(module, "_BLOCK", block)
    real, fake = drawn(num, 6), drawn(other, 6, shift=0.8, scale=0.7, seed=1)
    wanted = compute_prdc(real.astype(np.float64), fake.astype(np.float64), k)
    found = prdc(real, fake, k)
    assert found.precision > 0 and 0 < found.recall < 1 and found.balls.std() > 0
    for name in NAMES:
        assert vars(found)[name] == pytest.approx(float(wanted[name]), rel=1e-12), name
    assert found.density == pytest.approx(found.balls.mean() / k)


def test_points_on_a_line():
    """With k = 1 balls reach to the neighbour: by 1, 1, 2, 4 of the real, by 0.5, 0.5, 18 of the others."""
    real, fake = np.array([[0.0], [1.0], [3.0], [7.0]]), np.array([[1.5], [2.0], [20.0]])
    found = prdc(real, fake, k=1)
    # 1.5 lies within 1 of 1 and within 2 of 3; 2 within 2 of 3, and on the border of the ball of 1
    assert found.balls.tolist() == [2, 1, 0]
    assert found.precision == pytest.approx(2 / 3) and found.density == pytest.approx(3 / 3)
    # 1 and 3 have a generated point nearer than their neighbour; 7 at 5 has not
    assert found.coverage == pytest.approx(2 / 4)
    # balls of .5 around 1.5 and 2 hold no real point (1 is on a border); that of 18 around 20 holds 3 and 7
    assert found.recall == pytest.approx(2 / 4)


def test_modes_that_are_missed_and_invented():
    modes = np.repeat(np.arange(4.0), 50)[:, None] * 100
    real = modes + numpy_draws(0, "a").standard_normal((200, 3))
    fake = modes + numpy_draws(0, "b").standard_normal((200, 3))
    all_right = prdc(real, fake)
    assert min(all_right.precision, all_right.recall, all_right.coverage) > 0.8
    dropped = prdc(real, fake[:100])
    assert dropped.precision > 0.8 and dropped.recall < 0.6 and dropped.coverage < 0.6
    invented = prdc(real[:100], fake)
    assert invented.precision < 0.6 and invented.recall > 0.8 and invented.coverage > 0.8
    away = prdc(real, fake + 1e4)
    assert (away.precision, away.recall, away.density, away.coverage) == (0, 0, 0, 0)
    order = numpy_draws(0, "order").permutation(200)
    assert prdc(real[order], fake[order]).balls.tolist() == all_right.balls[order].tolist()


def test_what_is_refused():
    with pytest.raises(UserError, match="prdc with k 5: got features of 5 images, allowed: 6 or more"):
        prdc(drawn(5, 4), drawn(9, 4))
    with pytest.raises(UserError, match="k 0, allowed: a whole number from 1"):
        prdc(drawn(9, 4), drawn(9, 4), 0)
    with pytest.raises(UserError, match="width 4 and 5"):
        prdc(drawn(9, 4), drawn(9, 5))
