"""Teachers of diffusers: any of its text-to-image pipelines, from a folder, behind the port of generators."""

import contextlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import diffusers
import numpy as np
import torch
import transformers
from diffusers.models.modeling_utils import ModelMixin
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from safetensors import SafetensorError

from lightgen.core.config import suggestion
from lightgen.core.errors import UserError
from lightgen.core.progress import say
from lightgen.ports.pipeline_folder import PipelineFolder, read_folder, taken_by
from lightgen.ports.refusal import RefusedPrompt, all_drawn

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
_NAMED = ("num_inference_steps", "guidance_scale", "negative_prompt", "max_sequence_length")
# Set by the teacher itself, or no plain values.
_OWN = (
    *("self", "prompt", "height", "width", "generator", "output_type", "return_dict", "image", "latents"),
    *("num_images_per_prompt", "callback_on_step_end", "callback", "callback_steps", *_NAMED),
)

# Of models that were distilled or tuned to other numbers than their pipeline's own, by usual name.
# Source: the models' cards.
_USUAL: dict[str, dict[str, Any]] = {
    "FLUX.1-schnell": {"num_inference_steps": 4, "guidance_scale": 0.0, "max_sequence_length": 256},
    "FLUX.2-klein-4B": {"num_inference_steps": 4, "guidance_scale": 1.0},
    "FLUX.2-klein-9B": {"num_inference_steps": 4, "guidance_scale": 1.0},
    "Qwen-Image": {"negative_prompt": " "},
    "sd-turbo": {"num_inference_steps": 1, "guidance_scale": 0.0},
    "sdxl-turbo": {"num_inference_steps": 1, "guidance_scale": 0.0},
    "stable-diffusion-3.5-large": {"num_inference_steps": 28, "guidance_scale": 3.5},
    "stable-diffusion-3.5-large-turbo": {"num_inference_steps": 4, "guidance_scale": 0.0},
    "stable-diffusion-3.5-medium": {"num_inference_steps": 40, "guidance_scale": 4.5},
    "Z-Image-Turbo": {"num_inference_steps": 8, "guidance_scale": 0.0},
}


@dataclass(frozen=True, kw_only=True)
class DiffusersTeacherConfig:
    """Which pipeline of diffusers draws, and how.

    Attributes:
        model: local folder in the layout of diffusers, or OWNER/NAME of a repository in the Hub's cache.
        num_inference_steps: None = as is usual for the model.
        guidance_scale: None = as is usual for the model.
        negative_prompt: of all images.
        max_sequence_length: most tokens of a prompt; None = as is usual for the model.
        options: further arguments of the pipeline's call, such as true_cfg_scale.
        batch_size: images per pass; the last ones of a run are drawn in a full batch, too, so that the
            batch never changes an image.
        dtype: of the weights.
        offload: none: all parts stay on the accelerator; model: a part is there while it runs; sequential:
            a layer is (slow, in little memory).
        compile: whether the part that denoises is compiled; worth it for thousands of images.
        tile_vae: whether pixels are decoded in tiles, for images too large for memory; tiles can show.
    """

    model: str
    num_inference_steps: int | None = None
    guidance_scale: float | None = None
    negative_prompt: str | None = None
    max_sequence_length: int | None = None
    options: dict[str, bool | int | float | str] = field(default_factory=dict)
    batch_size: int = 1
    dtype: Literal["bf16", "fp16", "fp32"] = "bf16"
    offload: Literal["none", "model", "sequential"] = "none"
    compile: bool = False
    tile_vae: bool = False


