import numpy as np
import pytest
import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline

from lightgen.core.errors import UserError
from lightgen.ports.protocols import ImageGenerator
from lightgen.stages.pipeline import LightGenPipeline
from lightgen.stages.student import StudentGenerator
from tests.stages.toy import toy_student

FAST = {"height": 64, "width": 64, "num_inference_steps": 4, "num_head_steps": 2, "output_type": "np"}


@pytest.fixture(scope="module")
def pipeline(toy):
    return LightGenPipeline.from_pretrained(toy.student.path)


def test_an_image_is_the_same_alone_and_in_a_batch(pipeline):
    prompts = ["a dog", "a photo of three red apples left of a very blue elephant", "two cats"]
    together = pipeline(prompts, seeds=[5, 6, 7], **FAST).images
    for prompt, seed, image in zip(prompts, (5, 6, 7), together, strict=True):
        np.testing.assert_allclose(pipeline(prompt, seeds=[seed], **FAST).images[0], image, atol=1e-4)


def test_seeds_and_generators(pipeline):
    wanted = pipeline("a dog", num_images_per_prompt=2, seeds=[9, 10], **FAST).images
    one = torch.Generator().manual_seed(9)
    np.testing.assert_array_equal(
        pipeline("a dog", num_images_per_prompt=2, generator=one, **FAST).images, wanted
    )
    assert torch.equal(one.get_state(), torch.Generator().manual_seed(9).get_state()), "it was not drawn from"
    each = [torch.Generator().manual_seed(seed) for seed in (9, 10)]
    np.testing.assert_array_equal(pipeline(["a dog"] * 2, generator=each, **FAST).images, wanted)
    assert np.abs(wanted[0] - wanted[1]).max() > 0.05
    np.testing.assert_array_equal(
        pipeline("a dog", **FAST).images, pipeline("a dog", seeds=[0], **FAST).images
    )


def test_text_and_guidance_matter(pipeline):
    plain = pipeline("a dog", **FAST).images
    assert np.abs(pipeline("a cat", **FAST).images - plain).max() > 1e-3
    assert np.abs(pipeline("a dog", negative_prompt="a cat", **FAST).images - plain).max() > 1e-3
    unguided = pipeline("a dog", guidance_scale=1.0, **FAST).images
    assert np.abs(unguided - plain).max() > 1e-3
    # away from itself there is nowhere to go
    itself = pipeline("a dog", negative_prompt="a dog", **FAST).images
    np.testing.assert_allclose(itself, unguided, atol=1e-4)


def test_output_types(pipeline):
    fast = {name: value for name, value in FAST.items() if name != "output_type"}
    unit = pipeline("a dog", output_type="np", **fast).images
    picture = pipeline("a dog", **fast).images[0]
    np.testing.assert_allclose(np.asarray(picture) / 255, unit[0], atol=0.51 / 255)
    tensor = pipeline("a dog", output_type="pt", **fast, return_dict=False)[0]
    np.testing.assert_allclose(tensor.permute(0, 2, 3, 1).numpy(), unit, atol=1e-6)
    latents = pipeline("a dog", output_type="latent", **fast).images
    assert latents.shape == (1, 16, 8, 8)
    wide = pipeline("a dog", **{**FAST, "width": 96}).images
    assert wide.shape == (1, 64, 96, 3)


def test_a_callback_sees_and_changes_tokens(pipeline):
    steps = []

    def callback(pipe, step, time, values):
        assert pipe is pipeline
        steps.append((step, time, tuple(values["tokens"].shape)))
        return {"tokens": torch.zeros_like(values["tokens"])}

    latents = pipeline("a dog", **{**FAST, "output_type": "latent"}, callback_on_step_end=callback).images
    assert steps == [(step, step, (1, 16, 64)) for step in range(4)]
    assert not latents.any()


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


def test_what_is_refused(pipeline, toy, tmp_path):
    with pytest.raises(UserError, match="multiples of 16 px"):
        pipeline("a dog", height=72, width=64)
    with pytest.raises(UserError, match="0 prompts"):
        pipeline([])
    with pytest.raises(UserError, match="2 seeds for 1 images"):
        pipeline("a dog", seeds=[1, 2], **FAST)
    with pytest.raises(UserError, match="generator and seeds"):
        pipeline("a dog", seeds=[1], generator=torch.Generator(), **FAST)
    with pytest.raises(UserError, match="output_type: got 'jpeg'"):
        pipeline("a dog", **{**FAST, "output_type": "jpeg"})
    with pytest.raises(UserError, match="negative_prompt: got 3 for 1"):
        pipeline("a dog", **FAST, negative_prompt=["a", "b", "c"])
    with pytest.raises(UserError, match="no such directory"):
        LightGenPipeline.from_pretrained(tmp_path / "nothing")
    with pytest.raises(UserError, match="text_encoder"):
        LightGenPipeline.from_pretrained(toy.detector.path)


def test_the_student_fills_the_teachers_port(toy):
    student: ImageGenerator = StudentGenerator(toy_student(), toy.student)
    images = student.generate(["a dog", "a dog"], [3, 3], 64, 64)
    assert images.dtype == np.uint8
    assert images.shape == (2, 64, 64, 3)
    assert np.abs(images[0].astype(int) - images[1].astype(int)).max() <= 1
    with pytest.raises(UserError, match="source or mask"):
        student.generate(["a dog"], [3], 64, 64, mask=np.ones((1, 64, 64), bool))
