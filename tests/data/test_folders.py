"""Folders of images with their captions beside them: what counts, what is left out, and nothing outside."""

import json
import os
import threading
from pathlib import Path

import numpy as np
import pytest

from lightgen.core.draws import numpy_draws
from lightgen.core.errors import UserError
from lightgen.data.folders import FolderPairs
from lightgen.data.images import CorruptRecord, encode_image, write_encoded_shard
from lightgen.data.names import Names, has_twins
from lightgen.data.sidecar import find_caption, read_sidecar
from lightgen.data.tar import split_name


def _image(key: int) -> np.ndarray:
    return numpy_draws(0, "test", key).integers(0, 256, (5, 7, 3), dtype=np.uint8)


def _fill(place: Path, files: dict[str, bytes]) -> None:
    for name, data in files.items():
        path = place / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def _reasons(pairs: FolderPairs) -> dict[str, str]:
    return {each.name: each.reason for each in pairs.skipped}


PNG = encode_image(_image(0))


def test_pairs_of_all_folders_are_records(tmp_path: Path) -> None:
    files = {
        "b.png": PNG,
        "b.txt": "\ufeffa caf\u00e9 \n".encode(),
        "a/x.v1.JPG": encode_image(_image(1), "jpg"),
        "a/x.v1.json": json.dumps({"caption": ["one", "two"], "score": float("nan"), "seed": 3}).encode(),
        "a/deep/50%.webp": encode_image(_image(2), "webp"),
        "a/deep/50%.txt": b"half",
        "a/deep/50%.json": b'{"text": "of the JSON"}',
    }
    _fill(tmp_path, files)
    pairs = FolderPairs(tmp_path)
    assert [pairs.key(i) for i in range(3)] == ["b", "a/x%2Ev1", "a/deep/50%25"] and not pairs.skipped
    assert [pairs.meta(i) for i in range(3)] == [
        {"prompt": "a caf\u00e9"},
        {"prompt": "one", "caption": ["one", "two"], "score": None, "seed": 3},
        {"prompt": "half", "text": "of the JSON"},
    ]
    assert np.array_equal(pairs[0].image, _image(0)) and pairs[1].image.shape == (5, 7, 3)
    assert [pairs.encoded(i).suffix for i in range(3)] == ["png", "jpg", "webp"]
    assert pairs.encoded(0).data == PNG and pairs.size == sum(map(len, files.values()))
    for i in (-1, 3):
        for read in (pairs.__getitem__, pairs.meta, pairs.key, pairs.encoded):
            with pytest.raises(IndexError):
                read(i)
    assert FolderPairs(tmp_path).digest == pairs.digest
    (tmp_path / "b.txt").write_bytes(b"longer than before")
    assert FolderPairs(tmp_path).digest != pairs.digest
    # every key is one that a shard can hold
    assert write_encoded_shard(tmp_path / "all.tar", map(pairs.encoded, range(3))) == 3


def test_what_is_left_out_is_told(tmp_path: Path) -> None:
    outside, place = tmp_path / "outside", tmp_path / "in"
    _fill(outside, {"secret.png": PNG, "secret.txt": b"secret", "more/c.png": PNG, "more/c.txt": b"c"})
    good = {"a.png": PNG, "a.txt": b"a"}
    _fill(place, {**good, "a.jpg": PNG, "lone.png": PNG, "words.txt": b"w", "notes.md": b"n", "noend": b""})
    _fill(
        place, {".cache/x.png": PNG, ".cache/x.txt": b"x", "big.json": b" " * ((1 << 20) + 1), "big.png": PNG}
    )
    _fill(place, {"new\nline.png": PNG, "new\nline.txt": b"n", "back\\slash/s.png": PNG})
    (place / "linked.png").symlink_to(outside / "secret.png")
    (place / "linked.txt").symlink_to(outside / "secret.txt")
    (place / "folder").symlink_to(outside / "more")
    (place / "loop").symlink_to(place)
    (place / "gone.png").symlink_to(place / "nothing")
    os.mkfifo(place / "pipe.png")
    with open(os.fsencode(place) + b"/\xff.png", "wb") as file:
        file.write(PNG)
    pairs = FolderPairs(place)
    # of a.jpg and a.png, the first by name counts
    assert [pairs.key(i) for i in range(len(pairs))] == ["a"]
    reasons = _reasons(pairs)
    assert {name for name, reason in reasons.items() if reason == "link"} == {
        *("linked.png", "linked.txt", "folder", "loop", "gone.png"),
    }
    assert reasons["a.png"] == "duplicate"
    assert reasons["lone.png"] == "no JSON or txt" and reasons["words"] == "no image"
    assert reasons["notes.md"] == reasons["noend"] == "neither image, JSON nor txt"
    assert reasons["pipe.png"] == "device or unknown kind" and reasons[".cache"] == "hidden"
    assert reasons["new\nline.png"] == reasons["back\\slash"] == reasons["\\xff.png"] == "unsafe name"
    assert reasons["big.json"] == "1048577 bytes, allowed: up to 1048576"


