"""What curate may be told: limits of a picture, which pictures are the same, how many are taken."""

from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from lightgen.core.errors import UserError
from lightgen.data.duplicates import MAX_BITS
from lightgen.data.select import How
from lightgen.ports.embedding import IMAGE_KINDS, EmbedderConfig
from lightgen.ports.safety import SafetyConfig
from lightgen.ports.scorer import Kind, ScorerConfig


@dataclass(frozen=True, kw_only=True)
class LimitsConfig:
    """What a picture must be to be taken.

    Attributes:
        min_side: px of the shorter side.
        max_aspect: how many times longer the longer side may be; None = any.
        min_contrast: standard deviation of the luma, 0 to 127.5; below it a picture is blank.
        min_entropy: of the histogram of the luma, 0 to 8 bits; below it a picture is blank.
        min_sharpness: variance of the Laplacian of the luma, from 0; None = any.
        columns: of each named column least and most, None = any: `clip_score 0.7 None aesthetic 5 None`.
            A column is a number in a record's JSON, or one that curate measures, which goes first.
        without_column: whether a record that lacks such a column is left out.
        max_unsafe: probability above which a picture counts as unsafe, where a model checks that.
    """

    min_side: int = 64
    max_aspect: float | None = 4.0
    min_contrast: float = 3.0
    min_entropy: float = 0.1
    min_sharpness: float | None = None
    columns: tuple[tuple[str, float | None, float | None], ...] = ()
    without_column: Literal["reject", "take"] = "reject"
    max_unsafe: float = 0.5


@dataclass(frozen=True, kw_only=True)
class TwinsConfig:
    """Which pictures count as the same, and which of them is kept.

    Attributes:
        max_bits: most bits of 64 in which perceptual hashes of the same picture differ, up to 11; they see no
            colour but how bright it is. None = not compared.
        min_cosine: least cosine between embeddings of the same picture; None = not compared.
        keep: column whose highest value is kept, also where a prompt has too many; None = the earliest.
        per_prompt: most pictures of one prompt; None = any number.
    """

    max_bits: int | None = 4
    min_cosine: float | None = None
    keep: str | None = None
    per_prompt: int | None = None


@dataclass(frozen=True, kw_only=True)
class SelectionConfig:
    """How many of the pictures that are left are taken.

    Attributes:
        num: how many; None = all.
        how: the most diverse by their embeddings (k-center, facility, balanced), or any (random).
        seed: of what is drawn.
    """

    num: int | None = None
    how: How = "k-center"
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class CurateConfig:
    """Which pictures are taken.

    Attributes:
        limits: what each must be.
        twins: which are the same.
        selection: how many are taken in the end.
        odd_images: what is CMYK, of 16 bits, animated or turned by EXIF: left out, or made a plain picture
            (of an animation the first frame).
        convert_to: file format of a picture made plain; jpg of quality 95.
        score: scorers that run here, whose answers become columns as those of `rank` do (clip_score...).
        scorer: their settings; `score` says the kinds, not this.
        safety: model that checks what a picture shows; none unless named.
        embedder: what tells near duplicates and diversity, where that is asked for.
        shard_size: images per shard, the unit of work that a killed run does not repeat.
    """

    limits: LimitsConfig = field(default_factory=LimitsConfig)
    twins: TwinsConfig = field(default_factory=TwinsConfig)
    selection: SelectionConfig = field(default_factory=SelectionConfig)
    odd_images: Literal["quarantine", "convert"] = "quarantine"
    convert_to: Literal["png", "jpg"] = "png"
    score: tuple[Kind, ...] = ()
    scorer: ScorerConfig = field(default_factory=ScorerConfig)
    safety: SafetyConfig = field(default_factory=SafetyConfig)
    embedder: EmbedderConfig = field(default_factory=EmbedderConfig)
    shard_size: int = 500

    def needs_embeddings(self) -> bool:
        """Whether the decision looks at embeddings."""
        by_embedding = self.selection.num is not None and self.selection.how != "random"
        return self.twins.min_cosine is not None or by_embedding

    def columns(self) -> tuple[str, ...]:
        """Names of the columns that the decision reads."""
        names = [name for name, _, _ in self.limits.columns]
        return tuple(dict.fromkeys([*names, *([self.twins.keep] if self.twins.keep else [])]))

    def check(self) -> None:
        """Raises UserError: a number is out of range, or a threshold means nothing."""
        limits, twins, selection = self.limits, self.twins, self.selection
        ranges: list[tuple[str, float | None, float, float]] = [
            ("limits.min-side", limits.min_side, 0, 1 << 31),
            ("limits.max-aspect", limits.max_aspect, 1, np.inf),
            ("limits.min-contrast", limits.min_contrast, 0, 127.5),
            ("limits.min-entropy", limits.min_entropy, 0, 8),
            ("limits.min-sharpness", limits.min_sharpness, 0, np.inf),
            ("limits.max-unsafe", limits.max_unsafe, 0, 1),
            ("twins.max-bits", twins.max_bits, 0, MAX_BITS),
            ("twins.min-cosine", twins.min_cosine, 0, 1),
            ("twins.per-prompt", twins.per_prompt, 1, np.inf),
            ("selection.num", selection.num, 1, np.inf),
            ("shard-size", self.shard_size, 1, np.inf),
            ("safety.batch-size", self.safety.batch_size, 1, np.inf),
        ]
        for name, value, least, most in ranges:
            if value is not None and not least <= value <= most:
                allowed = f"from {least:g}" if most >= 1 << 31 else f"{least:g} to {most:g}"
                raise UserError(f"--{name}: got {value:g}, allowed: {allowed}")
        if self.needs_embeddings() and self.embedder.kind not in IMAGE_KINDS:
            raise UserError(f"--embedder.kind: got {self.embedder.kind!r}, allowed: {', '.join(IMAGE_KINDS)}")
        for name, least, most in limits.columns:
            is_range = (least, most) != (None, None)
            if not name or not is_range or (least is not None and most is not None and least > most):
                raise UserError(
                    f"--limits.columns: got {name!r} {least} {most}, allowed: NAME LEAST MOST, or None"
                )
