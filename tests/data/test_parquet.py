"""Parquet files with the bytes of images: as HF datasets writes them, as others do, and as nobody should."""

import importlib
import random
import threading
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

pa = importlib.import_module("pyarrow")
pq = importlib.import_module("pyarrow.parquet")

from lightgen.core.draws import numpy_draws  # noqa: E402
from lightgen.core.errors import UserError  # noqa: E402
from lightgen.data import parquet  # noqa: E402
from lightgen.data.images import CorruptRecord, encode_image, write_encoded_shard  # noqa: E402
from lightgen.data.parquet import ParquetImages  # noqa: E402

STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def _image(key: int) -> np.ndarray:
    return numpy_draws(0, "test", key).integers(0, 256, (5, 7, 3), dtype=np.uint8)


def _png(key: int) -> bytes:
    return encode_image(_image(key))


def _write(path: Path, group: int = 3, **columns) -> None:
    pq.write_table(pa.table(columns), path, row_group_size=group)


def _structs(keys) -> "pa.Array":
    return pa.array([{"bytes": _png(key), "path": f"{key}.png"} for key in keys], STRUCT)


def test_rows_are_records(tmp_path: Path) -> None:
    for file, keys in (("a", range(7)), ("b", range(7, 9))):
        _write(
            tmp_path / f"{file}.parquet",
            image=_structs(keys),
            caption=[f"c{key} \u732b" for key in keys],
            score=[key / 2 if key != 1 else float("nan") for key in keys],
            width=list(keys),
            tags=[["x", str(key)] for key in keys],
            embedding=[[0.5]] * len(keys),
            mask=[b"m"] * len(keys),
        )
    rows = ParquetImages(tmp_path)
    assert len(rows) == 9 and not rows.skipped
    assert (
        rows.key(0) == "00000/00000000"
        and rows.key(5) == "00000/00000005"
        and rows.key(8) == "00001/00000001"
    )
    for i in (8, 0, 4, 2, 6, 7):
        record = rows[i]
        assert np.array_equal(record.image, _image(i)) and record.key == rows.key(i)
        # masks are no words, and lists of numbers may be long: neither is meta
        assert rows.meta(i) == record.meta
        expected = {
            "caption": f"c{i} \u732b",
            "score": i / 2,
            "width": i,
            "tags": ["x", str(i)],
            "prompt": f"c{i} \u732b",
        }
        assert record.meta == expected
    assert (
        rows.meta(1)["score"] is None and rows.encoded(3).data == _png(3) and rows.encoded(3).suffix == "png"
    )
    for i in (-1, 9):
        for read in (rows.__getitem__, rows.meta, rows.key, rows.encoded):
            with pytest.raises(IndexError):
                read(i)
    assert write_encoded_shard(tmp_path / "x.tar", map(rows.encoded, range(9))) == 9
    assert (
        len(ParquetImages(tmp_path / "b.parquet")) == 2
        and ParquetImages(tmp_path / "b.parquet").key(1) == "00000001"
    )


