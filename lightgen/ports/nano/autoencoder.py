"""The small autoencoder that stands for the SD3.5 VAE in the nano world."""

import torch
from diffusers.models.autoencoders.autoencoder_dc import AutoencoderDC

from lightgen.core.draws import draw_key


def build_nano_autoencoder(seed: int) -> AutoencoderDC:
    """Untrained deterministic autoencoder: stride 8, 16 latent channels, 2.3M parameters, convolutions only.

    A pixel-unshuffle stem leaves no convolution wider than three channels at full resolution.
    """
    widths = (16, 32, 64, 128)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(draw_key(seed, "autoencoder-weights"))
        return AutoencoderDC(
            in_channels=3,
            latent_channels=16,
            encoder_block_types="ResBlock",
            decoder_block_types="ResBlock",
            encoder_block_out_channels=widths,
            decoder_block_out_channels=widths,
            encoder_layers_per_block=(0, 1, 2, 2),
            decoder_layers_per_block=(0, 1, 2, 3),
            encoder_qkv_multiscales=((), (), (), ()),
            decoder_qkv_multiscales=((), (), (), ()),
            downsample_block_type="pixel_unshuffle",
            upsample_block_type="pixel_shuffle",
            decoder_norm_types="rms_norm",
            decoder_act_fns="silu",
            scaling_factor=1.0,
        ).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
