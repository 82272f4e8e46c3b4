"""Nodes that open a LightGen checkpoint, draw pictures, and change pictures under a mask.

ComfyUI's IMAGE is float32 [B, H, W, 3] in [0, 1], its MASK float32 [B, H, W] with 1 where to paint.
"""

from typing import TYPE_CHECKING, Any

from .host import checkpoint_folders, device, watcher  # noqa: TID252  (named by ComfyUI, by path)

if TYPE_CHECKING:
    import numpy as np
    import torch

    from lightgen.stages.pipeline import LightGenPipeline

CATEGORY = "LightGen"
SHIPPED = ("nano", "nano-256")
MAX_SEED = 2**64 - 1 - 4096  # pictures of a batch take the seeds from here on
_MAX_SIDE = 4096

Inputs = dict[str, dict[str, tuple[Any, dict[str, Any]]]]


def _text(tooltip: str) -> tuple[Any, dict[str, Any]]:
    return "STRING", {"default": "", "multiline": True, "tooltip": tooltip}


def _whole(default: int, low: int, high: int, tooltip: str, **more: Any) -> tuple[Any, dict[str, Any]]:  # noqa: ANN401
    return "INT", {"default": default, "min": low, "max": high, "tooltip": tooltip, **more}


def _real(default: float, low: float, high: float, tooltip: str) -> tuple[Any, dict[str, Any]]:
    return "FLOAT", {"default": default, "min": low, "max": high, "step": 0.05, "tooltip": tooltip}


def _decoding(batch: str) -> dict[str, tuple[Any, dict[str, Any]]]:
    """Inputs that drawing and changing share."""
    return {
        "seed": _whole(
            0, 0, MAX_SEED, "of the first picture; the next takes the next", control_after_generate=True
        ),
        "preset": (["fast", "balanced", "exact"], {"default": "fast", "tooltip": "quality against time"}),
        "steps": _whole(0, 0, 4096, "iterations of masked decoding; 0 = what the preset says"),
        "guidance": _real(-1.0, -1.0, 100.0, "weight of the prompt; below 0 = what the preset says"),
        "batch_size": _whole(1, 1, 64, batch),
    }


class LightGenLoader:
    """Node that opens a checkpoint."""

    CATEGORY, FUNCTION = CATEGORY, "load"
    RETURN_TYPES, RETURN_NAMES = ("LIGHTGEN",), ("model",)
    DESCRIPTION = "Opens a LightGen checkpoint: the shipped nano, or one in models/lightgen."

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:  # noqa: N802  (ComfyUI's name)
        """What the node is given."""
        names = [*SHIPPED, *checkpoint_folders()]
        tooltip = "a checkpoint directory elsewhere, in place of the one above"
        return {
            "required": {
                "checkpoint": (
                    names,
                    {"default": SHIPPED[0], "tooltip": "shipped, or from models/lightgen"},
                )
            },
            "optional": {"directory": ("STRING", {"default": "", "tooltip": tooltip})},
        }

    def load(self, checkpoint: str, directory: str = "") -> "tuple[LightGenPipeline]":
        """The model of a checkpoint, where ComfyUI computes.

        Raises:
            UserError: there is no such checkpoint, or it is damaged.
        """
        from lightgen.stages.drawing import open_pipeline

        pipeline, _ = open_pipeline(directory.strip() or checkpoint_folders().get(checkpoint, checkpoint))
        return (pipeline if device() is None else pipeline.to(device()),)


class LightGenGenerate:
    """Node that draws pictures of a prompt."""

    CATEGORY, FUNCTION = CATEGORY, "generate"
    RETURN_TYPES, RETURN_NAMES = ("IMAGE",), ("images",)
    DESCRIPTION = (
        "Draws pictures of a prompt by masked decoding; a picture depends on its seed, not its batch."
    )

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:  # noqa: N802  (ComfyUI's name)
        """What the node is given."""
        side = "px, a multiple of the model's unit; 0 = the model's own"
        return {
            "required": {
                "model": ("LIGHTGEN", {}),
                "prompt": _text("what the picture shall show"),
                "negative": _text("what to stay away from; empty = the model's own idea of no text"),
                "width": _whole(0, 0, _MAX_SIDE, side),
                "height": _whole(0, 0, _MAX_SIDE, side),
                **_decoding("pictures"),
            }
        }

    def generate(
        self,
        model: "LightGenPipeline",
        prompt: str,
        negative: str,
        width: int,
        height: int,
        seed: int,
        preset: str,
        steps: int,
        guidance: float,
        batch_size: int,
    ) -> "tuple[torch.Tensor]":
        """Pictures [B, H, W, 3] of the prompt.

        Raises:
            UserError: a text, size or setting that the model does not take.
        """
        size = {"width": width or None, "height": height or None}
        asked = {"prompt": prompt, "negative_prompt": negative or None, "num_images_per_prompt": batch_size}
        seeds = range(seed, seed + batch_size)
        return (_draw(model, preset, steps, guidance, seeds=list(seeds), **asked, **size),)


