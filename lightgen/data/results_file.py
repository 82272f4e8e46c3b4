"""Results of a benchmark in its own format: a JSON line per image."""

import json
from collections.abc import Iterable, Mapping
from typing import Any


def result_lines(records: Iterable[Mapping[str, Any]]) -> bytes:
    """Bytes of the file: `filename`, `tag`, `prompt`, `correct`, `reason`, `metadata`, `details` for GenEval.

    `metadata` and `details` are JSON within the JSON, as GenEval's own `results.jsonl` has them, so that its
    `summary_scores.py` reads the file. Source: djghosh13/geneval:evaluation/evaluate_images.py @16f1681.
    """
    return b"".join(json.dumps(record, ensure_ascii=False).encode() + b"\n" for record in records)
