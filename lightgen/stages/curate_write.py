"""What curate leaves behind: shards of the pictures that are taken, and a line for each that is not."""

import json
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from lightgen.core.directory import whole_file
from lightgen.data.images import CorruptRecord, EncodedRecord, Skipped, encode_image, write_encoded_shard
from lightgen.data.picture import decode_image
from lightgen.stages.curate_config import CurateConfig, LimitsConfig
from lightgen.stages.curate_decide import REASONS, Decision
from lightgen.stages.curate_measure import MEASURED, number_of, read_shard
from lightgen.stages.engine import Writer, cut
from lightgen.stages.inputs import ImageInputs, open_images

_LONGEST = 300  # characters of a prompt or a name in a line on what is left out

_DOUBLES = ("duplicate", "near duplicate")


@dataclass(frozen=True)
class TakenWork:
    """Shards of the pictures that are taken, their files as they were, with their measures as columns.

    Attributes:
        config: shard size, and what becomes of odd pictures.
        images: directories of all pictures.
        measures: folder of their measures.
        decision: file of the decision.
    """

    config: CurateConfig
    images: tuple[str, ...]
    measures: Path
    decision: Path

    def open(self) -> Writer:
        """Function that writes a shard; see `Work`."""
        inputs = open_images(self.images, verify=False)
        rows = load_decision(self.decision).taken
        shards, measures = cut(len(rows), self.config.shard_size), _Measures(self.measures, self.config)

        def records(number: int, advance: Callable[[int], None]) -> Iterator[EncodedRecord]:
            for i in rows[shards[number].start : shards[number].stop].tolist():
                yield _taken(self.config, inputs, i, measures.of(i))
                advance(1)

        def write(path: Path, number: int, advance: Callable[[int], None]) -> None:
            write_encoded_shard(path, records(number, advance))

        return write


class _Measures:
    """Measures of records, of which those of one shard are in memory."""

    def __init__(self, folder: Path, config: CurateConfig) -> None:
        self._folder, self._size = folder, config.shard_size
        self._number, self._lines = -1, list[dict[str, Any]]()

    def of(self, i: int) -> dict[str, Any]:
        """Those of record i; quick for rows in order."""
        number, place = divmod(i, self._size)
        if number != self._number:
            self._number, self._lines = number, list(read_shard(self._folder, number))
        return self._lines[place]


def save_decision(path: Path, decision: Decision) -> None:
    """Write a decision, whole or not at all."""
    with whole_file(path) as temporary:
        save_file({"reason": decision.reason, "other": decision.other}, temporary)


def load_decision(path: Path) -> Decision:
    """Decision that `save_decision` wrote."""
    tensors = load_file(path)
    return Decision(tensors["reason"], tensors["other"])


def _taken(config: CurateConfig, inputs: ImageInputs, i: int, measured: dict[str, Any]) -> EncodedRecord:
    """Record i as it is written: with new columns, and a new file where its picture was odd."""
    record = inputs.encoded(i)
    data, suffix, meta = record.data, record.suffix, {**record.meta, **columns_of(measured)}
    if "odd" in measured:
        data, suffix = encode_image(decode_image(data), config.convert_to), config.convert_to
        meta["converted"] = measured["odd"]
    return EncodedRecord(inputs.key(i), data, suffix, meta)


def columns_of(measured: dict[str, Any]) -> dict[str, Any]:
    """Those measures that become columns of a record."""
    return {name: measured[name] for name in MEASURED if name in measured}


def write_rejected(
    path: Path, config: CurateConfig, inputs: ImageInputs, decision: Decision, measures: Path
) -> int:
    """Number of lines of JSON written to a path, one for each item that is not taken.

    Each says `source` (number of the directory, from 0), `key`, `prompt` (its beginning, None where it cannot
    be read), `reason`, `detail`, `twin` (key of the picture that stands for it, or None), and `columns`: all
    that its JSON holds besides, and its measures.
    """
    known, lines = _Measures(measures, config), 0
    with path.open("w", encoding="utf-8") as file:
        for i in decision.left_out.tolist():
            line = _rejected(config.limits, inputs, i, decision, known.of(i))
            file.write(json.dumps(line, sort_keys=True, allow_nan=False) + "\n")
            lines += 1
        for source, reader in enumerate(inputs.sources):
            for skipped in reader.skipped:
                file.write(json.dumps(_skipped(source, skipped), sort_keys=True) + "\n")
                lines += 1
    return lines


