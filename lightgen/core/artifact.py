"""Artifacts: directories that appear only when whole, with their making and every file's hash noted."""

import contextlib
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Self

from lightgen.core.config import digest, first_difference
from lightgen.core.directory import (
    TMP,
    check_files,
    file_entry,
    is_plain,
    json_bytes,
    lock_file,
    read_json_object,
    share_as,
    sync_directory,
    walk,
    whole_file,
)
from lightgen.core.errors import UserError
from lightgen.core.provenance import code_commit, library_versions

KINDS = ("prompts", "images", "latents", "checkpoint", "report")
SCHEMA = 1

_MANIFEST, _PARTIAL, _LOCK = "manifest.json", "partial.json", "partial.lock"
_IDENTITY_TYPES = {"kind": str, "config": dict, "config_digest": str, "parents": list}
_MANIFEST_TYPES = {**_IDENTITY_TYPES, "schema": int, "versions": dict, "counts": dict, "files": dict}


class ArtifactError(UserError):
    """An artifact that is missing, damaged, of the wrong kind, or in the way; one line that names it."""


@dataclass(frozen=True)
class Artifact:
    """A whole artifact on disk.

    Attributes:
        path: its directory.
        manifest: its manifest, checked.
        digest: SHA-256 [64 hex digits] of the manifest's bytes, hence of everything that the manifest hashes.
    """

    path: Path
    manifest: dict[str, Any]
    digest: str

    @property
    def kind(self) -> str:
        """One of KINDS."""
        return self.manifest["kind"]

    @property
    def counts(self) -> dict[str, int]:
        """How many of what it holds."""
        return self.manifest["counts"]

    @property
    def config(self) -> dict[str, Any]:
        """Resolved config of the stage that made it."""
        return self.manifest["config"]

    @property
    def parents(self) -> list[dict[str, str]]:
        """Name, kind and digest of each artifact that it was made from."""
        return self.manifest["parents"]


def open_artifact(path: str | Path, *kinds: str, verify: bool = True) -> Artifact:
    """Artifact at the path, of one of the kinds (of any, if none is named).

    Args:
        path: the directory.
        kinds: the kinds that the caller can read.
        verify: also hash every file; names and sizes are checked in any case.

    Raises:
        ArtifactError: it is missing, of another kind or schema, or a file is missing, unlisted or altered.
    """
    assert set(kinds) <= set(KINDS), kinds
    path = Path(path)
    if not path.is_dir() or not (path / _MANIFEST).is_file() or (path / _MANIFEST).is_symlink():
        found = f"no {_MANIFEST}" if path.is_dir() else "no such directory"
        if workspace_of(path).is_dir():
            found = "unfinished, run its stage again"
        raise ArtifactError(f"{path}: {found}; allowed: a directory that a lightgen stage finished")
    manifest, data = read_json_object(path / _MANIFEST) or ({}, b"")
    if not manifest:
        raise ArtifactError(f"{path}: {_MANIFEST} is damaged, allowed: one that lightgen wrote")
    if manifest.get("schema") != SCHEMA:
        raise ArtifactError(f"{path}: got artifact schema {manifest.get('schema')!r}, allowed: {SCHEMA}")
    wrong = _first_wrong(manifest, _MANIFEST_TYPES)
    if wrong:
        raise ArtifactError(f"{path}: {_MANIFEST} has no valid {wrong!r}, allowed: one that lightgen wrote")
    if manifest["kind"] not in (kinds or KINDS):
        raise ArtifactError(f"{path}: got kind {manifest['kind']!r}, allowed: {' or '.join(kinds or KINDS)}")
    try:
        check_files(path, manifest["files"], beside=(_MANIFEST, _LOCK), verify=verify)
    except UserError as error:
        raise ArtifactError(str(error)) from error
    return Artifact(path=path, manifest=manifest, digest=hashlib.sha256(data).hexdigest())


def kind_of(path: str | Path) -> str | None:
    """Kind that a directory says it is; None where it is no artifact."""
    path = Path(path) / _MANIFEST
    return (read_json_object(path) or ({}, b""))[0].get("kind") if path.is_file() else None


