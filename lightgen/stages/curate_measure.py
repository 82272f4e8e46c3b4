"""Measures of pictures, found once and kept beside the output, so that other limits cost no second look."""

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from lightgen.core.artifact import Artifact, begin_artifact
from lightgen.core.config import digest
from lightgen.core.directory import whole_file
from lightgen.core.errors import UserError
from lightgen.data.duplicates import perceptual_hash
from lightgen.data.images import CorruptRecord, EncodedRecord
from lightgen.data.picture import decode_image, oddity
from lightgen.evals.filters import looks
from lightgen.ports.protocols import Embedder, Scorer
from lightgen.ports.scorer import COLUMNS
from lightgen.stages.curate_config import CurateConfig
from lightgen.stages.curate_judges import Judges
from lightgen.stages.engine import EngineConfig, Writer, cut, write_shards
from lightgen.stages.inputs import ImageInputs, changed_at, open_images

NUMBERS = ("height", "width", "contrast", "entropy", "sharpness", "unsafe", *COLUMNS.values())
MEASURED = ("phash", *NUMBERS)

_WINDOW, _WINDOW_PIXELS = 64, 1 << 26  # images, and pixels, that are held at once for the models
_BROKEN = ("no picture", "damaged")  # of oddities, those that nothing can be made of


@dataclass(frozen=True)
class MeasureWork:
    """Shards of measures: lines of JSON, one per record, and embeddings float16 where they are asked for.

    Attributes:
        images: directories of the pictures.
        judges: what looks at them besides the filters.
        shard_size: records per shard.
    """

    images: tuple[str, ...]
    judges: Judges
    shard_size: int

    def open(self) -> Writer:
        """Function that writes a shard; see `Work`."""
        inputs = open_images(self.images, verify=False)
        shards, models = cut(len(inputs), self.shard_size), self.judges.load()

        def write(path: Path, number: int, advance: Callable[[int], None]) -> None:
            lines: list[dict[str, Any]] = []
            vectors: list[np.ndarray | None] = []
            for window in _windows(inputs, shards[number]):
                vectors += _judge(window, models.scorers, models.safety, models.embedder)
                lines += [line for line, _, _ in window]
                advance(len(window))
            if models.embedder is not None:
                _write_embeddings(path.with_suffix(".safetensors"), vectors, models.embedder.dim)
            text = "".join(json.dumps(line, allow_nan=False) + "\n" for line in lines)
            with whole_file(path) as temporary:  # last: where it is, the embeddings are
                temporary.write_text(text)

        return write


# What is known of a record so far, its picture where it has one, and its prompt.
_Item = tuple[dict[str, Any], np.ndarray | None, str]


def measure(
    config: CurateConfig,
    folder: Path,
    images: Sequence[str],
    inputs: ImageInputs,
    judges: Judges,
    engine: EngineConfig,
) -> Artifact:
    """Report of the measures of all records, in a folder, under a name that says what they depend on.

    Raises:
        UserError: another process is writing the very same.
    """
    settings = {"stage": "measure", **inputs.identity(), **judges.identity(), "shard_size": config.shard_size}
    if inputs.plain:
        settings["changed_at"] = changed_at(images)
    name = digest([settings, [parent.digest for parent in inputs.artifacts]])[:16]
    found = begin_artifact(folder / f"measures-{name}", "report", settings, inputs.artifacts)
    if isinstance(found, Artifact):
        return found
    with found as workspace:
        shards = cut(len(inputs), config.shard_size)
        names = [f"{number:05d}.jsonl" for number in range(len(shards))]
        work = MeasureWork(tuple(images), judges, config.shard_size)
        write_shards(engine, workspace, "measure", names, [len(shard) for shard in shards], work)
        workspace.write_json("report.json", _report(workspace.path, len(inputs), config.shard_size))
        return workspace.commit({"records": len(inputs)}, safety=judges.safety_state())


def read_measures(folder: Path, total: int, shard_size: int) -> Iterator[dict[str, Any]]:
    """Measures of all records, in order."""
    for number in range(len(cut(total, shard_size))):
        yield from read_shard(folder, number)


def read_shard(folder: Path, number: int) -> Iterator[dict[str, Any]]:
    """Measures of the records of a shard, in order."""
    with (folder / f"{number:05d}.jsonl").open(encoding="utf-8") as file:
        for line in file:
            yield json.loads(line)


def number_of(line: Mapping[str, Any], name: str) -> float:
    """Column of a record, of those that are measured or of its own; NaN where it has none."""
    return line[name] if name in NUMBERS and name in line else line["columns"].get(name, math.nan)


def hash_of_prompt(prompt: str) -> str:
    """Hash [16 hex digits] by which equal prompts are found."""
    return hashlib.blake2b(prompt.encode(), digest_size=8).hexdigest()


