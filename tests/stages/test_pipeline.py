import inspect
import sys
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from PIL import Image

from lightgen.core.errors import UserError
from lightgen.models.transformer import LightGenTransformer
from lightgen.ports.autoencoder import DiffusersAutoencoder
from lightgen.ports.protocols import ImageGenerator
from lightgen.sampling.presets import preset
from lightgen.stages import hub
from lightgen.stages import pipeline as pipeline_module
from lightgen.stages.checkpoint import Parts
from lightgen.stages.pipeline import LightGenPipeline
from lightgen.stages.prompt_text import PromptCutWarning
from lightgen.stages.student import StudentGenerator
from tests.stages.toy import toy_parts, toy_student

SMALL = {"height": 64, "width": 64}
FAST = {**SMALL, "num_inference_steps": 4, "num_head_steps": 2, "output_type": "np"}
LATENT = {**FAST, "output_type": "latent"}
LONG = " ".join(["a red apple left of a blue car and"] * 9)


@pytest.fixture(scope="module")
def pipeline(toy):
    return LightGenPipeline.from_pretrained(toy.student.path)


def released_like():
    """A pipeline whose transformer has the released choices: padding attended to, late text, ddpm head."""
    parts = toy_parts()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        transformer = LightGenTransformer(
            **{"width": 32, "num_heads": 2, "encoder_layers": 1, "decoder_layers": 1, "cross_layers": 1},
            **{"aligner_layers": 1, "text_length": 16, "fusion": "late", "cross_residual": "normed"},
            **{"text_masked": False, "layers": "plain", "positions": "learned", "prediction": "ddpm"},
            **{"head_width": 32, "head_layers": 1, "dropout": 0.1},
        )
        for parameter in transformer.head.parameters():
            torch.nn.init.normal_(parameter, std=0.05)
        # as after training, texts differ a lot for the image
        for block in transformer.cross_blocks:
            torch.nn.init.normal_(block.attn.kv.weight, std=0.5)
    return LightGenPipeline.from_parts(
        Parts(transformer.eval(), parts.vae, parts.text_encoder, parts.tokenizer)
    )


@pytest.fixture(scope="module")
def released():
    return released_like()


@pytest.fixture
def configs(monkeypatch):
    """Settings that reach the sampler, which is not run."""
    seen = []

    def note(transformer, texts, seeds, grid, config, *_, **__):
        seen.append(config)
        return torch.zeros(len(seeds), grid[0] * grid[1], transformer.token_channels)

    monkeypatch.setattr(pipeline_module, "decode_tokens", note)
    return seen


def test_an_image_is_the_same_alone_and_in_a_batch(pipeline, released):
    prompts = ["a dog", "a photo of three red apples left of a very blue elephant", "two cats"]
    for each in (pipeline, released):
        together = each(prompts, seeds=[5, 6, 7], **FAST).images
        for prompt, seed, image in zip(prompts, (5, 6, 7), together, strict=True):
            np.testing.assert_allclose(each(prompt, seeds=[seed], **FAST).images[0], image, atol=1e-4)
        assert np.abs(together[0] - together[1]).max() > 0.01


def test_seeds_and_generators(pipeline):
    wanted = pipeline("a dog", num_images_per_prompt=2, seeds=[9, 10], **FAST).images
    one = torch.Generator().manual_seed(9)
    np.testing.assert_array_equal(
        pipeline("a dog", num_images_per_prompt=2, generator=one, **FAST).images, wanted
    )
    assert torch.equal(one.get_state(), torch.Generator().manual_seed(9).get_state()), "it was not drawn from"
    each = [torch.Generator().manual_seed(seed) for seed in (9, 10)]
    np.testing.assert_allclose(pipeline(["a dog"] * 2, generator=each, **FAST).images, wanted, atol=1e-4)
    assert np.abs(wanted[0] - wanted[1]).max() > 0.05
    np.testing.assert_array_equal(
        pipeline("a dog", **FAST).images, pipeline("a dog", seeds=[0], **FAST).images
    )


