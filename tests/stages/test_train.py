import json
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from lightgen.core.artifact import ArtifactError
from lightgen.core.errors import UserError
from lightgen.core.metrics import read_metrics
from lightgen.data.images import ImageShards
from lightgen.models.shape import TransformerConfig
from lightgen.objectives.dpo import DPOConfig
from lightgen.objectives.masked import MaskedConfig
from lightgen.stages import train as stage
from lightgen.stages.checkpoint import (
    autoencoder_digest,
    load_detector,
    load_parts,
    open_checkpoint,
    transformer_shape,
)
from lightgen.stages.encode import EncodeConfig, encode
from lightgen.stages.pipeline import LightGenPipeline
from lightgen.stages.rank import RankConfig, rank
from lightgen.stages.tasks import AutoencoderTask, DetectorTask, DPOTask, PretrainTask, TrainConfig
from lightgen.stages.train import train
from lightgen.training.config import FitConfig, RunConfig
from tests.stages.toy import write_student

FIT = FitConfig(num_steps=5, global_batch_size=4, precision="fp32")
RUN = RunConfig(save_every=2, log_every=1)
PRETRAIN = TrainConfig(task=PretrainTask(), fit=FIT, run=RUN)
SMALL = TransformerConfig(
    width=32, num_heads=2, encoder_layers=1, decoder_layers=1, head_width=32, head_layers=1
)


def tensors(artifact, part="transformer"):
    name = "model" if part == "text_encoder" else "diffusion_pytorch_model"
    return load_file(artifact.path / part / f"{name}.safetensors")


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture(scope="module")
def trained(toy, tmp_path_factory):
    return train(
        PRETRAIN, tmp_path_factory.mktemp("trained") / "student", [toy.latents.path], toy.student.path
    )


@pytest.fixture(scope="module")
def ranked(toy, tmp_path_factory):
    """Latents with scores: every caption twice, once from each of two directories."""
    root = tmp_path_factory.mktemp("ranked")
    images = rank(RankConfig(by="source"), root / "images", [toy.images.path, toy.images.path])
    return encode(EncodeConfig(), root / "latents", [images.path], toy.student.path)


def test_a_student_goes_on_learning(toy, trained):
    assert trained.counts["steps"] == 5
    assert trained.manifest["samples"] == 12
    assert [parent["digest"] for parent in trained.parents] == [toy.latents.digest, toy.student.digest]
    assert not same(tensors(trained), tensors(toy.student))
    assert same(tensors(trained, "text_encoder"), tensors(toy.student, "text_encoder")), "it was frozen"
    assert autoencoder_digest(trained) == autoencoder_digest(toy.student)
    metrics = read_metrics(trained.path / "train_state" / "metrics.jsonl")
    assert [record["step"] for record in metrics] == [1, 2, 3, 4, 5]
    assert not (trained.path / "train_state" / "state").exists()
    assert "runs" not in (trained.path / "model_index.json").read_text()
    picture = LightGenPipeline.from_pretrained(trained.path)("a dog", 64, 64, 2, 2, output_type="np").images
    assert picture.shape == (1, 64, 64, 3)


def test_a_student_goes_on_with_another_step_of_positions(toy, tmp_path):
    task = PretrainTask(position_step=0.5)
    went = train(replace(PRETRAIN, task=task), tmp_path / "half", [toy.latents.path], toy.student.path)
    assert transformer_shape(went) == replace(transformer_shape(toy.student), position_step=0.5)
    assert load_parts(went.path).transformer.shape.position_step == 0.5
    again = train(PRETRAIN, tmp_path / "kept", [toy.latents.path], went.path)
    assert transformer_shape(again).position_step == 0.5


def test_a_second_run_does_nothing(toy, trained, monkeypatch):
    monkeypatch.setattr(stage, "fit", lambda *_: pytest.fail("trained again"))
    assert train(PRETRAIN, trained.path, [toy.latents.path], toy.student.path).digest == trained.digest


def watched(job, load, **changes):
    """The job, with every micro-batch read by `load(source, ids, step)`."""

    def training(folder):
        made = job.training(folder)
        source = SimpleNamespace(ids=made.source.ids, load=partial(load, made.source))
        return replace(made, source=source)

    return replace(job, training=training, **changes)


