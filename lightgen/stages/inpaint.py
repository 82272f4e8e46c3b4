"""Inpaint: a picture file, and what to change in it, become pictures in files that say how they were made."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from lightgen.core.config import config_to_dict
from lightgen.core.directory import file_entry
from lightgen.core.errors import UserError
from lightgen.core.progress import Progress, say
from lightgen.data.picture import MAX_SIDE, read_mask, read_picture
from lightgen.sampling.decode import DecodeConfig
from lightgen.stages.checkpoint import NANO
from lightgen.stages.decoding import DecodeOverrides, check_settings, check_whole, pipeline_arguments
from lightgen.stages.drawing import decoding_facts, encode_aloud, open_pipeline, pictures_at_once
from lightgen.stages.edit import EditConfig, outpaint_canvas
from lightgen.stages.picture_files import picture_paths, write_picture
from lightgen.stages.pipeline import LightGenPipeline
from lightgen.stages.prompt_text import check_pair

MAX_PICTURES = 1000
_LARGE = 4  # times the area that the model is made for


@dataclass(frozen=True, kw_only=True)
class Margins:
    """By how many px a picture grows."""

    left: int = 0
    right: int = 0
    top: int = 0
    bottom: int = 0


@dataclass(frozen=True, kw_only=True)
class InpaintConfig:
    """What is changed.

    Attributes:
        seed: of the first picture; the next ones count up from it.
        num: how many pictures.
        edit: how much of the picture is drawn anew, and how much of it is seen.
        margins: what is added around the picture, to be painted.
        preset: exact, balanced or fast; None = exact.
        overrides: what differs from the preset.
        negative_prompt: what to stay away from; None = the learned "no text".
        batch_size: most pictures at once, of 256 px; of larger ones, as many fewer.
    """

    seed: int = 0
    num: int = 1
    edit: EditConfig = field(default_factory=EditConfig)
    margins: Margins = field(default_factory=Margins)
    preset: str | None = None
    overrides: DecodeOverrides = field(default_factory=DecodeOverrides)
    negative_prompt: str | None = None
    batch_size: int = 8


def inpaint(
    config: InpaintConfig,
    image: str | Path,
    prompt: str,
    mask: str | Path | None = None,
    out: str | Path | None = None,
    model: str | Path = NANO,
) -> list[Path]:
    """Paths of the PNG files, written whole as they come; text chunks say how each was made.

    Pixels that are not under the mask, or not in the margins, are those of the picture, bit by bit.

    Args:
        config: how many, what is changed, and how it is decoded.
        image: PNG, JPEG or WebP file.
        prompt: what the picture shall show.
        mask: file of the same size, white where to paint; None = the margins, or, without any, a variation of
            the whole picture with a strength below 1.
        out: as of `lightgen.stages.generate.generate`.
        model: checkpoint directory, or `nano`.

    Raises:
        UserError: a file, prompt, setting, model or file name that cannot be used.
    """
    check_pair(prompt, config.negative_prompt)
    check_settings(config.preset, config.overrides)
    check_whole("num", config.num, 1, MAX_PICTURES)
    config.edit.check(has_image=True, has_mask=mask is not None or config.margins != Margins())
    seeds = [config.seed + k for k in range(config.num)]
    (paths,) = picture_paths([prompt], seeds, out)
    files = [Path(image), *([] if mask is None else [Path(mask)])]
    taken = {path.resolve() for path in files}
    for path in paths:
        if path.resolve() in taken:
            raise UserError(f"--out: got {str(path)!r}, allowed: a file that is not read from")
    picture, area = _what(config, files)
    pipeline, model_facts = open_pipeline(model)
    resolved = pipeline.resolve(config.preset, config.overrides)
    facts = {
        "negative_prompt": config.negative_prompt,
        "image": _name(files[0]),
        "image_sha256": file_entry(files[0])["sha256"],
        "mask": None if mask is None else _name(files[1]),
        "mask_sha256": None if mask is None else file_entry(files[1])["sha256"],
        **config_to_dict(config.edit),
        "outpaint": config_to_dict(config.margins),
        **model_facts,
        "height": picture.shape[0],
        "width": picture.shape[1],
        **decoding_facts(config.preset, resolved),
    }
    with Progress("inpaint", len(seeds), "pictures") as progress:
        for number, made in enumerate(_draw(pipeline, config, resolved, prompt, seeds, picture, area)):
            write_picture(paths[number], made, {"prompt": prompt, "seed": seeds[number]} | facts)
            progress.advance()
    return paths


def _what(config: InpaintConfig, files: list[Path]) -> tuple[np.ndarray, np.ndarray | None]:
    """Picture uint8 [H, W, 3] and what to paint of it, bool [H, W], or None for a variation.

    Raises:
        UserError: a file that cannot be used, or no picture or more than one way to say what is changed.
    """
    grows = config.margins != Margins()
    if len(files) + grows > 2:
        raise UserError("inpaint: got a mask and outpaint, allowed: one of them")
    if grows and config.edit.strength != 1:
        raise UserError(f"inpaint: got strength {config.edit.strength} and outpaint, allowed: one of them")
    if len(files) == 1 and not grows and config.edit.strength == 1:
        raise UserError("inpaint: got nothing to change, allowed: a mask, outpaint, or a strength below 1")
    picture = read_picture(files[0])
    if grows:
        height, width = picture.shape[:2]
        margins = config.margins
        width, height = width + margins.left + margins.right, height + margins.top + margins.bottom
        if max(width, height) > MAX_SIDE:
            raise UserError(
                f"outpaint: got {width}x{height} px in all, allowed: up to {MAX_SIDE} px on a side"
            )
        return outpaint_canvas(picture, margins.left, margins.right, margins.top, margins.bottom)
    if len(files) == 1:
        return picture, None
    area = read_mask(files[1])
    if area.shape != picture.shape[:2]:
        got, allowed = (f"{each.shape[1]}x{each.shape[0]} px" for each in (area, picture))
        raise UserError(f"{files[1]}: got {got}, allowed: the picture's {allowed}")
    return picture, area


def _draw(
    pipeline: LightGenPipeline,
    config: InpaintConfig,
    resolved: DecodeConfig,
    prompt: str,
    seeds: list[int],
    picture: np.ndarray,
    area: np.ndarray | None,
) -> Iterator[np.ndarray]:
    """Image uint8 [H, W, 3] of each seed, drawn in batches of bounded size."""
    embeds = encode_aloud(pipeline, [prompt], config.negative_prompt)
    tall, wide = pipeline.default_size
    pixels = picture.shape[0] * picture.shape[1]
    if config.edit.crop is None and pixels > _LARGE * tall * wide:
        say(
            f"the picture has {picture.shape[1]}x{picture.shape[0]} px, the model is made for {wide}x{tall}: "
            "this may take long and look odd; with crop, the model sees the part around the mask alone"
        )
    step = pictures_at_once(config.batch_size, pixels)
    for start in range(0, len(seeds), step):
        chosen = seeds[start : start + step]
        images = pipeline(
            image=picture,
            mask_image=area,
            strength=config.edit.strength,
            padding_mask_crop=config.edit.crop,
            feather=config.edit.feather,
            num_images_per_prompt=len(chosen),
            seeds=chosen,
            output_type="pil",
            return_dict=False,
            **embeds,
            **pipeline_arguments(resolved),
        )[0]
        yield from map(np.asarray, images)


def _name(path: Path) -> str:
    """File name, in Unicode even where the file system's is not."""
    return path.name.encode(errors="replace").decode()
