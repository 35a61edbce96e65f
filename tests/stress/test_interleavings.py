"""One deed is stopped before each of its lines in turn while another thread does something else meanwhile.

Random preemption finds a race sooner or later; this finds it each time, as long as one switch is enough for it.
"""

from __future__ import annotations

import importlib
import pkgutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import pytest

import connpool.pool
from connpool import ConnectionPool, ConnPoolError, PoolClosedError, PoolExhaustedError
from connpool.clock import Gate
from tests.stress.works import A, B, Caller, TellingClock, Works, assert_ended, assert_whole, balanced

FILES = {
    importlib.import_module(f"connpool.pool.{module.name}").__file__
    for module in pkgutil.iter_modules(connpool.pool.__path__)
}
MOMENT = 0.02  # seconds for the other thread; it needs more only if it waits for the one that was stopped


class HelpfulClock(TellingClock):
    """When a thread would wait, *helper* first does what ends the wait."""

    helper: Callable[[], object] | None = None

    def wait(self, gate: Gate, timeout: float | None) -> bool:
        helper, self.helper = self.helper, None
        if helper is not None:
            helper()
        return super().wait(gate, timeout)


class Pause:
    """Before the *n*-th line that this thread executes in the pool, *other* runs on a thread of its own.

    A context manager; on leaving it, *other* has ended, or is to be joined by whoever made it.
    """

    def __init__(self, n: int, other: Callable[[], object]) -> None:
        self.where: str | None = None
        self._left = n
        self._other = other
        self._thread: threading.Thread | None = None
        self._errors: list[BaseException] = []

    def __enter__(self) -> Pause:
        self._before = sys.gettrace()
        sys.settrace(self._on_call)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(self._before)
        if self._thread is not None:
            self._thread.join(10)
            assert not self._thread.is_alive(), f"stuck after {self.where}"
        if self._errors:
            raise self._errors[0]

    def _on_call(self, frame: FrameType, event: str, arg: Any) -> Any:
        return self._on_line if frame.f_code.co_filename in FILES else None

    def _on_line(self, frame: FrameType, event: str, arg: Any) -> Any:
        if event == "line" and self.where is None:
            self._left -= 1
            if self._left == 0:
                self.where = f"{frame.f_code.co_qualname}, line {frame.f_lineno}"
                self._thread = threading.Thread(target=self._run)
                self._thread.start()
                self._thread.join(MOMENT)
        return self._on_line

    def _run(self) -> None:
        try:
            self._other()
        except BaseException as error:
            self._errors.append(error)


def at_every_line(other: Callable[[], object]) -> Iterator[Pause]:
    """A ``Pause`` at each line, until one finds that there are no more."""
    n = 1
    while True:
        pause = Pause(n, lambda: other())
        yield pause
        if pause.where is None:
            return
        n += 1


class Set:
    """A pool of one or two places, and those who use it."""

    def __init__(self, size: int = 1, **settings: object) -> None:
        self.works = Works(prompt=True)
        self.clock = HelpfulClock()
        self.pool = ConnectionPool(
            A, connector=self.works, clock=self.clock, max_size=size, blacklist_initial=0,
            reap_interval=None, **settings,
        )  # fmt: skip
        self.callers: list[Caller] = []

    def call(self, req: object = None, timeout: float = 10) -> None:
        """Another comes, and either has its connection or waits."""
        caller = Caller(self.pool, req, timeout=timeout)
        self.callers.append(caller)
        until = time.monotonic() + MOMENT / 2
        while caller.is_waiting and not self.clock.waiting and time.monotonic() < until:
            time.sleep(0)

    def end(self, where: object) -> None:
        """All who came have been served, soon; no place is lost."""
        for caller in self.callers:
            began = time.monotonic()
            try:
                caller.loan().release()
            except ConnPoolError as error:
                raise AssertionError(f"{where}: {error!r}") from error
            assert caller.done_at - began < 0.5, where
        assert_whole(self.pool, self.works, limit=2)
        assert_ended(self.pool, self.works)


# -- no wake-up is lost --------------------------------------------------------------


@pytest.mark.parametrize("end", ["release", "terminate", "detach"])
def test_a_waiter_that_comes_at_any_moment_of_a_giving_back_is_served(end):
    stage: Set
    for pause in at_every_line(lambda: stage.call()):
        stage = Set()
        held = stage.pool.try_connect()
        with pause:
            raw = getattr(held, end)()
        if end == "detach":
            stage.works.disown(raw)
            stage.works.peak = 1
        stage.end(pause.where)


@pytest.mark.parametrize("end", ["release", "terminate"])
def test_a_giving_back_at_any_moment_of_a_checkout_is_not_slept_through(end):
    stage: Set
    held: list[Any] = []

    def give_back() -> None:
        while held:
            getattr(held.pop(), end)()

    for pause in at_every_line(give_back):
        stage = Set()
        held.append(stage.pool.try_connect())
        stage.clock.helper = give_back  # at the latest
        began = time.monotonic()
        with pause:
            mine = stage.pool.try_connect(timeout=10)
        assert time.monotonic() - began < 2, pause.where
        mine.release()
        stage.end(pause.where)


