import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lightgen.core.artifact import begin_artifact
from lightgen.core.errors import UserError
from lightgen.ports.features import FeaturesConfig
from lightgen.ports.nano.features import NanoFeatures
from lightgen.stages import features as module
from lightgen.stages.engine import LOCAL
from lightgen.stages.features import (
    FeaturesPlace,
    default_cache,
    find_features,
    image_features,
    keep_features,
    read_features,
)
from lightgen.stages.inputs import open_images
from tests.ports.toy_encoders import save_encoder


class Counting:
    """An extractor of mean colours that counts the images it sees, and fails after some."""

    dim = 3

    def __init__(self, fails_after=None):
        self.seen, self.fails_after = 0, fails_after

    def features(self, images):
        if self.fails_after is not None and self.seen >= self.fails_after:
            raise KeyboardInterrupt
        self.seen += len(images)
        return images.mean((1, 2), dtype=np.float32)


@pytest.fixture
def extractor(monkeypatch):
    found = Counting()
    monkeypatch.setattr(FeaturesPlace, "load", lambda _: found)
    monkeypatch.setattr(module, "_SHARD", 5)
    return found


def run(path, out, cache=None, config=None):
    place = find_features(config or FeaturesConfig(batch_size=5))
    workspace = begin_artifact(out, "report", {}, [])
    with workspace:
        return image_features(
            LOCAL, workspace, "work/features", place, open_images([path]), path, cache, "these"
        )


def colours(path):
    return np.stack(
        [
            record.image.mean((0, 1), dtype=np.float32)
            for record in map(open_images([path]).__getitem__, range(12))
        ]
    )


def test_features_of_all_images_in_order(toy, tmp_path, extractor):
    found = run(toy.images.path, tmp_path / "a")
    assert found.dtype == np.float32 and extractor.seen == 12
    np.testing.assert_array_equal(found, colours(toy.images.path))
    files = sorted(path.name for path in (tmp_path / ".a.partial" / "work" / "features").iterdir())
    assert files == [f"features-0000{number}.safetensors" for number in range(3)]


def test_a_killed_run_goes_on(toy, tmp_path, extractor):
    extractor.fails_after = 5
    with pytest.raises(KeyboardInterrupt):
        run(toy.images.path, tmp_path / "a")
    extractor.fails_after = None
    np.testing.assert_array_equal(run(toy.images.path, tmp_path / "a"), colours(toy.images.path))
    assert extractor.seen == 12


def test_a_reference_is_looked_at_once(toy, tmp_path, extractor, capsys):
    cache = tmp_path / "cache"
    first = run(toy.images.path, tmp_path / "a", cache)
    again = run(toy.images.path, tmp_path / "b", cache)
    np.testing.assert_array_equal(again, first)
    assert extractor.seen == 12 and "12 found in" in capsys.readouterr().err
    assert not (tmp_path / ".b.partial").exists()
    run(toy.images.path, tmp_path / "c", cache, FeaturesConfig(batch_size=4))  # the same features
    assert extractor.seen == 12
    run(toy.images.path, tmp_path / "d")  # no cache: nobody is asked, nothing is kept
    assert extractor.seen == 24 and len(list(cache.glob("*.safetensors"))) == 1


def test_other_extractors_have_other_features(toy, tmp_path, extractor):
    cache = tmp_path / "cache"
    for number, family in enumerate(("dinov2", "clip")):
        config = FeaturesConfig(kind=family, model=str(save_encoder(family, tmp_path / family)))
        run(toy.images.path, tmp_path / "a", cache, config)
        assert len(list(cache.glob("*.safetensors"))) == number + 1
    rough = FeaturesConfig(kind="clip", model=str(tmp_path / "clip"), precision="bf16")
    run(toy.images.path, tmp_path / "b", cache, rough)
    assert len(list(cache.glob("*.safetensors"))) == 3


def flipped(data):
    return data[:-3] + bytes([data[-3] ^ 1]) + data[-2:]


@pytest.mark.parametrize(
    "damage", [flipped, lambda data: data[:-5], lambda _: b"", lambda data: data[:9] + b"x" + data[10:]]
)
def test_damaged_features_are_made_anew(toy, tmp_path, extractor, capsys, damage):
    cache = tmp_path / "cache"
    first = run(toy.images.path, tmp_path / "a", cache)
    (path,) = cache.glob("*.safetensors")
    whole = path.read_bytes()
    path.write_bytes(damage(whole))
    np.testing.assert_array_equal(run(toy.images.path, tmp_path / "b", cache), first)
    assert extractor.seen == 24 and "is damaged and is made anew" in capsys.readouterr().err
    assert path.read_bytes() == whole


def test_features_of_another_set_are_no_others(tmp_path, capsys):
    rows = np.arange(12, dtype=np.float32).reshape(4, 3)
    keep_features(tmp_path / "a.safetensors", rows)
    np.testing.assert_array_equal(read_features(tmp_path / "a.safetensors", 4), rows)
    assert read_features(tmp_path / "a.safetensors", 5) is None  # of other images
    (tmp_path / "a.safetensors").rename(tmp_path / "b.safetensors")
    assert read_features(tmp_path / "b.safetensors", 4) is None  # put in the place of others
    assert read_features(tmp_path / "c.safetensors", 4) is None
    assert capsys.readouterr().err.count("damaged") == 2


