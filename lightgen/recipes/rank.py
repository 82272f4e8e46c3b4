"""Recipes of rank: what the score of an image is."""

from lightgen.ports.scorer import ScorerConfig
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


def clip_score() -> RankConfig:
    """Score by CLIPScore, how well an image fits its prompt, with OpenAI's ViT-L/14.

    Source: arXiv 2104.08718, without the words that the paper puts before a caption. Hardware: a GPU with
    4 GB, or cores. Time: not run here; the weights (1.7 GB) must be in the Hub's cache.
    """
    return RankConfig(by="scorer", scorer=ScorerConfig(kind="clip-score"))


def pick_score() -> RankConfig:
    """Score by PickScore, which of a prompt's images people would pick, a CLIP ViT-H/14.

    Source: arXiv 2305.01569. Hardware: a GPU with 8 GB, or cores. Time: not run here; the weights (3.9 GB)
    must be in the Hub's cache.
    """
    return RankConfig(by="scorer", scorer=ScorerConfig(kind="pick-score"))


def hps_v2() -> RankConfig:
    """Score by HPSv2, people's preference again, from the released file that `--scorer.model` names.

    Source: arXiv 2306.09341. Hardware: a GPU with 8 GB, or cores. Time: not run here; the file (4 GB) is
    HPS_v2.1_compressed.pt of xswu/HPSv2, image processor and tokenizer are those of CLIP-H.
    """
    return RankConfig(by="scorer", scorer=ScorerConfig(kind="hps-v2"))


def aesthetic() -> RankConfig:
    """Score by LAION's aesthetic predictor, how much people like a picture; `--scorer.head` names its file.

    Source: github christophschuhmann/improved-aesthetic-predictor. Hardware: a GPU with 4 GB, or cores. Time:
    not run here; the CLIP (1.7 GB) must be in the Hub's cache.
    """
    return RankConfig(by="scorer", scorer=ScorerConfig(kind="aesthetic"))
