"""Captions become features of a text encoder, each distinct one once; and training finds them again."""

import importlib.util
import json
from array import array
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from lightgen.core.artifact import Artifact, Workspace
from lightgen.core.config import digest
from lightgen.core.errors import UserError
from lightgen.core.progress import say
from lightgen.data.latents import LatentShards
from lightgen.data.text_features import TextFeatures, TextRow, caption_hash, write_text_shard
from lightgen.models.shape import TransformerConfig
from lightgen.ports.text import T5TextEncoder, load_text_encoder, outline_text_encoder
from lightgen.stages.checkpoint import has_part, part_digest, pick_device, require_part
from lightgen.stages.engine import EngineConfig, Writer, cut, write_shards

FOLDER = "text"
_MOST_TOKENS = 1 << 16


@dataclass(frozen=True, kw_only=True)
class TextConfig:
    """How captions are encoded, by the text encoder of the start.

    Attributes:
        stored: whether they are.
        batch_size: captions per pass, of about one length.
        shard_size: distinct captions per shard.
        precision: of the weights and of what is stored.
        offload: whether weights stay in the CPU's memory and come to the accelerator one layer at a time.
        length: most tokens of a caption; None is what the start's transformer reads, or without one its
            tokenizer's limit.
        padded: whether each caption is filled up to `length` and the features of the padding are stored too,
            as a transformer reads them whose text is not masked (the released one).
    """

    stored: bool = False
    batch_size: int = 64
    shard_size: int = 1000
    precision: Literal["bf16", "fp32"] = "bf16"
    offload: bool = False
    length: int | None = None
    padded: bool = False

    def check(self) -> None:
        """Raises UserError: a number out of range."""
        if self.batch_size < 1 or self.shard_size < 1 or (self.length is not None and self.length < 1):
            raise UserError(
                f"encode: got text batch_size {self.batch_size}, shard_size {self.shard_size}, length "
                f"{self.length}, allowed: from 1"
            )

    def recorded(self) -> "TextConfig":
        """The config without what changes no features: a run begun in one way may be ended in another."""
        return replace(self, offload=False) if self.stored else TextConfig()


def text_encoder_digest(checkpoint: Artifact) -> str:
    """SHA-256 [64 hex digits] of a checkpoint's text encoder and tokenizer; of one digest, equal features.

    Settings of the tokenizer do not count: transformers writes them anew with each of its versions, and of
    them only the most tokens matter, which the features know.
    """
    files = require_part(checkpoint, "tokenizer").manifest["files"]
    settings = ("tokenizer/tokenizer_config.json", "tokenizer/special_tokens_map.json")
    names = sorted(name for name in files if name.startswith("tokenizer/") and name not in settings)
    tokenizer = {name: files[name]["sha256"] for name in names}
    return digest({"encoder": part_digest(checkpoint, "text_encoder"), "tokenizer": tokenizer})


def start_outline(start: Artifact) -> T5TextEncoder:
    """Text encoder of a start, of weights without storage."""
    folder = require_part(start, "text_encoder").path
    return outline_text_encoder(folder / "text_encoder", folder / "tokenizer")


def find_features(
    latents: Artifact, start: Artifact, shape: TransformerConfig, text: T5TextEncoder
) -> TextFeatures | None:
    """Features of the captions of latents as a transformer reads them; None where there are none of use.

    Args:
        latents: artifact, perhaps with features.
        start: checkpoint with the text encoder of the training.
        shape: of the transformer.
        text: the text encoder, or its outline.

    Raises:
        UserError: the features are those of another text encoder.
    """
    facts = latents.manifest.get("text_features")
    if facts is None:
        return None
    made_by, expected = latents.manifest.get("text_encoder"), text_encoder_digest(start)
    if made_by != expected:
        raise UserError(
            f"{latents.path}: text features by text encoder {str(made_by)[:12]}, allowed: {expected[:12]}, "
            f"that of {start.path.name}; encode with it, or without text"
        )
    limit, wanted = int(facts["length"]), min(shape.text_length, text.max_length)
    padded_to = limit if facts["padded"] else None
    if shape.text_masked:
        # a limit that cuts nothing is as good as any other
        is_fit = limit == wanted or (facts["cut"] == 0 and facts["longest"] <= wanted)
    else:
        is_fit = padded_to == shape.text_length == wanted
    if not is_fit:
        kind = "with its padding" if facts["padded"] else "without padding"
        needed = f"{wanted} {'or fewer' if shape.text_masked else 'with padding'}"
        say(
            f"train: text features of {limit} tokens {kind} are not used, this transformer reads {needed}; "
            "the text encoder reads along"
        )
        return None
    return TextFeatures(latents.path / FOLDER, padded_to)


