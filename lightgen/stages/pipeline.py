"""The student as a diffusers pipeline: text to images by masked decoding."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_dc import AutoencoderDC
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.pipelines.pipeline_utils import DiffusionPipeline, ImagePipelineOutput
from PIL import Image
from transformers import PreTrainedTokenizerBase, T5EncoderModel

from lightgen.core.errors import UserError
from lightgen.models.tokens import unpatchify
from lightgen.models.transformer import LightGenTransformer
from lightgen.ports.autoencoder import DiffusersAutoencoder
from lightgen.sampling.decode import DecodeConfig, Texts, decode_tokens
from lightgen.stages.checkpoint import NANO, Parts, forget_origin, load_parts
from lightgen.stages.decoding import DecodeOverrides, check_sides, check_whole, pick_seeds, resolve
from lightgen.stages.edit import EditConfig
from lightgen.stages.edit_batch import edit_batch
from lightgen.stages.hub import folder_of
from lightgen.stages.lora import lora_names
from lightgen.stages.lora_methods import LoraMethods
from lightgen.stages.pipeline_hooks import StepCallback, counted, iteration_hook, wake
from lightgen.stages.pixels import OutputType, check_output_type, to_output
from lightgen.stages.prompt_features import PromptFeatures, count_prompts, texts_at, texts_of
from lightgen.stages.prompt_text import check_pair, cut_notes, warn_of_cuts

# Shapes: N prompts, B images, T text tokens, F width of the text encoder, L tokens of an image, d channels.

Generators = torch.Generator | Sequence[torch.Generator]
MAX_IMAGES = 4096


class LightGenPipeline(LoraMethods, DiffusionPipeline):
    """Text-to-image pipeline; an image depends on its prompt, settings and seed, not on its batch."""

    model_cpu_offload_seq = "text_encoder->transformer->vae"
    _exclude_from_cpu_offload = ["transformer"]  # of the sequential kind, which knows no door but `forward`
    _callback_tensor_inputs = ("tokens",)

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
        self._interrupt = False
        self.set_progress_bar_config(disable=True)

    @classmethod
    def from_parts(cls, parts: Parts) -> Self:
        """Pipeline of parts in memory."""
        return cls(parts.transformer, parts.vae, parts.text_encoder, parts.tokenizer)

    @classmethod
    def from_pretrained(  # pyright: ignore[reportIncompatibleMethodOverride]
        cls,
        pretrained_model_name_or_path: str | Path = NANO,
        torch_dtype: torch.dtype | None = None,
        revision: str | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
    ) -> Self:
        """Pipeline of a folder, a shipped student (`nano`, `nano-256`) or a repository on the Hub.

        Args:
            pretrained_model_name_or_path: checkpoint directory, folder that `save_pretrained` wrote, `nano`,
                or `owner/name`, which is downloaded unless such a folder is here. Only safetensors, configs
                and vocabularies are ever read.
            torch_dtype: of all weights; None = fp32.
            revision: branch, tag or commit of the repository.
            cache_dir: where downloads are kept.
            local_files_only: download nothing.

        Raises:
            UserError: it is missing, damaged, or lacks a part.
        """
        parts = load_parts(folder_of(pretrained_model_name_or_path, revision, cache_dir, local_files_only))
        if torch_dtype is not None:
            parts.cast(torch_dtype)
        return cls.from_parts(parts)

    def save_pretrained(self, save_directory: str | Path, **arguments: Any) -> None:  # noqa: ANN401
        """Write all parts in the diffusers layout; arguments as of DiffusionPipeline.

        Raises:
            UserError: a LoRA is loaded, which the transformer's files have no place for.
        """
        names = lora_names(self.transformer)
        if names:
            raise UserError(
                f"save_pretrained: got a loaded LoRA, {names[0]!r}, allowed: none; fuse_lora() keeps it, "
                "unload_lora_weights() drops it"
            )
        super().save_pretrained(save_directory, **arguments)
        forget_origin(Path(save_directory))

    @property
    def interrupt(self) -> bool:
        """Whether decoding ends after the iteration at hand; each call begins with False."""
        return self._interrupt

    @interrupt.setter
    def interrupt(self, value: bool) -> None:
        """Ask for it."""
        self._interrupt = value

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | Sequence[str] | None = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int | None = None,
        num_head_steps: int | None = None,
        guidance_scale: float | None = None,
        negative_prompt: str | Sequence[str] | None = None,
        num_images_per_prompt: int = 1,
        generator: Generators | None = None,
        seeds: Sequence[int] | None = None,
        preset: str | None = None,
        last_head_steps: int | None = None,
        solver: str | None = None,
        guidance_rise: float | None = None,
        guidance_interval: tuple[float, float] | None = None,
        temperature: float | None = None,
        refresh_every: int | None = None,
        spacing: str | None = None,
        image: Any = None,  # noqa: ANN401
        mask_image: Any = None,  # noqa: ANN401
        strength: float = 1.0,
        padding_mask_crop: int | None = None,
        feather: int = 0,
        prompt_embeds: torch.Tensor | None = None,
        prompt_attention_mask: torch.Tensor | None = None,
        negative_prompt_embeds: torch.Tensor | None = None,
        negative_prompt_attention_mask: torch.Tensor | None = None,
        output_type: OutputType = "pil",
        return_dict: bool = True,
        callback_on_step_end: StepCallback | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("tokens",),
    ) -> ImagePipelineOutput | tuple[Any]:
        """Images of the prompts, those of one prompt side by side.

        Args:
            prompt: one text or several.
            height: px, a multiple of `unit`; None = the model's own, or that of `image`, which may be any.
            width: as height.
            num_inference_steps: iterations of masked decoding. None here and below = what the preset says.
            num_head_steps: steps of the head for each token.
            guidance_scale: weight of the text; 1 = none beyond the conditional model.
            negative_prompt: what to stay away from, in place of the learned "no text"; may be empty.
            num_images_per_prompt: images of each prompt.
            generator: one, and image k takes the seed `initial_seed() + k`; or one per image. Its state is
                neither read nor changed.
            seeds: one per image, instead of generators; without either they are 0, 1, 2 and so on.
            preset: exact, balanced or fast; None = exact.
            last_head_steps: steps of the head in the last iteration, reached evenly from `num_head_steps`.
            solver: of the head: ancestral (ddpm checkpoints), ddim or dpm++.
            guidance_rise: share of the scale that grows with the known share of tokens.
            guidance_interval: (from, to), the shares of the head's noise between which there is guidance.
            temperature: factor on the noise of each token.
            refresh_every: iterations from one full pass of the trunk to the next.
            spacing: of a ddpm head's steps: even or stride.
            image: to edit, PIL, array [H, W, 3] or tensor [3, H, W], uint8 or in [0, 1]; one, or one per
                prompt. Where the mask is black, it comes back bit-identical.
            mask_image: of the image's size, white (1, True) where to paint; None = everywhere.
            strength: share of the tokens under the mask that are drawn anew.
            padding_mask_crop: px around the mask; that part alone is seen, enlarged to the model's own size.
            feather: px inside the mask over which the new pixels fade in.
            prompt_embeds: instead of texts, features [N, T, F], as from `encode_prompt`.
            prompt_attention_mask: [N, T], 1 = real token; None = all are.
            negative_prompt_embeds: features [N or 1, T, F].
            negative_prompt_attention_mask: as prompt_attention_mask.
            output_type: pil images; np [B, H, W, 3] or pt [B, 3, H, W], float in [0, 1]; or latent, for
                `decode_latents`.
            return_dict: whether to wrap the images in an ImagePipelineOutput.
            callback_on_step_end: called after each iteration with (pipeline, i, i, {"tokens": [B, L, d]}); it
                may return other tokens, and set `interrupt` to end here.
            callback_on_step_end_tensor_inputs: what it is given: `tokens`, or nothing.

        Raises:
            UserError: an argument that is not allowed.
        """
        overrides = DecodeOverrides(
            num_iterations=num_inference_steps,
            num_head_steps=num_head_steps,
            last_head_steps=last_head_steps,
            solver=solver,  # pyright: ignore[reportArgumentType]
            guidance_scale=guidance_scale,
            guidance_rise=guidance_rise,
            guidance_interval=guidance_interval,
            temperature=temperature,
            refresh_every=refresh_every,
            spacing=spacing,  # pyright: ignore[reportArgumentType]
        )
        config = self.resolve(preset, overrides)
        edit = EditConfig(strength=strength, crop=padding_mask_crop, feather=feather)
        edit.check(has_image=image is not None, has_mask=mask_image is not None)
        check_output_type(output_type)
        check_whole("num_images_per_prompt", num_images_per_prompt, 1, MAX_IMAGES)
        embeds = {
            "prompt_embeds": prompt_embeds,
            "prompt_attention_mask": prompt_attention_mask,
            "negative_prompt_embeds": negative_prompt_embeds,
            "negative_prompt_attention_mask": negative_prompt_attention_mask,
        }
        num_prompts = count_prompts(prompt, negative_prompt, embeds, self.transformer.config)
        chosen = pick_seeds(num_prompts * num_images_per_prompt, generator, seeds)
        tall, wide = self.default_size
        edits, size = None, (tall if height is None else height, wide if width is None else width)
        if image is not None:
            edits = edit_batch(image, mask_image, num_prompts, chosen, self.unit, tall * wide, edit)
            size = edits.size(height, width, output_type, self.unit)
        grid = check_sides(*size, self.unit)
        on_iteration = iteration_hook(self, callback_on_step_end, callback_on_step_end_tensor_inputs)
        self._interrupt = False
        if edits is not None and edits.is_idle():
            images = edits.finish(output_type)
        else:
            if prompt is None:
                features = PromptFeatures.given(embeds, self.transformer.config)
            else:
                features = PromptFeatures(*self.encode_prompt(prompt, negative_prompt))
            wake(self.transformer)
            texts = texts_of(self.transformer, features, num_images_per_prompt, self._execution_device)
            decode = partial(self._decode, texts, chosen, config, on_iteration)
            patch = self.transformer.config["patch_size"]
            if edits is None:
                latents = unpatchify(decode(range(len(chosen)), grid), patch, grid)
                images = latents if output_type == "latent" else self.decode_latents(latents, output_type)
            else:
                painted = edits.paint(DiffusersAutoencoder(self.vae), patch, decode, self._execution_device)
                images = edits.finish(output_type, painted)
        self.maybe_free_model_hooks()
        if return_dict:
            return ImagePipelineOutput(images=images)  # pyright: ignore[reportArgumentType]
        return (images,)

    @torch.no_grad()
    def encode_prompt(
        self, prompt: str | Sequence[str], negative_prompt: str | Sequence[str] | None = None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        """What `__call__` takes as prompt_embeds, prompt_attention_mask and the same of negative prompts.

        A text of more tokens than the model takes is cut with a PromptCutWarning that says what is lost.

        Raises:
            UserError: a text that is not allowed.
        """
        prompts, others = check_pair(prompt, negative_prompt)
        warn_of_cuts(self.cut_notes(prompts, others))
        found = PromptFeatures.encoded(
            (prompts, others), self.tokenizer, self.text_encoder, self._limits(), self._execution_device
        )
        return found.prompt, found.mask, found.negative, found.negative_mask

    def cut_notes(self, prompts: Sequence[str], negative_prompts: Sequence[str] = ()) -> list[str]:
        """One line for each text that is too long: how many tokens it has, and which words are cut."""
        limit, _ = self._limits()
        notes = cut_notes(self.tokenizer, prompts, limit, "prompt")
        return notes + cut_notes(self.tokenizer, negative_prompts, limit, "negative prompt")

    @torch.no_grad()
    def decode_latents(
        self, latents: torch.Tensor, output_type: OutputType = "pil"
    ) -> list[Image.Image] | np.ndarray | torch.Tensor:
        """Images (pil, np or pt) of latents [B, C, h, w] as `output_type="latent"` gives them."""
        return to_output(DiffusersAutoencoder(self.vae).decode(latents), output_type)

    @property
    def unit(self) -> int:
        """Pixels that a token covers on each side."""
        return DiffusersAutoencoder(self.vae).stride * self.transformer.config["patch_size"]

    @property
    def default_size(self) -> tuple[int, int]:
        """(Height, width) in px of the images that the model is made for."""
        side = self.transformer.config["sample_size"] * DiffusersAutoencoder(self.vae).stride
        return side, side

    def resolve(self, preset: str | None, overrides: DecodeOverrides) -> DecodeConfig:
        """Every setting of the decoder; see `lightgen.stages.decoding.resolve`."""
        return resolve(self.transformer.config["prediction"], preset, overrides)

    def _limits(self) -> tuple[int, int | None]:
        """Most tokens of a text, and how many it is filled up to where the model attends to the filling."""
        most: int = self.transformer.config["text_length"]
        limit = min(most, self.tokenizer.model_max_length)
        return limit, None if self.transformer.config["text_masked"] else most

    def _decode(
        self,
        texts: Texts,
        seeds: Sequence[int],
        config: DecodeConfig,
        on_iteration: Callable[[int, torch.Tensor], bool],
        chosen: Sequence[int],
        grid: tuple[int, int],
        known: torch.Tensor | None = None,
        known_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Tokens [B, L, d] of the chosen of the images; other arguments as of `decode_tokens`."""
        wake(self.transformer)
        here = (texts_at(texts, chosen), [seeds[i] for i in chosen], grid, config, known, known_mask)
        total = min(config.num_iterations, grid[0] * grid[1])
        with self.progress_bar(total=total) as bar:  # pyright: ignore[reportCallIssue]
            return decode_tokens(self.transformer, *here, counted(bar, on_iteration))
