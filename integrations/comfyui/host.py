"""What ComfyUI offers while a node runs, where it is there: a device, progress, interruption, folders."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

FOLDER = "lightgen"  # below ComfyUI's `models`

try:
    import folder_paths  # pyright: ignore[reportMissingImports]
    from comfy import model_management  # pyright: ignore[reportMissingImports]
    from comfy.utils import ProgressBar  # pyright: ignore[reportMissingImports]
except ImportError:  # the nodes also run by themselves, as in a notebook
    folder_paths = model_management = ProgressBar = None


def checkpoint_folders() -> dict[str, Path]:
    """Checkpoints below ComfyUI's `models/lightgen`, by name."""
    if folder_paths is None:
        return {}
    folder_paths.add_model_folder_path(FOLDER, str(Path(folder_paths.models_dir) / FOLDER))
    roots = [Path(root) for root in folder_paths.get_folder_paths(FOLDER)]
    found = [path.parent for root in roots if root.is_dir() for path in root.glob("*/model_index.json")]
    return {path.name: path for path in sorted(found)}


def device() -> "torch.device | None":
    """Where ComfyUI computes; None where there is no ComfyUI."""
    return None if model_management is None else model_management.get_torch_device()


def watcher(num_iterations: int) -> Callable[[Any, int, int, Mapping[str, Any]], Mapping[str, Any]]:
    """Callback of a pipeline that moves ComfyUI's progress bar, and ends where its user interrupts.

    Args:
        num_iterations: of the pipeline's call.
    """
    bar = None if ProgressBar is None else ProgressBar(num_iterations)

    def on_step_end(pipeline: object, step: int, _: int, tensors: Mapping[str, Any]) -> Mapping[str, Any]:
        if model_management is not None:
            model_management.throw_exception_if_processing_interrupted()
        if bar is not None:
            bar.update_absolute(step + 1, num_iterations)
        return tensors

    return on_step_end
