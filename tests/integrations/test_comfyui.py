"""The ComfyUI nodes, loaded by their folder and run in inference mode as ComfyUI does, without ComfyUI."""

import importlib.util
import json
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import pytest
import torch

from lightgen.core.errors import UserError
from lightgen.stages.checkpoint import SHIPPED
from lightgen.stages.pipeline import LightGenPipeline

FOLDER = Path(__file__).parents[2] / "integrations" / "comfyui"
# kinds of inputs -> the type of their values; LIGHTGEN, IMAGE and MASK come from other nodes
WIDGETS = {"STRING": str, "INT": int, "FLOAT": float}
LINKS = ("LIGHTGEN", "IMAGE", "MASK")
FEW = {"preset": "fast", "steps": 2, "guidance": -1.0, "batch_size": 1}


class Interrupted(Exception):
    """Stands for ComfyUI's InterruptProcessingException."""


class Comfy:
    """Stand-ins for the modules of ComfyUI that nodes talk to, and what they were told."""

    def __init__(self, models: Path) -> None:
        self.progress: list[tuple[int, int]] = []
        self.interrupt_after: int | None = None
        self.folders: dict[str, list[str]] = {}
        self.modules = {
            name: ModuleType(name)
            for name in ("comfy", "comfy.utils", "comfy.model_management", "folder_paths")
        }
        comfy = self

        class ProgressBar:
            def __init__(self, total: int) -> None:
                self.total = total

            def update_absolute(self, value: int, total: int | None = None, preview: object = None) -> None:
                comfy.progress.append((value, total or self.total))

        def throw_exception_if_processing_interrupted() -> None:
            if comfy.interrupt_after is not None and len(comfy.progress) >= comfy.interrupt_after:
                raise Interrupted

        def add_model_folder_path(name: str, path: str, is_default: bool = False) -> None:
            if path not in comfy.folders.setdefault(name, []):
                comfy.folders[name].append(path)

        management, paths = self.modules["comfy.model_management"], self.modules["folder_paths"]
        vars(management)["get_torch_device"] = lambda: torch.device("cpu")
        vars(management)["throw_exception_if_processing_interrupted"] = (
            throw_exception_if_processing_interrupted
        )
        vars(self.modules["comfy.utils"])["ProgressBar"] = ProgressBar
        vars(self.modules["comfy"]).update(utils=self.modules["comfy.utils"], model_management=management)
        vars(paths).update(models_dir=str(models), add_model_folder_path=add_model_folder_path)
        vars(paths)["get_folder_paths"] = lambda name: list(comfy.folders[name])


