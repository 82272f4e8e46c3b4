"""Who is next: a bounded queue that shares the running places fairly among keys."""

import heapq
from collections.abc import Hashable, Iterable, Iterator
from itertools import islice
from typing import Generic, Literal, TypeVar

Item = TypeVar("Item", bound=Hashable)


class _Line(Generic[Item]):
    """What one key has: waiting items in order of arrival, running ones, and since which event it waits."""

    def __init__(self) -> None:
        self.waiting: dict[Item, None] = {}
        self.running: set[Item] = set()
        self.since = 0

    def __len__(self) -> int:
        return len(self.waiting) + len(self.running)


class FairQueue(Generic[Item]):
    """Items that wait, and those that were taken and run, until they are dropped.

    The next item is the first of the key with the least running; of several keys, of the one that has waited
    longest since its arrival or its last turn. So no key starves, whatever the others ask for.

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

    def items(self) -> list[Item]:
        """All of them, waiting and running, in order of arrival."""
        return list(self._keys)

    def obstacle(self, key: str, count: int) -> Literal["key", "queue"] | None:
        """What keeps so many new items of a key out: its own share, or the queue's length."""
        held = len(self._lines[key]) if key in self._lines else 0
        if held + count > self.max_per_key:
            return "key"
        return "queue" if self.num_waiting + count > self.max_waiting else None

    def put(self, item: Item, key: str, deadline: float) -> None:
        """Have an item wait; the caller asked for an `obstacle` before."""
        assert item not in self._keys and self.obstacle(key, 1) is None
        line = self._lines.setdefault(key, _Line())
        if not line.waiting:
            line.since = self._next_event()
        line.waiting[item] = None
        self._keys[item], self._deadlines[item] = key, deadline
        self.num_waiting += 1
        self._order = None

    def take(self, count: int) -> list[Item]:
        """Up to so many items that run from now on, in fair order."""
        taken = list(islice(self._fair(), max(0, count)))
        for item in taken:
            line = self._lines[self._keys[item]]
            del line.waiting[item]
            line.running.add(item)
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
                line.running.remove(item)
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

    def _fair(self) -> Iterator[Item]:
        """Waiting items in the order in which they would be taken if none ended meanwhile."""
        event = self._events
        rest = {key: iter(line.waiting) for key, line in self._lines.items()}
        heap = [(len(line.running), line.since, key) for key, line in self._lines.items() if line.waiting]
        heapq.heapify(heap)
        while heap:
            num_running, _, key = heap[0]
            for item in rest[key]:
                event += 1
                heapq.heapreplace(heap, (num_running + 1, event, key))
                yield item
                break
            else:
                heapq.heappop(heap)

    def _next_event(self) -> int:
        self._events += 1
        return self._events
