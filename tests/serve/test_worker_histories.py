"""A worker with a fake model over long and random histories: shares, ends, leaks, idleness."""

import asyncio
import gc
import time
import weakref

import numpy as np
import pytest

from lightgen.serve.ticket import Cancelled, DeadlinePassed
from lightgen.serve.worker import Refused
from tests.serve.fake_live import FakeLive, asked, drawn, fates, outcome, started, until


def test_an_idle_worker_costs_nothing():
    async def main():
        async with started(FakeLive()) as worker:
            await worker.submit(asked(1), "fake", "key")[0].result()
            before = time.process_time()
            await asyncio.sleep(0.3)
            return time.process_time() - before

    assert asyncio.run(main()) < 0.05


def test_the_event_loop_never_waits_for_a_step():
    live = FakeLive(step_s=0.3)

    async def main():
        async with started(live) as worker:
            worst = 0.0
            (ticket,) = worker.submit(asked(1, num_iterations=3), "fake", "key", previews=2)
            while not ticket.has_ended:
                began = time.monotonic()
                await asyncio.sleep(0)
                assert ticket.position == 0
                worst = max(worst, time.monotonic() - began)
            return worst

    assert asyncio.run(main()) < 0.2


def test_ten_thousand_tickets_leave_nothing_behind():
    live = FakeLive()

    async def main():
        async with started(live, max_waiting=64) as worker:
            alive = weakref.WeakSet()
            for number in range(10_000):
                (ticket,) = worker.submit(asked(number), "fake", f"key{number}")
                alive.add(ticket)
                ticket.cancel()
                if number % 50 == 0:
                    await asyncio.sleep(0)
            del ticket
            await until(lambda: not len(worker._queue))
            await asyncio.sleep(0.01)
            gc.collect()
            return len(alive), len(worker._queue._lines), len(live.pictures)

    assert asyncio.run(main()) == (0, 0, 0)


@pytest.mark.parametrize("seed", range(4))
def test_random_histories_keep_every_promise(seed):
    """Submits, cancels, deadlines and errors in a seeded order; every ticket ends once, as it should."""
    random = np.random.default_rng(seed)
    live, most = FakeLive(step_s=0.0005), 6
    cancelled_at: dict[int, int] = {}

    async def main():
        async with started(live, max_running=most, max_waiting=20, max_per_key=12) as worker:
            # before the pace is known, what cannot be done in time is taken on
            (late,) = worker.submit(asked(100_000), "fake", "a", 1e-6)
            tickets, number, num_refused = {late.request.seed: late}, 0, 0
            for _ in range(400):
                move = random.random()
                if move < 0.55:
                    count, key = 1 + int(random.integers(3)), "abc"[int(random.integers(3))]
                    requests = asked(
                        *range(number, number + count), num_iterations=1 + int(random.integers(8))
                    )
                    number += count
                    deadline_s = 0.003 if random.random() < 0.15 else None
                    try:
                        made = worker.submit(requests, "fake", key, deadline_s, int(random.integers(3)))
                    except Refused:
                        num_refused += count
                        continue
                    tickets |= {ticket.request.seed: ticket for ticket in made}
                elif move < 0.75 and tickets:
                    some = tickets[int(random.choice(list(tickets)))]
                    if not some.has_ended:
                        some.cancel()
                        cancelled_at[some.request.seed] = len(live.seeds("step"))
                elif move < 0.76:
                    live.fails[str(random.choice(["join", "step", "finish", "preview"]))] = 1
                else:
                    await asyncio.sleep(float(random.random()) * 0.003)
            found = {each: await asyncio.wait_for(outcome(ticket), 20) for each, ticket in tickets.items()}
            await until(lambda: not len(worker._queue))
            counted = fates(worker.metrics)
            for name in ("refused_key", "refused_queue", "refused_late"):
                num_refused -= counted.pop(name, 0)
            assert num_refused == 0
            assert sum(counted.values()) == len(tickets), "each ended exactly once"
            return found

    found = asyncio.run(main())
    steps = live.seeds("step")
    assert max(map(len, steps)) <= most
    for number, end in found.items():
        if isinstance(end, np.ndarray):
            assert np.array_equal(end, drawn(number))
        if number in cancelled_at:
            assert end is Cancelled
            after = steps[cancelled_at[number] :]
            assert sum(number in step for step in after) <= 1, "the step that was under way, and no other"
    assert live.pictures == []
    assert {DeadlinePassed, Cancelled} <= {end for end in found.values() if isinstance(end, type)}


def test_keys_that_always_ask_get_the_same_share():
    live = FakeLive(step_s=0.001)
    seeds = {"a": range(0, 100), "b": range(100, 200), "c": range(200, 300)}

    async def main():
        async with started(live, max_running=6, max_waiting=400, max_per_key=120) as worker:
            with worker._changed:
                tickets = [
                    ticket for key, own in seeds.items() for ticket in worker.submit(asked(*own), "fake", key)
                ]
            for ticket in tickets:
                await ticket.result()

    asyncio.run(main())
    for step in live.seeds("step"):
        shares = [sum(seed in own for seed in step) for own in seeds.values()]
        assert max(shares) - min(shares) <= 1, shares
