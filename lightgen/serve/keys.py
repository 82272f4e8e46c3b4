"""API keys: who may ask. Only their SHA-256 is kept."""

import hashlib
import hmac
from collections.abc import Iterable
from pathlib import Path

from lightgen.core.config import environment
from lightgen.core.errors import UserError

VARIABLE = "LIGHTGEN_API_KEYS"
MIN_KEY, MAX_KEY = 16, 512
_MAX_FILE_BYTES = 1 << 20


class Keys:
    """Keys that may ask; empty = everybody may.

    Raises:
        UserError: a key is too short to be one, too long, or not of plain visible characters.
    """

    def __init__(self, keys: Iterable[str] = ()) -> None:
        found = list(keys)
        for number, key in enumerate(found, start=1):
            if not MIN_KEY <= len(key) <= MAX_KEY or not key.isascii() or not key.isprintable() or " " in key:
                raise UserError(
                    f"API key {number}: got {len(key)} characters, allowed: {MIN_KEY} to {MAX_KEY} visible "
                    "ones of ASCII, one key per line"
                )
        self._digests = [hashlib.sha256(key.encode()).digest() for key in found]

    def __len__(self) -> int:
        return len(self._digests)

    def owner(self, key: str) -> str | None:
        """Name of the key's owner, a piece of its digest; None if it is no key.

        What is compared are digests, each in constant time and all of them always, so the time that it takes
        depends neither on which key it is nor on how much of one is right.
        """
        digest = hashlib.sha256(key.encode(errors="replace")).digest()
        matches = [hmac.compare_digest(digest, each) for each in self._digests]
        return digest.hex()[:16] if any(matches) else None


def load_keys(path: Path | None) -> Keys:
    """Keys of a file, one per line (# begins a comment), or else of the environment, blanks between them.

    Raises:
        UserError: the file is missing, too large, empty, or holds what is no key.
    """
    if path is None:
        return Keys((environment(VARIABLE) or "").replace(",", " ").split())
    if not path.is_file() or path.stat().st_size > _MAX_FILE_BYTES:
        raise UserError(
            f"--api-key-file: got {str(path)!r}, allowed: a file of at most {_MAX_FILE_BYTES} bytes"
        )
    try:
        lines = path.read_text("utf-8").splitlines()
    except UnicodeDecodeError:
        raise UserError(f"--api-key-file: got {str(path)!r}, allowed: a file of text") from None
    found = Keys(text for line in lines if (text := line.strip()) and not text.startswith("#"))
    if not found:
        raise UserError(f"--api-key-file: got no key in {str(path)!r}, allowed: one per line")
    return found
