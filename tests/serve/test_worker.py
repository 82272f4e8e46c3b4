"""The worker's thread against a fake model: who is accepted, and how the thread ends."""

import asyncio
import threading
import time

import numpy as np
import pytest

from lightgen.serve.config import QueueConfig
from lightgen.serve.metrics import Metrics
from lightgen.serve.ticket import DeadlinePassed, WorkFailed
from lightgen.serve.worker import Refused, Worker
from tests.serve.fake_live import FakeLive, asked, drawn, fates, gated, outcome, started, until


def test_pictures_are_drawn_by_one_other_thread():
    live = FakeLive()

    async def main():
        async with started(live) as worker:
            assert worker.is_ready
            tickets = worker.submit(asked(3, 4), "fake", "key")
            pictures = [await ticket.result() for ticket in tickets]
            assert [ticket.state for ticket in tickets] == ["done", "done"]
            assert fates(worker.metrics) == {"done": 2}
        assert not worker.is_ready
        return pictures

    pictures = asyncio.run(main())
    assert [np.array_equal(*pair) for pair in zip(pictures, (drawn(3), drawn(4)), strict=True)] == [True] * 2
    assert len(live.threads) == 1
    assert threading.get_ident() not in live.threads
    assert live.pictures == []


def test_no_more_run_than_may_and_keys_share_the_places():
    live = gated()

    async def main():
        async with started(live, max_running=4) as worker:
            many = worker.submit(asked(*range(10)), "fake", "many")
            few = worker.submit(asked(100, 101), "fake", "few")
            live.gate.release(100)
            for ticket in (*many, *few):
                await ticket.result()

    asyncio.run(main())
    assert max(map(len, live.seeds("step"))) == 4
    # The thread may have taken the first four before the others came.
    assert sorted(sum(live.seeds("join")[:2], []))[-2:] == [100, 101]


def test_a_full_key_is_told_429_and_a_full_queue_503():
    live = gated()

    async def main():
        async with started(live, max_running=1, max_waiting=4, max_per_key=3) as worker:
            tickets = worker.submit(asked(1), "fake", "a")
            await until(lambda: live.pictures)
            tickets += worker.submit(asked(2, 3), "fake", "a")
            with pytest.raises(Refused) as of_key:
                worker.submit(asked(4), "fake", "a")
            tickets += worker.submit(asked(5, 6), "fake", "b")
            with pytest.raises(Refused) as of_queue:
                worker.submit(asked(7), "fake", "b")
            live.gate.release(100)
            for ticket in tickets:
                await ticket.result()
            assert fates(worker.metrics) == {"refused_key": 1, "refused_queue": 1, "done": 5}
        return of_key.value, of_queue.value

    of_key, of_queue = asyncio.run(main())
    assert (of_key.status, of_queue.status) == (429, 503)
    assert of_key.retry_after_s == 2.0, "two wait, of a second each as long as nothing is measured"
    assert of_queue.retry_after_s == 4.0


def test_three_that_ask_for_all_leave_room_for_a_newcomer():
    live = gated()

    async def main():
        async with started(live) as worker:
            for _ in range(8):
                for key in "abc":
                    try:
                        worker.submit(asked(*range(8)), "fake", key)
                    except Refused as error:
                        assert error.status == 429, error.text
            tickets = worker.submit(asked(*range(8)), "fake", "newcomer")
            assert len(tickets) == 8
            assert worker._queue.num_waiting > 32

    asyncio.run(main())


def test_dear_pictures_of_one_key_do_not_hold_up_another_s():
    live = gated()

    async def main():
        async with started(live, max_running=16) as worker:
            dear = worker.submit(asked(*range(8), width=32, height=32, num_iterations=40), "fake", "many")
            assert [ticket.cost for ticket in dear] == [pytest.approx(16)] * 8
            await until(lambda: live.pictures)
            (plain,) = worker.submit(asked(100), "fake", "few")
            live.gate.release(10)
            await plain.result()
            assert [ticket.state for ticket in dear] == ["running"] + ["waiting"] * 7
            assert dear[-1].position == 6, "a count of pictures"

    asyncio.run(main())
    assert max(map(len, live.seeds("step"))) == 2


def test_room_says_what_submit_would_and_takes_nothing():
    live = gated()

    async def main():
        async with started(live, max_running=1, max_waiting=8, max_per_key=6) as worker:
            worker.room("key", 6)
            assert len(worker._queue) == 0
            worker.submit(asked(1, 2), "fake", "other")
            await until(lambda: live.pictures)
            found = {}
            for key, count in (("key", 7), ("key", 8), ("key", 5), ("other", 2)):
                errors = []
                for ask in (worker.room, lambda key, n: worker.submit(asked(*range(n)), "fake", key)):
                    try:
                        ask(key, count)
                    except Refused as error:
                        errors.append((error.status, error.text, error.retry_after_s))
                assert len(errors) in (0, 2) and errors[:1] == errors[1:]
                found[key, count] = errors[0][0] if errors else None
        with pytest.raises(Refused) as ending:
            worker.room("key", 1)
        assert ending.value.status == 503
        return found

    assert asyncio.run(main()) == {("key", 7): 429, ("key", 8): 429, ("key", 5): None, ("other", 2): 429}


