"""Captions of files as other tools write them: text, JSON lines, parquet and WebDataset tars, as streams.

What cannot be read is told with its place and reason and passed over. Nothing is ever extracted.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

from lightgen.core.errors import UserError
from lightgen.core.prompt import Prompt
from lightgen.data.prompts import MAX_LINE_BYTES
from lightgen.data.tar import read_span, scan_members

# Fields that are looked for in this order where none is named.
FIELDS = ("prompt", "caption", "text")
SUFFIXES = (".txt", ".jsonl", ".ndjson", ".parquet", ".tar")

_BOM = b"\xef\xbb\xbf"
_ROWS = 1024


@dataclass(frozen=True)
class BadCaption:
    """A line, row or member that is no caption: where it is, as `captions.txt:12`, and why."""

    origin: str
    reason: str


Note = Callable[[BadCaption], None]


def read_captions(path: Path, note: Note, column: str | None = None) -> Iterator[Prompt]:
    """Captions of a file, in order, each with its origin; blank lines are no captions and no mistakes.

    Text: one caption per line. JSON lines and `.json` members of tars: a field of an object, or the object as
    a prompt where it has `include` of GenEval's schema. Parquet: a column. Tars: one caption per key, of its
    `.json` member, else of its `.txt`.

    Args:
        path: its suffix, one of SUFFIXES, says what it is.
        note: called with each that cannot be read.
        column: field or column that holds the caption; None = the first there is of FIELDS.

    Raises:
        UserError: the file cannot be opened, is of another kind, or has no such column.
    """
    readers = {".txt": _text, ".jsonl": _jsonl, ".ndjson": _jsonl, ".parquet": _parquet, ".tar": _tar}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise UserError(f"{path}: got suffix {path.suffix!r}, allowed: {', '.join(SUFFIXES)}")
    try:
        yield from reader(path, note, column)
    except OSError as error:
        raise UserError(
            f"{path}: not readable ({error.strerror or error}), allowed: a readable file"
        ) from error


def caption_of_record(record: Any, column: str | None) -> Prompt:  # noqa: ANN401  (any JSON value)
    """Caption in a record: the named field, or the first of FIELDS that holds text.

    Raises:
        UserError: there is none.
    """
    names = FIELDS if column is None else (column,)
    if not isinstance(record, dict):
        raise UserError(f"got {str(record)[:60]!r}, allowed: an object with {' or '.join(names)}")
    found = next((name for name in names if isinstance(record.get(name), str)), None)
    if found is None:
        raise UserError(f"got no text in {' or '.join(names)}, allowed: a string")
    if record.get("include"):
        return replace(Prompt.from_json({**record, "prompt": record[found]}), source=None, mask=None)
    return Prompt(prompt=record[found])


def _text(path: Path, note: Note, column: str | None) -> Iterator[Prompt]:
    for origin, line in _lines(path, note):
        try:
            text = line.decode()
        except UnicodeDecodeError as error:
            note(BadCaption(origin, f"not UTF-8 at byte {error.start + 1}"))
            continue
        yield Prompt(prompt=text.rstrip("\r"), origin=origin)


def _jsonl(path: Path, note: Note, column: str | None) -> Iterator[Prompt]:
    for origin, line in _lines(path, note):
        prompt = _parsed(line, origin, note, column)
        if prompt is not None:
            yield prompt


def _parsed(data: bytes, origin: str, note: Note, column: str | None) -> Prompt | None:
    try:
        return replace(caption_of_record(json.loads(data.decode()), column), origin=origin)
    except UnicodeDecodeError as error:
        note(BadCaption(origin, f"not UTF-8 at byte {error.start + 1}"))
    except UserError as error:
        note(BadCaption(origin, str(error)))
    except (ValueError, RecursionError):
        note(BadCaption(origin, "not JSON"))
    return None


def _lines(path: Path, note: Note) -> Iterator[tuple[str, bytes]]:
    """(Origin, line without its end) of each line that is not blank; one that is too long is noted."""
    with path.open("rb") as file:
        if file.read(len(_BOM)) != _BOM:
            file.seek(0)
        number = 0
        # Only b"\n" ends a line: U+2028 and its like are part of captions.
        while line := file.readline(MAX_LINE_BYTES + 1):
            number += 1
            origin = f"{path.name}:{number}"
            if len(line) > MAX_LINE_BYTES and not line.endswith(b"\n"):
                note(BadCaption(origin, f"longer than {MAX_LINE_BYTES} bytes"))
                _skip_line(file)
            elif line.strip():
                yield origin, line.removesuffix(b"\n")


def _skip_line(file: IO[bytes]) -> None:
    while (piece := file.readline(MAX_LINE_BYTES)) and not piece.endswith(b"\n"):
        pass


def _parquet(path: Path, note: Note, column: str | None) -> Iterator[Prompt]:
    """Captions of one column, a batch of rows in memory at a time."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise UserError(f"{path}: needs pyarrow, allowed: pip install 'lightgen[parquet]'") from error
    try:
        file = pyarrow.parquet.ParquetFile(path)
    except pyarrow.ArrowException as error:
        raise UserError(f"{path}: no parquet file ({_one_line(error)}), allowed: a whole one") from error
    with file:
        names = file.schema_arrow.names
        wanted = next((name for name in FIELDS if name in names), None) if column is None else column
        if wanted not in names:
            got = f"columns {', '.join(names)[:200]}"
            raise UserError(f"{path}: got {got}; allowed: one of {', '.join(FIELDS)}, or --column NAME")
        number = 0
        try:
            for batch in file.iter_batches(_ROWS, columns=[wanted]):
                for value in batch.column(0):
                    number += 1
                    prompt = _of_value(value.as_py(), f"{path.name}:{number}", note)
                    if prompt is not None:
                        yield prompt
        # pyarrow's errors of text that is not UTF-8, and of damage, are of these kinds
        except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
            note(BadCaption(f"{path.name}:{number + 1}", f"damaged from here on ({_one_line(error)})"))


