"""Batches of a worker with fake models: joining, leaving, turns, previews, errors."""

import asyncio
import logging
import threading

import numpy as np
import pytest

from lightgen.core.errors import UserError
from lightgen.serve.batches import is_due
from lightgen.serve.ticket import WorkFailed
from tests.serve.fake_live import (
    BREAKING_SEED,
    REFUSED_SEED,
    FakeLive,
    asked,
    drawn,
    gated,
    outcome,
    started,
    until,
)


def test_pictures_join_a_running_batch_and_leave_it_alone():
    live = gated()

    async def main():
        async with started(live) as worker:
            (first,) = worker.submit(asked(1), "fake", "key")
            live.gate.release()
            await until(lambda: len(live.seeds("step")) == 1)
            rest = worker.submit(asked(2, 3), "fake", "key")
            live.gate.release(50)
            for ticket in (first, *rest):
                await ticket.result()

    asyncio.run(main())
    assert live.seeds("join") == [[1], [2, 3]], "all of a moment in one call"
    assert live.seeds("step")[0] == [1]
    assert [1, 2, 3] in live.seeds("step")
    assert live.seeds("step")[-1] == [2, 3]
    assert live.seeds("finish") == [[1], [2, 3]], "pictures that end together are finished together"


def test_models_take_turns():
    one, other = gated(), gated()
    order = []
    for name, live in (("one", one), ("other", other)):
        live.gate.release(100)
        step = live.step
        live.step = lambda name=name, step=step: order.append(name) or step()

    async def main():
        async with started(one, other) as worker:
            with worker._changed:  # both are there before the first turn
                tickets = worker.submit(asked(1, num_iterations=6), "fake", "a")
                tickets += worker.submit(asked(2, num_iterations=6), "fake1", "b")
            for ticket in tickets:
                await ticket.result()

    asyncio.run(main())
    assert order == ["one", "other"] * 6


def test_updates_tell_every_iteration_with_previews_spread_evenly():
    live = gated()

    async def main():
        async with started(live) as worker:
            (ticket,) = worker.submit(asked(1, num_iterations=6), "fake", "key", previews=2)
            seen = []
            async for update in ticket.updates():
                seen.append(update)
                live.gate.release()
            return seen, ticket.state

    seen, state = asyncio.run(main())
    assert [update.iteration for update in seen] == [0, 1, 2, 3, 4, 5, 6]
    assert [update.iteration for update in seen if update.preview is not None] == [2, 4]
    assert {update.num_iterations for update in seen} == {6}
    assert seen[-1].known.all()
    assert not seen[-2].known.all()
    assert state == "done"


@pytest.mark.parametrize(("steps", "previews"), [(16, 3), (7, 3), (64, 64), (5, 4), (1, 3), (48, 1), (9, 0)])
def test_previews_are_as_many_as_wanted_and_evenly_spread(steps, previews):
    due = [step for step in range(1, steps + 1) if is_due(step, steps, previews)]
    assert len(due) == min(previews, steps - 1)
    gaps = np.diff([0, *due, steps])
    assert gaps.max() - gaps.min() <= 1


def test_the_mean_is_the_thread_s_time_per_picture():
    live = FakeLive(step_s=0.02)

    async def main():
        async with started(live, max_running=4) as worker:
            for _ in range(3):
                for ticket in worker.submit(asked(*range(8)), "fake", "key"):
                    await ticket.result()
            return worker._batches.mean_s

    # 4 iterations of 20 ms, shared by 4 pictures.
    assert 0.018 < asyncio.run(main()) < 0.06


def test_the_mean_is_of_work_and_not_of_pictures():
    live = FakeLive(step_s=0.02)

    async def main():
        async with started(live, max_running=1) as worker:
            (ticket,) = worker.submit(asked(1, width=16, height=16), "fake", "key")
            await ticket.result()
            return ticket.cost, worker._batches.mean_s

    cost, mean_s = asyncio.run(main())
    assert cost == pytest.approx(4 * (16 + 5) / (16 + 5))
    assert 0.018 < mean_s < 0.06, "80 ms of a picture that costs four"


