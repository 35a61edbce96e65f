"""The one background thread of a process: it gives pools their turns of upkeep when these are due."""

from __future__ import annotations

import heapq
import itertools
import logging
import math
import threading
import weakref
from typing import Final

from connpool.clock import Gate, SystemClock
from connpool.pool.census import engage
from connpool.pool.pool import ConnectionPool

__all__ = ["REAPER", "Reaper"]

logger = logging.getLogger("connpool.reaper")

LEAP: Final = 30.0  # seconds that the thread wakes up too late: the machine slept, or the process was stopped
BREATH: Final = 1.0  # seconds before a pool whose turn has failed gets the next


class Reaper:
    """Keeps a heap of instants, and sleeps until the first of them.

    It holds pools weakly, and runs only while one of them has something due.
    Its lock guards the heap and is never held while a pool's is taken.
    """

    def __init__(self) -> None:
        self._clock = SystemClock()
        self._numbers = itertools.count()
        self._begin()

    def _begin(self) -> None:
        self._lock = threading.Lock()
        self._gate: Gate = threading.Lock()
        self._gate.acquire()
        self._due: dict[weakref.ref[ConnectionPool], float] = {}  # the instant that holds for each
        self._heap: list[tuple[float, int, weakref.ref[ConnectionPool]]] = []  # and some that hold no longer
        self._turned: dict[weakref.ref[ConnectionPool], float] = {}  # when each had its last turn
        self._winks: list[weakref.ref[ConnectionPool]] = []  # finalisers append to it without the lock
        self._thread: threading.Thread | None = None
        self._may_start = True

    def start_clean(self) -> None:
        """In a forked child: the thread and the pools' turns are the parent's."""
        self._begin()

    def hold_back(self, is_held: bool) -> None:
        """Start no thread for the moment: a fork is not the place for it."""
        self._may_start = not is_held

    # -- what pools say

    def watch(self, pool: ConnectionPool, at: float) -> None:
        """Give *pool* a turn at *at*, but not too soon after the last; inf: no more."""
        interval = pool.config.reap_interval
        if interval is None or not isinstance(pool._lender.clock, SystemClock):
            return  # swept by hand
        ref = weakref.ref(pool, self._drop)
        with self._lock:
            if at == math.inf:
                self._due.pop(ref, None)
            else:
                at = max(at, self._clock.now(), self._turned.get(ref, -math.inf) + interval)
                self._put_locked(ref, at)
            is_first = at == math.inf or self._heap[0][0] >= at
            if self._thread is None and self._due and self._may_start:
                self._start_locked()
        if is_first:
            self._wake()

    def _put_locked(self, ref: weakref.ref[ConnectionPool], at: float) -> None:
        """A later instant does not take the place of an earlier one."""
        if at < self._due.get(ref, math.inf):
            self._due[ref] = at
            heapq.heappush(self._heap, (at, next(self._numbers), ref))

    def wink(self, pool: ConnectionPool) -> None:
        """Give *pool* a turn soon. For finalisers: takes no lock, and starts no thread."""
        self._winks.append(weakref.ref(pool))
        self._wake()

    def _drop(self, ref: weakref.ref[ConnectionPool]) -> None:
        """A pool was forgotten. Called by the garbage collector: takes no lock."""
        self._wake()

    def _wake(self) -> None:
        try:
            self._gate.release()
        except RuntimeError:  # it is open
            pass

    def _start_locked(self) -> None:
        thread = threading.Thread(target=self._run, name="connpool-reaper", daemon=True)
        try:
            thread.start()
        except RuntimeError:  # can't start new thread: the next who has something due tries again
            logger.info("no thread can be started: pools are not kept up for now")
            return
        self._thread = thread

    # -- the thread

    def _run(self) -> None:
        while (nap := self._next_nap()) is not None:
            self._clock.wait(self._gate, None if nap == math.inf else nap)
            for ref, lateness in self._take_due():
                self._give_turn(ref, lateness)

    def _next_nap(self) -> float | None:
        """Seconds until the first is due; None: nothing ever is, and the thread has ended."""
        with self._lock:
            for ref in [ref for ref in self._due if ref() is None]:
                del self._due[ref]
            self._turned = {ref: at for ref, at in self._turned.items() if ref() is not None}
            while self._heap and self._due.get(self._heap[0][2]) != self._heap[0][0]:
                heapq.heappop(self._heap)
            if not self._heap:
                self._thread = None
                return None
            return max(0.0, self._heap[0][0] - self._clock.now())

    def _take_due(self) -> list[tuple[weakref.ref[ConnectionPool], float]]:
        """The pools whose turn it is, each with the seconds that it comes late."""
        with self._lock:
            now = self._clock.now()
            while self._winks:
                ref = self._winks.pop()
                pool = ref()
                if pool is not None and pool.config.reap_interval is not None:
                    self._put_locked(ref, max(now, self._turned.get(ref, now) + pool.config.reap_interval))
                del pool
            due = []
            while self._heap and self._heap[0][0] <= now:
                at, _, ref = heapq.heappop(self._heap)
                if self._due.get(ref) == at:
                    del self._due[ref]
                    self._turned[ref] = now
                    due.append((ref, now - at))
            return due

    def _give_turn(self, ref: weakref.ref[ConnectionPool], lateness: float) -> None:
        """One pool's turn. Whatever goes wrong in it, the others and the next turn come."""
        pool = ref()
        if pool is None:
            return
        try:
            pool._chores.turn(apart=True, is_leap=LEAP < lateness < math.inf)
        except BaseException:
            logger.exception("pool %r: a turn of upkeep failed", pool.name)
            self.watch(pool, self._clock.now() + BREATH)


REAPER: Final = Reaper()
engage(REAPER)