def _rejected(
    limits: LimitsConfig, inputs: ImageInputs, i: int, decision: Decision, measured: dict[str, Any]
) -> dict[str, Any]:
    meta = _readable(inputs, i) if measured.get("reason") == "damaged" else inputs.meta(i)
    reason, other = REASONS[decision.reason[i]], int(decision.other[i])
    return {
        "source": inputs.locate(i)[0],
        "key": inputs.key(i),
        "prompt": None if "prompt" not in meta else meta["prompt"][:_LONGEST],
        "reason": reason,
        "detail": _why(limits, reason, other, measured),
        "twin": inputs.key(other) if reason in _DOUBLES else None,
        "columns": {k: v for k, v in meta.items() if k != "prompt"} | columns_of(measured),
    }


def _readable(inputs: ImageInputs, i: int) -> dict[str, Any]:
    """JSON of a damaged record, where at least that can be read and written again."""
    try:
        meta = inputs.meta(i)
        json.dumps(meta, allow_nan=False)
    except (CorruptRecord, ValueError, RecursionError):
        return {}
    return meta


def _skipped(source: int, skipped: Skipped) -> dict[str, Any]:
    """Line on a member that is in no record."""
    detail = f"{skipped.shard[:_LONGEST]}: {skipped.reason}"
    line = {"source": source, "key": skipped.name[:_LONGEST], "prompt": None, "reason": REASONS[0]}
    return {**line, "detail": detail, "twin": None, "columns": {}}


def _why(limits: LimitsConfig, reason: str, other: int, measured: dict[str, Any]) -> str:
    """What a record is, and what is allowed."""
    size = f"{measured.get('width')}x{measured.get('height')} px"
    if reason in ("no column", "out of range"):
        name, least, most = limits.columns[other]
        if reason == "no column":
            return name
        ends = " to ".join("any" if end is None else f"{end:g}" for end in (least, most))
        return f"{name} {number_of(measured, name):.4g}, allowed: {ends}"
    if reason == "unsafe":
        return f"{measured['unsafe']:.3f}, allowed: up to {limits.max_unsafe:g}"
    if reason == "blank":
        got = f"contrast {measured['contrast']:.3g}, entropy {measured['entropy']:.3g}"
        return f"{got}, allowed: from {limits.min_contrast:g} and {limits.min_entropy:g}"
    details = {
        "odd picture": str(measured.get("odd")),
        "too small": f"{size}, allowed: sides from {limits.min_side} px",
        "too long": f"{size}, allowed: sides up to 1:{limits.max_aspect}",
        "not sharp": f"{measured.get('sharpness', 0):.4g}, allowed: from {limits.min_sharpness}",
    }
    return details.get(reason, str(measured.get("problem", "")))


def gather_from(measures: Path, shard_size: int, scratch: Path) -> Callable[[np.ndarray], np.ndarray]:
    """Function that gives embeddings float16 [n, D] of rows [n], in their order.

    They lie in a nameless file of a folder, so that millions of them need no memory.
    """

    def gather(rows: np.ndarray) -> np.ndarray:
        order = np.argsort(rows, kind="stable")
        numbers, starts = np.unique(rows[order] // shard_size, return_index=True)
        found: np.ndarray | None = None
        for number, places in zip(numbers.tolist(), np.split(order, starts[1:]), strict=True):
            table = load_file(measures / f"{number:05d}.safetensors")["embeddings"]
            if found is None:
                with tempfile.TemporaryFile(dir=scratch) as file:
                    found = np.memmap(file, table.dtype, "w+", shape=(len(rows), table.shape[1]))
            found[places] = table[rows[places] - number * shard_size]
        assert found is not None
        return found

    return gather
