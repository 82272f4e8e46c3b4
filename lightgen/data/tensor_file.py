"""What lies where in a safetensors file, so that single rows can be read."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from safetensors import SafetensorError, safe_open

from lightgen.core.errors import UserError

_MAX_HEADER_BYTES = 1 << 20


class Entry(NamedTuple):
    """A tensor of a file: its dtype as the format names it (`BF16`), its shape, its first byte."""

    dtype: str
    shape: list[int]
    start: int


def read_entries(path: Path, *allowed: Sequence[str]) -> dict[str, Entry]:
    """Tensors of a whole file, sorted by name.

    Args:
        path: of the file.
        allowed: names of tensors, sorted; the file has one such set.

    Raises:
        UserError: it is no whole safetensors file, its header is too long, or it has other tensors.

    Source: the format of safetensors: 8 bytes of length, JSON with offsets from its end, data.
    """
    with path.open("rb") as file:
        header_bytes = int.from_bytes(file.read(8), "little")
        text = file.read(min(header_bytes, _MAX_HEADER_BYTES))
    try:
        with safe_open(path, framework="pt") as file:  # also checks offsets against the size of the file
            names = sorted(file.keys())
    except SafetensorError as error:
        reason = str(error).partition("\n")[0]
        raise UserError(f"{path.name}: not a whole safetensors file ({reason})") from error
    if header_bytes > _MAX_HEADER_BYTES:
        raise UserError(f"{path.name}: header of {header_bytes} bytes, allowed: up to {_MAX_HEADER_BYTES}")
    if names not in [list(each) for each in allowed]:
        sets = " or ".join(", ".join(each) for each in allowed)
        raise UserError(f"{path.name}: got tensors {', '.join(names)[:80]!r}, allowed: {sets}")
    found, data = json.loads(text), 8 + header_bytes
    return {
        name: Entry(found[name]["dtype"], found[name]["shape"], data + found[name]["data_offsets"][0])
        for name in names
    }
