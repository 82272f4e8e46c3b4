import json

import numpy as np
import pytest
import torch
from PIL import Image

from lightgen.core.errors import UserError
from lightgen.ports.safety import SafetyConfig, load_safety, safety_files
from tests.ports.test_scorer import CPU, pictures
from tests.ports.toy_vit import SIDE, save_vit, toy_vit


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_vit(tmp_path_factory.mktemp("vit"))


@torch.no_grad()
def shares(image, seed=0):
    """Probabilities [3] of the classes, with the preparation by Pillow and numpy: squeezed to a square."""
    resized = np.asarray(Image.fromarray(image).resize((SIDE, SIDE), Image.Resampling.BILINEAR))
    pixels = torch.tensor(((resized / 255 - 0.5) / 0.5).transpose(2, 0, 1), dtype=torch.float32)
    logits = toy_vit(seed=seed)(pixel_values=pixels[None]).logits[0].double().numpy()
    return np.exp(logits) / np.exp(logits).sum()


@pytest.mark.parametrize("shape", [(40, 40), (61, 33)])
def test_the_answer_is_the_probability_of_the_unsafe_classes(folder, shape):
    images = pictures(*shape)
    wanted = np.array([shares(image) for image in images])
    assert np.ptp(wanted[:, 1]) > 0.01
    checker = load_safety(SafetyConfig(), folder, CPU)
    found = checker.unsafe(images)
    np.testing.assert_allclose(found, wanted[:, 1], atol=1e-5)
    assert found.dtype == np.float32 and found.shape == (4,)
    both = load_safety(SafetyConfig(labels=("nsfw", "gore")), folder, CPU)
    np.testing.assert_allclose(both.unsafe(images), wanted[:, 1:].sum(1), atol=1e-5)


def test_a_batch_answers_as_its_images_one_by_one(folder):
    checker, images = load_safety(SafetyConfig(), folder, CPU), pictures()
    singly = [checker.unsafe(images[i : i + 1])[0] for i in range(len(images))]
    np.testing.assert_allclose(checker.unsafe(images), singly, atol=1e-5)


def test_nothing_is_checked_unless_asked():
    assert SafetyConfig().model is None


def broken(folder, how):
    if how == "weights":
        (folder / "model.safetensors").unlink()
    elif how == "pickle":
        (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    elif how == "processor":
        (folder / "preprocessor_config.json").unlink()
    elif how == "torn":
        data = (folder / "model.safetensors").read_bytes()
        (folder / "model.safetensors").write_bytes(data[:-40])
    elif how == "side":
        save_vit(folder, side=20)
    else:
        config = json.loads((folder / "config.json").read_text())
        if how == "another":
            config["model_type"] = "clip"
        else:
            config["hidden_size"] = 8
        (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("how", "told"),
    [
        ("weights", "no model.safetensors, allowed: a ViT classifier"),
        ("pickle", "no model.safetensors"),
        ("processor", "no preprocessor_config.json"),
        ("torn", "safety"),
        ("side", "scales to 20x20 px, allowed: the model's 16x16"),
        ("another", "holds a 'clip', allowed: a 'vit'"),
        ("shape", "weights missing or of another shape"),
    ],
)
def test_a_bad_folder_is_one_line(tmp_path, how, told):
    save_vit(tmp_path)
    broken(tmp_path, how)
    with pytest.raises(UserError, match=told) as error:
        load_safety(SafetyConfig(), tmp_path, CPU)
    assert "\n" not in str(error.value) and str(tmp_path) in str(error.value)


def test_classes_that_it_does_not_know_are_refused(folder):
    with pytest.raises(UserError, match=r"--safety.labels: got 'porn', allowed: of gore, normal, nsfw"):
        load_safety(SafetyConfig(labels=("nsfw", "porn")), folder, CPU)
    with pytest.raises(UserError, match="got none"):
        load_safety(SafetyConfig(labels=()), folder, CPU)
    assert [path.name for path in safety_files(folder)] == [
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
    ]