def _windows(inputs: ImageInputs, shard: Sequence[int]) -> Iterator[list[_Item]]:
    """Records in turns that fit into memory; where they end follows from the records alone."""
    window: list[_Item] = []
    pixels = 0
    for i in shard:
        item = _look(inputs, i)
        window.append(item)
        pixels += 0 if item[1] is None else item[1].shape[0] * item[1].shape[1]
        if len(window) == _WINDOW or pixels >= _WINDOW_PIXELS:
            yield window
            window, pixels = [], 0
    if window:
        yield window


def _look(inputs: ImageInputs, i: int) -> _Item:
    """What a record is, by its file and its pixels."""
    try:
        record = inputs.encoded(i)
        json.dumps(dict(record.meta), allow_nan=False)  # as it will be written again
    except CorruptRecord as error:
        return {"reason": "damaged", "problem": str(error)}, None, ""
    except (ValueError, RecursionError):
        return {"reason": "damaged", "problem": "its JSON cannot be written again"}, None, ""
    line, image = _look_at(record)
    prompt = record.meta["prompt"]
    line |= {"prompt": hash_of_prompt(prompt), "columns": numbers_of(record.meta)}
    return line, image, prompt


def _look_at(record: EncodedRecord) -> tuple[dict[str, Any], np.ndarray | None]:
    odd = oddity(record.data)
    if odd == "bomb":
        return {"reason": "bomb", "problem": "more pixels than are ever decoded"}, None
    try:
        if odd in _BROKEN:
            raise UserError(f"{odd}: PNG, JPEG or WebP is allowed")
        image = decode_image(record.data)
    except UserError as error:
        return {"reason": "damaged", "problem": str(error)}, None
    line = {**asdict(looks(image)), "phash": f"{perceptual_hash(image):016x}"}
    return (line | {"odd": odd} if odd is not None else line), image


def numbers_of(meta: Mapping[str, Any]) -> dict[str, float]:
    """Entries of a record that are finite numbers; yes and no count as 1 and 0."""
    found = {}
    for name, value in meta.items():
        fits = isinstance(value, float) or (isinstance(value, int) and abs(value) < 1 << 1000)
        if fits and math.isfinite(value):
            found[name] = float(value)
    return found


def _judge(
    window: Sequence[_Item],
    scorers: Mapping[str, tuple[Scorer, int]],
    safety: tuple[Any, int] | None,
    embedder: Embedder | None,
) -> list[np.ndarray | None]:
    """Embeddings [D] of the pictures of a window, where asked for; answers of models go to its lines."""
    vectors: list[np.ndarray | None] = [None] * len(window)
    by_shape: dict[tuple[int, ...], list[tuple[int, np.ndarray]]] = {}
    for place, (_, image, _) in enumerate(window):
        if image is not None:
            by_shape.setdefault(image.shape, []).append((place, image))
    for same in by_shape.values():
        alike, images = [place for place, _ in same], np.stack([image for _, image in same])
        texts = [window[place][2] for place in alike]
        for name, (scorer, size) in scorers.items():
            for at in range(0, len(alike), size):
                answers = scorer.score(images[at : at + size], texts[at : at + size])
                _note(window, alike[at : at + size], name, answers)
        if safety is not None:
            checker, size = safety
            for at in range(0, len(alike), size):
                _note(window, alike[at : at + size], "unsafe", checker.unsafe(images[at : at + size]))
        if embedder is not None:
            for place, vector in zip(alike, embedder.embed_images(images), strict=True):
                vectors[place] = vector
    return vectors


def _note(window: Sequence[_Item], places: Sequence[int], name: str, answers: np.ndarray) -> None:
    """Write finite answers to their lines; one that is not finite is none, or unsafe where that is asked."""
    for place, answer in zip(places, answers.tolist(), strict=True):
        if math.isfinite(answer) or name == "unsafe":
            window[place][0][name] = answer if math.isfinite(answer) else 1.0


def _write_embeddings(path: Path, vectors: Sequence[np.ndarray | None], dim: int) -> None:
    """Write embeddings float16 [N, D], zeros for pictures that cannot be read."""
    table = np.zeros((len(vectors), dim), np.float16)
    for row, vector in enumerate(vectors):
        if vector is not None:
            table[row] = vector
    with whole_file(path) as temporary:
        save_file({"embeddings": table}, temporary)


def _report(folder: Path, total: int, shard_size: int) -> dict[str, Any]:
    """How each column is spread over up to 100,000 records, for who chooses limits."""
    values: dict[str, list[float]] = {}
    every = max(1, math.ceil(total / 100_000))
    for i, line in enumerate(read_measures(folder, total, shard_size)):
        if i % every == 0:
            for name, value in {
                **line.get("columns", {}),
                **{each: line[each] for each in NUMBERS if each in line},
            }.items():
                if name in values or len(values) < 200:  # names are chosen by strangers
                    values.setdefault(name, []).append(value)
    shares = (0.0, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 1.0)
    spread = {name: np.quantile(np.array(each), shares).tolist() for name, each in sorted(values.items())}
    return {"records": total, "read": math.ceil(total / every), "shares": list(shares), "quantiles": spread}
