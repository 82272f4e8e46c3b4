"""Orders: what a request asks for becomes pictures to draw, with all that their files will say of them."""

import functools
import hashlib
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from lightgen.core.config import config_to_dict, suggestion
from lightgen.serve.answers import Problem
from lightgen.serve.batches import Live
from lightgen.serve.bodies import PRESET_OF_QUALITY, EditBody, PictureBody
from lightgen.serve.config import LimitConfig, ServeConfig
from lightgen.serve.provenance import Kind
from lightgen.stages.decoding import DecodeOverrides
from lightgen.stages.drawing import decoding_facts
from lightgen.stages.edit import EditConfig, frame_of
from lightgen.stages.live import PictureRequest
from lightgen.stages.stranger_pictures import stranger_mask, stranger_picture

# Versions of libraries are looked up on disk, which takes longer than all else of an order.
_decoding_facts = functools.lru_cache(maxsize=256)(decoding_facts)
# Why a prompt is refused, or None; called in a thread.
PromptCheck = Callable[[str], str | None]
QUALITY_OF_PRESET = {"exact": "high", "balanced": "medium", "fast": "low"}
MAX_RANDOM_SEED = 2**32
_QUALITY: dict[Kind, int] = {"png": 100, "jpeg": 95, "webp": 90}


@dataclass(frozen=True, kw_only=True)
class Order:
    """The pictures of one request.

    Attributes:
        model: name of the model that draws them.
        requests: one for each picture.
        facts: what the file of each says.
        kind, quality: of the files.
        preset: that it is decoded by.
        grid: (rows, columns) of tokens of each picture.
        is_edit: whether a picture is changed.
        partial_images: of each picture, when streaming.
        progress: whether a stream tells each iteration.
        deadline_s: longest wait, or None.
        created: Unix time.
    """

    model: str
    requests: list[PictureRequest]
    facts: list[dict[str, Any]]
    kind: Kind
    quality: int
    preset: str
    grid: tuple[int, int]
    is_edit: bool
    partial_images: int
    progress: bool
    deadline_s: float | None
    created: int

    def common(self) -> dict[str, Any]:
        """What answers and events say of every picture."""
        first = self.requests[0]
        return {
            "size": f"{first.width}x{first.height}",
            "quality": QUALITY_OF_PRESET[self.preset],
            "output_format": self.kind,
            "background": "opaque",
        }

    def usage(self, count: int = 1) -> dict[str, Any]:
        """Tokens of so many of its pictures."""
        tokens = self.grid[0] * self.grid[1] * count
        no_tokens = {"image_tokens": 0, "text_tokens": 0}
        return {
            "input_tokens": 0,
            "input_tokens_details": no_tokens,
            "output_tokens": tokens,
            "total_tokens": tokens,
        }


def make_order(
    body: PictureBody,
    files: Mapping[str, bytes],
    models: Mapping[str, Live],
    config: ServeConfig,
    created: int,
    prompt_check: PromptCheck | None = None,
) -> Order:
    """Order of a request; pictures are decoded here, so it is for a thread.

    Args:
        body: of the request.
        files: of the request, by field.
        models: by name.
        config: what is granted.
        created: Unix time.
        prompt_check: says why a prompt is refused.

    Raises:
        Problem: 404 for an unknown model; 400 for what the server or the model does not grant.
        UserError: the same, from the rooms below.
    """
    name = _model(body.model, models)
    live = models[name]
    _check_limits(body, config.limits)
    for text in (body.prompt, body.negative_prompt):
        reason = prompt_check(text) if prompt_check is not None and text else None
        if reason:
            raise Problem(400, f"prompt: refused, {reason}", param="prompt", code="content_policy_violation")
    preset = body.preset or PRESET_OF_QUALITY.get(body.quality or "auto", config.preset)
    overrides = DecodeOverrides(
        num_iterations=body.num_inference_steps,
        num_head_steps=body.num_head_steps,
        guidance_scale=body.guidance_scale,
        temperature=body.temperature,
    )
    decode = live.resolve(preset, overrides)
    edit = _edit(body, files, live, config.limits) if isinstance(body, EditBody) else None
    height, width = _size(body.size, live, edit)
    grid = _grid(height, width, live, edit, config.limits)
    seed = secrets.randbelow(MAX_RANDOM_SEED) if body.seed is None else body.seed
    wanted = PictureRequest(
        prompt=body.prompt,
        negative_prompt=body.negative_prompt,
        width=width,
        height=height,
        seed=seed,
        config=decode,
        **({} if edit is None else edit.arguments()),
    )
    live.check(wanted)
    kind = body.output_format or "png"
    facts = {
        "negative_prompt": body.negative_prompt,
        **({} if edit is None else edit.facts(files)),
        **live.facts,
        "model": name,
        "height": height,
        "width": width,
        **_decoding_facts(preset, decode),
    }
    count = body.n or 1
    seeds = [seed + k for k in range(count)]
    return Order(
        model=name,
        requests=[replace(wanted, seed=each) for each in seeds],
        facts=[{"prompt": body.prompt, "seed": each, **facts} for each in seeds],
        kind=kind,
        quality=_QUALITY[kind] if body.output_compression is None else body.output_compression,
        preset=preset,
        grid=grid,
        is_edit=edit is not None,
        partial_images=(body.partial_images or 0) if body.stream else 0,
        progress=bool(body.progress),
        deadline_s=body.deadline_s,
        created=created,
    )


