"""Single files that are fetched once, and are what their hash says ever after."""

import hashlib
import http.client
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from lightgen.core.cache import cache_folder
from lightgen.core.config import environment
from lightgen.core.directory import whole_file
from lightgen.core.errors import UserError
from lightgen.core.progress import say

_TIMEOUT_S = 60.0


@dataclass(frozen=True, kw_only=True)
class Pinned:
    """A file of the network: its address, the SHA-256 [64 hex digits] of its bytes, and how many they are."""

    url: str
    sha256: str
    size: int

    @property
    def name(self) -> str:
        """Last part of the address."""
        return self.url.rpartition("/")[2]


# The sum is that of the 553 prompts which GenEval's generator makes of its seed, 43.
GENEVAL = Pinned(
    url="https://raw.githubusercontent.com/djghosh13/geneval/main/prompts/evaluation_metadata.jsonl",
    sha256="5c48e0813e812e3c373fa5c8ed07a8f0a483be30272b4427b0559c8048e67c13",
    size=85_209,
)


def fetch(file: Pinned) -> Path:
    """Path of a pinned file in the cache, where it is fetched to unless it is there.

    Raises:
        UserError: it is not there and cannot be fetched, or what came is something else.
    """
    path = cache_folder("files") / f"{file.sha256[:16]}-{file.name}"
    if path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == file.sha256:
        return path
    allowed = f"allowed: a network, or --prompts FILE with a copy of {file.url}"
    if environment("HF_HUB_OFFLINE") not in (None, "0"):
        raise UserError(f"{file.name}: not in the cache, and HF_HUB_OFFLINE is set; {allowed}")
    say(f"fetching {file.url}")
    try:
        with urllib.request.urlopen(file.url, timeout=_TIMEOUT_S) as answer:
            data = answer.read(file.size + 1)
    except (OSError, http.client.HTTPException) as error:  # of URLs too
        raise UserError(f"{file.name}: not fetched ({str(error)[:200]}); {allowed}") from error
    found = hashlib.sha256(data).hexdigest()
    if found != file.sha256 or len(data) != file.size:
        raise UserError(
            f"{file.url}: got {len(data)} bytes of SHA-256 {found[:16]}..., allowed: {file.size} bytes of "
            f"{file.sha256[:16]}...; the file is not the one that was pinned, so nothing is kept"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as temporary:
        temporary.write_bytes(data)
    return path
