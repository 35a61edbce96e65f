"""What the tests of threads share: a connector that counts and obeys, a clock that tells, callers."""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from attrs import define

from connpool import Connection, ConnectionPool, Endpoint
from connpool.clock import Gate, SystemClock

A, B, C = (Endpoint(host, 1) for host in "abc")
AT_ONCE = 0.2  # seconds; the promise is 0.05, machines are shared, and after 0.25 waiters look for themselves
NEVER = 10.0  # seconds; who waits that long was forgotten
Hook = Callable[[Any], Any]


class DoomError(BaseException):
    """What no ``except Exception`` catches."""


@define(eq=False)
class Part:
    """One open transport."""

    number: int
    endpoint: Endpoint
    is_open: bool = True


def _nothing(_: Any) -> None:
    pass


class Works:
    """A connector in memory. Each hook does, besides, what the test puts in its place.

    Attributes:
        opening: Called with the endpoint before one is opened.
        looking: Called with the part; what it returns is the verdict, None: usable.
        closing: Called with the part before it counts as closed.
        parts: All that were ever opened.
        peak: Most places that were taken at once, from the begin of an opening to the end of a closing.
    """

    def __init__(self, *, prompt: bool = False) -> None:
        self.prompt = prompt
        self.opening: Hook = _nothing
        self.looking: Hook = _nothing
        self.closing: Hook = _nothing
        self.parts: list[Part] = []
        self.dials = 0
        self.peak = 0
        self._taken = 0
        self._numbers = itertools.count(1)
        self._lock = threading.RLock()  # Ctrl-C may strike in a Condition's own ``with``, and leave it locked
        self._changed = threading.Condition(self._lock)

    def open(self, endpoint: Endpoint, timeout: float | None, cancel: Any) -> Part:
        with self._lock:
            self.dials += 1
            self._taken += 1
            self.peak = max(self.peak, self._taken)
        try:
            self.opening(endpoint)
        except BaseException:
            self._free()
            raise
        part = Part(next(self._numbers), endpoint)
        with self._lock:
            self.parts.append(part)
            self._changed.notify_all()
        return part

    def is_usable(self, part: Part) -> bool:
        verdict = self.looking(part)
        return verdict is None or bool(verdict)

    def close(self, part: Part) -> None:
        try:
            self.closing(part)
        finally:
            assert part.is_open, f"{part} is closed twice"
            part.is_open = False
            self._free()

    def _free(self) -> None:
        with self._lock:
            self._taken -= 1
            self._changed.notify_all()

    def disown(self, part: Part) -> None:
        """It left the pool, open: the pool need not close it."""
        part.is_open = False
        self._free()

    @property
    def n_open(self) -> int:
        """Parts that are open now."""
        return sum(part.is_open for part in self.parts)

    def until(self, predicate: Callable[[], object], limit: float = NEVER) -> None:
        """Wait until *predicate*, looked at after every opening and closing, is true."""
        with self._changed:
            assert self._changed.wait_for(predicate, limit), "the connector waits in vain"


class ResettingWorks(Works):
    """One that has a reset hook, too: ``resetting``, called with the part."""

    def __init__(self, *, prompt: bool = False) -> None:
        super().__init__(prompt=prompt)
        self.resetting: Hook = _nothing

    def reset(self, part: Part) -> Any:
        return self.resetting(part)


class Door:
    """A hook that hangs until ``let_go``; then it does *after*."""

    def __init__(self, after: Hook = _nothing) -> None:
        self._after = after
        self._free = threading.Event()
        self._changed = threading.Condition()
        self.entered = self.inside = 0

    def __call__(self, thing: Any) -> Any:
        with self._changed:
            self.entered += 1
            self.inside += 1
            self._changed.notify_all()
        assert self._free.wait(30), "nobody let go"
        with self._changed:
            self.inside -= 1
            self._changed.notify_all()
        return self._after(thing)

    def until_entered(self, n: int = 1) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: self.entered >= n, NEVER), f"{self.entered} of {n} came"

    def let_go(self) -> None:
        self._free.set()


@contextlib.contextmanager
def door(after: Hook = _nothing) -> Iterator[Door]:
    """A ``Door`` that is open at the end of the block, so that nothing hangs for ever."""
    made = Door(after)
    try:
        yield made
    finally:
        made.let_go()


