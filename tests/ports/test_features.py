import json
import math
import sys
import types

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from transformers import Dinov2Model

from lightgen.core.draws import numpy_draws
from lightgen.core.errors import UserError
from lightgen.ports.features import FeaturesConfig, features_files, fit_positions, load_features
from lightgen.ports.inception import DIM, load_inception
from tests.ports.toy_clip import SIDE, toy_clip
from tests.ports.toy_encoders import save_encoder

CPU = torch.device("cpu")
IMAGENET = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
CLIP = np.array([0.48145466, 0.4578275, 0.40821073]), np.array([0.26862954, 0.26130258, 0.27577711])


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("extractors")
    return {family: save_encoder(family, root / family) for family in ("dinov2", "clip")}


def load(folders, kind, **changes):
    return load_features(FeaturesConfig(kind=kind, **changes), folders[kind], CPU)


def pictures(height=160, width=160, count=3):
    random = numpy_draws(0, "pictures", height, width)
    patches = random.integers(0, 236, (count, 3, 3, 3)).repeat(75, 1).repeat(75, 2)[:, :height, :width]
    return (patches + random.integers(0, 20, (count, height, width, 3))).astype(np.uint8)


def prepared(image, side, mean, deviation):
    resized = np.asarray(Image.fromarray(image).resize((side, side), Image.Resampling.BICUBIC))
    return torch.tensor(((resized / 255 - mean) / deviation).transpose(2, 0, 1), dtype=torch.float32)


@torch.no_grad()
@pytest.mark.parametrize("shape", [(160, 160), (112, 224), (224, 224)])
def test_dinov2_sees_the_whole_image_in_224_px(folders, shape):
    model = Dinov2Model.from_pretrained(folders["dinov2"]).eval()
    fit_positions(model, 224)
    images = pictures(*shape)
    pixels = torch.stack([prepared(image, 224, *IMAGENET) for image in images])
    tokens = model(pixel_values=pixels).last_hidden_state
    extractor = load(folders, "dinov2")
    found = extractor.features(images)
    assert found.shape == (3, extractor.dim) == (3, 32) and found.dtype == np.float32
    np.testing.assert_allclose(found, tokens[:, 0].numpy(), atol=1e-5)
    assert np.abs(np.linalg.norm(found, axis=1) - 1).min() > 0.1  # raw, which the Fréchet distance needs


@torch.no_grad()
@pytest.mark.parametrize("shape", [(160, 160), (112, 224), (161, 133)])
def test_clip_sees_the_square_in_the_middle(folders, shape):
    height, width = shape
    square = min(shape)
    top, left = (height - square) // 2, (width - square) // 2
    images = pictures(*shape)
    middle = images[:, top : top + square, left : left + square]
    pixels = torch.stack([prepared(np.ascontiguousarray(image), SIDE, *CLIP) for image in middle])
    wanted = toy_clip().get_image_features(pixel_values=pixels).pooler_output
    extractor = load(folders, "clip")
    found = extractor.features(images)
    assert found.shape == (3, extractor.dim) == (3, 12)
    np.testing.assert_allclose(found, wanted.numpy(), atol=1e-5)


def cubic(distance, a=-0.75):
    d = abs(distance)
    if d < 1:
        return (a + 2) * d**3 - (a + 3) * d**2 + 1
    return a * d**3 - 5 * a * d**2 + 8 * a * d - 4 * a if d < 2 else 0.0


def weights(old, new, factor):
    """Matrix [new, old] of bicubic interpolation by a factor, beyond the edge the edge itself."""
    found = np.zeros((new, old))
    for row in range(new):
        at = (row + 0.5) / factor - 0.5
        for near in range(math.floor(at) - 1, math.floor(at) + 3):
            found[row, min(max(near, 0), old - 1)] += cubic(at - near)
    return found


def test_positions_of_dinov2_are_those_of_its_authors(folders):
    model = Dinov2Model.from_pretrained(folders["dinov2"])  # positions for 28 px in patches of 7
    before = model.embeddings.position_embeddings.detach().double().numpy()
    fit_positions(model, 42)
    after = model.embeddings.position_embeddings.detach().numpy()
    matrix = weights(4, 6, (6 + 0.1) / 4)
    wanted = np.einsum("xi,yj,ijd->xyd", matrix, matrix, before[0, 1:].reshape(4, 4, -1))
    np.testing.assert_allclose(after[0, 1:], wanted.reshape(36, -1), atol=1e-5)
    np.testing.assert_allclose(after[0, 0], before[0, 0], atol=1e-7)
    plain = weights(4, 6, 6 / 4)
    other = np.einsum("xi,yj,ijd->xyd", plain, plain, before[0, 1:].reshape(4, 4, -1))
    assert np.abs(other - wanted).max() > 1e-3
    fit_positions(model, 42)
    np.testing.assert_array_equal(model.embeddings.position_embeddings.detach().numpy(), after)


@pytest.mark.parametrize("kind", ["dinov2", "clip"])
def test_any_batch_and_precision(folders, kind):
    images = pictures(count=5)
    whole = load(folders, kind).features(images)
    assert whole.std(0).max() > 0.05
    np.testing.assert_allclose(load(folders, kind, batch_size=2).features(images), whole, atol=2e-5)
    rough = load(folders, kind, precision="bf16").features(images)
    assert rough.dtype == np.float32
    assert 1e-4 < np.abs(rough - whole).max() / np.abs(whole).max() < 0.1
    assert load(folders, kind).features(images[:0]).shape == (0, whole.shape[1])