def find_length(config: TextConfig, checkpoint: Artifact) -> int:
    """Most tokens of a caption; looked at before anything is encoded.

    Raises:
        UserError: a length that the tokenizer of the start does not take, or what offload needs is missing.
    """
    if config.offload and importlib.util.find_spec("accelerate") is None:
        raise UserError(
            "encode: got text.offload without accelerate, allowed: pip install 'lightgen[teacher]'"
        )
    most, length = min(start_outline(checkpoint).max_length, _MOST_TOKENS), config.length
    if length is None:
        length = most
        if has_part(checkpoint, "transformer"):
            shape = json.loads((checkpoint.path / "transformer" / "config.json").read_text(encoding="utf-8"))
            length = min(length, int(shape["text_length"]))
    if length > most:
        got = f"encode: got text length {length}"
        raise UserError(f"{got}, allowed: up to {most}, as the tokenizer of the start says")
    return length


def encode_text(
    config: TextConfig, length: int, workspace: Workspace, checkpoint: Artifact, engine: EngineConfig
) -> tuple[dict[str, int], dict[str, Any]]:
    """(Counts, what the manifest says) of the features of all captions of the latents in a workspace."""
    rows = _distinct(LatentShards(workspace.path))
    if not len(rows):
        raise UserError("encode: got text and no caption that is not blank, allowed: at least one")
    shards = tuple(rows[part.start : part.stop] for part in cut(len(rows), config.shard_size))
    names = [f"{FOLDER}/text-{number:05d}.safetensors" for number in range(len(shards))]
    (workspace.path / FOLDER).mkdir(exist_ok=True)
    work = TextWork(config, str(checkpoint.path.absolute()), str(workspace.path), length, shards)
    write_shards(engine, workspace, "encode text", names, list(map(len, shards)), work, "captions")
    found = TextFeatures(workspace.path / FOLDER, length if config.padded else None)
    if found.num_cut:
        say(f"encode: {found.num_cut} of {len(found)} captions are cut to {length} tokens")
    facts = {"length": length, "padded": config.padded, "longest": found.longest, "cut": found.num_cut}
    return {"captions": len(found), "cut_captions": found.num_cut}, facts


def _distinct(latents: LatentShards) -> np.ndarray:
    """Row [N] int64 of the first appearance of each caption that is not blank, from the shortest on.

    Captions of about one length make full batches.
    """
    # 24 bytes a row: sets and tuples of millions of captions would take gigabytes
    hashes, letters = bytearray(), array("q")
    for row in latents.each_row():
        caption = row["caption"]
        hashes += caption_hash(caption)
        letters.append(len(caption) if caption.strip() else 0)
    keys = np.frombuffer(hashes, dtype=f"S{len(hashes) // len(letters)}")
    lengths = np.frombuffer(letters, dtype=np.int64)
    first = np.unique(keys, return_index=True)[1]
    first = first[lengths[first] > 0]
    return first[np.lexsort((first, lengths[first]))].astype(np.int64)


@dataclass(frozen=True)
class TextWork:
    """Shards of features.

    Attributes:
        config: batches and precision.
        checkpoint: folder with text encoder and tokenizer.
        latents: folder whose tables hold the captions.
        length: most tokens of a caption.
        shards: for each, rows of the latents with its captions.
    """

    config: TextConfig
    checkpoint: str
    latents: str
    length: int
    shards: tuple[np.ndarray, ...]

    def open(self) -> Writer:
        """Function that writes a shard; see `Work`."""
        folder, device = Path(self.checkpoint), pick_device()
        dtype = torch.bfloat16 if self.config.precision == "bf16" else torch.float32
        loaded = load_text_encoder(folder / "text_encoder", folder / "tokenizer", dtype)
        encoder = T5TextEncoder(loaded.encoder.to(dtype), loaded.tokenizer, self.length)  # pyright: ignore[reportArgumentType]
        if self.config.offload:
            encoder.offload(device)
        else:
            encoder.encoder.to(device)  # pyright: ignore[reportArgumentType]
        latents = LatentShards(Path(self.latents))

        def write(path: Path, number: int, advance: Callable[[int], None]) -> None:
            captions = [str(latents.row(row)["caption"]) for row in self.shards[number].tolist()]
            write_text_shard(path, self._rows(encoder, captions, advance))

        return write

    def _rows(
        self, encoder: T5TextEncoder, captions: list[str], advance: Callable[[int], None]
    ) -> list[TextRow]:
        """Rows of the captions, in their order; those of one number of tokens are encoded together."""
        lengths = encoder.lengths(captions)
        by_length = sorted(range(len(captions)), key=lambda place: (lengths[place], place))
        rows: dict[int, TextRow] = {}
        for part in cut(len(captions), self.config.batch_size):
            places = by_length[part.start : part.stop]
            padded_to = self.length if self.config.padded else None
            features, mask = encoder.encode([captions[place] for place in places], padded_to)
            for place, row, real in zip(places, features.cpu(), mask.sum(dim=1).tolist(), strict=True):
                kept = row if self.config.padded else row[:real]
                rows[place] = TextRow(captions[place], kept.clone(), real, lengths[place] > self.length)
            advance(len(places))
        return [rows[place] for place in range(len(captions))]
