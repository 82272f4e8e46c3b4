from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast, T5Config, T5EncoderModel

from lightgen.core.artifact import Artifact, begin_artifact
from lightgen.core.errors import UserError
from lightgen.core.metrics import read_metrics
from lightgen.objectives.language import NOT_ASKED, LanguageConfig
from lightgen.ports.nano.language import combinations, draw_prompt
from lightgen.ports.nano.reading import KINDS, read
from lightgen.ports.nano.split import is_held_out
from lightgen.ports.nano.text import build_nano_text_encoder
from lightgen.ports.text import load_text_encoder
from lightgen.stages import language_job as job
from lightgen.stages.checkpoint import part_digest
from lightgen.stages.language_job import CaptionSource, label_words
from lightgen.stages.pipeline import LightGenPipeline
from lightgen.stages.tasks import LanguageTask, TrainConfig
from lightgen.stages.train import train
from lightgen.training.config import FitConfig, RunConfig
from lightgen.training.optimizer import OptimizerConfig
from lightgen.training.schedule import ScheduleConfig

FIT = FitConfig(
    num_steps=30,
    global_batch_size=16,
    optimizer=OptimizerConfig(lr=2e-3, weight_decay=0.0),
    schedule=ScheduleConfig(kind="constant", warmup_steps=5),
    ema_decay=0.8,
    precision="fp32",
    held_out=16,
)
RUN = RunConfig(save_every=10, log_every=1, held_out_every=30)
SHORT = TrainConfig(task=LanguageTask(), fit=replace(FIT, num_steps=3, global_batch_size=4), run=RUN)


def language(keep=1.0, **changes):
    task = LanguageTask(objective=LanguageConfig(keep=keep), seed=1)
    return TrainConfig(task=task, fit=replace(FIT, **changes), run=RUN)


def metrics(made):
    return read_metrics(made.path / "train_state" / "metrics.jsonl")


def weights(made):
    return load_file(made.path / "text_encoder" / "model.safetensors")


@pytest.fixture(scope="module")
def trained(toy, tmp_path_factory):
    return train(language(), tmp_path_factory.mktemp("language") / "made", [], toy.student.path)


def test_the_loss_falls_and_test_captions_are_measured(toy, trained):
    records = metrics(trained)
    assert sum(r["loss"] for r in records[-5:]) < 0.5 * sum(r["loss"] for r in records[:5])
    assert records[-1]["moved"] < 0.8 * records[0]["moved"]
    for kind in KINDS:
        assert 0 <= records[-1][f"held_out_accuracy_{kind}"] <= 1
        assert 0 <= records[-1][f"held_out_accuracy_{kind}_ema"] <= 1
    assert [parent["digest"] for parent in trained.parents] == [toy.student.digest]


def test_the_rest_of_the_start_is_in_the_checkpoint(toy, trained):
    for part in ("transformer", "vae"):
        assert part_digest(trained, part) == part_digest(toy.student, part)
    assert part_digest(trained, "text_encoder") != part_digest(toy.student, "text_encoder")
    pipeline = LightGenPipeline.from_pretrained(trained.path)
    assert pipeline("a dog", 64, 64, 2, 2, output_type="np").images.shape == (1, 64, 64, 3)


def test_swapped_captions_differ_in_their_features(trained):
    text = load_text_encoder(trained.path / "text_encoder", trained.path / "tokenizer")
    features, _ = text.encode(["a red dog and a blue car", "a blue dog and a red car"])
    for word in (2, 6):
        one, other = features[:, word]
        assert (one - other).norm() > 0.3 * one.norm()


def test_a_run_that_was_cut_short_ends_in_the_same_bits(toy, trained, tmp_path, monkeypatch):
    load = CaptionSource.load

    def dies(self, ids, step):
        if step == 15:
            raise KeyboardInterrupt
        return load(self, ids, step)

    monkeypatch.setattr(job.CaptionSource, "load", dies)
    with pytest.raises(KeyboardInterrupt):
        train(language(), tmp_path / "made", [], toy.student.path)
    monkeypatch.setattr(job.CaptionSource, "load", load)
    made = train(language(), tmp_path / "made", [], toy.student.path)
    found, expected = weights(made), weights(trained)
    assert found.keys() == expected.keys() and all(torch.equal(found[n], expected[n]) for n in found)
    assert [r["loss"] for r in metrics(made)] == [r["loss"] for r in metrics(trained)]


def test_a_large_weight_keeps_the_features_nearer(toy, trained, tmp_path):
    kept = train(language(keep=100.0), tmp_path / "kept", [], toy.student.path)
    free = train(language(keep=0.0), tmp_path / "free", [], toy.student.path)
    moved = [metrics(made)[-1]["held_out_moved_ema"] for made in (kept, trained, free)]
    assert moved == sorted(moved) and moved[0] < 0.8 * moved[2], moved


