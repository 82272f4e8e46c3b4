"""Edits by the real pipeline of a toy student, and as files."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from lightgen.core.draws import numpy_draws
from lightgen.core.errors import UserError
from lightgen.stages import pipeline as pipeline_module
from lightgen.stages.decoding import DecodeOverrides
from lightgen.stages.edit import EditConfig
from lightgen.stages.inpaint import InpaintConfig, Margins, inpaint
from lightgen.stages.pipeline import LightGenPipeline
from lightgen.stages.student import StudentGenerator
from tests.stages.toy import toy_student

QUICK = {"num_inference_steps": 2, "num_head_steps": 1}
CONFIG = InpaintConfig(seed=4, overrides=DecodeOverrides(num_iterations=2, num_head_steps=1))


@pytest.fixture(scope="module")
def pipeline(toy):
    return LightGenPipeline.from_pretrained(toy.student.path)


def picture(key=0, height=48, width=40):
    return numpy_draws(0, "test-inpaint", key).integers(0, 256, (height, width, 3), dtype=np.uint8)


def box(height=48, width=40, *, rows=(10, 30), columns=(5, 20)):
    mask = np.zeros((height, width), bool)
    mask[slice(*rows), slice(*columns)] = True
    return mask


def random_mask(key, height, width):
    draws = numpy_draws(0, "test-inpaint-mask", key)
    mask = np.zeros((height, width), bool)
    top, left = draws.integers(height), draws.integers(width)
    mask[top : top + draws.integers(1, height + 1), left : left + draws.integers(1, width + 1)] = True
    return mask if key % 5 else mask & (draws.random(mask.shape) < 0.05)


@pytest.mark.parametrize("start", range(0, 40, 4))
def test_outside_the_mask_nothing_changes(pipeline, start):
    height, width = numpy_draws(0, "test-inpaint-size", start).integers(1, 65, 2).tolist()
    pictures = np.stack([picture(start + i, height, width) for i in range(4)])
    masks = np.stack([random_mask(start + i, height, width) for i in range(4)])
    masks[start // 4 % 4] = start % 8 == 0  # one is full or empty
    settings = [{}, {"padding_mask_crop": 3}, {"feather": 4}, {"strength": 0.5}][start // 4 % 4]
    prompts = ["a dog", "a cat", "a red apple", "two birds"]
    images = pipeline(prompts, image=pictures, mask_image=masks, **settings, **QUICK).images
    for made, given, mask in zip(images, pictures, masks, strict=True):
        assert np.array_equal(np.asarray(made)[~mask], given[~mask])
        assert mask.sum() < 20 or not np.array_equal(np.asarray(made)[mask], given[mask])


def test_a_full_mask_is_generation(pipeline):
    given, everything = picture(0, 64, 48), np.ones((64, 48), bool)
    for output_type in ("np", "pil"):
        common = {"seeds": [3, 9], "output_type": output_type, **QUICK}
        plain = pipeline(["a dog", "a cat"], height=64, width=48, **common).images
        for mask in (everything, None):
            made = pipeline(["a dog", "a cat"], image=given, mask_image=mask, **common).images
            assert np.array_equal(np.stack(made), np.stack(plain))


def test_an_empty_mask_runs_no_model(pipeline, monkeypatch):
    def fail(*_, **__):
        raise AssertionError("a model ran")

    for part in (pipeline.transformer, pipeline.vae, pipeline.text_encoder):
        monkeypatch.setattr(part, "forward", fail)
    monkeypatch.setattr(pipeline.vae, "encode", fail)
    monkeypatch.setattr(pipeline.vae, "decode", fail)
    monkeypatch.setattr(pipeline_module, "decode_tokens", fail)
    given = picture()
    for settings in (
        {"mask_image": np.zeros((48, 40), bool)},
        {"mask_image": box(), "strength": 0},
        {"strength": 0},
    ):
        made = pipeline("a dog", image=given, num_images_per_prompt=2, **settings, **QUICK).images
        assert all(np.array_equal(np.asarray(each), given) for each in made)
    floats = torch.rand(3, 48, 40, generator=torch.Generator().manual_seed(0))
    made = pipeline("a dog", image=floats, strength=0, output_type="pt", **QUICK).images
    assert torch.equal(made[0], floats)


def test_an_image_is_the_same_alone_and_in_a_batch(pipeline):
    pictures = np.stack([picture(i) for i in range(3)])
    masks = np.stack([box(), box(rows=(33, 34), columns=(7, 8)), box(rows=(0, 48))])
    prompts, seeds = ["a dog", "a cat", "two birds"], [5, 6, 7]
    for settings in ({}, {"padding_mask_crop": 6}, {"strength": 0.5}):
        common = {"output_type": "np", **settings, **QUICK}
        together = pipeline(prompts, image=pictures, mask_image=masks, seeds=seeds, **common).images
        for i in range(3):
            alone = pipeline(
                prompts[i], image=pictures[i], mask_image=masks[i], seeds=[seeds[i]], **common
            ).images
            np.testing.assert_allclose(alone[0], together[i], atol=1e-4)


def test_nothing_depends_on_what_is_under_the_mask(pipeline):
    mask = box()
    dark, light = (np.where(mask[..., None], value, picture()).astype(np.uint8) for value in (0, 255))
    for settings in ({}, {"padding_mask_crop": 6}):
        common = {"mask_image": mask, "output_type": "np", **settings, **QUICK}
        one, two = (pipeline("a dog", image=each, **common).images[0] for each in (dark, light))
        assert np.array_equal(one[mask], two[mask])
        # but it does depend on what is around it, on the prompt and on the seed
        other = pipeline("a dog", image=255 - dark, **common).images[0]
        assert np.abs(one - other)[mask].max() > 1e-3
        assert np.abs(one - pipeline("a cat", image=dark, **common).images[0])[mask].max() > 1e-4
        assert np.abs(one - pipeline("a dog", image=dark, seeds=[8], **common).images[0])[mask].max() > 1e-3


def test_known_tokens_reach_the_sampler(pipeline, monkeypatch):
    seen, decode = [], pipeline_module.decode_tokens

    def note(transformer, texts, seeds, grid, config, known=None, known_mask=None, on_iteration=None):
        tokens = decode(transformer, texts, seeds, grid, config, known, known_mask, on_iteration)
        seen.append((list(seeds), grid, len(texts.text), known_mask))
        assert torch.equal(tokens[known_mask], known[known_mask])
        return tokens

    monkeypatch.setattr(pipeline_module, "decode_tokens", note)
    masks = np.stack([box(rows=(3, 4)), np.zeros((48, 40), bool), box(rows=(3, 40)), box(rows=(44, 45))])
    pipeline(["a dog", "a cat"], image=picture(), mask_image=masks, num_images_per_prompt=2, **QUICK)
    assert [each[:3] for each in seen] == [([0, 3], (3, 3), 2), ([2], (3, 3), 1)]
    assert seen[0][3].view(2, 3, 3)[:, :, 0].tolist() == [[False, True, True], [True, True, False]]
    seen.clear()
    pipeline("a dog", image=picture(), strength=0.5, seeds=[2], **QUICK)
    assert int((~seen[0][3]).sum()) == 5


def test_the_callback_can_stop(pipeline):
    calls = []

    def stop(pipe, iteration, _, values):
        calls.append(iteration)
        pipe.interrupt = True
        return values

    pipeline("a dog", image=picture(), mask_image=box(), callback_on_step_end=stop, num_inference_steps=4)
    assert calls == [0]


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"mask_image": box(40, 48)}, "allowed: the image's 40x48 px"),
        ({"mask_image": box(), "height": 64}, "size: got 40x64 px .*, allowed: the image's 40x48 px"),
        ({"mask_image": box(), "output_type": "latent"}, "output_type: got 'latent' with an image"),
        ({"mask_image": box(), "strength": 2}, "strength: got 2, allowed: a number from 0 to 1"),
        ({"mask_image": box(), "strength": float("nan")}, "strength: got nan"),
        ({"mask_image": box(), "feather": 0.5}, "feather: got 0.5, allowed: a whole number"),
        ({"mask_image": box(), "padding_mask_crop": -1}, "padding_mask_crop: got -1"),
        ({"padding_mask_crop": 3}, "padding_mask_crop: got no mask_image"),
        ({"image": None, "mask_image": box()}, "allowed: only with an image"),
        ({"image": None, "strength": 0.5}, "allowed: only with an image"),
        ({"image": "x.png"}, "image: got str"),
        ({"image": np.zeros((1, 4097, 3), np.uint8)}, "size: got 4112x16 px"),
        ({"image": np.stack([picture()] * 2)}, "image: got 2 for 1 images, allowed: one, or one per prompt"),
    ],
)
def test_what_the_pipeline_refuses(pipeline, settings, told):
    with pytest.raises(UserError, match=told) as caught:
        pipeline("a dog", **{"image": picture(), **settings})
    assert "\n" not in str(caught.value)


def test_the_student_edits_behind_the_teachers_port(toy):
    student = StudentGenerator(toy_student(), toy.student)
    source, mask = np.stack([picture(0), picture(1)]), np.stack([box(), box(rows=(0, 3))])
    images = student.generate(["a dog", "a cat"], [1, 2], 48, 40, source, mask)
    assert images.dtype == np.uint8
    assert np.array_equal(images[~mask], source[~mask])
    assert not np.array_equal(images[mask], source[mask])
    with pytest.raises(UserError, match="both or neither"):
        student.generate(["a dog"], [1], 48, 40, source[:1])


@pytest.fixture
def files(tmp_path):
    Image.fromarray(picture()).save(tmp_path / "in.png")
    Image.fromarray(box()).save(tmp_path / "mask.png")
    return tmp_path


def test_a_changed_file_remembers_how_it_was_made(toy, files):
    config = replace(CONFIG, edit=EditConfig(feather=2, crop=5), num=2)
    paths = inpaint(
        config, files / "in.png", "a dog", files / "mask.png", files / "out" / "x.png", toy.student.path
    )
    assert [path.name for path in paths] == ["x-4.png", "x-5.png"]
    for seed, path in zip((4, 5), paths, strict=True):
        with Image.open(path) as made:
            assert np.array_equal(np.asarray(made)[~box()], picture()[~box()])
            facts = json.loads(made.text["lightgen"])
        assert (facts["prompt"], facts["seed"], facts["image"], facts["mask"]) == (
            *("a dog", seed, "in.png", "mask.png"),
        )
        assert (facts["feather"], facts["crop"], facts["strength"]) == (2, 5, 1)
        assert facts["model_digest"] == toy.student.digest
        assert facts["num_iterations"] == 2
        assert len(facts["image_sha256"]) == 64
    again = inpaint(
        config, files / "in.png", "a dog", files / "mask.png", files / "again" / "x.png", toy.student.path
    )
    assert [path.read_bytes() for path in again] == [path.read_bytes() for path in paths]


def test_outpainting_keeps_the_picture_at_its_place(toy, files):
    config = replace(CONFIG, margins=Margins(left=16, top=7))
    (path,) = inpaint(config, files / "in.png", "a dog", out=files / "x.png", model=toy.student.path)
    made = np.asarray(Image.open(path))
    assert made.shape == (55, 56, 3)
    assert np.array_equal(made[7:, 16:], picture())


def test_a_variation_has_the_pictures_size(toy, files):
    config = replace(CONFIG, edit=EditConfig(strength=0.5))
    (path,) = inpaint(config, files / "in.png", "a dog", out=f"{files}/", model=toy.student.path)
    assert path.name == "a-dog-4.png"
    assert np.asarray(Image.open(path)).shape == (48, 40, 3)


def test_what_files_are_refused(toy, files):
    def refused(told, config=CONFIG, image="in.png", mask="mask.png", out="x.png", prompt="a dog"):
        with pytest.raises(UserError, match=told) as caught:
            inpaint(config, files / image, prompt, mask and files / mask, files / out, toy.student.path)
        assert "\n" not in str(caught.value)
        assert not (files / "x.png").exists()

    Image.new("L", (40, 40)).save(files / "small.png")
    grown = replace(CONFIG, margins=Margins(left=16))
    refused("small.png: got 40x40 px, allowed: the picture's 40x48 px", mask="small.png")
    refused("no.png: no such file", mask="no.png")
    refused("no.png: no such file", image="no.png")
    refused("got nothing to change, allowed: a mask, outpaint, or a strength below 1", mask=None)
    refused("got a mask and outpaint", config=grown)
    refused("got strength 0.5 and outpaint", replace(grown, edit=EditConfig(strength=0.5)), mask=None)
    refused("got 4137x48 px in all", replace(CONFIG, margins=Margins(right=4097)), mask=None)
    refused("allowed: a file that is not read from", out="in.png")
    refused("allowed: a file that is not read from", out="mask.png")
    refused("a blank text", prompt=" ")
    refused("characters, allowed: at most", prompt="dog " * 2_500_000)
    refused("num: got 0", config=replace(CONFIG, num=0))
    refused(
        "guidance_scale: got nan", replace(CONFIG, overrides=DecodeOverrides(guidance_scale=float("nan")))
    )
    assert sorted(path.name for path in files.iterdir()) == ["in.png", "mask.png", "small.png"]
