"""Features of pictures beside latents, and students that align with them."""

import json
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from lightgen.core.errors import UserError
from lightgen.core.metrics import read_metrics
from lightgen.data.images import ImageShards
from lightgen.data.representation import FOLDER, Representation
from lightgen.models.shape import TransformerConfig
from lightgen.objectives.alignment import RepaConfig
from lightgen.ports.patches import nano_patches
from lightgen.stages import train as stage
from lightgen.stages.checkpoint import load_detector, load_transformer, open_detector
from lightgen.stages.encode import EncodeConfig, encode
from lightgen.stages.encode_representation import RepresentationConfig
from lightgen.stages.tasks import PretrainTask, TrainConfig
from lightgen.stages.train import train
from lightgen.training.config import FitConfig, RunConfig
from tests.ports.toy_encoders import save_encoder

SMALL = TransformerConfig(
    width=32, num_heads=2, encoder_layers=1, decoder_layers=3, head_width=32, head_layers=1
)
STORED = RepresentationConfig(stored=True)
TASK = PretrainTask(model=SMALL, repa=RepaConfig(layer=1, hidden=16))
CONFIG = TrainConfig(
    task=TASK,
    fit=FitConfig(num_steps=4, global_batch_size=4, held_out=3, precision="fp32"),
    run=RunConfig(save_every=2, log_every=1),
)


@pytest.fixture(scope="module")
def latents(toy, tmp_path_factory):
    config = EncodeConfig(shard_size=5, batch_size=4, representation=STORED)
    return encode(config, tmp_path_factory.mktemp("seen") / "latents", [toy.images.path], toy.student.path)


@pytest.fixture(scope="module")
def trained(toy, latents, tmp_path_factory):
    return train(CONFIG, tmp_path_factory.mktemp("trained") / "student", [latents.path], toy.student.path)


def weights(artifact):
    return load_file(artifact.path / "transformer" / "diffusion_pytorch_model.safetensors")


def rows(artifact):
    """What a training saw, without its clock."""
    names = ("step", "loss", "alignment", "held_out", "grad_norm")
    records = read_metrics(artifact.path / "train_state" / "metrics.jsonl")
    return [{k: v for k, v in record.items() if k.startswith(names)} for record in records]


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_features_are_stored_beside_the_same_latents(toy, latents):
    plain, found = toy.latents.manifest, latents.manifest
    assert "representation" not in plain and not (toy.latents.path / FOLDER).exists()
    shards = {name: entry for name, entry in found["files"].items() if not name.startswith(FOLDER)}
    assert shards == plain["files"], "the latents do not change"
    assert found["representation"]["kind"] == "nano" and len(found["representation"]["model"]) == 64
    assert found["representation"]["token"] == 16
    stored = Representation(latents.path)
    assert (len(stored), stored.dim, stored.length(7)) == (12, 128, 16)
    image = torch.from_numpy(ImageShards(toy.images.path)[7].image).permute(2, 0, 1)[None]
    extractor = nano_patches(load_detector(open_detector(None)), torch.device("cpu"))
    wanted = extractor.patches(image.float().div(127.5).sub(1), (4, 4))
    torch.testing.assert_close(stored.gather([7]).float(), wanted, atol=3e-2, rtol=1e-2)


def test_dinov2_of_local_files_is_stored_at_each_size(toy, tmp_path):
    model = save_encoder("dinov2", tmp_path / "dinov2")
    stored = RepresentationConfig(stored=True, kind="dinov2", model=str(model))
    config = EncodeConfig(sizes=(32, 64), representation=stored)
    made = encode(config, tmp_path / "latents", [toy.images.path], toy.student.path)
    found = Representation(made.path)
    assert (len(found), found.dim) == (24, 32)
    assert [found.length(i) for i in (0, 23)] == [4, 16]
    config = replace(CONFIG, task=replace(TASK, repa=replace(TASK.repa, dim=32)))
    assert train(config, tmp_path / "student", [made.path], toy.student.path).counts["steps"] == 4
    with pytest.raises(UserError, match=r"got task.repa.dim 128, allowed: 32, as the features are"):
        stage.prepare(CONFIG, [made.path], toy.student.path)


def test_a_student_that_aligns_is_written_as_any_other(toy, trained):
    assert load_transformer(trained.path / "transformer").shape.width == 32
    assert not any("projection" in name for name in weights(trained))
    held_out = [row["held_out_alignment"] for row in rows(trained) if "held_out_alignment" in row]
    assert held_out and all(-1 <= each <= 1 for each in held_out)
    assert {"loss_masked", "alignment"} <= rows(trained)[0].keys()


def test_without_the_term_the_features_change_nothing(toy, latents, trained, tmp_path):
    plain = replace(CONFIG, task=replace(TASK, repa=None))
    one = train(plain, tmp_path / "one", [latents.path], toy.student.path)
    other = train(plain, tmp_path / "other", [toy.latents.path], toy.student.path)
    assert same(weights(one), weights(other)) and not same(weights(one), weights(trained))
    assert "alignment" not in rows(one)[0]
    assert rows(one)[0]["loss"] == pytest.approx(rows(trained)[0]["loss_masked"]), "of the same draws"


