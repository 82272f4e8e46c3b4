import io

import numpy as np
import pytest
from PIL import Image

from lightgen.core.draws import numpy_draws
from lightgen.core.errors import UserError
from lightgen.data import duplicates as module
from lightgen.data.duplicates import embedding_duplicates, hash_duplicates, perceptual_hash


def by_hand(near):
    """The rule in two loops: the earliest kept twin of each row."""
    stands = list(range(len(near)))
    for row in range(len(near)):
        twins = [each for each in range(row) if near[row][each] and stands[each] == each]
        if twins:
            stands[row] = twins[0]
    return stands


def scene(seed, height=200, width=260):
    """A smooth picture of chance."""
    random = numpy_draws(seed, "scene")
    coarse = random.integers(0, 256, (7, 9, 3)).astype(np.uint8)
    picture = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(picture)


def saved(image, format, **options):
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format, **options)
    return np.asarray(Image.open(buffer).convert("RGB"))


def resized(image, scale):
    height, width = image.shape[:2]
    return np.asarray(Image.fromarray(image).resize((int(width * scale), int(height * scale))))


CHANGES = {
    "jpeg": lambda image: saved(image, "JPEG", quality=60),
    "webp": lambda image: saved(image, "WEBP", quality=70),
    "smaller": lambda image: resized(image, 0.4),
    "larger": lambda image: resized(image, 1.7),
    "darker": lambda image: (image * 0.8).astype(np.uint8),
    "both": lambda image: saved(resized(image, 0.6), "JPEG", quality=75),
}


def test_a_hash_survives_what_leaves_a_picture_the_same():
    images = [scene(seed) for seed in range(25)]
    hashes = [perceptual_hash(image) for image in images]
    assert all(0 <= each < 2**64 for each in hashes)
    for change in CHANGES.values():
        bits = [(perceptual_hash(change(i)) ^ h).bit_count() for i, h in zip(images, hashes, strict=True)]
        assert max(bits) <= 4, bits
    others = [(a ^ b).bit_count() for i, a in enumerate(hashes) for b in hashes[:i]]
    assert min(others) >= 10 and 28 < np.mean(others) < 36
    turned = [
        (perceptual_hash(i[:, ::-1].copy()) ^ h).bit_count() for i, h in zip(images, hashes, strict=True)
    ]
    assert min(turned) > 10


def test_blank_pictures_are_one():
    blank = {
        perceptual_hash(np.full((h, w, 3), v, np.uint8))
        for h, w, v in ((64, 64, 0), (50, 99, 200), (1, 1, 7))
    }
    assert blank == {0}
    assert perceptual_hash(scene(0)) != 0