class LightGenInpaint:
    """Node that paints what a mask covers, and no other pixel."""

    CATEGORY, FUNCTION = CATEGORY, "inpaint"
    RETURN_TYPES, RETURN_NAMES = ("IMAGE",), ("images",)
    DESCRIPTION = "Paints under the mask; pixels outside it come back bit-identical. No mask: all may change."

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:  # noqa: N802  (ComfyUI's name)
        """What the node is given."""
        return {
            "required": {
                "model": ("LIGHTGEN", {}),
                "image": ("IMAGE", {}),
                "prompt": _text("what the picture shall show"),
                "negative": _text("what to stay away from; empty = the model's own idea of no text"),
                "strength": _real(1.0, 0.0, 1.0, "share of what the mask covers that is drawn anew"),
                "feather": _whole(0, 0, 256, "px inside the mask over which the new pixels fade in"),
                **_decoding("new pictures of each picture"),
            },
            "optional": {"mask": ("MASK", {"tooltip": "1 (white) where to paint"})},
        }

    def inpaint(
        self,
        model: "LightGenPipeline",
        image: "torch.Tensor",
        prompt: str,
        negative: str,
        strength: float,
        feather: int,
        seed: int,
        preset: str,
        steps: int,
        guidance: float,
        batch_size: int,
        mask: "torch.Tensor | None" = None,
    ) -> "tuple[torch.Tensor]":
        """Pictures [B * batch_size, H, W, 3]: the new ones of each picture side by side.

        Raises:
            UserError: a text, picture or setting that the model does not take.
        """
        pictures = image[..., :3].clamp(0, 1).float().cpu().numpy()
        count = len(pictures)
        edit: dict[str, Any] = {"image": pictures, "strength": strength, "feather": feather}
        if mask is not None:
            edit["mask_image"] = _masks(mask, *pictures.shape[1:3])
        asked = {"prompt": [prompt] * count, "num_images_per_prompt": batch_size}
        asked["negative_prompt"] = [negative] * count if negative else None
        seeds = list(range(seed, seed + count * batch_size))
        return (_draw(model, preset, steps, guidance, seeds=seeds, **asked, **edit),)


def _draw(
    model: "LightGenPipeline",
    preset: str,
    steps: int,
    guidance: float,
    **asked: Any,  # noqa: ANN401
) -> "torch.Tensor":
    """Pictures float32 [B, H, W, 3] in [0, 1]; the rest as of LightGenPipeline."""
    import torch

    from lightgen.stages.decoding import DecodeOverrides

    told = {"num_iterations": steps or None, "guidance_scale": None if guidance < 0 else guidance}
    config = model.resolve(preset, DecodeOverrides(**told))
    images = model(
        preset=preset,
        num_inference_steps=steps or None,
        guidance_scale=told["guidance_scale"],
        output_type="np",
        callback_on_step_end=watcher(config.num_iterations),
        return_dict=False,
        **asked,
    )[0]
    return torch.from_numpy(images).clamp(0, 1)


def _masks(mask: "torch.Tensor", height: int, width: int) -> "np.ndarray":
    """Masks bool [B, H, W] of a MASK [B, h, w] or [h, w]; one of another size is scaled to the picture.

    ComfyUI gives pictures without transparency a small empty mask, whatever their size.
    """
    from torch.nn import functional as F  # noqa: N812

    masks = mask.reshape(-1, 1, *mask.shape[-2:]).float()
    if tuple(masks.shape[-2:]) != (height, width):
        masks = F.interpolate(masks, (height, width), mode="bilinear")
    return (masks[:, 0] >= 0.5).cpu().numpy()


NODE_CLASS_MAPPINGS = {
    "LightGenLoader": LightGenLoader,
    "LightGenGenerate": LightGenGenerate,
    "LightGenInpaint": LightGenInpaint,
}
NODE_DISPLAY_NAME_MAPPINGS = {
    "LightGenLoader": "LightGen Loader",
    "LightGenGenerate": "LightGen Generate",
    "LightGenInpaint": "LightGen Inpaint",
}
