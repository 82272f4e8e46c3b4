"""Where a result comes from: the versions of the libraries and the commit of the code."""

import contextlib
import importlib.metadata
import platform
import subprocess
from pathlib import Path

_LIBRARIES = (
    "lightgen",
    "torch",
    "numpy",
    "safetensors",
    "diffusers",
    "transformers",
    "tokenizers",
    "pillow",
)


def library_versions() -> dict[str, str]:
    """Version of Python and of each installed library that results depend on; nothing is imported for it."""
    found = {"python": platform.python_version()}
    for name in _LIBRARIES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def code_commit() -> str | None:
    """Commit of the checkout that this code runs from (`-dirty` where changed), or None outside one."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        run = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
        return run.stdout.strip() or None
    return None
