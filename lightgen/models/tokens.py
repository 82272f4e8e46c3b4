"""Latents as tokens and back."""

import torch

# Shapes: B batch, L tokens of a picture (row-major), N some of them, d token channels, C latent channels.


def patchify(latents: torch.Tensor, patch_size: int) -> torch.Tensor:
    """Tokens [B, L, d], row-major, channels flattened as (channel, row, column), of latents [B, C, h, w]."""
    batch, channels, height, width = latents.shape
    p = patch_size
    x = latents.reshape(batch, channels, height // p, p, width // p, p)
    return x.permute(0, 2, 4, 1, 3, 5).reshape(batch, (height // p) * (width // p), channels * p * p)


def unpatchify(tokens: torch.Tensor, patch_size: int, grid: tuple[int, int]) -> torch.Tensor:
    """Latents [B, C, h, w] of tokens [B, L, d]: the inverse of `patchify`."""
    p = patch_size
    batch, _, token_channels = tokens.shape
    x = tokens.reshape(batch, grid[0], grid[1], token_channels // p**2, p, p)
    return x.permute(0, 3, 1, 4, 2, 5).reshape(batch, -1, grid[0] * p, grid[1] * p)


def tokens_at(tokens: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
    """Tokens [B, N, d] at positions int [B, N] of tokens [B, L, d]."""
    return tokens.gather(1, at[..., None].expand(-1, -1, tokens.shape[-1]))


def tokens_placed(tokens: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
    """Tokens [B, L, d] in row-major order of tokens [B, L, d] that belong at positions `at`, int [B, L]."""
    return torch.empty_like(tokens).scatter(1, at[..., None].expand_as(tokens), tokens)