def test_without_a_start_it_begins_from_nothing(tmp_path):
    made = train(SHORT, tmp_path / "made", [])
    parts = {path.name for path in made.path.iterdir() if path.is_dir()}
    assert parts == {"text_encoder", "tokenizer", "train_state"}
    assert made.parents == []
    assert "moved" not in metrics(made)[-1]
    assert train(SHORT, made.path, []).digest == made.digest


def checkpoint(path, **parts) -> Artifact:
    workspace = begin_artifact(path, "checkpoint", {}, [])
    assert not isinstance(workspace, Artifact)
    with workspace:
        for name, part in parts.items():
            part.save_pretrained(workspace.path / name)
        return workspace.commit({})


def test_a_start_with_an_autoencoder_alone(toy, tmp_path):
    start = checkpoint(tmp_path / "start", vae=LightGenPipeline.from_pretrained(toy.student.path).vae)
    made = train(SHORT, tmp_path / "made", [], start.path)
    assert part_digest(made, "vae") == part_digest(start, "vae")
    assert not (made.path / "model_index.json").exists(), "no student yet"
    load_text_encoder(made.path / "text_encoder", made.path / "tokenizer")


def test_what_is_refused(toy, tmp_path):
    with pytest.raises(UserError, match="--in: got 1 directories, allowed: none, as captions are drawn"):
        train(SHORT, tmp_path / "x", [toy.images.path])
    with pytest.raises(UserError, match="holds detector, allowed: a checkpoint with vae"):
        train(SHORT, tmp_path / "x", [], toy.detector.path)
    words = Tokenizer(WordLevel({"<unk>": 0, "chat": 1}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    shape = T5Config(vocab_size=2, d_model=8, d_kv=4, num_heads=2, d_ff=8, num_layers=1)
    other = checkpoint(
        tmp_path / "other",
        text_encoder=T5EncoderModel(shape),
        tokenizer=PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>", model_max_length=8),
    )
    with pytest.raises(
        UserError, match="got a text encoder of 2 tokens and width 8, allowed: one of the nano"
    ):
        train(SHORT, tmp_path / "x", [], other.path)
    with pytest.raises(UserError, match="language: got keep -1"):
        train(replace(SHORT, task=LanguageTask(objective=LanguageConfig(keep=-1))), tmp_path / "x", [])
    assert not (tmp_path / "x").exists()


def source(seed=0):
    tokenizer = build_nano_text_encoder(0).tokenizer
    return CaptionSource(FIT, seed, tokenizer, torch.device("cpu"))


def test_captions_follow_from_seed_step_and_sample():
    drawn, again = source(), source()
    assert list(drawn.held_out) == list(range(16))
    seen = [sample for step in range(3) for sample in drawn.ids(step)]
    assert seen == list(range(16, 16 + 3 * 16)), "each once, and none that is held out"
    whole, part = drawn.load(drawn.ids(1), 1), again.load(drawn.ids(1)[12:], 1)
    length = part["text_ids"].shape[1]
    assert torch.equal(whole["text_ids"][12:, :length], part["text_ids"])
    other = source(seed=1).load(drawn.ids(1), 1)
    assert whole["text_ids"].tolist() != other["text_ids"].tolist()


def test_training_meets_no_held_out_combination():
    drawn = source()
    captions = [drawn._caption(sample) for step in range(20) for sample in drawn.ids(step)]
    met = {each for caption in captions for each in combinations(draw(caption))}
    assert met and not any(map(is_held_out, met))
    tested = [combinations(draw(drawn._caption(sample))) for sample in drawn.held_out]
    assert all(is_held_out(each) for found in tested for each in found) and any(tested)


def draw(caption):
    return replace(draw_prompt(0, 0, "train"), prompt=caption)


def test_words_are_labelled_at_the_end_of_names():
    readings = [read("two red teddy bears"), read("a dog left of a cat")]
    labels, names = label_words(readings, 8)
    assert names.tolist() == [[0, 0, 1, 1, 0, 0, 0, 0], [0, 1, 0, 0, 0, 2, 0, 0]]
    assert set(labels) == set(KINDS)
    for kind, table in labels.items():
        asked = [(row, word) for row, word in (table != NOT_ASKED).nonzero().tolist()]
        assert asked == [(0, 3), (1, 1), (1, 5)]
        said = [KINDS[kind][table[at]] for at in asked]
        expected = {
            "class": ["teddy bear", "dog", "cat"],
            "color": ["red", "none", "none"],
            "count": ["two", "one", "one"],
            "role": ["none", "left of", "right of"],
        }
        assert said == expected[kind]


def test_the_recipe_is_in_range():
    from lightgen import recipes

    config = recipes.find("train", "nano-language")
    config.fit.check()
    config.run.check()
    config.task.objective.check()
    chain = recipes.find("train", "nano-weights")
    assert chain.language == config
    assert (chain.student.task.text_encoder, chain.student.task.train_text_encoder) == ("start", False)