class DiffusersTeacher:
    """An ImageGenerator that is a pipeline of diffusers.

    Every image starts from its own seed (`torch.Generator().manual_seed(seed)`, on the CPU), so that plain
    diffusers draws the same image from the same arguments.
    """

    def __init__(self, config: DiffusersTeacherConfig, folder: Path, device: torch.device) -> None:
        check_config(config)
        self.config, self.device = config, device
        found = read_folder(folder)
        self.settings, untaken = call_settings(config, found)
        if untaken:
            say(f"teacher {model_label(config.model)}: {found.kind} takes no {', '.join(untaken)}")
        self.name = f"{model_label(config.model)} ({found.kind})"
        self._takes = taken_by(found.pipeline_class())
        with _told(self.name):
            self._pipeline: Any = _load(found, _DTYPES[config.dtype])
            self._place()
        self._step = size_step(self._pipeline)

    def generate(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        height: int,
        width: int,
        source: np.ndarray | None = None,
        mask: np.ndarray | None = None,
    ) -> np.ndarray:
        """Images uint8 [B, height, width, 3]; the same prompt and seed give the same image in any batch.

        Raises:
            RefusedPrompt: the pipeline's own safety checker took an image away.
            UserError: a source or mask, or as of `draw`.
        """
        if source is not None or mask is not None:
            raise UserError(f"{self.name}: got a source or mask, allowed: text alone, which it draws from")
        return all_drawn(self.draw(prompts, seeds, height, width), height, width)

    def draw(
        self, prompts: Sequence[str], seeds: Sequence[int], height: int, width: int
    ) -> Iterator[np.ndarray | RefusedPrompt]:
        """Images uint8 [height, width, 3] in order, each as soon as its batch is done, or why there is none.

        Args:
            prompts: one text per image.
            seeds: one per image.
            height: px.
            width: px.

        Raises:
            UserError: a size that the pipeline does not make, values that are no numbers, or no memory.
        """
        assert len(prompts) == len(seeds), (len(prompts), len(seeds))
        self._check_size(height, width)
        size = self.config.batch_size
        for start in range(0, len(prompts), size):
            texts, numbers = list(prompts[start : start + size]), list(seeds[start : start + size])
            count = len(texts)
            # always a full batch: kernels depend on the shape, and so do the last bits of an image
            texts += texts[-1:] * (size - count)
            numbers += numbers[-1:] * (size - count)
            images, flags = self._run(texts, numbers, height, width)
            for image, flagged in zip(images[:count], flags[:count], strict=True):
                yield RefusedPrompt(f"{self.name}: its safety checker took an image") if flagged else image

    def _run(
        self, prompts: list[str], seeds: list[int], height: int, width: int
    ) -> tuple[np.ndarray, list[bool]]:
        """Images uint8 [B, height, width, 3] of one pass, and which of them the safety checker blanked."""
        settings = dict(self.settings)
        if "negative_prompt" in settings:
            settings["negative_prompt"] = [settings["negative_prompt"]] * len(prompts)
        draws = [torch.Generator().manual_seed(seed % 2**64) for seed in seeds]
        with _told(self.name, at_load=False):
            found = self._pipeline(
                prompt=prompts, height=height, width=width, generator=draws, output_type="np", **settings
            )
            images = np.asarray(found["images"], np.float32)
        if not np.isfinite(images).all():
            raise UserError(
                f"{self.name}: drew values that are no numbers in {self.config.dtype}, allowed: finite ones; "
                "--teacher.dtype fp32 may help"
            )
        if images.shape != (len(prompts), height, width, 3):
            raise UserError(
                f"{self.name}: made {images.shape[1:3]} px (height, width) for {height, width}, allowed: "
                "sizes that it makes as they are"
            )
        flags = found.get("nsfw_content_detected") or [False] * len(prompts)
        return (images * 255).round().clip(0, 255).astype(np.uint8), [bool(each) for each in flags]

    def _place(self) -> None:
        """Bring the parts to where they run."""
        pipeline, config = self._pipeline, self.config
        pipeline.set_progress_bar_config(disable=True)
        if config.offload != "none" and self.device.type == "cpu":
            raise UserError(f"got --teacher.offload {config.offload} without an accelerator, allowed: none")
        if config.tile_vae:
            try:
                pipeline.vae.enable_tiling()
            except (AttributeError, NotImplementedError) as error:
                raise UserError("got --teacher.tile-vae, allowed: off, as it has no tiles") from error
        if config.compile:
            for name in ("transformer", "unet"):
                part = pipeline.components.get(name)
                if part is not None:
                    part.compile()
        if config.offload == "model":
            pipeline.enable_model_cpu_offload(device=self.device)
        elif config.offload == "sequential":
            pipeline.enable_sequential_cpu_offload(device=self.device)
        else:
            pipeline.to(self.device)

    def _check_size(self, height: int, width: int) -> None:
        # a pipeline that picks the nearest of its own sizes cuts the image to what was asked for
        is_cut = "use_resolution_binning" in self._takes and self.settings.get("use_resolution_binning", True)
        step = 1 if is_cut else self._step
        if min(height, width) < 1 or height % step or width % step:
            raise UserError(
                f"{self.name}: got {width}x{height} px, allowed: sides that are multiples of {step}"
            )


def check_config(config: DiffusersTeacherConfig) -> None:
    """Raises UserError: a number out of range, or options that exclude each other."""
    for name in ("num_inference_steps", "max_sequence_length", "batch_size"):
        value = vars(config)[name]
        if value is not None and value < 1:
            raise UserError(
                f"--teacher.{name.replace('_', '-')}: got {value}, allowed: a whole number from 1"
            )
    if config.guidance_scale is not None and not 0 <= config.guidance_scale < math.inf:
        raise UserError(f"--teacher.guidance-scale: got {config.guidance_scale}, allowed: from 0")
    if config.compile and config.offload == "sequential":
        raise UserError("--teacher.compile: got it with offload sequential, allowed: offload none or model")


