"""What is told of an image beside it: its JSON, its text, and which of their words is the caption.

The caption of an image, the `prompt` of its record, is the first that is there and not blank of: `prompt` of
its JSON, which it was drawn from; its text file; then `caption`, `text`, `long_caption`, `description` of its
JSON. Of a list of captions it is the first. A user who names a key (or `txt`, the text file) takes no other.
"""

import json
import math
from collections.abc import Mapping
from typing import Any

TEXT = "txt"
CAPTION_KEYS = ("prompt", "caption", "text", "long_caption", "description")


def read_sidecar(data: bytes | None, text: bytes | None, caption: str | None = None) -> dict[str, Any]:
    """Meta of an image with its caption as `prompt`; numbers that are not finite become None.

    Args:
        data: JSON beside the image, or None.
        text: text beside the image, or None.
        caption: the key to take the caption from, `txt` for the text; None for the first that is there.

    Raises:
        ValueError: the JSON is no object, the text is no UTF-8, or there is no caption; with what is wrong.
    """
    meta: Any = {}
    if data is not None:
        try:
            meta = json.loads(data, parse_constant=lambda _: None, parse_float=_finite)
        except (ValueError, RecursionError) as error:
            raise ValueError("its JSON cannot be read") from error
        if not isinstance(meta, dict):
            raise ValueError("its JSON is not an object")
    words = None
    if text is not None:
        try:
            words = text.decode("utf-8-sig").strip()
        except UnicodeDecodeError as error:
            raise ValueError("its text is not UTF-8") from error
    return {**meta, "prompt": find_caption(meta, words, caption)}


def find_caption(meta: Mapping[str, Any], text: str | None = None, caption: str | None = None) -> str:
    """Caption of an image, of its meta or its text.

    Raises:
        ValueError: there is none.
    """
    if caption is not None:
        found = [text if caption == TEXT else _first(meta.get(caption))]
    else:
        head, *others = (_first(meta.get(key)) for key in CAPTION_KEYS)
        found = [head, text, *others]
    for words in found:
        if words and words.strip():
            return words.encode("utf-8", "replace").decode()  # lone surrogates, which no tokenizer takes
    if isinstance(meta.get("prompt"), str) and caption is None:
        return ""  # asked for without words, which is what unconditional samples are
    wanted = caption or f"none of {', '.join(CAPTION_KEYS)}"
    raise ValueError(f"it has no caption ({wanted})")


def _first(value: Any) -> str | None:  # noqa: ANN401  (any JSON value)
    value = value[0] if isinstance(value, list) and value else value
    return value if isinstance(value, str) else None


def _finite(digits: str) -> float | None:
    value = float(digits)
    return value if math.isfinite(value) else None
