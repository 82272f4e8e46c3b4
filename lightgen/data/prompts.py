"""Prompt files: JSON lines, one prompt each, in GenEval's metadata schema."""

import json
from collections.abc import Iterable
from pathlib import Path

from lightgen.core.directory import whole_file
from lightgen.core.errors import UserError
from lightgen.core.prompt import Prompt

_EXAMPLE = '{"prompt": "a red apple"}'


def write_prompts(path: Path, prompts: Iterable[Prompt]) -> None:
    """File of JSON lines at path, whole or not at all; the same prompts give the same bytes.

    Raises:
        UserError: there are no prompts.
    """
    lines = [json.dumps(prompt.to_json(), allow_nan=False) + "\n" for prompt in prompts]
    if not lines:
        raise UserError(f"{path.name}: got no prompts to write, allowed: at least one")
    with whole_file(path) as temporary:
        temporary.write_bytes("".join(lines).encode())


def read_prompts(path: Path) -> list[Prompt]:
    """Prompts of a file of JSON lines, in order; blank lines are skipped.

    Raises:
        UserError: the file cannot be read or holds no prompt, or a line (named by its number) is not one.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: not readable ({error.strerror}), allowed: a file of JSON lines") from error
    # Only b"\n" ends a line: str.splitlines would also break at U+2028 and its like, which captions hold.
    lines = data.removeprefix(b"\xef\xbb\xbf").split(b"\n")
    prompts = [_prompt(line, f"{path.name}, line {n}") for n, line in enumerate(lines, 1) if line.strip()]
    if not prompts:
        raise UserError(f"{path.name}: got no prompts, allowed: JSON lines such as {_EXAMPLE}")
    return prompts


def _prompt(line: bytes, where: str) -> Prompt:
    try:
        record = json.loads(line.decode())
    except UnicodeDecodeError as error:
        raise UserError(f"{where}: not UTF-8 text at byte {error.start + 1}") from error
    except (ValueError, RecursionError) as error:
        got = line.strip()[:60].decode(errors="replace")
        raise UserError(f"{where}: got {got!r}, allowed: JSON such as {_EXAMPLE}") from error
    try:
        return Prompt.from_json(record)
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
