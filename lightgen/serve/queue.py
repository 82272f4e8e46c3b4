"""Who is next: a bounded queue that shares the running places fairly among keys."""

import heapq
import math
from collections.abc import Hashable, Iterable, Iterator
from typing import Generic, Literal, TypeVar

Item = TypeVar("Item", bound=Hashable)


class _Line(Generic[Item]):
    """What one key has: waiting items in order of arrival, running ones, and since which event it waits."""

    def __init__(self) -> None:
        self.waiting: dict[Item, float] = {}  # and what each costs
        self.running: dict[Item, float] = {}
        self.since = 0

    def __len__(self) -> int:
        return len(self.waiting) + len(self.running)

    @property
    def running_cost(self) -> float:
        return sum(self.running.values())


class FairQueue(Generic[Item]):
    """Items that wait, and those that were taken and run, until they are dropped.

    The next item is the first of the key whose running items cost least together; of several keys, of the
    one that has waited longest since its arrival or its last turn. So no key starves, whatever the others
    ask for.

    Beside others a key may have as many waiting as it leaves places free, and one that has none waiting is
    let in as long as there is room. So of n keys that ask for all they can get, each has one part in n + 1 of
    the places, and the last part is free for a newcomer; what was let in is never put out for another. A key
    that is alone may have `max_per_key`.

    Time is whatever the caller says; nothing here locks or waits.

    Args:
        max_waiting: items that wait, of all keys.
        max_per_key: items that wait or run, of one key.
    """

    def __init__(self, max_waiting: int, max_per_key: int) -> None:
        self.max_waiting, self.max_per_key = max_waiting, max_per_key
        self.num_waiting = self.num_running = 0
        self._lines: dict[str, _Line[Item]] = {}
        self._keys: dict[Item, str] = {}
        self._deadlines: dict[Item, float] = {}
        self._events = 0
        self._order: dict[Item, int] | None = None  # positions, until something changes

    def __len__(self) -> int:
        return len(self._keys)

    @property
    def waiting_cost(self) -> float:
        """What all that wait cost together."""
        return sum(sum(line.waiting.values()) for line in self._lines.values())

    @property
    def running_cost(self) -> float:
        """What all that run cost together."""
        return sum(line.running_cost for line in self._lines.values())

    def items(self) -> list[Item]:
        """All of them, waiting and running, in order of arrival."""
        return list(self._keys)

    def obstacle(self, key: str, count: int) -> Literal["key", "queue", "share"] | None:
        """What keeps so many new items of a key out: its most, the queue's length, or its share of that."""
        line = self._lines.get(key, _Line[Item]())
        if len(line) + count > self.max_per_key:
            return "key"
        free = self.max_waiting - self.num_waiting - count
        if free < 0:
            return "queue"
        is_alone = not self._lines.keys() - {key}
        return "share" if line.waiting and len(line.waiting) + count > free and not is_alone else None

    def put(self, item: Item, key: str, deadline: float, cost: float = 1.0) -> None:
        """Have an item wait; the caller asked for an `obstacle` before, of all that it puts at once."""
        assert item not in self._keys and self.num_waiting < self.max_waiting
        line = self._lines.setdefault(key, _Line())
        if not line.waiting:
            line.since = self._next_event()
        line.waiting[item] = cost
        self._keys[item], self._deadlines[item] = key, deadline
        self.num_waiting += 1
        self._order = None

    def take(self, count: int, budget: float = math.inf) -> list[Item]:
        """Up to so many items that run from now on, in fair order.

        All that run cost no more than the budget, but a key of which nothing runs has its first item taken
        whatever it costs: it neither waits for the dear items of others nor for ever.
        """
        taken = self._affordable(count, budget)
        for item in taken:
            line = self._lines[self._keys[item]]
            line.running[item] = line.waiting.pop(item)
            line.since = self._next_event()
        self.num_waiting -= len(taken)
        self.num_running += len(taken)
        self._order = None
        return taken

    def drop(self, items: Iterable[Item]) -> None:
        """Forget items, waiting or running; those that are not here are no mistake."""
        for item in items:
            key = self._keys.pop(item, None)
            if key is None:
                continue
            del self._deadlines[item]
            line = self._lines[key]
            if item in line.running:
                del line.running[item]
                self.num_running -= 1
            else:
                del line.waiting[item]
                self.num_waiting -= 1
            if not len(line):
                del self._lines[key]
            self._order = None

    def is_waiting(self, item: Item) -> bool:
        """Whether it is here and was not taken yet."""
        return item in self._keys and item in self._lines[self._keys[item]].waiting

    def position(self, item: Item) -> int:
        """Items that are taken before it, as things stand; 0 where it does not wait."""
        if self._order is None:
            self._order = {each: place for place, each in enumerate(self._fair())}
        return self._order.get(item, 0)

    def expired(self, now: float) -> list[Item]:
        """Items, waiting or running, whose deadline has come."""
        return [item for item, deadline in self._deadlines.items() if deadline <= now]

    def _affordable(self, count: int, budget: float) -> list[Item]:
        """The next items in fair order, until one has to wait for others to end."""
        taken: list[Item] = []
        begun = {key for key, line in self._lines.items() if line.running}
        rest = budget - self.running_cost
        for item in self._fair():
            key = self._keys[item]
            cost = self._lines[key].waiting[item]
            if len(taken) >= count or (key in begun and cost > rest):
                break
            taken.append(item)
            begun.add(key)
            rest -= cost
        return taken

    def _fair(self) -> Iterator[Item]:
        """Waiting items in the order in which they would be taken if none ended meanwhile."""
        event = self._events
        rest = {key: iter(line.waiting.items()) for key, line in self._lines.items()}
        heap = [(line.running_cost, line.since, key) for key, line in self._lines.items() if line.waiting]
        heapq.heapify(heap)
        while heap:
            running_cost, _, key = heap[0]
            for item, cost in rest[key]:
                event += 1
                heapq.heapreplace(heap, (running_cost + cost, event, key))
                yield item
                break
            else:
                heapq.heappop(heap)

    def _next_event(self) -> int:
        self._events += 1
        return self._events
