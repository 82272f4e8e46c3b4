import json
import shutil
from dataclasses import replace

import diffusers
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from lightgen.core.config import config_from_dict, config_to_dict
from lightgen.core.errors import UserError
from lightgen.ports import teacher as module
from lightgen.ports.pipeline_folder import read_folder, text_to_image_class
from lightgen.ports.refusal import RefusedPrompt, all_drawn
from lightgen.ports.teacher import DiffusersTeacher, DiffusersTeacherConfig, call_settings, model_label
from tests.ports.toy_pipelines import MAKERS, OPTIONS, save_pipeline

CPU = torch.device("cpu")
KINDS = sorted(MAKERS)
PROMPTS = ["a red dog", "two blue cats on a sofa", "", "a chair", "a red dog"]
SEEDS = [1, 2**32 - 1, 3, -4, 5]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Folder of a pipeline of a class, made once."""
    made = {}

    def folder(kind="StableDiffusionPipeline"):
        if kind not in made:
            made[kind] = save_pipeline(kind, tmp_path_factory.mktemp("teacher") / f"toy-{kind}")
        return made[kind]

    return folder


@pytest.fixture
def copy(folders, tmp_path):
    """Folder of a pipeline to spoil."""

    def make(kind="StableDiffusionPipeline"):
        return shutil.copytree(folders(kind), tmp_path / "copy")

    return make


def load(folder, kind="StableDiffusionPipeline", **changes) -> DiffusersTeacher:
    settings = {"dtype": "fp32", "num_inference_steps": 2, "options": dict(OPTIONS.get(kind, {}))}
    return DiffusersTeacher(DiffusersTeacherConfig(model=str(folder), **(settings | changes)), folder, CPU)


def side(kind):
    return 64 if kind == "SanaPipeline" else 32


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_seed_gives_the_same_image_in_any_batch(folders, kind):
    size = side(kind)
    alone = load(
        folders(kind), kind, **({} if kind == "StableDiffusionPipeline" else {"max_sequence_length": 24})
    )
    images = alone.generate(PROMPTS, SEEDS, size, size)
    assert images.shape == (5, size, size, 3)
    assert images.dtype == np.uint8
    # one at a time or all in one call: a batch of one is a batch of one
    assert (alone.generate(PROMPTS[4:5], SEEDS[4:5], size, size)[0] == images[4]).all()
    # prompt and seed both count
    assert np.abs(images[0].astype(int) - images[4]).max() > 20
    assert np.abs(alone.generate(["z"], [1], size, size)[0].astype(int) - images[0]).max() > 20
    for batch in (2, 4, 8):
        alone.config = replace(alone.config, batch_size=batch)
        found = alone.generate(PROMPTS, SEEDS, size, size)
        assert np.abs(found.astype(int) - images[:5]).max() <= 1
        # the last ones of a run, whose batch is not full
        found = alone.generate(PROMPTS[4:5], SEEDS[4:5], size, size)
        assert np.abs(found[0].astype(int) - images[4]).max() <= 1


def test_plain_diffusers_draws_the_same_image(folders):
    folder = folders("FluxPipeline")
    pipeline = diffusers.FluxPipeline.from_pretrained(folder, local_files_only=True)
    found = pipeline(
        "a red dog", height=32, width=48, num_inference_steps=3, guidance_scale=2.0, output_type="np",
        generator=torch.Generator().manual_seed(11), max_sequence_length=20,
    ).images  # fmt: skip
    made = load(folder, num_inference_steps=3, guidance_scale=2.0, max_sequence_length=20)
    assert (made.generate(["a red dog"], [11], 32, 48) == (found * 255).round().astype(np.uint8)).all()


def test_settings_change_the_image(folders):
    folder = folders("StableDiffusion3Pipeline")
    made = load(folder, guidance_scale=5.0, tile_vae=True)
    assert made._pipeline.vae.use_tiling
    first, found = made.generate(["a red dog"], [1], 32, 32), read_folder(folder)
    for changes in (
        {"guidance_scale": 1.0},
        {"negative_prompt": "blue"},
        {"num_inference_steps": 3},
        {"max_sequence_length": 3},
        {"options": {"mu": 0.3, "clip_skip": 1}},
    ):
        settings = {"guidance_scale": 5.0, "num_inference_steps": 2} | changes
        made.settings, untaken = call_settings(DiffusersTeacherConfig(model="m", **settings), found)
        assert not untaken
        assert (made.generate(["a red dog"], [1], 32, 32) != first).any(), changes


@pytest.mark.parametrize("dtype", ["bf16", "fp16", "fp32"])
def test_weights_are_of_the_type_asked_for(folders, dtype):
    made = load(folders(), dtype=dtype)
    parts = ("unet", "vae", "text_encoder")
    assert {made._pipeline.components[name].dtype for name in parts} == {module._DTYPES[dtype]}
    assert made.generate(["a"], [1], 32, 32).std() > 20


def test_images_come_batch_by_batch(folders, monkeypatch):
    made = load(folders(), batch_size=2)
    sizes = []
    run = made._run
    monkeypatch.setattr(
        made, "_run", lambda prompts, *rest: sizes.append(len(prompts)) or run(prompts, *rest)
    )
    drawn = made.draw(PROMPTS, SEEDS, 32, 32)
    next(drawn)
    assert sizes == [2]
    assert len(list(drawn)) == 4
    assert sizes == [2, 2, 2]  # the last one filled up
    assert made.generate([], [], 32, 32).shape == (0, 32, 32, 3)


def test_the_name_tells_no_path(folders):
    folder = folders("FluxPipeline")
    assert load(folder).name == "toy-FluxPipeline (FluxPipeline)"
    assert model_label("black-forest-labs/FLUX.1-dev") == "black-forest-labs/FLUX.1-dev"
    cache = (
        "/data/hub/models--black-forest-labs--FLUX.1-dev/snapshots/0ef5fff789c832c5c7f4e127f94c8b54bbcced44"
    )
    assert model_label(cache) == "black-forest-labs/FLUX.1-dev"
    for path in ("/data/me/sana", "./sana", "../x/sana/", "~/sana", "a/b/sana", "sana", r"C:\me\sana"):
        assert model_label(path) == "sana"


def test_usual_settings_are_those_of_the_model_and_the_user_comes_first(folders):
    flux, sd = read_folder(folders("FluxPipeline")), read_folder(folders())
    usual = {"num_inference_steps": 4, "guidance_scale": 0.0, "max_sequence_length": 256}

    def settings(folder, model, **changes):
        return call_settings(DiffusersTeacherConfig(model=model, **changes), folder)

    assert settings(flux, "black-forest-labs/FLUX.1-schnell") == (usual, [])
    assert settings(flux, "/data/FLUX.1-schnell") == (usual, [])
    assert settings(flux, "mine") == ({}, [])
    assert settings(flux, "FLUX.1-schnell", num_inference_steps=8)[0] == usual | {"num_inference_steps": 8}
    # usual settings that another pipeline does not take go unsaid, the user's are named
    assert settings(sd, "FLUX.1-schnell") == ({"num_inference_steps": 4, "guidance_scale": 0.0}, [])
    assert settings(sd, "mine", max_sequence_length=9) == ({}, ["max_sequence_length"])
    assert settings(sd, "mine", options={"eta": 0.5})[0] == {"eta": 0.5}


def test_what_a_pipeline_does_not_take_is_said_once(folders, capsys):
    made = load(folders(), max_sequence_length=9)
    made.generate(["a"], [1], 32, 32)
    assert capsys.readouterr().err.count("takes no max_sequence_length") == 1


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"num_inference_steps": 0}, "num-inference-steps: got 0"),
        ({"batch_size": 0}, "batch-size: got 0"),
        ({"guidance_scale": float("nan")}, "guidance-scale"),
        ({"compile": True, "offload": "sequential"}, "compile"),
        ({"offload": "model"}, "offload model without an accelerator"),
        ({"options": {"etta": 1}}, "no 'etta', did you mean 'eta'"),
        ({"options": {"prompt": "x"}}, "options: got 'prompt'"),
        ({"options": {"num_inference_steps": 3}}, "options: got 'num_inference_steps'"),
    ],
)
def test_configs_that_cannot_work(folders, changes, told):
    with pytest.raises(UserError, match=told) as error:
        load(folders(), **changes)
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("kind", "step"), [("StableDiffusionPipeline", 2), ("FluxPipeline", 4), ("SanaPipeline", 32)]
)
def test_sizes_that_it_cannot_make(folders, kind, step):
    made = load(folders(kind), kind)
    for height, width in ((step + 1, step), (step, step - 1), (0, step), (-step, step)):
        with pytest.raises(UserError, match=f"multiples of {step}"):
            made.generate(["a"], [1], height, width)


def test_what_a_pipeline_itself_refuses_is_one_line(folders):
    made = load(folders("SanaPipeline"))  # whose own sizes do not know so small a model
    with pytest.raises(UserError, match="Invalid sample size") as told:
        made.generate(["a"], [1], 64, 64)
    assert len(str(told.value).splitlines()) == 1
    with pytest.raises(UserError, match="source or mask"):
        made.generate(["a"], [1], 64, 64, source=np.zeros((1, 64, 64, 3), np.uint8))


def test_values_that_are_no_numbers_are_no_image(folders):
    made = load(folders())
    made._pipeline.vae.decoder.conv_out.bias.data[:] = torch.nan
    with pytest.raises(UserError, match="no numbers in fp32.*--teacher.dtype fp32"):
        made.generate(["a"], [1], 32, 32)


def test_an_image_of_another_size_is_refused(folders, monkeypatch):
    made = load(folders())
    monkeypatch.setattr(made, "_pipeline", lambda **_: {"images": np.zeros((1, 16, 32, 3))})
    with pytest.raises(UserError, match=r"made \(16, 32\) px .* for \(32, 32\)"):
        made.generate(["a"], [1], 32, 32)


def test_memory_that_runs_out_is_one_line(folders, monkeypatch):
    made = load(folders())

    def full(**_):
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate")

    monkeypatch.setattr(made, "_pipeline", full)
    with pytest.raises(UserError, match="out of memory, allowed: --teacher.offload model"):
        made.generate(["a"], [1], 32, 32)


def test_what_the_safety_checker_takes_is_a_refusal_of_that_image_alone(folders, monkeypatch):
    made = load(folders(), batch_size=2)
    found = {"images": np.full((2, 32, 32, 3), 0.5), "nsfw_content_detected": [False, True]}
    monkeypatch.setattr(made, "_pipeline", lambda **_: found)
    drawn = list(made.draw(["a", "b"], [1, 2], 32, 32))
    assert (drawn[0] == 128).all()
    assert isinstance(drawn[1], RefusedPrompt)
    with pytest.raises(RefusedPrompt):
        all_drawn(drawn, 32, 32)


def test_only_what_denoises_is_compiled(folders, monkeypatch):
    compiled = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda part: compiled.append(type(part).__name__))
    load(folders(), compile=True)
    load(folders("FluxPipeline"), compile=True)
    assert compiled == ["UNet2DConditionModel", "FluxTransformer2DModel"]


@pytest.mark.parametrize(("offload", "called"), [("model", "model"), ("sequential", "sequential")])
def test_offload_is_asked_of_the_device(folders, monkeypatch, offload, called):
    asked = []
    for each in ("model", "sequential"):
        name = f"enable_{each}_cpu_offload"
        monkeypatch.setattr(
            diffusers.DiffusionPipeline, name, lambda self, device, each=each: asked.append((each, device))
        )
    monkeypatch.setattr(diffusers.DiffusionPipeline, "to", lambda self, device: asked.append(("to", device)))
    config = DiffusersTeacherConfig(model="m", offload=offload)
    DiffusersTeacher(config, folders(), torch.device("cuda", 1))
    assert asked == [(called, torch.device("cuda", 1))]


def edit_index(folder, **changes):
    path = folder / "model_index.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"_class_name": "LightGenPipeline"}, "got class 'LightGenPipeline'"),
        ({"_class_name": ["pipeline", "Mine"]}, "got class \\['pipeline'"),
        ({"_class_name": "../../x"}, "got class"),
        ({"_class_name": "os"}, "got class 'os'"),
        ({"_class_name": "utils"}, "got class 'utils'"),
        ({"_class_name": "UNet2DModel"}, "got class 'UNet2DModel'"),
        ({"_class_name": "DiffusionPipeline"}, "got class 'DiffusionPipeline'"),
        ({"_class_name": "StableDiffusionImg2ImgPipeline"}, "none .by its argument height"),
        ({"_class_name": "StableDiffusion3InpaintPipeline"}, "none .by its argument strength"),
        ({"_class_name": "StableDiffusionControlNetPipeline"}, "controlnet_conditioning_scale"),
        ({"_class_name": "WanPipeline"}, "num_frames"),
        ({"_class_name": "KandinskyCombinedPipeline"}, "other repositories"),
        ({"unet": ["my_unet", "MyUNet"]}, "part 'unet' is \\['my_unet'"),
        ({"unet": ["os", "system"]}, "part 'unet'"),
        ({"unet": ["diffusers", "loaders"]}, "part 'unet'"),
        ({"unet": ["transformers", "pipeline"]}, "part 'unet'"),
        ({"unet": ["diffusers"]}, "part 'unet'"),
        ({"../unet": ["diffusers", "UNet2DModel"]}, "part '../unet'"),
        ({"image_encoder": ["transformers", "CLIPVisionModel"]}, "part 'image_encoder' is missing"),
    ],
)
def test_folders_that_are_no_teachers(copy, changes, told):
    folder = copy()
    edit_index(folder, **changes)
    with pytest.raises(UserError, match=told) as error:
        load(folder)
    assert len(str(error.value).splitlines()) == 1


def test_code_beside_the_weights_is_neither_run_nor_asked_about(copy):
    folder = copy()
    edit_index(folder, tokenizer=["transformers", "AutoTokenizer"])
    (folder / "pipeline.py").write_text("raise SystemExit('ran')")
    config = folder / "tokenizer" / "tokenizer_config.json"
    settings = json.loads(config.read_text()) | {"auto_map": {"AutoTokenizer": ["mine.Mine", None]}}
    config.write_text(json.dumps(settings))
    (folder / "tokenizer" / "mine.py").write_text("raise SystemExit('ran')")
    with pytest.raises(UserError, match="tokenizer_config.json names code of its own"):
        load(folder)
    edit_index(folder, tokenizer=["transformers", "CLIPTokenizer"])
    load(folder)


def test_pickles_are_no_weights(copy):
    folder = copy()
    (folder / "unet" / "diffusion_pytorch_model.safetensors").rename(
        folder / "unet" / "diffusion_pytorch_model.bin"
    )
    with pytest.raises(UserError, match="unet has pickled weights only, allowed: safetensors"):
        load(folder)
    (folder / "unet" / "diffusion_pytorch_model.bin").unlink()
    with pytest.raises(UserError, match="unet has no weights"):
        load(folder)


@pytest.mark.parametrize("part", ["unet", "text_encoder"])
def test_a_weight_that_is_missing_is_not_drawn_by_chance(copy, part):
    folder = copy()
    (path,) = (folder / part).glob("*.safetensors")
    tensors = load_file(path)
    name = max(tensors)
    save_file({each: tensors[each] for each in tensors if each != name}, path, metadata={"format": "pt"})
    with pytest.raises(UserError, match=f"{part} lacks 1 weights .{name}"):
        load(folder)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError) as told:
        load(folder)
    assert len(str(told.value).splitlines()) == 1


@pytest.mark.parametrize("text", ["{", "[]", "", '{"_class_name": 3}', "[" * 10_000])
def test_a_damaged_index(copy, text):
    folder = copy()
    (folder / "model_index.json").write_text(text)
    with pytest.raises(UserError, match="no model_index.json|got class 3"):
        load(folder)


def test_no_folder(tmp_path):
    with pytest.raises(UserError, match="no model_index.json"):
        read_folder(tmp_path / "nothing")


def test_files_are_those_that_are_read(copy):
    folder = copy()
    for name in (
        "toy.safetensors",
        "unet/diffusion_pytorch_model.fp16.safetensors",
        "unet/x.bin",
        "README.md",
    ):
        shutil.copy(folder / "vae" / "diffusion_pytorch_model.safetensors", folder / name)
    found = read_folder(folder)
    assert found.files == (
        "model_index.json",
        "scheduler/scheduler_config.json",
        "text_encoder/config.json",
        "text_encoder/model.safetensors",
        "tokenizer/tokenizer.json",
        "tokenizer/tokenizer_config.json",
        "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors",
        "vae/config.json",
        "vae/diffusion_pytorch_model.safetensors",
    )
    assert found.models["unet"] == (diffusers.UNet2DConditionModel, None)


def test_a_variant_is_taken_where_there_are_no_plain_weights(copy, folders):
    folder = copy()
    plain = folder / "unet" / "diffusion_pytorch_model.safetensors"
    plain.rename(folder / "unet" / "diffusion_pytorch_model.fp16.safetensors")
    found = read_folder(folder)
    assert found.models["unet"][1] == "fp16"
    assert "unet/diffusion_pytorch_model.fp16.safetensors" in found.files
    images = [load(each).generate(["a"], [1], 32, 32) for each in (folder, folders())]
    assert (images[0] == images[1]).all()


def test_teachers_that_people_name_are_taken(tmp_path):
    kinds = (
        "Flux Flux2 Flux2Klein StableDiffusion StableDiffusionXL StableDiffusion3 Sana SanaSprint PixArtAlpha"
    )
    kinds += " PixArtSigma QwenImage ZImage Lumina2 CogView4 Chroma HunyuanDiT AuraFlow HiDreamImage PRX"
    for kind in kinds.split():
        assert text_to_image_class(tmp_path, f"{kind}Pipeline").__name__ == f"{kind}Pipeline"
    assert set(module._USUAL) >= {"FLUX.1-schnell", "sdxl-turbo"}


def test_the_config_comes_back_from_the_manifest():
    config = DiffusersTeacherConfig(
        model="m", options={"eta": 0.5, "clip_skip": 2, "use_resolution_binning": False}
    )
    assert config_from_dict(DiffusersTeacherConfig, config_to_dict(config)) == config
