import itertools

import numpy as np
import pytest

from lightgen.core.draws import numpy_draws
from lightgen.core.errors import UserError
from lightgen.data import clusters
from lightgen.data import select as module
from lightgen.data.clusters import find_centroids, members, nearest_cells, partition, unit_rows
from lightgen.data.select import fill, select
from lightgen.evals.diversity import diversity

HOWS = ("random", "balanced", "k-center", "facility")


def rows(num, dim=8, name="rows"):
    return numpy_draws(0, name, num, dim).standard_normal((num, dim)).astype(np.float32)


def unit(x):
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def skewed(num=3000, dim=16):
    """Rows of which 95 of 100 lie near one point, and the rest anywhere."""
    x = rows(num, dim, "skewed")
    crowd = np.arange(num) % 20 != 7
    x[crowd] = rows(1, dim, "point") * 3 + 0.2 * x[crowd]
    return x


def radius(x, chosen):
    return (1 - unit(x) @ unit(x[list(chosen)]).T).min(axis=1).max()


def served(x, chosen):
    return (1 + unit(x) @ unit(x[list(chosen)]).T).max(axis=1).sum()


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize(("size", "num"), [(1, 1), (9, 1), (9, 8), (9, 9), (700, 333)])
def test_exactly_as_many_different_rows_in_order(how, size, num):
    found = select(rows(size), num, how, seed=5)
    assert found.dtype == np.int64 and len(found) == num
    assert (np.diff(found) > 0).all() and found[0] >= 0 and found[-1] < size
    assert (found == select(rows(size).astype(np.float64), num, how, seed=5)).all()


@pytest.mark.parametrize("how", HOWS)
def test_every_part_and_round_keeps_the_number(monkeypatch, how):
    monkeypatch.setattr(module, "PART_ROWS", 64)
    x = skewed(1500)
    for num in (1, 5, 40, 600, 1499):
        found = select(x, num, how)
        assert len(np.unique(found)) == num == len(found)
        assert (found == select(x, num, how)).all()


def test_only_directions_count_in_any_type_and_from_a_file(tmp_path):
    x = rows(500)
    wanted = {how: select(x, 50, how) for how in HOWS}
    scaled = x * np.exp(rows(500, 1, "scale"))
    path = tmp_path / "x.npy"
    np.save(path, x.astype(np.float32))
    for how in HOWS:
        assert (select(np.load(path, mmap_mode="r"), 50, how) == wanted[how]).all()
        assert np.isin(select(scaled, 50, how), wanted[how]).mean() > 0.9  # but for ties in the last bit


@pytest.mark.parametrize("how", HOWS[1:])
def test_another_seed_and_chunk(monkeypatch, how):
    monkeypatch.setattr(module, "PART_ROWS", 64)
    x = skewed(1500)
    first = select(x, 100, how)
    assert (select(x, 100, how, seed=1) != first).any()
    monkeypatch.setattr(clusters, "CHUNK_BYTES", 4 * 16 * 100)
    assert np.isin(select(x, 100, how), first).mean() > 0.95


def test_k_center_is_at_most_twice_the_best_radius():
    for trial in range(6):
        x = rows(11, 3, f"trial {trial}")
        for num in (1, 2, 3, 4):
            best = min(radius(x, each) for each in itertools.combinations(range(11), num))
            # by angle, in which the triangle holds; 1 - cosine grows with it
            angles = [np.arccos(np.clip(1 - r, -1, 1)) for r in (radius(x, select(x, num, "k-center")), best)]
            assert angles[0] <= 2 * angles[1] + 1e-3


def test_facility_reaches_its_bound_and_is_the_plain_greedy():
    for trial in range(6):
        x = rows(12, 3, f"trial {trial}")
        plain: list[int] = []
        for num in range(1, 6):
            best = max(served(x, each) for each in itertools.combinations(range(12), num))
            found = select(x, num, "facility")
            assert served(x, found) >= (1 - 1 / np.e) * best
            left = [row for row in range(12) if row not in plain]
            plain.append(max(left, key=lambda row: served(x, [*plain, row])))
            assert sorted(plain) == found.tolist()


def test_weights_serve_as_many_rows():
    x = rows(40, 4)
    counts = 1 + np.arange(40) % 5
    table = unit(x) @ unit(x).T
    order, values = module._facility(table.copy(), counts.astype(np.float32), 7, -np.inf)
    repeated = x.repeat(counts, axis=0)
    wide = unit(repeated) @ unit(repeated).T
    other, others = module._facility(wide, np.ones(len(repeated), np.float32), 7, -np.inf)
    assert np.arange(40).repeat(counts)[other].tolist() == order.tolist()
    np.testing.assert_allclose(values, others, rtol=1e-4)
    assert (np.diff(values) <= 0).all()


@pytest.mark.parametrize("how", ["k-center", "facility"])
def test_parts_do_nearly_as_well_as_the_whole(monkeypatch, how):
    x = skewed(2500)
    whole = select(x, 300, how)
    monkeypatch.setattr(module, "PART_ROWS", 128)
    parts = select(x, 300, how)
    chance = select(x, 300, "random")
    assert (whole != parts).mean() > 0.02
    if how == "facility":
        gain = served(x, parts) - served(x, chance), served(x, whole) - served(x, chance)
    else:
        gain = radius(x, chance) - radius(x, parts), radius(x, chance) - radius(x, whole)
    assert 0.8 * gain[1] < gain[0]


