"""Train state on disk: everything that an exact resume needs, whole or not at all, for any number of ranks.

A state is a folder `step-N` of safetensors files, one for each rank that holds a part, and `state.json` with
their hashes and its own. Tensors cut over ranks lie in the files as rows from `start` of `total`.
"""

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from lightgen.core.directory import file_entry, json_bytes, read_json_object, sync_directory, whole_file
from lightgen.core.errors import UserError
from lightgen.core.progress import say
from lightgen.core.ranks import Exchange, alone

_META = "state.json"
_WHOLE = "step-[0-9]*"


@dataclass(frozen=True)
class Piece:
    """Rows of a tensor that one rank holds.

    Attributes:
        tensor: these rows; of a tensor without rows, and where nothing is cut, all of it.
        start, total: first row, and rows of the whole tensor; total None = not cut.
    """

    tensor: torch.Tensor
    start: int = 0
    total: int | None = None


class State:
    """A saved state, open for reading; raises UserError where a file is not what it was when saved."""

    def __init__(self, path: Path, *, verify: bool = True) -> None:
        meta, _ = read_json_object(path / _META) or ({}, b"")
        said = meta.pop("sha256", None)
        if said != _digest(meta) or path.name != f"step-{meta['step']:08d}":
            raise UserError(f"train state {path}: {_META} is damaged")
        for name, entry in meta["files"].items() if verify else ():
            if not (path / name).is_file() or file_entry(path / name) != entry:
                raise UserError(f"train state {path}: {name} is damaged")
        self.path, self.step, self.notes = path, int(meta["step"]), meta["notes"]
        self._places: dict[str, list[tuple[Any, int, int | None]]] = {}
        for name in sorted(meta["files"]):
            file = safe_open(path / name, framework="pt")
            cut = json.loads((file.metadata() or {}).get("cut", "{}"))
            for tensor in file.keys():  # noqa: SIM118  (an open file is no mapping)
                start, total = cut.get(tensor, (0, None))
                self._places.setdefault(tensor, []).append((file, start, total))

    def names(self, part: str) -> list[str]:
        """Names of the tensors of a part such as `weights`, without it."""
        return [name.removeprefix(part + "/") for name in self._places if name.startswith(part + "/")]

    def full(self, name: str) -> torch.Tensor:
        """The whole tensor, on the CPU."""
        pieces = sorted(self._places[name], key=lambda place: place[1])
        parts = [file.get_tensor(name) for file, _, _ in pieces]
        return parts[0] if pieces[0][2] is None else torch.cat(parts)

    def read(self, name: str, into: Piece) -> None:
        """Fill a piece with its rows, however they were cut when saved.

        Raises:
            UserError: the state has no such tensor, or one of another size.
        """
        rows, found = into.tensor.shape[0] if into.tensor.ndim else 1, 0
        wanted = _whole_shape(into.tensor.shape, into.total)
        for file, start, total in self._places.get(name, ()):
            held = file.get_slice(name)
            if _whole_shape(held.get_shape(), total) != wanted:
                break
            if total is None and into.total is None:
                into.tensor.copy_(file.get_tensor(name))
                return
            first = max(into.start, start)
            last = min(into.start + rows, start + held.get_shape()[0])
            if first < last:
                into.tensor[first - into.start : last - into.start].copy_(held[first - start : last - start])
                found += last - first
        if found != rows:
            raise UserError(
                f"train state {self.path}: no {name!r} of this size, allowed: the state of this run"
            )


