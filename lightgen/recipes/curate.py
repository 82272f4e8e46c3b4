"""Recipes of curate: which pictures are worth keeping."""

from lightgen.ports.embedding import EmbedderConfig
from lightgen.ports.safety import SafetyConfig
from lightgen.ports.scorer import ScorerConfig
from lightgen.stages.curate_config import CurateConfig, LimitsConfig, SelectionConfig, TwinsConfig


def nano() -> CurateConfig:
    """Pictures of the nano world that are neither blank nor doubles, by hash and by the built-in embedder.

    Hardware: one core. Time: about a minute for 5,000 images of 128 px.
    """
    return CurateConfig(twins=TwinsConfig(min_cosine=0.99), embedder=EmbedderConfig(kind="nano"))


def public() -> CurateConfig:
    """A public set as it is: sides from 256 px, up to 1:3, not blank, no doubles; odd files are made plain.

    Hardware: cores. Time: about 20 ms an image of a megapixel and core by estimate.
    """
    return CurateConfig(limits=LimitsConfig(min_side=256, max_aspect=3.0), odd_images="convert")


def safe() -> CurateConfig:
    """As `public`, without what a classifier of the user's (`--safety.model`) takes for unsafe.

    Hardware: a GPU with 4 GB, or cores. Time: not run here; the weights (0.3 GB) must be in the Hub's cache.
    """
    return CurateConfig(
        limits=LimitsConfig(min_side=256, max_aspect=3.0),
        odd_images="convert",
        safety=SafetyConfig(model="Falconsai/nsfw_image_detection"),
    )


def diverse() -> CurateConfig:
    """As `nano`, and of these the 1,000 most diverse by k-center (`--selection.num`, `--selection.how`).

    Hardware: one core. Time: about a minute for 5,000 images of 128 px.
    """
    return CurateConfig(
        twins=TwinsConfig(min_cosine=0.99),
        selection=SelectionConfig(num=1_000, how="k-center"),
        embedder=EmbedderConfig(kind="nano"),
    )


def scored() -> CurateConfig:
    """Pictures with CLIPScore from 0.6 and aesthetics from 5, columns that `rank` wrote; the best of doubles.

    Source: a cosine of 0.24, below the 0.28 of LAION-5B's filter as other captions score lower; LAION's
    aesthetic subsets begin at 4.5 to 6. Hardware: cores. Time: about 20 ms an image of a megapixel and core
    by estimate.
    """
    return CurateConfig(
        limits=LimitsConfig(min_side=256, columns=(("clip_score", 0.6, None), ("aesthetic", 5.0, None))),
        twins=TwinsConfig(keep="aesthetic"),
    )


def score_here() -> CurateConfig:
    """As `scored`, but CLIPScore and aesthetics are found here; `--scorer.head` names the head's file.

    Hardware: a GPU with 4 GB, or cores. Time: not run here; the weights (1.7 GB) must be in the Hub's cache.
    """
    return CurateConfig(
        limits=LimitsConfig(min_side=256, columns=(("clip_score", 0.6, None), ("aesthetic", 5.0, None))),
        twins=TwinsConfig(keep="aesthetic"),
        score=("clip-score", "aesthetic"),
        scorer=ScorerConfig(batch_size=64),
    )
