"""Captions that a model writes, in shards: of shorter captions, and of images."""

import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lightgen.core.artifact import Workspace
from lightgen.core.directory import whole_file
from lightgen.core.draws import draw_key
from lightgen.core.prompt import Prompt
from lightgen.data.answers import caption_of_answer, description_of_answer
from lightgen.data.images import CorruptRecord, EncodedRecord, ImageShards, write_encoded_shard
from lightgen.data.prompts import PromptLines
from lightgen.stages.caption_inputs import line_of
from lightgen.stages.captioner import CaptionerPlace
from lightgen.stages.engine import EngineConfig, Writer, cut, write_shards
from lightgen.stages.inputs import ImageInputs, open_images

FALLBACK = "caption_fallback"
_BATCH = 64  # texts or images handed to a captioner at once; it has batches of its own
_PARTS = "state/expanded"
_CHECKS = ("tag", "include", "exclude")


@dataclass(frozen=True)
class Limits:
    """Longest answer that is taken, characters and bytes; None = no such limit."""

    max_chars: int | None
    max_bytes: int | None


@dataclass(frozen=True)
class ExpandWork:
    """Shards of expanded captions.

    Attributes:
        place: of the captioner.
        source: file of the captions.
        limits: of answers.
        shard_size: captions per shard.
        seed: of the answers, with the number of each caption.
    """

    place: CaptionerPlace
    source: Path
    limits: Limits
    shard_size: int
    seed: int

    def open(self) -> Writer:
        """Function that writes a shard; see `Work`."""
        captioner, prompts = self.place.load(), PromptLines(self.source)
        shards = cut(len(prompts), self.shard_size)

        def write(path: Path, number: int, advance: Callable[[int], None]) -> None:
            with whole_file(path) as temporary, temporary.open("wb") as file:
                for part in _chunks(shards[number]):
                    short = prompts[part.start : part.stop]
                    seeds = [_seed(self.seed, i) for i in part]
                    answers = captioner.expand([prompt.prompt for prompt in short], seeds)
                    for prompt, answer in zip(short, answers, strict=True):
                        file.write(self._line(prompt, answer))
                    advance(len(part))

        return write

    def _line(self, prompt: Prompt, answer: str) -> bytes:
        text, reason = caption_of_answer(prompt, answer, self.limits.max_chars, self.limits.max_bytes)
        if reason is not None:
            return line_of(prompt, **{FALLBACK: reason})
        original = prompt.original_prompt or prompt.prompt
        return line_of(replace(prompt, prompt=text, original_prompt=original))


def expand(
    engine: EngineConfig, workspace: Workspace, work: ExpandWork, total: int, target: str
) -> dict[str, int]:
    """How many captions stayed as they were, by reason; they are in the target file with the expanded ones.

    What an interrupted run has expanded is not asked for again.
    """
    if not workspace.has(target):
        shards = cut(total, work.shard_size)
        names = [f"{_PARTS}/{number:06d}.jsonl" for number in range(len(shards))]
        (workspace.path / _PARTS).mkdir(parents=True, exist_ok=True)
        write_shards(engine, workspace, "expand", names, [len(s) for s in shards], work, "captions")
        with workspace.file(target) as temporary, temporary.open("wb") as file:
            for name in names:
                file.write((workspace.path / name).read_bytes())
        workspace.remove(_PARTS)
    counts: Counter[str] = Counter()
    with (workspace.path / target).open("rb") as file:
        for line in file:
            reason = json.loads(line).get(FALLBACK)
            if reason is not None:
                counts[reason] += 1
    return dict(sorted(counts.items()))


@dataclass(frozen=True)
class RecaptionWork:
    """Shards of images with new captions.

    Attributes:
        place: of the captioner.
        images: directories of all of them.
        limits: of answers.
        shard_size: images per shard.
        seed: of the answers, with the number of each image.
    """

    place: CaptionerPlace
    images: tuple[str, ...]
    limits: Limits
    shard_size: int
    seed: int

    def open(self) -> Writer:
        """Function that writes a shard; see `Work`."""
        captioner, inputs = self.place.load(), open_images(self.images, verify=False)
        shards = cut(len(inputs), self.shard_size)

        def records(shard: range, advance: Callable[[int], None]) -> Iterator[EncodedRecord]:
            for part in _chunks(shard):
                read = [(i, *found) for i in part if (found := _read(inputs, i)) is not None]
                images = [image for _, image, _ in read]
                answers = captioner.describe(images, [_seed(self.seed, i) for i, _, _ in read])
                for (i, _, record), answer in zip(read, answers, strict=True):
                    yield replace(record, key=inputs.key(i), meta=self._meta(record, answer))
                advance(len(part))

        def write(path: Path, number: int, advance: Callable[[int], None]) -> None:
            write_encoded_shard(path, records(shards[number], advance))

        return write

    def _meta(self, record: EncodedRecord, answer: str) -> dict[str, Any]:
        """What is told of the image: its new caption; what it was to show goes with the old one."""
        old = {key: value for key, value in record.meta.items() if key != FALLBACK}
        text, reason = description_of_answer(answer, self.limits.max_chars, self.limits.max_bytes)
        if reason is not None:
            return {**old, FALLBACK: reason}
        original = old.get("original_prompt", old["prompt"])
        rest = {key: value for key, value in old.items() if key not in _CHECKS}
        return {**rest, "prompt": text, "original_prompt": original}


def _read(inputs: ImageInputs, i: int) -> tuple[Any, EncodedRecord] | None:
    """(Image, record as stored), or None where it cannot be read."""
    try:
        return inputs[i].image, inputs.encoded(i)
    except CorruptRecord:
        return None


def recaption(
    engine: EngineConfig, workspace: Workspace, work: RecaptionWork, inputs: ImageInputs
) -> tuple[int, dict[str, int], dict[str, int]]:
    """(Images written, how many kept their caption by reason, how many are left out by reason).

    Those left out are in `dropped.jsonl`, each with its key and reason.
    """
    shards = cut(len(inputs), work.shard_size)
    names = [f"images-{number:05d}.tar" for number in range(len(shards))]
    write_shards(engine, workspace, "caption", names, [len(shard) for shard in shards], work)
    written = ImageShards(workspace.path)
    kept: Counter[str] = Counter()
    lost, at = [], 0
    for i in range(len(inputs)):  # both are in one order
        if at == len(written) or written.key(at) != inputs.key(i):
            lost.append(inputs.key(i))
            continue
        reason = written.meta(at).get(FALLBACK)
        if reason is not None:
            kept[reason] += 1
        at += 1
    assert at == len(written), (at, len(written))
    skipped = [(f"{each.shard}/{each.name}", each.reason) for each in inputs.skipped]
    with workspace.file("dropped.jsonl") as temporary, temporary.open("wb") as file:
        for origin, reason in (*((key, "cannot be read") for key in lost), *skipped):
            file.write(json.dumps({"origin": origin, "reason": reason}).encode() + b"\n")
    dropped = Counter({"cannot be read": len(lost), "no record": len(skipped)})
    return len(written), dict(sorted(kept.items())), {name: n for name, n in dropped.items() if n}


def _seed(seed: int, number: int) -> int:
    return draw_key(seed, "caption", number) >> 31  # 32 bits, which every server can hold


def _chunks(shard: range) -> list[range]:
    return [range(at, min(at + _BATCH, shard.stop)) for at in range(shard.start, shard.stop, _BATCH)]
