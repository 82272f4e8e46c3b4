"""The student as a diffusers pipeline: text to images by masked decoding."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_dc import AutoencoderDC
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.pipelines.pipeline_utils import DiffusionPipeline, ImagePipelineOutput
from PIL import Image
from transformers import PreTrainedTokenizerBase, T5EncoderModel

from lightgen.core.errors import UserError
from lightgen.models.transformer import LightGenTransformer, unpatchify
from lightgen.ports.autoencoder import DiffusersAutoencoder
from lightgen.sampling.decode import Condition, DecodeConfig, decode_tokens
from lightgen.stages.checkpoint import NANO, Parts, forget_origin, load_parts, open_checkpoint

OutputType = Literal["pil", "np", "pt", "latent"]
StepCallback = Callable[[Any, int, int, dict[str, torch.Tensor]], dict[str, torch.Tensor] | None]


class LightGenPipeline(DiffusionPipeline):
    """Text-to-image pipeline; an image depends on its prompt, settings and seed, not on its batch."""

    model_cpu_offload_seq = "text_encoder->transformer->vae"

    def __init__(
        self,
        transformer: LightGenTransformer,
        vae: AutoencoderKL | AutoencoderDC,
        text_encoder: T5EncoderModel,
        tokenizer: PreTrainedTokenizerBase,
    ) -> None:
        super().__init__()
        self.register_modules(
            transformer=transformer, vae=vae, text_encoder=text_encoder, tokenizer=tokenizer
        )
        self.transformer, self.vae = transformer, vae
        self.text_encoder, self.tokenizer = text_encoder, tokenizer
        self.set_progress_bar_config(disable=True)

    @classmethod
    def from_parts(cls, parts: Parts) -> Self:
        """Pipeline of parts in memory."""
        return cls(parts.transformer, parts.vae, parts.text_encoder, parts.tokenizer)

    @classmethod
    def from_pretrained(  # pyright: ignore[reportIncompatibleMethodOverride]
        cls, pretrained_model_name_or_path: str | Path = NANO, torch_dtype: torch.dtype | None = None
    ) -> Self:
        """Pipeline of a checkpoint directory, of one that `save_pretrained` wrote, or of the word `nano`.

        Raises:
            UserError: it is missing, damaged, or lacks a part; nothing is ever downloaded.
        """
        folder = Path(pretrained_model_name_or_path)
        if (
            str(folder) == NANO
            or not (folder / "model_index.json").is_file()
            or (folder / "manifest.json").is_file()
        ):
            folder = open_checkpoint(pretrained_model_name_or_path).path
        parts = load_parts(folder)
        if torch_dtype is not None:
            parts.cast(torch_dtype)
        return cls.from_parts(parts)

    def save_pretrained(self, save_directory: str | Path, **arguments: Any) -> None:  # noqa: ANN401
        """Write all parts in the diffusers layout; arguments as of DiffusionPipeline."""
        super().save_pretrained(save_directory, **arguments)
        forget_origin(Path(save_directory))

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | Sequence[str],
        height: int = 128,
        width: int = 128,
        num_inference_steps: int = 16,
        num_head_steps: int = 12,
        guidance_scale: float = 3.0,
        negative_prompt: str | Sequence[str] | None = None,
        num_images_per_prompt: int = 1,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        seeds: Sequence[int] | None = None,
        temperature: float = 1.0,
        guidance_rise: float = 0.0,
        output_type: OutputType = "pil",
        callback_on_step_end: StepCallback | None = None,
        return_dict: bool = True,
    ) -> ImagePipelineOutput | tuple[Any]:
        """Images of the prompts, those of one prompt side by side.

        Args:
            prompt: one text or several.
            height: in pixels, a multiple of the autoencoder's stride times the patch size.
            width: as height.
            num_inference_steps: iterations of masked decoding.
            num_head_steps: flow steps of the head within each.
            guidance_scale: weight of the text; 1 = none beyond the conditional model.
            negative_prompt: what to stay away from, in place of the learned "no text".
            num_images_per_prompt: images of each prompt.
            generator: one, and image k takes the seed `initial_seed() + k`; or one per image. Its state is
                neither read nor changed.
            seeds: one per image, instead of generators; without either they are 0, 1, 2 and so on.
            temperature: factor on the start noise of each token.
            guidance_rise: share of the scale that grows with the known share of tokens.
            output_type: pil images; np [B, H, W, 3] or pt [B, 3, H, W], float in [0, 1]; or latent.
            callback_on_step_end: called after each iteration with (pipeline, i, i, {"tokens": [B, L, d]}).
            return_dict: whether to wrap the images in an ImagePipelineOutput.

        Raises:
            UserError: a size, seed count or output type that is not allowed.
        """
        texts = [prompt] if isinstance(prompt, str) else list(prompt)
        texts = [text for text in texts for _ in range(num_images_per_prompt)]
        autoencoder = DiffusersAutoencoder(self.vae)
        patch: int = self.transformer.config["patch_size"]
        unit = autoencoder.stride * patch
        if not texts or height < unit or width < unit or height % unit or width % unit:
            got = f"{len(texts)} prompts, {width}x{height} px"
            raise UserError(
                f"pipeline: got {got}, allowed: at least one prompt, sides in multiples of {unit} px"
            )
        if output_type not in ("pil", "np", "pt", "latent"):
            raise UserError(f"output_type: got {output_type!r}, allowed: 'pil', 'np', 'pt', 'latent'")
        config = DecodeConfig(
            num_iterations=num_inference_steps,
            num_head_steps=num_head_steps,
            guidance_scale=guidance_scale,
            guidance_rise=guidance_rise,
            temperature=temperature,
        )
        grid = (height // unit, width // unit)
        condition = self._condition(texts, negative_prompt, num_images_per_prompt)
        on_iteration = self._step_callback(callback_on_step_end)
        chosen = _seeds(len(texts), generator, seeds)
        tokens = decode_tokens(self.transformer, condition, chosen, grid, config, on_iteration=on_iteration)
        latents = unpatchify(tokens, patch, grid)
        images = latents if output_type == "latent" else _convert(autoencoder.decode(latents), output_type)
        self.maybe_free_model_hooks()
        if return_dict:
            return ImagePipelineOutput(images=images)  # pyright: ignore[reportArgumentType]
        return (images,)

    def _condition(self, texts: list[str], negative: str | Sequence[str] | None, repeats: int) -> Condition:
        """Text of each image, and what stands for no text."""
        device, count = self._execution_device, len(texts)
        if negative is not None:
            others = (
                [negative] * count
                if isinstance(negative, str)
                else [t for t in negative for _ in range(repeats)]
            )
            if len(others) != count:
                raise UserError(
                    f"negative_prompt: got {len(others)} for {count} images, allowed: one, or one per prompt"
                )
            texts = texts + others
        # few lengths, so that an image mostly meets the same shapes alone and among others
        out = self.tokenizer(texts, padding=True, pad_to_multiple_of=8, truncation=True, return_tensors="pt")
        ids = out["input_ids"].to(device)  # pyright: ignore[reportAttributeAccessIssue]
        mask = out["attention_mask"].bool().to(device)  # pyright: ignore[reportAttributeAccessIssue]
        features = self.text_encoder(input_ids=ids, attention_mask=mask).last_hidden_state
        keep = torch.zeros(count, dtype=torch.bool, device=device)
        text, text_mask = self.transformer.embed_text(features[:count], mask[:count], keep)
        if negative is None:
            null, null_mask = self.transformer.embed_text(features[:count], mask[:count], ~keep)
        else:
            null, null_mask = self.transformer.embed_text(features[count:], mask[count:], keep)
        return Condition(text=text, text_mask=text_mask, null_text=null, null_mask=null_mask)

    def _step_callback(self, callback: StepCallback | None) -> Callable[[int, torch.Tensor], None] | None:
        if callback is None:
            return None

        def on_iteration(iteration: int, tokens: torch.Tensor) -> None:
            changed = (callback(self, iteration, iteration, {"tokens": tokens}) or {}).get("tokens")
            if changed is not None and changed is not tokens:
                tokens.copy_(changed)

        return on_iteration


def to_uint8(pixels: torch.Tensor) -> np.ndarray:
    """Images uint8 [B, H, W, 3] of pixels [B, 3, H, W] in [-1, 1]."""
    scaled = (pixels.float().clamp(-1, 1) + 1).mul(127.5).round()
    return scaled.to(torch.uint8).permute(0, 2, 3, 1).contiguous().cpu().numpy()


def _convert(pixels: torch.Tensor, output_type: OutputType) -> list[Image.Image] | np.ndarray | torch.Tensor:
    if output_type == "pil":
        return [Image.fromarray(image) for image in to_uint8(pixels)]
    unit = (pixels.float() + 1) / 2
    return unit if output_type == "pt" else unit.permute(0, 2, 3, 1).cpu().numpy()


def _seeds(
    count: int, generator: torch.Generator | Sequence[torch.Generator] | None, seeds: Sequence[int] | None
) -> list[int]:
    """One seed per image."""
    if generator is not None and seeds is not None:
        raise UserError("pipeline: got generator and seeds, allowed: one of them")
    if isinstance(generator, torch.Generator):
        return [generator.initial_seed() + k for k in range(count)]
    if generator is not None:
        seeds = [each.initial_seed() for each in generator]
    found = list(range(count)) if seeds is None else [int(seed) for seed in seeds]
    if len(found) != count:
        raise UserError(f"pipeline: got {len(found)} seeds for {count} images, allowed: one per image")
    return found
