"""What caption may be told: where captions come from, who rewrites them, and which are kept."""

from dataclasses import dataclass, field
from pathlib import Path

from lightgen.core.errors import UserError
from lightgen.data.cleaning import CleaningConfig
from lightgen.ports.captioner import EndpointCaptionerConfig, ModelCaptionerConfig
from lightgen.ports.embedding import TEXT_KINDS, EmbedderConfig
from lightgen.ports.grammar import GrammarConfig
from lightgen.stages.curate_config import SelectionConfig
from lightgen.stages.distill import NanoPrompts


@dataclass(frozen=True, kw_only=True)
class CaptionConfig:
    """Where captions come from, and which are kept.

    Attributes:
        source: grammar that is drawn from; None where inputs are handed in.
        recaption: whether the inputs are images, and get new captions; the captioner must see.
        column: field of JSON lines, or column of parquet and of public sets, that holds the captions; None =
            the first there is of prompt, caption, text.
        num_per_input: most captions taken of each input; None = all.
        max_bad_share: share of lines, rows or members that may be no captions, 0 to 1.
        captioner: model or server that expands captions, or describes images; None = they stay.
        cleaning: what a caption must be; of it only max_chars and max_bytes hold for `recaption`.
        exclude: files or artifacts of prompts, such as those of an evaluation, none of which may occur,
            however spelt (see `held_out_hashes`); paraphrases are not found. Not with `recaption`.
        selection: how many of the clean captions are taken; None of them = all. Not with `recaption`.
        embedder: what tells diversity; must read texts.
        measure: whether the diversity of what is taken, and what it names, go into the manifest; that takes
            embeddings of all.
        cells: k-means cells for coverage and entropy; 0 = none (others need faiss).
        shard_size: captions or images per shard of a captioner, what a killed run asks for again at most.
        seed: of the captioner's answers, and of cells.
    """

    source: NanoPrompts | GrammarConfig | None = None
    recaption: bool = False
    column: str | None = None
    num_per_input: int | None = None
    max_bad_share: float = 0.05
    captioner: ModelCaptionerConfig | EndpointCaptionerConfig | None = None
    cleaning: CleaningConfig = field(default_factory=CleaningConfig)
    exclude: tuple[Path, ...] = ()
    selection: SelectionConfig = field(default_factory=SelectionConfig)
    embedder: EmbedderConfig = field(default_factory=EmbedderConfig)
    measure: bool = True
    cells: int = 0
    shard_size: int = 500
    seed: int = 0

    def needs_embeddings(self) -> bool:
        """Whether captions are embedded."""
        by_embedding = self.selection.num is not None and self.selection.how != "random"
        return not self.recaption and (self.measure or by_embedding)

    def check(self) -> None:
        """Raises UserError: a number out of its range, or parts that do not go together."""
        self.cleaning.check()
        numbers = (self.num_per_input, self.selection.num)
        if any(number is not None and number < 1 for number in numbers) or self.shard_size < 1:
            raise UserError(
                f"caption: got num-per-input {numbers[0]}, selection.num {numbers[1]}, shard-size "
                f"{self.shard_size}, allowed: whole numbers from 1"
            )
        if not 0 <= self.max_bad_share <= 1 or self.cells < 0:
            raise UserError(
                f"caption: got max-bad-share {self.max_bad_share:g}, cells {self.cells}, "
                "allowed: 0 to 1, from 0"
            )
        if self.recaption and self.captioner is None:
            raise UserError("caption: got recaption without a captioner, allowed: one that sees images")
        if self.recaption and (self.exclude or self.selection.num is not None):
            raise UserError(
                "caption: got recaption with exclude or selection.num, allowed: those of captions"
            )
        if self.needs_embeddings() and self.embedder.kind not in TEXT_KINDS:
            raise UserError(
                f"--embedder.kind: got {self.embedder.kind}, allowed: {', '.join(TEXT_KINDS)}: they read"
            )
