"""The one background thread of a process: it gives pools and the like their turns of upkeep when due."""

from __future__ import annotations

import _thread
import heapq
import itertools
import logging
import math
import threading
import weakref
from collections import deque
from contextlib import suppress
from typing import Final, TypeAlias

from connpool.clock import SystemClock, shut_gate
from connpool.pool.census import Kept
from connpool.wire import threads

__all__ = ["REAPER", "Reaper"]

Ref: TypeAlias = "weakref.ref[Kept]"

logger = logging.getLogger("connpool.reaper")

LEAP: Final = 30.0  # seconds that the thread wakes up too late: the machine slept, or the process was stopped
MANY: Final = 16  # instants that hold no longer may lie in the heap
EXIT_GRACE: Final = 0.05  # seconds that the end of a program waits for a turn to end
TAKEOVER: Final = 0.1  # seconds between looks whether one that waits for another's end has still to wait
BREATH: Final = 1.0  # seconds before one whose turn has failed gets the next


class Reaper:
    """Keeps a heap of instants, and sleeps until the first of them.

    It holds what it keeps up weakly, and runs only while one of them has something due.
    To ask takes no lock: others only append to ``_asked`` and open the gate, so that
    even a finaliser may ask; all the rest is the thread's own. Two that are started at once
    work one after the other.
    """

    def __init__(self) -> None:
        self._clock = SystemClock()
        self.start_clean()

    def start_clean(self) -> None:
        """Begin anew: in a forked child the thread and the turns are the parent's."""
        self._gate = shut_gate()
        self._asked: deque[tuple[Ref, float]] = deque()  # and not yet seen by the thread
        self._gone: deque[Ref] = deque()  # forgotten by their users
        self._thread: threading.Thread | None = None
        self._at_it = threading.Lock()  # held by the thread that works; nobody else takes it
        self._may_start = True
        self._numbers = itertools.count()
        self._due: dict[Ref, float] = {}  # the instant that holds for each
        self._heap: list[tuple[float, int, Ref]] = []  # and some that hold no longer
        self._turned: dict[Ref, float] = {}  # when each had its last turn
        self._called: set[Ref] = set()  # who asked for a turn at once, and has not had it yet
        self._is_torn = False  # something failed between two turns: whose is next is not known

    def hold_back(self, *, is_held: bool) -> None:
        """Start no thread for the moment: a fork is not the place for it."""
        self._may_start = not is_held

    def end(self) -> None:
        """Give no more turns. Waits a moment for the one that is being given."""
        self._may_start = False
        running, self._thread = self._thread, None
        self._wake()
        if running is not None and running.is_alive() and running is not threading.current_thread():
            running.join(EXIT_GRACE)  # one that is only about to start cannot be waited for

    # -- what it is asked

    def watch(self, kept: Kept, at: float) -> bool:
        """Give *kept* a turn at *at*, but not too soon after the last. False: no thread.

        Args:
            at: An instant; -inf: at once; inf: none but what was asked for at once, which is given
                all the same: one thread may find something just before another says that there is nothing.
        """
        if kept._pace() is None:
            return True
        self._asked.append((weakref.ref(kept, self._drop), at))
        self._wake()
        return at == math.inf or self._see_to_thread()

    def wink(self, kept: Kept) -> None:
        """Give *kept* a turn soon. For finalisers and fast paths: takes no lock."""
        if kept._pace() is None:
            return
        self._asked.append((weakref.ref(kept, self._drop), -math.inf))
        self._wake()
        if not self._is_running() and self._may_start:
            with suppress(RuntimeError):  # can't start new thread
                # Starting a Thread takes a lock of the threading module, which we may be in the midst of.
                _thread.start_new_thread(self._see_to_thread, ())

    def _drop(self, ref: Ref) -> None:
        """One was forgotten; the garbage collector says so."""
        self._gone.append(ref)
        self._wake()

    def _wake(self) -> None:
        try:
            self._gate.release()
        except RuntimeError:  # it is open; not ``open_gate``: at the very end of a program that is gone
            pass

    def _is_running(self) -> bool:
        running = self._thread
        return running is not None and running.is_alive()

    def _is_vacant(self) -> bool:
        return self._thread is None

    def _see_to_thread(self) -> bool:
        """Start the thread unless it runs. Of two that are started at once one ends as soon as it can."""
        if self._is_running():
            return True
        if not self._may_start:
            return False
        thread = threading.Thread(target=self._run, name="connpool-reaper", daemon=True)
        self._thread = thread
        if not threads.start(thread):  # the next to have something due tries again
            logger.info("no thread can be started: pools are not kept up for now")
            return False
        return True

    # -- the thread

    def _run(self) -> None:
        self._wake()  # one that another has taken the place of sees it, and ends
        me = threading.current_thread()
        while self._thread is me:  # looked at again and again: another that has our place may go on for hours
            if self._at_it.acquire(timeout=TAKEOVER):
                try:
                    self._keep_up(me)
                    return
                except Exception:
                    self._is_torn = True
                    with suppress(Exception):
                        logger.exception("upkeep failed between two turns, and goes on")
                    self._clock.wait(self._gate, BREATH)
                finally:
                    self._at_it.release()

    def _keep_up(self, me: threading.Thread) -> None:
        while self._thread is me:
            self._hear()
            if self._is_torn:
                self._begin_anew()
            nap = self._next_nap()
            if nap is None:
                self._thread = None  # said first, and looked after that: whoever asks later starts another
                if not self._asked or not self._may_start or not self._is_vacant():
                    return
                self._thread = me  # one that is started in this very moment waits, and ends after us
                continue
            self._clock.wait(self._gate, nap)
            if self._thread is not me:
                return
            self._hear()
            for ref, lateness in self._take_due():
                self._give_turn(ref, lateness)

    def _hear(self) -> None:
        """Put down what was asked for. A later instant does not take the place of an earlier one."""
        now = self._clock.now()
        while self._gone:
            ref = self._gone.popleft()
            with suppress(TypeError):  # it was never among them
                self._due.pop(ref, None)
                self._turned.pop(ref, None)
                self._called.discard(ref)
        while self._asked:
            self._put_down(*self._asked[0], now)
            self._asked.popleft()  # only now: if that fails, it is done again

    def _put_down(self, ref: Ref, at: float, now: float) -> None:
        """One of these. May be done twice."""
        kept = ref()
        if kept is None:
            return
        if at == math.inf:
            if ref not in self._called:
                self._due.pop(ref, None)
            return
        if at == -math.inf:
            self._called.add(ref)
        due = self._due.get(ref, math.inf)
        at = max(at, now, self._turned.get(ref, -math.inf) + (kept._pace() or 0.0))
        if at < due:
            self._due[ref] = at
            heapq.heappush(self._heap, (at, next(self._numbers), ref))

    def _begin_anew(self) -> None:
        """Give all a turn: it does no harm where nothing is to be done."""
        now = self._clock.now()
        self._due = dict.fromkeys([ref for ref in (*self._due, *self._turned) if ref() is not None], now)
        self._heap = [(now, next(self._numbers), ref) for ref in self._due]
        self._is_torn = False

    def _next_nap(self) -> float | None:
        """Seconds until the first is due; None: nothing ever is."""
        if len(self._heap) > MANY + 2 * len(self._due):  # most hold no longer
            self._heap = [(at, next(self._numbers), ref) for ref, at in self._due.items()]
            heapq.heapify(self._heap)
        while self._heap and self._due.get(self._heap[0][2]) != self._heap[0][0]:
            heapq.heappop(self._heap)
        return max(0.0, self._heap[0][0] - self._clock.now()) if self._heap else None

    def _take_due(self) -> list[tuple[Ref, float]]:
        """Whose turn it is, each with the seconds that it comes late."""
        now = self._clock.now()
        due = []
        while self._heap and self._heap[0][0] <= now:
            at, _, ref = heapq.heappop(self._heap)
            if self._due.get(ref) == at:
                self._turned[ref] = now
                del self._due[ref]
                self._called.discard(ref)
                due.append((ref, now - at))
        return due

    def _give_turn(self, ref: Ref, lateness: float) -> None:
        """One turn. Whatever goes wrong in it, the others and the next turn come."""
        kept = ref()
        if kept is None or kept._pace() is None:
            return
        try:
            kept._take_turn(is_leap=lateness > LEAP)
        except BaseException:
            self.watch(kept, self._clock.now() + BREATH)
            with suppress(BaseException):  # a log handler's own failure leaves nobody alone
                logger.exception("pool %r: a turn of upkeep failed", kept.name)


REAPER: Final = Reaper()
