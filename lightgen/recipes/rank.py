"""Recipes of rank: what the score of an image is."""

from lightgen.stages.rank import RankConfig


def verdict() -> RankConfig:
    """Score 1 for an image that shows what its prompt asks for, else 0, plus a tenth of the confidence.

    Source: GenEval's rules with the nano detector. Hardware: one core. Time: 20 seconds for 1,000 images.
    """
    return RankConfig(by="verdict")


def source() -> RankConfig:
    """Score by directory, the first one highest: a perfect teacher's picture beats the student's own.

    Source: the paper's pairing. Hardware: one core. Time: seconds.
    """
    return RankConfig(by="source")
