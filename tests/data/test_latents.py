"""Latent shards: round trip in bfloat16, any order of ids, and files that are torn or not ours."""

import os
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from lightgen.core.draws import torch_draws
from lightgen.core.errors import UserError
from lightgen.data.latents import LatentShards, write_latent_shard


def _rows(first: int, count: int) -> list[dict[str, Any]]:
    return [
        {"caption": f"row {i} \u2028 \u732b", "height": 32, "width": 16, "key": f"{i:06d}", "score": i / 8}
        for i in range(first, first + count)
    ]


def _write(
    directory: Path, sizes: tuple[int, ...] = (3, 1, 4), with_std: bool = True
) -> tuple[Tensor, Tensor]:
    """Shards of these sizes in directory; all their mean and std as bfloat16 keeps them, float32."""
    random, first, means, stds = torch_draws(0, "test"), 0, [], []
    for number, size in enumerate(sizes):
        mean = torch.randn(size, 2, 4, 2, generator=random)
        std = torch.rand(size, 2, 4, 2, generator=random)
        path = directory / f"{number:05d}.safetensors"
        write_latent_shard(path, mean, std if with_std else None, _rows(first, size))
        means.append(mean.bfloat16().float())
        stds.append(std.bfloat16().float())
        first += size
    return torch.cat(means), torch.cat(stds)


def test_rows_come_back_as_stored(tmp_path: Path) -> None:
    mean, std = _write(tmp_path)
    shards = LatentShards(tmp_path)
    assert len(shards) == 8 and shards.channels == 2 and shards.has_std
    for i, record in enumerate(shards[i] for i in range(8)):
        assert record.std is not None and record.mean.dtype == record.std.dtype == torch.float32
        assert torch.equal(record.mean, mean[i]) and torch.equal(record.std, std[i])
        assert record.row == _rows(i, 1)[0] == shards.row(i) and record.caption == record.row["caption"]
        assert shards.shape(i) == (2, 4, 2)
    assert shards.rows() == _rows(0, 8)


def test_gather_keeps_the_order_of_the_ids(tmp_path: Path) -> None:
    mean, std = _write(tmp_path)
    ids = [7, 0, 3, 3, 5, 2, 7]
    got_mean, got_std, rows = LatentShards(tmp_path).gather(ids)
    assert got_std is not None and torch.equal(got_mean, mean[ids]) and torch.equal(got_std, std[ids])
    assert [row["key"] for row in rows] == [f"{i:06d}" for i in ids]


def test_changing_a_batch_changes_no_shard(tmp_path: Path) -> None:
    mean, _ = _write(tmp_path)
    shards = LatentShards(tmp_path)
    shards.gather([0, 1])[0].zero_()
    shards[0].mean.zero_()
    assert torch.equal(shards.gather([0, 1])[0], mean[:2])


def test_std_is_optional_but_not_mixed(tmp_path: Path) -> None:
    _write(tmp_path, (2, 2), with_std=False)
    shards = LatentShards(tmp_path)
    assert not shards.has_std and shards[0].std is None and shards.gather([0, 3])[1] is None
    mean = torch.zeros(1, 2, 4, 2)
    write_latent_shard(tmp_path / "b.safetensors", mean, mean, _rows(0, 1))
    with pytest.raises(UserError, match=r"b\.safetensors: channels or std differ"):
        LatentShards(tmp_path)


def test_ids_outside_are_refused(tmp_path: Path) -> None:
    _write(tmp_path)
    shards = LatentShards(tmp_path)
    for i in (-1, 8):
        for read in (shards.__getitem__, shards.row, shards.shape):
            with pytest.raises(IndexError):
                read(i)
        with pytest.raises(IndexError):
            shards.gather([0, i])


def test_one_batch_has_one_grid(tmp_path: Path) -> None:
    write_latent_shard(tmp_path / "a.safetensors", torch.zeros(1, 2, 4, 2), None, _rows(0, 1))
    write_latent_shard(tmp_path / "b.safetensors", torch.zeros(1, 2, 2, 4), None, _rows(1, 1))
    shards = LatentShards(tmp_path)
    assert shards.shape(0) == (2, 4, 2) and shards.shape(1) == (2, 2, 4)
    with pytest.raises(UserError, match="batch of 2 sizes"):
        shards.gather([0, 1])


