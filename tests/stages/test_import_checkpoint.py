import json
import shutil
from types import SimpleNamespace

import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration

from lightgen.core.artifact import Artifact, begin_artifact
from lightgen.core.errors import UserError
from lightgen.models.transformer import LightGenTransformer
from lightgen.ports.released import from_released
from lightgen.stages.checkpoint import load_parts, load_transformer
from lightgen.stages.import_checkpoint import ImportConfig, export_released, import_checkpoint
from tests.ports.released_weights import TINY, released_weights

HEADS = ImportConfig(num_heads=TINY["num_heads"])
WEIGHTS = released_weights()


def same(left, right):
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def write_vae(path, channels=TINY["latent_channels"], stages=4):
    sizes = {
        "down_block_types": ("DownEncoderBlock2D",) * stages,
        "up_block_types": ("UpDecoderBlock2D",) * stages,
    }
    AutoencoderKL(
        **sizes,
        block_out_channels=(4,) * stages,
        norm_num_groups=2,
        latent_channels=channels,
        layers_per_block=1,
    ).save_pretrained(path)
    return path


def write_text_encoder(path, width=TINY["text_width"], dtype=torch.bfloat16):
    """A whole T5, decoder included, as google/flan-t5-xxl is, with its tokenizer in the same folder."""
    config = T5Config(
        **{"vocab_size": 6, "d_model": width, "d_kv": 4, "d_ff": 8, "num_layers": 1, "num_heads": 2},
        **{
            "feed_forward_proj": "gated-gelu",
            "pad_token_id": 0,
            "eos_token_id": 1,
            "decoder_start_token_id": 0,
        },
    )
    T5ForConditionalGeneration(config).to(dtype).save_pretrained(path)
    words = ["<pad>", "</s>", "<unk>", "a", "red", "dog"]
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=512
    ).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def others(tmp_path_factory):
    root = tmp_path_factory.mktemp("others")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return SimpleNamespace(vae=write_vae(root / "vae"), text=write_text_encoder(root / "t5"))


@pytest.fixture
def file(tmp_path):
    save_file(WEIGHTS, tmp_path / "released.safetensors")
    return tmp_path / "released.safetensors"


def refuses(config, *arguments, **folders):
    with pytest.raises(UserError) as caught:
        import_checkpoint(config, *arguments, **folders)
    told = str(caught.value)
    assert "\n" not in told
    return told


def test_parts_alone_are_what_a_new_student_starts_from(others, tmp_path):
    made = import_checkpoint(ImportConfig(), None, tmp_path / "start", others.vae, others.text)
    parts = {name.partition("/")[0] for name in made.manifest["files"]}
    assert {"vae", "text_encoder", "tokenizer"} <= parts and "transformer" not in parts
    with pytest.raises(UserError, match="neither a file nor --vae"):
        import_checkpoint(ImportConfig(), None, tmp_path / "none", text_encoder=others.text)


def test_there_and_back_is_bit_equal(file, tmp_path):
    artifact = import_checkpoint(HEADS, file, tmp_path / "c")
    assert sorted({name.partition("/")[0] for name in artifact.manifest["files"]}) == ["transformer"]
    assert artifact.counts == {"parameters": sum(tensor.numel() for tensor in WEIGHTS.values())}
    transformer = load_transformer(artifact.path / "transformer")
    assert {name: transformer.config[name] for name in TINY} == TINY
    assert same(transformer.state_dict(), from_released(WEIGHTS))
    assert {tensor.dtype for tensor in transformer.state_dict().values()} == {torch.float32}
    out = export_released(artifact.path, tmp_path / "deep" / "er" / "back.safetensors")
    assert same(load_file(out), WEIGHTS)
    assert [path.name for path in out.parent.iterdir()] == ["back.safetensors"]


def test_average_or_raw_weights(tmp_path):
    average = released_weights(seed=1)
    path = tmp_path / "checkpoint-8.pth"
    torch.save({"model": WEIGHTS, "model_ema": average, "epoch": 8}, path)
    made = import_checkpoint(HEADS, path, tmp_path / "ema")
    raw = import_checkpoint(ImportConfig(ema=False, num_heads=2), path, tmp_path / "raw")
    for artifact, part, weights in ((made, "model_ema", average), (raw, "model", WEIGHTS)):
        assert artifact.manifest["source"] == {"name": "checkpoint-8.pth", "weights": part}
        assert artifact.config["ema"] is (part == "model_ema")
        assert same(load_transformer(artifact.path / "transformer").state_dict(), from_released(weights))
    assert made.config["sha256"] == raw.config["sha256"]


