"""What `lightgen serve` does under load, and with clients that leave, dawdle or send nonsense.

    python benchmarks/serve_load.py load --seconds 300 --times 3 --json benchmarks/results/serve-load.json
    python benchmarks/serve_load.py disconnects --count 1000 --json ...
    python benchmarks/serve_load.py loris --slow 100 --json ...
    python benchmarks/serve_load.py fuzz --count 10000 --json ...

`load` measures capacity first, in turns with a server that draws one picture at a time (--max-running 1).
Then 200 clients with a key each send at times of a Poisson process, without waiting for each other (open
loop), at a multiple of that capacity. Accepted pictures must be there within queue limit x batch time: with W
waiting and R running places, W / R + 1 times the mean seconds from joining a full batch to leaving it, plus
10 %. Each subcommand puts its part into the document and leaves the others; the exit code is 1 where a mark
is missed.
"""

import argparse
import asyncio
import itertools
import json
import statistics
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from serve_faults import run_disconnects, run_loris  # noqa: E402
from serve_fuzz import run_fuzz  # noqa: E402
from serve_probe import (  # noqa: E402
    GENERATIONS,
    Answer,
    MemoryWatch,
    Server,
    json_request,
    quantile,
    send,
    serving,
)

from lightgen.core.draws import numpy_draws  # noqa: E402

PROMPTS = (
    "a photo of a red apple left of a blue car",
    "a photo of two dogs",
    "a photo of a green bird above a yellow bus",
    "a photo of a pizza",
)
REQUEST = {"preset": "fast"}


def main() -> int:
    """Exit code: 0 if every mark was reached."""
    found = _parser().parse_args()
    part = found.run(found)
    sys.stdout.write(
        json.dumps({key: value for key, value in part.items() if key != "memory"}, indent=1) + "\n"
    )
    if found.json is not None:
        _write(found.json, found.command, part)
    return 0 if all(part["reached"].values()) else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    each = parser.add_subparsers(dest="command", required=True)
    load = each.add_parser("load", help="more than the server can do")
    load.add_argument("--seconds", type=float, default=300.0, help="of the open loop")
    load.add_argument("--capacity-seconds", type=float, default=30.0, help="of each measurement of capacity")
    load.add_argument("--rounds", type=int, default=3, help="of one at a time and together, in turns")
    load.add_argument("--times", type=float, default=3.0, help="the capacity that is measured")
    load.add_argument("--clients", type=int, default=200)
    load.add_argument("--max-running", type=int, default=16)
    load.add_argument("--max-waiting", type=int, default=64)
    load.set_defaults(run=run_load)
    leave = each.add_parser("disconnects", help="clients that leave at random times")
    leave.add_argument("--count", type=int, default=1000)
    leave.add_argument("--at-a-time", type=int, default=24)
    leave.add_argument("--alone", type=int, default=50, help="of them watched one by one")
    leave.set_defaults(run=run_disconnects)
    loris = each.add_parser("loris", help="clients that send a byte now and then")
    loris.add_argument("--slow", type=int, default=100)
    loris.add_argument("--seconds", type=float, default=30.0, help="of each turn")
    loris.add_argument("--rounds", type=int, default=3)
    loris.set_defaults(run=run_loris)
    fuzz = each.add_parser("fuzz", help="mutated pictures, masks, prompts and bodies")
    fuzz.add_argument("--count", type=int, default=10_000)
    fuzz.add_argument("--at-a-time", type=int, default=8)
    fuzz.set_defaults(run=run_fuzz)
    for one in (load, leave, loris, fuzz):
        one.add_argument("--model", default="nano")
        one.add_argument("--seed", type=int, default=0)
        one.add_argument("--json", type=Path, help="the document that gets this part")
    return parser


def run_load(found: argparse.Namespace) -> dict[str, Any]:
    """Capacity in turns with one at a time, then the open loop."""
    keys = [f"client-{number:04}-of-the-load" for number in range(found.clients)]
    options = [f"--max-waiting={found.max_waiting}"]
    rows: list[dict[str, float]] = []
    for _ in range(found.rounds):
        row = {}
        for name, most in (("one_per_s", 1), ("together_per_s", found.max_running)):
            with serving(*options, f"--max-running={most}", model=found.model, keys=keys) as server:
                row[name] = asyncio.run(capacity(server, keys, found.capacity_seconds, found.max_running))
        rows.append(row | {"times": round(row["together_per_s"] / row["one_per_s"], 3)})
        sys.stderr.write(f"{rows[-1]}\n")
    per_s = statistics.median(row["together_per_s"] for row in rows)
    with serving(*options, f"--max-running={found.max_running}", model=found.model, keys=keys) as server:
        asyncio.run(capacity(server, keys, 5.0, found.max_running))  # warm
        loop = asyncio.run(open_loop(server, keys, per_s * found.times, found.seconds, found.seed))
        loop["troubles"] = server.troubles()
    bound = (found.max_waiting / found.max_running + 1) * loop["batch_s"] * 1.1
    memory, p99 = loop["memory"], loop["accepted"]["p99_s"]
    growth = _growth([each for _, each in memory])
    times = statistics.median(row["times"] for row in rows)
    known = {"200", "429", "503"}
    return {
        "capacity": rows,
        "together_times_one": times,
        "max_running": found.max_running,
        "max_waiting": found.max_waiting,
        "bound_s": round(bound, 3),
        "memory_growth": growth,
        **loop,
        "reached": {
            "together >= 1.8 x one at a time": times >= 1.8,
            "only 200, 429 and 503": set(loop["statuses"]) <= known,
            "Retry-After on every refusal": loop["refusals_without_retry_after"] == 0,
            "p99 of accepted <= bound": p99 is not None and p99 <= bound,
            "memory grows <= 2 %": growth <= 0.02,
            "no exception": not loop["troubles"],
        },
    }


