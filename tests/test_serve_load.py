"""The benchmarks of serving see what happens: against a server whose model draws nothing, in seconds."""

import asyncio
import importlib
import os
import sys
from pathlib import Path

import pytest

from lightgen.core.draws import numpy_draws
from tests.serve.served import Model, queue, served

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(scope="module")
def scripts():
    """The modules by name; they import each other as scripts do."""
    sys.path.insert(0, str(BENCHMARKS))
    names = ("probe", "mutants", "faults", "fuzz", "load")
    yield {name: importlib.import_module(f"serve_{name}") for name in names}
    sys.path.remove(str(BENCHMARKS))


@pytest.fixture
def server(scripts, tmp_path):
    (tmp_path / "log").touch()
    with served(Model(step_s=0.01), queue(max_running=2, max_waiting=8)) as found:
        yield scripts["probe"].Server(found.port, os.getpid(), tmp_path / "log")


def test_a_server_is_looked_at_from_outside(scripts, server):
    assert server.memory_mb() > 10 and server.num_files() > 3
    assert server.metrics()["queue_length"] == 0
    assert server.troubles() == []
    server.log.write_text("x\nTraceback (most recent call last):\nValueError: y\n")
    assert len(server.troubles()) == 2


def test_answers_and_shares(scripts):
    probe = scripts["probe"]
    answer = probe.read_answer(b"HTTP/1.1 503 Busy\r\nRetry-After: 2\r\n\r\nbody", 0.5)
    assert (answer.status, answer.headers, answer.body) == (503, {"retry-after": "2"}, b"body")
    assert answer.is_refusal() and probe.read_answer(b"", 1.0).status == 0
    assert [probe.quantile([3, 1, 2, 4], share) for share in (0.25, 0.5, 0.99, 1.0)] == [1, 2, 4, 4]
    assert probe.quantile([], 0.5) is None


def test_more_than_the_server_can_do_is_refused_and_counted(scripts, server):
    rows = asyncio.run(scripts["load"].open_loop(server, [""] * 20, 100.0, 1.5, 0))
    statuses = rows["statuses"]
    assert rows["sent"] == sum(statuses.values()) > 50
    assert set(statuses) == {"200", "503"} and rows["refusals_without_retry_after"] == 0
    assert rows["accepted"]["count"] == statuses["200"]
    assert 0.1 < rows["batch_s"] < rows["accepted"]["p99_s"] < 30
    assert len(rows["memory"]) >= 2


def test_capacity_counts_iterations(scripts, server):
    alone = asyncio.run(scripts["load"].capacity(server, [""], 1.0, 1))
    # rough, since machines are busy; pictures counted by the wrong number of iterations are off by far more
    assert 0.5 < asyncio.run(scripts["load"].capacity(server, [""], 1.0, 4)) / alone < 5


def test_those_who_leave_are_counted_and_leave_nothing(scripts, server):
    faults = scripts["faults"]
    ways = asyncio.run(faults.leave_all(server, 30, 6, 0))
    assert sum(ways.values()) == 30 and set(ways) <= set(faults.LEAVES) and len(ways) >= 4
    assert asyncio.run(faults.settled(server)) < 5
    alone = asyncio.run(faults.leave_alone(server, 2, 0))
    assert alone["most_iterations_after"] <= 1


def test_slow_clients_are_there(scripts, server):
    answers, held = asyncio.run(scripts["faults"].beside(server, 0.5, 5))
    assert {each.status for each in answers} == {200} and held == []


def test_nonsense_is_of_every_kind_and_the_same_again(scripts):
    mutants = [scripts["mutants"].Mutants(numpy_draws(0, "test-mutants")) for _ in range(2)]
    first, again = ([each.next() for _ in range(200)] for each in mutants)
    assert first == again
    assert len({kind for kind, _ in first}) == 8 and len({data for _, data in first}) > 180
    assert mutants[0].leaks(b'File "x/site-packages/y"') and not mutants[0].leaks(b'{"error": "size"}')


def test_nonsense_is_answered_by_errors_of_the_client(scripts, server):
    fuzz, mutants = scripts["fuzz"], scripts["mutants"].Mutants(numpy_draws(1, "test-mutants"))
    kinds = ("field", "prompt", "json_bytes", "picture", "mask", "odd_picture", "multipart")
    requests = [(kind, getattr(mutants, kind)()) for kind in kinds for _ in range(12)]
    source = iter(requests)
    mutants.next = lambda: next(source)
    rows, memory = asyncio.run(fuzz.throw(server, mutants, len(requests), 4))
    assert len(rows) == len(requests) and memory
    assert [row for row in rows if not fuzz._is_fair(*row)] == []
    assert 200 in {answer.status for _, answer in rows} and 400 in {answer.status for _, answer in rows}
