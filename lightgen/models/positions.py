"""Where a token lies: rotary angles of two axes, or a learned table resampled to the grid."""

import torch
from torch.nn import functional

# Shapes: B batch, A heads, N tokens, L tokens of a grid, D width, E head width.

Rotation = tuple[torch.Tensor, torch.Tensor]


def axial_angles(
    height: int, width: int, channels: int, step: float = 1.0, base: float = 100.0
) -> torch.Tensor:
    """Angles [height * width, channels], row-major: half of the channels turn with y, half with x.

    `step` is the distance of neighbouring tokens, `base` the ratio of the first frequency to the last.
    """
    frequency = _frequencies(channels // 2, base) * step
    y = torch.arange(height, dtype=torch.float32)[:, None, None] * frequency
    x = torch.arange(width, dtype=torch.float32)[None, :, None] * frequency
    grid = torch.cat([y.expand(height, width, -1), x.expand(height, width, -1)], dim=-1)
    return grid.flatten(0, 1)


def diagonal_angles(place: torch.Tensor, channels: int, base: float = 100.0) -> torch.Tensor:
    """Angles [..., channels] of tokens that lie at (place, place), of place [...]; see `axial_angles`."""
    angles = place[..., None] * _frequencies(channels // 2, base).to(place.device)
    return torch.cat([angles, angles], dim=-1)


def _frequencies(count: int, base: float) -> torch.Tensor:
    return base ** (-torch.arange(count, dtype=torch.float32) / count)


def turns(angles: torch.Tensor, dtype: torch.dtype) -> Rotation:
    """Cosines and sines [B, 1, N, E/2] of angles [B, N, E/2]."""
    return angles.cos().to(dtype)[:, None], angles.sin().to(dtype)[:, None]


def rotate(x: torch.Tensor, cosine: torch.Tensor, sine: torch.Tensor) -> torch.Tensor:
    """Return x [B, A, N, E] with its channel pairs (i, i + E/2) turned by angles [B, 1, N, E/2].

    Source: rotary positions, arXiv 2104.09864, eq. 34; two axes share the channels as in arXiv 2403.13298.
    """
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cosine - second * sine, second * cosine + first * sine], dim=-1)


def resample_table(table: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """Positions [h * w, D], row-major, of a learned square table [n * n, D] on a grid of h rows, w columns.

    Source: bicubic with the offset of 0.1 in the scale, as DINO does (arXiv 2104.14294); a table of the
    grid's own size stays as it is.
    """
    side = round(table.shape[0] ** 0.5)
    if grid == (side, side):
        return table
    image = table.view(1, side, side, -1).permute(0, 3, 1, 2)
    scale = [(length + 0.1) / side for length in grid]
    resampled = functional.interpolate(image, scale_factor=scale, mode="bicubic")
    assert resampled.shape[-2:] == grid, (resampled.shape, grid)
    return resampled.permute(0, 2, 3, 1).reshape(grid[0] * grid[1], -1)
