"""The only module that asks the time: a protocol, the real clock, and a gate to wait at."""

from __future__ import annotations

import threading
import time
from typing import Protocol

__all__ = ["Clock", "Gate", "SystemClock", "now", "open_gate", "shut_gate", "stamp", "wait", "wall"]


class Gate(Protocol):
    """A binary semaphore that starts shut: a plain lock, acquired once.

    ``release`` opens it for one ``acquire``. To open an open gate is a
    RuntimeError, which means no more than "it is open already": see ``open_gate``.
    """

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool: ...

    def release(self) -> None: ...


def shut_gate() -> Gate:
    """Make one."""
    gate = threading.Lock()
    gate.acquire()
    return gate


def open_gate(gate: Gate) -> None:
    """Open *gate*; harmless when it is open already."""
    try:
        gate.release()
    except RuntimeError:
        pass


class Clock(Protocol):
    """Seconds since an arbitrary origin; never goes backwards."""

    @property
    def overtake_delay(self) -> float:
        """Seconds for which newcomers may overtake a waiter; 0 makes every hand-off immediate."""

    def now(self) -> float: ...

    def wait(self, gate: Gate, timeout: float | None) -> bool:
        """Wait until *gate* is opened. False: *timeout* seconds are up. None: no limit."""


class SystemClock:
    """Real time.

    ``now`` is the C function itself, because the fast path of a checkout asks
    twice. A library that freezes the clock by replacing ``time.monotonic``
    therefore never stops a pool in its tracks.
    """

    __slots__ = ()

    overtake_delay = 0.0005
    now = staticmethod(time.monotonic)

    def wait(self, gate: Gate, timeout: float | None) -> bool:
        if timeout is None:
            return gate.acquire()
        if not 0.0 <= timeout <= threading.TIMEOUT_MAX:
            timeout = min(max(timeout, 0.0), threading.TIMEOUT_MAX)
        return gate.acquire(True, timeout)


def now() -> float:
    """Real monotonic seconds, whatever clock a pool was given: what sockets go by."""
    return time.monotonic()


wait = SystemClock().wait  # likewise, real seconds


def wall() -> float:
    """Seconds since the epoch, for what outlives the process. It may go backwards."""
    return time.time()


def stamp() -> str:
    """The present moment as part of a file's name: ``20261121T183000Z``."""
    return time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