def test_a_clip_without_safetensors(folders, tmp_path):
    """The usual CLIP of CMMD comes as a pickle; it is read by the loader that runs nothing."""
    (tmp_path / "config.json").write_bytes((folders["clip"] / "config.json").read_bytes())
    config = FeaturesConfig(kind="clip")
    with pytest.raises(UserError, match=r"no model.safetensors, allowed: clip in transformers' layout"):
        load_features(config, tmp_path, CPU)
    torch.save(toy_clip().state_dict(), tmp_path / "pytorch_model.bin")
    assert [path.name for path in features_files(config, tmp_path)] == ["config.json", "pytorch_model.bin"]
    images = pictures()
    found = load_features(config, tmp_path, CPU).features(images)
    np.testing.assert_array_equal(found, load(folders, "clip").features(images))
    torch.save({**toy_clip().state_dict(), "x": Evil()}, tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match="nothing in it was run"):
        load_features(config, tmp_path, CPU)


class Evil:
    def __reduce__(self):
        return (open, ("evil", "w"))


@pytest.mark.parametrize("kind", ["dinov2", "clip"])
@pytest.mark.parametrize(
    ("how", "told"),
    [
        ("config", "no config.json"),
        ("weights", "no model.safetensors"),
        ("torn", "features"),
        ("no json", "features"),
        ("another", "holds a 't5', allowed: "),
        ("missing weight", "1 weights missing or of another shape"),
    ],
)
def test_a_bad_folder_is_one_line(tmp_path, kind, how, told):
    folder = save_encoder(kind, tmp_path)
    config, weights = folder / "config.json", folder / "model.safetensors"
    if how in ("config", "weights"):
        {"config": config, "weights": weights}[how].unlink()
    elif how == "torn":
        weights.write_bytes(weights.read_bytes()[:-40])
    elif how == "no json":
        config.write_text("{")
    elif how == "another":
        config.write_text(json.dumps({"model_type": "t5"}))
    else:
        model = toy_clip() if kind == "clip" else Dinov2Model.from_pretrained(folder)
        state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
        del state["visual_projection.weight" if kind == "clip" else "layernorm.weight"]
        save_file(state, weights, {"format": "pt"})
    with pytest.raises(UserError, match=told) as error:
        load_features(FeaturesConfig(kind=kind), folder, CPU)
    assert "\n" not in str(error.value) and str(tmp_path) in str(error.value)


def test_without_torch_fidelity_inception_is_refused(tmp_path):
    path = tmp_path / "weights.pth"
    with pytest.raises(UserError, match=r"is no file, allowed: that of Inception's weights"):
        load_features(FeaturesConfig(kind="inception"), path, CPU)
    torch.save({"fc.weight": torch.zeros(2, 2)}, path)
    with pytest.raises(
        UserError, match=r"torch_fidelity is not installed, allowed: pip install 'lightgen\[fid\]'"
    ):
        load_features(FeaturesConfig(kind="inception"), path, CPU)


@pytest.fixture
def stand_in(monkeypatch):
    """A package of torch-fidelity's names whose network is one layer and takes its weights by download."""
    inner = types.ModuleType("torch_fidelity.feature_extractor_inceptionv3")

    class Network(torch.nn.Module):
        def __init__(self, name, features_list):
            super().__init__()
            assert features_list == ["2048"]
            self.fc = torch.nn.Linear(3, DIM)
            self.load_state_dict(vars(inner)["load_state_dict_from_url"]("https://somewhere", progress=True))
            self.requires_grad_(False)

        def forward(self, x):
            assert x.dtype == torch.uint8
            return (self.fc(x.float().mean((2, 3)) / 255),)

    def download(url, progress):
        raise AssertionError(url)

    vars(inner).update(FeatureExtractorInceptionV3=Network, load_state_dict_from_url=download)
    outer = types.ModuleType("torch_fidelity")
    vars(outer)["feature_extractor_inceptionv3"] = inner
    monkeypatch.setitem(sys.modules, "torch_fidelity", outer)
    monkeypatch.setitem(sys.modules, inner.__name__, inner)
    return inner, download


def test_weights_of_inception_are_handed_over(stand_in, tmp_path):
    """What torch-fidelity would download or unpickle freely, it gets from the restricted reader."""
    module, download = stand_in
    path = tmp_path / "weights.pth"
    state = {"fc.weight": torch.arange(3.0 * DIM).reshape(DIM, 3) / DIM, "fc.bias": torch.ones(DIM)}
    torch.save(state, path)
    extractor = load_features(FeaturesConfig(kind="inception", batch_size=2), path, CPU)
    images = pictures(20, 30)
    wanted = images.reshape(3, -1, 3).mean(1) / 255 @ state["fc.weight"].numpy().T + 1
    found = extractor.features(images)
    assert found.shape == (3, DIM) == (3, extractor.dim)
    np.testing.assert_allclose(found, wanted, rtol=1e-5)
    assert module.load_state_dict_from_url is download
    torch.save({"fc.weight": state["fc.weight"]}, path)
    with pytest.raises(UserError, match="Missing key.*fc.bias.*allowed: weights-inception"):
        load_inception(path, CPU)
    assert module.load_state_dict_from_url is download
    torch.save({**state, "x": Evil()}, path)
    with pytest.raises(UserError, match="nothing in it was run"):
        load_inception(path, CPU)
    del module.load_state_dict_from_url
    with pytest.raises(UserError, match="torch-fidelity of another make, allowed: 0.4.0"):
        load_inception(path, CPU)