def test_what_was_half_written_is_never_read(tmp_path, monkeypatch):
    path = tmp_path / "cache" / "a.safetensors"
    rows = np.ones((4, 3), np.float32)

    def killed(self, data):
        with self.open("wb") as file:
            file.write(data[: len(data) // 2])
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "write_bytes", killed)
    with pytest.raises(KeyboardInterrupt):
        keep_features(path, rows)
    monkeypatch.undo()
    assert [each.name for each in path.parent.iterdir()] == ["a.lock"]
    assert read_features(path, 4) is None
    with module.lock_file(path.with_suffix(".lock")):
        keep_features(path, rows)  # another process is writing them
    assert not path.exists()
    keep_features(path, rows)
    assert path.exists()


def test_a_cache_that_cannot_be_written_is_said(toy, tmp_path, extractor, capsys):
    (tmp_path / "file").write_text("")
    assert run(toy.images.path, tmp_path / "a", tmp_path / "file" / "cache").shape == (12, 3)
    assert "features: not kept in" in capsys.readouterr().err


def test_a_public_set_is_known_by_its_images(tmp_path, extractor):
    """Not by names, sizes and times, which an exchanged file may share."""
    folder, cache = tmp_path / "set", tmp_path / "cache"
    folder.mkdir()
    for number in range(12):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(folder / f"{number:02}.png")
        (folder / f"{number:02}.txt").write_text("a red square")
    first = run(folder, tmp_path / "a", cache)
    (folder / "00.txt").write_text("another caption, which no extractor reads")
    np.testing.assert_array_equal(run(folder, tmp_path / "b", cache), first)
    assert extractor.seen == 12
    old = (folder / "05.png").stat()
    Image.new("RGB", (8, 8), (9, 0, 0)).save(folder / "05.png")
    os.utime(folder / "05.png", ns=(old.st_atime_ns, old.st_mtime_ns))
    assert (folder / "05.png").stat().st_size == old.st_size
    changed = run(folder, tmp_path / "c", cache)
    assert extractor.seen == 24 and changed[5].tolist() == [9, 0, 0]


def test_images_of_different_sizes(tmp_path, extractor):
    for number in range(12):
        Image.new("RGB", (8 + number // 4, 8), (number, 0, 0)).save(tmp_path / f"{number:02}.png")
        (tmp_path / f"{number:02}.txt").write_text("a square")
    assert run(tmp_path, tmp_path / "out" / "a")[:, 0].tolist() == list(range(12))


def test_features_that_are_not_finite_are_refused(toy, tmp_path, extractor, monkeypatch):
    monkeypatch.setattr(extractor, "features", lambda images: np.full((len(images), 3), np.nan, np.float32))
    with pytest.raises(UserError, match="record '.*': its nano features are not finite"):
        run(toy.images.path, tmp_path / "a")


def test_an_extractor_is_its_files_wherever_they_lie(toy, tmp_path):
    config = FeaturesConfig(kind="dinov2", model=str(save_encoder("dinov2", tmp_path / "a")))
    place = find_features(config)
    other = find_features(FeaturesConfig(kind="dinov2", model=str(save_encoder("dinov2", tmp_path / "b"))))
    assert place.identity() == other.identity() and "model.safetensors" in place.identity()
    assert place.load().features(np.zeros((2, 8, 8, 3), np.uint8)).shape == (2, 32)
    (tmp_path / "b" / "config.json").write_text((tmp_path / "b" / "config.json").read_text() + "\n")
    assert place.identity() != other.identity()
    shipped = find_features(FeaturesConfig())
    assert isinstance(shipped.load(), NanoFeatures)
    own = find_features(FeaturesConfig(model=str(toy.detector.path)))
    assert own.identity() != shipped.identity() and isinstance(own.load(), NanoFeatures)


def test_what_is_not_here_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "none"))
    with pytest.raises(UserError, match="hf download facebook/dinov2-large"):
        find_features(FeaturesConfig(kind="dinov2"))
    with pytest.raises(UserError, match="hf download openai/clip-vit-large-patch14-336"):
        find_features(FeaturesConfig(kind="clip"))
    with pytest.raises(UserError, match="got no model, allowed: the file weights-inception"):
        find_features(FeaturesConfig(kind="inception"))
    with pytest.raises(UserError, match="is no file"):
        find_features(FeaturesConfig(kind="inception", model=str(tmp_path / "x.pth")))
    with pytest.raises(UserError, match="no config.json"):
        find_features(FeaturesConfig(kind="dinov2", model=str(tmp_path)))
    with pytest.raises(UserError, match="batch size 0"):
        find_features(FeaturesConfig(batch_size=0))
    with pytest.raises(UserError, match="precision bf16, allowed: fp32"):
        find_features(FeaturesConfig(precision="bf16"))


def test_where_features_are_kept(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache() == tmp_path / "lightgen" / "features"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert default_cache() == Path.home() / ".cache" / "lightgen" / "features"
