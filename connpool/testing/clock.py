"""A clock that a test moves by hand; threads that wait on it obey it too."""

from __future__ import annotations

import contextlib
import math
import threading
from typing import ClassVar

from attrs import define, field

from connpool.clock import Gate

__all__ = ["FakeClock"]


@define(eq=False)  # compared by identity: two sleepers may look alike
class Sleeper:
    """One thread that waits at *gate* until the clock reaches *deadline*."""

    deadline: float
    gate: Gate
    is_late: bool = False


@define(eq=False)
class FakeClock:
    """Virtual seconds for a pool: ``ConnectionPool(..., clock=FakeClock())``.

    Nothing expires and no wait ends by itself until ``advance`` is called. A
    thread that would wait longer than ``GUARD`` real seconds fails instead of
    hanging, because somebody forgot to wake it.

    Args:
        start: The first reading, in seconds.
    """

    GUARD = 30.0
    overtake_delay: ClassVar[float] = 0.0  # a waiter is served at once, so that tests need not advance

    _now: float = field(default=1_000.0, alias="start")
    _changed: threading.Condition = field(factory=threading.Condition, init=False)
    _sleepers: list[Sleeper] = field(factory=list, init=False)

    def now(self) -> float:
        """The virtual instant, in seconds."""
        return self._now

    def wait(self, gate: Gate, timeout: float | None) -> bool:
        """Wait at *gate* for *timeout* virtual seconds; False when they have passed.

        Raises:
            AssertionError: nobody opened the gate for ``GUARD`` real seconds.
        """
        with self._changed:
            me = Sleeper(math.inf if timeout is None else self._now + timeout, gate)
            if me.deadline <= self._now:
                return gate.acquire(blocking=False)
            self._sleepers.append(me)
            self._changed.notify_all()
        try:
            if not gate.acquire(timeout=self.GUARD):
                raise AssertionError(f"nobody woke this waiter for {self.GUARD:g} s: a lost wake-up?")
        finally:
            with self._changed:
                self._sleepers.remove(me)
                self._changed.notify_all()
        return not me.is_late

    def advance(self, seconds: float) -> None:
        """Let *seconds* pass, and wake every thread whose wait ends by then."""
        with self._changed:
            self._now += seconds
            due = [sleeper for sleeper in self._sleepers if sleeper.deadline <= self._now]
        for sleeper in due:
            sleeper.is_late = True
            with contextlib.suppress(RuntimeError):  # somebody else has just opened it
                sleeper.gate.release()

    def until_waiting(self, n: int) -> None:
        """Return once at least *n* threads wait on this clock.

        Raises:
            AssertionError: they did not come within ``GUARD`` real seconds.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: len(self._sleepers) >= n, self.GUARD):
                raise AssertionError(f"{len(self._sleepers)} of {n} threads wait on the clock")
