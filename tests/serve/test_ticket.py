"""Tickets of a worker with a fake model: updates, cancelling, deadlines."""

import asyncio
import time

import numpy as np

from lightgen.serve.ticket import Cancelled, DeadlinePassed, Ticket, Update, WorkFailed
from tests.serve.fake_live import (
    FakeLive,
    FakeRequest,
    asked,
    drawn,
    fates,
    gated,
    outcome,
    started,
    until,
)


def test_a_slow_reader_gets_the_newest_alone_and_its_preview():
    live = gated()

    async def main():
        async with started(live) as worker:
            (ticket,) = worker.submit(asked(1, num_iterations=100), "fake", "key", previews=9)
            reader = ticket.updates()
            live.gate.release()
            await anext(reader)
            live.gate.release(74)
            await until(lambda: len(live.seeds("step")) == 75)
            time.sleep(0.1)  # the loop is busy, and the thread has long told everything
            await until(lambda: ticket._newest.iteration == 75)
            update = await anext(reader)
            late = ticket.updates()
            again = await anext(late)
            return update, again, len(worker._outbox._updates)

    update, again, num_kept = asyncio.run(main())
    assert update.iteration == again.iteration == 75
    assert update.preview[0, 0, 0] == again.preview[0, 0, 0] == 70
    assert num_kept == 0


def test_news_that_nobody_reads_take_no_room():
    live = FakeLive()

    async def main():
        async with started(live) as worker:
            tickets = worker.submit(asked(*range(8), num_iterations=300), "fake", "key", previews=300)
            time.sleep(0.2)  # a busy loop
            assert len(worker._outbox._updates) <= 8
            for ticket in tickets:
                await ticket.result()

    asyncio.run(main())


def test_a_cancelled_picture_leaves_before_the_next_step():
    live = gated()

    async def main():
        async with started(live, max_running=2) as worker:
            stays, goes, waits, last = worker.submit(asked(1, 2, 3, 4), "fake", "key")
            live.gate.release()
            await until(lambda: len(live.seeds("step")) == 1)
            assert [ticket.position for ticket in (waits, last)] == [0, 1]
            for ticket in (goes, waits, goes):
                ticket.cancel()
            assert (goes.state, goes.position) == ("cancelled", 0)
            assert last.position == 0
            live.gate.release(50)
            found = [await outcome(ticket) for ticket in (goes, waits)]
            await stays.result(), await last.result()
            assert [update async for update in waits.updates()] == []
            assert fates(worker.metrics) == {"cancelled": 2, "done": 2}
            return found

    assert asyncio.run(main()) == [Cancelled, Cancelled]
    steps = live.seeds("step")
    assert steps[0] == [1, 2]
    assert sum(2 in step for step in steps) <= 2, "one step was under way"
    assert not any(3 in step for step in steps)
    assert live.seeds("leave") == [[2]]


def test_a_passed_deadline_ends_waiting_and_running_pictures_even_while_a_step_hangs():
    live = gated()

    async def main():
        async with started(live, max_running=1) as worker:
            runs, waits = worker.submit(asked(1, 2), "fake", "key", deadline_s=0.1)
            began = time.monotonic()
            found = [await outcome(ticket) for ticket in (runs, waits)]
            took_s = time.monotonic() - began
            assert [runs.state, waits.state] == ["failed", "failed"]
            live.gate.release(50)
            assert await outcome(worker.submit(asked(3), "fake", "key")[0]) is not DeadlinePassed
            assert fates(worker.metrics) == {"late": 2, "done": 1}
            return found, took_s

    found, took_s = asyncio.run(main())
    assert found == [DeadlinePassed, DeadlinePassed]
    assert took_s < 2
    assert not any(2 in step for step in live.seeds("step"))


def test_the_thread_spares_the_work_of_late_pictures_while_the_loop_is_busy():
    live = gated()

    async def main():
        async with started(live, max_running=1) as worker:
            first, second = worker.submit(asked(1, 2, num_iterations=9), "fake", "key", deadline_s=0.15)
            await until(lambda: live.pictures)
            time.sleep(0.2)
            live.gate.release(50)
            time.sleep(0.2)
            assert not live.pictures
            assert len(live.seeds("step")) == 1
            return [await outcome(ticket) for ticket in (first, second)]

    assert asyncio.run(main()) == [DeadlinePassed, DeadlinePassed]


def test_the_server_s_own_deadline_holds_for_all():
    async def main():
        live = gated()
        async with started(live, deadline_s=0.1) as worker:
            return await outcome(worker.submit(asked(1), "fake", "key", deadline_s=1000)[0])

    assert asyncio.run(main()) is DeadlinePassed


def update_of(iteration, preview=None):
    known = np.zeros((1, 1), bool)
    return Update(iteration=iteration, num_iterations=9, grid=(1, 1), known=known, preview=preview)


def test_readers_of_one_ticket_miss_no_preview_and_see_none_twice():
    async def main():
        ticket = Ticket(FakeRequest(), "fake", "key", 3, lambda ticket: 0, lambda ticket, outcome: None)
        quick, slow = ticket.updates(), ticket.updates()
        seen = []
        for update in (update_of(1, drawn(1)), update_of(2), update_of(3, drawn(3)), update_of(4)):
            ticket.tell(update)
            seen.append(await anext(quick))
        late = await anext(slow)
        ticket.end(drawn(0))
        rest = [update for reader in (quick, slow) async for update in reader]
        return seen, late, rest

    seen, late, rest = asyncio.run(main())
    assert [update.preview is None for update in seen] == [False, True, False, True]
    assert late.iteration == 4
    assert np.array_equal(late.preview, drawn(3))
    assert rest == []


def test_a_ticket_ends_once_and_every_reader_is_told_anew():
    ends = []

    async def main():
        ticket = Ticket(FakeRequest(), "fake", "key", 0, lambda ticket: 0, lambda *end: ends.append(end))
        waiting = asyncio.create_task(ticket.result())
        await asyncio.sleep(0)
        ticket.end(error := WorkFailed("broke"))
        ticket.end(drawn(0))
        ticket.cancel()
        ticket.tell(update_of(1))
        assert (ticket.state, ends) == ("failed", [(ticket, error)])
        assert [update async for update in ticket.updates()] == []
        found = await asyncio.gather(waiting, ticket.result(), return_exceptions=True)
        return [error, *found]

    errors = asyncio.run(main())
    assert [str(each) for each in errors] == ["broke"] * 3
    assert len(set(map(id, errors))) == 3, "a raised error holds on to frames, and so to the ticket"


def test_nothing_is_drawn_for_who_left_while_a_step_was_under_way():
    live = gated()

    async def main():
        async with started(live) as worker:
            requests = asked(1, num_iterations=1) + asked(2, num_iterations=9)
            tickets = worker.submit(requests, "fake", "key", previews=9)
            await until(lambda: len(live.pictures) == 2)
            for ticket in tickets:
                ticket.cancel()
            live.gate.release(50)
            await until(lambda: not len(worker._queue))

    asyncio.run(main())
    assert live.seeds("step") == [[1, 2]]
    assert live.seeds("preview") == live.seeds("finish") == []
