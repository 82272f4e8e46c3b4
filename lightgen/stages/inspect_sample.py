"""What is looked at of many images, and what is found: a keyed draw, so that it is the same each time."""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lightgen.core.draws import permuted
from lightgen.core.errors import UserError
from lightgen.core.progress import Progress, printable
from lightgen.data.duplicates import perceptual_hash
from lightgen.data.images import CorruptRecord
from lightgen.data.picture import fit, oddity, picture_size
from lightgen.evals.diversity import Diversity, diversity
from lightgen.ports.embedding import EmbedderConfig
from lightgen.stages.embedder import find_embedder, measure_diversity
from lightgen.stages.inputs import ImageInputs

MOST_TOLD = 20_000
MOST_SEEN = 1_000

_MOST_WORDS = 300
_MOST_COLUMNS = 64
_BATCH = 32
_CELLS, _ROWS_PER_CELL = 64, 10
_SIDES = {"nano": 128}  # px that pictures are embedded at; models scale them on from there


@dataclass(frozen=True)
class Told:
    """What is told of one record: short, whatever its JSON holds.

    Attributes:
        prompt: its beginning.
        words, letters: of the whole prompt.
        numbers: finite numbers of its JSON.
        names: generator, tag and the like, where they are words.
        classes: of the objects that its prompt asks for.
    """

    prompt: str
    words: int
    letters: int
    numbers: Mapping[str, float] = field(default_factory=dict)
    names: Mapping[str, str] = field(default_factory=dict)
    classes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Seen:
    """What the file of one image is: (height, width) in px, suffix, and what is odd about it."""

    size: tuple[int, int]
    suffix: str
    odd: str | None


@dataclass(frozen=True)
class Sample:
    """What was looked at of a set.

    Attributes:
        total: records of the set.
        told: of the records whose JSON was read, by number.
        seen: of those whose image was read too.
        unread: records that cannot be read, by reason.
    """

    total: int
    told: Mapping[int, Told]
    seen: Mapping[int, Seen]
    unread: Counter[str]

    def columns(self) -> dict[str, list[tuple[float, int]]]:
        """(Value, number of the record) of each column of numbers, by name, lowest first."""
        found: dict[str, list[tuple[float, int]]] = {}
        for i, told in self.told.items():
            for name, value in told.numbers.items():
                found.setdefault(name, []).append((value, i))
        return {name: sorted(values) for name, values in sorted(found.items())}

    def named(self, name: str) -> Counter[str]:
        """How often each generator, tag or the like occurs."""
        return Counter(told.names[name] for told in self.told.values() if name in told.names)


@dataclass(frozen=True)
class Embedded:
    """Embeddings of some of the set.

    Attributes:
        ids: [N] numbers of the records.
        rows: float32 [N, D] at unit length.
        hashes: uint64 [N], perceptual, of images alone.
        diversity: of the rows.
    """

    ids: Sequence[int]
    rows: np.ndarray
    hashes: np.ndarray | None
    diversity: Diversity


def drawn(total: int, most: int, seed: int) -> list[int]:
    """Numbers of at most `most` of the records in an order that follows from the seed."""
    return permuted(seed, "inspect", 0, np.arange(min(most, total)), total).tolist()


def look_at(inputs: ImageInputs, seed: int) -> Sample:
    """Sample of images: the JSON of up to MOST_TOLD records, the file of up to MOST_SEEN."""
    told: dict[int, Told] = {}
    seen: dict[int, Seen] = {}
    unread: Counter[str] = Counter()
    order = drawn(len(inputs), MOST_TOLD, seed)
    files = set(order[:MOST_SEEN])
    with Progress("inspect", len(order), "records", lines=False) as progress:
        for i in sorted(order):  # in the order of the files, which parquet wants
            progress.advance()
            try:
                if i not in files:
                    told[i] = told_of(inputs.meta(i))
                    continue
                record = inputs.encoded(i)
                odd = oddity(record.data)
                size = picture_size(record.data)
            except CorruptRecord as error:
                unread[error.reason] += 1
            except UserError as error:
                unread[str(error)] += 1
            else:
                told[i], seen[i] = told_of(record.meta), Seen(size, record.suffix, odd)
    return Sample(len(inputs), {i: told[i] for i in order if i in told}, seen, unread)


