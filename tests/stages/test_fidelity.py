import json
from dataclasses import replace

import numpy as np
import pytest

from lightgen.cli.options import override
from lightgen.core.artifact import begin_artifact
from lightgen.core.config import config_from_dict, config_to_dict
from lightgen.core.errors import UserError
from lightgen.evals.fidelity import frechet, halves_distance, normal_interval
from lightgen.evals.kernel_distance import cmmd, kernel_distance
from lightgen.evals.prdc import prdc
from lightgen.ports.features import FeaturesConfig
from lightgen.ports.inception import WEIGHTS_SHA256
from lightgen.stages import features as features_module
from lightgen.stages.distill import distill
from lightgen.stages.engine import LOCAL
from lightgen.stages.features import FeaturesPlace, find_features
from lightgen.stages.fidelity import FidelityConfig, measure_fidelity
from lightgen.stages.fidelity_notes import notes_on_features
from lightgen.stages.inputs import open_images
from tests.ports.toy_encoders import save_encoder
from tests.stages.toy import toy_distill

CONFIG = FidelityConfig(metrics=("prdc", "fd", "cmmd", "kid"), cmmd=FeaturesConfig(), neighbors=2)


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    """Twenty other pictures, larger than the toy's."""
    return distill(toy_distill(20, seed=5, height=96, width=96), tmp_path_factory.mktemp("other") / "images")


def opened(artifact):
    return open_images([artifact.path]), artifact.path


def measure(config, subject, reference, out, **changes):
    workspace = begin_artifact(out, "report", {}, [])
    with workspace:
        return measure_fidelity(
            config, LOCAL, workspace, "work/fidelity", opened(subject), opened(reference), **changes
        )


def rows(artifact):
    images, _ = opened(artifact)
    extractor = find_features(FeaturesConfig()).load()
    return np.concatenate([extractor.features(images[i].image[None]) for i in range(len(images))])


def test_every_number_is_that_of_the_features(toy, other, tmp_path):
    found = measure(CONFIG, toy.images, other, tmp_path / "a", name="toy")
    own, real = rows(toy.images), rows(other)
    by_name = {each.name: each for each in found.measured}
    assert list(by_name) == [
        *("precision_nano", "recall_nano", "density_nano", "coverage_nano"),
        *("fd_nano", "cmmd_nano", "kid_nano"),
    ]
    assert by_name["fd_nano"].value == pytest.approx(frechet(own, real), rel=1e-4)
    assert by_name["fd_nano"].floor == pytest.approx(halves_distance(real), rel=1e-4)
    assert by_name["kid_nano"].value == pytest.approx(kernel_distance(own, real).value, rel=1e-3)
    assert by_name["kid_nano"].std is not None
    mean = cmmd(own, real)
    assert by_name["cmmd_nano"].value == pytest.approx(mean.value, rel=1e-3)
    around = normal_interval(mean.value - mean.floor, mean.standard_error, 0.95)
    np.testing.assert_allclose(by_name["cmmd_nano"].interval, np.clip(around, 0, None), atol=1e-6)
    wanted = prdc(real, own, 2)
    for name in ("precision", "recall", "density", "coverage"):
        each = by_name[f"{name}_nano"]
        assert each.value == pytest.approx(vars(wanted)[name]) and each.better == "higher"
        assert (each.interval is None) == (name in ("recall", "coverage"))
        assert each.interval is None or each.interval[0] <= each.value <= each.interval[1]
    assert by_name["fd_nano"].better == by_name["kid_nano"].better == "lower"
    assert (found.images, found.reference) == (12, 20)
    assert set(found.extractors["nano"][0]) == {"kind", "prepared", "nano", "detector"}


def test_what_is_told_beside_the_numbers(toy, other, tmp_path):
    found = measure(CONFIG, toy.images, other, tmp_path / "a")
    notes = "\n".join(found.notes)
    assert "12 images and 20 of the reference: below 2,000" in notes
    assert "of 64x64 px, that of the reference of 96x96 px" in notes
    assert "fd_nano is too large by a bias" in notes and "12 images against 20" in notes
    assert "12 images do not fill the covariance of 210 features" in notes
    assert "kid_nano is not the published number, which is of inception features" in notes
    record = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert record["metrics"]["fd_nano"]["better"] == "lower" and record["reference"] == 20
    assert record["notes"] == list(found.notes)
    same = measure(replace(CONFIG, metrics=("cmmd",)), toy.images, toy.images, tmp_path / "b")
    assert same.measured[0].value == 0 and same.measured[0].interval[0] == 0
    assert "cmmd_nano: so many images cannot tell it from no difference" in same.notes
    assert not any("px" in note for note in same.notes)


