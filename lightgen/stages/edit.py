"""Edits: a picture and its mask become known tokens, and what is decoded goes back under the mask alone.

An autoencoder looks beyond a token's own pixels, so a known token next to the mask would tell the model what
was under it. Hidden pixels are therefore replaced before encoding by a smooth continuation of the visible
ones: what lies under the mask changes nothing in the result.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional as F

from lightgen.core.errors import UserError
from lightgen.models.tokens import patchify, unpatchify
from lightgen.ports.protocols import Autoencoder
from lightgen.sampling.order import draw_order
from lightgen.stages.decoding import check_real, check_whole

# A picture is one image, uint8 [H, W, 3], or float [H, W, 3] in [0, 1].
MAX_FEATHER = 256
MAX_CROP = 4096

# (which pictures, grid, known tokens [B, L, d], known mask bool [B, L]) -> tokens [B, L, d]; both are None
# where no token is known. Every picture of a call has the same number of known tokens.
Decode = Callable[
    [list[int], tuple[int, int], torch.Tensor | None, torch.Tensor | None],
    torch.Tensor,
]


@dataclass(frozen=True, kw_only=True)
class EditConfig:
    """How pictures are edited.

    Attributes:
        strength: share in [0, 1] of the masked tokens that are drawn anew, the first in the image's own
            order; the others keep what the picture shows.
        crop: px around the mask's bounding box; the model sees that part alone, enlarged to the area that
            it is made for. None = the whole picture.
        feather: px inside the mask over which the new pixels fade in.
    """

    strength: float = 1.0
    crop: int | None = None
    feather: int = 0

    def check(self, has_image: bool, has_mask: bool) -> None:
        """Check the ranges, and that there is something to edit.

        Raises:
            UserError: a value is outside, or without its picture or mask.
        """
        check_real("strength", self.strength, 0, 1)
        check_whole("feather", self.feather, 0, MAX_FEATHER)
        if self.crop is not None:
            check_whole("padding_mask_crop", self.crop, 0, MAX_CROP)
            if not has_mask:
                raise UserError("padding_mask_crop: got no mask_image, allowed: only with one")
        if not has_image and (has_mask or self != EditConfig()):
            raise UserError("pipeline: got a mask_image, strength or feather, allowed: only with an image")


@dataclass(frozen=True)
class Frame:
    """The rectangle of a picture that the model sees, and the grid of tokens that it becomes.

    Attributes:
        top, left: of its first pixel in the picture.
        height, width: px of the picture, at most `unit` for each row and column; beyond the picture's bottom
            and right, its edge is repeated.
        rows, columns: of tokens.
    """

    top: int
    left: int
    height: int
    width: int
    rows: int
    columns: int


@dataclass(frozen=True)
class Canvas:
    """What the model is given of one picture.

    Attributes:
        frame: where in the picture.
        pixels: float [3, rows * unit, columns * unit] in [-1, 1], without hidden pixels.
        mask: bool [rows, columns], True = token to be predicted.
    """

    frame: Frame
    pixels: torch.Tensor
    mask: torch.Tensor


def prepare(
    picture: np.ndarray, mask: np.ndarray, seed: int, unit: int, area: int, config: EditConfig
) -> Canvas | None:
    """Canvas of a picture, or None where nothing is to be painted.

    Args:
        picture: of any size.
        mask: bool [H, W], True = to be painted; a token is predicted if any of its pixels is.
        seed: of the image.
        unit: px that a token covers.
        area: px that the model is made for.
        config: how much is drawn anew, and how much of the picture the model sees.
    """
    assert picture.shape == (*mask.shape, 3) and mask.dtype == np.bool_, (picture.shape, mask.shape)
    if config.strength == 0 or not mask.any():
        return None
    frame = frame_of(mask, unit, area, config.crop)
    size = (frame.rows * unit, frame.columns * unit)
    painted = torch.from_numpy(_cut(mask, frame, "constant"))[None, None].float()
    enlarged = F.interpolate(painted, size)  # nearest: no pixel is lost, since no side shrinks
    tokens = F.max_pool2d(enlarged, unit)[0, 0] > 0
    redrawn = select(tokens, seed, config.strength)
    # px of tokens that are not drawn anew stay visible, whatever the mask says
    cover = redrawn.repeat_interleave(unit, 0).repeat_interleave(unit, 1)
    hidden = F.adaptive_max_pool2d(enlarged * cover, (frame.height, frame.width))[0, 0] * painted[0, 0] > 0
    pixels = torch.from_numpy(_to_pixels(_cut(picture, frame, "edge"))).permute(2, 0, 1)
    return Canvas(frame, _resize(fill(pixels, hidden), size), redrawn)


def frame_of(mask: np.ndarray, unit: int, area: int, crop: int | None) -> Frame:
    """Frame around the masked pixels and `crop` px more, as large as `area` where it would be smaller."""
    height, width = mask.shape
    if crop is None:
        rows, columns = -(-height // unit), -(-width // unit)
        return Frame(0, 0, rows * unit, columns * unit, rows, columns)
    top, bottom = _extent(np.nonzero(mask)[0], crop, height)
    left, right = _extent(np.nonzero(mask)[1], crop, width)
    scale = max(1.0, math.sqrt(area / ((bottom - top) * (right - left))))
    rows, tall, top = _span(top, bottom, height, unit, scale)
    columns, wide, left = _span(left, right, width, unit, scale)
    return Frame(top, left, tall, wide, rows, columns)


def select(tokens: torch.Tensor, seed: int, strength: float) -> torch.Tensor:
    """The first of the tokens, bool [rows, columns], in the image's order: a share of them, rounded up."""
    flat = tokens.flatten()
    order = draw_order(seed, len(flat)).to(flat.device)
    candidates = order[flat[order]]
    count = max(1, math.ceil(strength * len(candidates) - 1e-9))  # 0.7 * 10 may be a hair above 7
    redrawn = torch.zeros_like(flat)
    redrawn[candidates[:count]] = True
    return redrawn.view_as(tokens)