@pytest.mark.parametrize("dying", [1, 3])
def test_a_killed_run_ends_with_the_same_weights(toy, latents, trained, tmp_path, monkeypatch, dying):
    prepare = stage.prepare

    def prepare_to_die(*arguments):
        job, parents = prepare(*arguments)

        def load(source, ids, step):
            if step == dying:
                raise KeyboardInterrupt
            return source.load(ids, step)

        def training(folder):
            made = job.training(folder)
            source = SimpleNamespace(ids=made.source.ids, load=partial(load, made.source))
            return replace(made, source=source)

        return replace(job, training=training), parents

    monkeypatch.setattr(stage, "prepare", prepare_to_die)
    with pytest.raises(KeyboardInterrupt):
        train(CONFIG, tmp_path / "student", [latents.path], toy.student.path)
    monkeypatch.setattr(stage, "prepare", prepare)
    finished = train(CONFIG, tmp_path / "student", [latents.path], toy.student.path)
    assert same(weights(finished), weights(trained)) and rows(finished) == rows(trained)


def test_micro_batches_and_bf16_learn_the_same(toy, latents, trained, tmp_path):
    halves = replace(CONFIG, run=replace(CONFIG.run, micro_batch_size=2))
    made = train(halves, tmp_path / "halves", [latents.path], toy.student.path)
    for name, tensor in weights(trained).items():
        torch.testing.assert_close(weights(made)[name], tensor, atol=1e-3, rtol=1e-2, msg=name)
    low = replace(CONFIG, fit=replace(CONFIG.fit, precision="bf16"))
    made = train(low, tmp_path / "low", [latents.path], toy.student.path)
    assert rows(made)[0]["alignment"] == pytest.approx(rows(trained)[0]["alignment"], abs=0.02)


def test_a_picture_without_readable_features_is_replaced(toy, latents, trained, tmp_path):
    config = replace(CONFIG, run=replace(CONFIG.run, max_bad_share=0.5))
    job, _ = stage.prepare(config, [latents.path], toy.student.path)
    source = job.training(None).source
    ids = list(source.ids(0))
    path = sorted((latents.path / FOLDER).iterdir())[ids[0] // 5]
    data = path.read_bytes()
    try:
        end = len(data) - (5 - 1 - ids[0] % 5 if ids[0] < 10 else 1 - ids[0] % 5) * 2 * 16 * 128
        path.write_bytes(data[: end - 2] + b"\xff\xff" + data[end:])
        batch = source.load(ids, 0)
    finally:
        path.write_bytes(data)
    assert batch["ids"][0] != ids[0] and batch["ids"][1:] == ids[1:]
    assert batch["representation"].shape == (4, 16, 128)


def test_what_is_refused(toy, latents, tmp_path):
    def refused(inputs=latents, **changes):
        config = replace(CONFIG, task=replace(TASK, **changes))
        with pytest.raises(UserError, match=r"^[^\n]+$") as told:
            stage.prepare(config, [inputs.path], toy.student.path)
        return str(told.value)

    without = "got latents without features of their pictures and task.repa, allowed: latents that were "
    assert without + "encoded with representation.stored" in refused(toy.latents)
    assert "got images and task.repa, allowed: latents" in refused(toy.images, image_size=64)
    assert "layer 2 of 3 decoder blocks, allowed: from 1 to two" in refused(repa=RepaConfig(layer=2))
    fine = replace(SMALL, patch_size=1)
    assert "features of 16 tokens, allowed: 64, as the transformer has" in refused(model=fine)

    def not_encoded(**changes):
        config = EncodeConfig(representation=replace(STORED, **changes))
        with pytest.raises(UserError, match=r"^[^\n]+$") as told:
            encode(config, tmp_path / "x", [toy.images.path], toy.student.path)
        return str(told.value)

    assert "images of 64x64 px, allowed: sides in multiples of" in not_encoded(token=24)
    assert "got representation token 0" in not_encoded(token=0)
    assert "nano: got precision bf16, allowed: fp32" in not_encoded(precision="bf16")


def test_the_projection_is_in_the_saved_state(toy, latents, tmp_path):
    job, _ = stage.prepare(CONFIG, [latents.path], toy.student.path)
    names = [name for name, _ in job.learner.named_parameters() if name.startswith("projection.")]
    assert len(names) == 6
    config = replace(CONFIG, fit=replace(CONFIG.fit, num_steps=2))
    folder = tmp_path / "state"
    stage.fit(config.fit, job.training(folder), folder, config.run)
    meta = json.loads((folder / "state" / "step-00000002" / "state.json").read_text())
    saved = load_file(folder / "state" / "step-00000002" / next(iter(meta["files"])))
    for part in ("weights", "ema"):
        assert {f"{part}/{name}" for name in names} <= saved.keys()