def test_images_of_a_prompt_are_side_by_side_and_encoded_once(pipeline, monkeypatch):
    rows, forward = [], pipeline.text_encoder.forward
    embed = pipeline.transformer.embed_text

    def count(**values):
        rows.append(len(values["input_ids"]))
        return forward(**values)

    def count_embedded(text, mask):
        rows.append(len(text))
        return embed(text, mask)

    monkeypatch.setattr(pipeline.text_encoder, "forward", count)
    monkeypatch.setattr(pipeline.transformer, "embed_text", count_embedded)
    images = pipeline(
        ["a dog", "two cats"], num_images_per_prompt=2, seeds=[1, 2, 1, 2], negative_prompt="", **FAST
    ).images
    assert rows == [3, 2, 1], "two prompts and the negative one, whatever the number of images"
    monkeypatch.undo()
    alone = pipeline("two cats", seeds=[2], negative_prompt="", **FAST).images
    np.testing.assert_allclose(images[3], alone[0], atol=1e-4)
    assert np.abs(images[1] - alone[0]).max() > 1e-3


def test_text_and_guidance_matter(pipeline, released):
    for each in (pipeline, released):
        plain = each("a dog", **FAST).images
        assert np.abs(each("a cat", **FAST).images - plain).max() > 1e-3
        assert np.abs(each("a dog", negative_prompt="a cat", **FAST).images - plain).max() > 1e-3
        unguided = each("a dog", guidance_scale=1.0, **FAST).images
        assert np.abs(unguided - plain).max() > 1e-3
        # away from itself there is nowhere to go
        itself = each("a dog", negative_prompt="a dog", **FAST).images
        np.testing.assert_allclose(itself, unguided, atol=1e-4)
        ignored = each("a dog", negative_prompt="a cat", guidance_scale=1.0, **FAST).images
        np.testing.assert_allclose(ignored, unguided, atol=1e-5)


def test_one_negative_prompt_serves_all(pipeline):
    prompts = ["a dog", "two cats"]
    one = pipeline(prompts, negative_prompt="a car", **FAST).images
    np.testing.assert_allclose(
        pipeline(prompts, negative_prompt=["a car", "a car"], **FAST).images, one, atol=1e-5
    )
    each = pipeline(prompts, negative_prompt=["a car", "a tree"], **FAST).images
    np.testing.assert_allclose(each[0], one[0], atol=1e-5)
    assert np.abs(each[1] - one[1]).max() > 1e-3


def test_features_stand_for_texts(pipeline, released):
    for each in (pipeline, released):
        prompts, names = (
            ["a dog", "three red apples left of a car"],
            (
                "prompt_embeds",
                "prompt_attention_mask",
                "negative_prompt_embeds",
                "negative_prompt_attention_mask",
            ),
        )
        wanted = each(prompts, negative_prompt="a cat", num_images_per_prompt=2, **LATENT).images
        found = each.encode_prompt(prompts, "a cat")
        assert [tuple(found[k].shape[:1]) for k in range(4)] == [(2,), (2,), (1,), (1,)]
        images = each(**dict(zip(names, found, strict=True)), num_images_per_prompt=2, **LATENT).images
        torch.testing.assert_close(images, wanted)
        without = each(prompt_embeds=found[0], prompt_attention_mask=found[1], **LATENT).images
        torch.testing.assert_close(without, each(prompts, **LATENT).images, atol=1e-5, rtol=1e-5)


def test_features_of_other_lengths(pipeline):
    features, mask, _, _ = pipeline.encode_prompt("a dog")
    wanted = pipeline("a dog", **LATENT).images
    short = int(mask.sum())
    images = pipeline(prompt_embeds=features[:, :short], **LATENT).images  # no mask: all tokens are real
    torch.testing.assert_close(images, wanted, atol=1e-5, rtol=1e-5)
    hidden = pipeline(prompt_embeds=features, **LATENT).images
    assert (hidden - wanted).abs().max() > 1e-3, "padding that no mask hides is seen"
    longer = {"negative_prompt_embeds": torch.cat([features, 0 * features], dim=1)}
    longer["negative_prompt_attention_mask"] = torch.cat([mask, ~mask & mask], dim=1).int()
    itself = pipeline(prompt_embeds=features, prompt_attention_mask=mask, **longer, **LATENT).images
    unguided = pipeline("a dog", guidance_scale=1.0, **LATENT).images
    torch.testing.assert_close(itself, unguided, atol=1e-4, rtol=1e-4)


