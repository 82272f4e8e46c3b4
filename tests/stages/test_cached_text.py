"""Text features beside latents: what is stored, and trainings that read them in place of the text encoder."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from lightgen.core.artifact import Artifact, begin_artifact
from lightgen.core.errors import UserError
from lightgen.core.metrics import read_metrics
from lightgen.data.latents import LatentShards
from lightgen.data.text_features import TextFeatures
from lightgen.models.shape import TransformerConfig
from lightgen.models.transformer import LightGenTransformer
from lightgen.objectives.dpo import DPOConfig
from lightgen.objectives.masked import MaskedConfig
from lightgen.ports.text import T5TextEncoder
from lightgen.stages import encode_text as stage
from lightgen.stages import student_jobs
from lightgen.stages.checkpoint import load_parts, open_checkpoint
from lightgen.stages.distill import NanoPrompts, distill
from lightgen.stages.encode import EncodeConfig, encode
from lightgen.stages.encode_text import FOLDER, TextConfig, text_encoder_digest
from lightgen.stages.pipeline import LightGenPipeline
from lightgen.stages.rank import RankConfig, rank
from lightgen.stages.tasks import DPOTask, PretrainTask, TrainConfig
from lightgen.stages.train import prepare, train
from lightgen.training.config import FitConfig, RunConfig
from tests.stages.toy import toy_distill, toy_parts, write_student

TEXT = TextConfig(stored=True, precision="fp32", batch_size=4, shard_size=5)
PLAIN = TextConfig()
FIT = FitConfig(num_steps=4, global_batch_size=4, held_out=4, precision="fp32")
RUN = RunConfig(save_every=2, log_every=1, held_out_every=2)
MASKED = MaskedConfig(text_drop=0.3, draws_per_token=1)
PRETRAIN = TrainConfig(task=PretrainTask(objective=MASKED), fit=FIT, run=RUN)
DPO = TrainConfig(
    task=DPOTask(objective=DPOConfig(beta=50.0, masking=MASKED), how="all"),
    fit=replace(FIT, held_out=3),
    run=RUN,
)


@pytest.fixture(scope="module")
def images(toy, tmp_path_factory):
    """Pictures of 6 prompts, three of each, which score 0, -1 and -2."""
    root = tmp_path_factory.mktemp("images")
    made = [
        distill(toy_distill(prompts=NanoPrompts(num=6), seed=seed), root / str(seed)).path
        for seed in range(3)
    ]
    return rank(RankConfig(by="source"), root / "images", made)


@pytest.fixture(scope="module")
def latents(toy, images, tmp_path_factory):
    """Function that encodes them, by default without text."""
    root = tmp_path_factory.mktemp("latents")
    made = {}

    def make(text=PLAIN, start=None, **settings):
        key = (text, start, *settings.items())
        config = EncodeConfig(text=text, **settings)
        if key not in made:
            made[key] = encode(config, root / str(len(made)), [images.path], start or toy.student.path)
        return made[key]

    return make


def numbers(artifact):
    """What a training saw, without its clock."""
    names = ("loss", "held_out_loss", "grad_norm", "margin", "chosen", "rejected", "divergence")
    rows = read_metrics(artifact.path / "train_state" / "metrics.jsonl")
    return [{k: v for k, v in row.items() if k.startswith(names)} for row in rows]


def weights(artifact):
    return load_file(artifact.path / "transformer" / "diffusion_pytorch_model.safetensors")


# What is stored.


def test_each_distinct_caption_is_stored_once_as_the_text_encoder_says_it(toy, latents):
    made = latents(TEXT)
    captions = {row["caption"] for row in LatentShards(made.path).rows()}
    assert made.counts == {
        "rows": 18, "skipped": 0, "upscaled": 0, "captions": len(captions), "cut_captions": 0,
    }  # fmt: skip
    assert made.manifest["text_encoder"] == text_encoder_digest(toy.student)
    facts, found = made.manifest["text_features"], TextFeatures(made.path / FOLDER)
    assert facts == {"length": 48, "padded": False, "longest": found.longest, "cut": 0}
    text = load_parts(toy.student.path).text
    for caption in sorted(captions):
        features, mask = found.gather([caption], [0])
        expected, real = text.encode([caption])
        assert torch.equal(mask, real)
        torch.testing.assert_close(features[mask], expected[real], atol=1e-5, rtol=1e-5)
    tokens = sum(int(found.gather([caption], [0])[1].sum()) for caption in captions)
    held = [load_file(path)["features"] for path in sorted((made.path / FOLDER).iterdir())]
    assert sum(map(len, held)) == tokens, "unpadded"
    assert len(held) == 2 and {each.dtype for each in held} == {torch.float32}
    lengths = torch.cat([load_file(path)["lengths"] for path in sorted((made.path / FOLDER).iterdir())])
    assert (lengths.diff() >= -2).all(), "about sorted by length"


def test_rows_and_latents_are_those_without_text(latents):
    plain, cached = latents(), latents(TEXT)
    files = {name: each for name, each in cached.manifest["files"].items() if not name.startswith(FOLDER)}
    assert files == plain.manifest["files"] and plain.manifest["text_encoder"] is None
    assert "text_features" not in plain.manifest


def test_half_the_bytes_in_bf16_and_layer_by_layer_the_same_features(latents):
    full, half = latents(TEXT), latents(replace(TEXT, precision="bf16"))
    offloaded = latents(replace(TEXT, offload=True))
    text = {name: each["sha256"] for name, each in full.manifest["files"].items() if name.startswith(FOLDER)}
    assert text == {n: e["sha256"] for n, e in offloaded.manifest["files"].items() if n.startswith(FOLDER)}
    one, two = (load_file(each.path / FOLDER / "text-00000.safetensors")["features"] for each in (full, half))
    assert two.dtype == torch.bfloat16
    torch.testing.assert_close(two.float(), one, atol=0.1, rtol=0.1)


def test_captions_that_are_cut_are_counted(latents, capsys):
    made = latents(replace(TEXT, length=6))
    assert made.counts["cut_captions"] == made.manifest["text_features"]["cut"] > 0
    assert made.manifest["text_features"]["longest"] == 6
    assert "captions are cut to 6 tokens" in capsys.readouterr().err


def test_a_run_killed_among_captions_goes_on_there(toy, images, latents, tmp_path, monkeypatch):
    write, names = stage.write_text_shard, []

    def write_or_die(path, rows):
        names.append(path.stem)
        if len(names) == 2:
            raise KeyboardInterrupt
        write(path, rows)

    monkeypatch.setattr(stage, "write_text_shard", write_or_die)
    arguments = (EncodeConfig(text=TEXT), tmp_path / "latents", [images.path], toy.student.path)
    with pytest.raises(KeyboardInterrupt):
        encode(*arguments)
    made = encode(*arguments)
    assert names == ["text-00000", "text-00001", "text-00001"]
    assert made.manifest["files"] == latents(TEXT).manifest["files"]


def test_what_is_refused(toy, images, tmp_path):
    def refused(text, start=toy.student.path):
        with pytest.raises(UserError, match=r"^[^\n]+$") as told:
            encode(EncodeConfig(text=text), tmp_path / "x", [images.path], start)
        assert not list(tmp_path.glob(".x*")), "before anything is encoded"
        return str(told.value)

    assert "text length 49, allowed: up to 48" in refused(replace(TEXT, length=49))
    assert "batch_size 0" in refused(replace(TEXT, batch_size=0))
    bare = begin_artifact(tmp_path / "bare", "checkpoint", {"toy": "bare"}, [])
    assert not isinstance(bare, Artifact)
    with bare:
        toy_parts().vae.save_pretrained(bare.path / "vae")
        bare.commit({})
    assert "allowed: a checkpoint with tokenizer" in refused(TEXT, tmp_path / "bare")


# Trainings that read it.


@pytest.fixture
def never_read(monkeypatch):
    """No text encoder may be loaded or run."""
    monkeypatch.setattr(student_jobs, "load_text_encoder", lambda *_: pytest.fail("loaded"))
    monkeypatch.setattr(T5TextEncoder, "encode", lambda *_: pytest.fail("run"))


@pytest.mark.parametrize("config", [PRETRAIN, DPO], ids=["pretrain", "dpo"])
def test_a_training_is_the_same_without_its_text_encoder(toy, latents, tmp_path, config, request):
    online = train(config, tmp_path / "online", [latents().path], toy.student.path)
    request.getfixturevalue("never_read")
    cached = train(config, tmp_path / "cached", [latents(TEXT).path], toy.student.path)
    one, two = numbers(online), numbers(cached)
    assert len(one) == 4 and "held_out_loss" in one[1] and "held_out_loss_ema" in one[3]
    for expected, found in zip(one, two, strict=True):
        assert found == pytest.approx(expected, rel=1e-4, abs=1e-5)
    expected, found = weights(online), weights(cached)
    for name, weight in expected.items():
        torch.testing.assert_close(found[name], weight, atol=1e-4, rtol=1e-3)
    # the checkpoint is whole
    for part in ("text_encoder/model.safetensors", "tokenizer/tokenizer.json", "model_index.json"):
        assert cached.manifest["files"][part] == online.manifest["files"][part]
    request.getfixturevalue("monkeypatch").undo()
    pipeline = LightGenPipeline.from_pretrained(cached.path)
    assert pipeline("a dog", 64, 64, 2, 2, output_type="np").images.shape == (1, 64, 64, 3)


def test_half_precision_gives_the_same_losses_to_its_rounding(toy, latents, tmp_path):
    config = replace(PRETRAIN, fit=replace(FIT, precision="bf16"))
    online = train(config, tmp_path / "online", [latents().path], toy.student.path)
    half = replace(TEXT, precision="bf16")
    cached = train(config, tmp_path / "cached", [latents(half).path], toy.student.path)
    for expected, found in zip(numbers(online), numbers(cached), strict=True):
        assert found["loss"] == pytest.approx(expected["loss"], rel=1e-2)


def test_dropped_texts_stay_dropped_and_words_count(toy, latents):
    job, _ = prepare(PRETRAIN, [latents(TEXT).path], toy.student.path)
    training = job.training(None)
    batch = training.source.load(training.source.ids(0), 0)
    assert batch["text_features"].dtype == torch.float32 and "text_ids" not in batch
    student = job.learner.eval()
    with torch.no_grad():
        loss, _ = training.objective(student, batch, 0)
        other = {**batch, "text_features": batch["text_features"] + 1}
        assert not torch.equal(training.objective(student, other, 0)[0], loss)
        masking = replace(batch["masking"], kept=batch["masking"].kept[:0])
        silent = [training.objective(student, {**each, "masking": masking}, 0)[0] for each in (batch, other)]
    assert torch.equal(*silent)
    assert not list(student.text_encoder.parameters()), "nothing of it is in memory"


def test_errors_of_a_reference_are_found_with_features_too(toy, latents, tmp_path, never_read):
    config = replace(DPO, task=replace(DPO.task, precompute=True))
    online = train(DPO, tmp_path / "a" / "online", [latents(TEXT).path], toy.student.path)
    known = train(config, tmp_path / "b" / "known", [latents(TEXT).path], toy.student.path)
    assert [row["loss"] for row in numbers(known)] == [row["loss"] for row in numbers(online)]
    assert list((tmp_path / "b").glob("reference-errors-*"))


@pytest.mark.parametrize("dying", [1, 3])
def test_a_killed_training_ends_with_the_same_weights(toy, latents, tmp_path, monkeypatch, dying):
    whole = train(PRETRAIN, tmp_path / "whole", [latents(TEXT).path], toy.student.path)
    gather = TextFeatures.gather
    calls = []

    def gather_or_die(self, *arguments):
        calls.append(arguments)
        if len(calls) == 2 * dying:
            raise KeyboardInterrupt
        return gather(self, *arguments)

    monkeypatch.setattr(TextFeatures, "gather", gather_or_die)
    with pytest.raises(KeyboardInterrupt):
        train(PRETRAIN, tmp_path / "killed", [latents(TEXT).path], toy.student.path)
    monkeypatch.undo()
    killed = train(PRETRAIN, tmp_path / "killed", [latents(TEXT).path], toy.student.path)
    expected, found = weights(whole), weights(killed)
    assert all(torch.equal(found[name], weight) for name, weight in expected.items())
    assert numbers(killed) == numbers(whole)


def test_damaged_features_make_bad_samples_of_their_rows(toy, images, tmp_path):
    made = encode(EncodeConfig(text=TEXT), tmp_path / "latents", [images.path], toy.student.path)
    config = replace(PRETRAIN, run=replace(RUN, max_bad_share=0.2), fit=replace(FIT, held_out=0))
    job, _ = prepare(config, [made.path], toy.student.path)
    path = made.path / FOLDER / "text-00000.safetensors"
    tensors = load_file(path)
    tensors["features"][0] = float("inf")  # of one caption, hence of three rows
    save_file(tensors, path)
    training = job.training(tmp_path / "state")
    for step in range(6):
        batch = training.source.load(training.source.ids(step), step)
        assert batch["text_features"].isfinite().all() and len(set(batch["ids"])) >= 2
    lines = (tmp_path / "state" / "quarantine" / "0.jsonl").read_text().splitlines()
    assert len(lines) == 3 and all("not finite" in json.loads(line)["reason"] for line in lines)


def test_features_of_another_text_encoder_are_refused(toy, latents, tmp_path):
    other = write_student(tmp_path / "other", seed=1)
    files = {"vae": toy.student.path / "vae"}
    workspace = begin_artifact(tmp_path / "mixed", "checkpoint", {"toy": "mixed"}, [])
    assert not isinstance(workspace, Artifact)
    with workspace:
        parts = replace(load_parts(other.path), vae=load_parts(files["vae"].parent).vae)
        LightGenPipeline.from_parts(parts).save_pretrained(workspace.path)
        mixed = workspace.commit({})
    for config in (PRETRAIN, DPO):
        with pytest.raises(UserError, match="text features by text encoder .*, allowed: .*that of mixed"):
            prepare(config, [latents(TEXT).path], mixed.path)
    # another tokenizer is another text encoder
    changed = replace(mixed, manifest=json.loads(json.dumps(mixed.manifest)))
    changed.manifest["files"]["tokenizer/tokenizer.json"]["sha256"] = 64 * "0"
    assert text_encoder_digest(changed) != text_encoder_digest(mixed)


def test_a_text_encoder_that_learns_reads_the_words(toy, latents, capsys):
    model = TransformerConfig(
        width=32, num_heads=2, encoder_layers=1, decoder_layers=1, head_width=32, head_layers=1
    )
    for task in (
        PretrainTask(train_text_encoder=True),
        PretrainTask(model=model, text_encoder="new"),
    ):
        job, _ = prepare(TrainConfig(task=task, fit=FIT), [latents(TEXT).path], toy.student.path)
        training = job.training(None)
        assert "text_ids" in training.source.load([0], 0)
        assert "the text encoder is new or learns" in capsys.readouterr().err


def test_features_of_another_length_are_not_used(toy, latents, capsys):
    job, _ = prepare(PRETRAIN, [latents(replace(TEXT, length=6)).path], toy.student.path)
    assert "text_ids" in job.training(None).source.load([0], 0)
    assert "text features of 6 tokens without padding are not used" in capsys.readouterr().err
    long = latents(TEXT).manifest["text_features"]["longest"]
    job, _ = prepare(PRETRAIN, [latents(replace(TEXT, length=long)).path], toy.student.path)
    assert "text_features" in job.training(None).source.load([0], 0), "a limit that cuts nothing is as good"


@pytest.fixture(scope="module")
def unmasked(toy, tmp_path_factory):
    """A student to which padding is not hidden, as in the released shape."""
    workspace = begin_artifact(tmp_path_factory.mktemp("unmasked") / "x", "checkpoint", {"toy": "all"}, [])
    assert not isinstance(workspace, Artifact)
    with workspace:
        parts = load_parts(toy.student.path)
        shape = {**parts.transformer.config, "text_masked": False, "text_length": 32}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            transformer = LightGenTransformer(**{k: v for k, v in shape.items() if not k.startswith("_")})
            torch.nn.init.normal_(transformer.head.token_out.weight, std=0.2)
        LightGenPipeline.from_parts(replace(parts, transformer=transformer.eval())).save_pretrained(
            workspace.path
        )
        return workspace.commit({})


def test_padding_that_is_read_must_be_stored(toy, latents, unmasked, tmp_path, capsys):
    assert open_checkpoint(unmasked.path).digest == unmasked.digest
    padded = replace(TEXT, padded=True)
    made = latents(padded, start=unmasked.path)
    assert made.manifest["text_features"]["length"] == 32 and made.manifest["text_features"]["padded"]
    online = train(PRETRAIN, tmp_path / "online", [latents().path], unmasked.path)
    cached = train(PRETRAIN, tmp_path / "cached", [made.path], unmasked.path)
    assert "not used" not in capsys.readouterr().err
    for expected, found in zip(numbers(online), numbers(cached), strict=True):
        assert found == pytest.approx(expected, rel=1e-4, abs=1e-5)
    job, _ = prepare(PRETRAIN, [latents(TEXT).path], unmasked.path)
    assert "text_ids" in job.training(None).source.load([0], 0)
    assert "without padding are not used, this transformer reads 32 with padding" in capsys.readouterr().err
    # one that hides padding reads the same features
    job, _ = prepare(PRETRAIN, [made.path], toy.student.path)
    assert "text_features" in job.training(None).source.load([0], 0)