@pytest.mark.parametrize("dying", [1, 2, 3, 4])
def test_a_killed_run_ends_with_the_same_weights(toy, trained, tmp_path, monkeypatch, dying):
    prepare = stage.prepare

    def prepare_to_die(*arguments):
        job, parents = prepare(*arguments)

        def load(source, ids, step):
            if step == dying:
                raise KeyboardInterrupt
            return source.load(ids, step)

        return watched(job, load), parents

    monkeypatch.setattr(stage, "prepare", prepare_to_die)
    with pytest.raises(KeyboardInterrupt):
        train(PRETRAIN, tmp_path / "student", [toy.latents.path], toy.student.path)
    assert not (tmp_path / "student").exists()
    monkeypatch.setattr(stage, "prepare", prepare)
    finished = train(PRETRAIN, tmp_path / "student", [toy.latents.path], toy.student.path)
    assert same(tensors(finished), tensors(trained))
    metrics = read_metrics(finished.path / "train_state" / "metrics.jsonl")
    assert [record["step"] for record in metrics] == [1, 2, 3, 4, 5]


def test_a_run_killed_after_its_last_step_takes_no_more(toy, trained, tmp_path, monkeypatch):
    steps, prepare, config = [], stage.prepare, replace(PRETRAIN, run=replace(RUN, save_every=100))

    def prepare_to_fail(*arguments):
        job, parents = prepare(*arguments)

        def load(source, ids, step):
            steps.append(step)
            return source.load(ids, step)

        def save(folder, averaged):
            if not folder.name.startswith(".student"):
                return job.save(folder, averaged)  # a checkpoint on the way
            (folder / "transformer").mkdir()
            (folder / "transformer" / "torn").write_text("half")
            raise OSError("no space left")

        return watched(job, load, save=save if len(steps) == 0 else job.save), parents

    monkeypatch.setattr(stage, "prepare", prepare_to_fail)
    with pytest.raises(OSError, match="no space"):
        train(config, tmp_path / "student", [toy.latents.path], toy.student.path)
    finished = train(config, tmp_path / "student", [toy.latents.path], toy.student.path)
    assert sorted(steps) == [0, 1, 2, 3, 4]
    assert same(tensors(finished), tensors(trained))
    assert finished.manifest["files"].keys() == trained.manifest["files"].keys()


def test_a_new_student_with_its_text_encoder(toy, tmp_path):
    task = PretrainTask(
        objective=MaskedConfig(draws_per_token=1),
        model=SMALL,
        text_encoder="new",
        train_text_encoder=True,
        seed=3,
    )
    made = train(
        TrainConfig(task=task, fit=FIT, run=RUN), tmp_path / "new", [toy.latents.path], toy.student.path
    )
    parts = load_parts(made.path)
    assert parts.transformer.config["width"] == 32
    assert parts.transformer.config["latent_channels"] == 16
    assert not same(tensors(made, "text_encoder"), tensors(toy.student, "text_encoder"))
    frozen = replace(task, train_text_encoder=False)
    other = train(
        TrainConfig(task=frozen, fit=FIT, run=RUN), tmp_path / "frozen", [toy.latents.path], toy.student.path
    )
    assert not same(tensors(made, "text_encoder"), tensors(other, "text_encoder")), "one learned, one did not"


def test_preferences_move_the_student_towards_the_chosen(toy, ranked, tmp_path):
    task = DPOTask(objective=DPOConfig(beta=50.0), margin=0.5)
    made = train(TrainConfig(task=task, fit=FIT, run=RUN), tmp_path / "dpo", [ranked.path], toy.student.path)
    assert made.manifest["pairs"] == {
        "prompts": 12,
        "pairs": 12,
        "ties": 0,
        "below_margin": 0,
        "over_limit": 0,
        "other_size": 0,
    }
    metrics = read_metrics(made.path / "train_state" / "metrics.jsonl")
    assert metrics[0]["loss"] == pytest.approx(0.6931, abs=1e-3), "student and reference agree at the start"
    assert {"accuracy", "margin", "chosen_change", "rejected_change"} <= metrics[-1].keys()


def test_preferences_without_pairs_are_refused(toy, ranked, tmp_path):
    with pytest.raises(UserError, match="no pair differs by 5"):
        train(
            TrainConfig(task=DPOTask(margin=5), fit=FIT, run=RUN),
            tmp_path / "x",
            [ranked.path],
            toy.student.path,
        )
    with pytest.raises(UserError, match="score None of row 0, allowed: .*made by rank"):
        train(
            TrainConfig(task=DPOTask(), fit=FIT, run=RUN),
            tmp_path / "x",
            [toy.latents.path],
            toy.student.path,
        )


def test_images_are_encoded_on_the_way_and_checkpoints_left_there(toy, trained, tmp_path):
    task = PretrainTask(image_size=64)
    config = TrainConfig(task=task, fit=replace(FIT, held_out=3), run=replace(RUN, keep_last=1, keep_every=4))
    made = train(config, tmp_path / "student", [toy.images.path], toy.student.path)
    assert [parent["digest"] for parent in made.parents] == [toy.images.digest, toy.student.digest]
    metrics = read_metrics(made.path / "train_state" / "metrics.jsonl")
    assert metrics[-1]["held_out_loss"] > 0 and metrics[-1]["held_out_loss_ema"] > 0
    steps = {path.name: open_checkpoint(path) for path in (tmp_path / "student-steps").iterdir()}
    assert sorted(steps) == ["step-00000004", "step-00000005"]
    assert same(tensors(steps["step-00000005"]), tensors(made)), "the last is what the run ends with"
    assert not same(tensors(steps["step-00000004"]), tensors(made))
    assert not same(tensors(made), tensors(trained)), "other samples, of which three are held out"


