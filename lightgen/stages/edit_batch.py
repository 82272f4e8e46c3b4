"""The pictures and masks of one call: from what people hold to arrays, and from arrays to what they want."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from lightgen.core.errors import UserError
from lightgen.data.picture import flatten
from lightgen.ports.protocols import Autoencoder
from lightgen.stages.edit import Canvas, Decode, EditConfig, compose, paint, prepare
from lightgen.stages.pixels import as_bytes

_PICTURES = "a PIL image, uint8 or float in [0, 1] as array [H, W, 3] or tensor [3, H, W], or several"
_MASKS = "a PIL image or array or tensor [H, W] with white, 1 or True where to paint, or several"


@dataclass(frozen=True)
class EditBatch:
    """One picture, mask and canvas per image of a call.

    Attributes:
        pictures: [B, H, W, 3], uint8 or float in [0, 1].
        masks: bool [B, H, W].
        canvases: what the model is given of each; None where there is nothing to paint.
        config: how they are edited.
    """

    pictures: np.ndarray
    masks: np.ndarray
    canvases: list[Canvas | None]
    config: EditConfig

    def is_idle(self) -> bool:
        """Whether no model is needed."""
        return all(canvas is None for canvas in self.canvases)

    def size(self, height: int | None, width: int | None, output_type: str, unit: int) -> tuple[int, int]:
        """(Height, width) of the pictures, filled up to whole tokens, if the rest of a call fits them.

        Raises:
            UserError: the call has another size, or wants latents.
        """
        tall, wide = self.masks.shape[1:]
        if height not in (None, tall) or width not in (None, wide):
            got = f"{wide if width is None else width}x{tall if height is None else height} px"
            raise UserError(
                f"size: got {got} (width x height), allowed: the image's {wide}x{tall} px, or none"
            )
        if output_type == "latent":
            raise UserError("output_type: got 'latent' with an image, allowed: 'pil', 'np' or 'pt'")
        return -(-tall // unit) * unit, -(-wide // unit) * unit

    def paint(
        self, autoencoder: Autoencoder, patch: int, decode: Decode, device: torch.device | str = "cpu"
    ) -> list[torch.Tensor | None]:
        """New pixels of each canvas; arguments as of `lightgen.stages.edit.paint`."""
        return paint(self.canvases, autoencoder, patch, decode, device)

    def finish(
        self, output_type: str, painted: Sequence[torch.Tensor | None] | None = None
    ) -> list[Image.Image] | np.ndarray | torch.Tensor:
        """Edited pictures: pil, np [B, H, W, 3] or pt [B, 3, H, W]; np and pt are float in [0, 1].

        Args:
            output_type: pil, np or pt.
            painted: what `paint` gave; None = nothing was to be painted.
        """
        pictures = as_bytes(self.pictures) if output_type == "pil" else as_floats(self.pictures)
        each = zip(pictures, self.masks, self.canvases, painted or [None] * len(pictures), strict=True)
        edited = [compose(*one, self.config.feather) for one in each]
        if output_type == "pil":
            return [Image.fromarray(picture) for picture in edited]
        stacked = np.stack(edited)
        return stacked if output_type == "np" else torch.from_numpy(stacked).permute(0, 3, 1, 2)


def edit_batch(
    image: Any,  # noqa: ANN401  (see _PICTURES)
    mask_image: Any,  # noqa: ANN401  (see _MASKS)
    num_prompts: int,
    seeds: Sequence[int],
    unit: int,
    area: int,
    config: EditConfig,
) -> EditBatch:
    """Batch of one picture and mask per seed.

    Args:
        image: one, one per prompt, or one per seed.
        mask_image: as image; None = everything may change.
        num_prompts: divides the number of seeds; the images of a prompt lie side by side.
        seeds: one per image.
        unit: px that a token covers.
        area: px that the model is made for.
        config: how they are edited.

    Raises:
        UserError: a picture, mask or setting that cannot be used.
    """
    config.check(has_image=True, has_mask=mask_image is not None)
    pictures = to_pictures(image)
    if mask_image is None:
        masks = np.ones((1, *pictures.shape[1:3]), bool)
    else:
        masks = to_masks(mask_image, pictures.shape[1], pictures.shape[2])
    pictures = _spread(pictures, num_prompts, len(seeds), "image")
    masks = _spread(masks, num_prompts, len(seeds), "mask_image")
    canvases = [
        prepare(picture, mask, seed, unit, area, config)
        for picture, mask, seed in zip(pictures, masks, seeds, strict=True)
    ]
    return EditBatch(pictures, masks, canvases, config)


def to_pictures(image: Any) -> np.ndarray:  # noqa: ANN401
    """Pictures [B, H, W, 3], uint8 or float, with the values they came with; transparent ones over white.

    Raises:
        UserError: no picture, one out of range, or several of different sizes or types.
    """
    found = [each for item in _items(image) for each in _pictures(item)]
    if not found:
        raise UserError(f"image: got none, allowed: {_PICTURES}")
    kinds = {(each.shape[1], each.shape[0], str(each.dtype)) for each in found}
    if len(kinds) > 1:
        got = " and ".join(f"{width}x{height} px {dtype}" for width, height, dtype in sorted(kinds))
        raise UserError(f"image: got {got}, allowed: one size and type in a call")
    return np.stack(found)


def to_masks(mask_image: Any, height: int, width: int) -> np.ndarray:  # noqa: ANN401
    """Masks bool [B, H, W], True where half white or more; whole numbers up to 1 are no greys, but yes or no.

    Raises:
        UserError: no mask, one of another size than the pictures, or one out of range.
    """
    found = [_masks(item, height, width) for item in _items(mask_image)]
    if not found:
        raise UserError(f"mask_image: got none, allowed: {_MASKS}")
    return np.concatenate(found)


def as_floats(pictures: np.ndarray) -> np.ndarray:
    """Pictures as float in [0, 1]; those that are float stay as they are."""
    return pictures.astype(np.float32) / np.float32(255) if pictures.dtype == np.uint8 else pictures


def _items(several: Any) -> list[Any]:  # noqa: ANN401
    return list(several) if isinstance(several, list | tuple) else [several]


def _pictures(item: Any) -> list[np.ndarray]:  # noqa: ANN401
    if isinstance(item, Image.Image):
        return [np.array(flatten(item, "white"))]
    values, channels = _array(item), -1
    if isinstance(item, torch.Tensor):
        channels = -3
    if values is None or values.ndim not in (3, 4) or values.shape[channels] != 3 or not values.size:
        raise UserError(f"image: got {_name(item)}, allowed: {_PICTURES}")
    if values.dtype != np.uint8:
        if values.dtype.kind != "f":
            raise UserError(f"image: got {_name(item)}, allowed: {_PICTURES}")
        _check_range(values, "image")
    values = np.moveaxis(values, channels, -1)
    return list(values[None] if values.ndim == 3 else values)


def _masks(item: Any, height: int, width: int) -> np.ndarray:  # noqa: ANN401
    is_pil = isinstance(item, Image.Image)
    values = np.array(flatten(item, "black").convert("L")) if is_pil else _array(item)
    if values is None or values.dtype.kind not in "fbiu":
        raise UserError(f"mask_image: got {_name(item)}, allowed: {_MASKS}")
    shape, size = values.shape, (height, width)
    one_channel = shape[-3:] == (*size, 1) or (len(shape) == 4 and shape[1] == 1 and shape[2:] == size)
    if len(shape) not in (2, 3, 4) or not (one_channel or (len(shape) < 4 and shape[-2:] == size)):
        raise UserError(f"mask_image: got {_name(item)}, allowed: the image's {width}x{height} px")
    if values.dtype.kind == "f":
        _check_range(values, "mask_image")
        painted = values >= 0.5
    elif values.dtype.kind == "b":
        painted = values
    else:
        if values.min() < 0 or values.max() > 255:
            raise UserError(f"mask_image: got numbers to {values.max()}, allowed: 0 to 255")
        painted = values >= (128 if values.max() > 1 else 1)
    return painted.reshape(-1, height, width)


def _array(item: Any) -> np.ndarray | None:  # noqa: ANN401
    if isinstance(item, torch.Tensor):
        item = item.detach().cpu()
        return (item.float() if item.dtype in (torch.bfloat16, torch.float16) else item).numpy()
    if isinstance(item, np.ndarray):
        return item.astype(np.float32) if item.dtype == np.float16 else item
    return None


def _check_range(values: np.ndarray, what: str) -> None:
    low, high = values.min(), values.max()
    if not (low >= 0 and high <= 1):  # false for NaN too
        raise UserError(f"{what}: got floats from {low:.4g} to {high:.4g}, allowed: 0 to 1")


def _name(item: Any) -> str:  # noqa: ANN401
    if isinstance(item, Image.Image):
        return f"{item.width}x{item.height} px"
    if isinstance(item, np.ndarray | torch.Tensor):
        kind = "tensor" if isinstance(item, torch.Tensor) else "array"
        return f"{str(item.dtype).removeprefix('torch.')} {kind} {list(item.shape)}"
    return type(item).__name__


def _spread(values: np.ndarray, num_prompts: int, count: int, what: str) -> np.ndarray:
    """One entry per image, of one entry for all, one per prompt, or one per image."""
    if len(values) == 1:
        return values.repeat(count, 0)
    if len(values) == num_prompts:
        return values.repeat(count // num_prompts, 0)
    if len(values) != count:
        raise UserError(f"{what}: got {len(values)} for {count} images, allowed: one, or one per prompt")
    return values