def test_weights_that_are_not_those_of_fid_are_told():
    assert any(
        "no number of them is FID" in n for n in notes_on_features(["fid"], "inception", {}, (9, 9), 4)
    )
    told = notes_on_features(["fid"], "inception", {"w.pth": WEIGHTS_SHA256}, (9000, 9000), 2048)
    assert len(told) == 1 and "bias" in told[0]


def test_each_metric_by_its_own_extractor(toy, other, tmp_path, monkeypatch):
    seen = []
    load = FeaturesPlace.load
    monkeypatch.setattr(FeaturesPlace, "load", lambda place: (seen.append(place.config.kind), load(place))[1])
    paths = {kind: str(save_encoder(kind, tmp_path / kind)) for kind in ("dinov2", "clip")}
    dinov2, clip = (FeaturesConfig(kind=kind, model=path) for kind, path in paths.items())
    config = replace(CONFIG, fd=dinov2, prdc=dinov2, cmmd=clip)
    found = measure(config, toy.images, other, tmp_path / "a")
    names = {each.name for each in found.measured}
    assert {"fd_dinov2", "precision_dinov2", "cmmd_clip", "kid_nano"} < names
    assert sorted(seen) == ["clip", "clip", "dinov2", "dinov2", "nano", "nano"]  # both sides, once each
    assert set(found.extractors) == {"dinov2", "clip", "nano"}


def test_the_reference_is_shared_and_kept(toy, other, tmp_path, monkeypatch):
    seen = []
    work = features_module.FeaturesWork
    monkeypatch.setattr(
        features_module, "FeaturesWork", lambda place, path: (seen.append(path), work(place, path))[1]
    )
    config, cache = replace(CONFIG, metrics=("fd",)), tmp_path / "cache"
    first = measure(config, toy.images, other, tmp_path / "a", cache=cache)
    assert measure(config, toy.images, other, tmp_path / "b", cache=cache) == first
    assert [path.split("/")[-2] for path in seen].count(str(other.path).split("/")[-2]) == 1
    assert len(seen) == 3 and len(list(cache.glob("*.safetensors"))) == 1
    workspace = begin_artifact(tmp_path / "c", "report", {}, [])
    with workspace:
        given = opened(toy.images), opened(other)
        one, two = (
            measure_fidelity(config, LOCAL, workspace, f"work/{n}", *given, reference_folder="work/shared")
            for n in range(2)
        )
        assert one == two == first
        assert (workspace.path / "work" / "shared").is_dir()
        assert not (workspace.path / "work" / "1" / "reference-0").exists()


def test_a_config_is_numbers_and_options():
    assert config_from_dict(FidelityConfig, config_to_dict(CONFIG)) == CONFIG
    found = override(
        "x", FidelityConfig(), ["--metrics", "fd", "cmmd", "--fd.kind", "dinov2", "--cmmd.batch-size", "8"]
    )
    assert found.metrics == ("fd", "cmmd") and found.fd.kind == "dinov2" and found.cmmd.batch_size == 8


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"metrics": ()}, "metrics: got none, allowed: one or more, each once"),
        ({"metrics": ("fd", "fd")}, "got fd, fd"),
        ({"metrics": ("fid",), "fid": FeaturesConfig()}, "fid: got features nano, allowed: inception"),
        ({"metrics": ("fid",)}, "features inception: got no model"),
        ({"metrics": ("prdc",), "neighbors": 12}, "prdc: got 12 images and 20 of the reference, allowed: 13"),
        ({"neighbors": 0}, "0 neighbors"),
        ({"subset_size": 1}, "subsets of 1"),
        ({"interval_coverage": 1.0}, "coverage 1.0, allowed: between 0 and 1"),
    ],
)
def test_what_is_refused(toy, other, tmp_path, changes, told):
    with pytest.raises(UserError, match=told):
        measure(replace(CONFIG, **changes), toy.images, other, tmp_path / "a")
