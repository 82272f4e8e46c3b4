"""Tars made to do harm: nothing is written anywhere, no link is followed, and they cost what they weigh."""

import io
import json
import os
import tarfile
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from lightgen.core.draws import numpy_draws
from lightgen.core.errors import UserError
from lightgen.data.images import CorruptRecord, ImageShards, encode_image, write_encoded_shard
from lightgen.stages.inputs import open_images

IMAGE = numpy_draws(0, "test").integers(0, 256, (5, 7, 3), dtype=np.uint8)
PNG, META = encode_image(IMAGE), json.dumps({"prompt": "a"}).encode()
BLOCK = 512


def header(name: bytes, size: int | bytes, kind: bytes, link: bytes = b"", at_386: bytes = b"") -> bytes:
    """A header block with a right checksum, whatever it says."""
    number = size if isinstance(size, bytes) else b"%011o\0" % size
    block = bytearray(name.ljust(100, b"\0")[:100] + b"0000644\0" * 3)
    block += number.ljust(12, b"\0") + b"00000000000\0"
    block += b" " * 8 + kind + link.ljust(100, b"\0") + b"ustar  \0"
    block = block.ljust(386, b"\0") + at_386
    block = block.ljust(BLOCK, b"\0")
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % BLOCK)


def member(name: bytes, data: bytes) -> bytes:
    return header(name, len(data), b"0") + padded(data)


def record(key: bytes) -> bytes:
    return member(key + b".png", PNG) + member(key + b".json", META)


def pax(*entries: tuple[bytes, bytes]) -> bytes:
    """An extended header block that says these of the next member."""
    text = b""
    for key, value in entries:
        body = b" " + key + b"=" + value + b"\n"
        length = len(body) + 1
        while length != len(body) + len(b"%d" % length):
            length += 1
        text += b"%d" % length + body
    return header(b"pax", len(text), b"x") + padded(text)


END = bytes(2 * BLOCK)
GIANT = 7 << 30  # below 8 GiB, the most that a plain header can claim
HOLES = b"".join(b"%011o\0" % number for number in (0, BLOCK, GIANT, BLOCK))

HOSTILE: dict[str, tuple[bytes, str, str]] = {
    "up": (record(b"../../evil"), "../../evil.png", "unsafe name"),
    "up inside": (record(b"a/../../evil"), "a/../../evil.png", "unsafe name"),
    "absolute": (record(b"/tmp/evil"), "/tmp/evil.png", "unsafe name"),
    "windows": (record(b"C:\\evil"), "C:\\evil.png", "unsafe name"),
    "newline": (record(b"a\nb"), "a\nb.png", "unsafe name"),
    "escape": (record(b"a\x1b[2Jb"), "a\x1b[2Jb.png", "unsafe name"),
    "no text": (record(b"a\xff"), "a\\xff.png", "unsafe name"),
    "symlink": (header(b"l.png", 0, b"2", b"/etc/passwd") + member(b"l.json", META), "l.png", "link"),
    "hardlink": (header(b"h.png", 0, b"1", b"../x") + member(b"h.json", META), "h.png", "link"),
    "hardlink with a size": (header(b"h.png", GIANT, b"1", b"good.png"), "h.png", "link"),
    "character device": (header(b"c.png", 0, b"3"), "c.png", "device or unknown kind"),
    "block device": (header(b"b.png", GIANT, b"4"), "b.png", "device or unknown kind"),
    "fifo": (header(b"f.png", 0, b"6"), "f.png", "device or unknown kind"),
    "unknown kind": (header(b"u.png", 0, b"Z"), "u.png", "device or unknown kind"),
    "folder": (header(b"folder.png", 0, b"5"), "folder.png", "folder"),
    "path of pax": (pax((b"path", b"../evil.png")) + member(b"fine.png", PNG), "../evil.png", "unsafe name"),
    "absolute path of pax": (pax((b"path", b"/evil.png")) + member(b"x", PNG), "/evil.png", "unsafe name"),
    "nul in a path of pax": (pax((b"path", b"a\0b.png")) + member(b"x.png", PNG), "a\0b.png", "unsafe name"),
    "long name": (
        header(b"L", 12, b"L") + padded(b"../evil.png\0") + member(b"x.png", PNG),
        "../evil.png",
        "unsafe name",
    ),
    "old GNU sparse": (
        header(b"s.png", BLOCK, b"S", at_386=HOLES + bytes(49) + b"%011o\0" % (GIANT + BLOCK)) + bytes(BLOCK),
        "s.png",
        "sparse",
    ),
    "sparse of pax 0.0": (
        pax((b"GNU.sparse.size", b"%d" % GIANT), (b"GNU.sparse.numblocks", b"1")) + member(b"s.png", PNG),
        "s.png",
        "sparse",
    ),
    "sparse of pax 0.1": (
        pax((b"GNU.sparse.size", b"%d" % GIANT), (b"GNU.sparse.map", b"0,1")) + member(b"s.png", PNG),
        "s.png",
        "sparse",
    ),
    "sparse of pax 1.0": (
        pax((b"GNU.sparse.major", b"1"), (b"GNU.sparse.minor", b"0"), (b"GNU.sparse.realsize", b"%d" % GIANT))
        + member(b"GNUSparseFile.0/s.png", padded(b"1\n0\n1\n") + PNG),
        "GNUSparseFile.0/s.png",
        "sparse",
    ),
    "duplicate": (record(b"good"), "good.png", "duplicate"),
    "other suffix, same key": (member(b"good.jpg", PNG), "good.jpg", "duplicate"),
    "large image": (member(b"big.json", META) + header(b"big.png", 65 << 20, b"0"), "big.png", "cut short"),
    "size of pax": (pax((b"size", b"%d" % GIANT)) + member(b"x.png", PNG), "x.png", "cut short"),
    "size of 300 digits": (pax((b"size", b"9" * 300)) + member(b"x.png", PNG), "x.png", "cut short"),
    "size in base 256": (header(b"x.png", b"\x80" + b"\x7f" * 11, b"0"), "x.png", "cut short"),
}