def test_other_layouts(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    inner = pa.array([{"prompt": f"p{key}", "seed": key} for key in range(4)])
    _write(
        path, jpg=pa.array([_png(key) for key in range(4)], pa.large_binary()), json=inner, __key__=["k"] * 4
    )
    rows = ParquetImages(tmp_path)
    assert rows.meta(2) == {"prompt": "p2", "seed": 2, "__key__": "k"} and np.array_equal(
        rows[2].image, _image(2)
    )
    _write(path, photo=pa.array([_png(0)]), long=["the long one"], text=["short"])
    assert ParquetImages(tmp_path).meta(0)["prompt"] == "short"
    assert ParquetImages(tmp_path, "long").meta(0)["prompt"] == "the long one"
    _write(path, left=pa.array([_png(0)]), right=pa.array([_png(1)]), text=["a"])
    assert np.array_equal(ParquetImages(tmp_path, image="right")[0].image, _image(1))
    with pytest.raises(UserError, match=r"got left, right with bytes, of left, right, text; allowed: one"):
        ParquetImages(tmp_path)
    with pytest.raises(UserError, match=r"allowed: 'middle', of bytes"):
        ParquetImages(tmp_path, image="middle")


def test_datasets_own_writing_is_read(tmp_path: Path) -> None:
    datasets = importlib.import_module("datasets")
    from PIL import Image

    pictures = [Image.fromarray(_image(key)) for key in range(3)]
    features = datasets.Features({"image": datasets.Image(), "text": datasets.Value("string")})
    made = datasets.Dataset.from_dict({"image": pictures, "text": ["a", "b", "c"]}, features=features)
    made.to_parquet(str(tmp_path / "train-00000-of-00001.parquet"))
    rows = ParquetImages(tmp_path)
    assert [rows.meta(i)["prompt"] for i in range(3)] == ["a", "b", "c"]
    assert all(np.array_equal(rows[i].image, _image(i)) for i in range(3))


def test_holes_are_told_row_by_row(tmp_path: Path) -> None:
    images = [
        {"bytes": _png(0), "path": None},
        {"bytes": None, "path": "/etc/passwd"},
        None,
        {"bytes": b"", "path": ""},
        {"bytes": b"no picture", "path": ""},
        {"bytes": _png(5), "path": ""},
        {"bytes": _png(6), "path": ""},
    ]
    captions = ["a", "b", "c", "d", "e", None, "x" * ((1 << 20) + 1)]
    _write(tmp_path / "x.parquet", image=pa.array(images, STRUCT), caption=captions)
    rows = ParquetImages(tmp_path)
    assert len(rows) == 7 and rows[0].meta["prompt"] == "a"
    not_there = "the bytes of its image are not there"
    told = [not_there, not_there, "not a whole PNG", "not a whole PNG", "no caption", "letters, allowed"]
    for i, words in enumerate(told, 1):
        with pytest.raises(CorruptRecord, match=rf"^x\.parquet: row {i}: .*{words}"):
            rows[i]


def test_wrong_types_are_no_images(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    for column in (["a"], [1], [[1, 2]], [{"path": "x"}], [{"bytes": "text", "path": "x"}], [[b"x"]], [None]):
        _write(path, image=pa.array(column), caption=["a"])
        with pytest.raises(
            UserError, match=r"got no rows with images \(x\.parquet: columns: got none with bytes"
        ):
            ParquetImages(tmp_path)
    _write(path, image=_structs([0]), caption=[{"deep": {"text": "a"}}])
    with pytest.raises(CorruptRecord, match="no caption"):
        ParquetImages(tmp_path).meta(0)
    table = pa.Table.from_arrays([_structs([0]), pa.array(["a"]), pa.array(["b"])], ["image", "text", "text"])
    pq.write_table(table, path)
    with pytest.raises(CorruptRecord, match="no caption"):
        ParquetImages(tmp_path).meta(0)


def test_files_that_are_none_are_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"got no parquet files"):
        ParquetImages(tmp_path)
    _write(tmp_path / "good.parquet", image=_structs(range(4)), text=["a"] * 4)
    whole = (tmp_path / "good.parquet").read_bytes()
    (tmp_path / "cut.parquet").write_bytes(whole[:-20])
    (tmp_path / "empty.parquet").write_bytes(b"")
    (tmp_path / "pointer.parquet").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    (tmp_path / ".hidden.parquet").write_bytes(b"x")
    _write(tmp_path / "words.parquet", text=["a"])
    rows = ParquetImages(tmp_path)
    assert len(rows) == 4 and sorted(each.shard for each in rows.skipped) == [
        *("cut.parquet", "empty.parquet", "pointer.parquet", "words.parquet"),
    ]
    assert all("\n" not in each.reason for each in rows.skipped)


def test_footers_that_lie_about_rows_and_sizes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.parquet"
    same = pa.array([{"bytes": None, "path": None}] * 50_000, STRUCT)
    _write(path, 50_000, image=same, text=["a"] * 50_000)  # rows that hold nothing cost next to no bytes
    with pytest.raises(UserError, match=r"got no rows with images \(x\.parquet: 50000 rows in \d+ bytes"):
        ParquetImages(tmp_path)
    huge = pa.array([bytes(30 << 20)] * 2)
    pq.write_table(
        pa.table({"image": huge, "text": ["a", "b"]}), path, compression="zstd", use_dictionary=False
    )
    assert path.stat().st_size < 1 << 20
    monkeypatch.setattr(parquet, "MAX_GROUP_BYTES", 40 << 20)
    with pytest.raises(UserError, match=r"\d+ bytes, allowed: up to 41943040"):
        ParquetImages(tmp_path)
    rows = None
    monkeypatch.setattr(
        parquet, "_count_rows", lambda group, image, told: (group.num_rows, "")
    )  # as a lie would
    rows = ParquetImages(tmp_path)
    with pytest.raises(CorruptRecord, match="its row group has more than 41943040 bytes"):
        rows.encoded(0)


def test_only_a_few_groups_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    noise = [numpy_draws(0, "noise", key).bytes(1 << 18) for key in range(24)]
    _write(tmp_path / "x.parquet", 2, image=pa.array(noise), text=["a"] * 24)
    monkeypatch.setattr(parquet, "_KEPT_BYTES", 1 << 20)
    rows = ParquetImages(tmp_path)
    before = pa.total_allocated_bytes()
    for i in range(24):
        assert rows.encoded(i).data == noise[i]
        assert pa.total_allocated_bytes() - before < 3 << 20


def test_mutated_files_raise_only_user_errors(tmp_path: Path) -> None:
    path, draws, opened, read = tmp_path / "x.parquet", random.Random(0), 0, 0
    _write(path, 2, image=_structs(range(6)), text=["a"] * 6, score=[0.5] * 6)
    whole = path.read_bytes()
    tracemalloc.start()
    for _ in range(250):
        data = bytearray(whole)
        for _ in range(draws.randrange(1, 4)):
            at = (
                draws.randrange(len(data))
                if draws.random() < 0.5
                else draws.randrange(len(data) - 900, len(data))
            )
            data[at] = draws.randrange(256)
        path.write_bytes(data)
        try:
            rows = ParquetImages(tmp_path)
        except UserError:
            continue
        opened += 1
        for i in range(min(len(rows), 9)):
            try:
                rows[i]
                read += 1
            except CorruptRecord:
                continue
    assert opened > 50 and read > 50 and tracemalloc.get_traced_memory()[1] < 64 << 20
    tracemalloc.stop()


def test_threads_may_share_a_reader(tmp_path: Path) -> None:
    _write(tmp_path / "x.parquet", 4, image=_structs(range(24)), text=[str(key) for key in range(24)])
    rows, found = ParquetImages(tmp_path), {}

    def read(part: int) -> None:
        found.update({i: rows[i] for i in range(part, 24, 4)})

    threads = [threading.Thread(target=read, args=(part,)) for part in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(
        np.array_equal(found[i].image, _image(i)) and found[i].meta["prompt"] == str(i) for i in range(24)
    )
