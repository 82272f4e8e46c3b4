"""Recipes of encode: which numbers turn images into latents."""

from lightgen.stages.encode import EncodeConfig


def nano() -> EncodeConfig:
    """Latents of 128 px images by the autoencoder of `--start` (the shipped one unless named).

    Hardware: one core. Time: about 1 minute for 5,000 images.
    """
    return EncodeConfig()


def paper_256() -> EncodeConfig:
    """Latents of the middle square of every image at 256 px, for `pretrain-256`, by the start's autoencoder.

    Source: arXiv 2503.08619, section 5.1. Hardware: one GPU. Time: half an hour per 2M images on an H200 by
    estimate. Disk: 131 GB for 2M images (mean and std).
    """
    return EncodeConfig(batch_size=64, shard_size=4_000, precision="bf16", size=256)


def paper_512() -> EncodeConfig:
    """Latents of the middle square of every image at 512 px, for `pretrain-512`; else as `paper-256`.

    Source: arXiv 2503.08619, section 5.1. Hardware: one GPU. Time: 2 hours per 2M images on an H200 by
    estimate. Disk: 524 GB for 2M images (mean and std).
    """
    return EncodeConfig(batch_size=16, shard_size=1_000, precision="bf16", size=512)


def paper_1024() -> EncodeConfig:
    """Latents of the middle square of every image at 1024 px, for `pretrain-1024`; else as `paper-256`.

    Source: the released fine-tuning script. Hardware: one GPU. Time: minutes for 10K images. Disk: 10 GB for
    10K images (mean and std).
    """
    return EncodeConfig(batch_size=4, shard_size=250, precision="bf16", size=1_024)
