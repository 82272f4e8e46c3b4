import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from lightgen.core.errors import UserError
from lightgen.ports.aesthetic import load_head
from lightgen.ports.scorer import COLUMNS, ScorerConfig, load_scorer
from lightgen.stages.scorer import find_scorer
from tests.ports.test_scorer import CPU, pictures, prepared
from tests.ports.toy_clip import save_clip, toy_clip

WIDTH = 12  # of the toy's image features
PLACES = (0, 2, 4, 6, 7)


def mlp(widths=(WIDTH, 10, 6, 4, 3, 1), places=PLACES):
    """A head of random weights under the names of the released one."""
    random, tensors = torch.Generator().manual_seed(0), {}
    for place, before, after in zip(places, widths, widths[1:], strict=False):
        tensors[f"layers.{place}.weight"] = torch.randn(after, before, generator=random)
        tensors[f"layers.{place}.bias"] = torch.randn(after, generator=random)
    return tensors


def linear():
    return {"weight": torch.linspace(-1, 1, WIDTH)[None], "bias": torch.tensor([5.0])}


@torch.no_grad()
def wanted(image, tensors):
    found = (
        toy_clip().get_image_features(pixel_values=prepared(image)[None]).pooler_output[0].double().numpy()
    )
    found = found / np.linalg.norm(found)
    names = [f"layers.{place}." for place in PLACES] if "weight" not in tensors else [""]
    for name in names:
        weight, bias = (tensors[f"{name}{part}"].double().numpy() for part in ("weight", "bias"))
        found = weight @ found + bias
    return float(found[0])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_clip(tmp_path_factory.mktemp("clip"))


def load(folder, head, **changes):
    return load_scorer(ScorerConfig(kind="aesthetic", **changes), folder, folder, CPU, head)


@pytest.mark.parametrize("tensors", [mlp(), linear()], ids=["layers", "linear"])
@pytest.mark.parametrize("kind", ["head.pth", "head.safetensors"])
def test_scores_are_those_of_an_independent_computation(folder, tmp_path, tensors, kind):
    path, images = tmp_path / kind, pictures(61, 33)
    if kind.endswith("pth"):
        torch.save(tensors, path)
    else:
        save_file(tensors, path)
    scorer = load(folder, path)
    answers = [wanted(image, tensors) for image in images]
    assert np.ptp(answers) > 0.1
    scores = scorer.score(images, ["a", "b", "c", "d"])
    np.testing.assert_allclose(scores, answers, rtol=1e-4)
    assert scores.dtype == np.float32
    np.testing.assert_array_equal(scorer.score(images, ["other"] * 4), scores)


@pytest.mark.parametrize(
    ("tensors", "told"),
    [
        (mlp(places=(0, 3, 6, 9, 11)), "a head without activations"),
        (mlp(widths=(9, 10, 6, 4, 3, 1)), r"a layer \[10, 9\]"),
        (mlp(widths=(WIDTH, 10, 6, 4, 3, 2)), "ends in 2 numbers, allowed: 1"),
        ({**mlp(), "more": torch.ones(1)}, "holds 11 tensors"),
        ({"weight": torch.ones(1, WIDTH)}, "weight and bias of one layer"),
        ({**linear(), "bias": torch.tensor([torch.nan])}, "not finite"),
        ({"weight": torch.ones(1, WIDTH), "bias": torch.ones(1, 1)}, r"\[1, 1\]"),
    ],
    ids=["relu", "width", "answers", "more", "less", "nan", "shape"],
)
def test_other_heads_are_refused(tmp_path, tensors, told):
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, tmp_path / "head.safetensors")
    with pytest.raises(UserError, match=told) as error:
        load_head(tmp_path / "head.safetensors", WIDTH)
    assert "\n" not in str(error.value)


class Evil:
    def __reduce__(self):
        return (open, ("evil", "w"))


def test_a_head_that_runs_code_is_refused(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"weight": torch.ones(1, WIDTH), "x": Evil()}, tmp_path / "head.pth")
    with pytest.raises(UserError, match="nothing in it was run"):
        load(folder, tmp_path / "head.pth")
    assert not (tmp_path / "evil").exists()


def test_a_stage_finds_it_with_its_head_alone(folder, tmp_path):
    save_file(linear(), tmp_path / "head.safetensors")
    config = ScorerConfig(kind="aesthetic", model=str(folder), head=str(tmp_path / "head.safetensors"))
    place = find_scorer(config)
    assert set(place.identity()) == {"model", "processor", "head"}
    assert place.load().score(pictures(), ["a"] * 4).shape == (4,)
    assert COLUMNS["aesthetic"] == "aesthetic"
    with pytest.raises(UserError, match=r"--scorer.head: got none, allowed: .*linearMSE.pth"):
        find_scorer(ScorerConfig(kind="aesthetic", model=str(folder)))
    with pytest.raises(UserError, match="no file 'nowhere.pth'"):
        find_scorer(ScorerConfig(kind="aesthetic", model=str(folder), head="nowhere.pth"))
    with pytest.raises(UserError, match="for clip-score, allowed: for aesthetic"):
        find_scorer(ScorerConfig(model=str(folder), head=str(tmp_path / "head.safetensors")))
