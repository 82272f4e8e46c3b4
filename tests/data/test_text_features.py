import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from lightgen.core.errors import UserError
from lightgen.data.latents import CorruptSample
from lightgen.data.text_features import TextFeatures, TextRow, caption_hash, write_text_shard

CAPTIONS = ["", "a dog", "two cats", "ein Vögelchen", "\ud83d half an emoji", "x" * 10_000]
LENGTHS = [1, 3, 9, 2, 5, 12]


def row(number, dtype=torch.bfloat16, tokens=None, width=4):
    values = torch.randn(tokens or LENGTHS[number], width, generator=torch.Generator().manual_seed(number))
    return TextRow(CAPTIONS[number], values.to(dtype), LENGTHS[number], number == 2)


def write(folder, tokens=None, dtype=torch.bfloat16):
    folder.mkdir()
    write_text_shard(folder / "text-0.safetensors", [row(i, dtype, tokens) for i in (0, 3, 1)])
    write_text_shard(folder / "text-1.safetensors", [row(i, dtype, tokens) for i in (4, 2, 5)])
    return folder


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_every_caption_finds_its_own(tmp_path, dtype):
    found = TextFeatures(write(tmp_path / "text", dtype=dtype))
    assert (len(found), found.num_cut, found.longest, found.width) == (6, 1, 12, 4)
    order = [5, 0, 2, 2, 4, 1, 3]
    features, mask = found.gather([CAPTIONS[i] for i in order], order)
    assert features.shape == (7, 16, 4) and features.dtype == dtype
    for place, i in enumerate(order):
        assert torch.equal(features[place, : LENGTHS[i]], row(i, dtype).features)
        assert not features[place, LENGTHS[i] :].any()
        assert mask[place].sum() == LENGTHS[i] and mask[place, : LENGTHS[i]].all()
    assert found.gather(["a dog"], [0])[0].shape == (1, 8, 4)
    assert found.gather(["a dog"], [0], padded_to=20)[0].shape == (1, 20, 4)


def test_padding_that_is_stored_is_given_back(tmp_path):
    found = TextFeatures(write(tmp_path / "text", tokens=12), padded_to=12)
    features, mask = found.gather(["two cats", "a dog"], [0, 1], padded_to=12)
    assert torch.equal(features[0], row(2, tokens=12).features) and mask.sum(dim=1).tolist() == [9, 3]
    features, mask = found.gather(["a dog"], [0])
    assert torch.equal(features[0], row(1, tokens=12).features[:8]), "as far as the others need it"


def test_the_same_rows_give_the_same_bytes(tmp_path):
    one, two = (write(tmp_path / name) for name in "ab")
    for name in ("text-0.safetensors", "text-1.safetensors"):
        assert (one / name).read_bytes() == (two / name).read_bytes()


def test_a_caption_that_is_not_there_is_a_bad_sample(tmp_path):
    found = TextFeatures(write(tmp_path / "text"))
    for other in ("a dogs", "A dog", "zzz"):
        with pytest.raises(CorruptSample, match="no text features of its caption") as told:
            found.gather(["a dog", other], [3, 7])
        assert told.value.sample == 7


def test_damage_is_a_bad_sample(tmp_path):
    found = TextFeatures(write(tmp_path / "text"))
    path = tmp_path / "text" / "text-1.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[:-60])  # tables of bytes come last, 51 of them
    with pytest.raises(CorruptSample, match="cut short"):
        found.gather([CAPTIONS[i] for i in range(6)], range(6))
    tensors = load_file(tmp_path / "text" / "text-0.safetensors")
    tensors["features"][0] = float("nan")
    save_file(tensors, tmp_path / "text" / "text-0.safetensors")
    with pytest.raises(CorruptSample, match="not finite") as told:
        found.gather(["a dog", ""], [4, 5])
    assert told.value.sample == 5
    path.unlink()
    with pytest.raises(CorruptSample, match="No such file"):
        found.gather(["two cats"], [1])


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda t: t.pop("cut"), "got tensors 'features, hashes, lengths'"),
        (lambda t: t.update(features=t["features"].half()), r"features F16 \[6, 4\]"),
        (lambda t: t.update(features=t["features"][1:].clone()), r"features BF16 \[5, 4\]"),
        (lambda t: t.update(lengths=t["lengths"] * 0), "from one token for each"),
        (lambda t: t.update(hashes=t["hashes"][:, :8].clone()), "tables of different lengths"),
        (lambda t: t.update(features=t["features"].reshape(-1)), r"features BF16 \[24\]"),
    ],
)
def test_another_layout_is_refused(tmp_path, change, told):
    path = write(tmp_path / "text") / "text-0.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)
    with pytest.raises(UserError, match=told) as refused:
        TextFeatures(tmp_path / "text")
    assert "\n" not in str(refused.value)


def test_a_torn_or_missing_shard_is_refused(tmp_path):
    with pytest.raises(UserError, match="got no text features"):
        TextFeatures(tmp_path)
    path = write(tmp_path / "text") / "text-0.safetensors"
    data = path.read_bytes()
    for torn in (b"", data[:7], data[:40], data[:-1]):
        path.write_bytes(torn)
        with pytest.raises(UserError, match="text-0.safetensors: not a whole safetensors file"):
            TextFeatures(tmp_path / "text")


def test_shards_of_two_widths_are_refused(tmp_path):
    write(tmp_path / "text")
    write_text_shard(tmp_path / "text" / "text-2.safetensors", [row(0, width=8)])
    with pytest.raises(UserError, match="width or type differ"):
        TextFeatures(tmp_path / "text")


def test_a_hash_follows_from_the_text_alone():
    assert caption_hash("a dog") == caption_hash("a dog") != caption_hash("a dog ")
    assert len({caption_hash(each) for each in CAPTIONS}) == 6
    assert json.dumps(CAPTIONS[4])
