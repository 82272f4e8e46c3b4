import pytest
import torch
from safetensors.torch import save_file

from lightgen.core.draws import torch_draws
from lightgen.core.errors import UserError
from lightgen.data.latents import CorruptSample
from lightgen.data.representation import FOLDER, Representation, write_representation_shard


def features(*shape):
    return torch.randn(shape, generator=torch_draws(0, "features", *shape))


@pytest.fixture
def written(tmp_path):
    """Two shards: three pictures of 6 tokens, two of 4."""
    parts = features(3, 6, 5), features(2, 4, 5)
    for number, part in enumerate(parts):
        write_representation_shard(tmp_path / FOLDER / f"latents-{number}.safetensors", part)
    return tmp_path, [each for part in parts for each in part]


def test_rows_come_back_in_the_order_asked_for(written):
    directory, rows = written
    found = Representation(directory)
    assert (len(found), found.dim) == (5, 5)
    assert [found.length(i) for i in range(5)] == [6, 6, 6, 4, 4]
    for ids in ([2, 0, 2], [4, 3], [1]):
        got = found.gather(ids)
        assert got.dtype == torch.bfloat16
        assert torch.equal(got, torch.stack([rows[i] for i in ids]).bfloat16())
    for beyond in (-1, 5):
        with pytest.raises(IndexError):
            found.gather([beyond])


def test_a_row_that_cannot_be_read_is_named(written):
    directory, _ = written
    found = Representation(directory)
    path = directory / FOLDER / "latents-1.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[:-1])
    found.gather([3])
    with pytest.raises(CorruptSample, match=r"sample 4: .*latents-1.safetensors: the file is cut short"):
        found.gather([3, 4])
    path.write_bytes(data[:-2] + b"\xff\xff")
    with pytest.raises(CorruptSample, match="sample 4: .*not finite"):
        found.gather([4])
    path.unlink()
    with pytest.raises(CorruptSample, match="sample 3: .*No such file"):
        found.gather([3])


def test_other_files_are_refused_in_one_line(tmp_path):
    with pytest.raises(UserError, match="got no features of pictures"):
        Representation(tmp_path)
    path = tmp_path / FOLDER / "a.safetensors"
    with pytest.raises(UserError, match="not finite in bfloat16"):
        write_representation_shard(path, torch.full((1, 2, 3), torch.inf))
    write_representation_shard(path, features(1, 2, 3))
    whole = path.read_bytes()
    for data, told in (
        (whole[:-1], "not a whole safetensors file"),
        (b"\xff" * 64, "not a whole safetensors file"),
        (b"", "not a whole safetensors file"),
    ):
        path.write_bytes(data)
        with pytest.raises(UserError, match=told):
            Representation(tmp_path)
    for tensors, told in (
        ({"mean": features(1, 2, 3)}, "got tensors 'mean', allowed: representation"),
        ({"representation": features(1, 2, 3)}, "is F32"),
        ({"representation": features(1, 2).bfloat16()}, r"BF16 \[1, 2\], allowed: BF16 \[N, L, D\]"),
    ):
        save_file(tensors, path)
        with pytest.raises(UserError, match=told):
            Representation(tmp_path)
    write_representation_shard(path, features(1, 2, 3))
    write_representation_shard(tmp_path / FOLDER / "b.safetensors", features(1, 2, 4))
    with pytest.raises(UserError, match="b.safetensors: width differs from that of a.safetensors"):
        Representation(tmp_path)
