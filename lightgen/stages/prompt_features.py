"""Texts as features of the text encoder, and what the transformer makes of them for each image."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional
from transformers import PreTrainedTokenizerBase, T5EncoderModel

from lightgen.core.errors import UserError
from lightgen.models.transformer import LightGenTransformer
from lightgen.ports.text import tokenize
from lightgen.sampling.decode import Texts
from lightgen.stages.prompt_text import check_pair

# Shapes: N prompts, B images, T text tokens, F width of the text encoder, D width of the transformer.


@dataclass(frozen=True)
class PromptFeatures:
    """What the text encoder says of N prompts.

    Attributes:
        prompt, mask: [N, T, F] and bool [N, T], True = real token.
        negative, negative_mask: of the negative prompts, with rows 1 or N; None = the learned "no text".
    """

    prompt: torch.Tensor
    mask: torch.Tensor
    negative: torch.Tensor | None = None
    negative_mask: torch.Tensor | None = None

    @classmethod
    def given(cls, embeds: Mapping[str, object], config: Mapping[str, Any]) -> "PromptFeatures":
        """Features of a pipeline's arguments.

        Args:
            embeds: prompt_embeds, prompt_attention_mask, negative_prompt_embeds and
                negative_prompt_attention_mask; a mask may be None, and both of the negative ones.
            config: of the transformer.

        Raises:
            UserError: a type, shape or number that cannot be.
        """
        prompt, mask = _checked("prompt", embeds, config)
        if embeds["negative_prompt_embeds"] is embeds["negative_prompt_attention_mask"] is None:
            return cls(prompt, mask)
        negative, negative_mask = _checked("negative_prompt", embeds, config)
        if len(negative) not in (1, len(prompt)):
            got = f"{len(negative)} for {len(prompt)} prompts"
            raise UserError(f"negative_prompt_embeds: got {got}, allowed: one, or one per prompt")
        return cls(prompt, mask, negative, negative_mask)

    @classmethod
    def encoded(
        cls,
        texts: tuple[Sequence[str], Sequence[str]],
        tokenizer: PreTrainedTokenizerBase,
        text_encoder: T5EncoderModel,
        limits: tuple[int, int | None],
        device: torch.device,
    ) -> "PromptFeatures":
        """Features of prompts and of negative prompts (none, one or as many); equal texts are encoded once.

        Args:
            texts: both, from `check_pair`.
            tokenizer: of the text encoder.
            text_encoder: called by its `forward`.
            limits: most tokens of a text, and how many it is filled up to, or None.
            device: of the text encoder while it runs.
        """
        prompts, others = texts
        unique = list(dict.fromkeys([*prompts, *others]))
        ids, mask = (each.to(device) for each in tokenize(tokenizer, unique, *limits))
        features = text_encoder(input_ids=ids, attention_mask=mask).last_hidden_state
        rows = torch.tensor([unique.index(text) for text in prompts], device=device)
        if not others:
            return cls(features[rows], mask[rows])
        negative = torch.tensor([unique.index(text) for text in others], device=device)
        return cls(features[rows], mask[rows], features[negative], mask[negative])


def count_prompts(
    prompt: object, negative_prompt: object, embeds: Mapping[str, object], config: Mapping[str, Any]
) -> int:
    """Number N of prompts, given as texts or as features (as in `PromptFeatures.given`).

    Raises:
        UserError: some are missing, of both kinds, or not what they should be.
    """
    has_features = any(each is not None for each in embeds.values())
    if has_features and (prompt is not None or negative_prompt is not None):
        raise UserError("pipeline: got texts and embeds, allowed: prompts of one kind")
    if has_features:
        return len(PromptFeatures.given(embeds, config).prompt)
    return len(check_pair(prompt, negative_prompt)[0])


def texts_of(
    transformer: LightGenTransformer, features: PromptFeatures, repeats: int, device: torch.device
) -> Texts:
    """Texts of B = N * repeats images; each prompt meets the aligner once and is repeated after that."""
    prompt, mask = features.prompt.to(device), features.mask.to(device)
    if features.negative is None or features.negative_mask is None:
        text = transformer.embed_text(prompt, mask)
        return Texts(text=text.repeat_interleave(repeats, 0), text_mask=mask.repeat_interleave(repeats, 0))
    negative, negative_mask = features.negative.to(device), features.negative_mask.to(device)
    length = max(prompt.shape[1], negative.shape[1])
    prompt, mask = _of_length(prompt, mask, length)
    negative, negative_mask = _of_length(negative, negative_mask, length)
    text = transformer.embed_text(prompt, mask)
    null = transformer.embed_text(negative, negative_mask)
    rows = torch.arange(len(text), device=device).repeat_interleave(repeats)
    other = rows if len(null) > 1 else torch.zeros_like(rows)
    return Texts(text=text[rows], text_mask=mask[rows], null_text=null[other], null_mask=negative_mask[other])


def texts_at(texts: Texts, chosen: Sequence[int]) -> Texts:
    """Texts of some of the images."""
    rows = torch.tensor(list(chosen), device=texts.text.device)
    fields = (texts.text, texts.text_mask, texts.null_text, texts.null_mask)
    text, mask, null, null_mask = (None if each is None else each[rows] for each in fields)
    assert text is not None and mask is not None
    return Texts(text=text, text_mask=mask, null_text=null, null_mask=null_mask)


def _checked(
    name: str, embeds: Mapping[str, object], config: Mapping[str, Any]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Features and their mask, all True where none is given."""
    features, mask = embeds[f"{name}_embeds"], embeds[f"{name}_attention_mask"]
    most, width, is_fixed = config["text_length"], config["text_width"], not config["text_masked"]
    tokens = f"T = {most}" if is_fixed else f"T from 1 to {most}"
    allowed = f"allowed: finite floats [N, T, {width}] with {tokens}"
    if not isinstance(features, torch.Tensor) or not features.is_floating_point():
        got = features.dtype if isinstance(features, torch.Tensor) else type(features).__name__
        raise UserError(f"{name}_embeds: got {got}, {allowed}")
    shape = list(features.shape)
    is_fit = len(shape) == 3 and shape[0] > 0 and shape[2] == width and 1 <= shape[1] <= most
    if not is_fit or (is_fixed and shape[1] != most):
        raise UserError(f"{name}_embeds: got shape {shape}, {allowed}")
    if not features.isfinite().all():
        raise UserError(f"{name}_embeds: got numbers that are not finite, {allowed}")
    if mask is None:
        mask = torch.ones(features.shape[:2], dtype=torch.bool, device=features.device)
    if not isinstance(mask, torch.Tensor) or mask.shape != features.shape[:2] or not mask.bool().any(1).all():
        got = f"shape {list(mask.shape)}" if isinstance(mask, torch.Tensor) else type(mask).__name__
        needed = f"{shape[:2]} with 1 or True for real tokens, at least one per text"
        raise UserError(f"{name}_attention_mask: got {got}, allowed: {needed}")
    return features, mask.bool()


def _of_length(features: torch.Tensor, mask: torch.Tensor, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Features [N, length, F] and mask [N, length], with hidden tokens after those given."""
    more = length - features.shape[1]
    return functional.pad(features, (0, 0, 0, more)), functional.pad(mask, (0, more))
