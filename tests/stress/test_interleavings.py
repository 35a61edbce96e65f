"""One deed is stopped before each of its lines in turn while another thread does something else meanwhile.

Random preemption finds a race sooner or later; this finds it each time, as long as one switch is enough.
"""

from __future__ import annotations

import contextlib
import importlib
import pkgutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from types import FrameType
from typing import Any

import pytest

import connpool.pool
from connpool import ConnectionPool, ConnPoolError, PoolClosedError, PoolExhaustedError
from tests.helpers.interrupts import Place, worth_striking
from tests.stress.scenes import HelpfulClock
from tests.stress.works import A, B, Caller, Works, assert_ended, assert_whole, balanced

FILES = {
    importlib.import_module(f"connpool.pool.{module.name}").__file__
    for module in pkgutil.iter_modules(connpool.pool.__path__)
}
MOMENT = 0.02  # seconds for the other thread; it needs more only if it waits for the one that was stopped
AGAIN = 30  # meetings at lines that were met already
BRIEF_MOMENT = 0.002  # the same where that one holds the lock, so that the other gets no further than there


class Pause:
    """Before the *n*-th line that this thread executes in the pool, *other* runs on a thread of its own.

    A context manager; on leaving it, *other* has ended, or is to be joined by whoever made it.

    Attributes:
        where: Function and line at which that was; None: there were fewer lines.
        places: Code and number of each line up to there, as often as it was executed.
    """

    def __init__(self, n: int, lock: Any, other: Callable[[], object]) -> None:
        self.where: str | None = None
        self.places: list[Place] = []
        self._n = n
        self._lock = lock
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
            self.places.append((frame.f_code, frame.f_lineno))
            if len(self.places) == self._n:
                self.where = f"{frame.f_code.co_qualname}, line {frame.f_lineno}"
                self._thread = threading.Thread(target=self._run)
                self._thread.start()
                self._thread.join(BRIEF_MOMENT if self._lock._is_owned() else MOMENT)
        return self._on_line

    def _run(self) -> None:
        try:
            self._other()
        except BaseException as error:
            self._errors.append(error)


class Stage:
    """A pool of one or two places, those who use it, and what the test itself has borrowed."""

    def __init__(self, size: int = 1, *, lent: int = 0, idle: int = 0, **settings: Any) -> None:
        self.works = Works(prompt=True)
        self.clock = HelpfulClock()
        settings = {"blacklist_initial": 0, "reap_interval": None, **settings}
        self.pool = ConnectionPool(A, connector=self.works, clock=self.clock, max_size=size, **settings)
        self.callers: list[Caller] = []
        for _ in range(lent + idle):
            self.pool.add_connection(self.works.open(A, None, None))
        self.held = [self.pool.try_connect() for _ in range(lent)]

    def call(self, req: object = None) -> None:
        """Another comes, and either has its connection or waits."""
        caller = Caller(self.pool, req)
        self.callers.append(caller)
        until = time.monotonic() + MOMENT / 2
        while caller.is_waiting and not self.clock.waiting and time.monotonic() < until:
            time.sleep(0)

    def give_back(self, how: str) -> None:
        """The test gives back what it borrowed first, if it has not yet."""
        if self.held:
            held = self.held.pop(0)
            raw = held.raw
            getattr(held, how)()
            if how == "detach":
                self.works.disown(raw)
                self.works.peak = 1  # the place was free before the connector knew

    def end(self, where: str | None) -> None:
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


def meetings(
    build: Callable[[], Stage], deed: Callable[[Stage], object], other: Callable[[Stage], object]
) -> Iterator[tuple[Stage, str | None]]:
    """The ways in which *other* can come upon *deed*, and at first one in which it does not come at all.

    It comes before each line when that is executed first, and now and then when it is executed again: at
    every coming of every line takes minutes. Gives the stage afterwards, and the line at which they met.
    """
    stage = build()
    with Pause(0, stage.pool._lender._lock, partial(other, stage)) as survey:
        deed(stage)
    yield stage, None
    assert len(survey.places) > 5
    for n in worth_striking(survey.places, set(), AGAIN):
        stage = build()
        with Pause(n, stage.pool._lender._lock, partial(other, stage)) as pause:
            deed(stage)
        yield stage, pause.where


# Loans that are listened to go ways of their own.
heard_or_not = pytest.mark.parametrize("listeners", [(), (repr,)], ids=["unheard", "heard"])

# -- no wake-up is lost --------------------------------------------------------------


@heard_or_not
@pytest.mark.parametrize("how", ["release", "terminate", "detach"])
def test_a_waiter_that_comes_at_any_moment_of_a_giving_back_is_served(how, listeners):
    build = partial(Stage, lent=1, listeners=listeners)
    for stage, where in meetings(build, lambda it: it.give_back(how), Stage.call):
        stage.end(where)


@heard_or_not
@pytest.mark.parametrize("how", ["release", "terminate"])
def test_a_giving_back_at_any_moment_of_a_checkout_is_not_slept_through(how, listeners):
    def check_out(stage: Stage) -> None:
        stage.clock.helper = lambda: stage.give_back(how)  # at the latest
        began = time.monotonic()
        connection = stage.pool.try_connect(timeout=10)
        assert time.monotonic() - began < 2
        connection.release()

    build = partial(Stage, lent=1, listeners=listeners)
    for stage, where in meetings(build, check_out, lambda it: it.give_back(how)):
        stage.end(where)