def test_again_is_nothing_to_do_and_another_file_is_refused(file, tmp_path):
    first = import_checkpoint(HEADS, file, tmp_path / "c")
    assert import_checkpoint(HEADS, file, tmp_path / "c").digest == first.digest
    save_file(released_weights(seed=2), file)
    assert "was made with config.sha256" in refuses(HEADS, file, tmp_path / "c")
    assert "config.size 512, now 256" in refuses(ImportConfig(num_heads=2, size=256), file, tmp_path / "c")


def test_what_an_interrupted_run_left_goes(file, tmp_path):
    first = import_checkpoint(HEADS, file, tmp_path / "c")
    workspace = begin_artifact(tmp_path / "d", "checkpoint", first.config, [])
    assert not isinstance(workspace, Artifact)
    workspace.write_bytes("transformer/old.safetensors", b"torn")
    workspace.release()
    second = import_checkpoint(HEADS, file, tmp_path / "d")
    assert second.manifest["files"] == first.manifest["files"]


def test_all_parts_make_a_pipeline(file, tmp_path, others):
    artifact = import_checkpoint(HEADS, file, tmp_path / "c", vae=others.vae, text_encoder=others.text)
    names = {name.partition("/")[0] for name in artifact.manifest["files"]}
    assert names == {"model_index.json", "transformer", "vae", "text_encoder", "tokenizer"}
    for name in artifact.manifest["files"]:
        if name.endswith(".json"):
            assert str(tmp_path.parent) not in (artifact.path / name).read_text(), name
    index = json.loads((artifact.path / "model_index.json").read_text())
    assert index["_class_name"] == "LightGenPipeline"
    parts = load_parts(artifact.path)
    assert same(parts.transformer.state_dict(), from_released(WEIGHTS))
    assert parts.tokenizer.model_max_length == parts.transformer.config["text_length"] == 128
    assert parts.tokenizer("a red dog")["input_ids"] == [3, 4, 5]
    before = load_file(others.vae / "diffusion_pytorch_model.safetensors")
    assert same(parts.vae.state_dict(), before)
    stored = load_file(artifact.path / "text_encoder" / "model.safetensors")
    whole = load_file(others.text / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.bfloat16}
    assert same(stored, {name: whole[name] for name in stored})
    assert not any(name.startswith("decoder") for name in stored)


def test_some_parts_make_no_pipeline(file, tmp_path, others):
    artifact = import_checkpoint(HEADS, file, tmp_path / "c", vae=others.vae)
    assert {name.partition("/")[0] for name in artifact.manifest["files"]} == {"transformer", "vae"}


def test_a_tokenizer_elsewhere(file, tmp_path, others):
    encoder, tokenizer = tmp_path / "encoder", tmp_path / "tokenizer"
    for target, pattern in ((encoder, "*model*"), (tokenizer, "token*")):
        target.mkdir()
        for path in others.text.glob(pattern):
            shutil.copy(path, target)
    shutil.copy(others.text / "config.json", encoder)
    told = refuses(HEADS, file, tmp_path / "c", text_encoder=encoder)
    assert "no tokenizer_config.json, allowed: a transformers tokenizer (--tokenizer)" in told
    told = refuses(HEADS, file, tmp_path / "c", tokenizer=tokenizer)
    assert "got no text encoder, allowed: with --text-encoder" in told
    artifact = import_checkpoint(HEADS, file, tmp_path / "c", text_encoder=encoder, tokenizer=tokenizer)
    assert "tokenizer/tokenizer.json" in artifact.manifest["files"]


def test_the_default_size_follows_the_autoencoder(file, tmp_path):
    vae = write_vae(tmp_path / "vae", stages=2)
    artifact = import_checkpoint(HEADS, file, tmp_path / "c", vae=vae)
    assert load_transformer(artifact.path / "transformer").config["sample_size"] == 256
    told = refuses(ImportConfig(num_heads=2, size=514), file, tmp_path / "d", vae=vae)
    assert told == "--size: got 514 px, allowed: multiples of 4"
    for size in (0, -16, 8, 500):
        told = refuses(ImportConfig(num_heads=2, size=size), file, tmp_path / "d")
        assert told == f"--size: got {size} px, allowed: multiples of 16"
    assert not list(tmp_path.glob(".*"))


