"""Autoencoders of diffusers behind one port."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_dc import AutoencoderDC
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

from lightgen.core.errors import UserError


class DiffusersAutoencoder:
    """An `AutoencoderKL` or `AutoencoderDC` whose latents are brought, here only, to about unit variance."""

    def __init__(self, vae: AutoencoderKL | AutoencoderDC) -> None:
        self.vae = vae.eval().requires_grad_(False)
        self.channels: int = vae.config["latent_channels"]
        is_kl = isinstance(vae, AutoencoderKL)
        self.stride = _stride(vae.config)
        self._scale: float = vae.config["scaling_factor"]
        self._shift: float = (vae.config.get("shift_factor") or 0.0) if is_kl else 0.0

    def use_tiles(self, side: int | None) -> None:
        """From now on take what is larger than `side` px in tiles of that side, one picture at a time.

        Tiles overlap by a quarter and are blended, so latents differ from those of the whole picture.

        Args:
            side: px, in multiples of 4 x stride; None = pictures are taken whole.
        """
        self.vae.use_tiling = self.vae.use_slicing = side is not None
        if side is None:
            return
        assert side % (4 * self.stride) == 0, side
        if isinstance(self.vae, AutoencoderKL):
            self.vae.tile_sample_min_size = side
            self.vae.tile_latent_min_size = side // self.stride
        else:
            self.vae.enable_tiling(side, side, 3 * side // 4, 3 * side // 4)

    @torch.no_grad()
    def encode(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(mean, std) [B, C, h, w] of the latents of pixels [B, 3, H, W] in [-1, 1]; std 0 without noise."""
        pixels = pixels.to(self.vae.dtype).contiguous(memory_format=torch.channels_last)
        if isinstance(self.vae, AutoencoderKL):
            distribution = self.vae.encode(pixels).latent_dist  # pyright: ignore[reportAttributeAccessIssue]
            return (distribution.mean - self._shift) * self._scale, distribution.std * self._scale
        latents = self.vae.encode(pixels).latent * self._scale  # pyright: ignore[reportAttributeAccessIssue]
        return latents, torch.zeros_like(latents)

    @torch.no_grad()
    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Pixels [B, 3, H, W], float32 in [-1, 1], of latents [B, C, h, w]."""
        unscaled = latents.to(self.vae.dtype) / self._scale + self._shift
        decoded: Any = self.vae.decode(unscaled)  # pyright: ignore[reportArgumentType]
        return decoded.sample.float().clamp(-1, 1)


def read_stride(folder: Path) -> int:
    """Pixels per latent position of the autoencoder stored in `folder`, whose weights are not read."""
    return _stride(json.loads((folder / "config.json").read_text()))


def _stride(config: Mapping[str, Any]) -> int:
    blocks = config.get("block_out_channels") or config["encoder_block_out_channels"]
    return 2 ** (len(blocks) - 1)


def load_autoencoder(folder: Path) -> DiffusersAutoencoder:
    """Autoencoder stored in `folder` in the diffusers layout (safetensors only), in fp32.

    Raises:
        UserError: the folder holds no autoencoder of a known class.
    """
    config = folder / "config.json"
    if not config.is_file():
        raise UserError(f"autoencoder {folder}: no config.json; expected a diffusers `vae` folder")
    name = json.loads(config.read_text()).get("_class_name")
    classes: dict[str, type[AutoencoderKL] | type[AutoencoderDC]] = {
        "AutoencoderKL": AutoencoderKL,
        "AutoencoderDC": AutoencoderDC,
    }
    if name not in classes:
        raise UserError(f"autoencoder {folder}: class {name!r}, allowed: {', '.join(classes)}")
    # what saves memory needs accelerate, and without it diffusers says so each time
    vae = classes[name].from_pretrained(
        folder, use_safetensors=True, torch_dtype=torch.float32, low_cpu_mem_usage=False
    )
    return DiffusersAutoencoder(vae)
