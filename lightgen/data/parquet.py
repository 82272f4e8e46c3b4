"""Parquet files with the bytes of images in a column, as HF datasets writes them, read in place.

Rows are read a row group at a time, and the last groups are kept: neighbours cost next to nothing, while rows
in random order cost a group each. The image is a column of bytes or of struct{bytes, path}; the other columns
of words and numbers are its meta (a struct named json or meta is opened), and the caption is found as in a
JSON beside a picture.
"""

import itertools
import math
import threading
from collections import OrderedDict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lightgen.core.errors import UserError
from lightgen.data.images import (
    MAX_IMAGE_BYTES,
    MAX_JSON_BYTES,
    CorruptRecord,
    EncodedRecord,
    ImageRecord,
    Skipped,
    decoded,
    suffix_of,
)
from lightgen.data.sidecar import find_caption

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

MAX_GROUP_BYTES = 2 << 30
_KEPT_BYTES = 512 << 20
_BATCH = 64
_MAX_COLUMNS = 100
_IMAGE_NAMES = ("image", "jpg", "png", "webp", "img", "picture", "image_bytes", "bytes")
_OPENED = ("json", "meta", "metadata")


class ParquetImages:
    """All rows of a directory of `*.parquet`, by order of file name, then of row.

    Attributes:
        skipped: every file and row group that is left out, with the reason.

    Args:
        place: the directory, or one parquet file; hidden files are none of them.
        caption: column (or key) of the captions; None for the first of `find_caption` that is there.
        image: column of the images; None for the first of a usual name, or the only one of its type.

    Raises:
        UserError: pyarrow is missing, there are no files, or no rows with images in any of them.
    """

    def __init__(self, place: Path, caption: str | None = None, image: str | None = None) -> None:
        """Index of the files, from their footers alone."""
        found = [path for path in sorted(place.glob("*.parquet")) if path.is_file() and path.name[0] != "."]
        self._paths = [place] if place.is_file() else found
        if not self._paths:
            raise UserError(f"{place}: got no parquet files, expected *.parquet")
        self._caption, self._image = caption, image
        self.skipped: list[Skipped] = []
        self._groups: list[tuple[int, int, int]] = []  # file, row group, first row of the group in the file
        self._columns: dict[int, tuple[str, list[str]]] = {}  # of each file: images, and their meta
        counts: list[int] = []
        for number, path in enumerate(self._paths):
            try:
                counts += self._scan(number, path)
            except UserError as error:
                self.skipped.append(Skipped(path.name, "", str(error)))
        if not counts:
            first = f" ({self.skipped[0].shard}: {self.skipped[0].reason})" if self.skipped else ""
            raise UserError(f"{place}: got no rows with images{first}")
        self._ends = np.cumsum(np.array(counts, dtype=np.int64))
        self._lock = threading.Lock()
        self._kept: OrderedDict[tuple[int, bool], pa.Table | str] = OrderedDict()

    def __len__(self) -> int:
        """Number of rows."""
        return int(self._ends[-1])

    def __getitem__(self, i: int) -> ImageRecord:
        """Record i, decoded; raises CorruptRecord, and IndexError outside [0, len)."""
        record = self.encoded(i)
        return ImageRecord(record.key, decoded(record, self._place(i)), record.meta)

    def key(self, i: int) -> str:
        """Number of the row in its file; led by the number of the file where there are several."""
        group, row = self._locate(i)
        file, _, first = self._groups[group]
        return f"{file:05d}/{first + row:08d}" if len(self._paths) > 1 else f"{first + row:08d}"

    def meta(self, i: int) -> dict[str, Any]:
        """What is told of row i, read without its image; raises CorruptRecord."""
        group, row = self._locate(i)
        table, meta, letters = self._table(i, group, is_image=False), {}, 0
        try:
            cells = {name: table.column(name)[row].as_py() for name in table.column_names}
        except ValueError as error:  # UnicodeDecodeError too
            raise CorruptRecord(self._place(i), "its words are not UTF-8") from error
        for name, value in cells.items():
            for key, inner in value.items() if isinstance(value, dict) else [(name, value)]:
                kept = None if isinstance(inner, float) and not math.isfinite(inner) else inner
                letters += len(str(kept))
                meta[key] = kept
        if letters > MAX_JSON_BYTES:
            raise CorruptRecord(self._place(i), f"{letters} letters, allowed: up to {MAX_JSON_BYTES}")
        try:
            return {**meta, "prompt": find_caption(meta, None, self._caption)}
        except ValueError as error:
            raise CorruptRecord(self._place(i), str(error)) from error

    def encoded(self, i: int) -> EncodedRecord:
        """Row i with its image as stored, not decoded; raises CorruptRecord."""
        group, row = self._locate(i)
        data = self._table(i, group, is_image=True).column(0)[row].as_py()
        data = data.get("bytes") if isinstance(data, dict) else data
        if data is None:
            raise CorruptRecord(self._place(i), "the bytes of its image are not there")
        if len(data) > MAX_IMAGE_BYTES:
            raise CorruptRecord(self._place(i), f"{len(data)} bytes, allowed: up to {MAX_IMAGE_BYTES}")
        return EncodedRecord(self.key(i), data, suffix_of(data), self.meta(i))

    def _locate(self, i: int) -> tuple[int, int]:
        """Number of the row group, among those of all files, and row in it."""
        if not 0 <= i < len(self):
            raise IndexError(f"record {i} of {len(self)}")
        group = int(np.searchsorted(self._ends, i, side="right"))
        return group, i - (int(self._ends[group - 1]) if group else 0)

    def _place(self, i: int) -> str:
        group, row = self._locate(i)
        file, _, first = self._groups[group]
        return f"{self._paths[file].name}: row {first + row}"

    def _table(self, i: int, group: int, *, is_image: bool) -> "pa.Table":
        """Column of images, or columns of meta, of a row group; raises CorruptRecord of record i."""
        with self._lock:
            kept = self._kept.pop((group, is_image), None)
            if kept is None:
                kept = self._load(group, is_image)
            self._kept[group, is_image] = kept
            sizes = [0 if isinstance(each, str) else each.nbytes for each in self._kept.values()]
            while len(sizes) > 2 and sum(sizes) > _KEPT_BYTES:  # a group's images and its meta stay
                self._kept.popitem(last=False)
                sizes.pop(0)
        if isinstance(kept, str):
            raise CorruptRecord(self._place(i), kept)
        return kept

    def _load(self, group: int, is_image: bool) -> "pa.Table | str":
        """Columns of a row group, or why they cannot be read."""
        import pyarrow as pa

        file, inner, _ = self._groups[group]
        image, told = self._columns[file]
        columns, size, batches = [image] if is_image else told, 0, []
        try:
            with _open(self._paths[file]) as parquet:
                for batch in parquet.iter_batches(_BATCH, row_groups=[inner], columns=columns):
                    batches.append(batch)
                    size += batch.nbytes
                    if size > MAX_GROUP_BYTES:  # the footer lied
                        return f"its row group has more than {MAX_GROUP_BYTES} bytes"
            table = pa.Table.from_batches(batches)
        except (pa.ArrowException, OSError, ValueError, MemoryError) as error:
            return f"its row group cannot be read ({type(error).__name__})"
        count = int(self._ends[group]) - (int(self._ends[group - 1]) if group else 0)
        return table if len(table) == count else f"its row group has {len(table)} rows of {count}"

    def _scan(self, number: int, path: Path) -> list[int]:
        """Rows of each row group of a file that can be read; raises UserError with what is wrong with it."""
        import_pyarrow()
        import pyarrow as pa

        try:
            with _open(path) as parquet:
                schema = parquet.schema_arrow
                image, told = find_columns(schema, self._image)
                is_struct = pa.types.is_struct(schema.field(image).type)
                groups = [
                    (group, _count_rows(parquet.metadata.row_group(group), image, told))
                    for group in range(parquet.metadata.num_row_groups)
                ]
        except (pa.ArrowException, OSError, ValueError) as error:
            if isinstance(error, UserError):
                raise
            raise UserError(f"no whole parquet file ({type(error).__name__})") from error
        self._columns[number] = (f"{image}.bytes" if is_struct else image, told)
        counts, first = [], 0
        for group, (rows, reason) in groups:
            if reason:
                self.skipped.append(Skipped(path.name, f"row group {group}", reason))
            else:
                self._groups.append((number, group, first))
                counts.append(rows)
            first += max(rows, 0)
        return counts