@pytest.mark.parametrize("how", HOWS[1:])
def test_a_choice_of_a_skewed_pool_is_more_diverse_than_chance(how):
    x = skewed()
    centroids = find_centroids(x, 60, 0, by_spread=True)
    measured = {
        each: diversity(x[chosen], nearest_cells(x[chosen], centroids)[:, 0], 60)
        for each in ("random", how)
        for chosen in [select(x, 150, each)]
    }
    chance, found = measured["random"], measured[how]
    assert chance.coverage is not None and found.coverage is not None
    assert found.vendi > 1.3 * chance.vendi and found.mean_distance > chance.mean_distance
    assert found.coverage > chance.coverage


def test_equal_rows_are_chosen_only_where_nothing_else_is_left(monkeypatch):
    x = np.concatenate([np.repeat(rows(1), 300, axis=0), rows(20, name="others")])
    for parts in (4096, 50):
        monkeypatch.setattr(module, "PART_ROWS", parts)
        assert np.isin(np.arange(300, 320), select(x, 30, "k-center")).all()
        assert len(np.unique(select(x, 310, "k-center"))) == len(np.unique(select(x, 310, "facility"))) == 310


def test_level_of_the_quotas():
    assert fill(np.array([1, 10, 4, 0]), 9, 0).tolist() == [1, 4, 4, 0]
    assert fill(np.array([3, 3]), 6, 0).tolist() == [3, 3]
    assert fill(np.array([3, 3]), 0, 0).tolist() == [0, 0]
    uneven = [tuple(fill(np.array([5, 5, 5, 1]), 9, seed).tolist()) for seed in range(20)]
    assert {sum(each) for each in uneven} == {9} and {max(each) for each in uneven} == {3}
    assert len(set(uneven)) == 3 and {each[3] for each in uneven} == {1}


def test_balanced_gives_small_regions_their_share():
    crowds = ((3600, 0.02), (240, 0.3), (36, 0.3))  # rows and how wide they lie
    x = np.concatenate([rows(1, name=f"{num}") + wide * rows(num) for num, wide in crowds])
    edges = (0, 3600, 3840, 3876)
    counts = {how: np.histogram(select(x, 60, how), edges)[0] for how in ("random", "balanced")}
    assert counts["random"][0] > 50 and counts["balanced"][0] < 30
    assert (counts["balanced"][1:] >= 5 + counts["random"][1:]).all()


def test_partition_covers_every_row_once():
    x = skewed(2000)
    chosen = np.arange(0, 2000, 2)
    parts = partition(x, 100, 0, chosen)
    assert max(map(len, parts)) <= 100 and min(map(len, parts)) >= 1
    assert sorted(np.concatenate(parts).tolist()) == list(range(1000))
    # what lies together is together: parts are tighter than the whole
    within = np.mean([np.ptp(unit(x[chosen[each]]), axis=0).mean() for each in parts if len(each) > 3])
    assert within < 0.8 * np.ptp(unit(x[chosen]), axis=0).mean()
    same = partition(np.ones((1000, 3), np.float32), 100, 0, np.arange(1000))
    assert [len(each) for each in same] == [100] * 10


def test_cells_are_the_nearest():
    x, centroids = rows(300), find_centroids(rows(300), 12, 0)
    np.testing.assert_allclose(np.linalg.norm(centroids, axis=1), 1, atol=1e-5)
    wanted = np.argsort(-(unit(x) @ centroids.T), axis=1)[:, :3]
    assert (nearest_cells(x, centroids, 3) == wanted).mean() > 0.99
    assert (nearest_cells(x, centroids, 1, np.arange(7, 90))[:, 0] == wanted[7:90, 0]).mean() > 0.98
    assert (find_centroids(x, 12, 0) == centroids).all() and (find_centroids(x, 12, 1) != centroids).any()
    assert [each.tolist() for each in members(np.array([2, 0, 2]), 4)] == [[1], [], [0, 2], []]


def test_rows_of_extreme_length_keep_their_direction():
    x = rows(6).astype(np.float64) * np.array([1e-200, 1e200, 1, 1e-30, 1e30, 0])[:, None]
    found = unit_rows(x, slice(0, 6))
    np.testing.assert_allclose(found[:5], unit(rows(6))[:5], atol=1e-6)
    assert (found[5] == 0).all()
    half = (100 * rows(6)).astype(np.float16)
    np.testing.assert_allclose(np.linalg.norm(unit_rows(half, np.array([4, 1])), axis=1), 1, atol=1e-6)


def test_bad_input_is_one_line(monkeypatch):
    x = rows(10)
    for given, told in (
        ((x, 0, "random"), "got 0 rows to choose of 10, allowed: 1 to 10"),
        ((x, 11, "k-center"), "got 11 rows"),
        ((x[:0], 1, "random"), "of 0, allowed"),
        ((x, 3, "best"), "how 'best' is unknown, allowed: random, k-center, facility, balanced"),
        ((x[0], 3, "random"), "float32 of shape 8, allowed: floats of shape NxD"),
        ((x.astype(np.int64), 3, "facility"), "got int64 of shape 10x8"),
    ):
        with pytest.raises(UserError, match=told):
            select(*given)
    x[7, 2] = np.nan
    for how in HOWS[1:]:
        with pytest.raises(UserError, match="row 7 holds no finite number"):
            select(x, 3, how)

    def missing(name):
        raise ImportError(name)

    monkeypatch.setattr(clusters.importlib, "import_module", missing)
    with pytest.raises(UserError, match=r"pip install 'lightgen\[curate\]'"):
        select(rows(10), 3, "balanced")
    assert len(select(rows(10), 3, "k-center")) == 3  # some thousands of rows need no faiss
