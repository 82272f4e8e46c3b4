"""The fair queue, by hand-made orders and by random histories against what fairness says."""

import numpy as np
import pytest

from lightgen.serve.queue import FairQueue


def filled(*words, max_waiting=1000, max_per_key=1000):
    """A queue into which each word came, in order; its first letter is its key."""
    queue = FairQueue(max_waiting, max_per_key)
    for word in words:
        queue.put(word, word[0], 10.0)
    return queue


def test_one_key_is_first_come_first_served():
    queue = filled("a1", "a2", "a3")
    assert queue.take(2) == ["a1", "a2"]
    assert queue.take(2) == ["a3"]
    assert queue.take(2) == []


def test_keys_take_turns_however_long_their_lines_are():
    queue = filled("a1", "a2", "a3", "a4", "b1", "c1", "c2")
    assert queue.take(7) == ["a1", "b1", "c1", "a2", "c2", "a3", "a4"]


def test_the_key_with_the_least_running_is_next():
    queue = filled("a1", "a2", "a3", "a4")
    queue.take(3)
    for word in ("b1", "b2", "b3", "b4"):
        queue.put(word, "b", 10.0)
    assert queue.take(4) == ["b1", "b2", "b3", "a4"]
    queue.drop(["a1", "a2"])  # a has 2 left, b has 3
    queue.put("a5", "a", 10.0)
    assert queue.take(1) == ["a5"]


def test_with_one_place_a_late_key_does_not_wait_for_the_line_of_an_early_one():
    queue, order = filled(*(f"a{i}" for i in range(8)), "b1"), []
    while len(queue):
        order += (taken := queue.take(1))
        queue.drop(taken)
    assert order[:3] == ["a0", "b1", "a1"]


def test_a_key_that_comes_back_does_not_overtake():
    queue = filled("a1", "b1")
    queue.drop(["a1"])
    queue.put("a2", "a", 10.0)
    assert queue.take(2) == ["b1", "a2"]


def test_positions_are_the_order_of_taking():
    words = ("a1", "a2", "b1", "a3", "c1", "b2")
    queue = filled(*words)
    queue.take(1)
    places = {word: queue.position(word) for word in words if queue.is_waiting(word)}
    assert queue.take(9) == sorted(places, key=places.__getitem__)
    assert sorted(places.values()) == [0, 1, 2, 3, 4]
    assert queue.position("a1") == queue.position("nobody") == 0


def test_positions_move_up_when_others_leave():
    queue = filled("a1", "a2", "a3")
    assert queue.position("a3") == 2
    queue.drop(["a1"])
    assert queue.position("a3") == 1
    queue.take(1)
    assert queue.position("a3") == 0


def test_obstacles_name_the_key_before_the_queue():
    queue = filled("a1", "a2", "b1", max_waiting=6, max_per_key=4)
    assert queue.obstacle("a", 3) == "key"
    assert queue.obstacle("b", 4) == "key"
    assert queue.obstacle("new", 4) == "queue"
    assert queue.obstacle("new", 3) is None
    queue.take(3)
    assert queue.obstacle("a", 3) == "key", "running ones count towards the key's share"
    assert queue.obstacle("new", 4) is None, "and not towards the queue's length"
    queue.drop(["a1"])
    assert queue.obstacle("a", 3) is None


def test_a_key_has_no_more_waiting_than_it_leaves_places_free():
    queue = filled(*(f"a{i}" for i in range(32)), max_waiting=64)
    assert queue.obstacle("a", 32) is None, "alone"
    queue.put("c1", "c", 10.0)
    assert queue.take(2) == ["a0", "c1"]
    queue.put("a32", "a", 10.0)
    assert queue.obstacle("a", 1) == "share"
    assert queue.obstacle("b", 16) is None
    assert queue.obstacle("b", 64 - 32) is None, "who has none waiting may have all that is left"
    assert queue.obstacle("b", 64 - 31) == "queue"
    queue.take(1)  # one less waits
    assert queue.obstacle("a", 1) is None
    assert queue.obstacle("a", 2) == "share"


@pytest.mark.parametrize("num_keys", [2, 3, 7, 30])
def test_keys_that_ask_for_all_get_the_same_and_leave_as_much_to_a_newcomer(num_keys):
    queue, keys = FairQueue(64, 1000), [f"key{k}" for k in range(num_keys)]
    for turn in range(64):
        for key in keys:
            if queue.obstacle(key, 1) is None:
                queue.put((key, turn), key, 10.0)
    held = [sum(item[0] == key for item in queue.items()) for key in keys]
    assert max(held) - min(held) <= 1
    assert 64 - queue.num_waiting >= max(held) - 1 >= 64 // (num_keys + 1) - 1
    assert queue.obstacle("newcomer", 1) is None