def test_padding_goes_as_far_as_the_transformer_looks(pipeline, released):
    assert pipeline.encode_prompt("a dog")[0].shape == (1, 8, 256)
    features, mask, negative, _ = released.encode_prompt(["a dog"], "")
    assert features.shape == negative.shape == (1, 16, 256)
    assert mask.sum() == 3
    with pytest.raises(UserError, match=r"got shape \[1, 8, 256\].*with T = 16"):
        released(prompt_embeds=features[:, :8], **FAST)


def test_a_long_prompt_is_cut_with_a_warning(pipeline, released):
    with pytest.warns(
        PromptCutWarning, match=r"^prompt 2: 82 tokens, 48 fit; cut: 'apple left of a blue car.* and'$"
    ):
        images = pipeline(["a dog", LONG], **LATENT).images
    torch.testing.assert_close(images[:1], pipeline("a dog", **LATENT).images, atol=1e-5, rtol=1e-5)
    with pytest.warns(PromptCutWarning, match="^negative prompt: 82 tokens, 16 fit"):
        released("a dog", negative_prompt=LONG, **LATENT)
    words = LONG.split()
    assert pipeline.cut_notes([LONG])[0].endswith(f"cut: {' '.join(words[47:])!r}"), "47 words and an end"
    assert pipeline.cut_notes([" ".join(words[:47])], ["a dog"]) == []


def test_each_time_a_prompt_is_cut_it_is_said(pipeline):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        for _ in range(2):
            pipeline.encode_prompt(LONG)
    assert [each.category for each in caught] == [PromptCutWarning] * 2


def test_output_types(pipeline):
    fast = {name: value for name, value in FAST.items() if name != "output_type"}
    unit = pipeline("a dog", output_type="np", **fast).images
    picture = pipeline("a dog", **fast).images[0]
    np.testing.assert_allclose(np.asarray(picture) / 255, unit[0], atol=0.51 / 255)
    tensor = pipeline("a dog", output_type="pt", **fast, return_dict=False)[0]
    np.testing.assert_allclose(tensor.permute(0, 2, 3, 1).numpy(), unit, atol=1e-6)
    latents = pipeline("a dog", output_type="latent", **fast).images
    assert latents.shape == (1, 16, 8, 8)
    (decoded,) = pipeline.decode_latents(latents)
    assert isinstance(decoded, Image.Image)
    np.testing.assert_array_equal(np.asarray(decoded), np.asarray(picture))
    pixels = DiffusersAutoencoder(pipeline.vae).decode(latents)
    np.testing.assert_allclose((pixels[0].permute(1, 2, 0).numpy() + 1) / 2, unit[0], atol=1e-6)


def test_sizes(pipeline):
    assert pipeline("a dog", **{**FAST, "width": 96}).images.shape == (1, 64, 96, 3)
    assert (pipeline.default_size, pipeline.unit) == ((128, 128), 16)
    few = {"num_inference_steps": 1, "num_head_steps": 1, "output_type": "latent"}
    assert pipeline("a dog", **few).images.shape == (1, 16, 16, 16)
    assert pipeline("a dog", width=32, **few).images.shape == (1, 16, 16, 4)


@pytest.mark.parametrize("steps", [{"num_head_steps": 1}, {"num_head_steps": 9, "last_head_steps": 1}])
def test_a_ddpm_chain_of_one_step_is_refused(released, steps):
    with pytest.raises(UserError, match="for a ddpm checkpoint, allowed: from 2"):
        released("a dog", **steps, **SMALL)


