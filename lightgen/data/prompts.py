"""Prompt files: JSON lines, one prompt each, in GenEval's metadata schema; read whole or line by line."""

import itertools
import json
from array import array
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import overload

import numpy as np

from lightgen.core.directory import whole_file
from lightgen.core.errors import UserError
from lightgen.core.prompt import Prompt

MAX_LINE_BYTES = 1 << 20

_EXAMPLE = '{"prompt": "a red apple"}'
_BOM = b"\xef\xbb\xbf"


def write_prompts(path: Path, prompts: Iterable[Prompt]) -> int:
    """File of JSON lines at path, whole or not at all, and how many; the same prompts give the same bytes.

    Raises:
        UserError: there are no prompts.
    """
    count = 0
    with whole_file(path) as temporary, temporary.open("wb") as file:
        for prompt in prompts:
            file.write(json.dumps(prompt.to_json(), allow_nan=False).encode() + b"\n")
            count += 1
        if not count:
            raise UserError(f"{path.name}: got no prompts to write, allowed: at least one")
    return count


def read_prompts(path: Path) -> list[Prompt]:
    """Prompts of a file of JSON lines, in order, all in memory; blank lines are skipped.

    Raises:
        UserError: the file cannot be read or holds no prompt, or a line (named by its number) is not one.
    """
    return list(PromptLines(path))


class PromptLines(Sequence[Prompt]):
    """Prompts of a file of JSON lines, of which only the lines' places (8 bytes each) are in memory.

    Opening finds the lines; a line is checked when it is read, so that millions of prompts open in a second
    in every process that wants a few of them. One pass over all (`for _ in lines`) checks them all. No file
    stays open between reads, so threads may share one; another process that it is sent to finds the lines
    again.

    Raises:
        UserError: the file cannot be read or holds no line, at once; a line (named by its number) is no
            prompt, when it is read.
    """

    def __init__(self, path: Path) -> None:
        """Find the lines that are not blank."""
        self.path = path
        starts = array("q")
        try:
            with path.open("rb") as file:
                position = len(_BOM) if file.read(len(_BOM)) == _BOM else 0
                file.seek(position)
                # fresh: a line begins here; else one goes on that is longer than a block
                begin, fresh, blank = position, True, True
                # Only b"\n" ends a line: str.splitlines would also break at U+2028 and its like.
                while piece := file.readline(MAX_LINE_BYTES):
                    if fresh:
                        begin, blank = position, True
                    if blank and piece.strip():
                        starts.append(begin)
                        blank = False
                    position += len(piece)
                    fresh = piece.endswith(b"\n")
        except OSError as error:
            raise UserError(
                f"{path}: not readable ({error.strerror}), allowed: a file of JSON lines"
            ) from error
        self._starts = np.frombuffer(starts, dtype=np.int64) if starts else np.zeros(0, dtype=np.int64)
        if not len(self._starts):
            raise UserError(f"{path.name}: got no prompts, allowed: JSON lines such as {_EXAMPLE}")

    def __reduce__(self) -> tuple[type["PromptLines"], tuple[Path]]:
        """How it travels to another process: as its path."""
        return PromptLines, (self.path,)

    def __len__(self) -> int:
        """Number of prompts."""
        return len(self._starts)

    @overload
    def __getitem__(self, i: int) -> Prompt: ...

    @overload
    def __getitem__(self, i: slice) -> list[Prompt]: ...

    def __getitem__(self, i: int | slice) -> Prompt | list[Prompt]:
        """Prompt i, or a list of those of a slice; IndexError outside."""
        numbers = range(len(self))[i]
        with self.path.open("rb") as file:
            if isinstance(numbers, int):
                file.seek(int(self._starts[numbers]))
                return self._parse(file.readline(MAX_LINE_BYTES + 1), numbers)
            found = []
            for number in numbers:
                file.seek(int(self._starts[number]))
                found.append(self._parse(file.readline(MAX_LINE_BYTES + 1), number))
            return found

    def __iter__(self) -> Iterator[Prompt]:
        """All prompts in order, in one pass over the file."""
        with self.path.open("rb") as file:
            for number, start in enumerate(self._starts):
                if file.tell() != start:
                    file.seek(int(start))
                yield self._parse(file.readline(MAX_LINE_BYTES + 1), number)

    def _parse(self, line: bytes, number: int) -> Prompt:
        try:
            return prompt_of_line(line)
        except UserError as error:
            with self.path.open("rb") as file:  # lines are numbered only where one is to be named
                left, before = int(self._starts[number]), 0
                while left and (block := file.read(min(left, 1 << 20))):
                    before, left = before + block.count(b"\n"), left - len(block)
            raise UserError(f"{self.path.name}, line {before + 1}: {error}") from error


class PromptFiles(Sequence[Prompt]):
    """Prompts of several files, one after the other."""

    def __init__(self, files: Sequence[PromptLines]) -> None:
        """Take the files in their order."""
        self._files = tuple(files)

    def __len__(self) -> int:
        """Number of prompts."""
        return sum(map(len, self._files))

    @overload
    def __getitem__(self, i: int) -> Prompt: ...

    @overload
    def __getitem__(self, i: slice) -> list[Prompt]: ...

    def __getitem__(self, i: int | slice) -> Prompt | list[Prompt]:
        """Prompt i, or a list of those of a slice; IndexError outside."""
        if isinstance(i, slice):
            return [self[number] for number in range(len(self))[i]]
        left = range(len(self))[i]
        for lines in self._files:
            if left < len(lines):
                return lines[left]
            left -= len(lines)
        raise IndexError(i)

    def __iter__(self) -> Iterator[Prompt]:
        """All prompts in order, in one pass over each file."""
        return itertools.chain.from_iterable(self._files)


def prompt_of_line(line: bytes) -> Prompt:
    """Prompt of one line of JSON.

    Raises:
        UserError: it is none.
    """
    if len(line) > MAX_LINE_BYTES:
        raise UserError(f"got more than {MAX_LINE_BYTES} bytes, allowed: {MAX_LINE_BYTES}")
    try:
        record = json.loads(line.decode())
    except UnicodeDecodeError as error:
        raise UserError(f"not UTF-8 text at byte {error.start + 1}") from error
    except (ValueError, RecursionError) as error:
        got = line.strip()[:60].decode(errors="replace")
        raise UserError(f"got {got!r}, allowed: JSON such as {_EXAMPLE}") from error
    return Prompt.from_json(record)