def told_of(meta: Mapping[str, Any]) -> Told:
    """What a contact sheet needs of a record's JSON."""
    prompt, include = meta["prompt"], meta.get("include")
    numbers: dict[str, float] = {}
    for name, value in meta.items():
        is_number = isinstance(value, int | float) and not isinstance(value, bool) and name != "seed"
        if is_number and len(numbers) < _MOST_COLUMNS:
            number = float(value) if abs(value) < 1e300 else math.inf
            if math.isfinite(number):
                numbers[readable(name, 40)] = number
    names = {
        name: readable(meta[name], 60) for name in ("generator", "tag") if isinstance(meta.get(name), str)
    }
    found = include if isinstance(include, list | tuple) else ()
    classes = [each.get("class") for each in found[:8] if isinstance(each, dict)]
    told = tuple(readable(each, 40) for each in classes if isinstance(each, str))
    return Told(readable(prompt, _MOST_WORDS), len(prompt.split()), len(prompt), numbers, names, told)


def readable(text: str, most: int) -> str:
    """Text in one line for people and terminals: cut, and without letters that do something."""
    kept = printable(" ".join(text[: 4 * most].split()))
    return kept if len(kept) <= most and len(text) <= 4 * most else kept[: most - 1] + "…"


def embed_images(
    inputs: ImageInputs, ids: Sequence[int], config: EmbedderConfig, seed: int
) -> Embedded | None:
    """Embeddings of those of the images that can be decoded; None where they are none.

    Raises:
        UserError: the embedder is not on this machine, or sees no images.
    """
    embedder, side = find_embedder(config).load(), _SIDES.get(config.kind, 224)
    kept: list[int] = []
    hashes: list[int] = []
    rows: list[np.ndarray] = []
    with Progress("inspect: embed", len(ids), "images", lines=False) as progress:
        for batch in _batches(inputs, sorted(ids), side, progress.advance):
            numbers, images, found = zip(*batch, strict=True)
            kept += numbers
            hashes += found
            rows.append(embedder.embed_images(np.stack(images)))
    if not kept:
        return None
    return _whole(kept, np.concatenate(rows), np.array(hashes, dtype=np.uint64), seed)


def embed_texts(texts: Mapping[int, str], config: EmbedderConfig, seed: int) -> Embedded | None:
    """Embeddings of texts, by number; None where there are none with a direction.

    Raises:
        UserError: the embedder is not on this machine, or reads no texts.
    """
    if not texts:
        return None
    rows = find_embedder(config).load().embed_texts(list(texts.values()))
    return _whole(list(texts), rows, None, seed)


def _whole(ids: list[int], rows: np.ndarray, hashes: np.ndarray | None, seed: int) -> Embedded | None:
    good = np.flatnonzero(np.linalg.norm(rows, axis=1) > 0.5)  # a caption of no words has no direction
    if not len(good):
        return None
    rows, num = rows[good], min(_CELLS, len(good) // _ROWS_PER_CELL)
    try:
        found = measure_diversity(rows, num, seed) if num > 1 else diversity(rows)
    except UserError:  # without faiss there are no cells, and the other numbers stay
        found = diversity(rows)
    return Embedded([ids[i] for i in good], rows, None if hashes is None else hashes[good], found)


def _batches(
    inputs: ImageInputs, ids: Sequence[int], side: int, advance: Callable[[], None]
) -> Iterator[list[tuple[int, np.ndarray, int]]]:
    """(Number, image uint8 [side, side, 3], perceptual hash) of what can be decoded, in batches."""
    batch: list[tuple[int, np.ndarray, int]] = []
    for i in ids:
        advance()
        try:
            image = inputs[i].image
        except CorruptRecord:
            continue
        batch.append((i, fit(image, side, side), perceptual_hash(image)))
        if len(batch) == _BATCH:
            yield batch
            batch = []
    if batch:
        yield batch