def noisy_hashes(num, base, flips):
    random = numpy_draws(0, "hashes", num)
    kinds = random.integers(0, 2**63, base, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
    hashes = kinds[random.integers(0, base, num)]
    for _ in range(flips):
        some = random.random(num) < 0.7
        hashes[some] ^= np.uint64(1) << random.integers(0, 64, some.sum()).astype(np.uint64)
    return hashes


@pytest.mark.parametrize("max_bits", [0, 1, 3, 4, 7, 8, 11])
def test_hashes_are_compared_as_by_hand(monkeypatch, max_bits):
    monkeypatch.setattr(module, "_BATCH", 32)  # many segments
    monkeypatch.setattr(module, "_PAIRS", 50)
    hashes = noisy_hashes(900, 30, 1 + max_bits)
    found = hash_duplicates(hashes, max_bits)
    assert found.dtype == np.int64
    assert found.tolist() == by_hand(np.bitwise_count(hashes[:, None] ^ hashes) <= max_bits)
    assert 10 < len(np.unique(found)) < 880


def test_hashes_that_differ_in_few_places_only():
    hashes = numpy_draws(0, "low").permutation(np.arange(1500).astype(np.uint64))
    found = hash_duplicates(hashes, 2)
    assert found.tolist() == by_hand(np.bitwise_count(hashes[:, None] ^ hashes) <= 2)


def test_no_chain_joins_what_differs():
    steps = np.array([0, 0b1, 0b11, 0b111, 0b1111], np.uint64)
    assert hash_duplicates(steps, 1).tolist() == [0, 0, 2, 2, 4]
    assert hash_duplicates(steps[::-1].copy(), 2).tolist() == [0, 0, 0, 3, 3]
    angles = np.radians([0, 10, 20, 30, 40])
    turned = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    assert embedding_duplicates(turned, np.cos(np.radians(11))).tolist() == [0, 0, 2, 2, 4]
    assert embedding_duplicates(turned, np.cos(np.radians(21))).tolist() == [0, 0, 0, 3, 3]


def test_a_million_equal_or_different_hashes():
    assert (hash_duplicates(np.full(1_000_000, 77, np.uint64), 7) == 0).all()
    different = numpy_draws(0, "many").integers(0, 2**63, 100_000, dtype=np.uint64)
    found = hash_duplicates(np.concatenate([different, different]), 3)
    assert (found[100_000:] == found[:100_000]).all()
    assert (found[:100_000] == np.arange(100_000)).mean() > 0.999


def noisy_rows(num, kinds, dim=16, noise=0.12):
    random = numpy_draws(0, "rows", num)
    centres = random.standard_normal((kinds, dim))
    return (centres[random.integers(0, kinds, num)] + noise * random.standard_normal((num, dim))).astype("f4")


def cosines(x):
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    return unit @ unit.T


@pytest.mark.parametrize("min_cosine", [0.5, 0.95, 0.99])
def test_embeddings_are_compared_as_by_hand(min_cosine):
    x = noisy_rows(1300, 200)
    found = embedding_duplicates(x, min_cosine)
    assert found.dtype == np.int64
    assert found.tolist() == by_hand(cosines(x) >= min_cosine)
    assert (found == embedding_duplicates(x * 7, min_cosine)).all()


@pytest.mark.parametrize("blocks", [1, 5])
def test_cells_find_what_comparing_all_finds(monkeypatch, tmp_path, blocks):
    x = noisy_rows(6000, 2000)
    wanted = embedding_duplicates(x, 0.95)
    monkeypatch.setattr(module, "EXACT_ROWS", 100)
    monkeypatch.setattr(module, "INDEX_BYTES", 4 * 16 * 6000 // blocks)
    np.save(tmp_path / "x.npy", x)
    found = embedding_duplicates(np.load(tmp_path / "x.npy", mmap_mode="r"), 0.95)
    assert (found == wanted).mean() > 0.99 and (wanted != np.arange(6000)).mean() > 0.5
    # whatever is missed, what is found obeys the rule
    dropped = np.flatnonzero(found != np.arange(6000))
    assert (found[dropped] < dropped).all() and (found[found[dropped]] == found[dropped]).all()
    assert (cosines(x)[dropped, found[dropped]] >= 0.95 - 1e-5).all()
    assert (embedding_duplicates(x, 0.95) == found).all()


def test_equal_rows_are_twins_at_cosine_one(monkeypatch):
    x = np.repeat(noisy_rows(40, 40), 50, axis=0)
    wanted = (np.arange(2000) // 50 * 50).tolist()
    assert embedding_duplicates(x, 1.0).tolist() == wanted
    monkeypatch.setattr(module, "EXACT_ROWS", 100)
    assert embedding_duplicates(x, 1.0).tolist() == wanted
    assert (embedding_duplicates(np.ones((3000, 4), np.float16), 0.9) == 0).all()


def test_few_and_empty():
    assert embedding_duplicates(np.zeros((0, 4), np.float32), 0.9).tolist() == []
    assert embedding_duplicates(np.ones((1, 4), np.float32), 0.9).tolist() == [0]
    assert embedding_duplicates(np.zeros((2, 4), np.float32), 0.9).tolist() == [0, 1]
    assert hash_duplicates(np.zeros(0, np.uint64), 3).tolist() == []
    assert hash_duplicates(np.array([5], np.uint64), 0).tolist() == [0]


def test_bad_input_is_one_line():
    x = noisy_rows(10, 3)
    for call, told in (
        (lambda: hash_duplicates(np.zeros(3, np.uint64), 12), "got 12 bits, allowed: 0 to 11"),
        (lambda: hash_duplicates(np.zeros(3, np.uint64), -1), "got -1 bits"),
        (lambda: hash_duplicates(np.zeros(3, np.int64), 1), "got int64 of 1 axes, allowed: uint64"),
        (lambda: embedding_duplicates(x, 1.1), "cosine of 1.1, allowed: above -1, up to 1"),
        (lambda: embedding_duplicates(x, float("nan")), "cosine of nan"),
        (lambda: embedding_duplicates(x[0], 0.9), "shape 16, allowed"),
    ):
        with pytest.raises(UserError, match=told):
            call()
    x[3, 1] = np.inf
    with pytest.raises(UserError, match="row 3 holds no finite number"):
        embedding_duplicates(x, 0.9)