class TellingClock(SystemClock):
    """Real time; tells when threads sleep until they are woken, and can leap."""

    NAP = 0.01  # seconds; who waits no longer than that is going to look again by itself

    def __init__(self) -> None:
        self._lock = threading.RLock()  # as in Works
        self._changed = threading.Condition(self._lock)
        self._leapt = 0.0
        self.waiting = 0

    def now(self) -> float:  # type: ignore[override]  # a static method there, for speed
        return time.monotonic() + self._leapt

    def leap(self, seconds: float) -> None:
        """Let idle connections be that much older."""
        self._leapt += seconds

    def wait(self, gate: Gate, timeout: float | None) -> bool:
        if timeout is not None and timeout <= self.NAP:
            return super().wait(gate, timeout)
        with self._lock:
            self.waiting += 1
            self._changed.notify_all()
        try:
            return super().wait(gate, timeout)
        finally:
            with self._lock:
                self.waiting -= 1

    def until_waiting(self, n: int = 1) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: self.waiting >= n, NEVER), f"{self.waiting} of {n} wait"


class Caller:
    """A thread that makes one checkout, and how that ended."""

    def __init__(self, pool: ConnectionPool, req: Any = None, *, timeout: float | None = NEVER) -> None:
        self.connection: Connection | None = None
        self.error: BaseException | None = None
        self.done_at = 0.0
        self._thread = threading.Thread(target=self._run, args=(pool, req, timeout), daemon=True)
        self._thread.start()

    def _run(self, pool: ConnectionPool, req: Any, timeout: float | None) -> None:
        try:
            self.connection = pool.try_connect(req, timeout=timeout)
        except BaseException as error:
            self.error = error
        self.done_at = time.monotonic()

    def join(self, limit: float = NEVER) -> None:
        self._thread.join(limit)
        assert not self._thread.is_alive(), "the caller still waits"

    @property
    def is_waiting(self) -> bool:
        return self._thread.is_alive()

    def loan(self, limit: float = NEVER) -> Connection:
        """What it got."""
        self.join(limit)
        if self.error is not None:
            raise self.error
        assert self.connection is not None
        return self.connection

    def failure(self, kind: type[BaseException]) -> BaseException:
        """What it met instead; must be a *kind*."""
        self.join()
        assert isinstance(self.error, kind), (self.error, self.connection)
        return self.error


def balanced(pool: ConnectionPool) -> Any:
    """The pool's statistics, which must add up."""
    stats = pool.stats()
    assert stats.size == stats.idle + stats.in_use + stats.shared + stats.opening + stats.closing, stats
    return stats


def assert_whole(pool: ConnectionPool, works: Works, *, limit: float = NEVER, may_drop: bool = False) -> None:
    """No place is lost and no lock is held: other threads can borrow all there is, within *limit* seconds.

    With *may_drop* a transport may have been dropped unclosed, as an interrupt between its opening and its
    naming does: a real one then closes itself.
    """
    most = pool.config.max_size
    callers = [Caller(pool, timeout=limit) for _ in range(most)]
    for caller in callers:
        caller.join(limit + 2)
    loans = [caller.connection for caller in callers if caller.connection is not None]
    if len(loans) < most:
        stats = pool.stats()
        for loan in loans:
            loan.release()
        raise AssertionError(f"only {len(loans)} of {most} can be had: {stats}, {[c.error for c in callers]}")
    assert len({id(loan.raw) for loan in loans}) == most
    stats = balanced(pool)
    assert (stats.size, stats.in_use, stats.waiting) == (most, most, 0), stats
    assert may_drop or works.n_open == most, f"{works.n_open} are open, {most} are lent"
    for loan in loans:
        loan.release()
    stats = balanced(pool)
    assert stats.in_use == 0, stats
    assert may_drop or works.peak <= most, f"{works.peak} places were taken of {most}"


def assert_ended(pool: ConnectionPool, works: Works) -> None:
    """Close the pool; everything that was opened gets closed."""
    left = pool.close()
    assert left == 0, f"{left} are still lent: {pool.stats()}"
    works.until(lambda: works.n_open == 0)
