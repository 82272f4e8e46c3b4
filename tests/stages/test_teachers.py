import pickle

import pytest

from lightgen.core.directory import file_entry
from lightgen.core.errors import UserError
from lightgen.ports.endpoint import EndpointTeacherConfig
from lightgen.ports.teacher import DiffusersTeacherConfig
from lightgen.stages.teachers import find_teacher
from tests.ports.toy_pipelines import save_pipeline


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_pipeline("StableDiffusionPipeline", tmp_path_factory.mktemp("models") / "toy-sd")


def test_a_place_holds_no_path_in_what_is_recorded(folder, monkeypatch):
    monkeypatch.chdir(folder.parent)
    place = find_teacher(DiffusersTeacherConfig(model="./toy-sd", dtype="fp32", num_inference_steps=1))
    assert place.folder == folder
    assert place.config.model == "toy-sd"
    assert place.name == "toy-sd (StableDiffusionPipeline)"
    told = place.identity()
    assert told["settings"] == {"num_inference_steps": 1}
    assert told["files"]["unet/config.json"] == file_entry(folder / "unet" / "config.json")["sha256"]
    assert str(folder.parent) not in repr((told, place.recorded()))


def test_a_place_travels_and_is_loaded_elsewhere(folder, monkeypatch, tmp_path):
    place = pickle.loads(pickle.dumps(find_teacher(DiffusersTeacherConfig(model=str(folder), dtype="fp32"))))
    monkeypatch.chdir(tmp_path)
    teacher = place.load()
    assert teacher.name == place.name
    assert teacher.generate(["a"], [1], 32, 32).shape == (1, 32, 32, 3)


def test_how_it_runs_is_not_recorded(folder):
    two = [
        find_teacher(DiffusersTeacherConfig(model=str(folder), offload=each)) for each in ("none", "model")
    ]
    assert two[0].recorded() == two[1].recorded()
    base = EndpointTeacherConfig(base_url="https://example.org/v1", model="m", extra={"quality": "high"})
    busy = EndpointTeacherConfig(**(vars(base) | {"concurrency": 64, "retries": 1, "timeout_s": 5.0}))
    assert find_teacher(base).recorded() == find_teacher(busy).recorded() == base
    assert find_teacher(base).name == "m@example.org"
    assert find_teacher(base).identity() == {"name": "m@example.org"}


def test_what_cannot_be_found(tmp_path, monkeypatch):
    for config, told in (
        (DiffusersTeacherConfig(model="nobody/nothing-here"), "hf download nobody/nothing-here"),
        (DiffusersTeacherConfig(model="no such thing"), "no such file or folder"),
        (DiffusersTeacherConfig(model=str(tmp_path)), "no model_index.json"),
        (DiffusersTeacherConfig(model=""), "got nothing"),
        (EndpointTeacherConfig(base_url="https://example.org", model="m", key_variable="NOT_SET"), "NOT_SET"),
    ):
        with pytest.raises(UserError, match=told):
            find_teacher(config)
