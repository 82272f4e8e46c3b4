import importlib.util
import json
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from lightgen.core.errors import UserError
from lightgen.ports.detector import DetectorConfig, detector_files
from tests.ports.toy_clip import words
from tests.ports.toy_detectors import ASKED, KINDS, assert_like, change, load, pictures, save_detector


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {kind: save_detector(kind, tmp_path_factory.mktemp(kind)) for kind in KINDS}


def break_folder(kind: str, folder: Path, how: str) -> None:
    weights = folder / "model.safetensors"
    if how == "another":
        change(folder / "config.json", model_type="t5")
    elif how == "no json":
        (folder / "config.json").write_text("{")
    elif how == "a list":
        (folder / "config.json").write_text("[1]")
    elif how == "nonsense":
        inner = {"owlv2": {"vision_config": {"hidden_size": "x"}}}.get(
            kind, {"d_model": "x", "hidden_dim": "x"}
        )
        change(folder / "config.json", **inner)
    elif how == "torn":
        weights.write_bytes(weights.read_bytes()[:-40])
    elif how in ("missing weight", "other shape"):
        state = load_file(weights)
        name = sorted(n for n in state if "layers" in n and n.endswith("weight"))[0]
        tensor = state.pop(name)
        more = {} if how == "missing weight" else {name: tensor[..., :-1].contiguous()}
        save_file({**state, **more}, weights, {"format": "pt"})
    elif how == "pickle":
        weights.rename(folder / "pytorch_model.bin")
    else:
        (folder / how).unlink()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("how", "told"),
    [
        ("config.json", "no config.json, allowed"),
        ("pickle", "no model.safetensors, allowed"),
        ("preprocessor_config.json", "no preprocessor_config.json"),
        ("another", "holds a 't5', allowed: a '"),
        ("no json", "JSONDecodeError"),
        ("a list", "holds a list, allowed: an object"),
        ("nonsense", "Error"),
        ("torn", "detector"),
        ("missing weight", "1 weights missing or of another shape"),
        ("other shape", "1 weights missing or of another shape"),
    ],
)
def test_a_bad_folder_is_one_line(tmp_path, kind, how, told):
    save_detector(kind, tmp_path)
    break_folder(kind, tmp_path, how)
    with pytest.raises(UserError, match=told) as error:
        load(tmp_path, kind)
    assert "\n" not in str(error.value) and str(tmp_path) in str(error.value)


