"""Checkpoints on the Hugging Face Hub: the one place that downloads anything."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import huggingface_hub
from huggingface_hub.errors import EntryNotFoundError, HTTPError  # pyright: ignore[reportPrivateImportUsage]

from lightgen.core.directory import file_entry
from lightgen.core.errors import UserError
from lightgen.core.progress import say
from lightgen.stages.checkpoint import is_shipped, open_checkpoint

# Weights and vocabularies; neither code nor pickles, whatever a repository holds beside them.
PATTERNS = (
    "model_index.json",
    *(
        f"{part}/*.{kind}"
        for part in ("transformer", "vae", "text_encoder")
        for kind in ("json", "safetensors")
    ),
    *(f"tokenizer/*.{kind}" for kind in ("json", "txt", "model")),
)
_K = TypeVar("_K")
_NAME = r"[A-Za-z0-9][\w.-]{0,95}"
_ID = re.compile(f"{_NAME}/{_NAME}", re.ASCII)


def folder_of(
    name: str | Path,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
) -> Path:
    """Folder in the diffusers layout of a folder, a shipped student or a repository; see `download`.

    Raises:
        UserError: there is none, or a checkpoint's files are not what its manifest says.
    """
    folder = Path(name)
    if isinstance(name, str) and _ID.fullmatch(name) and not folder.exists():
        return download(name, revision, cache_dir, local_files_only)
    is_saved = (folder / "model_index.json").is_file() and not (folder / "manifest.json").is_file()
    return folder if is_saved and not is_shipped(name) else open_checkpoint(name).path


def download(
    name: str,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
) -> Path:
    """Folder with the parts of a repository on the Hub, from the cache where they are there already.

    Args:
        name: of the repository, `owner/name`.
        revision: branch, tag or commit; None = the main branch.
        cache_dir: where downloads are kept; None = where the Hub's own tools keep them.
        local_files_only: take the cache as it is and ask nobody.

    Raises:
        UserError: there is no such folder or repository, it may not be read, or the network is missing.
    """
    try:
        return Path(
            huggingface_hub.snapshot_download(
                name,
                revision=revision,
                cache_dir=cache_dir,
                local_files_only=local_files_only,
                allow_patterns=list(PATTERNS),
            )
        )
    except (OSError, ValueError, HTTPError, EntryNotFoundError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # of the disk, as when it is full
        why = (str(error).strip() or "no reason given").splitlines()[0][:200]
        raise UserError(
            f"{name}: no folder here, and not read from the Hub ({type(error).__name__}: {why}); "
            "allowed: a folder, nano, or OWNER/NAME of a repository that can be reached"
        ) from error


def cached(name: str, patterns: Sequence[str]) -> Path:
    """Path of a folder or file here, or of a repository in the Hub's cache; nothing is downloaded.

    Args:
        name: path, or `owner/name`.
        patterns: files of the repository that are wanted.

    Raises:
        UserError: it is neither.
    """
    path = Path(name)
    if path.exists():
        return path
    if not _ID.fullmatch(name):
        raise UserError(
            f"{name}: no such file or folder, allowed: one here, or OWNER/NAME in the Hub's cache"
        )
    try:
        return Path(
            huggingface_hub.snapshot_download(name, local_files_only=True, allow_patterns=list(patterns))
        )
    except (EntryNotFoundError, ValueError) as error:
        wanted = " ".join(f"--include {pattern!r}" for pattern in patterns)
        raise UserError(
            f"{name}: not here and not in the Hub's cache, allowed: what was fetched before, by "
            f"`hf download {name} {wanted}`"
        ) from error


def hash_files(name: str, paths: Mapping[_K, Path]) -> dict[_K, str]:
    """SHA-256 [64 hex digits] of a model's files by their keys; says so where that takes a while."""
    size = sum(path.stat().st_size for path in paths.values())
    if size > 2**30:
        say(f"{name}: hashing {size / 2**30:.1f} GiB")
    return {key: file_entry(path)["sha256"] for key, path in paths.items()}
