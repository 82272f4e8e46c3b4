"""Latent shards: round trip in bfloat16, any order of ids, and files that are torn or not ours."""

import errno
import io
import json
import os
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from lightgen.core.artifact import Artifact, ArtifactError, Workspace, begin_artifact, open_artifact
from lightgen.core.draws import numpy_draws, torch_draws
from lightgen.core.errors import UserError
from lightgen.data.latents import CorruptSample, LatentShards, write_latent_shard

FLIPS = 200  # bits that are turned over, one at a time, in a whole artifact


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
    with pytest.raises(UserError, match="batch of 2 sizes") as error:
        shards.gather([0, 1])
    assert not isinstance(error.value, CorruptSample), "no sample is to blame"


def test_groups_are_rows_of_one_size(tmp_path: Path) -> None:
    for number, (rows, height, width) in enumerate([(2, 4, 2), (3, 4, 2), (1, 2, 4), (2, 4, 2), (4, 2, 4)]):
        mean = torch.zeros(rows, 2, height, width)
        write_latent_shard(tmp_path / f"{number}.safetensors", mean, None, _rows(0, rows))
    shards = LatentShards(tmp_path)
    assert shards.groups() == [[range(0, 5), range(6, 8)], [range(5, 6), range(8, 12)]]
    for ranges in shards.groups():
        ids = [i for each in ranges for i in each]
        assert len(shards.gather(ids)[0]) == len(ids)


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


def _set_line(table: Path, number: int, line: bytes) -> None:
    lines = table.read_bytes().split(b"\n")
    table.write_bytes(b"\n".join([*lines[:number], line, *lines[number + 1 :]]))


def _set_value(shard: Path, row: int, name: str, value: float) -> None:
    tensors = load_file(shard)
    tensors[name][row].view(-1)[-1] = value
    save_file(tensors, shard)


def _fault(shards: LatentShards, ids: list[int]) -> CorruptSample:
    with pytest.raises(CorruptSample) as error:
        shards.gather(ids)
    assert str(error.value) == f"sample {error.value.sample}: {error.value.reason}"
    assert "\n" not in str(error.value)
    return error.value


@pytest.mark.parametrize(
    "line", [b"{", b"[]", b'{"caption": 3}', b"\xff", b"[" * 100_000, b"", b'{"key": "a"}']
)
def test_a_bad_line_of_the_table_is_named(tmp_path: Path, line: bytes) -> None:
    _write(tmp_path, (1, 3))
    _set_line(tmp_path / "00001.jsonl", 1, line)
    shards = LatentShards(tmp_path)
    assert shards[1].row == _rows(1, 1)[0] and shards[3].row == _rows(3, 1)[0]
    fault = _fault(shards, [3, 2, 0])
    assert fault.sample == 2 and fault.reason.startswith("00001.jsonl, line 2: ")
    for read in (lambda: shards.row(2), shards.rows, lambda: shards[2]):
        with pytest.raises(CorruptSample, match=r"^sample 2: 00001\.jsonl, line 2: "):
            read()


@pytest.mark.parametrize("caption", ["", " \t\u2003\n"])
def test_a_blank_caption_is_a_bad_row(tmp_path: Path, caption: str) -> None:
    _write(tmp_path, (3,))
    _set_line(tmp_path / "00000.jsonl", 1, json.dumps({"caption": caption}).encode())
    fault = _fault(LatentShards(tmp_path), [0, 1, 2])
    assert (fault.sample, fault.reason) == (1, "00000.jsonl, line 2: its caption is blank")


@pytest.mark.parametrize("with_std", [True, False])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_latents_that_are_not_finite_are_a_bad_row(tmp_path: Path, value: float, with_std: bool) -> None:
    _write(tmp_path, (2, 3), with_std)
    _set_value(tmp_path / "00001.safetensors", 2, "mean", value)
    shards = LatentShards(tmp_path)
    assert len(shards.gather([0, 1, 2, 3])[2]) == 4
    fault = _fault(shards, [0, 4, 1])
    assert (fault.sample, fault.reason) == (4, "00001.safetensors, row 3: its mean is not finite")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -0.5])
def test_a_std_that_is_none_is_a_bad_row(tmp_path: Path, value: float) -> None:
    _write(tmp_path, (3,))
    _set_value(tmp_path / "00000.safetensors", 1, "std", value)
    _set_value(tmp_path / "00000.safetensors", 0, "std", -0.0)
    shards = LatentShards(tmp_path)
    assert len(shards.gather([0, 2])[2]) == 2
    fault = _fault(shards, [1])
    assert (fault.sample, fault.reason) == (1, "00000.safetensors, row 2: its std is negative or not finite")


def test_the_first_bad_row_of_the_batch_is_named(tmp_path: Path) -> None:
    _write(tmp_path, (3, 3))
    _set_value(tmp_path / "00000.safetensors", 2, "mean", float("nan"))
    _set_line(tmp_path / "00001.jsonl", 1, b"{")
    _set_value(tmp_path / "00001.safetensors", 2, "std", float("nan"))
    shards = LatentShards(tmp_path)
    assert [_fault(shards, ids).sample for ids in ([0, 2, 4, 5], [5, 4, 2], [1, 4, 5, 2])] == [2, 5, 4]