def _of_value(value: Any, origin: str, note: Note) -> Prompt | None:  # noqa: ANN401  (a value of any column)
    if not isinstance(value, str):
        note(BadCaption(origin, "empty" if value is None else f"{type(value).__name__}, no text"))
    elif len(value) > MAX_LINE_BYTES:
        note(BadCaption(origin, f"longer than {MAX_LINE_BYTES} bytes"))
    else:
        return Prompt(prompt=value, origin=origin)
    return None


def _tar(path: Path, note: Note, column: str | None) -> Iterator[Prompt]:
    """Captions of the members' texts, read where they lie; images and other members are passed over."""
    found: dict[str, dict[str, tuple[int, int]]] = {}
    with path.open("rb", buffering=0) as file:
        for name, offset, size, reason in scan_members(file, path.name):
            folder, _, last = name.rpartition("/")
            stem, _, suffix = last.partition(".")  # WebDataset cuts at the first dot
            is_text = suffix.lower() in ("json", "txt")
            if reason and (is_text or not name):
                note(BadCaption(f"{path.name}:{name}", reason))
            elif is_text and not reason and size > MAX_LINE_BYTES:
                note(BadCaption(f"{path.name}:{name}", f"longer than {MAX_LINE_BYTES} bytes"))
            elif is_text and not reason:
                found.setdefault(f"{folder}/{stem}" if folder else stem, {})[suffix.lower()] = offset, size
        for key, texts in found.items():
            origin = f"{path.name}:{key}"
            data = read_span(file, *(texts.get("json") or texts["txt"])).removeprefix(_BOM)
            is_json = "json" in texts
            prompt = _parsed(data, origin, note, column) if is_json else _of_bytes(data, origin, note)
            if prompt is not None:
                yield prompt


def _of_bytes(data: bytes, origin: str, note: Note) -> Prompt | None:
    try:
        return Prompt(prompt=data.decode().strip(), origin=origin)
    except UnicodeDecodeError as error:
        note(BadCaption(origin, f"not UTF-8 at byte {error.start + 1}"))
        return None


def read_set(
    name: str,
    note: Note,
    config: str | None = None,
    split: str = "train",
    column: str | None = None,
    revision: str | None = None,
) -> Iterator[Prompt]:
    """Captions of a set of the `datasets` library, in order, streamed; images and the like stay unread.

    Args:
        name: OWNER/NAME of a set on the Hub, or a folder of data files here.
        note: called with each row that holds no caption.
        config: of the set, where it has several.
        split: of the set.
        column: that holds the caption; None = the first there is of FIELDS.
        revision: commit of the set.

    Raises:
        UserError: the set, its config, split or column cannot be had.
    """
    try:
        import datasets
        import pyarrow
    except ImportError as error:
        raise UserError(f"hf:{name}: needs datasets, allowed: pip install 'lightgen[datasets]'") from error
    try:
        # no code of a set is ever run: the library reads data files alone
        rows: Any = datasets.load_dataset(name, config, split=split, streaming=True, revision=revision)
        names = rows.column_names or list(next(iter(rows.take(1)), {}))
    except (OSError, ValueError, RuntimeError, pyarrow.ArrowException) as error:
        raise UserError(f"hf:{name}: {_one_line(error)}; allowed: hf:OWNER/NAME[:config[:split]]") from error
    wanted = next((each for each in FIELDS if each in names), None) if column is None else column
    if wanted not in names:
        got = f"columns {', '.join(names)[:200]}"
        raise UserError(f"hf:{name}: got {got}; allowed: one of {', '.join(FIELDS)}, or --column NAME")
    number = 0
    try:
        for number, row in enumerate(rows.select_columns([wanted]), 1):
            prompt = _of_value(row[wanted], f"{name}:{number}", note)
            if prompt is not None:
                yield prompt
    except (ValueError, RuntimeError, pyarrow.ArrowException) as error:
        note(BadCaption(f"{name}:{number + 1}", f"damaged from here on ({_one_line(error)})"))


def _one_line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__} {error}".split())[:200]