def fill(pixels: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
    """Pixels [3, h, w] whose hidden ones, bool [h, w], continue the visible ones; grey if none is visible.

    Each is the mean of the visible ones around it, at the finest scale that has any.
    """
    if not hidden.any():
        return pixels
    if hidden.all():
        return torch.zeros_like(pixels)
    visible = (~hidden).to(pixels.dtype)[None]
    weight = F.avg_pool2d(visible, 2, ceil_mode=True)
    mean = F.avg_pool2d(pixels.masked_fill(hidden, 0), 2, ceil_mode=True) / weight.clamp(min=1e-6)
    coarse = fill(mean, weight[0] == 0)
    spread = F.interpolate(coarse[None], pixels.shape[1:], mode="bilinear", align_corners=False)[0]
    return torch.where(hidden, spread, pixels)


def paint(
    canvases: Sequence[Canvas | None],
    autoencoder: Autoencoder,
    patch: int,
    decode: Decode,
    device: torch.device | str = "cpu",
) -> list[torch.Tensor | None]:
    """Pixels [3, frame height, frame width] in [-1, 1] of each canvas; None of none.

    Canvases of one grid and one number of known tokens are decoded together; the known tokens are the
    autoencoder's mean.
    """
    groups: dict[tuple[int, int, int], list[int]] = {}
    for i, canvas in enumerate(canvases):
        if canvas is not None:
            rows, columns = canvas.mask.shape
            groups.setdefault((rows, columns, int(canvas.mask.sum())), []).append(i)
    painted: list[torch.Tensor | None] = [None] * len(canvases)
    for (rows, columns, count), chosen in groups.items():
        members = [canvas for i in chosen if (canvas := canvases[i]) is not None]
        known = known_mask = None
        if count < rows * columns:
            pixels = torch.stack([canvas.pixels for canvas in members]).to(device)
            known = patchify(autoencoder.encode(pixels)[0], patch)
            known_mask = torch.stack([~canvas.mask.flatten() for canvas in members]).to(device)
        tokens = decode(chosen, (rows, columns), known, known_mask)
        decoded = autoencoder.decode(unpatchify(tokens, patch, (rows, columns)))
        for i, canvas, image in zip(chosen, members, decoded, strict=True):
            painted[i] = _resize(image.float().cpu(), (canvas.frame.height, canvas.frame.width))
    return painted


def compose(
    picture: np.ndarray, mask: np.ndarray, canvas: Canvas | None, painted: torch.Tensor | None, feather: int
) -> np.ndarray:
    """The picture, in its own dtype, with new pixels under the mask; every other pixel is bit-identical."""
    result = picture.copy()
    if canvas is None or painted is None:
        return result
    frame = canvas.frame
    place = (slice(frame.top, frame.top + frame.height), slice(frame.left, frame.left + frame.width))
    here = mask[place]
    is_bytes = picture.dtype == np.uint8
    new = ((painted.clamp(-1, 1) + 1) * 127.5).round() if is_bytes else (painted + 1) / 2
    new = new.permute(1, 2, 0).numpy()[: here.shape[0], : here.shape[1]]
    old = picture[place]
    if feather:
        alpha = ramp(here, feather)[..., None]
        new = alpha * new + (1 - alpha) * old
        new = np.rint(new) if is_bytes else new
    result[place] = np.where(here[..., None], new.astype(picture.dtype), old)
    return result


def ramp(mask: np.ndarray, feather: int) -> np.ndarray:
    """Weights float32 [h, w] of the new pixels: 0 outside the mask, 1 deeper inside it than `feather` px.

    The picture's own border is no border of the mask: there is nothing behind it to fade into.
    """
    outside = torch.from_numpy(~mask)[None, None].float()
    depth = 1 - outside
    for _ in range(feather):
        outside = F.max_pool2d(outside, 3, stride=1, padding=1)
        depth += 1 - outside
    return (depth[0, 0] / (feather + 1)).numpy()


def outpaint_canvas(
    image: np.ndarray, left: int = 0, right: int = 0, top: int = 0, bottom: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """(Canvas, mask bool [H, W]) of a picture that grows by so many px; its own pixels are unmasked.

    Raises:
        UserError: a side is negative, or none grows.
    """
    sides = {"left": left, "right": right, "top": top, "bottom": bottom}
    if min(sides.values()) < 0 or not any(sides.values()):
        got = ", ".join(f"{name}={px}" for name, px in sides.items() if px) or "no side"
        raise UserError(f"outpaint: got {got}, allowed: one side or more, each from 0 px")
    margins = ((top, bottom), (left, right))
    canvas = np.pad(image, (*margins, (0, 0)), mode="edge")
    return canvas, np.pad(np.zeros(image.shape[:2], bool), margins, constant_values=True)


def _extent(at: np.ndarray, margin: int, most: int) -> tuple[int, int]:
    """(First, last + 1) of the positions, `margin` px further out but inside [0, most)."""
    return max(0, int(at.min()) - margin), min(most, int(at.max()) + 1 + margin)


def _span(start: int, stop: int, most: int, unit: int, scale: float) -> tuple[int, int, int]:
    """(Tokens, px, first px) of a side of at least [start, stop) that is whole tokens when enlarged."""
    tokens = max(1, math.ceil((stop - start) * scale / unit - 1e-9))
    size = max(stop - start, math.floor(tokens * unit / scale + 1e-9))
    start -= (size - (stop - start)) // 2
    return tokens, size, max(0, min(start, most - size))


def _cut(array: np.ndarray, frame: Frame, mode: str) -> np.ndarray:
    """The frame's part of [H, W, ...], continued beyond the picture as np.pad does."""
    part = array[frame.top : frame.top + frame.height, frame.left : frame.left + frame.width]
    beyond = [(0, frame.height - part.shape[0]), (0, frame.width - part.shape[1])]
    return np.pad(part, beyond + [(0, 0)] * (array.ndim - 2), mode=mode)  # pyright: ignore[reportCallIssue, reportArgumentType]


def _to_pixels(picture: np.ndarray) -> np.ndarray:
    """Float32 in [-1, 1] of a picture."""
    scale = 127.5 if picture.dtype == np.uint8 else 0.5
    return picture.astype(np.float32) / np.float32(scale) - np.float32(1)


def _resize(pixels: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Pixels [3, h, w] at another size."""
    if tuple(pixels.shape[1:]) == size:
        return pixels
    return F.interpolate(pixels[None], size, mode="bicubic", antialias=True)[0].clamp(-1, 1)