def test_settings_reach_the_sampler(pipeline, released, configs):
    for each, prediction in ((pipeline, "flow"), (released, "ddpm")):
        for name in ("exact", "balanced", "fast"):
            each("a dog", preset=name, **SMALL)
            assert configs.pop() == preset(name, prediction)
        each("a dog", **SMALL)
        assert configs.pop() == preset("exact", prediction)
    wanted = {
        **{"num_head_steps": 7, "last_head_steps": 3, "solver": "dpm++", "spacing": "even"},
        **{"guidance_scale": 2.5, "guidance_rise": 0.5, "guidance_interval": (0.25, 1.0)},
        **{"temperature": 0.75, "refresh_every": 2},
    }
    pipeline("a dog", num_inference_steps=5, **wanted, **SMALL)
    config = configs.pop()
    assert {name: vars(config)[name] for name in wanted} == wanted
    assert config.num_iterations == 5
    pipeline("a dog", preset="balanced", num_head_steps=2, **SMALL)
    config = configs.pop()
    assert (config.num_head_steps, config.last_head_steps) == (2, 2), "steps do not rise towards the end"
    assert not configs


def test_presets_draw(pipeline, released):
    for each in (pipeline, released):
        small = {"height": 32, "width": 32, "output_type": "latent"}
        latents = [each("a dog", preset=name, **small).images for name in ("balanced", "fast")]
        assert all(found.isfinite().all() for found in latents)
        assert (latents[0] - latents[1]).abs().max() > 1e-3


def test_a_callback_sees_and_changes_tokens(pipeline):
    steps = []

    def callback(pipe, step, time, values):
        assert pipe is pipeline
        steps.append((step, time, tuple(values["tokens"].shape)))
        return {"tokens": torch.zeros_like(values["tokens"])}

    latents = pipeline("a dog", **LATENT, callback_on_step_end=callback).images
    assert steps == [(step, step, (1, 16, 64)) for step in range(4)]
    assert not latents.any()


def test_a_callback_that_only_looks_changes_nothing(pipeline):
    seen = []
    look = {"callback_on_step_end": lambda *values: seen.append(values[3])}
    looked = pipeline("a dog", **LATENT, **look, callback_on_step_end_tensor_inputs=()).images
    assert seen == [{}] * 4
    torch.testing.assert_close(looked, pipeline("a dog", **LATENT).images)


@pytest.mark.parametrize("name", ["interrupt", "_interrupt"])
def test_an_interrupt_ends_between_iterations(pipeline, name):
    seen = []

    def stop_at_one(pipe, step, time, values):
        seen.append(values["tokens"].clone())
        if step == 1:
            setattr(pipe, name, True)

    stopped = pipeline("a dog", **LATENT, callback_on_step_end=stop_at_one).images
    assert len(seen) == 2
    assert 0 < stopped.eq(0).all(1).sum() < 64, "some tokens are there and others not"
    whole = pipeline("a dog", **LATENT).images
    assert whole.ne(0).any(1).all(), "the next call begins anew"
    kept = ~stopped.eq(0)
    torch.testing.assert_close(stopped[kept], whole[kept], atol=1e-5, rtol=1e-5)


def test_a_progress_bar_on_request(pipeline, capsys):
    pipeline.set_progress_bar_config(disable=False)
    try:
        pipeline("a dog", **LATENT)
    finally:
        pipeline.set_progress_bar_config(disable=True)
    assert "4/4" in capsys.readouterr().err
    pipeline("a dog", **LATENT)
    assert capsys.readouterr().err == ""


