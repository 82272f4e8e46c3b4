"""Fields of requests: JSON and forms of strangers become plain values, or one line says what is wrong."""

import json
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, field
from typing import Any

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from lightgen.serve.answers import Problem

MAX_DIGITS = 40
MAX_PARTS = 64
MAX_NAMES = 64
MAX_FIELD_BYTES = 16 << 10
_MAX_PART_HEADERS = 8
_MAX_HEADER_BYTES = 1024


@dataclass
class Form:
    """Texts and files of a form, by the names of their fields; no field comes twice."""

    texts: dict[str, str] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)


def media_type(header: str | None) -> str:
    """Media type of a `Content-Type`, lowercase, without its parameters."""
    return (header or "").partition(";")[0].strip().lower()


def read_json(data: bytes) -> dict[str, Any]:
    """Values of a JSON object by name.

    Raises:
        Problem: 400, for what is no JSON, no object, or not the same to every reader: a name that comes
            twice, very many names, NaN and Infinity, numbers of very many digits, text that is not Unicode or
            holds nulls.
    """
    try:
        text = data.decode("utf-8")
        found = json.loads(
            text,
            object_pairs_hook=_object,
            parse_constant=_refuse_constant,
            parse_int=lambda digits: int(_short_number(digits)),
            parse_float=lambda digits: float(_short_number(digits)),
        )
    except UnicodeDecodeError:
        raise Problem(400, "body: got bytes that are not UTF-8, allowed: JSON in UTF-8") from None
    except RecursionError:
        raise Problem(400, "body: got JSON that is nested too deep, allowed: one object of values") from None
    except json.JSONDecodeError as error:
        where = f"line {error.lineno} column {error.colno}"
        raise Problem(400, f"body: got no JSON ({error.msg} at {where}), allowed: one object") from None
    if not isinstance(found, dict):
        raise Problem(400, f"body: got JSON of {_kind(found)}, allowed: an object")
    for name, value in found.items():
        _check_texts(name, (name, value))
    return found


async def read_form(header: str, chunks: AsyncIterator[bytes]) -> Form:
    """Form of a multipart body, read as it comes.

    Args:
        header: `Content-Type`.
        chunks: of the body, whose length is limited by whoever gives them.

    Raises:
        Problem: 400, for no multipart, too many or too large fields, a field that comes twice, or text that
            is not Unicode or holds nulls.
    """
    boundary = parse_options_header(header)[1].get(b"boundary", b"")
    if not 0 < len(boundary) <= 200:
        raise Problem(400, "body: got multipart without a boundary, allowed: multipart/form-data")
    parts = _Parts()
    try:
        parser = MultipartParser(
            boundary,
            parts.callbacks(),  # pyright: ignore[reportArgumentType]
            max_header_count=_MAX_PART_HEADERS,
            max_header_size=_MAX_HEADER_BYTES,
        )
        async for chunk in chunks:
            parser.write(chunk)
        parser.finalize()
    except FormParserError:
        raise Problem(400, "body: got damaged multipart, allowed: multipart/form-data") from None
    if not parts.is_whole:
        raise Problem(400, "body: got multipart that is cut short, allowed: whole multipart/form-data")
    return parts.form


class _Parts:
    """Callbacks of the parser, which gather one part after the other."""

    def __init__(self) -> None:
        self.form, self.is_whole = Form(), False
        self._count = 0
        self._header, self._value, self._disposition = bytearray(), bytearray(), b""
        self._name, self._is_file, self._data = "", False, bytearray()

    def callbacks(self) -> dict[str, Any]:
        """What the parser calls, by its names."""
        return {
            "on_part_begin": self._begin,
            "on_header_field": lambda data, start, end: self._header.extend(data[start:end]),
            "on_header_value": lambda data, start, end: self._value.extend(data[start:end]),
            "on_header_end": self._end_header,
            "on_headers_finished": self._end_headers,
            "on_part_data": self._add,
            "on_part_end": self._end,
            "on_end": self._finish,
        }

    def _begin(self) -> None:
        self._count += 1
        if self._count > MAX_PARTS:
            raise Problem(400, f"body: got more than {MAX_PARTS} fields, allowed: at most {MAX_PARTS}")
        self._header, self._value, self._disposition = bytearray(), bytearray(), b""
        self._data = bytearray()

    def _end_header(self) -> None:
        if bytes(self._header).lower() == b"content-disposition":
            self._disposition = bytes(self._value)
        self._header, self._value = bytearray(), bytearray()

    def _end_headers(self) -> None:
        kind, options = parse_options_header(self._disposition)
        name = options.get(b"name")
        if kind != b"form-data" or not name:
            raise Problem(400, "body: got a part without a name, allowed: multipart/form-data")
        self._name, self._is_file = _decoded("name of a field", name), b"filename" in options
        _check_texts("body", (self._name,))

    def _add(self, data: bytes, start: int, end: int) -> None:
        if not self._is_file and len(self._data) + end - start > MAX_FIELD_BYTES:
            allowed = f"at most {MAX_FIELD_BYTES} bytes"
            raise Problem(400, f"{self._name}: got a longer text, allowed: {allowed}", param=self._name)
        self._data.extend(data[start:end])

    def _end(self) -> None:
        name = self._name.removesuffix("[]")
        if name in self.form.texts or name in self.form.files:
            raise Problem(400, f"{name}: got it more than once, allowed: once", param=name)
        if self._is_file:
            self.form.files[name] = bytes(self._data)
        else:
            self.form.texts[name] = _decoded(name, bytes(self._data))
            _check_texts(name, (self.form.texts[name],))
        self._data = bytearray()

    def _finish(self) -> None:
        self.is_whole = True


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(pairs) > MAX_NAMES:
        raise Problem(400, f"body: got an object of {len(pairs)} names, allowed: at most {MAX_NAMES}")
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise Problem(400, f"body: got {name[:40]!r} more than once, allowed: each name once")
        found[name] = value
    return found


def _refuse_constant(name: str) -> float:
    raise Problem(400, f"body: got {name}, allowed: finite numbers")


def _short_number(digits: str) -> str:
    if len(digits) > MAX_DIGITS:
        raise Problem(400, f"body: got a number of {len(digits)} digits, allowed: at most {MAX_DIGITS}")
    return digits


def _decoded(name: str, data: bytes) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        raise Problem(400, f"{name}: got bytes that are not UTF-8, allowed: text in UTF-8") from None


def _check_texts(name: str, values: Iterable[Any]) -> None:
    """Check the texts among values; whatever is nested is refused later, since no field is."""
    for text in values:
        if isinstance(text, str) and any(each == "\0" or "\ud800" <= each <= "\udfff" for each in text):
            shown = name.encode(errors="replace").decode().replace("\0", "?")[:40]
            raise Problem(400, f"{shown}: got a null or half a character, allowed: valid Unicode")


def _kind(value: object) -> str:
    names = {list: "a list", str: "a text", bool: "a truth value", type(None): "null"}
    return names.get(type(value), "a number")
