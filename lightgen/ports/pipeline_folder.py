"""A folder of a diffusers pipeline: which class it is, which files it is read from, and why it is refused."""

import inspect
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import transformers
from diffusers.models.modeling_utils import ModelMixin
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from transformers.modeling_utils import PreTrainedModel

from lightgen.core.directory import read_json_object
from lightgen.core.errors import UserError

INDEX = "model_index.json"
# What a repository is read for: weights and vocabularies of the parts; neither code nor pickles.
PATTERNS = (INDEX, *(f"*/*.{kind}" for kind in ("json", "txt", "model", "jinja", "safetensors")))

_WEIGHTS = re.compile(r"(?:diffusion_pytorch_model|model)(?:\.(\w+))?(?:-\d+-of-\d+)?\.safetensors")
_BESIDE = (".json", ".txt", ".model", ".jinja")
_PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".msgpack", ".h5")
_NEEDED = ("prompt", "height", "width", "num_inference_steps", "generator", "output_type")
# Arguments of pipelines that want more than a text, or make something else than images.
_FOREIGN = (
    *("strength", "mask_image", "control_image", "controlnet_conditioning_scale"),
    *("num_frames", "num_videos_per_prompt", "image_guidance_scale"),
)
_RENAMED = {"CLIPFeatureExtractor": "CLIPImageProcessor"}  # in folders of older versions
# These take an image, too, but need none.
_IMAGE_OPTIONAL = ("Flux2Pipeline", "Flux2KleinPipeline", "FluxKontextPipeline")


@dataclass(frozen=True)
class PipelineFolder:
    """A pipeline that may be loaded.

    Attributes:
        path: of the folder.
        kind: class of diffusers.
        models: class of each part that holds weights, and the variant (such as fp16) that is read where
            there are no plain ones, else None.
        files: all that is read, sorted, relative to the folder.
    """

    path: Path
    kind: str
    models: dict[str, tuple[type, str | None]]
    files: tuple[str, ...]

    def pipeline_class(self) -> type[DiffusionPipeline]:
        """The class, which takes a text and makes an image."""
        return text_to_image_class(self.path, self.kind)


def read_folder(path: Path) -> PipelineFolder:
    """What a folder holds; nothing of it is loaded.

    Raises:
        UserError: it is no text-to-image pipeline of diffusers, names code of its own, or lacks safetensors.
    """
    index_path = path / INDEX
    found = read_json_object(index_path) if index_path.is_file() else None
    if found is None:
        raise UserError(f"teacher {path}: no {INDEX}, allowed: a folder in the layout of diffusers")
    index = found[0]
    kind = index.get("_class_name")
    if not isinstance(kind, str):
        raise UserError(f"teacher {path}: got class {kind!r}, allowed: the name of a pipeline of diffusers")
    text_to_image_class(path, kind)
    files, models = [INDEX], {}
    for name, entry in index.items():
        if name.startswith("_") or not isinstance(entry, list) or entry == [None, None]:
            continue  # settings of the pipeline, and parts that it goes without
        part, part_kind = path / name, _part_class(path, name, entry)
        files += [f"{name}/{each.name}" for each in part.iterdir() if each.suffix in _BESIDE]
        weights = {each.name: named[1] for each in part.iterdir() if (named := _WEIGHTS.fullmatch(each.name))}
        if not weights and any(each.suffix in _PICKLED for each in part.iterdir()):
            raise UserError(f"teacher {path}: {name} has pickled weights only, allowed: safetensors")
        if issubclass(part_kind, ModelMixin | PreTrainedModel):
            if not weights:
                raise UserError(f"teacher {path}: {name} has no weights, allowed: safetensors of each part")
            variant = min((each for each in weights.values() if each), default=None)
            models[name] = (part_kind, None if None in weights.values() else variant)
            files += [f"{name}/{each}" for each, kept in weights.items() if kept == models[name][1]]
    return PipelineFolder(path, kind, models, tuple(sorted(files)))


def text_to_image_class(path: Path, kind: str) -> type[DiffusionPipeline]:
    """Class of diffusers of a name.

    Raises:
        UserError: there is none, it lacks a package, or it wants more than a text.
    """
    allowed = "allowed: a text-to-image pipeline of diffusers, such as FluxPipeline or SanaPipeline"
    found = _named(diffusers, kind)
    if not isinstance(found, type) or not found.__module__.startswith("diffusers."):
        raise UserError(f"teacher {path}: got class {kind[:60]!r}, {allowed}")
    if found.__module__.startswith("diffusers.utils.dummy"):
        raise UserError(f"teacher {path}: {kind} needs packages, allowed: pip install 'lightgen[teacher]'")
    if not issubclass(found, DiffusionPipeline) or found is DiffusionPipeline:
        raise UserError(f"teacher {path}: got class {kind!r}, {allowed}")
    takes = taken_by(found)
    odd = [name for name in _NEEDED if name not in takes] + [name for name in _FOREIGN if name in takes]
    if "image" in takes and kind not in _IMAGE_OPTIONAL:
        odd.append("image")
    if odd or found._load_connected_pipes:
        why = f" (by its argument {odd[0]})" if odd else " (its parts lie in other repositories)"
        raise UserError(f"teacher {path}: got {kind}, which is none{why}, {allowed}")
    return found


def taken_by(kind: type[DiffusionPipeline]) -> tuple[str, ...]:
    """Names of the arguments that a call of a pipeline takes."""
    parameters = inspect.signature(kind.__call__).parameters.values()
    return tuple(each.name for each in parameters if each.kind == each.POSITIONAL_OR_KEYWORD)


def _part_class(path: Path, name: str, entry: list[Any]) -> type:
    """Class of a part.

    Raises:
        UserError: it is of neither library, not there, or could bring code of its own.
    """
    whole = len(entry) == 2 and all(isinstance(each, str) for each in entry) and name.isidentifier()
    library, kind = entry if whole else ("", "")
    modules: dict[str, Any] = {"diffusers": diffusers, "transformers": transformers}
    kind = _RENAMED.get(kind, kind)
    # a part may be of one pipeline alone, such as the safety checker
    found = _named(modules.get(library) or _named(diffusers.pipelines, library), kind)
    if not isinstance(found, type) or not found.__module__.startswith(("diffusers.", "transformers.")):
        raise UserError(
            f"teacher {path}: part {name[:40]!r} is {entry!r:.80}, allowed: classes of diffusers and "
            "transformers"
        )
    if not (path / name).is_dir():
        raise UserError(f"teacher {path}: part {name!r} is missing, allowed: every part of {INDEX}")
    # only the Auto classes look for code, and only where a file names it
    for file in (path / name).glob("*.json") if re.match("Auto(?!encoder)", kind) else ():
        told = read_json_object(file)
        if told is not None and "auto_map" in told[0]:
            raise UserError(
                f"teacher {path}: {name}/{file.name} names code of its own, allowed: weights only"
            )
    return found


def _named(module: Any, name: str) -> Any:  # noqa: ANN401
    """What a lazy module holds under a name, or None."""
    try:
        return getattr(module, name) if name.isidentifier() else None
    except (AttributeError, ImportError, RuntimeError):
        return None
