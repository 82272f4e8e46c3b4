"""The shape of a transformer as plain numbers."""

from dataclasses import dataclass
from typing import Literal

from lightgen.models.blocks import Layers, Residual
from lightgen.models.head import HeadConditioning, Prediction

Fusion = Literal["late", "interleaved", "joint"]
Positions = Literal["rotary", "learned"]
TextPositions = Literal["none", "rotary"]


@dataclass(frozen=True, kw_only=True)
class TransformerConfig:
    """Shape of a `LightGenTransformer`.

    Attributes:
        latent_channels: of the autoencoder.
        patch_size: side of a token in latent cells.
        sample_size: default side of a picture in latent cells.
        width: channels of every token.
        num_heads: of every attention.
        encoder_layers, decoder_layers: numbers of blocks that see known and all tokens.
        cross_layers: blocks that attend to the text; 0 where fusion is joint.
        aligner_layers: blocks of self-attention among text tokens; 0 = text enters through one linear map.
        text_width: of the text encoder's features.
        text_length: most text tokens.
        fusion: how text enters. `joint`: as further tokens of encoder and decoder; `interleaved`: by
            attention after each block of the decoder; `late`, as released: by a stage after the decoder in
            which image tokens do not see each other.
        cross_residual: what a cross block adds attention to: the `normed` query, as released, or the stream.
        text_masked: whether padding is hidden; released, it is not, and prompts are padded to text_length.
        layers: `plain`, as released (biases, GELU MLP, maps and norms between the stages), or `gated`
            (normalised queries and keys, SwiGLU MLP, no biases).
        positions: `learned`, as released (tables of position_grid x position_grid), or `rotary`.
        text_positions: of text tokens among image tokens: `none`, or `rotary`, for joint fusion and rotary
            positions: the first lies a step before the picture's first token in both axes, the next two
            steps, and so on; hidden ones do not count.
        registers: learned tokens that stand before the text, whatever it is, with joint fusion. Source:
            arXiv 2309.16588, section 2.2.
        position_grid: side of the learned tables.
        position_step: distance of neighbouring tokens where positions are rotary. A model that goes on at
            twice the size with half the step finds pictures laid out as it knows them. Source: arXiv
            2306.15595, eq. 4, in two axes.
        dropout: of attention, its output, and the MLP.
        prediction: of the head: `ddpm`, as released (noise and variance, cosine schedule), `flow`, or
            `flow_x` (the clean token, which a flow's velocity follows from).
        head_conditioning: `joint`, as released (modulation by silu(time + condition)), or `additive`.
        head_width, head_layers: shape of the head.
    """

    latent_channels: int = 16
    patch_size: int = 2
    sample_size: int = 16
    width: int = 256
    num_heads: int = 8
    encoder_layers: int = 4
    decoder_layers: int = 6
    cross_layers: int = 0
    aligner_layers: int = 0
    text_width: int = 256
    text_length: int = 64
    fusion: Fusion = "joint"
    cross_residual: Residual = "prenorm"
    text_masked: bool = True
    layers: Layers = "gated"
    positions: Positions = "rotary"
    text_positions: TextPositions = "none"
    registers: int = 0
    position_grid: int = 16
    position_step: float = 1.0
    dropout: float = 0.0
    prediction: Prediction = "flow"
    head_conditioning: HeadConditioning = "joint"
    head_width: int = 256
    head_layers: int = 3

    def check(self) -> None:
        """Check that a transformer can have this shape.

        Raises:
            ValueError: it cannot; the text says what, got, and allowed.
        """
        counts = ("latent_channels", "patch_size", "sample_size", "width", "num_heads", "encoder_layers")
        counts += ("decoder_layers", "text_width", "text_length", "position_grid", "head_width")
        for name in (*counts, "head_layers"):
            if vars(self)[name] < 1:
                raise ValueError(f"transformer: got {name} {vars(self)[name]}, allowed: from 1")
        allowed = {
            "fusion": ("late", "interleaved", "joint"),
            "cross_residual": ("normed", "prenorm"),
            "layers": ("plain", "gated"),
            "positions": ("rotary", "learned"),
            "text_positions": ("none", "rotary"),
            "prediction": ("ddpm", "flow", "flow_x"),
            "head_conditioning": ("joint", "additive"),
        }
        for name, values in allowed.items():
            if vars(self)[name] not in values:
                raise ValueError(
                    f"transformer: got {name} {vars(self)[name]!r}, allowed: {', '.join(values)}"
                )
        if self.sample_size % self.patch_size:
            raise ValueError(
                f"transformer: got sample_size {self.sample_size} with patch_size {self.patch_size}, "
                "allowed: a multiple"
            )
        if self.text_positions == "rotary" and (self.fusion, self.positions) != ("joint", "rotary"):
            raise ValueError(
                f"transformer: got text_positions rotary with {self.fusion} fusion and {self.positions} "
                "positions, allowed: with joint fusion and rotary positions"
            )
        if self.position_step <= 0 or (self.position_step != 1 and self.positions != "rotary"):
            raise ValueError(
                f"transformer: got position_step {self.position_step} with {self.positions} positions, "
                "allowed: above 0, and 1 unless they are rotary"
            )
        if self.registers < 0 or (self.registers and self.fusion != "joint"):
            raise ValueError(
                f"transformer: got {self.registers} registers with {self.fusion} fusion, "
                "allowed: from 0 with joint fusion, 0 with others"
            )
        unit = 4 * self.num_heads if self.positions == "rotary" else self.num_heads
        if self.width % unit:
            raise ValueError(
                f"transformer: got width {self.width} with {self.num_heads} heads, "
                f"allowed: multiples of {unit}"
            )
        cross = {"joint": "0", "interleaved": f"{self.decoder_layers}", "late": "from 1"}[self.fusion]
        is_fine = self.cross_layers >= 1 if self.fusion == "late" else str(self.cross_layers) == cross
        if not is_fine or self.aligner_layers < 0:
            raise ValueError(
                f"transformer: got {self.cross_layers} cross_layers, {self.aligner_layers} aligner_layers, "
                f"allowed: {cross} cross_layers where fusion is {self.fusion}, from 0 aligner_layers"
            )
        if not 0 <= self.dropout < 1:
            raise ValueError(f"transformer: got dropout {self.dropout}, allowed: [0, 1)")