@pytest.mark.parametrize("method", ["step", "finish"])
def test_an_error_fails_the_pictures_it_met_and_the_worker_goes_on(method, caplog):
    live = FakeLive(fails={method: 1})

    async def main():
        async with started(live) as worker:
            (ticket,) = worker.submit(asked(1), "fake", "key", previews=2)
            with pytest.raises(WorkFailed) as failure:
                await ticket.result()
            assert ticket.state == "failed"
            (after,) = worker.submit(asked(2), "fake", "key", previews=2)
            assert np.array_equal(await after.result(), drawn(2))
            assert worker.is_ready
            assert worker._batches._runs == {"fake": {}}
            assert "lightgen_worker_errors_total 1.0" in worker.metrics.text().decode()
            return str(failure.value)

    with caplog.at_level(logging.ERROR):
        text = asyncio.run(main())
    assert not set("/\\") & set(text)
    assert "secret" not in text
    assert "/secret/place" in caplog.text, "whoever runs the server is told"
    assert len(live.seeds("reset")) == 1


def worker_errors(worker):
    lines = worker.metrics.text().decode().splitlines()
    return next(float(line.split()[-1]) for line in lines if line.startswith("lightgen_worker_errors_total"))


def test_a_picture_that_cannot_join_fails_alone(caplog):
    live = gated()

    async def main():
        async with started(live) as worker:
            (first,) = worker.submit(asked(1), "fake", "key")
            await until(lambda: live.pictures)
            rest = worker.submit(asked(2, BREAKING_SEED, 3), "fake", "key")
            live.gate.release(100)
            found = [await outcome(ticket) for ticket in (first, *rest)]
            assert worker_errors(worker) == 2, "of all, and of the one"
            assert len(worker._queue) == 0
            return found

    with caplog.at_level(logging.ERROR):
        found = asyncio.run(main())
    assert found.pop(2) is WorkFailed
    assert [np.array_equal(*pair) for pair in zip(found, map(drawn, (1, 2, 3)), strict=True)] == [True] * 3
    assert live.seeds("join") == [[1], [2, BREAKING_SEED, 3], [2], [BREAKING_SEED], [3]]
    assert live.seeds("reset") == []
    assert "/secret/place" in caplog.text


def test_a_join_that_breaks_half_way_empties_the_batch():
    class Half(FakeLive):
        def join(self, requests):
            joined = super().join(requests)
            if requests[0].seed == 2:
                raise RuntimeError("half of them are in")
            return joined

    live = Half(gate=threading.Semaphore(0))

    async def main():
        async with started(live) as worker:
            (first,) = worker.submit(asked(1), "fake", "key")
            await until(lambda: live.pictures)
            rest = worker.submit(asked(2, 3), "fake", "key")
            live.gate.release(100)
            found = [await outcome(ticket) for ticket in (first, *rest)]
            (after,) = worker.submit(asked(4), "fake", "key")
            assert np.array_equal(await after.result(), drawn(4))
            return found

    assert asyncio.run(main()) == [WorkFailed] * 3
    assert len(live.seeds("reset")) == 1


def test_a_preview_that_fails_costs_the_preview_alone(caplog):
    live = FakeLive(fails={"preview": 1}, step_s=0.01)

    async def main():
        async with started(live) as worker:
            (ticket,) = worker.submit(asked(1), "fake", "key", previews=2)
            seen = [update async for update in ticket.updates()]
            assert worker_errors(worker) == 1
            return seen, await ticket.result()

    with caplog.at_level(logging.ERROR):
        seen, picture = asyncio.run(main())
    assert np.array_equal(picture, drawn(1))
    assert [update.iteration for update in seen if update.preview is not None] == [3], "not at 2"
    assert live.seeds("reset") == []
    assert "/secret/place" in caplog.text


def test_an_error_of_one_model_leaves_the_others_alone():
    broken, fine = FakeLive(fails={"step": 1}), FakeLive()

    async def main():
        async with started(broken, fine) as worker:
            tickets = worker.submit(asked(1), "fake", "key") + worker.submit(asked(2), "fake1", "key")
            return [await outcome(ticket) for ticket in tickets]

    found = asyncio.run(main())
    assert found[0] is WorkFailed
    assert np.array_equal(found[1], drawn(2))


def test_what_the_model_refuses_at_the_last_moment_is_told_as_its_user_error():
    async def main():
        async with started(FakeLive()) as worker:
            refused, fine = worker.submit(asked(REFUSED_SEED, 5), "fake", "key")
            assert np.array_equal(await fine.result(), drawn(5))
            for _ in range(2):
                with pytest.raises(UserError, match="seed: refused"):
                    await refused.result()
            assert len(worker._queue) == 0

    asyncio.run(main())
