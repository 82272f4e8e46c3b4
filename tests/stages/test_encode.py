import io
import json
import tarfile
from dataclasses import replace

import numpy as np
import pytest
import torch

from lightgen.core.artifact import ArtifactError
from lightgen.core.errors import UserError
from lightgen.data.images import ImageRecord, ImageShards, write_image_shard
from lightgen.data.latents import LatentShards
from lightgen.ports.autoencoder import load_autoencoder
from lightgen.stages import encode_images as stage
from lightgen.stages.checkpoint import autoencoder_digest
from lightgen.stages.distill import distill
from lightgen.stages.encode import EncodeConfig, encode
from lightgen.stages.tasks import PretrainTask, TrainConfig
from lightgen.stages.train import train
from lightgen.training.config import FitConfig
from tests.stages.toy import SIDE, toy_distill, write_student


def test_rows_carry_what_later_stages_need(toy):
    latents, images = LatentShards(toy.latents.path), ImageShards(toy.images.path)
    assert toy.latents.counts == {"rows": 12, "skipped": 0, "upscaled": 0}
    assert latents.shape(0) == (16, SIDE // 8, SIDE // 8)
    assert not latents.has_std
    row, meta = latents.row(7), images.meta(7)
    assert (row["caption"], row["key"]) == (meta["prompt"], images.key(7))
    assert (row["height"], row["width"]) == (SIDE, SIDE)
    assert row["include"] == meta["include"]
    assert row["seed"] == meta["seed"]
    assert toy.latents.manifest["autoencoder"] == autoencoder_digest(toy.student)
    assert toy.latents.manifest["text_encoder"] is None
    assert [parent["digest"] for parent in toy.latents.parents] == [toy.images.digest, toy.student.digest]


def test_latents_are_those_of_the_autoencoder(toy):
    latents, images = LatentShards(toy.latents.path), ImageShards(toy.images.path)
    pixels = torch.from_numpy(images[9].image).permute(2, 0, 1)[None].float() / 127.5 - 1
    mean, _ = load_autoencoder(toy.student.path / "vae").encode(pixels)
    torch.testing.assert_close(latents[9].mean, mean[0], atol=2e-2, rtol=1e-2)


def test_a_killed_run_continues(toy, tmp_path, monkeypatch):
    write, names = stage.write_latent_shard, []

    def write_or_die(path, *rest):
        names.append(path.stem)
        if len(names) == 2:
            raise KeyboardInterrupt
        write(path, *rest)

    monkeypatch.setattr(stage, "write_latent_shard", write_or_die)
    config = EncodeConfig(shard_size=5, batch_size=4)
    with pytest.raises(KeyboardInterrupt):
        encode(config, tmp_path / "latents", [toy.images.path], toy.student.path)
    made = encode(config, tmp_path / "latents", [toy.images.path], toy.student.path)
    assert names == ["latents-00000", "latents-00001", "latents-00001", "latents-00002"]
    assert made.manifest["files"] == toy.latents.manifest["files"]


def test_several_directories_and_scores(toy, tmp_path):
    image = ImageShards(toy.images.path)[0].image
    plain = tmp_path / "plain"
    plain.mkdir()
    write_image_shard(
        plain / "a.tar", [ImageRecord("k", image, {"prompt": "a dog", "score": 0.5, "junk": 1})]
    )
    with tarfile.open(plain / "b.tar", "w") as tar:
        files = (("bad.png", b"no image"), ("bad.json", b'{"prompt": "a cat"}'), ("lone.png", b"no JSON"))
        for name, data in files:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    made = encode(EncodeConfig(), tmp_path / "latents", [toy.images.path, plain], toy.student.path)
    assert made.counts == {"rows": 13, "skipped": 1, "upscaled": 0, "no_record": 1}
    listed = [json.loads(line) for line in (made.path / "skipped.jsonl").read_text().splitlines()]
    assert [each["key"] for each in listed] == ["1/bad", "b.tar/lone"]
    assert made.manifest["skipped"]["no JSON or txt"] == 1
    assert made.config["plain_inputs"][0]["name"] == "plain"
    assert set(made.config["plain_inputs"][0]["shards"]) == {"a.tar", "b.tar"}
    row = LatentShards(made.path).row(12)
    assert (row["key"], row["score"]) == ("1/k", 0.5)
    assert "junk" not in row


def test_what_is_refused(toy, tmp_path):
    with pytest.raises(ArtifactError, match="got kind 'latents', allowed: images"):
        encode(EncodeConfig(), tmp_path / "x", [toy.latents.path], toy.student.path)
    with pytest.raises(UserError, match="checkpoint with vae"):
        encode(EncodeConfig(), tmp_path / "x", [toy.images.path], toy.detector.path)
    with pytest.raises(UserError, match="--in: got nothing"):
        encode(EncodeConfig(), tmp_path / "x", [], toy.student.path)
    other = distill(toy_distill(2, height=72), tmp_path / "other")
    with pytest.raises(UserError, match="image of 64x72 px, allowed: one size for all, here 64x64"):
        encode(EncodeConfig(), tmp_path / "x", [toy.images.path, other.path], toy.student.path)


def test_another_autoencoder_has_another_digest(toy, tmp_path):
    other = write_student(tmp_path / "other", seed=1)
    assert autoencoder_digest(other) != autoencoder_digest(toy.student)
    same = write_student(tmp_path / "same")
    assert autoencoder_digest(same) == autoencoder_digest(toy.student)


def test_buckets_keep_proportions_and_train(toy, tmp_path):
    sizes = [(128, 128)] * 4 + [(96, 200)] * 5 + [(300, 150)] * 3
    records = [
        ImageRecord(f"{i:02}", np.full((*size, 3), 20 * i, dtype=np.uint8), {"prompt": f"a dog {i}"})
        for i, size in enumerate(sizes)
    ]
    (tmp_path / "images").mkdir()
    write_image_shard(tmp_path / "images" / "a.tar", records)
    config = EncodeConfig(sizes=(128,), buckets=True, shard_size=3)
    made = encode(config, tmp_path / "latents", [tmp_path / "images"], toy.student.path)
    assert made.counts == {"rows": 12, "skipped": 0, "upscaled": 0}
    latents = LatentShards(made.path)
    found = {len(group): latents.shape(group[0]) for group in map(flat, latents.groups())}
    assert found == {4: (16, 16, 16), 5: (16, 12, 22), 3: (16, 22, 12)}
    for group in latents.groups():
        shape = latents.shape(group[0].start)
        assert {(row["height"] // 8, row["width"] // 8) for row in map(latents.row, flat(group))} == {
            shape[1:]
        }
    task = PretrainTask(image_size=128)
    fit = FitConfig(num_steps=4, global_batch_size=3, precision="fp32")
    trained = train(TrainConfig(task=task, fit=fit), tmp_path / "student", [made.path], toy.student.path)
    assert trained.counts["steps"] == 4
    with pytest.raises(UserError, match="allowed: 64x64 px"):
        train(
            TrainConfig(task=replace(task, image_size=64), fit=fit),
            tmp_path / "x",
            [made.path],
            toy.student.path,
        )
    with pytest.raises(UserError, match="buckets and sizes \\[\\]"):
        encode(EncodeConfig(buckets=True), tmp_path / "y", [tmp_path / "images"], toy.student.path)


def test_a_size_cuts_the_middle_square(toy, tmp_path):
    wide = np.zeros((64, 128, 3), dtype=np.uint8)
    wide[:, 32:96] = 255
    (tmp_path / "images").mkdir()
    records = [ImageRecord("a", wide, {"prompt": "a"}), ImageRecord("b", wide[:, 32:96], {"prompt": "b"})]
    write_image_shard(tmp_path / "images" / "a.tar", records)
    made = encode(EncodeConfig(sizes=(64,)), tmp_path / "latents", [tmp_path / "images"], toy.student.path)
    mean, _, rows = LatentShards(made.path).gather([0, 1])
    assert torch.equal(mean[0], mean[1]) and [row["width"] for row in rows] == [64, 64]


def flat(ranges):
    return [i for each in ranges for i in each]