@pytest.mark.parametrize("how", ["release", "terminate"])
def test_a_second_giving_back_at_any_moment_of_the_first_serves_both_who_wait(how):
    def build() -> Stage:
        stage = Stage(size=2, lent=2)
        for n in (1, 2):
            stage.callers.append(Caller(stage.pool))
            stage.clock.until_waiting(n)
        return stage

    for stage, where in meetings(build, lambda it: it.give_back("release"), lambda it: it.give_back(how)):
        stage.give_back(how)  # if they did not meet
        stage.end(where)


def test_a_waiter_for_another_endpoint_that_comes_at_any_moment_of_a_release_is_served():
    def release(stage: Stage) -> None:
        stage.give_back("release")

    for stage, where in meetings(partial(Stage, lent=1), release, lambda it: it.call(B)):
        stage.end(where)


def test_a_waiter_that_comes_at_any_moment_of_a_checkout_that_may_not_wait_is_served():
    def ask(stage: Stage) -> None:
        with pytest.raises(PoolExhaustedError):
            stage.pool.try_connect(timeout=0)

    for stage, where in meetings(partial(Stage, lent=1), ask, Stage.call):
        stage.give_back("release")
        stage.end(where)


# -- nothing outlives the pool ---------------------------------------------------------


def lend(stage: Stage) -> None:
    with contextlib.suppress(PoolClosedError):
        stage.pool.try_connect(timeout=5).release()


def lend_and_close(stage: Stage) -> None:
    with contextlib.suppress(PoolClosedError):
        stage.pool.try_connect(timeout=5).terminate()


def add(stage: Stage) -> None:
    raw = stage.works.open(A, None, None)
    try:
        stage.pool.add_connection(raw)
    except ConnPoolError:
        stage.works.close(raw)


def take(stage: Stage) -> None:
    raw = stage.pool.take()
    if raw is not None:
        stage.works.disown(raw)


def close(stage: Stage) -> None:
    stage.pool.close()


@heard_or_not
@pytest.mark.parametrize("idle", [0, 1])
@pytest.mark.parametrize("deed", [lend, lend_and_close, add, take])
def test_a_pool_that_is_closed_at_any_moment_of_a_deed_leaves_nothing_open(deed, idle, listeners):
    for stage, where in meetings(partial(Stage, 2, idle=idle, listeners=listeners), deed, close):
        if where is None:
            stage.pool.close()
        until = time.monotonic() + 1
        while (stage.works.n_open or stage.pool.stats().size) and time.monotonic() < until:
            time.sleep(0)  # a dial under way brings one more, to be closed at once, and then forgotten
        stats = balanced(stage.pool)
        assert (stage.works.n_open, stats.size) == (0, 0), (where, stats)


def clear(stage: Stage) -> None:
    stage.pool.clear()


def flicker(stage: Stage) -> None:
    stage.pool.shutdown()
    stage.pool.reopen()


def shrink(stage: Stage) -> None:
    stage.pool.resize(max_size=1)


def age(stage: Stage) -> None:
    stage.clock.leap(1000)
    stage.pool.sweep()


def move(stage: Stage) -> None:
    stage.pool.route = "b:1"


@heard_or_not
@pytest.mark.parametrize("deed", [lend, lend_and_close, take])
@pytest.mark.parametrize("order", [clear, flicker, shrink, age, move])
def test_an_order_given_at_any_moment_of_a_deed_is_carried_out_and_loses_nothing(deed, order, listeners):
    for stage, where in meetings(partial(Stage, 2, idle=2, listeners=listeners), deed, order):
        stats = balanced(stage.pool)
        assert (stats.in_use, stats.waiting, stats.opening) == (0, 0, 0), (where, stats)
        if where is not None:
            # What came back in the very moment of the order waits for the next turn, and is never lent.
            stage.pool.sweep()
            if order in (clear, move):
                assert not any(part.is_open for part in stage.works.parts[:2]), where
            if order is shrink:
                assert balanced(stage.pool).size <= 1, where
                stage.works.peak = 1
        stage.end(where)


def test_a_loan_of_another_at_any_moment_of_a_checkout_is_another_connection():
    def borrow(stage: Stage) -> None:
        stage.held.append(stage.pool.try_connect())

    for stage, where in meetings(partial(Stage, 2, idle=1), borrow, borrow):
        assert len({id(loan.raw) for loan in stage.held}) == len(stage.held), where
        while stage.held:
            stage.give_back("release")
        stage.end(where)


def test_who_joins_at_any_moment_of_the_last_share_s_end_is_the_only_holder():
    def build() -> Stage:
        stage = Stage(1, idle=1, sharable=True)
        stage.held.append(stage.pool.share())
        return stage

    def join(stage: Stage) -> None:
        stage.held.append(stage.pool.share(timeout=5))

    for stage, where in meetings(build, lambda it: it.give_back("release"), join):
        if where is not None:
            (share,) = stage.held
            assert share.raw.is_open, where
            with pytest.raises(PoolExhaustedError):
                stage.pool.try_connect(timeout=0)
            stats = balanced(stage.pool)
            assert (stats.size, stats.shared, stats.idle) == (1, 1, 0), (where, stats)
            stage.give_back("release")
        stage.end(where)