def save_state(
    folder: Path,
    step: int,
    pieces: Mapping[str, Piece],
    notes: Mapping[str, Any],
    *,
    rank: int = 0,
    exchange: Exchange = alone,
) -> Path | None:
    """Path of the state `folder/step-N`, whole, on the first rank; the others return None when it is.

    Every rank calls it with the pieces that it alone holds; a rank without any writes no file.

    Args:
        folder: of the states, seen by all ranks.
        step: optimizer steps done.
        pieces: by name, `PART/NAME`; on the CPU.
        notes: small facts to keep beside, of the first rank.
        rank: of this process.
        exchange: gives what every rank told, by rank, to each: 41 bytes.

    Raises:
        OSError: a file could not be written, here or by another rank; nothing of the state is left.
    """
    work = folder / f".step-{step:08d}.tmp"
    name = f"rank-{rank:05d}.safetensors"
    if rank == 0:
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
    exchange(bytes(41))  # the folder is there
    problem: OSError | SafetensorError | None = None
    told = bytes(41)
    if pieces:
        try:
            told = _write(work / name, pieces)
        except (OSError, SafetensorError) as error:  # the latter is what a full disk gives in save_file
            problem, told = error, b"\1" + bytes(40)
    entries = exchange(told)
    if any(entry[0] == 1 for entry in entries):
        if rank == 0:
            shutil.rmtree(work, ignore_errors=True)
        raise problem or OSError(f"train state of step {step}: another rank could not write its part")
    if rank:
        exchange(bytes(41))
        return None
    files = {
        f"rank-{number:05d}.safetensors": {
            "sha256": entry[9:].hex(),
            "bytes": int.from_bytes(entry[1:9], "little"),
        }
        for number, entry in enumerate(entries)
        if entry[0] == 2
    }
    meta = {"step": step, "notes": dict(notes), "files": files}
    try:
        with whole_file(work / _META) as temporary:
            temporary.write_bytes(json_bytes({**meta, "sha256": _digest(meta)}))
        sync_directory(work)
        final = folder / f"step-{step:08d}"
        shutil.rmtree(final, ignore_errors=True)
        work.replace(final)
        sync_directory(folder)
    except OSError:
        shutil.rmtree(work, ignore_errors=True)
        raise
    exchange(bytes(41))  # the others may go on only now
    return final


def _write(path: Path, pieces: Mapping[str, Piece]) -> bytes:
    """Write one rank's file; what it tells the others: 2, the size, the hash."""
    cut = {name: (piece.start, piece.total) for name, piece in pieces.items() if piece.total is not None}
    with whole_file(path) as temporary:
        tensors = {name: piece.tensor.contiguous() for name, piece in pieces.items()}
        save_file(tensors, temporary, metadata={"cut": json.dumps(cut)})
    entry = file_entry(path)
    return b"\2" + entry["bytes"].to_bytes(8, "little") + bytes.fromhex(entry["sha256"])


def newest_step(folder: Path) -> int:
    """Step of the newest state that is what it was when saved; 0 where there is none at all.

    Raises:
        UserError: states exist and every one of them is damaged.
    """
    found = sorted(folder.glob(_WHOLE), reverse=True)
    for path in found:
        try:
            return State(path).step
        except (OSError, UserError, SafetensorError, KeyError, TypeError, ValueError) as error:
            say(f"{str(error).splitlines()[0]}; the one before is used")
    if found:
        raise UserError(
            f"train state {folder}: all {len(found)} saved states are damaged; remove it to start anew"
        )
    return 0


def open_state(folder: Path, step: int) -> State:
    """The state of a step, which `newest_step` has checked."""
    return State(folder / f"step-{step:08d}", verify=False)


def drop_states_after(folder: Path, step: int) -> None:
    """Remove the states of later steps: they are damaged, and would count as the newest."""
    for path in folder.glob(_WHOLE):
        if int(path.name.removeprefix("step-")) > step:
            shutil.rmtree(path, ignore_errors=True)


def prune_states(folder: Path, keep_last: int, keep_every: int | None) -> list[int]:
    """Steps whose states stay: the newest few, and every so many for good; the others are removed."""
    kept = []
    for number, path in enumerate(sorted(folder.glob(_WHOLE), reverse=True)):
        step = int(path.name.removeprefix("step-"))
        if number < keep_last or (keep_every is not None and step % keep_every == 0):
            kept.append(step)
        else:
            shutil.rmtree(path, ignore_errors=True)
    return kept


def _whole_shape(shape: Sequence[int], total: int | None) -> list[int]:
    """Shape of a tensor of which a piece has this one."""
    return list(shape) if total is None else [total, *shape[1:]]


def _digest(meta: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(meta, sort_keys=True).encode()).hexdigest()
