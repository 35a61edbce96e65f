"""The least a lender can be: what the pool is measured against."""

import threading
from collections import deque
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from benchmarks.race import Running, Track


class FloorA:
    """A deque and a lock: takes and gives back under the lock, and cannot wait.

    For at most as many threads as there are connections.
    """

    def __init__(self, size: int) -> None:
        self.idle: deque[object] = deque(object() for _ in range(size))
        self.lock = threading.Lock()

    def spin(self, running: Running, track: Track) -> None:
        lock, pop, append = self.lock, self.idle.pop, self.idle.append
        bundle = track.bundle
        while running:
            for _ in bundle:
                with lock:
                    item = pop()
                with lock:
                    append(item)
            track.turns += len(bundle)

    def close(self) -> None:
        """Nothing was opened."""


class FloorC:
    """A lock, a deque and a queue of gates: the least that serves in the order of arrival.

    Without a deadline, and without a thought for what may go wrong. It shows what
    of an ideal figure this machine lets anybody reach.
    """

    def __init__(self, size: int, items: Iterable[Any] | None = None) -> None:
        self.idle: deque[Any] = deque((object() for _ in range(size)) if items is None else items)
        self.waiters: deque[tuple[threading.Lock, list[Any]]] = deque()
        self.lock = threading.Lock()

    def take(self) -> partial[None]:
        """Wait for an item. The result gives it back; it is its only argument."""
        with self.lock:
            if self.idle:
                return partial(self.give_back, self.idle.pop())
            gate = threading.Lock()
            given: list[Any] = []
            gate.acquire()
            self.waiters.append((gate, given))
        gate.acquire()
        return partial(self.give_back, given[0])

    def give_back(self, item: Any) -> None:
        with self.lock:
            if not self.waiters:
                self.idle.append(item)
                return
            gate, given = self.waiters.popleft()
        given.append(item)
        gate.release()

    def close(self) -> None:
        """Nothing was opened."""


class FloorB:
    """A semaphore and a deque: waits for its turn, without a deadline and without an order."""

    def __init__(self, size: int) -> None:
        self.idle: deque[object] = deque(object() for _ in range(size))
        self.places = threading.Semaphore(size)

    def spin(self, running: Running, track: Track) -> None:
        acquire, release = self.places.acquire, self.places.release
        pop, append = self.idle.pop, self.idle.append
        bundle = track.bundle
        while running:
            for _ in bundle:
                acquire()
                item = pop()
                append(item)
                release()
            track.turns += len(bundle)

    def take(self) -> Callable[[], object]:
        self.places.acquire()
        return partial(self.give_back, self.idle.pop())

    def give_back(self, item: Any) -> None:
        self.idle.append(item)
        self.places.release()

    def close(self) -> None:
        """Nothing was opened."""