def tree(place: Path) -> dict[str, tuple[int, int, int]]:
    """Mode, size and time of writing of all that is below a place, links not followed."""
    found = {}
    for path in place.rglob("*"):
        state = path.lstat()
        found[path.relative_to(place).as_posix()] = (state.st_mode, state.st_size, state.st_mtime_ns)
    return found


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_member_is_told_and_nothing_is_written(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hostile, member_name, reason = HOSTILE[name]
    place, elsewhere = tmp_path / "work" / "in", tmp_path / "work" / "here"
    place.mkdir(parents=True)
    elsewhere.mkdir()
    (tmp_path / "evil.png").write_bytes(b"as it was")
    (place / "x.tar").write_bytes(record(b"good") + hostile + END)
    monkeypatch.chdir(elsewhere)
    before = tree(tmp_path)
    tracemalloc.start()
    inputs = open_images([place])
    assert [inputs.key(i) for i in range(len(inputs))][0] == "good"
    assert np.array_equal(inputs[0].image, IMAGE) and inputs.meta(0) == {"prompt": "a"}
    for i in range(len(inputs)):
        try:
            assert len(inputs.encoded(i).data) <= len(PNG)
        except CorruptRecord:
            continue
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (member_name, reason) in {(each.name, each.reason) for each in inputs.skipped}
    assert tree(tmp_path) == before and peak < 8 << 20
    # written again, as curate and rank do, every name stays inside the shard
    write_encoded_shard(tmp_path / "again.tar", (inputs.encoded(i) for i in range(len(inputs))))
    with tarfile.open(tmp_path / "again.tar") as again:
        assert all(each.isreg() and not each.name.startswith(("/", "..")) for each in again)
    assert {key for key in tree(tmp_path) if key not in before} == {"again.tar"}


def test_what_is_before_and_behind_a_hostile_member_is_read(tmp_path: Path) -> None:
    ends = ("cut short",)  # whatever claims more than there is ends the shard
    whole = b"".join(data for data, _, reason in HOSTILE.values() if reason not in ends)
    (tmp_path / "x.tar").write_bytes(record(b"good") + whole + record(b"last") + END)
    shards = ImageShards(tmp_path)
    keys = [shards.key(i) for i in range(len(shards))]
    assert keys[0] == "good" and keys[-1] == "last" and len(keys) == 2
    told = {(each.name, each.reason) for each in shards.skipped}
    assert {(name, reason) for _, name, reason in HOSTILE.values() if reason not in ends} <= told


def test_names_with_nul_end_there(tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes(member(b"a.png\0/../../evil", PNG) + member(b"a.json\0.exe", META) + END)
    shards = ImageShards(tmp_path)
    assert [shards.key(i) for i in range(len(shards))] == ["a"] and not shards.skipped


def test_giants_on_disk_cost_neither_time_nor_memory(tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    path.write_bytes(record(b"good") + member(b"big.json", META) + header(b"big.png", GIANT - BLOCK, b"0"))
    os.truncate(path, path.stat().st_size + GIANT)  # a sparse file on this disk, so that the size is true
    with path.open("ab") as file:
        file.write(record(b"behind") + END)
    began = time.monotonic()
    tracemalloc.start()
    shards = ImageShards(tmp_path)
    assert len(shards) == 1 and shards[0].key == "good"
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    reasons = {each.name: each.reason for each in shards.skipped}
    assert reasons["big.png"] == f"{GIANT - BLOCK} bytes, allowed: up to 67108864"
    assert peak < 4 << 20 and time.monotonic() - began < 5
    os.truncate(path, 3 << 40)
    with pytest.raises(UserError, match=r"x\.tar: got 3298534883328 bytes, allowed: up to 2199023255552"):
        ImageShards(tmp_path)


@pytest.mark.parametrize(
    "bomb",
    [
        header(b"pax", 30 << 20, b"x") + bytes(30 << 20),
        header(b"name", 30 << 20, b"L") + b"a" * (30 << 20),
        pax((b"path", b"a")) * 20_000,
        header(b"s", 0, b"S", at_386=bytes(96) + b"\1") + (bytes(504) + b"\1" + bytes(7)) * 20_000,
        header(b"x.png", 0, b"0") * 20_000,
        header(b"x.png", 0, b"2") * 20_000,
    ],
    ids=["large pax", "large name", "many pax", "many holes", "many duplicates", "many links"],
)
def test_bombs_of_headers_cost_what_they_weigh(bomb: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes(record(b"good") + bomb + record(b"last") + END)
    began = time.monotonic()
    tracemalloc.start()
    shards = ImageShards(tmp_path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert shards.key(0) == "good" and shards.skipped
    assert peak < len(bomb) + (1 << 20) and time.monotonic() - began < 20


def test_millions_of_records_take_little(tmp_path: Path) -> None:
    size = 8000
    buffer = io.BytesIO()
    for i in range(size):
        buffer.write(header(b"%07d.png" % i, 0, b"0") + header(b"%07d.txt" % i, 0, b"0"))
    (tmp_path / "x.tar").write_bytes(buffer.getvalue() + END)
    tracemalloc.start()
    shards = ImageShards(tmp_path)
    kept = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert kept < 60 * size + (1 << 18), "ten million records must fit into 600 MB"
    assert len(shards) == size and shards.key(size - 1) == f"{size - 1:07d}"