def import_pyarrow() -> None:
    """Make sure that pyarrow is there.

    Raises:
        UserError: it is not; it names the extra.
    """
    try:
        import pyarrow.parquet  # noqa: F401
    except ImportError as error:
        raise UserError("parquet: pyarrow is missing, allowed: pip install 'lightgen[parquet]'") from error


def find_columns(schema: "pa.Schema", image: str | None = None) -> tuple[str, list[str]]:
    """(Column of images, columns of their meta) of a schema.

    Raises:
        UserError: no column, or several, may hold the images.
    """
    once = [field for field in schema if schema.names.count(field.name) == 1]
    found = [field.name for field in once if _is_image(field.type)]
    names = [image] if image is not None else [*_IMAGE_NAMES, *(found if len(found) == 1 else ())]
    chosen = next((name for name in names if name in found), None)
    if chosen is None:
        got = f"{', '.join(found)[:200] or 'none'} with bytes, of {', '.join(schema.names)[:200]}"
        wanted = repr(image) if image is not None else "one, or one named image"
        raise UserError(f"columns: got {got}; allowed: {wanted}, of bytes or struct{{bytes, path}}")
    told = [field.name for field in once if field.name != chosen and _is_told(field.name, field.type)]
    return chosen, told[:_MAX_COLUMNS]