class Workspace:
    """The place of an artifact in the making; a killed stage reopens it and goes on with what is there.

    Files appear under their name only when whole. As a context it ends by giving up the lock, not the work.
    """

    def __init__(self, out: Path, begun: dict[str, Any], lock: IO[bytes]) -> None:
        """Hold the locked directory beside `out`; `begin_artifact` makes these."""
        self.out, self.path = out, workspace_of(out)
        self._begun, self._lock = begun, lock

    def __enter__(self) -> Self:
        """Return the workspace itself."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Give up the lock; where nothing was made yet, the place too, so that another run may have it."""
        if not self._lock.closed and self.path.is_dir() and not set(walk(self.path)) - {_PARTIAL, _LOCK}:
            shutil.rmtree(self.path)
        self.release()

    def has(self, name: str) -> bool:
        """Whether a whole file of this name is there."""
        return self._at(name).is_file()

    @contextlib.contextmanager
    def file(self, name: str) -> Iterator[Path]:
        """Temporary path to write to (it ends in `.tmp`); it takes its name if the block ends well."""
        final = self._at(name)
        final.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(final) as temporary:
            yield temporary

    def write_bytes(self, name: str, data: bytes) -> None:
        """Write a file at once."""
        with self.file(name) as temporary:
            temporary.write_bytes(data)

    def write_json(self, name: str, value: Any) -> None:  # noqa: ANN401  (any JSON-able value)
        """Write a JSON file at once."""
        self.write_bytes(name, json_bytes(value))

    def remove(self, name: str) -> None:
        """Remove a file, or a directory such as `state` with all it holds, if it is there."""
        path = self._at(name)
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)

    def commit(self, counts: Mapping[str, int], **extra: Any) -> Artifact:  # noqa: ANN401  (JSON-able values)
        """Artifact of everything in the workspace, hashed, synced and moved to its place.

        Args:
            counts: how many of what it holds.
            extra: further entries of the manifest.
        """
        assert not set(extra) & {*_MANIFEST_TYPES, "commit"}, extra
        names = [name for name in walk(self.path) if name not in (_PARTIAL, _LOCK, _MANIFEST)]
        assert not any(name.endswith(TMP) for name in names), f"{self.path}: a file is still being written"
        manifest = {
            **self._begun,
            "schema": SCHEMA,
            "versions": library_versions(),
            "commit": code_commit(),
            "counts": {name: int(count) for name, count in counts.items()},
            "files": {name: file_entry(self.path / name) for name in names},
            **extra,
        }
        data = json_bytes(manifest)
        with whole_file(self.path / _MANIFEST) as temporary:
            temporary.write_bytes(data)
        share_as(self.path / _MANIFEST, [self.path / name for name in names])
        inner = {each for name in names for each in Path(name).parents}
        for directory in {self.path / each for each in inner} | {self.path}:
            sync_directory(directory)
        _refuse_occupied(self.out)
        (self.path / _PARTIAL).unlink()
        if sys.platform == "win32":
            self.release()  # Windows moves no directory that holds an open file
        self.path.replace(self.out)
        sync_directory(self.out.parent)
        # only now: were it gone before the move, another writer could lock the directory anew
        (self.out / _LOCK).unlink()
        self.release()
        return Artifact(path=self.out, manifest=json.loads(data), digest=hashlib.sha256(data).hexdigest())

    def release(self) -> None:
        """Give up the lock and leave the work for the next run."""
        self._lock.close()

    def _at(self, name: str) -> Path:
        if not is_plain(name) or name.endswith(TMP) or name in (_MANIFEST, _PARTIAL, _LOCK):
            raise ArtifactError(f"{self.out}: got file name {name!r}, allowed: a plain relative path")
        return self.path / name