def test_saved_and_loaded_it_is_the_same(pipeline, tmp_path):
    pipeline.save_pretrained(tmp_path / "saved")
    names = {path.name for path in (tmp_path / "saved").iterdir()}
    assert names == {"model_index.json", "transformer", "vae", "text_encoder", "tokenizer"}
    for path in (tmp_path / "saved").glob("*/*.json"):
        assert str(tmp_path) not in path.read_text()
        assert "_name_or_path" not in path.read_text()
    loaded = LightGenPipeline.from_pretrained(tmp_path / "saved")
    assert isinstance(loaded, DiffusionPipeline)
    assert set(loaded.components) == {"transformer", "vae", "text_encoder", "tokenizer"}
    np.testing.assert_array_equal(loaded("a dog", **FAST).images, pipeline("a dog", **FAST).images)
    half = LightGenPipeline.from_pretrained(tmp_path / "saved", torch_dtype=torch.bfloat16)
    assert half.transformer.dtype == half.vae.dtype == torch.bfloat16
    assert half("a dog", **FAST).images.shape == (1, 64, 64, 3)
    assert half.to(torch.float32)("a dog", negative_prompt="", **FAST).images.shape == (1, 64, 64, 3)


@pytest.fixture
def downloads(monkeypatch, toy):
    """Calls of the Hub's client, which answers with the toy student."""
    seen = []

    def answer(name, **arguments):
        seen.append((name, arguments))
        return str(toy.student.path)

    monkeypatch.setattr(hub.huggingface_hub, "snapshot_download", answer)
    return seen