def _open(path: Path) -> "pq.ParquetFile":
    import pyarrow.parquet as pq

    return pq.ParquetFile(path, buffer_size=1 << 20, pre_buffer=False, memory_map=False)


def _count_rows(group: "pq.RowGroupMetaData", image: str, told: list[str]) -> tuple[int, str]:
    """(Rows of a row group, "" or why it is not read), as its footer claims."""
    sizes = {"stored": 0, "all": 0}
    for column in map(group.column, range(group.num_columns)):
        top = next((name for name in (image, *told) if _is_of(column.path_in_schema, name)), None)
        if top is not None:
            sizes["all"] += max(column.total_uncompressed_size, 0)
        if top == image:
            sizes["stored"] += column.total_compressed_size
    if sizes["all"] > MAX_GROUP_BYTES:
        return group.num_rows, f"{sizes['all']} bytes, allowed: up to {MAX_GROUP_BYTES}"
    if not 0 < group.num_rows <= sizes["stored"]:  # an image takes more than a byte
        return group.num_rows, f"{group.num_rows} rows in {sizes['stored']} bytes"
    return group.num_rows, ""


def _is_of(path: str, name: str) -> bool:
    return path == name or path.startswith(f"{name}.")


def _is_image(kind: "pa.DataType") -> bool:
    import pyarrow as pa

    if pa.types.is_struct(kind):
        inner = kind.get_field_index("bytes")
        kind = kind.field(inner).type if inner >= 0 else pa.null()
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _is_told(name: str, kind: "pa.DataType") -> bool:
    """Whether a column is read as meta: words, numbers, lists of words, and structs of these by name."""
    import pyarrow as pa

    if pa.types.is_struct(kind) and name in _OPENED:
        return all(_is_told("", field.type) for field in itertools.islice(kind, _MAX_COLUMNS + 1))
    if pa.types.is_list(kind):
        return pa.types.is_string(kind.value_type)
    is_word = pa.types.is_string(kind) or pa.types.is_large_string(kind)
    return is_word or pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)