def begin_artifact(
    out: str | Path, kind: str, config: Mapping[str, Any], parents: Sequence[Artifact]
) -> Workspace | Artifact:
    """The artifact, if exactly this one is already whole; else the workspace to make it in, new or reopened.

    Args:
        out: where the artifact will be; the workspace is a hidden directory beside it.
        kind: one of KINDS.
        config: resolved config of the stage; with the parents it says what the artifact is.
        parents: artifacts that it is made from.

    Raises:
        ArtifactError: something else is there, whole or unfinished, or another process is writing it.
    """
    assert kind in KINDS, kind
    out = Path(os.path.abspath(out))
    config = json.loads(json_bytes(config))
    begun = {
        "kind": kind,
        "config": config,
        "config_digest": digest(config),
        "parents": [{"name": p.path.resolve().name, "kind": p.kind, "digest": p.digest} for p in parents],
    }
    if (out / _MANIFEST).is_file():
        found = open_artifact(out, verify=False).manifest
        _refuse_other(out, found, begun, advice="name another --out, or delete it")
        return open_artifact(out, kind)
    _refuse_occupied(out)
    path = workspace_of(out)
    path.mkdir(parents=True, exist_ok=True)
    lock = lock_file(path / _LOCK)
    if lock is None:
        raise ArtifactError(f"{out}: another process is writing it, allowed: one at a time")
    try:
        _refuse_occupied(out)  # again, now that nobody else can move anything there
        _reopen(path, begun)
    except BaseException:
        lock.close()
        raise
    return Workspace(out, begun, lock)


def _reopen(path: Path, begun: dict[str, Any]) -> None:
    """Make the locked directory ready: drop torn files, refuse another's work, note what is being made."""
    names = []
    for name in walk(path):
        if name.endswith(TMP):
            (path / name).unlink()
        else:
            names.append(name)
    # a run killed inside commit() may have left the manifest instead of the note: either says what this is
    note = next((name for name in (_PARTIAL, _MANIFEST) if name in names), None)
    if note:
        found, _ = read_json_object(path / note) or ({}, b"")
        _refuse_other(path, found, begun, advice="finish that run, or delete the directory")
    elif names != [_LOCK]:
        raise ArtifactError(f"{path}: holds files of no known run, allowed: none; delete the directory")
    if note != _PARTIAL:
        with whole_file(path / _PARTIAL) as temporary:
            temporary.write_bytes(json_bytes(begun))
    (path / _MANIFEST).unlink(missing_ok=True)


def workspace_of(out: str | Path) -> Path:
    """Where an artifact is made that will be at `out`: a hidden directory beside it."""
    path = Path(os.path.abspath(out))
    return path.with_name(f".{path.name}.partial")


def _refuse_occupied(out: Path) -> None:
    """An empty directory is no hindrance; anything else is."""
    if out.is_dir() and not out.is_symlink() and not any(out.iterdir()):
        out.rmdir()
    if os.path.lexists(out):
        raise ArtifactError(f"{out}: exists already, allowed: a new path, or the same stage and config")


def _refuse_other(path: Path, found: dict[str, Any], begun: dict[str, Any], advice: str) -> None:
    """Refuse what has another kind, config or parents, and name the first difference."""
    if _first_wrong(found, _IDENTITY_TYPES):
        raise ArtifactError(f"{path}: does not say what it is, allowed: what this stage began; delete it")
    old_parents, parents = ([parent.get("digest") for parent in each["parents"]] for each in (found, begun))
    if found["kind"] != begun["kind"]:
        what = f"kind {found['kind']!r}, now {begun['kind']!r}"
    elif found["config_digest"] != begun["config_digest"]:
        what = first_difference(found["config"], begun["config"]) or "another config"
    elif old_parents != parents:
        what = f"parents {_briefly(old_parents)}, now {_briefly(parents)}"
    else:
        return
    raise ArtifactError(f"{path}: was made with {what}; {advice}")


def _briefly(digests: Sequence[Any]) -> str:
    return "[" + ", ".join(str(each)[:8] for each in digests) + "]"


def _first_wrong(record: Mapping[str, Any], types: Mapping[str, type]) -> str | None:
    """First key whose value is missing or of another type."""
    for key, kind in types.items():
        if type(record.get(key)) is not kind:
            return key
    if not all(isinstance(parent, dict) for parent in record["parents"]):
        return "parents"
    return None
