"""One pool with a queue of callers, and how quickly they are served."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import pytest

from connpool import ConnectionPool
from tests.stress.works import AT_ONCE, A, Caller, TellingClock, Works, assert_ended


class House:
    """One pool with all that is around it."""

    def __init__(self, works: Works | None = None, route: object = A, **settings: object) -> None:
        self.works = works or Works(prompt=True)
        self.clock = TellingClock()
        settings = {"max_size": 1, "blacklist_initial": 0, "reap_interval": None, **settings}
        self.pool = ConnectionPool(route, connector=self.works, clock=self.clock, **settings)
        self._callers: list[Caller] = []

    def waiter(self, req: object = None, *, timeout: float = 10.0) -> Caller:
        """A thread that asks for a connection, once it really waits."""
        n = self.pool.stats().waiting
        caller = Caller(self.pool, req, timeout=timeout)
        self._callers.append(caller)
        self.clock.until_waiting(n + 1)
        return caller

    def end(self) -> None:
        self.pool.close()
        for caller in self._callers:
            caller.join()
            if caller.connection is not None and caller.connection.info.holder is not None:
                caller.connection.release()


@pytest.fixture(name="house")
def make_house() -> Iterator[Callable[..., House]]:
    made: list[House] = []

    def build(*args: object, **settings: object) -> House:
        made.append(House(*args, **settings))
        return made[-1]

    yield build
    for each in made:
        assert_ended(each.pool, each.works)


def served(caller: Caller, act: Callable[[], object]) -> None:
    """Do *act*; the waiting *caller* must have a connection at once."""
    assert caller.is_waiting
    began = time.monotonic()
    act()
    caller.loan().release()
    assert caller.done_at - began < AT_ONCE


def refused(caller: Caller, kind: type[BaseException], act: Callable[[], object]) -> None:
    """Do *act*; the waiting *caller* must have its error at once."""
    assert caller.is_waiting
    began = time.monotonic()
    act()
    caller.failure(kind)
    assert caller.done_at - began < AT_ONCE
