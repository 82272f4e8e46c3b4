"""Generate: one prompt becomes pictures in files that remember how they were made."""

import re
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from lightgen.core.directory import whole_file
from lightgen.core.errors import UserError
from lightgen.sampling.decode import DecodeConfig
from lightgen.stages.checkpoint import NANO, open_checkpoint
from lightgen.stages.student import StudentGenerator, StudentTeacherConfig


@dataclass(frozen=True, kw_only=True)
class GenerateConfig:
    """What is drawn.

    Attributes:
        seed: of the first picture; the next ones count up from it.
        num: how many pictures.
        height, width: px.
    """

    seed: int = 0
    num: int = 1
    height: int = 128
    width: int = 128
    decode: DecodeConfig = field(default_factory=DecodeConfig)


def generate(
    config: GenerateConfig, prompt: str, out: str | Path | None = None, model: str | Path = NANO
) -> list[Path]:
    """Paths of the PNG files, written whole; each names prompt, seed, model and settings in its text chunks.

    Args:
        config: how many, how large, and how they are decoded.
        prompt: what to draw.
        out: a file name (numbered where there are several pictures), a directory (existing, or ending in a
            slash), or None for a file named after the prompt.
        model: checkpoint directory, or `nano`.

    Raises:
        UserError: a model or size that cannot be used.
    """
    if config.num < 1 or not prompt.strip():
        raise UserError(
            f"generate: got {config.num} pictures of {prompt!r}, allowed: at least one, of some text"
        )
    checkpoint = open_checkpoint(model)
    generator = StudentGenerator(StudentTeacherConfig(decode=config.decode, precision="fp32"), checkpoint)
    seeds = [config.seed + k for k in range(config.num)]
    images = generator.generate([prompt] * config.num, seeds, config.height, config.width)
    written = []
    for seed, path, image in zip(seeds, _paths(prompt, out, seeds), images, strict=True):
        facts = {
            "prompt": prompt,
            "seed": seed,
            "model": str(model) if str(model) == NANO else checkpoint.path.resolve().name,
            "model_digest": checkpoint.digest,
            "steps": config.decode.num_iterations,
            "head_steps": config.decode.num_head_steps,
            "guidance_scale": config.decode.guidance_scale,
            "temperature": config.decode.temperature,
        }
        _write_png(path, image, {name: str(value) for name, value in facts.items()})
        written.append(path)
    return written


def _paths(prompt: str, out: str | Path | None, seeds: list[int]) -> list[Path]:
    stem = re.sub(r"[^a-z0-9]+", "-", prompt.lower()).strip("-")[:60] or "picture"
    if out is None:
        target = Path(f"{stem}-{seeds[0]}.png")
    elif Path(out).is_dir() or str(out).endswith(("/", "\\")):
        target = Path(out) / f"{stem}-{seeds[0]}.png"
    else:
        target = Path(out)
    if target.suffix.lower() != ".png":
        raise UserError(
            f"--out: got {str(out)!r}, allowed: a name ending in .png, or a directory ending in /"
        )
    if len(seeds) == 1:
        return [target]
    base = target.stem.removesuffix(f"-{seeds[0]}")
    return [target.with_name(f"{base}-{seed}.png") for seed in seeds]


def _write_png(path: Path, image: np.ndarray, facts: dict[str, str]) -> None:
    info = PngInfo()
    for name, value in facts.items():
        info.add_itxt(name, value)
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as temporary:
        Image.fromarray(image).save(temporary, "PNG", pnginfo=info)
