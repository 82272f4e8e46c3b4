"""Doctor: what this machine has, and what is missing, one line each."""

import os
import platform
from collections.abc import Callable, Iterator

import torch

from lightgen.core.artifact import Artifact
from lightgen.core.errors import UserError
from lightgen.core.provenance import library_versions
from lightgen.ports.nano.font import draw_glyph, find_font
from lightgen.stages.checkpoint import NANO, open_checkpoint, open_detector


def doctor() -> Iterator[tuple[str, str, bool]]:
    """(What, finding, whether all is well) of each thing that lightgen needs."""
    yield "python", f"{platform.python_version()} on {platform.system()} {platform.machine()}", True
    versions = library_versions()
    yield (
        "libraries",
        ", ".join(f"{n} {v}" for n, v in versions.items() if n not in ("python", "lightgen")),
        True,
    )
    yield "device", _device(), True
    yield "threads", f"{torch.get_num_threads()} of {os.cpu_count()} processors", True
    yield _checked("emoji font", _font)
    yield _checked("weights nano", lambda: _weights(open_checkpoint(NANO)))
    yield _checked("weights nano-detector", lambda: _weights(open_detector(NANO)))


def _checked(what: str, find: Callable[[], str]) -> tuple[str, str, bool]:
    try:
        return what, find(), True
    except UserError as error:
        return what, str(error), False


def _device() -> str:
    if torch.cuda.is_available():
        return f"{torch.cuda.get_device_name(0)} (CUDA {torch.version.cuda})"
    return f"CPU ({torch.backends.cpu.get_cpu_capability()})"


def _font() -> str:
    draw_glyph("\N{RED APPLE}")
    return str(find_font())


def _weights(artifact: Artifact) -> str:
    size = sum(entry["bytes"] for entry in artifact.manifest["files"].values())
    return f"{size / 2**20:.1f} MiB, whole, digest {artifact.digest[:12]}"
