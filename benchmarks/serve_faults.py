"""Clients that leave at random times, or dawdle; see `serve_load.py`."""

import argparse
import asyncio
import contextlib
import socket
import struct
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from serve_probe import (  # noqa: E402
    EDITS,
    GENERATIONS,
    Answer,
    Server,
    json_request,
    quantile,
    raw_request,
    send,
    serving,
)

from lightgen.core.draws import numpy_draws  # noqa: E402

_FORM = b'--cut\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n' + b"." * 2_000_000
LEAVES = ("in the head", "in the body", "while it waits", "in the stream", "as soon as it asked")


def run_disconnects(found: argparse.Namespace) -> dict[str, Any]:
    """Clients that leave; then nothing runs, waits, or is left behind."""
    with serving("--max-per-key=80", model=found.model) as server:
        asyncio.run(
            fill(server)
        )  # the memory of full batches, of previews and of leaving is there from now on
        asyncio.run(leave_all(server, max(50, found.count // 10), found.at_a_time, found.seed))
        asyncio.run(settled(server))
        before, memory, files = server.metrics(), server.memory_mb(), server.num_files()
        ways = asyncio.run(leave_all(server, found.count, found.at_a_time, found.seed + 1))
        settled_s = asyncio.run(settled(server))
        time.sleep(1.0)
        after = server.metrics()
        grown = {"memory": round(server.memory_mb() / memory - 1, 4), "files": server.num_files() - files}
        alone = asyncio.run(leave_alone(server, found.alone, found.seed))
        troubles = server.troubles()
    fates = {name: after[name] - before.get(name, 0) for name in after if name.startswith("pictures_total")}
    iteration_s = _slowest(before, after)
    return {
        "ways": ways,
        "fates": fates,
        "settled_s": settled_s,
        "slowest_iteration_s": iteration_s,
        "memory_growth": grown["memory"],
        "files_more": grown["files"],
        **alone,
        "troubles": troubles,
        "reached": {
            "nothing runs or waits afterwards": after["running"] == after["queue_length"] == 0,
            "within one iteration": settled_s <= iteration_s + 0.05,
            "at most one iteration after each leaver": alone["most_iterations_after"] <= 1,
            "memory grows <= 2 %": grown["memory"] <= 0.02,
            "no descriptor is left": grown["files"] <= 0,
            "no exception": not troubles,
        },
    }


async def fill(server: Server, requests: int = 24) -> None:
    """Have batches be full twice, with streams and previews, and wait for the end."""
    values = {"prompt": "a photo of two dogs", "preset": "fast", "stream": True, "partial_images": 3, "n": 3}
    for _ in range(2):
        await asyncio.gather(
            *(send(server.port, json_request(GENERATIONS, **values, seed=seed)) for seed in range(requests))
        )


async def leave_all(server: Server, count: int, at_a_time: int, seed: int) -> dict[str, int]:
    """How many left in which way."""
    draws, gate, ways = numpy_draws(seed, "serve-leave"), asyncio.Semaphore(at_a_time), Counter[str]()
    plans = [
        (LEAVES[int(draws.integers(len(LEAVES)))], float(draws.random()), number) for number in range(count)
    ]

    async def go(way: str, share: float, number: int) -> None:
        async with gate:
            await leave(server, way, share, number)
        ways[way] += 1

    await asyncio.gather(*(go(*plan) for plan in plans))
    return dict(ways)


async def leave(server: Server, way: str, share: float, number: int) -> None:
    """Ask and go, by FIN or by RST, when `share` of something has happened."""
    is_stream = way == "in the stream"
    values = {"prompt": "a photo of two dogs", "seed": number, "n": 1 + number % 3, "preset": "fast"}
    if is_stream:
        values |= {"stream": True, "partial_images": 3}
    data = json_request(GENERATIONS, **values)
    head = data.index(b"\r\n\r\n") + 4
    if way == "in the head":
        data = data[: int(share * head)]
    elif way == "in the body":
        if number % 4 < 2:  # a large one, of an edit
            data = raw_request(EDITS, _FORM, "multipart/form-data; boundary=cut")
        data = data[: head + int(share * (len(data) - head))]
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    with contextlib.suppress(ConnectionError):
        writer.write(data)
        await writer.drain()
        if is_stream:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(reader.read(int(1 + share * 60_000)), 2.0)
        elif way in ("while it waits", "in the body"):
            await asyncio.sleep(share * 1.5)
    if number % 2:  # RST in place of FIN
        writer.get_extra_info("socket").setsockopt(
            socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
        )
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()


async def settled(server: Server, timeout_s: float = 60.0) -> float:
    """Seconds until nothing runs or waits any more."""
    start = time.perf_counter()
    while time.perf_counter() - start < timeout_s:
        found = await asyncio.to_thread(server.metrics)
        if found["running"] == found["queue_length"] == 0:
            break
        await asyncio.sleep(0.01)
    return round(time.perf_counter() - start, 3)


async def leave_alone(server: Server, count: int, seed: int) -> dict[str, Any]:
    """Iterations that begin after a lone client has left and the server knows it, and the time until then."""
    draws, rows = numpy_draws(seed, "serve-leave-alone"), []
    for number in range(count):
        data = json_request(GENERATIONS, prompt="a photo of two dogs", seed=number, n=4, preset="exact")
        _, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(data)
        while (await asyncio.to_thread(server.metrics))["running"] == 0:
            await asyncio.sleep(0.005)
        await asyncio.sleep(float(draws.random()) * 0.3)
        before = (await asyncio.to_thread(server.metrics))["iteration_seconds_count"]
        writer.close()
        start = time.perf_counter()
        took = await settled(server)
        at_end = (await asyncio.to_thread(server.metrics))["iteration_seconds_count"]
        await asyncio.sleep(0.5)
        after = (await asyncio.to_thread(server.metrics))["iteration_seconds_count"]
        rows.append((took, after - at_end, at_end - before, time.perf_counter() - start))
    return {
        "alone_settled_p50_s": quantile([row[0] for row in rows], 0.5),
        "alone_settled_max_s": quantile([row[0] for row in rows], 1.0),
        "most_iterations_after": max((row[1] for row in rows), default=0),
        "most_iterations_until": max((row[2] for row in rows), default=0),
    }


def _slowest(before: dict[str, float], after: dict[str, float]) -> float:
    """Upper end, in seconds, of the histogram's highest bucket that iterations fell into."""
    names = [name for name in after if name.startswith("iteration_seconds_bucket")]
    total = after["iteration_seconds_count"] - before.get("iteration_seconds_count", 0)
    for name in names:
        if after[name] - before.get(name, 0) >= total:
            return float(name.partition('le="')[2].rstrip('"}').replace("+Inf", "inf"))
    return float("inf")


def run_loris(found: argparse.Namespace) -> dict[str, Any]:
    """Latency of ordinary clients alone and beside slow ones, in turns."""
    rows: dict[str, list[float]] = {"alone": [], "beside": []}
    statuses: Counter[int] = Counter()
    with serving(model=found.model) as server:
        asyncio.run(ordinary(server, 5.0))
        held: list[float] = []
        for _ in range(found.rounds):
            rows["alone"] += _seconds(asyncio.run(ordinary(server, found.seconds)), statuses)
            answers, closed = asyncio.run(beside(server, found.seconds, found.slow))
            rows["beside"] += _seconds(answers, statuses)
            held += closed
        troubles = server.troubles()
    quantiles = {
        name: {"count": len(each), "p50_s": quantile(each, 0.5), "p99_s": quantile(each, 0.99)}
        for name, each in rows.items()
    }
    ratios = {
        key: round((quantiles["beside"][key] or 0) / (quantiles["alone"][key] or 1), 3)
        for key in ("p50_s", "p99_s")
    }
    return {
        **quantiles,
        "beside_by_alone": ratios,
        "slow_clients": found.slow,
        "slow_held": {"count": len(held), "p50_s": quantile(held, 0.5), "max_s": quantile(held, 1.0)},
        "statuses": {str(key): count for key, count in statuses.items()},
        "troubles": troubles,
        "reached": {
            "p99 beside <= 1.1 x alone": ratios["p99_s"] <= 1.1,
            "ordinary clients are all served": set(statuses) == {200},
            "slow clients are let go": not held or max(held) <= 60,
            "no exception": not troubles,
        },
    }


async def ordinary(server: Server, seconds: float, clients: int = 4) -> list[Answer]:
    """Answers to a few clients who ask again when they are answered."""
    end, answers = time.perf_counter() + seconds, []

    async def ask(number: int) -> None:
        while time.perf_counter() < end:
            data = json_request(GENERATIONS, prompt="a photo of two dogs", seed=number, preset="fast")
            answers.append(await send(server.port, data))

    await asyncio.gather(*(ask(number) for number in range(clients)))
    return answers


async def beside(server: Server, seconds: float, slow: int) -> tuple[list[Answer], list[float]]:
    """Answers to ordinary clients beside slow ones, and the seconds that each slow connection was held."""
    held: list[float] = []
    crawlers = [asyncio.create_task(crawl(server, number, held)) for number in range(slow)]
    await asyncio.sleep(1.0)
    answers = await ordinary(server, seconds)
    for crawler in crawlers:
        crawler.cancel()
    await asyncio.gather(*crawlers, return_exceptions=True)
    return answers, held


async def crawl(server: Server, number: int, held: list[float]) -> None:
    """Send a request a byte a second, its head or its body, again and again."""
    data = json_request(GENERATIONS, prompt="a photo of two dogs " * 20)
    known = 0 if number % 2 else data.index(b"\r\n\r\n") + 4
    while True:
        start = time.perf_counter()
        with contextlib.suppress(OSError):
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            try:
                writer.write(data[:known])
                for at in range(known, len(data)):
                    writer.write(data[at : at + 1])
                    await asyncio.sleep(1.0)
                    if reader.at_eof() or writer.transport.is_closing():
                        break
            finally:
                writer.transport.abort()
            held.append(time.perf_counter() - start)


def _seconds(answers: list[Answer], statuses: Counter[int]) -> list[float]:
    statuses.update(each.status for each in answers)
    return [each.seconds for each in answers if each.status == 200]
