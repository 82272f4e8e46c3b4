"""The trunk once more, by the book: one image, all tokens through all blocks, every attention spelled out."""

import torch
from torch import nn

from lightgen.models.positions import axial_angles, resample_table

LOOKS = ({"layers": "plain", "positions": "learned"}, {"layers": "gated", "positions": "rotary"})
TRUNKS = [
    {"fusion": fusion, **look, "text_masked": masked, "cross_residual": residual}
    for fusion in ("late", "interleaved", "joint")
    for look in LOOKS
    for masked in (True, False)
    for residual in (("prenorm",) if fusion == "joint" else ("normed", "prenorm"))
]
# further ways of the text into a joint trunk
PREFIXES = [
    {**TRUNKS[-2], "text_positions": "rotary"},
    {**TRUNKS[-1], "text_positions": "rotary", "registers": 2},
    {**TRUNKS[-2], "registers": 1},
    {**TRUNKS[-3], "registers": 2},
    {**TRUNKS[-1], "text_positions": "rotary", "position_step": 0.5},
]
HEADS = [
    {"prediction": prediction, "head_conditioning": conditioning}
    for prediction in ("ddpm", "flow")
    for conditioning in ("joint", "additive")
]
SMALL = {"width": 16, "num_heads": 2, "encoder_layers": 2, "decoder_layers": 2, "head_layers": 1}


def named(shape):
    """Name of a test of a shape."""
    words = [
        f"{'' if value else 'un'}masked" if isinstance(value, bool) else str(value)
        for value in shape.values()
    ]
    return "-".join(words)


def linear(layer, x):
    if isinstance(layer, nn.Identity):
        return x
    return x @ layer.weight.T + (0 if layer.bias is None else layer.bias)


def standard(x, eps=1e-5):
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + eps).sqrt()


def norm(layer, x):
    if isinstance(layer, nn.Identity):
        return x
    return standard(x, layer.eps) * layer.weight + (0 if layer.bias is None else layer.bias)


def mlp(layer, x):
    hidden = linear(layer.fc1, x)
    if type(layer).__name__ == "GatedMLP":
        value, gate = hidden.chunk(2, -1)
        return linear(layer.fc2, value * gate * gate.sigmoid())
    return linear(layer.fc2, hidden * 0.5 * (1 + torch.erf(hidden / 2**0.5)))


def heads(attn, x, angles, scale=None, is_normed=True):
    """Queries, keys or values [A, N, E] of x [N, D]: split, normalised, scaled and turned."""
    x = x.unflatten(-1, (attn.num_heads, -1)).transpose(0, 1)
    if attn.scale_q is not None and is_normed:
        x = standard(x) * (1 if scale is None else scale)
    if angles is None:
        return x
    half = x.shape[-1] // 2
    turn = torch.complex(angles.cos().to(x.dtype), angles.sin().to(x.dtype))
    turned = torch.complex(x[..., :half].contiguous(), x[..., half:].contiguous()) * turn
    return torch.cat([turned.real, turned.imag], -1)


def attended(attn, q, k, v):
    weights = (q @ k.transpose(1, 2) / q.shape[-1] ** 0.5).softmax(-1)
    return linear(attn.proj, (weights @ v).transpose(0, 1).flatten(1))