def test_same_rows_same_bytes_and_no_leftovers(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        _write(tmp_path / name, (2,))
    files = [sorted((tmp_path / name).iterdir()) for name in ("a", "b")]
    assert [path.name for path in files[0]] == ["00000.jsonl", "00000.safetensors"]
    for left, right in zip(*files, strict=True):
        assert left.read_bytes() == right.read_bytes()


@pytest.mark.parametrize(
    ("name", "value"), [("mean", float("nan")), ("mean", 3.4e38), ("std", -1.0), ("std", float("inf"))]
)
def test_values_that_do_not_fit_are_refused(tmp_path: Path, name: str, value: float) -> None:
    tensors = {"mean": torch.zeros(2, 1, 1, 1), "std": torch.zeros(2, 1, 1, 1)}
    tensors[name][1] = value
    with pytest.raises(UserError, match=f"{name} of '000001'"):
        write_latent_shard(tmp_path / "a.safetensors", tensors["mean"], tensors["std"], _rows(0, 2))
    assert not list(tmp_path.iterdir())


def test_torn_shards_are_named(tmp_path: Path) -> None:
    _write(tmp_path, (3,))
    shard, table = tmp_path / "00000.safetensors", tmp_path / "00000.jsonl"
    whole, text = shard.read_bytes(), table.read_bytes()
    for data in (
        b"",
        whole[:5],
        whole[:60],
        whole[:-1],
        whole + b"\0",
        b"\xff" * 64,
        os.urandom(7) + b"\0" + whole,
    ):
        shard.write_bytes(data)
        with pytest.raises(UserError, match=r"^00000\.safetensors: "):
            LatentShards(tmp_path)
    shard.write_bytes(whole)
    for data in (b"", text[:-1], text + b"{}\n", text[text.index(b"\n") + 1 :]):
        table.write_bytes(data)
        with pytest.raises(UserError, match=r"^00000\.jsonl: got \d whole lines, expected 3"):
            LatentShards(tmp_path)
    table.unlink()
    with pytest.raises(UserError, match=r"table 00000\.jsonl is missing"):
        LatentShards(tmp_path)


@pytest.mark.parametrize("line", [b"{", b"[]", b'{"caption": 3}', b"\xff", b"[" * 100_000])
def test_a_bad_line_of_the_table_is_named(tmp_path: Path, line: bytes) -> None:
    _write(tmp_path, (3,))
    table = tmp_path / "00000.jsonl"
    lines = table.read_bytes().split(b"\n")
    table.write_bytes(b"\n".join([lines[0], line, *lines[2:]]))
    shards = LatentShards(tmp_path)
    assert shards[0].row == _rows(0, 1)[0] and shards[2].row == _rows(2, 1)[0]
    with pytest.raises(UserError, match=r"^00000\.jsonl, line 2: "):
        shards.gather([0, 1])


def test_other_layouts_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="got no latent shards"):
        LatentShards(tmp_path)
    good = torch.zeros(1, 2, 4, 2, dtype=torch.bfloat16)
    (tmp_path / "a.jsonl").write_text('{"caption": "a"}\n')
    for tensors in (
        {"mean": good.float()},
        {"mean": good[0]},
        {"std": good},
        {"mean": good, "std": good[:, :1].clone()},
        {"mean": good, "extra": good.clone()},
        {"mean": good[:0]},
    ):
        save_file(tensors, tmp_path / "a.safetensors")
        with pytest.raises(UserError, match=r"^a\.safetensors: .*allowed"):
            LatentShards(tmp_path)


def test_threads_may_read_at_once(tmp_path: Path) -> None:
    mean, _ = _write(tmp_path, (30, 30))
    shards, good = LatentShards(tmp_path), []

    def read(thread: int) -> None:
        ids = [(thread * 7 + i * 11) % 60 for i in range(20)]
        for _ in range(20):
            got, _, rows = shards.gather(ids)
            good.append(torch.equal(got, mean[ids]) and [int(row["key"]) for row in rows] == ids)

    threads = [threading.Thread(target=read, args=(t,)) for t in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(good) == 60 and all(good)
