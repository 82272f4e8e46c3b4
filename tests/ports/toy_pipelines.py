"""Tiny pipelines of the real classes of diffusers, of random weights, in the layout of diffusers."""

from pathlib import Path
from typing import Any

import diffusers
import torch
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    Gemma2Config,
    Gemma2Model,
    GemmaTokenizer,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

from tests.ports.toy_clip import words

SIDE = 32
# Arguments without which a pipeline would draw a size that its makers had in mind.
OPTIONS: dict[str, dict[str, Any]] = {
    "SanaPipeline": {"use_resolution_binning": False},
    "PixArtSigmaPipeline": {"use_resolution_binning": False},
}


def save_pipeline(kind: str, folder: Path) -> Path:
    """Folder of a pipeline of a class; its weights follow from the class alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(len(kind))
        pipeline = MAKERS[kind]()
        for part in pipeline.components.values():
            if isinstance(part, torch.nn.Module):
                stir(part)
    pipeline.save_pretrained(folder)
    return folder


def stir(module: torch.nn.Module) -> None:
    """Draw weights that let prompt and noise be seen in the image; what is fresh from a config hides both."""
    for name, parameter in module.named_parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=1.2 * parameter[0].numel() ** -0.5)
        elif name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.05)


def clip_tokenizer() -> CLIPTokenizer:
    return CLIPTokenizer(vocab=words(), merges=[], model_max_length=16)


def clip_config(width: int = 16) -> CLIPTextConfig:
    size = len(words())
    return CLIPTextConfig(
        vocab_size=size,
        bos_token_id=size - 2,
        eos_token_id=size - 1,
        pad_token_id=size - 1,
        hidden_size=width,
        intermediate_size=2 * width,
        num_attention_heads=2,
        num_hidden_layers=2,
        max_position_embeddings=16,
        projection_dim=width,
    )


def letters() -> list[str]:
    return [chr(ord("a") + i) for i in range(26)]


def t5(width: int = 16) -> dict[str, Any]:
    """T5 whose pieces are letters."""
    pieces = [
        ("<pad>", 0.0),
        ("</s>", 0.0),
        ("<unk>", -9.0),
        ("▁", -2.0),
        *((each, -3.0) for each in letters()),
    ]
    config = T5Config(vocab_size=40, d_model=width, d_kv=8, d_ff=32, num_layers=2, num_heads=2)
    return {"encoder": T5EncoderModel(config), "tokenizer": T5Tokenizer(vocab=pieces, extra_ids=0)}


def autoencoder(channels: int) -> diffusers.AutoencoderKL:
    return diffusers.AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        layers_per_block=1,
        latent_channels=channels,
        norm_num_groups=2,
        scaling_factor=1.0,
        shift_factor=0.0,
        sample_size=SIDE,
    )


def stable_diffusion() -> Any:
    unet = diffusers.UNet2DConditionModel(
        sample_size=SIDE // 2,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=2,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=16,
        attention_head_dim=2,
    )
    return diffusers.StableDiffusionPipeline(
        vae=autoencoder(4),
        text_encoder=CLIPTextModel(clip_config()),
        tokenizer=clip_tokenizer(),
        unet=unet,
        scheduler=diffusers.EulerAncestralDiscreteScheduler(steps_offset=1),  # it draws at every step
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def stable_diffusion_3() -> Any:
    words_3 = t5(32)
    transformer = diffusers.SD3Transformer2DModel(
        sample_size=SIDE // 2,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=32,
        caption_projection_dim=16,
        pooled_projection_dim=32,
        pos_embed_max_size=16,
    )
    return diffusers.StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
        vae=autoencoder(4),
        text_encoder=CLIPTextModelWithProjection(clip_config()),
        tokenizer=clip_tokenizer(),
        text_encoder_2=CLIPTextModelWithProjection(clip_config()),
        tokenizer_2=clip_tokenizer(),
        text_encoder_3=words_3["encoder"],
        tokenizer_3=words_3["tokenizer"],
    )


def flux() -> Any:
    long = t5()
    transformer = diffusers.FluxTransformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        pooled_projection_dim=16,
        axes_dims_rope=(4, 6, 6),
    )
    return diffusers.FluxPipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
        vae=autoencoder(4),
        text_encoder=CLIPTextModel(clip_config()),
        tokenizer=clip_tokenizer(),
        text_encoder_2=long["encoder"],
        tokenizer_2=long["tokenizer"],
        transformer=transformer,
    )


def pixart() -> Any:
    long = t5()
    transformer = diffusers.PixArtTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=8,
        num_layers=2,
        cross_attention_dim=16,
        sample_size=SIDE // 2,
        caption_channels=16,
        use_additional_conditions=False,
    )
    return diffusers.PixArtSigmaPipeline(
        tokenizer=long["tokenizer"],
        text_encoder=long["encoder"],
        vae=autoencoder(4),
        transformer=transformer,
        scheduler=diffusers.DPMSolverMultistepScheduler(),
    )


def sana() -> Any:
    vocabulary = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "▁", *letters()]
    numbers = {each: number for number, each in enumerate(vocabulary)}
    config = Gemma2Config(
        vocab_size=len(vocabulary),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=2,
    )
    transformer = diffusers.SanaTransformer2DModel(
        in_channels=4,
        out_channels=4,
        num_layers=2,
        num_attention_heads=2,
        attention_head_dim=8,
        num_cross_attention_heads=2,
        cross_attention_head_dim=8,
        cross_attention_dim=16,
        caption_channels=16,
        sample_size=2,
    )
    blocks = ("ResBlock",) * 5 + ("EfficientViTBlock",)
    shape: dict[str, Any] = {f"{half}_block_types": blocks for half in ("encoder", "decoder")}
    for half in ("encoder", "decoder"):
        shape |= {f"{half}_block_out_channels": (8,) * 6, f"{half}_layers_per_block": (1,) * 6}
        shape |= {f"{half}_qkv_multiscales": ((),) * 5 + ((5,),)}
    return diffusers.SanaPipeline(
        tokenizer=GemmaTokenizer(vocab=numbers, merges=[]),
        text_encoder=Gemma2Model(config),
        vae=diffusers.AutoencoderDC(latent_channels=4, attention_head_dim=4, **shape),
        transformer=transformer,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
    )


MAKERS = {
    "StableDiffusionPipeline": stable_diffusion,
    "StableDiffusion3Pipeline": stable_diffusion_3,
    "FluxPipeline": flux,
    "PixArtSigmaPipeline": pixart,
    "SanaPipeline": sana,
}