class Naive:
    """Conditions of one image's tokens under one text [T, D] with mask [T].

    Entries 0 to L - 1 are the image's positions, from L on come the text tokens of a joint model. Keys and
    values of the entries that passed stay until the entries pass again.
    """

    def __init__(self, transformer, text, text_mask, grid):
        self.length, self.is_joint = grid[0] * grid[1], transformer.shape.fusion == "joint"
        real = text_mask if transformer.shape.text_masked else torch.ones_like(text_mask)
        registers = transformer.shape.registers
        if registers:
            text = torch.cat([transformer.register_tokens.to(text), text])
            real = torch.cat([real.new_ones(registers), real])
        self.model, self.text, self.grid = transformer, text, grid
        self.real = [j for j, is_real in enumerate(real.tolist()) if is_real]
        self.words = [self.length + j for j in range(len(text))] if self.is_joint else []
        self.seen_words = [self.length + j for j in self.real] if self.is_joint else []
        self.angles = None
        if transformer.angle_channels is not None:
            step = transformer.shape.position_step
            angles = axial_angles(*grid, transformer.angle_channels) * step
            words = angles.new_zeros(len(self.words), angles.shape[1])
            if transformer.shape.text_positions == "rotary":
                # the far corner of a square, backwards
                for number, j in enumerate(self.real[registers:], start=1):
                    words[j] = -axial_angles(number + 1, number + 1, angles.shape[1])[-1]
            self.angles = torch.cat([angles, words])
        self.kept = {}

    def table(self, stage):
        if self.model.shape.positions == "rotary":
            return self.text.new_zeros(self.length, self.text.shape[1])
        return resample_table(self.model.get_parameter(f"{stage}_positions"), self.grid)

    def conditions(self, tokens, known, passing=None):
        """Conditions [L, D] by position, nan where a token did not pass.

        Args:
            tokens: by position, [L, d].
            known: positions of the known ones.
            passing: positions whose tokens pass, all others stand as they stood; None = all. The text passes
                when all known tokens do.
        """
        model = self.model
        image = list(range(self.length)) if passing is None else list(passing)
        words = self.words if set(known) <= set(image) else []
        entering, unknown = [p for p in image if p in known], [p for p in image if p not in known]
        x = linear(model.z_proj, tokens[entering]) + self.table("encoder")[entering]
        x = norm(model.z_norm, x)
        if words:
            x = torch.cat([x, self.text])
        x = self.pass_through(model.encoder_blocks, "encoder", x, entering + words, known + self.seen_words)
        x = linear(model.decoder_embed, norm(model.encoder_norm, x))
        x = torch.cat([x, model.mask_token.expand(len(unknown), -1)])
        at = entering + words + unknown
        table = torch.cat([self.table("decoder"), x.new_zeros(len(self.words), x.shape[1])])
        x = x + table[at]
        everything = list(range(self.length)) + self.seen_words
        x = norm(model.decoder_norm, self.pass_through(model.decoder_blocks, "decoder", x, at, everything))
        found = x.new_full((self.length + len(self.words), x.shape[1]), torch.nan)
        found[at] = x
        found = found[: self.length]
        if model.shape.fusion == "late":
            found = linear(model.cross_embed, found) + self.table("cross")
            for block in model.cross_blocks:
                found = self.read(block, found)
            found = norm(model.cross_norm, found)
        return found

    def pass_through(self, blocks, stage, x, at, seen):
        total = self.length + len(self.words)
        for i, block in enumerate(blocks):
            attn, normed = block.attn, norm(block.norm1, x)
            angles = None if self.angles is None else self.angles[at]
            q = heads(attn, linear(attn.q, normed), angles, attn.scale_q)
            k, v = linear(attn.kv, normed).chunk(2, -1)
            fresh = heads(attn, k, angles), heads(attn, v, None, is_normed=False)
            if (stage, i) not in self.kept:
                empty = x.new_full((attn.num_heads, total, q.shape[-1]), torch.nan)
                self.kept[stage, i] = (empty, empty.clone())
            for kept, new in zip(self.kept[stage, i], fresh, strict=True):
                kept[:, at] = new
            x = x + attended(attn, q, *(kept[:, seen] for kept in self.kept[stage, i]))
            x = x + mlp(block.mlp, norm(block.norm2, x))
            if stage == "decoder" and self.model.shape.fusion == "interleaved":
                x = self.read(self.model.cross_blocks[i], x)
        return x

    def read(self, block, x):
        """Tokens that read the text."""
        attn, normed = block.attn, norm(block.norm_q, x)
        q = heads(attn, linear(attn.q, normed), None, attn.scale_q)
        k, v = linear(attn.kv, norm(block.norm_kv, self.text[self.real])).chunk(2, -1)
        k, v = heads(attn, k, None), heads(attn, v, None, is_normed=False)
        x = (normed if block.residual == "normed" else x) + attended(attn, q, k, v)
        return x + mlp(block.mlp, norm(block.norm2, x))
