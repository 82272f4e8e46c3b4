"""Members of a tar file found by its headers alone: nothing is extracted, and damage ends the scan.

Source: the ustar and pax formats of POSIX.1-2008 (`pax`), and the GNU extensions L, K and S.
"""

import io
import os
import re
from collections.abc import Iterator

from lightgen.core.errors import UserError

_MAX_EXTENDED_HEADER_BYTES = 1 << 16
BLOCK = 512
_PAX_RECORD = re.compile(rb"(\d{1,6}) ([^=]{1,200})=")
_UNSAFE = re.compile(r"[\x00-\x1f\x7f\\]")
_KINDS = {b"0": "", b"7": "", b"\0": "", b"1": "link", b"2": "link", b"5": "folder", b"S": "sparse"}


def scan_members(file: io.FileIO, shard: str) -> Iterator[tuple[str, int, int, str]]:
    """(name, offset, size, "" or why it is of no use) of each member of a tar, by the headers alone.

    Raises:
        UserError: the file does not begin like a plain tar.
    """
    end, position = os.fstat(file.fileno()).st_size, 0
    pax: dict[str, str] = {}
    while True:
        header = read_span(file, position, BLOCK)
        if header == bytes(BLOCK):
            if not position:
                yield "", 0, 0, "empty shard"
            return
        if position and len(header) < BLOCK:
            yield "", position, 0, "no end mark: the shard may be cut short"
            return
        try:
            name, size, kind = _parse_header(header)
            size = int(pax.get("size", size))
        except ValueError as error:
            if not position:
                raise UserError(f"{shard}: not a plain tar file, allowed: uncompressed tar") from error
            yield "", position, 0, f"damaged header at byte {position}: the rest of the shard is left out"
            return
        offset = position + BLOCK
        if kind == b"S":  # its list of holes may go on in blocks before the data
            more = header[482]
            while more:
                block = read_span(file, offset, BLOCK)
                more, offset = len(block) == BLOCK and block[504], offset + BLOCK
        if kind in b"123456":
            size = 0
        position = offset - (-size // BLOCK) * BLOCK
        if size < 0 or offset + size > end:
            yield pax.get("path", name), offset, size, "cut short"
            return
        if kind in b"xgLK":
            pax |= _parse_extension(kind, read_span(file, offset, min(size, _MAX_EXTENDED_HEADER_BYTES + 1)))
            continue
        reason = pax.get("damaged") or pax.get("sparse") or _KINDS.get(kind, "device or unknown kind")
        yield pax.get("path", name), offset, size, reason
        pax = {}


def read_span(file: io.FileIO, offset: int, size: int) -> bytes:
    """Up to `size` bytes from `offset` on: fewer where the file ends."""
    file.seek(offset)
    return file.read(size)


def split_name(name: str) -> tuple[str, str]:
    """(key, suffix in lower case) of a member's name, cut at the first dot of its last part as in WebDataset.

    Raises:
        ValueError: a name that points outside, or that no record can have.
    """
    parts = name.split("/")
    if name.startswith("/") or ".." in parts or _UNSAFE.search(name):
        raise ValueError("unsafe name")
    parts = [part for part in parts if part not in ("", ".")]
    stem, dot, suffix = parts[-1].partition(".") if parts else ("", "", "")
    if not stem or not dot:
        raise ValueError("hidden or without suffix")
    return "/".join([*parts[:-1], stem]), suffix.lower()


def _parse_header(header: bytes) -> tuple[str, int, bytes]:
    """(name, size, kind) of a header block; ValueError where it is none."""
    if len(header) < BLOCK or sum(header[:148]) + 8 * 32 + sum(header[156:]) != _number(header[148:156]):
        raise ValueError("checksum")
    name = header[:100].partition(b"\0")[0]
    prefix = header[345:500].partition(b"\0")[0] if header[257:263] == b"ustar\0" else b""
    text = _text(prefix + b"/" + name if prefix else name)
    return text, _number(header[124:136]), header[156:157]


def _text(name: bytes) -> str:
    """Name as text; bytes that are not UTF-8 turn into backslashes, which no record's name may hold."""
    return name.decode("utf-8", "backslashreplace")


def _number(field: bytes) -> int:
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    digits = field.strip(b" \0")
    if digits and not digits.isdigit():
        raise ValueError("number")
    return int(digits or b"0", 8)


def _parse_extension(kind: bytes, data: bytes) -> dict[str, str]:
    """What an extended header says of the next member: path and size, and sparse or damaged as a reason."""
    found: dict[str, str] = {}
    if kind in b"gK":  # defaults for all members, and long targets of links
        return found
    if len(data) > _MAX_EXTENDED_HEADER_BYTES:
        return {"damaged": "extended header too large"}
    if kind == b"L":
        return {"path": _text(data.partition(b"\0")[0])}
    at = 0
    while at < len(data):
        record = _PAX_RECORD.match(data, at)
        length = int(record[1]) if record else 0
        if record is None or length <= record.end() - at or data[at + length - 1 : at + length] != b"\n":
            return {"damaged": "damaged extended header"}
        name = _text(record[2])
        if name.startswith("GNU.sparse"):
            found["sparse"] = "sparse"
        elif name in ("path", "size"):
            found[name] = _text(data[record.end() : at + length - 1])
        at += length
    return found
