"""The LightGen transformer: text and image tokens in one sequence, masked tokens predicted from the rest."""

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import nn

from lightgen.models.blocks import Block, axial_angles
from lightgen.models.head import FlowHead

# Shapes: B batch, L image tokens (row-major), K known, P predicted, T text tokens, D width, d token channels.


class LightGenTransformer(ModelMixin, ConfigMixin):
    """Masked encoder-decoder over continuous tokens with a flow head per token.

    The encoder sees text and known tokens, the decoder text and all tokens, a learned vector standing for the
    unknown. Text enters both (`fusion` joint): tokens that are predicted together can then agree on the
    prompt.
    Positions are rotary in two axes, so the grid is an argument and the size of a picture is no part of the
    model.
    """

    @register_to_config
    def __init__(
        self,
        latent_channels: int = 12,
        patch_size: int = 2,
        width: int = 256,
        num_heads: int = 8,
        encoder_layers: int = 4,
        decoder_layers: int = 6,
        text_width: int = 256,
        fusion: str = "joint",
        prediction: str = "flow",
        head_width: int = 256,
        head_layers: int = 3,
    ) -> None:
        super().__init__()
        if fusion != "joint" or prediction != "flow":
            raise ValueError(
                f"transformer: got {fusion=} {prediction=}, allowed: fusion='joint' prediction='flow'"
            )
        self.token_channels = latent_channels * patch_size**2
        self.angle_channels = width // num_heads // 2
        self.text_proj = nn.Linear(text_width, width, bias=False)
        self.text_norm = nn.LayerNorm(width, eps=1e-6, bias=False)
        self.null_text = nn.Parameter(torch.empty(width))
        self.z_proj = nn.Linear(self.token_channels, width)
        self.encoder_blocks = nn.ModuleList(Block(width, num_heads) for _ in range(encoder_layers))
        self.mask_token = nn.Parameter(torch.empty(width))
        self.decoder_blocks = nn.ModuleList(Block(width, num_heads) for _ in range(decoder_layers))
        self.decoder_norm = nn.LayerNorm(width, eps=1e-6, bias=False)
        self.head = FlowHead(self.token_channels, width, head_width, head_layers)
        for vector in (self.null_text, self.mask_token):
            nn.init.normal_(vector, std=0.02)
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear) and "block" in name and "modulation" not in name:
                nn.init.xavier_uniform_(module.weight)

    def embed_text(
        self, text: torch.Tensor, text_mask: torch.Tensor, dropped: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Text as the trunk sees it [B, T, D] and its mask [B, T].

        Args:
            text: encoder features [B, T, text_width].
            text_mask: bool [B, T], True = real token.
            dropped: bool [B]; True replaces an image's text by the learned null vector, one token long.
        """
        embedded = self.text_norm(self.text_proj(text.to(self.text_proj.weight.dtype)))
        first = torch.zeros_like(text_mask)
        first[:, 0] = True
        embedded = torch.where(dropped[:, None, None], self.null_text.to(embedded.dtype), embedded)
        return embedded, torch.where(dropped[:, None], first, text_mask)

    def forward(
        self,
        known: torch.Tensor,
        known_at: torch.Tensor,
        predicted_at: torch.Tensor,
        text: torch.Tensor,
        text_mask: torch.Tensor,
        grid: tuple[int, int],
    ) -> torch.Tensor:
        """Condition [B, P, D] of the tokens to predict.

        Args:
            known: clean tokens [B, K, d].
            known_at: their positions, int [B, K].
            predicted_at: positions to predict, int [B, P]; positions in neither set are unknown as well.
            text: from `embed_text`, [B, T, D].
            text_mask: bool [B, T], from `embed_text` too.
            grid: rows and columns of tokens.
        """
        batch, num_text = text.shape[:2]
        length = grid[0] * grid[1]
        angles = axial_angles(*grid, self.angle_channels).to(text.device)
        still = angles.new_zeros(batch, num_text, angles.shape[1])
        x = torch.cat([text, self.z_proj(known.to(text.dtype))], dim=1)
        rotation = _turns(torch.cat([still, angles[known_at]], dim=1), x.dtype)
        mask = _attendable(text_mask, known_at.shape[1])
        for block in self.encoder_blocks:
            x = block(x, mask, rotation)
        image = self.mask_token.to(x.dtype).expand(batch, length, -1)
        at = known_at[..., None].expand(-1, -1, x.shape[-1])
        image = image.scatter(1, at, x[:, num_text:])
        x = torch.cat([x[:, :num_text], image], dim=1)
        rotation = _turns(torch.cat([still, angles.expand(batch, -1, -1)], dim=1), x.dtype)
        mask = _attendable(text_mask, length)
        for block in self.decoder_blocks:
            x = block(x, mask, rotation)
        at = predicted_at[..., None].expand(-1, -1, x.shape[-1]) + num_text
        return self.decoder_norm(x.gather(1, at))


def _turns(angles: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines [B, 1, N, E/2] of angles [B, N, E/2]."""
    return angles.cos().to(dtype)[:, None], angles.sin().to(dtype)[:, None]


def _attendable(text_mask: torch.Tensor, num_image: int) -> torch.Tensor:
    """Attention mask [B, 1, 1, T + num_image]: real text tokens and all image tokens."""
    image = text_mask.new_ones(text_mask.shape[0], num_image)
    return torch.cat([text_mask, image], dim=1)[:, None, None]


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