def test_a_repository_on_the_hub(downloads, pipeline, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    loaded = LightGenPipeline.from_pretrained(
        "owner/name", revision="v1", cache_dir=tmp_path / "cache", local_files_only=True
    )
    ((name, arguments),) = downloads
    patterns = arguments.pop("allow_patterns")
    assert name == "owner/name"
    assert arguments == {"revision": "v1", "cache_dir": tmp_path / "cache", "local_files_only": True}
    np.testing.assert_array_equal(loaded("a dog", **FAST).images, pipeline("a dog", **FAST).images)
    from huggingface_hub.utils import filter_repo_objects

    wanted = [
        *("model_index.json", "transformer/config.json", "vae/diffusion_pytorch_model.safetensors"),
        *("text_encoder/model-00001-of-00002.safetensors", "text_encoder/model.safetensors.index.json"),
        *("tokenizer/tokenizer.json", "tokenizer/spiece.model", "tokenizer/vocab.txt"),
    ]
    others = [
        *("vae/model.bin", "text_encoder/pytorch_model.bin", "transformer/x.pth", "transformer/model.py"),
        *("pipeline.py", "tokenizer/tokenizer.py", "tokenizer/x.pkl", "model.safetensors", "README.md"),
        *("train_state/x.safetensors", "vae/model.ckpt", "vae/model.pt"),
    ]
    assert list(filter_repo_objects([*wanted, *others], allow_patterns=patterns)) == wanted


@pytest.mark.parametrize(("word", "side"), [("nano", 128), ("nano-256", 256)])
def test_shipped_students_draw_at_their_own_size(word, side):
    pipeline = LightGenPipeline.from_pretrained(word)
    picture = pipeline("a dog", num_inference_steps=1, num_head_steps=1, seeds=[0]).images[0]
    assert picture.size == (side, side)
    assert pipeline.transformer.shape.position_step == 128 / side


def test_a_folder_here_is_never_looked_for_on_the_hub(downloads, toy, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "owner").mkdir()
    (tmp_path / "owner" / "name").symlink_to(toy.student.path)
    for name in ("owner/name", toy.student.path, "nano"):
        LightGenPipeline.from_pretrained(name)
    for name in ("no-such", "a/b/c", "../a", "/a/b", "a/../b", "owner/na me", tmp_path / "x"):
        with pytest.raises(UserError, match="no such directory"):
            LightGenPipeline.from_pretrained(name)
    assert downloads == []


def hub_errors():
    from huggingface_hub import errors

    answer = SimpleNamespace(headers={}, request=None)
    return [
        errors.LocalEntryNotFoundError("Cannot find an appropriate cached snapshot folder\nand more"),
        errors.RepositoryNotFoundError("404 Client Error\n\nRepository Not Found", response=answer),
        errors.OfflineModeIsEnabled("offline"),
        errors.HFValidationError("Repo id must not"),
        errors.HTTPError("no route to host"),
    ]


@pytest.mark.parametrize("error", hub_errors(), ids=lambda error: type(error).__name__)
def test_a_missing_repository_or_network_is_one_line(error, monkeypatch):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(hub.huggingface_hub, "snapshot_download", fail)
    with pytest.raises(UserError, match="owner/name: no folder here, and not read from the Hub") as told:
        LightGenPipeline.from_pretrained("owner/name")
    assert "\n" not in str(told.value)


def test_a_full_disk_is_no_missing_repository(monkeypatch):
    def fail(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(hub.huggingface_hub, "snapshot_download", fail)
    with pytest.raises(OSError, match="No space left"):
        LightGenPipeline.from_pretrained("owner/name")


@pytest.mark.parametrize("make", [lambda: LightGenPipeline.from_parts(toy_parts()), released_like])
def test_parts_take_turns_on_the_device(make):
    wanted = make()("a dog", negative_prompt="a cat", **FAST).images
    resting = make()
    resting.enable_model_cpu_offload(device="cpu")
    events = []

    def spied(name, function):
        def call(*values, **named):
            events.append(name)
            return function(*values, **named)

        return call

    names = ("text_encoder", "transformer", "vae")
    for name, user_hook in zip(names, resting._all_hooks, strict=True):
        assert resting.components[name]._hf_hook is user_hook.hook
        user_hook.hook.pre_forward = spied(name, user_hook.hook.pre_forward)
    images = resting("a dog", negative_prompt="a cat", **FAST).images
    assert tuple(dict.fromkeys(events)) == names, "and each sends the one before it away, elsewhere than here"
    np.testing.assert_allclose(images, wanted, atol=1e-6)
    again = resting("a dog", negative_prompt="a cat", **FAST).images
    np.testing.assert_allclose(again, wanted, atol=1e-6)


def test_sequential_offload_leaves_the_transformer_whole():
    pipeline = LightGenPipeline.from_parts(toy_parts())
    pipeline.enable_sequential_cpu_offload(device="cpu")
    hooked = {
        name: any("_hf_hook" in vars(module) for module in part.modules())
        for name, part in pipeline.components.items()
        if isinstance(part, torch.nn.Module)
    }
    assert hooked == {"text_encoder": True, "transformer": False, "vae": True}
    assert {p.device.type for p in pipeline.transformer.parameters()} == {"cpu"}, "not meta"


REFUSED = [
    (
        {"height": 72, "width": 64},
        r"size: got 64x72 px \(width x height\), allowed: .* 16 px from 16 to 4096",
    ),
    ({"height": 0}, "size: got 128x0 px"),
    ({"height": 8}, "size: got 128x8 px"),
    ({"width": -64}, "size: got -64x128 px"),
    ({"width": 4112}, "size: got 4112x128 px"),
    ({"width": 64.0}, "size: got 64.0x128 px"),
    ({"width": True}, "size: got Truex128 px"),
    ({"num_inference_steps": 0}, "num_iterations: got 0, allowed: a whole number from 1 to"),
    ({"num_inference_steps": 2.5}, "num_iterations: got 2.5"),
    ({"num_head_steps": 0}, "num_head_steps: got 0"),
    ({"num_head_steps": 10**9}, "num_head_steps: got 1000000000"),
    ({"last_head_steps": -1}, "last_head_steps: got -1"),
    ({"refresh_every": 0}, "refresh_every: got 0"),
    *(
        ({name: value}, f"{name}: got {value}")
        for name in ("guidance_scale", "guidance_rise", "temperature")
        for value in (float("nan"), float("inf"), -float("inf"), -0.5)
    ),
    ({"guidance_scale": 10**400}, "guidance_scale: got a number of 1329 bits"),
    ({"guidance_scale": "3"}, "guidance_scale: got '3', allowed: a number from 0 to 100"),
    ({"guidance_interval": (0.5, 0.25)}, "guidance_interval: got"),
    ({"guidance_interval": (0.0, float("nan"))}, "guidance_interval: got"),
    ({"guidance_interval": 0.5}, "guidance_interval: got 0.5"),
    ({"preset": "exakt"}, "preset: got 'exakt', did you mean 'exact'?"),
    ({"preset": "zzz"}, "preset: got 'zzz', allowed: exact, balanced, fast"),
    ({"solver": "dpm"}, r"solver: got 'dpm', did you mean 'dpm\+\+'?"),
    ({"solver": "ancestral"}, "solver: got 'ancestral' for a flow checkpoint, allowed: 'ddim' or"),
    ({"spacing": "od"}, "spacing: got 'od'"),
    ({"num_images_per_prompt": 0}, "num_images_per_prompt: got 0"),
    ({"seeds": [1, 2]}, "2 seeds for 1 images"),
    ({"seeds": ["1"]}, "seeds: got '1'"),
    ({"seeds": [1.5]}, "seeds: got 1.5"),
    ({"seeds": [2**70]}, "seeds: got a number of 71 bits"),
    ({"seeds": [1], "generator": torch.Generator()}, "generator and seeds"),
    ({"generator": [torch.Generator()] * 2}, "2 generators for 1 images"),
    ({"generator": 7}, "generator: got int"),
    ({"output_type": "jpeg"}, "output_type: got 'jpeg', allowed: pil"),
    ({"callback_on_step_end_tensor_inputs": ["latents"]}, r"tensor_inputs: got \['latents'\]"),
    ({"prompt": []}, "prompt: got none"),
    ({"prompt": None}, "prompt: got NoneType"),
    ({"prompt": 3}, "prompt: got int, allowed: text"),
    ({"prompt": ["a dog", b"a cat"]}, "prompt 2: got bytes, allowed: text"),
    ({"prompt": ""}, "prompt: got a blank text"),
    ({"prompt": [" \t\n", "a"]}, "prompt 1: got a blank text"),
    ({"prompt": "a \ud800 dog"}, "prompt: got text that is not valid Unicode"),
    ({"prompt": "x" * 2001}, "prompt: got 2001 characters, allowed: at most 2000"),
    ({"prompt": "\u6f22" * 1400}, "prompt: got 4200 bytes, allowed: at most 4096"),
    ({"negative_prompt": ["a", "b", "c"]}, "negative_prompt: got 3 for 1"),
    ({"negative_prompt": 3}, "negative_prompt: got int"),
    ({"negative_prompt": "x" * 5000}, "negative_prompt: got 5000 characters"),
    ({"prompt_embeds": torch.zeros(1, 8, 256)}, "got texts and embeds"),
    ({"prompt_attention_mask": torch.ones(1, 8)}, "got texts and embeds"),
]


@pytest.mark.parametrize(
    ("changes", "told"), REFUSED, ids=[f"{next(iter(c))}-{i}" for i, (c, _) in enumerate(REFUSED)]
)
def test_what_is_refused(pipeline, changes, told):
    with pytest.raises(UserError, match=told) as error:
        pipeline(**{"prompt": "a dog", **changes})
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 250


FEATURES = torch.zeros(2, 8, 256)


@pytest.mark.parametrize(
    ("embeds", "told"),
    [
        ({}, "prompt: got NoneType"),
        ({"prompt_embeds": "a dog"}, "prompt_embeds: got str"),
        ({"prompt_embeds": FEATURES.long()}, "prompt_embeds: got torch.int64"),
        ({"prompt_embeds": FEATURES[0]}, r"prompt_embeds: got shape \[8, 256\], allowed: .*\[N, T, 256\]"),
        ({"prompt_embeds": FEATURES[..., :255]}, r"got shape \[2, 8, 255\]"),
        ({"prompt_embeds": torch.zeros(1, 65, 256)}, r"got shape \[1, 65, 256\], .*T from 1 to 64"),
        ({"prompt_embeds": FEATURES[:0]}, r"got shape \[0, 8, 256\]"),
        ({"prompt_embeds": FEATURES / 0}, "prompt_embeds: got numbers that are not finite"),
        ({"prompt_embeds": FEATURES, "prompt_attention_mask": torch.ones(2, 7)}, r"mask: got shape \[2, 7\]"),
        ({"prompt_embeds": FEATURES, "prompt_attention_mask": torch.zeros(2, 8)}, "at least one per text"),
        ({"prompt_attention_mask": torch.ones(2, 8)}, "prompt_embeds: got NoneType"),
        (
            {"prompt_embeds": FEATURES, "negative_prompt_embeds": torch.zeros(3, 8, 256)},
            "negative_prompt_embeds: got 3 for 2 prompts",
        ),
        (
            {"prompt_embeds": FEATURES, "negative_prompt_attention_mask": torch.ones(2, 8)},
            "negative_prompt_embeds: got NoneType",
        ),
        ({"prompt_embeds": FEATURES, "negative_prompt": "a cat"}, "got texts and embeds"),
        ({"prompt_embeds": FEATURES, "seeds": [1]}, "1 seeds for 2 images"),
    ],
)
def test_which_features_are_refused(pipeline, embeds, told):
    with pytest.raises(UserError, match=told):
        pipeline(**embeds, **FAST)


def test_a_callback_of_the_wrong_shape_is_refused(pipeline):
    with pytest.raises(UserError, match=r"got tokens \[1\] back, allowed: \[1, 16, 64\]"):
        pipeline("a dog", **FAST, callback_on_step_end=lambda *_: {"tokens": torch.zeros(1)})


def test_solvers_of_the_released_head(released):
    settings = {**LATENT, "num_head_steps": 6}
    latents = [released("a dog", solver=each, **settings).images for each in ("ancestral", "ddim", "dpm++")]
    assert all(each.isfinite().all() for each in latents)
    assert all((latents[i] - latents[j]).abs().max() > 1e-2 for i, j in ((0, 1), (0, 2), (1, 2)))
    stride = released("a dog", solver="ddim", spacing="stride", **settings).images
    assert (stride - latents[1]).abs().max() > 1e-2, "the preset's are even"


def test_a_huge_prompt_costs_nothing(pipeline, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("a refused prompt must not be tokenised")

    monkeypatch.setattr(type(pipeline.tokenizer), "__call__", refuse)
    with pytest.raises(UserError, match="got 10000000 characters"):
        pipeline("x" * 10_000_000, **FAST)


def test_folders_that_are_refused(toy, tmp_path):
    with pytest.raises(UserError, match="no such directory"):
        LightGenPipeline.from_pretrained(tmp_path / "nothing")
    with pytest.raises(UserError, match="text_encoder"):
        LightGenPipeline.from_pretrained(toy.detector.path)


def test_every_argument_is_named_in_this_file():
    text = inspect.getsource(sys.modules[__name__])
    edits = {"image", "mask_image", "strength", "padding_mask_crop", "feather"}  # tested beside this file
    names = set(inspect.signature(LightGenPipeline.__call__).parameters) - edits - {"self"}
    assert {name for name in names if f'"{name}"' not in text and f"{name}=" not in text} == set()


def test_the_student_fills_the_teachers_port(toy):
    student: ImageGenerator = StudentGenerator(toy_student(), toy.student)
    images = student.generate(["a dog", "a dog"], [3, 3], 64, 64)
    assert images.dtype == np.uint8
    assert images.shape == (2, 64, 64, 3)
    assert np.abs(images[0].astype(int) - images[1].astype(int)).max() <= 1


def test_a_student_draws_as_its_config_says(toy, configs):
    from dataclasses import replace

    config = toy_student()
    overrides = replace(config.overrides, solver="dpm++", guidance_interval=(0.5, 1.0), refresh_every=2)
    changed = replace(config, preset="balanced", overrides=overrides)
    StudentGenerator(changed, toy.student).generate(["a dog"], [3], 64, 64)
    assert configs == [replace(preset("balanced", "flow"), **overrides.chosen(), last_head_steps=2)]
