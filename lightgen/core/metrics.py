"""The record of a run's numbers: one JSON object per line, of which a crash costs at most the last."""

import json
import math
import os
from pathlib import Path
from typing import Any

from lightgen.core.errors import UserError


class MetricsLog:
    """Append-only JSONL file of measurements, each with its step."""

    def __init__(self, path: Path) -> None:
        """Open or create the log; a last line torn by a crash is cut off."""
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self.path.exists():
            whole = _whole_bytes(self.path)
            if whole < self.path.stat().st_size:
                os.truncate(self.path, whole)
        else:
            self.path.touch()

    def write(self, step: int, **values: float | int | str | bool | None) -> None:
        """Append one line `{"step": ..., ...}`; a number that is not finite is written as null."""
        record = {"step": int(step), **{name: _finite(value) for name, value in values.items()}}
        line = json.dumps(record, allow_nan=False).encode() + b"\n"
        with self.path.open("ab", buffering=0) as file:
            start = file.seek(0, os.SEEK_END)
            try:
                if file.write(line) != len(line):
                    raise OSError(f"{self.path}: short write, is the disk full?")
            except OSError:
                file.truncate(start)
                raise

    def truncate_after(self, step: int) -> None:
        """Drop every line of a later step, so that a resumed run does not record a step twice."""
        kept = [record for record in read_metrics(self.path) if record["step"] <= step]
        temporary = self.path.with_name(self.path.name + ".tmp")
        try:
            with temporary.open("w", encoding="utf-8") as file:
                file.writelines(json.dumps(record) + "\n" for record in kept)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(self.path)
        finally:
            temporary.unlink(missing_ok=True)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Records of a log in order; a torn last line is ignored, a missing file is an empty log.

    Raises:
        UserError: another line is not an object with a whole `step`.
    """
    path = Path(path)
    if not path.exists():
        return []
    with path.open("rb") as file:
        data = file.read(_whole_bytes(path))
    records = []
    for number, line in enumerate(data.splitlines(), start=1):
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            record = None
        if not isinstance(record, dict) or type(record.get("step")) is not int:
            raise UserError(f"{path}: line {number} is {line[:60]!r}, allowed: an object with a whole 'step'")
        records.append(record)
    return records


def _whole_bytes(path: Path) -> int:
    """Length of the file up to and with its last line end."""
    with path.open("rb") as file:
        end = file.seek(0, os.SEEK_END)
        while end > 0:
            start = max(0, end - 65536)
            file.seek(start)
            position = file.read(end - start).rfind(b"\n")
            if position >= 0:
                return start + position + 1
            end = start
    return 0


def _finite(value: float | int | str | bool | None) -> float | int | str | bool | None:
    return None if isinstance(value, float) and not math.isfinite(value) else value
