"""LightGen in ComfyUI: this folder, put (or linked) into `custom_nodes`, adds three nodes."""

# ComfyUI names a package of nodes by its folder's path, so its modules cannot be named from outside.
from .nodes import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS  # noqa: TID252

__all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS"]
