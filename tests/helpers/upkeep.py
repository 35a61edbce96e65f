"""The reaper as a test sees it: its thread, its turns, and a pool that has come to rest."""

from __future__ import annotations

import threading
from collections.abc import Callable

from connpool import ConnectionPool
from tests.helpers.switchboard import until

REAPER = "connpool-reaper"
OFTEN = 0.02  # seconds: a reap_interval for tests on real time


def reapers() -> list[threading.Thread]:
    """The reaper's threads that are alive: one or none, and two while one that came too late is ending."""
    return [thread for thread in threading.enumerate() if thread.name == REAPER]


def the_reaper() -> threading.Thread:
    """Wait for the reaper's thread, and until it is the only one."""
    until(lambda: len(reapers()) == 1, "one thread of the reaper's")
    return reapers()[0]


def sweep_until(pool: ConnectionPool, predicate: Callable[[], object], what: str = "it") -> None:
    """Take turns of the reaper by hand until *predicate* is true; a dial or close may need several."""
    until(lambda: pool.sweep() >= 0 and predicate(), what)


def settle(pool: ConnectionPool, turns: int = 3) -> None:
    """Take several turns by hand, and let each end what it began: what has not happened then never will."""
    for _ in range(turns):
        pool.sweep()
        until(lambda: is_at_rest(pool), "the end of dials, looks and closes")


def is_at_rest(pool: ConnectionPool) -> bool:
    """Whether nothing is under way. A look counts as a loan in the numbers, as others that go on do."""
    stats, hosts = pool.stats(), list(pool._lender.books.fleet.hosts.values())
    return stats.opening == stats.closing == 0 and not any(host.looks for host in hosts)


def turn(pool: ConnectionPool) -> object:
    """One loan; returns what was lent."""
    with pool.try_connect() as conn:
        return conn.raw


def fill(pool: ConnectionPool, n: int) -> None:
    """Open *n* connections and leave them idle."""
    loans = [pool.try_connect() for _ in range(n)]
    for loan in loans:
        loan.release()


def let_pass(seconds: float) -> None:
    """Let real time pass: where it is the thing tested, and nothing is waited for."""
    threading.Event().wait(seconds)