def test_parts_that_do_not_fit(file, tmp_path, others):
    vae = write_vae(tmp_path / "vae", channels=3)
    told = refuses(HEADS, file, tmp_path / "c", vae=vae)
    assert told == f"--vae {vae}: got 3 latent channels, allowed: 4"
    text = write_text_encoder(tmp_path / "text", width=12)
    told = refuses(HEADS, file, tmp_path / "c", text_encoder=text)
    assert told == f"--text-encoder {text}: got a 't5' of width 12, allowed: a 't5' of width 20"
    told = refuses(HEADS, file, tmp_path / "c", vae=others.text)
    assert "class None, allowed: AutoencoderKL, AutoencoderDC" in told
    told = refuses(HEADS, file, tmp_path / "c", vae=tmp_path / "absent")
    assert "no such directory, allowed: a local folder; nothing is downloaded" in told
    assert not (tmp_path / "c").exists()
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("part", ["vae", "text"])
def test_parts_that_are_not_whole(part, file, tmp_path, others):
    folder = shutil.copytree(vars(others)[part], tmp_path / "copy")
    option = {"vae": {"vae": folder}, "text": {"text_encoder": folder}}[part]
    (weights,) = folder.glob("*.safetensors")
    stored = load_file(weights)
    name = next(name for name in stored if name.startswith("encoder") and name.endswith("weight"))
    save_file({n: t for n, t in stored.items() if n != name}, weights, metadata={"format": "pt"})
    assert name in refuses(HEADS, file, tmp_path / "c", **option)
    save_file({**stored, name: torch.ones(3)}, weights, metadata={"format": "pt"})
    refuses(HEADS, file, tmp_path / "c", **option)
    weights.write_bytes(weights.read_bytes()[:-8])
    refuses(HEADS, file, tmp_path / "c", **option)
    weights.rename(weights.with_suffix(".bin"))
    assert "holds no .safetensors" in refuses(HEADS, file, tmp_path / "c", **option)
    weights.with_suffix(".bin").rename(weights)
    (folder / "config.json").write_text("{")
    refuses(HEADS, file, tmp_path / "c", **option)
    assert not (tmp_path / "c").exists()


def test_faults_of_the_weights_leave_nothing_behind(tmp_path):
    tensors = {name: tensor for name, tensor in WEIGHTS.items() if name != "mask_token"}
    save_file({**tensors, "odd": torch.ones(1)}, tmp_path / "a.safetensors")
    told = refuses(HEADS, tmp_path / "a.safetensors", tmp_path / "c")
    assert "a.safetensors: missing: 'mask_token'; unknown: 'odd'; allowed: exactly" in told
    told = refuses(ImportConfig(), tmp_path / "a.safetensors", tmp_path / "c")
    assert "got no heads, allowed: a divisor of width 24 (--num-heads)" in told
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]


def test_only_the_released_configuration_goes_back(toy, file, tmp_path):
    with pytest.raises(UserError, match="got layers 'gated', allowed: 'plain', as released"):
        export_released(toy.student.path, tmp_path / "a.safetensors")
    with pytest.raises(UserError, match="holds detector, allowed: a checkpoint with transformer"):
        export_released(toy.detector.path, tmp_path / "a.safetensors")
    with pytest.raises(UserError, match=r"got 'a.pth', allowed: a new file ending in .safetensors"):
        export_released(toy.student.path, tmp_path / "a.pth")
    with pytest.raises(UserError, match="exists already"):
        export_released(toy.student.path, file)
    assert [path.name for path in tmp_path.iterdir()] == [file.name]


@pytest.mark.parametrize(
    "change", [{"text_masked": True}, {"cross_residual": "prenorm"}, {"position_grid": 8}, {"patch_size": 1}]
)
def test_one_choice_is_enough_to_stay(change, tmp_path):
    workspace = begin_artifact(tmp_path / "c", "checkpoint", change, [])
    assert not isinstance(workspace, Artifact)
    with workspace:
        LightGenTransformer(**{**TINY, **change}).save_pretrained(workspace.path / "transformer")
        workspace.commit({})
    ((name, got),) = change.items()
    with pytest.raises(UserError, match=f"c: got {name} {got!r}, allowed: {TINY[name]!r}, as released"):
        export_released(tmp_path / "c", tmp_path / "a.safetensors")
    assert not (tmp_path / "a.safetensors").exists()