@pytest.mark.parametrize("end", ["release", "terminate"])
def test_a_second_giving_back_at_any_moment_of_the_first_serves_both_who_wait(end):
    stage: Set
    held: list[Any] = []
    for pause in at_every_line(lambda: getattr(held[1], end)()):
        stage = Set(size=2)
        held = [stage.pool.try_connect(), stage.pool.try_connect()]
        stage.call()
        stage.clock.until_waiting()
        stage.callers.append(Caller(stage.pool))
        stage.clock.until_waiting(2)
        with pause:
            held[0].release()
        if pause.where is None:
            held[1].release()
        stage.end(pause.where)


def test_a_waiter_for_another_endpoint_that_comes_at_any_moment_of_a_release_is_served():
    stage: Set
    for pause in at_every_line(lambda: stage.call(B)):
        stage = Set()
        held = stage.pool.try_connect(A)
        with pause:
            held.release()
        stage.end(pause.where)


def test_a_waiter_that_comes_at_any_moment_of_a_checkout_that_may_not_wait_is_served():
    stage: Set
    for pause in at_every_line(lambda: stage.call()):
        stage = Set()
        held = stage.pool.try_connect()
        with pause, pytest.raises(PoolExhaustedError):
            stage.pool.try_connect(timeout=0)
        held.release()
        stage.end(pause.where)


# -- nothing outlives the pool ---------------------------------------------------------


def lend(stage: Set) -> None:
    try:
        stage.pool.try_connect(timeout=5).release()
    except PoolClosedError:
        pass


def lend_and_close(stage: Set) -> None:
    try:
        stage.pool.try_connect(timeout=5).terminate()
    except PoolClosedError:
        pass


def add(stage: Set) -> None:
    raw = stage.works.open(A, None, None)
    try:
        stage.pool.add_connection(raw)
    except ConnPoolError:
        stage.works.close(raw)


def take(stage: Set) -> None:
    raw = stage.pool.take()
    if raw is not None:
        stage.works.disown(raw)


@pytest.mark.parametrize("is_warm", [True, False])
@pytest.mark.parametrize("deed", [lend, lend_and_close, add, take])
def test_a_pool_that_is_closed_at_any_moment_of_a_deed_leaves_nothing_open(deed, is_warm):
    stage: Set
    for pause in at_every_line(lambda: stage.pool.close()):
        stage = Set(size=2)
        if is_warm:
            stage.pool.try_connect().release()
        with pause:
            deed(stage)
        if pause.where is None:
            stage.pool.close()
        stage.works.until(lambda: stage.works.n_open == 0, 2)
        stats = balanced(stage.pool)
        assert (stats.size, stats.in_use) == (0, 0), (pause.where, stats)


@pytest.mark.parametrize("deed", [lend, lend_and_close, take])
@pytest.mark.parametrize("order", ["clear", "shutdown", "resize", "sweep", "route"])
def test_an_order_given_at_any_moment_of_a_deed_loses_nothing(deed, order):
    stage: Set

    def give() -> None:
        if order == "clear":
            stage.pool.clear()
        elif order == "shutdown":
            stage.pool.shutdown()
            stage.pool.reopen()
        elif order == "resize":
            stage.pool.resize(max_size=1)
        elif order == "sweep":
            stage.clock.leap(1000)
            stage.pool.sweep()
        else:
            stage.pool.route = "b:1"

    for pause in at_every_line(give):
        stage = Set(size=2)
        warm = [stage.pool.try_connect() for _ in range(2)]
        for connection in warm:
            connection.release()
        stale = list(stage.works.parts)
        with pause:
            deed(stage)
        stats = balanced(stage.pool)
        assert (stats.in_use, stats.waiting, stats.opening) == (0, 0, 0), (pause.where, stats)
        if pause.where is not None and order in ("clear", "route"):
            # Whatever was open when the order came is closed, at the latest by the next turn.
            stage.pool.sweep()
            assert not any(part.is_open for part in stale), (pause.where, stale)
        if pause.where is not None and order == "resize":
            stage.pool.sweep()
            assert balanced(stage.pool).size <= 1, (pause.where, stats)
            stage.works.peak = 1
        stage.end(pause.where)


def test_a_loan_of_another_at_any_moment_of_a_checkout_is_another_connection():
    stage: Set
    loans: list[Any] = []
    for pause in at_every_line(lambda: loans.append(stage.pool.try_connect())):
        stage = Set(size=2)
        loans.clear()
        stage.pool.try_connect().release()
        with pause:
            mine = stage.pool.try_connect()
        assert len({id(loan.raw) for loan in [mine, *loans]}) == 1 + len(loans), pause.where
        for loan in [mine, *loans]:
            loan.release()
        stage.end(pause.where)