def test_a_folder_that_changes_is_no_way_out(tmp_path: Path) -> None:
    place = tmp_path / "in"
    _fill(place, {"a.png": PNG, "a.txt": b"a", "b.png": PNG, "b.txt": b"b", "c.png": PNG, "c.txt": b"c"})
    (tmp_path / "secret").write_bytes(PNG)
    pairs = FolderPairs(place)
    (place / "a.png").unlink()
    (place / "a.png").symlink_to(tmp_path / "secret")
    (place / "b.txt").unlink()
    os.truncate(place / "c.png", (64 << 20) + 1)
    for i, told in enumerate(("a.png: no plain file", "b.txt: no plain file", "c.png: more than 67108864")):
        with pytest.raises(CorruptRecord, match=told):
            pairs.encoded(i)


def test_folders_without_pairs_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such directory"):
        FolderPairs(tmp_path / "x")
    (tmp_path / "a.png").write_bytes(PNG)
    with pytest.raises(UserError, match=r"no image with a caption beside it \(1 files skipped\)"):
        FolderPairs(tmp_path)


def test_records_that_cannot_be_read_name_their_file(tmp_path: Path) -> None:
    bad = {"a": b"\xff\xfe", "b": b"", "c": b"  \n"}
    _fill(tmp_path, {f"{key}.txt": data for key, data in bad.items()} | {f"{key}.png": PNG for key in bad})
    _fill(
        tmp_path, {"d.json": b"[1]", "d.png": PNG, "e.json": b"{", "e.png": PNG, "f.png": b"x", "f.txt": b"f"}
    )
    pairs = FolderPairs(tmp_path)
    told = ["not UTF-8", "no caption", "no caption", "not an object", "cannot be read", "not a whole PNG"]
    for i, words in enumerate(told):
        with pytest.raises(CorruptRecord, match=rf"^{'abcdef'[i]}\.png: .*{words}") as caught:
            pairs[i]
        assert "\n" not in str(caught.value)


def test_threads_may_share_a_reader(tmp_path: Path) -> None:
    _fill(tmp_path, {f"{i:02d}.png": encode_image(_image(i)) for i in range(20)})
    _fill(tmp_path, {f"{i:02d}.txt": str(i).encode() for i in range(20)})
    pairs, found = FolderPairs(tmp_path), {}

    def read(part: int) -> None:
        found.update({i: pairs[i] for i in range(part, 20, 4)})

    threads = [threading.Thread(target=read, args=(part,)) for part in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(
        np.array_equal(found[i].image, _image(i)) and found[i].meta["prompt"] == str(i) for i in range(20)
    )


@pytest.mark.parametrize(
    ("meta", "text", "told", "caption"),
    [
        ({"prompt": "p", "caption": "c"}, "t", None, "p"),
        ({"caption": "c", "text": "x"}, "t", None, "t"),
        ({"caption": "c", "text": "x"}, None, None, "c"),
        ({"text": "x", "description": "d"}, None, None, "x"),
        ({"prompt": " ", "caption": None, "long_caption": ["l"]}, "", None, "l"),
        ({"prompt": "p", "other": "o"}, "t", "other", "o"),
        ({"prompt": "p"}, "t", "txt", "t"),
        ({"prompt": "a\ud800b"}, None, None, "a?b"),
        ({"prompt": ""}, None, None, ""),
    ],
)
def test_the_order_of_captions(meta: dict, text: str | None, told: str | None, caption: str) -> None:
    assert find_caption(meta, text, told) == caption
    data = json.dumps(meta).encode()
    assert read_sidecar(data, None if text is None else text.encode(), told)["prompt"] == caption


def test_captions_that_are_none() -> None:
    for meta, told in (
        ({}, None),
        ({"prompt": 1}, None),
        ({"caption": [], "text": {}}, None),
        ({"prompt": "p"}, "x"),
    ):
        with pytest.raises(ValueError, match="no caption"):
            find_caption(meta, None, told)
    numbers = read_sidecar(b'{"prompt": "a", "b": 1e999, "c": -Infinity, "d": 2.5}', None)
    assert numbers == {"prompt": "a", "b": None, "c": None, "d": 2.5}
    for data in (b'{"prompt": ' + b"9" * 5000 + b"}", b"[" * 99_999, b"\xff"):
        with pytest.raises(ValueError, match="its JSON cannot be read"):
            read_sidecar(data, None)


def test_names_take_little_and_come_back() -> None:
    names = Names()
    for name in ("a", "", "caf\u00e9/\u732b", "\udcff"):
        names.append(name)
    assert (
        list(names) == ["a", "", "caf\u00e9/\u732b", "\udcff"]
        and len(names) == 4
        and names[2] == "caf\u00e9/\u732b"
    )
    for i in (-1, 4):
        with pytest.raises(IndexError):
            names[i]
    assert not has_twins(names)
    names.append("a")
    assert has_twins(names)
    assert split_name("a/b.png") == ("a/b", "png")
