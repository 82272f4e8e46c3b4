"""Generate: prompts become pictures in files that remember how they were made."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from lightgen.core.errors import UserError
from lightgen.core.progress import Progress
from lightgen.sampling.decode import DecodeConfig
from lightgen.stages.checkpoint import NANO
from lightgen.stages.decoding import (
    DecodeOverrides,
    check_settings,
    check_sides,
    check_whole,
    pipeline_arguments,
)
from lightgen.stages.drawing import decoding_facts, encode_aloud, open_pipeline, pictures_at_once
from lightgen.stages.picture_files import ContactSheet, picture_paths, write_picture
from lightgen.stages.pipeline import LightGenPipeline
from lightgen.stages.pixels import as_bytes
from lightgen.stages.prompt_text import check_pair

MAX_PICTURES = 10_000


@dataclass(frozen=True, kw_only=True)
class GenerateConfig:
    """What is drawn.

    Attributes:
        seed: of the first picture of each prompt; the next ones count up from it.
        num: pictures of each prompt.
        height, width: px; None = the model's own side.
        preset: exact, balanced or fast; None = exact.
        overrides: what differs from the preset.
        negative_prompt: what to stay away from, for all prompts; None = the learned "no text".
        batch_size: most pictures at once, of 256 px; of larger ones, as many fewer.
    """

    seed: int = 0
    num: int = 1
    height: int | None = None
    width: int | None = None
    preset: str | None = None
    overrides: DecodeOverrides = field(default_factory=DecodeOverrides)
    negative_prompt: str | None = None
    batch_size: int = 8


def generate(
    config: GenerateConfig,
    prompts: str | Sequence[str],
    out: str | Path | None = None,
    model: str | Path = NANO,
    grid: str | Path | None = None,
) -> list[Path]:
    """Paths of the PNG files, written whole as they come; text chunks say how each was made.

    The picture of a prompt and seed does not depend on what else is drawn.

    Args:
        config: how many, how large, and how they are decoded.
        prompts: what to draw.
        out: a file name (numbered where there are several pictures), a directory (existing, or ending in a
            slash), or None for files named after their prompts.
        model: checkpoint directory, or `nano`.
        grid: file name of a contact sheet, a row for each prompt; it is the last of the paths.

    Raises:
        UserError: a prompt, setting, model, size or file name that cannot be used.
    """
    texts, _ = check_pair(prompts, config.negative_prompt)
    if len(set(texts)) < len(texts):
        again = next(text for text in texts if texts.count(text) > 1)
        raise UserError(f"generate: got {again[:60]!r} twice, allowed: each prompt once, with --num for more")
    check_settings(config.preset, config.overrides)
    check_whole("num", config.num, 1, max(1, MAX_PICTURES // len(texts)))
    check_whole("batch_size", config.batch_size, 1, MAX_PICTURES)
    seeds = [config.seed + k for k in range(config.num)]
    paths = picture_paths(texts, seeds, out)
    _check_grid(grid, paths)
    pipeline, model_facts = open_pipeline(model)
    height, width = pipeline.default_size
    height, width = config.height or height, config.width or width
    check_sides(height, width, pipeline.unit)
    sheet = None if grid is None else ContactSheet(len(texts), config.num, height, width)
    resolved = pipeline.resolve(config.preset, config.overrides)
    facts = {
        "negative_prompt": config.negative_prompt,
        **model_facts,
        "height": height,
        "width": width,
        **decoding_facts(config.preset, resolved),
    }
    with Progress("generate", len(texts) * config.num, "pictures") as progress:
        for row, column, image in _draw(pipeline, config, resolved, texts, seeds, (height, width)):
            own = {"prompt": texts[row], "seed": seeds[column]}
            write_picture(paths[row][column], image, own | facts)
            if sheet is not None:
                sheet.put(row, column, image)
            progress.advance()
    written = [path for row in paths for path in row]
    if grid is not None and sheet is not None:
        write_picture(Path(grid), sheet.image, {"prompts": texts, "seeds": seeds} | facts)
        written.append(Path(grid))
    return written


def _draw(
    pipeline: LightGenPipeline,
    config: GenerateConfig,
    resolved: DecodeConfig,
    texts: list[str],
    seeds: list[int],
    size: tuple[int, int],
) -> Iterator[tuple[int, int, np.ndarray]]:
    """(Prompt, seed, image uint8 [H, W, 3]), the first two as indices; drawn in batches of bounded size."""
    embeds = encode_aloud(pipeline, texts, config.negative_prompt)
    places = [(row, column) for row in range(len(texts)) for column in range(len(seeds))]
    step = pictures_at_once(config.batch_size, size[0] * size[1])
    for start in range(0, len(places), step):
        chosen = places[start : start + step]
        rows = [row for row, _ in chosen]
        pixels = pipeline(
            height=size[0],
            width=size[1],
            seeds=[seeds[column] for _, column in chosen],
            output_type="np",
            return_dict=False,
            **{**embeds, **{name: embeds[name][rows] for name in ("prompt_embeds", "prompt_attention_mask")}},
            **pipeline_arguments(resolved),
        )[0]
        for (row, column), image in zip(chosen, as_bytes(pixels), strict=True):
            yield row, column, image


def _check_grid(grid: str | Path | None, paths: list[list[Path]]) -> None:
    if grid is None:
        return
    taken = {path.resolve() for row in paths for path in row}
    if Path(grid).suffix.lower() != ".png" or Path(grid).resolve() in taken:
        raise UserError(f"--grid: got {str(grid)!r}, allowed: a name ending in .png that no picture has")
