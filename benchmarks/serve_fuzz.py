"""Nonsense at a server, and what it answers; see `serve_load.py`."""

import argparse
import asyncio
import sys
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from serve_faults import ordinary  # noqa: E402
from serve_mutants import Mutants  # noqa: E402
from serve_probe import Answer, MemoryWatch, Server, quantile, send, serving  # noqa: E402

from lightgen.core.draws import numpy_draws  # noqa: E402


def run_fuzz(found: argparse.Namespace) -> dict[str, Any]:
    """Nonsense of every kind; answers are errors of the client, or pictures where it made sense after all."""
    mutants = Mutants(numpy_draws(found.seed, "serve-fuzz"))
    with serving(model=found.model) as server:
        asyncio.run(ordinary(server, 3.0))
        memory = server.memory_mb()
        rows, seen = asyncio.run(throw(server, mutants, found.count, found.at_a_time))
        peak = max(each for _, each in seen)
        alive = asyncio.run(ordinary(server, 1.0))
        troubles = server.troubles()
    wrong = [(kind, a.status, a.body[:200].decode("latin-1")) for kind, a in rows if not _is_fair(kind, a)]
    leaks = [a.body[:300].decode("latin-1") for _, a in rows if a.status >= 400 and mutants.leaks(a.body)]
    kinds: dict[str, Counter[str]] = {}
    for kind, answer in rows:
        kinds.setdefault(kind, Counter())[str(answer.status)] += 1
    slow = [a.seconds for _, a in rows if a.status >= 400]
    return {
        "count": len(rows),
        "kinds": {kind: dict(sorted(each.items())) for kind, each in sorted(kinds.items())},
        "wrong": wrong[:20],
        "leaks": leaks[:20],
        "refused_p99_s": quantile(slow, 0.99),
        "memory_before_mb": round(memory, 1),
        "memory_most_mb": round(peak, 1),
        "troubles": troubles[:20],
        "reached": {
            "only 200 and errors of the client": not wrong,
            "no path or address in an answer": not leaks,
            "the server lives": {each.status for each in alive} == {200},
            "memory grows <= 200 MiB": peak - memory <= 200,
            "no exception": not troubles,
        },
    }


async def throw(
    server: Server, mutants: Mutants, count: int, at_a_time: int
) -> tuple[list[tuple[str, Answer]], list[tuple[float, float]]]:
    """(Kind, answer) of each mutant, and the memory meanwhile."""
    rows: list[tuple[str, Answer]] = []
    left = iter(range(count))

    async def go() -> None:
        for _ in left:
            kind, data = mutants.next()
            rows.append((kind, await send(server.port, data)))

    async with MemoryWatch(server) as memory:
        await asyncio.gather(*(go() for _ in range(at_a_time)))
    return rows, memory.rows


def _is_fair(kind: str, answer: Answer) -> bool:
    """Whether nonsense may be answered so; without an answer only where the request never became whole."""
    return answer.status == 200 or 400 <= answer.status < 500 or (kind == "head" and answer.status == 0)
