"""Recipes of encode: which numbers turn images into latents."""

from dataclasses import replace

from lightgen.stages.encode import EncodeConfig
from lightgen.stages.encode_text import TextConfig

# of the released shape, whose text is not masked
_TEXT = TextConfig(length=128, padded=True)


def nano() -> EncodeConfig:
    """Latents of 128 px images by the autoencoder of `--start` (the shipped one unless named).

    Hardware: one core. Time: about 1 minute for 5,000 images.
    """
    return EncodeConfig()


def paper() -> EncodeConfig:
    """Latents of the middle square of every image at 256 and 512 px, read once, by the start's autoencoder.

    `pretrain-256` and `pretrain-512` each take the rows of their size. With `--text.stored True` text
    features are stored too, padded as the released shape reads them, 1 MiB for each distinct caption; without
    them the text encoder reads along in training.
    Source: arXiv 2503.08619, section 5.1. Hardware: one GPU. Time: 2.5 hours per 2M images on an H200 by
    estimate. Disk: 655 GB for 2M images (mean and std).
    """
    return EncodeConfig(batch_size=16, shard_size=1_000, precision="bf16", sizes=(256, 512), text=_TEXT)


def paper_256() -> EncodeConfig:
    """As `paper`, at 256 px alone.

    Source: arXiv 2503.08619, section 5.1. Hardware: one GPU. Time: half an hour per 2M images on an H200 by
    estimate. Disk: 131 GB for 2M images (mean and std).
    """
    return replace(paper(), batch_size=64, shard_size=4_000, sizes=(256,))


def paper_512() -> EncodeConfig:
    """As `paper`, at 512 px alone.

    Source: arXiv 2503.08619, section 5.1. Hardware: one GPU. Time: 2 hours per 2M images on an H200 by
    estimate. Disk: 524 GB for 2M images (mean and std).
    """
    return replace(paper(), sizes=(512,))


def paper_1024() -> EncodeConfig:
    """Latents of the middle square of every image at 1024 px, for `pretrain-1024`; else as `paper`.

    Source: the released fine-tuning script. Hardware: one GPU. Time: minutes for 10K images. Disk: 10 GB for
    10K images (mean and std).
    """
    return replace(paper(), batch_size=4, shard_size=250, sizes=(1_024,))