def test_a_shard_that_is_cut_short_after_opening_loses_only_what_is_gone(tmp_path: Path) -> None:
    mean, _ = _write(tmp_path, (2, 3), with_std=False)
    shards, shard = LatentShards(tmp_path), tmp_path / "00001.safetensors"
    os.truncate(shard, shard.stat().st_size - 1)
    assert torch.equal(shards.gather([0, 1, 2, 3])[0], mean[:4])
    fault = _fault(shards, [3, 4])
    assert (fault.sample, fault.reason) == (4, "00001.safetensors, row 3: the file is cut short")
    os.truncate(tmp_path / "00001.jsonl", 20)
    fault = _fault(shards, [0, 3])
    assert (fault.sample, fault.reason) == (3, "00001.jsonl, line 2: not JSON")


@pytest.mark.parametrize("suffix", ["safetensors", "jsonl"])
def test_a_file_that_is_gone_after_opening_loses_its_rows(tmp_path: Path, suffix: str) -> None:
    _write(tmp_path, (2, 3))
    shards = LatentShards(tmp_path)
    (tmp_path / f"00001.{suffix}").unlink()
    assert len(shards.gather([0, 1])[2]) == 2
    fault = _fault(shards, [1, 3, 2])
    assert (fault.sample, fault.reason) == (3, f"00001.{suffix}: No such file or directory")


def test_a_failing_disk_costs_the_row_and_a_system_short_of_files_costs_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _write(tmp_path, (3,))
    shards, open_file = LatentShards(tmp_path), Path.open
    failing: dict[int, OSError] = {}

    class File(io.FileIO):
        def readinto(self, buffer: Any) -> int:  # noqa: ANN401  (any buffer)
            if self.tell() in failing:
                raise failing[self.tell()]
            return super().readinto(buffer)

    def opened(path: Path, *args: Any, **options: Any) -> Any:  # noqa: ANN401  (as of Path)
        return File(path) if path.suffix == ".safetensors" else open_file(path, *args, **options)

    monkeypatch.setattr(Path, "open", opened)
    size = (tmp_path / "00000.safetensors").stat().st_size
    first_mean = size - 2 * 3 * 16 * 2  # two tensors of three rows of 16 values of 2 bytes
    failing[first_mean + 16 * 2] = OSError(errno.EIO, "Input/output error")
    assert len(shards.gather([0, 2])[2]) == 2
    fault = _fault(shards, [0, 1, 2])
    assert (fault.sample, fault.reason) == (1, "00000.safetensors: Input/output error")
    failing[first_mean + 16 * 2] = OSError(errno.EMFILE, "Too many open files")
    with pytest.raises(OSError, match="Too many open files"):
        shards.gather([0, 1, 2])


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


def _latents_artifact(directory: Path) -> Artifact:
    workspace = begin_artifact(directory / "latents", "latents", {"image_size": 32}, [])
    assert isinstance(workspace, Workspace)
    with workspace:
        _write(workspace.path)
        return workspace.commit({"samples": 8}, autoencoder="0" * 64)


def _flip(path: Path, at: int, bit: int) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 1 << bit]))


@pytest.mark.parametrize("flips", [FLIPS, pytest.param(5 * FLIPS, marks=pytest.mark.slow)])
def test_every_flipped_bit_of_the_data_is_found(tmp_path: Path, flips: int) -> None:
    artifact = _latents_artifact(tmp_path)
    paths = sorted(path for path in artifact.path.iterdir() if path.name in artifact.manifest["files"])
    assert {path.suffix for path in paths} == {".safetensors", ".jsonl"}
    random = numpy_draws(0, "flip")
    for _ in range(flips):
        path = paths[random.integers(len(paths))]
        at, bit = int(random.integers(path.stat().st_size)), int(random.integers(8))
        _flip(path, at, bit)
        with pytest.raises(ArtifactError, match=f"{path.name!r} is damaged"):
            open_artifact(artifact.path, "latents")
        _flip(path, at, bit)
    assert open_artifact(artifact.path, "latents").digest == artifact.digest


def test_every_flipped_bit_of_the_manifest_is_found_or_makes_another_artifact(tmp_path: Path) -> None:
    artifact = _latents_artifact(tmp_path)
    path, random = artifact.path / "manifest.json", numpy_draws(1, "flip")
    refused = 0
    for _ in range(FLIPS):
        at, bit = int(random.integers(path.stat().st_size)), int(random.integers(8))
        _flip(path, at, bit)
        try:
            assert open_artifact(artifact.path, "latents").digest != artifact.digest
        except ArtifactError:
            refused += 1
        _flip(path, at, bit)
    assert refused > 0
    assert open_artifact(artifact.path, "latents").digest == artifact.digest