def call_settings(config: DiffusersTeacherConfig, folder: PipelineFolder) -> tuple[dict[str, Any], list[str]]:
    """(Arguments of a call beside text, seed and size; the user's settings that the pipeline does not take).

    Raises:
        UserError: an option that the pipeline does not take, or that the teacher sets itself.
    """
    takes = taken_by(folder.pipeline_class())
    free = [name for name in takes if name not in _OWN]
    for name in config.options:
        if name in _OWN:
            raise UserError(f"--teacher.options: got {name!r}, allowed: what has no setting of its own")
        if name not in free:
            hint = suggestion(name, free) or f", allowed: {', '.join(free)}"
            raise UserError(f"--teacher.options: {folder.kind} takes no {name!r}{hint}")
    given = {name: vars(config)[name] for name in _NAMED if vars(config)[name] is not None}
    usual = _USUAL.get(model_label(config.model).rpartition("/")[2], {})
    settings = {name: value for name, value in {**usual, **given}.items() if name in takes}
    if "clean_caption" in takes:
        settings["clean_caption"] = False  # else the image depends on which packages are installed
    return {**settings, **config.options}, [name for name in given if name not in takes]


def model_label(model: str) -> str:
    """Name of a model, OWNER/NAME or of its folder, without where it lies."""
    parts = [part for part in model.replace("\\", "/").split("/") if part not in ("", ".", "..")]
    if len(parts) > 2 and parts[-2] == "snapshots" and parts[-3].startswith("models--"):
        return "/".join(parts[-3].split("--")[1:])  # the Hub's cache
    if len(parts) == 2 and model == "/".join(parts) and parts[0] != "~":
        return model
    return parts[-1] if parts else "model"


def size_step(pipeline: Any) -> int:  # noqa: ANN401  (any pipeline)
    """Number of pixels that sides must be a multiple of: those of a latent, times the latents of a token.

    1 where a pipeline does not say.
    """
    step = vars(pipeline).get("vae_scale_factor", 1)
    parts = pipeline.components
    if parts.get("transformer") is None:
        return step
    shape = parts["transformer"].config
    patch = shape.get("patch_size")
    patch = patch if isinstance(patch, int) else 1
    channels = parts["vae"].config.get("latent_channels") if parts.get("vae") is not None else None
    inside = shape.get("in_channels")
    if isinstance(inside, int) and isinstance(channels, int) and channels > 0:
        # FLUX and its kin pack 2x2 latents into the channels of a token
        patch = max(patch, math.isqrt(inside // channels))
    return step * patch


def _load(folder: PipelineFolder, dtype: torch.dtype) -> DiffusionPipeline:
    """The pipeline in memory, from local safetensors alone; a weight that is not stored is refused."""
    for library in (diffusers, transformers):
        # what is cut from a long prompt would be told at every image, and there are millions
        library.utils.logging.set_verbosity_error()
        library.utils.logging.disable_progress_bar()
    parts = {name: _load_part(folder, name, dtype) for name in folder.models}
    return folder.pipeline_class().from_pretrained(folder.path, local_files_only=True, **parts)


def _load_part(folder: PipelineFolder, name: str, dtype: torch.dtype) -> torch.nn.Module:
    """One model of the pipeline."""
    kind, variant = folder.models[name]
    options: dict[str, Any] = {"variant": variant, "use_safetensors": True}
    options |= {"local_files_only": True, "output_loading_info": True}
    # the name that every version of diffusers knows
    options["torch_dtype" if issubclass(kind, ModelMixin) else "dtype"] = dtype
    loader: Any = kind
    model, told = loader.from_pretrained(folder.path / name, **options)
    # heads that predict words are of no use here, and often left out
    absent = sorted(each for each in told["missing_keys"] if not str(each).startswith("lm_head."))
    if absent:
        raise UserError(f"{name} lacks {len(absent)} weights ({absent[0]}), allowed: whole parts")
    return model


@contextlib.contextmanager
def _told(name: str, *, at_load: bool = True) -> Iterator[None]:
    """Context in which whatever ails a pipeline's files, or what it is asked for, becomes one line."""
    kinds: tuple[type[Exception], ...] = (ValueError, TypeError, NotImplementedError)
    if at_load:
        kinds = (*kinds, OSError, LookupError, AttributeError, ImportError, RuntimeError, SafetensorError)
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise UserError(
            f"{name}: out of memory, allowed: --teacher.offload model, smaller batches or images"
        ) from error
    except kinds as error:
        kind = "" if isinstance(error, UserError) else f"{type(error).__name__} "
        raise UserError(f"{name}: {' '.join(f'{kind}{error}'.split())[:300]}") from error
