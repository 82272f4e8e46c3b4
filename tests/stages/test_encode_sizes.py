"""Several sizes, large pictures, bad pictures, and the numbers that the manifest tells of latents."""

import json
import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

from lightgen.core.artifact import Artifact, begin_artifact
from lightgen.core.errors import UserError
from lightgen.data.images import (
    EncodedRecord,
    ImageRecord,
    encode_image,
    write_encoded_shard,
    write_image_shard,
)
from lightgen.data.latents import LatentShards
from lightgen.ports.autoencoder import DiffusersAutoencoder
from lightgen.stages import encode_images
from lightgen.stages.encode import SKIPPED, EncodeConfig, encode
from lightgen.stages.encode_images import ImageWork
from lightgen.stages.engine import write_shards
from lightgen.stages.inputs import ImageInputs
from lightgen.stages.pipeline import LightGenPipeline
from lightgen.stages.tasks import DPOTask, PretrainTask, TrainConfig
from lightgen.stages.train import prepare, train
from lightgen.training.config import FitConfig
from tests.stages.toy import toy_parts

FIT = FitConfig(num_steps=2, global_batch_size=3, precision="fp32")


def kl_autoencoder() -> AutoencoderKL:
    """A small one of the class of SD3.5: 16 channels, a shift, stride 8."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=(8, 8, 16, 16),
            layers_per_block=1,
            norm_num_groups=4,
            latent_channels=16,
            scaling_factor=1.5305,
            shift_factor=0.0609,
            use_quant_conv=False,
            use_post_quant_conv=False,
            mid_block_add_attention=False,
        )


@pytest.fixture(scope="module")
def kl(tmp_path_factory):
    """A student whose autoencoder draws latents."""
    workspace = begin_artifact(tmp_path_factory.mktemp("kl") / "student", "checkpoint", {"toy": "kl"}, [])
    assert not isinstance(workspace, Artifact)
    with workspace:
        parts = replace(toy_parts(), vae=kl_autoencoder().eval())
        LightGenPipeline.from_parts(parts).save_pretrained(workspace.path)
        return workspace.commit({})


def write(folder, images, **meta):
    folder.mkdir()
    records = [
        ImageRecord(f"{i:02}", image, {"prompt": f"a dog {i}", **{k: v[i] for k, v in meta.items()}})
        for i, image in enumerate(images)
    ]
    write_image_shard(folder / "a.tar", records)
    return folder


def noise(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def picture():
    return torch.from_numpy(noise(128, 128)).permute(2, 0, 1)[None] / 127.5 - 1


def tensors(artifact):
    latents = LatentShards(artifact.path)
    return {
        (row["height"], row["key"]): (latents[i].mean, latents[i].std) for i, row in enumerate(latents.rows())
    }


def test_each_image_is_read_once_and_is_there_in_every_size(kl, tmp_path, monkeypatch):
    images = write(tmp_path / "images", [noise(64, 96 - 8 * (i % 2), i) for i in range(7)])
    read, get = [], ImageInputs.__getitem__
    monkeypatch.setattr(ImageInputs, "__getitem__", lambda self, i: read.append(i) or get(self, i))
    config = EncodeConfig(sizes=(64, 32), batch_size=2, shard_size=5)
    both = encode(config, tmp_path / "both", [images], kl.path)
    assert sorted(read) == list(range(7))
    assert both.counts == {"rows": 14, "skipped": 0, "upscaled": 0}
    names = [name for name in both.manifest["files"] if name.endswith(".safetensors")]
    assert names == [f"latents-{s:04d}-{n:05d}.safetensors" for s in (32, 64) for n in (0, 1)]
    latents = LatentShards(both.path)
    assert latents.groups() == [[range(7)], [range(7, 14)]]
    alone = [
        encode(replace(config, sizes=(size,)), tmp_path / str(size), [images], kl.path) for size in (32, 64)
    ]
    assert {name: row["rows"] for name, row in both.manifest["latent_sizes"].items()} == {"32": 7, "64": 7}
    expected = tensors(alone[0]) | tensors(alone[1])
    for name, (mean, std) in tensors(both).items():
        torch.testing.assert_close(mean, expected[name][0], atol=2e-2, rtol=2e-2)
        torch.testing.assert_close(std, expected[name][1], atol=2e-2, rtol=2e-2)


def test_a_small_size_is_encoded_in_larger_batches(toy, tmp_path, monkeypatch):
    found, encode_batch = [], encode_images.Encoder.encode
    monkeypatch.setattr(
        encode_images.Encoder,
        "encode",
        lambda self, images: found.append((images[0].shape[0], len(images))) or encode_batch(self, images),
    )
    encode(EncodeConfig(sizes=(32, 64), batch_size=2), tmp_path / "x", [toy.images.path], toy.student.path)
    assert sorted(found) == [(32, 4), (32, 8)] + 6 * [(64, 2)]


def test_training_takes_the_rows_of_its_size(toy, tmp_path):
    scores = [0.0, 1.0] * 6
    images = write(tmp_path / "images", [noise(64, 64, i) for i in range(12)], score=scores)
    made = encode(EncodeConfig(sizes=(32, 64)), tmp_path / "latents", [images], toy.student.path)
    shapes = {32: (16, 4, 4), 64: (16, 8, 8)}
    for size, rows in ((32, range(12)), (64, range(12, 24))):
        task = PretrainTask(image_size=size)
        job, _ = prepare(TrainConfig(task=task, fit=FIT), [made.path], toy.student.path)
        training = job.training(None)
        ids = {i for step in range(4) for i in training.source.ids(step)}
        assert ids == set(rows) and job.facts["samples"] == 12
        assert training.source.load([min(ids)], 0)["latents"].shape[1:] == shapes[size]
        assert training.flops_per_sample() > 0
        scored, _ = prepare(
            TrainConfig(task=replace(task, min_score=0.5), fit=FIT), [made.path], toy.student.path
        )
        assert scored.facts["samples"] == 6
    config = TrainConfig(task=PretrainTask(image_size=128), fit=FIT)
    with pytest.raises(UserError, match="images of 32x32, 64x64 px, allowed: 128x128 px"):
        prepare(config, [made.path], toy.student.path)
    trained = train(
        replace(config, task=PretrainTask(image_size=32)),
        tmp_path / "student",
        [made.path],
        toy.student.path,
    )
    assert trained.counts["steps"] == 2


def test_preferences_compare_rows_of_one_size(toy, tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    records = [
        ImageRecord(f"{i}", noise(64, 64, i), {"prompt": f"a dog {i // 2}", "score": float(i % 2)})
        for i in range(8)
    ]
    write_image_shard(images / "a.tar", records)
    made = encode(EncodeConfig(sizes=(32, 64)), tmp_path / "latents", [images], toy.student.path)
    fit = replace(FIT, global_batch_size=2)
    job, _ = prepare(TrainConfig(task=DPOTask(image_size=64), fit=fit), [made.path], toy.student.path)
    assert job.facts["pairs"]["pairs"] == 4 and job.facts["pairs"]["other_size"] == 0
    batch = job.training(None).source.load([0, 1, 2, 3], 0)
    assert batch["chosen"].shape == (4, 16, 8, 8)
    latents = LatentShards(made.path)
    for pair in range(4):
        assert torch.equal(batch["chosen"][pair], latents[8 + 2 * pair + 1].mean)
        assert torch.equal(batch["rejected"][pair], latents[8 + 2 * pair].mean)


def test_the_manifest_tells_how_latents_are_spread(kl, tmp_path):
    images = write(tmp_path / "images", [noise(64, 64, i) for i in range(5)])
    made = encode(
        EncodeConfig(sizes=(32, 64), batch_size=2, shard_size=3), tmp_path / "latents", [images], kl.path
    )
    whole = {32: [], 64: []}
    for (size, _), (mean, std) in tensors(made).items():
        assert float(std.min()) > 0
        whole[size].append(torch.stack([mean.double(), std.double()]).flatten(2))
    values = {size: torch.cat(each, dim=2) for size, each in whole.items()}
    facts = {"32": values[32], "64": values[64]}
    for name, (mean, std) in facts.items():
        check(made.manifest["latent_sizes"][name], mean, std)
    mean, std = torch.cat([values[32], values[64]], dim=2)
    check(made.manifest, mean, std)
    # a run in other shards adds the same numbers up
    other = encode(EncodeConfig(sizes=(32, 64), batch_size=2), tmp_path / "other", [images], kl.path)
    assert other.manifest["latent_mean"] == pytest.approx(made.manifest["latent_mean"], rel=1e-3)


def check(facts, mean, std):
    drawn = (std.square().mean(dim=1) + mean.var(dim=1, unbiased=False)).sqrt()
    np.testing.assert_allclose(facts["latent_mean"], mean.mean(dim=1).numpy(), rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(facts["latent_std"], drawn.numpy(), rtol=1e-12)


def test_work_that_travels_writes_the_same_bytes(kl, tmp_path, monkeypatch):
    images = write(tmp_path / "images", [noise(64, 64, i) for i in range(5)])
    config = EncodeConfig(sizes=(32, 64), batch_size=2, shard_size=2)
    here = encode(config, tmp_path / "here", [images], kl.path)
    works = []

    def far(engine, workspace, task, names, sizes, work, *more):
        works.append(work)
        with monkeypatch.context() as patch:
            patch.chdir(tmp_path)
            for number in reversed(range(len(names))):  # each in a process of its own
                pickle.loads(pickle.dumps(work)).open()(workspace.path / names[number], number, print)

    monkeypatch.setattr("lightgen.stages.encode.write_shards", far)
    there = encode(config, tmp_path / "there", [images], kl.path)
    assert isinstance(works[0], ImageWork) and write_shards is not far
    assert there.manifest["files"] == here.manifest["files"]
    facts = ("latent_mean", "latent_std", "latent_sizes", "counts", "skipped")
    assert all(there.manifest[name] == here.manifest[name] for name in facts)


def test_every_bad_image_is_listed_with_its_reason(toy, tmp_path, capsys):
    folder = tmp_path / "images"
    folder.mkdir()
    good = encode_image(noise(64, 64))
    files = [good, b"no picture at all", good[:200], good, b""]
    records = [EncodedRecord(f"{i}", data, "png", {"prompt": f"a dog {i}"}) for i, data in enumerate(files)]
    write_encoded_shard(folder / "a.tar", records)
    config = EncodeConfig(sizes=(32, 64), shard_size=2)
    made = encode(config, tmp_path / "latents", [folder], toy.student.path)
    assert made.counts == {"rows": 4, "skipped": 3, "upscaled": 0}
    lines = [json.loads(line) for line in (made.path / SKIPPED).read_text().splitlines()]
    assert [line["key"] for line in lines] == ["1", "2", "4"]
    assert all(line["reason"].startswith("not a whole PNG, JPEG or WebP image") for line in lines)
    assert sum(made.manifest["skipped"].values()) == 3
    assert "skipped 3 of 5 images" in capsys.readouterr().err
    assert [row["key"] for row in LatentShards(made.path).rows()] == ["0", "3"] * 2
    write_encoded_shard(folder / "a.tar", records[1:3])
    with pytest.raises(UserError, match=r"none of 2 images can be read \(not a whole"):
        encode(config, tmp_path / "none", [folder], toy.student.path)
    with pytest.raises(UserError, match="none of 2 images can be read"):
        encode(EncodeConfig(), tmp_path / "none-as-is", [folder], toy.student.path)
    assert not (tmp_path / "none").exists()


def test_one_image_and_one_smaller_than_its_size(toy, tmp_path, capsys):
    images = write(tmp_path / "images", [noise(48, 200)])
    made = encode(EncodeConfig(sizes=(32, 64)), tmp_path / "latents", [images], toy.student.path)
    assert made.counts == {"rows": 2, "skipped": 0, "upscaled": 1}
    assert "1 rows are of images smaller than their size" in capsys.readouterr().err
    assert not (made.path / SKIPPED).exists()


def test_tiles_cover_large_images_alone(kl, tmp_path):
    images = write(tmp_path / "images", [noise(160, 160, i) for i in range(2)])

    def means(name, tile=64, **settings):
        config = EncodeConfig(sizes=(64, 160), tile=tile, **settings)
        made = encode(config, tmp_path / name, [images], kl.path)
        return {size: found for (size, _), (found, _) in tensors(made).items()}

    whole, tiled, auto = (means(each, tiled=each) for each in ("never", "always", "auto"))
    # one tile is the whole image, but for the last bit of bf16: tiles are taken one by one
    torch.testing.assert_close(whole[64], tiled[64], rtol=2**-7, atol=2**-9)
    assert not torch.equal(whole[160], tiled[160])
    assert whole[160].shape == tiled[160].shape == (16, 20, 20)
    error, other = (
        (whole[160] - each).std() / whole[160].std() for each in (tiled[160], tiled[160].flip(1, 2))
    )
    assert error < 0.7 < 1.2 < other, "normalised by tile, but still this picture"
    assert torch.equal(auto[64], whole[64]) and torch.equal(auto[160], tiled[160])
    assert torch.equal(means("wide", tile=96)[160], whole[160]), "shorter than two tiles"


def test_the_port_takes_whole_pictures_again(kl):
    autoencoder, pixels = DiffusersAutoencoder(kl_autoencoder().eval()), picture()
    whole, std = autoencoder.encode(pixels)
    autoencoder.use_tiles(64)
    assert not torch.equal(autoencoder.encode(pixels)[0], whole)
    autoencoder.use_tiles(None)
    again, _ = autoencoder.encode(pixels)
    assert torch.equal(again, whole) and whole.shape == std.shape == (1, 16, 16, 16)
    raw = autoencoder.vae.encode(pixels).latent_dist
    torch.testing.assert_close(whole, (raw.mean - 0.0609) * 1.5305, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(std, raw.std * 1.5305, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"batch_size": 0}, "batch_size 0"),
        ({"sizes": (64, 64)}, "allowed: each once"),
        ({"sizes": (0,)}, r"sizes \[0\], allowed: from 1"),
        ({"sizes": (60,)}, "images of 60x60 px, allowed: sides in multiples of 8 px"),
        ({"tile": 100}, "tile 100, allowed: multiples of 32 px"),
        ({"sizes": (64, 100), "buckets": True}, "sizes in multiples of 64"),
    ],
)
def test_what_is_refused(toy, tmp_path, settings, told):
    with pytest.raises(UserError, match=told) as refused:
        encode(EncodeConfig(**settings), tmp_path / "x", [toy.images.path], toy.student.path)
    assert "\n" not in str(refused.value) and not (tmp_path / "x").exists()


def test_buckets_share_shards_in_every_size(toy, tmp_path):
    images = write(tmp_path / "images", [noise(*size) for size in 2 * [(128, 128), (96, 200)]])
    config = EncodeConfig(sizes=(64, 128), buckets=True)
    made = encode(config, tmp_path / "latents", [images], toy.student.path)
    latents = LatentShards(made.path)
    found = {latents.shape(group[0].start)[1:]: sum(map(len, group)) for group in latents.groups()}
    assert found == {(8, 8): 2, (6, 11): 2, (16, 16): 2, (12, 22): 2}