def costing(**costs):
    """A queue of items with their costs; the first letter is the key."""
    queue = FairQueue(1000, 1000)
    for word, cost in costs.items():
        queue.put(word, word[0], 10.0, cost)
    return queue


def test_shares_are_of_work_and_not_of_items():
    queue = costing(a1=4, a2=4, b1=1, b2=1, b3=1, b4=1, b5=1)
    assert queue.waiting_cost == 13
    assert queue.take(7) == ["a1", "b1", "b2", "b3", "b4", "a2", "b5"]
    assert (queue.running_cost, queue.waiting_cost) == (13, 0)


def test_what_runs_costs_no_more_than_the_budget():
    queue = costing(a1=5, a2=5, a3=5, a4=5)
    assert queue.take(9, budget=16) == ["a1", "a2", "a3"]
    assert queue.take(9, budget=16) == []
    queue.drop(["a1"])
    assert queue.take(9, budget=16) == ["a4"]


def test_a_key_of_which_nothing_runs_waits_for_no_budget():
    queue = costing(a1=40, a2=40)
    assert queue.take(9, budget=16) == ["a1"], "dearer than all of it"
    queue.put("b1", "b", 10.0, 1.0)
    queue.put("b2", "b", 10.0, 1.0)
    assert queue.take(9, budget=16) == ["b1"], "but no more than one"
    queue.put("c1", "c", 10.0, 1.0)
    assert queue.take(0, budget=16) == [], "and not without a place"
    queue.drop(["a1"])
    assert queue.take(9, budget=16) == ["a2", "c1"], "b, of which something runs, has to wait"


def test_deadlines_hold_waiting_and_running():
    queue = FairQueue(10, 10)
    for word, deadline in (("a1", 3.0), ("a2", 1.0), ("b1", 2.0)):
        queue.put(word, word[0], deadline)
    queue.take(1)
    assert queue.expired(0.9) == []
    assert queue.expired(1.0) == ["a2"]
    assert set(queue.expired(3.0)) == {"a1", "a2", "b1"}
    queue.drop(["a2"])
    assert queue.expired(2.5) == ["b1"]


def test_dropping_is_idempotent_and_leaves_nothing():
    queue = filled("a1", "a2", "b1")
    queue.take(1)
    queue.drop(["a1", "b1", "a1", "nobody"])
    queue.drop(["a2"])
    assert (len(queue), queue.num_waiting, queue.num_running) == (0, 0, 0)
    assert not (queue._lines or queue._keys or queue._deadlines)


@pytest.mark.parametrize("seed", range(5))
def test_random_histories_are_fair(seed):
    random = np.random.default_rng(seed)
    queue, running, waiting, costs, number = FairQueue(200, 60), {}, {}, {}, 0
    for _ in range(2000):
        move = random.integers(4)
        if move < 2:
            key = "abcdef"[int(random.integers(6) ** 2 // 6)]
            if queue.obstacle(key, 1) is None:
                costs[number] = float(random.integers(1, 6))
                queue.put(number, key, 0.0, costs[number])
                waiting[number] = key
                number += 1
        elif move == 2 and (running or waiting):
            some = random.choice([*running, *waiting], 1 + int(random.integers(3))).tolist()
            queue.drop(some)
            for item in some:
                running.pop(item, None), waiting.pop(item, None)
        else:
            foreseen = {item: queue.position(item) for item in waiting}
            taken = queue.take(12 - len(running), budget=30)
            assert [foreseen[item] for item in taken] == list(range(len(taken)))
            for item in taken:
                works = dict.fromkeys(waiting.values(), 0.0)
                for other, key in running.items():
                    if key in works:
                        works[key] += costs[other]
                own = works[waiting[item]]
                assert own == min(works.values())
                assert own == 0 or sum(map(costs.get, running)) + costs[item] <= 30
                running[item] = waiting.pop(item)
            spent = sum(map(costs.get, running))
            assert len(running) == 12 or not waiting or spent + 5 > 30
            assert spent == queue.running_cost
            assert queue.waiting_cost == sum(map(costs.get, waiting))
        assert (queue.num_running, queue.num_waiting) == (len(running), len(waiting))