def load_nodes(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The package, imported from its folder under a name made of its path, as ComfyUI imports it."""
    name = str(FOLDER).replace(".", "_x_")
    for each in [name, f"{name}.nodes", f"{name}.host"]:
        monkeypatch.delitem(sys.modules, each, raising=False)
    spec = importlib.util.spec_from_file_location(name, FOLDER / "__init__.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, module)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def comfy(monkeypatch, tmp_path):
    found = Comfy(tmp_path / "models")
    for name, module in found.modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    return found


@pytest.fixture
def nodes(monkeypatch, comfy):
    return load_nodes(monkeypatch).NODE_CLASS_MAPPINGS


@pytest.fixture(scope="module")
def nano():
    return LightGenPipeline.from_pretrained("nano")


def run(nodes, name, **given):
    """What a node gives, called as ComfyUI calls it."""
    node = nodes[name]
    with torch.inference_mode():
        return getattr(node(), node.FUNCTION)(**given)


def generate(nodes, model, **changed):
    given = {"prompt": "a photo of a red apple", "negative": "", "width": 64, "height": 32, "seed": 3, **FEW}
    return run(nodes, "LightGenGenerate", model=model, **{**given, **changed})[0]


def inpaint(nodes, model, image, **changed):
    given = {"prompt": "a photo of a dog", "negative": "", "strength": 1.0, "feather": 0, "seed": 5, **FEW}
    return run(nodes, "LightGenInpaint", model=model, image=image, **{**given, **changed})[0]


def test_the_mappings_name_each_other(nodes, monkeypatch):
    shown = load_nodes(monkeypatch).NODE_DISPLAY_NAME_MAPPINGS
    assert set(shown) == set(nodes) == {"LightGenLoader", "LightGenGenerate", "LightGenInpaint"}
    assert shown["LightGenInpaint"] == "LightGen Inpaint"


@pytest.mark.parametrize("name", ["LightGenLoader", "LightGenGenerate", "LightGenInpaint"])
def test_every_input_and_output_is_one_that_comfyui_knows(nodes, name):
    node = nodes[name]
    inputs = node.INPUT_TYPES()
    assert set(inputs) <= {"required", "optional", "hidden"}
    told = {key: value for group in inputs.values() for key, value in group.items()}
    for kind, options in told.values():
        if isinstance(kind, list):
            assert kind and options["default"] in kind
        elif kind in WIDGETS:
            default = options["default"]
            assert type(default) is WIDGETS[kind]
            assert options.get("min", default) <= default <= options.get("max", default)
        else:
            assert kind in LINKS
    assert json.loads(json.dumps(inputs)) is not None  # as /object_info sends them
    code = getattr(node, node.FUNCTION).__code__
    assert code.co_varnames[1 : code.co_argcount] == (*inputs["required"], *inputs.get("optional", {}))
    assert node.CATEGORY == "LightGen" and node.DESCRIPTION
    assert len(node.RETURN_TYPES) == len(node.RETURN_NAMES) and set(node.RETURN_TYPES) <= set(LINKS)


def test_the_loader_opens_nano_folders_of_comfyui_and_directories(nodes, comfy, tmp_path):
    (tmp_path / "models" / "lightgen").mkdir(parents=True)
    (tmp_path / "models" / "lightgen" / "mine").symlink_to(SHIPPED / "nano")
    (tmp_path / "models" / "lightgen" / "empty").mkdir()
    names, _ = nodes["LightGenLoader"].INPUT_TYPES()["required"]["checkpoint"]
    assert names == ["nano", "nano-256", "mine"]
    for given in ({"checkpoint": "mine"}, {"checkpoint": "nano", "directory": f" {SHIPPED / 'nano'} "}):
        (model,) = run(nodes, "LightGenLoader", **given)
        assert isinstance(model, LightGenPipeline) and model.unit == 16
    with pytest.raises(UserError, match="no-such"):
        run(nodes, "LightGenLoader", checkpoint="nano", directory=str(tmp_path / "no-such"))


@pytest.mark.parametrize("steps", [0, 5])
def test_a_picture_is_the_pipelines_own_even_in_inference_mode(nodes, nano, steps):
    found = generate(nodes, nano, steps=steps, batch_size=2, guidance=2.0, negative="a dog")
    assert found.shape == (2, 32, 64, 3) and found.dtype == torch.float32
    asked = {
        "preset": "fast",
        "num_inference_steps": steps or None,
        "guidance_scale": 2.0,
        "height": 32,
        "width": 64,
    }
    plain = nano(
        "a photo of a red apple", seeds=[4], negative_prompt="a dog", output_type="np", **asked
    ).images
    torch.testing.assert_close(found[1:], torch.from_numpy(plain), atol=1e-5, rtol=0)


def test_sizes_of_nought_are_the_models_own(nodes, nano):
    assert generate(nodes, nano, width=0, height=0, steps=1).shape == (1, 128, 128, 3)


def test_progress_is_told_and_an_interruption_ends_the_work(nodes, comfy, nano):
    generate(nodes, nano, steps=3)
    assert comfy.progress == [(1, 3), (2, 3), (3, 3)]
    comfy.interrupt_after = 5
    with pytest.raises(Interrupted):
        generate(nodes, nano, steps=8)
    assert len(comfy.progress) == 5


def test_without_comfyui_the_nodes_still_draw(monkeypatch, nano):
    for name in ("folder_paths", "comfy", "comfy.utils"):
        monkeypatch.setitem(sys.modules, name, None)
    nodes = load_nodes(monkeypatch).NODE_CLASS_MAPPINGS
    assert nodes["LightGenLoader"].INPUT_TYPES()["required"]["checkpoint"][0] == ["nano", "nano-256"]
    assert generate(nodes, nano, steps=1).shape == (1, 32, 64, 3)


def test_only_pixels_under_the_mask_change(nodes, nano):
    image = torch.linspace(0, 1, 2 * 32 * 48 * 3).reshape(2, 32, 48, 3)
    mask = torch.zeros(1, 32, 48)
    mask[:, 8:24, :20] = 1
    found = inpaint(nodes, nano, image, mask=mask, batch_size=2)
    assert found.shape == (4, 32, 48, 3)
    covered = mask[0].bool()
    for k in range(4):
        assert torch.equal(found[k][~covered], image[k // 2][~covered])
        assert not torch.equal(found[k][covered], image[k // 2][covered])
    alone = inpaint(nodes, nano, image[1:], mask=mask, seed=8)
    torch.testing.assert_close(found[3], alone[0], atol=1e-4, rtol=0)


def test_masks_of_any_size_none_and_pictures_with_alpha(nodes, nano):
    image = torch.full((1, 32, 32, 4), 0.5)
    nothing = inpaint(nodes, nano, image, mask=torch.zeros(64, 64))
    assert torch.equal(nothing, image[..., :3])
    half = torch.zeros(1, 64, 64)
    half[:, :, 32:] = 1
    found = inpaint(nodes, nano, image, mask=half)
    assert torch.equal(found[:, :, :15], image[:, :, :15, :3]) and not torch.equal(found, nothing)
    assert inpaint(nodes, nano, image, steps=1).shape == (1, 32, 32, 3)


def test_the_workflow_fits_the_nodes(nodes):
    graph = json.loads((FOLDER / "workflow.json").read_text())
    ours = {key: node for key, node in graph.items() if node["class_type"].startswith("LightGen")}
    assert {node["class_type"] for node in ours.values()} == set(nodes)
    for node in ours.values():
        groups = nodes[node["class_type"]].INPUT_TYPES()
        assert (
            set(groups["required"])
            <= set(node["inputs"])
            <= {*groups["required"], *groups.get("optional", {})}
        )
        for name, value in node["inputs"].items():
            kind, options = {**groups["required"], **groups.get("optional", {})}[name]
            if isinstance(value, list):
                source = nodes.get(graph[value[0]]["class_type"])
                assert kind in LINKS and (source is None or source.RETURN_TYPES[value[1]] == kind)
            elif isinstance(kind, list):
                assert value in kind
            else:
                assert type(value) is WIDGETS[kind]
                assert options.get("min", value) <= value <= options.get("max", value)


def test_the_registry_would_take_its_description():
    told = tomllib.loads((FOLDER / "pyproject.toml").read_text())
    assert told["project"]["name"] == "lightgen-nodes" and "comfyui" not in told["project"]["name"]
    assert len(told["project"]["version"].split(".")) == 3
    assert set(told["tool"]["comfy"]) >= {"PublisherId", "DisplayName"}