@pytest.mark.parametrize("kind", KINDS)
def test_what_only_training_reads_may_be_missing(folders, tmp_path, kind):
    save_detector(kind, tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    kept = {n: t for n, t in state.items() if not n.startswith("criterion.") and "num_batches" not in n}
    assert (len(kept) < len(state)) == (kind != "owlv2")
    save_file(kept, tmp_path / "model.safetensors", {"format": "pt"})
    found = load(tmp_path, kind).detect(pictures(), ASKED[kind])
    assert found == load(folders[kind], kind).detect(pictures(), ASKED[kind])


@pytest.mark.parametrize("kind", ["mask2former", "rt-detr-v2"])
def test_a_model_of_other_classes_is_refused(tmp_path, kind):
    save_detector(kind, tmp_path, {n: f"LABEL_{n}" for n in range(80)})
    with pytest.raises(UserError, match="finds a class 'LABEL_0', allowed: COCO's 80 classes"):
        load(tmp_path, kind)
    save_detector(kind, tmp_path, {n: f"LABEL_{n}" for n in range(133)})
    with pytest.raises(UserError, match="finds 133 classes"):
        load(tmp_path, kind)


@pytest.mark.parametrize(
    ("kind", "entries", "told"),
    [
        ("mask2former", {"image_mean": ...}, "no image_mean, allowed: three numbers"),
        ("mask2former", {"image_std": [0.2, 0.2, 0]}, "no image_std, allowed: three numbers from 0.001"),
        ("mask2former", {"image_mean": [123.7, 116.3, 103.5]}, "no image_mean"),
        ("mask2former", {"image_mean": 0.5}, "no image_mean"),
        ("mask2former", {"rescale_factor": 1.0}, "scales pixels by 1.0, allowed: 1/255"),
        ("mask2former", {"do_normalize": False}, "does not normalise"),
        ("rt-detr-v2", {"size": {"height": 100, "width": 96}}, "scales to 96x100 px, allowed: multiples"),
        ("rt-detr-v2", {"size": {"shortest_edge": 96, "longest_edge": 200}}, "allowed: multiples of 32"),
        ("rt-detr-v2", {"do_resize": False}, "allowed: multiples of 32"),
        ("rt-detr-v2", {"do_pad": True}, "pads images"),
        ("owlv2", {"size": {"height": 64, "width": 64}}, "scales to 64x64 px, allowed: the model's 48x48"),
        ("owlv2", {"do_pad": False}, "squeezes images to squares"),
    ],
)
def test_a_processor_for_another_model_is_refused(tmp_path, kind, entries, told):
    save_detector(kind, tmp_path)
    change(tmp_path / "preprocessor_config.json", **entries)
    with pytest.raises(UserError, match=told) as error:
        load(tmp_path, kind)
    assert str(tmp_path) in str(error.value)


def test_rt_detr_of_a_fixed_size_wants_its_own(tmp_path):
    save_detector("rt-detr-v2", tmp_path)
    change(tmp_path / "config.json", anchor_image_size=[64, 64])
    with pytest.raises(UserError, match="scales to 96x96 px, allowed: the model's 64x64"):
        load(tmp_path, "rt-detr-v2")


def test_owlv2_needs_its_own_tokenizer(tmp_path):
    save_detector("owlv2", tmp_path)
    change(tmp_path / "tokenizer.json", added_tokens=[])
    path = tmp_path / "tokenizer.json"
    path.write_text(path.read_text().replace('"vocab": {', '"vocab": {"zz": 54, "zzz": 55, "zzzz": 56, '))
    with pytest.raises(UserError, match="words, allowed: the 54 of the model, or fewer"):
        load(tmp_path, "owlv2")
    path.unlink()
    with pytest.raises(UserError, match="no tokenizer.json"):
        load(tmp_path, "owlv2")


def test_owlv2_reads_the_files_of_older_tokenizers(folders, tmp_path):
    """As released: vocab.json and merges.txt, and a word of the vocabulary for padding."""
    save_detector("owlv2", tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "vocab.json").write_text(json.dumps(words()))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    settings = {"pad_token": "q", "model_max_length": 16, "tokenizer_class": "CLIPTokenizer"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    found = [path.name for path in detector_files(DetectorConfig(kind="owlv2"), tmp_path)]
    assert {"vocab.json", "merges.txt", "tokenizer_config.json"} <= set(found)
    answer = load(tmp_path, "owlv2").detect(pictures(), ASKED["owlv2"])
    assert_like(answer, load(folders["owlv2"], "owlv2").detect(pictures(), ASKED["owlv2"]))


@pytest.mark.parametrize("kind", ["mask2former", "owlv2"])
def test_without_scipy_the_user_is_told_what_to_install(folders, monkeypatch, kind):
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "scipy" else real(name))
    with pytest.raises(
        UserError, match=r"scipy is not installed, allowed: after `pip install 'lightgen\[eval\]'`"
    ):
        load(folders[kind], kind)


def test_what_a_detector_is_read_from(folders):
    names = {
        kind: [path.name for path in detector_files(DetectorConfig(kind=kind), folders[kind])]
        for kind in KINDS
    }
    plain = ["model.safetensors", "config.json", "preprocessor_config.json"]
    assert names["mask2former"] == names["rt-detr-v2"] == plain
    assert set(names["owlv2"]) == {*plain, "tokenizer.json", "tokenizer_config.json"}
    assert replace(DetectorConfig(), kind="owlv2").batch_size == 8