@dataclass(frozen=True)
class _Edit:
    """A picture to change: uint8 [H, W, 3], what to paint of it, bool [H, W] or None for all, and how."""

    picture: np.ndarray
    mask: np.ndarray | None
    config: EditConfig

    def arguments(self) -> dict[str, Any]:
        return {"image": self.picture, "mask": self.mask, "edit": self.config}

    def facts(self, files: Mapping[str, bytes]) -> dict[str, Any]:
        digests = {
            f"{name}_sha256": hashlib.sha256(files[name]).hexdigest() if name in files else None
            for name in ("image", "mask")
        }
        return {**digests, **config_to_dict(self.config)}


def _model(name: str | None, models: Mapping[str, Live]) -> str:
    if name is None:
        return next(iter(models))
    if name not in models:
        hint = suggestion(name, models) or f", allowed: {', '.join(models)}"
        raise Problem(404, f"model: got {name[:60]!r}{hint}", param="model", code="model_not_found")
    return name


def _check_limits(body: PictureBody, limits: LimitConfig) -> None:
    """Check what this server grants less of than the body's own ranges."""
    if body.response_format == "url":
        raise Problem(
            400, "response_format: got 'url', allowed: 'b64_json'; nothing is stored", param="response_format"
        )
    for name in ("prompt", "negative_prompt"):
        size = len((vars(body)[name] or "").encode())
        if size > limits.max_prompt_bytes:
            allowed = f"at most {limits.max_prompt_bytes}"
            raise Problem(400, f"{name}: got {size} bytes, allowed: {allowed}", param=name)
    for name, limit in limits.most.items():
        value = vars(body)[name]
        if value is not None and value > limit:
            raise Problem(400, f"{name}: got {value}, allowed: at most {limit}", param=name)


def _edit(body: EditBody, files: Mapping[str, bytes], live: Live, limits: LimitConfig) -> _Edit:
    """What to change, of the files; sizes are checked by their headers, before anything is decoded."""

    def check_picture(height: int, width: int) -> None:
        if body.padding_mask_crop is None:
            _check_area(-(-height // live.unit), -(-width // live.unit), live, limits, is_edit=True)

    def check_mask(height: int, width: int) -> None:
        if (height, width) != picture.shape[:2]:
            allowed = f"the picture's {picture.shape[1]}x{picture.shape[0]} px"
            raise Problem(400, f"mask: got {width}x{height} px, allowed: {allowed}", param="mask")

    picture, clear = stranger_picture("image", files["image"], limits.max_side_px, check_picture)
    mask = clear
    if "mask" in files:
        mask = stranger_mask("mask", files["mask"], limits.max_side_px, check_mask)
        if not mask.any():
            allowed = "white or transparent where to paint"
            raise Problem(400, f"mask: got nothing to paint, allowed: {allowed}", param="mask")
    config = EditConfig(
        strength=1.0 if body.strength is None else body.strength,
        crop=body.padding_mask_crop,
        feather=body.feather or 0,
    )
    config.check(has_image=True, has_mask=mask is not None)
    return _Edit(picture, mask, config)


def _size(size: str | None, live: Live, edit: _Edit | None) -> tuple[int, int]:
    """(Height, width) of what is drawn, px."""
    own = live.default_size if edit is None else edit.picture.shape[:2]
    if size in (None, "auto"):
        return own[0], own[1]
    width, height = map(int, size.split("x"))
    if edit is not None and (height, width) != own:
        allowed = f"auto, or the picture's {own[1]}x{own[0]}"
        raise Problem(400, f"size: got {size}, allowed: {allowed}", param="size")
    return height, width


def _grid(height: int, width: int, live: Live, edit: _Edit | None, limits: LimitConfig) -> tuple[int, int]:
    """(Rows, columns) of tokens that are drawn, checked against what is granted."""
    unit = live.unit
    param = "size" if edit is None else "image"
    if max(height, width) > limits.max_side_px:
        got, allowed = f"{width}x{height}", f"sides of at most {limits.max_side_px} px"
        raise Problem(400, f"{param}: got {got} px, allowed: {allowed}", param=param)
    rows, columns = -(-height // unit), -(-width // unit)
    if edit is not None and edit.mask is not None and edit.config.crop is not None:
        frame = frame_of(edit.mask, unit, live.default_size[0] * live.default_size[1], edit.config.crop)
        rows, columns = frame.rows, frame.columns
    _check_area(rows, columns, live, limits, is_edit=edit is not None)
    return rows, columns


def _check_area(rows: int, columns: int, live: Live, limits: LimitConfig, *, is_edit: bool) -> None:
    got, most = rows * columns * live.unit**2, limits.max_area * live.default_size[0] * live.default_size[1]
    slack = 1.1 if is_edit else 1.0  # for sides that are no whole tokens
    if got > most * slack:
        param, hint = ("image", ", or less by padding_mask_crop") if is_edit else ("size", "")
        raise Problem(400, f"{param}: got {got} pixels, allowed: at most {int(most)}{hint}", param=param)
