"""Captions of other people's files: what is read, what is told, and what stays whole."""

import importlib
import io
import json
import tarfile
from pathlib import Path

import pytest

from lightgen.core.errors import UserError
from lightgen.core.prompt import Prompt
from lightgen.data import caption_sources
from lightgen.data.caption_sources import BadCaption, read_captions, read_set


def read(path: Path, column: str | None = None) -> tuple[list[str], list[BadCaption]]:
    bad: list[BadCaption] = []
    return [prompt.prompt for prompt in read_captions(path, bad.append, column)], bad


def test_text_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.TXT"
    path.write_bytes("\ufeffa cat\r\n\n  \r\nb\u2028c\nnul\0nul\n".encode() + b"\xff\xfe\n" + b"last")
    assert read(path) == (
        ["a cat", "b\u2028c", "nul\0nul", "last"],
        [BadCaption("a.TXT:6", "not UTF-8 at byte 1")],
    )
    origins = [prompt.origin for prompt in read_captions(path, lambda bad: None)]
    assert origins == ["a.TXT:1", "a.TXT:4", "a.TXT:5", "a.TXT:7"]
    monkeypatch.setattr(caption_sources, "MAX_LINE_BYTES", 8)
    path.write_bytes(b"12345678\n" + b"x" * 1000 + b"\nshort\n" + b"y" * 9)
    texts, bad = read(path)
    assert texts == ["12345678", "short"]
    assert [each.origin for each in bad] == ["a.TXT:2", "a.TXT:4"]
    path.write_bytes(b"")
    assert read(path) == ([], [])


def test_json_lines(tmp_path: Path) -> None:
    lines = [
        b'\xef\xbb\xbf{"prompt": "a", "caption": "no", "tag": "of another tool", "source": 5}',
        b'{"caption": "b\\u2028"}',
        b"",
        b'{"text": "c", "prompt": 5}',
        b"{",
        b'"d"',
        b'{"title": "e"}',
        b"[" * 100_000,
        b'{"prompt": "\xff"}',
        b'{"prompt": "two cats", "include": [{"class": "cat", "count": 2}], "tag": "counting"}',
        b'{"prompt": "two cats", "include": [{"class": "cat", "count": 0}]}',
    ]
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\n".join(lines))
    texts, bad = read(path)
    assert texts == ["a", "b\u2028", "c", "two cats"]
    assert [each.origin for each in bad] == [f"a.jsonl:{n}" for n in (5, 6, 7, 8, 9, 11)]
    assert [each.reason for each in bad][:1] == ["not JSON"]
    assert all("\n" not in each.reason and len(each.reason) < 200 for each in bad)
    assert "count 0" in bad[-1].reason
    prompts = list(read_captions(path, lambda bad: None))
    assert prompts[0] == Prompt(prompt="a", origin="a.jsonl:1")
    assert prompts[-1].include[0].count == 2
    assert read(path, "title")[0] == ["e"]


def test_parquet(tmp_path: Path) -> None:
    pyarrow = importlib.import_module("pyarrow")
    parquet = importlib.import_module("pyarrow.parquet")
    path = tmp_path / "a.parquet"
    captions = ["a", None, "b"] + [f"c{n}" for n in range(3000)]
    table = pyarrow.table({"image": [b"x"] * 3003, "caption": captions, "n": range(3003)})
    parquet.write_table(table, path, row_group_size=500)
    texts, bad = read(path)
    assert texts == [each for each in captions if each is not None]
    assert bad == [BadCaption("a.parquet:2", "empty")]
    texts, bad = read(path, "n")
    assert not texts and bad[0] == BadCaption("a.parquet:1", "int, no text")
    with pytest.raises(UserError, match="got columns image, caption, n; allowed: one of prompt"):
        read(path, "title")
    whole = path.read_bytes()
    damaged = bytearray(whole)
    damaged[len(whole) // 2 : len(whole) // 2 + 2000] = b"\xff" * 2000
    path.write_bytes(damaged)
    texts, bad = read(path)
    assert len(texts) < 3002 and "damaged from here on" in bad[-1].reason
    path.write_bytes(whole[:500])
    with pytest.raises(UserError, match="no parquet file") as caught:
        read(path)
    assert "\n" not in str(caught.value)


def test_tars_are_read_where_they_lie(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    members = {
        "1.png": b"image",
        "1.json": b'{"prompt": "one"}',
        "2.txt": b"two\n",
        "2.jpg": b"image",
        "3.txt": b"not this",
        "3.json": b'{"caption": "three"}',
        "4.json": b"{",
        "../../5.txt": b"five",
        "6.txt": b"\xff",
    }
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
        link = tarfile.TarInfo("7.txt")
        link.type, link.linkname = tarfile.SYMTYPE, "2.txt"
        tar.addfile(link)
    texts, bad = read(path)
    assert texts == ["one", "two", "three", "five"]
    assert [(each.origin, each.reason) for each in bad] == [
        ("a.tar:7.txt", "link"),
        ("a.tar:4", "not JSON"),
        ("a.tar:6", "not UTF-8 at byte 1"),
    ]
    assert [each.name for each in tmp_path.iterdir()] == ["a.tar"]
    path.write_bytes(path.read_bytes()[:2000])
    texts, bad = read(path)
    assert texts == ["one"] and bad
    path.write_bytes(b"no tar at all" * 100)
    with pytest.raises(UserError, match="not a plain tar"):
        read(path)


def test_what_cannot_be_opened_is_told(tmp_path: Path) -> None:
    for name in ("none.txt", "none.tar", "none.parquet"):
        with pytest.raises(UserError, match=name):
            read(tmp_path / name)
    (tmp_path / "a.csv").write_text("a")
    with pytest.raises(UserError, match=r"suffix '\.csv', allowed: \.txt"):
        read(tmp_path / "a.csv")


def test_sets_of_datasets_are_streamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    lines = [{"caption": "a", "n": 1}, {"caption": None, "n": 2}, {"caption": "c", "n": 3}]
    (folder / "train.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    bad: list[BadCaption] = []
    found = list(read_set(str(folder), bad.append))
    assert [prompt.prompt for prompt in found] == ["a", "c"]
    assert bad[0].reason == "empty" and bad[0].origin.endswith(":2")
    with pytest.raises(UserError, match="got columns caption, n; allowed"):
        list(read_set(str(folder), bad.append, column="title"))
    with pytest.raises(UserError, match="hf:"):
        list(read_set(str(folder), bad.append, split="test"))
    with pytest.raises(UserError, match="hf:"):
        list(read_set(str(tmp_path / "none"), bad.append))
