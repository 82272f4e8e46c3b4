"""Recipes of model: shapes of transformers."""

from dataclasses import replace

from lightgen.models.shape import TransformerConfig


def paper() -> TransformerConfig:
    """The released model: 792,244,352 parameters beside the frozen text encoder and autoencoder.

    Source: arXiv 2503.08619 and the released code's `fluid_large`.
    Hardware: 3.2 GB of weights in fp32; training holds four to five times that, and activations.
    Expected: GenEval .62 after 2M images and preferences, as the paper reports; not trained here.
    """
    return TransformerConfig(
        latent_channels=16,
        sample_size=32,
        width=1024,
        num_heads=16,
        encoder_layers=16,
        decoder_layers=16,
        cross_layers=16,
        aligner_layers=6,
        text_width=4096,
        text_length=128,
        fusion="late",
        cross_residual="normed",
        text_masked=False,
        layers="plain",
        positions="learned",
        dropout=0.1,
        prediction="ddpm",
        head_conditioning="joint",
        head_width=1536,
        head_layers=8,
    )


def next() -> TransformerConfig:  # noqa: A001  (what comes after `paper`)
    """The shipped nano's choices at about the paper's size: 684M parameters.

    Text in the sequence of encoder and decoder, rotary positions, normalised queries and keys, gated MLPs, no
    dropout, hidden padding, and a flow head of 47M in place of a ddpm head of 104M. What each rests on, which
    is little so far: docs/study.md.
    Source: trials on nano. Hardware: 2.7 GB of weights in fp32. Expected: not trained at this size.
    """
    return replace(
        paper(),
        encoder_layers=16,
        decoder_layers=32,
        cross_layers=0,
        aligner_layers=2,
        fusion="joint",
        cross_residual="prenorm",
        text_masked=True,
        layers="gated",
        positions="rotary",
        dropout=0.0,
        prediction="flow",
        head_width=1024,
    )


def base() -> TransformerConfig:
    """The released code's smaller shape, `fluid_base`: 406.7M parameters.

    Hardware: 1.6 GB of weights in fp32. Expected: nothing known; no weights were released.
    """
    return replace(paper(), width=768, num_heads=12, encoder_layers=12, decoder_layers=12, cross_layers=12)


def huge() -> TransformerConfig:
    """The released code's larger shape, `fluid_huge`: 1,414M parameters.

    Hardware: 5.7 GB of weights in fp32. Expected: nothing known; no weights were released.
    """
    return replace(paper(), width=1280, encoder_layers=20, decoder_layers=20, cross_layers=20)


def nano() -> TransformerConfig:
    """The shape of the shipped nano model: 9.5M parameters, text inside the trunk.

    Hardware: two cores. Expected: see `pretrain-nano` of train.
    """
    return TransformerConfig()