async def capacity(server: Server, keys: list[str], seconds: float, clients: int) -> float:
    """Pictures per second of twice as many clients as places, who ask again when they are answered.

    Pictures count by their iterations, so that those under way at the beginning and the end count in part.
    """
    before = server.metrics()
    await send(server.port, _request(0, keys[0]))
    per_picture = server.metrics()["batch_size_sum"] - before["batch_size_sum"]
    is_warm = asyncio.Event()

    async def ask(number: int) -> None:
        for seed in itertools.count(number * 10_000):
            await send(server.port, _request(seed, keys[number % len(keys)]))
            is_warm.set()

    tasks = [asyncio.create_task(ask(number)) for number in range(2 * clients)]
    await is_warm.wait()
    before, start = await asyncio.to_thread(server.metrics), time.perf_counter()
    await asyncio.sleep(seconds)
    after, took = await asyncio.to_thread(server.metrics), time.perf_counter() - start
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    return round((after["batch_size_sum"] - before["batch_size_sum"]) / per_picture / took, 3)


async def open_loop(
    server: Server, keys: list[str], rate: float, seconds: float, seed: int
) -> dict[str, Any]:
    """What became of requests at times of a Poisson process of so many per second."""
    draws = numpy_draws(seed, "serve-load")
    answers: list[Answer] = []
    idle, tasks, most = list(range(len(keys))), set(), 0
    before, files = server.metrics(), server.num_files()
    start, due, sent = time.perf_counter(), 0.0, 0

    async def ask(client: int, number: int) -> None:
        answers.append(await send(server.port, _request(number, keys[client])))
        idle.append(client)

    async with MemoryWatch(server) as memory:
        while (due := due + draws.exponential(1 / rate)) < seconds:
            await asyncio.sleep(max(0.0, start + due - time.perf_counter()))
            client = idle.pop(int(draws.integers(len(idle)))) if idle else int(draws.integers(len(keys)))
            task = asyncio.create_task(ask(client, sent))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
            sent, most = sent + 1, max(most, len(tasks))
        after = await asyncio.to_thread(server.metrics)
        took = time.perf_counter() - start
        await asyncio.gather(*tasks)
    return _summary(answers, before, after, took) | {
        "clients": len(keys),
        "seconds": seconds,
        "asked_per_s": round(rate, 3),
        "sent": sent,
        "most_at_a_time": most,
        "memory": memory.rows,
        "files_before_after": [files, server.num_files()],
    }


def _summary(
    answers: list[Answer], before: dict[str, float], after: dict[str, float], took: float
) -> dict[str, Any]:
    accepted = [each.seconds for each in answers if each.status == 200]
    refused = [each.seconds for each in answers if each.is_refusal()]
    num = after["decode_seconds_count"] - before["decode_seconds_count"]
    spent = after["decode_seconds_sum"] - before["decode_seconds_sum"]
    bare = [each for each in answers if each.is_refusal() and "retry-after" not in each.headers]
    return {
        "statuses": {str(key): count for key, count in sorted(Counter(a.status for a in answers).items())},
        "refusals_without_retry_after": len(bare),
        "pictures_per_s": round(num / took, 3),
        "batch_s": round(spent / max(num, 1), 4),
        "accepted": {
            "count": len(accepted),
            "p50_s": quantile(accepted, 0.5),
            "p99_s": quantile(accepted, 0.99),
        },
        "refused": {"count": len(refused), "p50_s": quantile(refused, 0.5), "p99_s": quantile(refused, 0.99)},
    }


def _growth(values: list[float]) -> float:
    """Share by which the mean of the last fifth is above that of the second."""
    fifth = max(1, len(values) // 5)
    return round(
        statistics.mean(values[-fifth:]) / statistics.mean(values[fifth : 2 * fifth] or values) - 1, 4
    )


def _request(number: int, key: str) -> bytes:
    prompt = PROMPTS[number % len(PROMPTS)]
    return json_request(GENERATIONS, key=key, prompt=prompt, seed=number, **REQUEST)


def _write(path: Path, command: str, part: dict[str, Any]) -> None:
    import os
    import platform

    from lightgen.core.directory import json_bytes, whole_file
    from lightgen.core.provenance import code_commit, library_versions

    document = json.loads(path.read_text()) if path.is_file() else {}
    machine = {"processor": platform.machine(), "cores": os.cpu_count()}
    about = {"versions": library_versions(), "commit": code_commit(), "machine": machine}
    document[command] = {**part, **about}
    with whole_file(path) as temporary:
        temporary.write_bytes(json_bytes(document))


if __name__ == "__main__":
    sys.exit(main())