def test_all_pictures_of_a_request_are_accepted_or_none():
    live = gated()

    async def main():
        async with started(live, max_waiting=8, max_per_key=8, max_running=1) as worker:
            with pytest.raises(Refused):
                worker.submit(asked(*range(9)), "fake", "key")
            assert len(worker._queue) == 0
            assert len(worker.submit(asked(*range(8)), "fake", "key")) == 8

    asyncio.run(main())


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_the_death_of_the_thread_ends_every_ticket_and_readiness():
    live = FakeLive(fails={"step": 1, "reset": 1})

    async def main():
        worker = Worker({"fake": live}, QueueConfig(max_running=1), Metrics())
        worker.start()
        tickets = worker.submit(asked(1, 2, 3), "fake", "key")
        found = [await outcome(ticket) for ticket in tickets]
        assert not worker.is_ready
        with pytest.raises(Refused) as refusal:
            worker.submit(asked(4), "fake", "key")
        assert refusal.value.status == 503
        await worker.drain(5)
        return found

    assert asyncio.run(main()) == [WorkFailed] * 3


def test_draining_finishes_what_is_accepted_and_refuses_what_is_new():
    live = gated()

    async def main():
        async with started(live, max_running=1) as worker:
            tickets = worker.submit(asked(1, 2, 3), "fake", "key")
            draining = asyncio.create_task(worker.drain(20))
            await until(lambda: not worker.is_ready)
            with pytest.raises(Refused) as refusal:
                worker.submit(asked(4), "fake", "key")
            assert refusal.value.status == 503
            assert refusal.value.retry_after_s >= 1
            live.gate.release(100)
            await draining
            assert not worker._thread.is_alive()
            return [ticket.state for ticket in tickets]

    assert asyncio.run(main()) == ["done"] * 3


def test_draining_ends_in_time_whatever_is_left():
    live = gated()

    async def main():
        async with started(live, max_running=1) as worker:
            tickets = worker.submit(asked(1, 2), "fake", "key")
            await until(lambda: live.pictures)
            draining = asyncio.create_task(worker.drain(0.1))
            found = [await outcome(ticket) for ticket in tickets]
            live.gate.release()
            await draining
            assert not worker._thread.is_alive()
            return found

    assert asyncio.run(main()) == [WorkFailed, WorkFailed]
    assert len(live.seeds("step")) == 1


def test_draining_again_is_at_once_even_if_a_step_hangs(monkeypatch):
    live = gated()
    monkeypatch.setattr("lightgen.serve.worker._GRACE_S", 0.1)

    async def main():
        worker = Worker({"fake": live}, QueueConfig(), Metrics())
        worker.start()
        (ticket,) = worker.submit(asked(1), "fake", "key")
        await until(lambda: live.pictures)
        await worker.drain(0.3)
        assert worker._thread.is_alive() and await outcome(ticket) is WorkFailed
        began = time.monotonic()
        await worker.drain(30)
        assert time.monotonic() - began < 0.2
        live.gate.release(100)
        worker._thread.join(5)
        assert not worker._thread.is_alive()

    asyncio.run(main())


def test_draining_an_idle_or_unstarted_worker_is_at_once():
    async def main():
        began = time.monotonic()
        await Worker({"fake": FakeLive()}, QueueConfig(), Metrics()).drain(10)
        async with started(FakeLive()):
            pass
        return time.monotonic() - began

    assert asyncio.run(main()) < 2


def test_the_thread_ends_when_the_event_loop_is_gone():
    live = FakeLive(step_s=0.005)

    async def main():
        worker = Worker({"fake": live}, QueueConfig(), Metrics())
        worker.start()
        worker.submit(asked(*range(4), num_iterations=10_000), "fake", "key")
        await until(lambda: live.pictures)
        return worker

    worker = asyncio.run(main())
    worker._thread.join(5)
    assert not worker._thread.is_alive()


def test_what_could_not_be_done_in_time_is_refused_once_the_pace_is_known():
    live = FakeLive(step_s=0.02)

    async def main():
        async with started(live, max_running=1) as worker:
            first = worker.submit(asked(1), "fake", "key")
            await first[0].result()
            pace_s = worker._batches.mean_s
            waiting = worker.submit(asked(2, 3, 4), "fake", "key")
            with pytest.raises(Refused) as found:
                worker.submit(asked(5), "fake", "other", deadline_s=2 * pace_s)
            assert found.value.status == 503 and found.value.retry_after_s >= 1
            patient = worker.submit(asked(6), "fake", "other", deadline_s=100 * pace_s)
            for ticket in (*waiting, *patient):
                await ticket.result()
            # an empty queue takes whatever comes: the pace may have been another load's
            (alone,) = worker.submit(asked(7), "fake", "other", deadline_s=0.5 * pace_s)
            with pytest.raises(DeadlinePassed):
                await alone.result()
            assert fates(worker.metrics) == {"done": 5, "refused_late": 1, "late": 1}

    asyncio.run(main())
