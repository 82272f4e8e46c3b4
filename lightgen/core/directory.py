"""A directory whose files are never half written: safe names, hashes, synced renames, one writer."""

import contextlib
import errno
import hashlib
import json
import os
import re
import stat
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from lightgen.core.errors import UserError

TMP = ".tmp"
_LITTER = (".DS_Store", "Thumbs.db", "desktop.ini")  # file browsers leave these behind unasked
_JSON_MAX_BYTES = 64 * 2**20
_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP)


def is_plain(name: str) -> bool:
    """Whether a name is a relative path in one spelling that stays inside its directory, on any system."""
    return not re.search(r'[\x00-\x1f\\:*?"<>|]', name) and all(part.strip(" .") for part in name.split("/"))


def walk(path: Path) -> list[str]:
    """Sorted relative names of all files, without file browsers' litter.

    Raises:
        UserError: it holds a link or a device, which could lead outside.
    """
    names, directories = [], [path]
    while directories:
        for entry in os.scandir(directories.pop()):
            if entry.is_dir(follow_symlinks=False):
                directories.append(Path(entry.path))
                continue
            name = Path(entry.path).relative_to(path).as_posix()
            if not entry.is_file(follow_symlinks=False):
                raise UserError(f"{path}: {name!r} is a link or device, allowed: files and directories")
            if entry.name not in _LITTER:
                names.append(name)
    return sorted(names)


def file_entry(path: Path) -> dict[str, Any]:
    """What a list of files notes about one: `sha256` [64 hex digits] and `bytes`."""
    with path.open("rb") as file:
        return {"sha256": hashlib.file_digest(file, "sha256").hexdigest(), "bytes": path.stat().st_size}


def check_files(path: Path, files: Mapping[str, Any], *, beside: Iterable[str], verify: bool) -> None:
    """Check that a directory holds exactly the listed files, of their sizes and (if `verify`) their hashes.

    Args:
        path: the directory.
        files: entries as of `file_entry`, by name.
        beside: names of files that are not listed, such as the one that holds the list.
        verify: whether to read the files.

    Raises:
        UserError: a file is missing, unlisted, a link or altered, or the list is unsound.
    """
    for name, entry in files.items():
        if not is_plain(name) or name in beside:
            raise UserError(f"{path}: got listed name {name!r}, allowed: plain relative paths")
        whole = isinstance(entry, dict) and type(entry.get("bytes")) is int
        if not whole or not re.fullmatch(r"[0-9a-f]{64}", str(entry.get("sha256"))):
            raise UserError(f"{path}: the listed entry of {name!r} is damaged, allowed: sha256 and bytes")
    present = set(walk(path))
    for name in sorted(files.keys() - present):
        raise UserError(f"{path}: {name!r} is missing, allowed: every file that is listed")
    for name in sorted(present - files.keys() - set(beside)):
        raise UserError(f"{path}: holds {name!r}, allowed: only files that are listed")
    for name, entry in files.items():
        size = (path / name).stat().st_size
        if size != entry["bytes"]:
            raise UserError(
                f"{path}: {name!r} has {size} bytes, allowed: the {entry['bytes']} that are listed"
            )
        if verify and file_entry(path / name) != entry:
            raise UserError(f"{path}: {name!r} is damaged (its sha256 is not the listed one); make it again")


@contextlib.contextmanager
def whole_file(final: Path) -> Iterator[Path]:
    """Temporary path to write to; it takes the final name, synced, if the block ends well, else it goes."""
    temporary = final.with_name(final.name + TMP)
    try:
        yield temporary
        with temporary.open("r+b") as file:
            os.fsync(file.fileno())
        temporary.replace(final)
    finally:
        temporary.unlink(missing_ok=True)


def json_bytes(value: Any) -> bytes:  # noqa: ANN401  (any JSON-able value)
    """UTF-8 JSON text of a value; numbers must be finite."""
    return (json.dumps(value, indent=1, allow_nan=False, ensure_ascii=False) + "\n").encode()


def read_json_object(path: Path) -> tuple[dict[str, Any], bytes] | None:
    """Object in a JSON file and the file's bytes, or None where it is too long or holds no object."""
    with path.open("rb") as file:
        data = file.read(_JSON_MAX_BYTES + 1)
    try:
        value = json.loads(data) if len(data) <= _JSON_MAX_BYTES else None
    except (ValueError, RecursionError):
        return None
    return (value, data) if isinstance(value, dict) else None


def sync_directory(path: Path) -> None:
    """Make renames inside the directory survive a power cut; Windows has no such call."""
    if sys.platform != "win32":
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def share_as(model: Path, paths: Sequence[Path]) -> None:
    """Let the same people read all paths who may read the model; safetensors shuts out all but the owner."""
    mode = stat.S_IMODE(model.stat().st_mode)
    for path in paths:
        if stat.S_IMODE(path.stat().st_mode) != mode:
            with contextlib.suppress(PermissionError):  # a link to somebody else's weights
                path.chmod(mode)


def lock_file(path: Path) -> IO[bytes] | None:
    """Open lock file, held by this process until it is closed or the process dies; None if another holds it.

    File systems without locks (some cluster mounts) grant it always.
    """
    file = path.open("ab")
    try:
        if sys.platform == "win32":
            import msvcrt

            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            file.close()
            if isinstance(error, BlockingIOError | PermissionError):
                return None
            raise
    # the other writer may have moved the directory to its place between our open and our lock
    if not path.exists() or not os.path.samestat(os.fstat(file.fileno()), path.stat()):
        file.close()
        return None
    return file