def test_an_autoencoder_and_a_detector(toy, tmp_path):
    short = replace(FIT, num_steps=1, global_batch_size=2)
    made = train(TrainConfig(task=AutoencoderTask(), fit=short, run=RUN), tmp_path / "vae", [toy.images.path])
    assert made.parents == [{"name": "images", "kind": "images", "digest": toy.images.digest}]
    assert {tensor.dtype for tensor in tensors(made, "vae").values()} == {torch.float16}
    assert "_name_or_path" not in (made.path / "vae" / "config.json").read_text()
    again = train(
        TrainConfig(task=AutoencoderTask(), fit=short, run=RUN),
        tmp_path / "again",
        [toy.images.path],
        made.path,
    )
    assert not same(tensors(made, "vae"), tensors(again, "vae")), "a start is gone on from"
    encode(EncodeConfig(), tmp_path / "latents", [toy.images.path], made.path)
    made = train(
        TrainConfig(task=DetectorTask(), fit=short, run=RUN), tmp_path / "detector", [toy.images.path]
    )
    image = ImageShards(toy.images.path)[0].image
    assert isinstance(load_detector(made).detect(image[None], ["dog"])[0], list)
    with pytest.raises(UserError, match="holds detector, allowed: a checkpoint with vae"):
        train(
            TrainConfig(task=AutoencoderTask(), fit=short, run=RUN),
            tmp_path / "x",
            [toy.images.path],
            made.path,
        )


def test_what_is_refused(toy, tmp_path):
    other = write_student(tmp_path / "other", seed=1)
    with pytest.raises(UserError, match="made by autoencoder .* that of other; encode with it"):
        train(PRETRAIN, tmp_path / "x", [toy.latents.path], other.path)
    with pytest.raises(
        UserError, match="got images and no task.image_size, allowed: latents, or a size in px"
    ):
        train(PRETRAIN, tmp_path / "x", [toy.images.path], toy.student.path)
    with pytest.raises(ArtifactError, match="got kind 'images', allowed: latents"):
        train(TrainConfig(task=DPOTask(), fit=FIT), tmp_path / "x", [toy.images.path], toy.student.path)
    with pytest.raises(UserError, match="--in: got 2 directories, allowed: one of latents"):
        train(PRETRAIN, tmp_path / "x", [toy.latents.path] * 2, toy.student.path)
    with pytest.raises(UserError, match="num_steps 0"):
        train(
            replace(PRETRAIN, fit=replace(FIT, num_steps=0)),
            tmp_path / "x",
            [toy.latents.path],
            toy.student.path,
        )
    for task, why in (
        (PretrainTask(position_step=-1.0), "got position_step -1.0 with rotary positions, allowed: above 0"),
        (PretrainTask(position_step=0.5, model=SMALL), "position_step: got one beside a new model"),
    ):
        with pytest.raises(UserError, match=why):
            train(replace(PRETRAIN, task=task), tmp_path / "x", [toy.latents.path], toy.student.path)
    drawn = rank(RankConfig(by="source"), tmp_path / "drawn", [toy.images.path])
    stripped = tmp_path / "stripped"
    stripped.mkdir()
    _strip_objects(drawn.path, stripped)
    with pytest.raises(UserError, match="has no objects, allowed: images of the emoji teacher"):
        train(TrainConfig(task=DetectorTask(), fit=FIT, run=RUN), tmp_path / "x", [stripped])
    flipped = open_checkpoint(other.path).path / "vae" / "diffusion_pytorch_model.safetensors"
    data = bytearray(flipped.read_bytes())
    data[-1] ^= 1
    flipped.write_bytes(bytes(data))
    with pytest.raises(ArtifactError, match="is damaged"):
        train(PRETRAIN, tmp_path / "x", [toy.latents.path], other.path)


def _strip_objects(source, target):
    from lightgen.data.images import ImageRecord, write_image_shard

    shards = ImageShards(source)
    records = (
        ImageRecord(str(i), shards[i].image, {"prompt": shards.meta(i)["prompt"]}) for i in range(len(shards))
    )
    write_image_shard(target / "a.tar", records)


def test_the_marker_of_a_finished_run_is_readable(trained):
    assert json.loads((trained.path / "train_state" / "saved.json").read_text()) == {"steps": 5}
