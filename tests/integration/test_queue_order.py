"""The queue is first come, first served; nobody starves, and nobody takes a hand-off to the grave."""

from __future__ import annotations

import math
import threading
import time
from collections import Counter

import pytest

from connpool import CheckoutTimeoutError, ConnectionPool, PoolExhaustedError, Request
from connpool.clock import Gate
from connpool.pool import checkout
from connpool.pool.failures import timed_out
from connpool.pool.pace import Pace
from connpool.testing import FakeClock
from tests.helpers.together import together
from tests.stress.works import (
    A,
    B,
    Caller,
    TellingClock,
    Works,
    assert_ended,
    assert_whole,
    balanced,
    door,
)


def make(works=None, clock=None, **settings):
    settings = {"max_size": 1, "blacklist_initial": 0, "reap_interval": None, **settings}
    return ConnectionPool(A, connector=works or Works(prompt=True), clock=clock or TellingClock(), **settings)


def queue(pool, clock, *requests, **kwargs):
    """One waiting caller for each request, in this order."""
    callers = []
    for req in requests:
        callers.append(Caller(pool, req, **kwargs))
        clock.until_waiting(len(callers))
    return callers


def test_waiters_are_served_in_the_order_of_their_arrival():
    works, clock = Works(prompt=True), FakeClock()
    pool = make(works, clock)
    held = pool.try_connect()
    callers = queue(pool, clock, *[None] * 5)
    for i, caller in enumerate(callers):
        held.release()
        held = caller.loan()
        assert [later.is_waiting for later in callers[i + 1 :]] == [True] * (4 - i)
    held.release()
    assert works.dials == 1
    assert_ended(pool, works)


def test_waiters_are_served_in_the_order_of_their_arrival_when_places_are_freed_by_closing():
    works, clock = Works(), FakeClock()
    pool = make(works, clock)
    held = pool.try_connect()
    callers = queue(pool, clock, *[None] * 5)
    for i, caller in enumerate(callers):
        held.terminate()
        held = caller.loan()
        assert [later.is_waiting for later in callers[i + 1 :]] == [True] * (4 - i)
    held.release()
    assert works.peak == 1
    assert_ended(pool, works)


def test_a_waiter_that_nothing_suits_holds_up_nobody_behind_it():
    works, clock = Works(prompt=True), FakeClock()
    pool = make(works, clock, max_size=2, max_per_endpoint=1)
    a, b = pool.try_connect(A), pool.try_connect(B)
    picky, plain = queue(pool, clock, Request(endpoint="b:1"), Request(endpoint="a:1"))
    a.release()
    plain.loan().release()
    assert picky.is_waiting
    b.release()
    picky.loan().release()
    assert_ended(pool, works)


def test_who_wants_something_in_particular_is_not_held_up_by_those_who_would_take_anything():
    works, clock = Works(prompt=True), FakeClock()
    pool = make(works, clock, max_size=2, max_per_endpoint=1)
    held = pool.try_connect()
    (plain,) = queue(pool, clock, None)
    Caller(pool, Request(endpoint="b:1")).loan(5).release()
    assert plain.is_waiting
    held.release()
    plain.loan().release()
    assert_ended(pool, works)


def test_who_refuses_a_connection_keeps_its_place_in_the_queue():
    works, clock = Works(prompt=True), FakeClock()
    pool = make(works, clock)
    held = pool.try_connect()
    first = held.info.id
    picky, second, third = queue(pool, clock, Request(where=lambda info: info.id != first), None, None)
    held.release()
    loan = second.loan()
    clock.until_waiting(2)
    assert picky.is_waiting
    loan.terminate()  # there is room for another, and the turn is with who came first
    loan = picky.loan()
    assert third.is_waiting
    loan.release()
    third.loan().release()
    assert_ended(pool, works)


def test_a_waiter_for_another_endpoint_is_not_starved_by_those_whom_releases_suit():
    works, clock = Works(prompt=True), FakeClock()
    pool = make(works, clock)
    held = pool.try_connect(A)
    first, second, third = queue(pool, clock, Request(endpoint="b:1"), None, None)
    held.release()  # a is closed for the oldest, who wants b
    loan = first.loan()
    assert second.is_waiting
    assert third.is_waiting
    loan.release()
    second.loan().release()
    third.loan().release()
    assert_ended(pool, works)


def test_nobody_starves_while_the_pool_is_busy():
    works = Works(prompt=True)
    pool = make(works, max_size=8)
    turns: Counter[int] = Counter()
    until = time.monotonic() + 1.5

    def work(i):
        while time.monotonic() < until:
            with pool.try_connect(timeout=10):
                time.sleep(0.001)  # the work
            turns[i] += 1

    together(*(lambda i=i: work(i) for i in range(32)), limit=20)
    assert len(turns) == 32
    assert min(turns.values()) * 3 > max(turns.values()), turns
    assert works.peak <= 8
    assert_ended(pool, works)


def test_nobody_starves_behind_one_who_never_pauses():
    works = Works(prompt=True)
    pool = make(works)
    is_over = threading.Event()
    waits = []

    def hog():
        while not is_over.is_set():
            pool.try_connect(timeout=10).release()

    def wait():
        try:
            for _ in range(50):
                began = time.monotonic()
                pool.try_connect(timeout=10).release()
                waits.append(time.monotonic() - began)
        finally:
            is_over.set()

    together(hog, hog, wait, limit=20)
    assert len(waits) == 50
    assert sorted(waits)[25] < 0.1  # a millisecond is the aim
    assert_ended(pool, works)


def test_who_comes_when_max_waiters_wait_is_refused_at_once():
    works, clock = Works(prompt=True), FakeClock()
    pool = make(works, clock, max_waiters=2)
    held = pool.try_connect()
    callers = queue(pool, clock, None, None)
    with pytest.raises(PoolExhaustedError):
        pool.try_connect()
    assert balanced(pool).waiting == 2
    held.release()
    for caller in callers:
        caller.loan().release()
    pool.try_connect().release()  # the queue has room again
    assert_ended(pool, works)


def test_max_waiters_zero_forbids_to_wait_for_a_place_and_not_to_dial():
    works, clock = Works(prompt=True), FakeClock()
    pool = make(works, clock, max_waiters=0)
    held = pool.try_connect()
    with pytest.raises(PoolExhaustedError):
        pool.try_connect()
    held.release()
    assert_ended(pool, works)


def test_who_may_not_wait_is_refused_at_once_and_does_not_wait_for_those_who_do():
    works, clock = Works(prompt=True), FakeClock()
    pool = make(works, clock)
    held = pool.try_connect()
    (caller,) = queue(pool, clock, None)
    with pytest.raises(PoolExhaustedError):
        pool.try_connect(timeout=0)
    assert balanced(pool).waiting == 1
    held.release()
    caller.loan().release()
    pool.try_connect(timeout=0).release()
    assert_ended(pool, works)


def queue_of_two(pool, clock):
    """One that waits for 1 s, and behind it one that waits for 20."""
    impatient = Caller(pool, timeout=1)
    clock.until_waiting(1)
    patient = Caller(pool, timeout=20)
    clock.until_waiting(2)
    return impatient, patient


def test_a_waiter_that_times_out_leaves_the_queue_to_the_next():
    works, clock = Works(prompt=True), FakeClock()
    pool = make(works, clock)
    held = pool.try_connect()
    impatient, patient = queue_of_two(pool, clock)
    clock.advance(1)
    impatient.failure(CheckoutTimeoutError)
    stats = balanced(pool)
    assert (stats.waiting, stats.timeouts) == (1, 1)
    held.release()
    patient.loan().release()
    assert_ended(pool, works)


def test_what_comes_back_while_one_that_has_timed_out_tells_why_goes_to_the_next(monkeypatch):
    def tell_why(*args):
        held.release()
        patient.loan().release()
        return timed_out(*args)

    monkeypatch.setattr(checkout, "timed_out", tell_why)
    works, clock = Works(prompt=True), FakeClock()
    pool = make(works, clock)
    held = pool.try_connect()
    impatient, patient = queue_of_two(pool, clock)
    clock.advance(1)
    impatient.failure(CheckoutTimeoutError)
    assert_ended(pool, works)


class LeavingClock(TellingClock):
    """A wait that ends only when something was handed over, and then in the way of the test."""

    overtake_delay = 0.0

    def __init__(self, end):
        super().__init__()
        self.leaver = None
        self._end = end

    def wait(self, gate: Gate, timeout: float | None) -> bool:
        came = super().wait(gate, timeout)
        if came and threading.current_thread() is self.leaver:
            return self._end()
        return came


def interrupt():
    raise KeyboardInterrupt


@pytest.mark.parametrize("ending", ["release", "terminate"])
def test_an_interrupted_waiter_passes_on_what_it_was_given(ending):
    clock = LeavingClock(interrupt)
    works = Works(prompt=True)
    pool = make(works, clock)
    held = pool.try_connect()
    first, second = queue(pool, clock, None, None)
    clock.leaver = first._thread
    getattr(held, ending)()
    first.failure(KeyboardInterrupt)
    began = time.monotonic()
    second.loan().release()
    assert second.done_at - began < 0.5
    assert_whole(pool, works)
    assert_ended(pool, works)


def test_a_waiter_that_is_late_takes_what_it_was_given_in_its_last_moment():
    clock = LeavingClock(lambda: False)
    works = Works(prompt=True)
    pool = make(works, clock)
    held = pool.try_connect()
    (first,) = queue(pool, clock, None)
    clock.leaver = first._thread
    held.release()
    first.loan().release()
    assert_ended(pool, works)


@pytest.mark.parametrize("n", range(3))
def test_a_cancelled_waiter_passes_on_what_it_was_given(n):
    """Cancelled in the moment of the hand-off: it or the next has the connection, and no place is lost."""
    cancel = threading.Event()

    def end():
        cancel.set()
        return True

    clock = LeavingClock(end)
    works = Works(prompt=True)
    pool = make(works, clock)
    held = pool.try_connect()
    first, second = queue(pool, clock, Request(cancel=cancel), None)
    clock.leaver = first._thread
    held.release()
    first.join()
    if first.connection is not None:
        first.connection.release()
    second.loan().release()
    assert_whole(pool, works)
    assert_ended(pool, works)


def test_a_hand_off_goes_to_who_waits_and_not_to_a_newcomer():
    works, clock = Works(prompt=True), FakeClock()
    pool = make(works, clock)
    held = pool.try_connect()
    (first,) = queue(pool, clock, None)
    held.release()
    with pytest.raises(PoolExhaustedError):
        pool.try_connect(timeout=0)
    first.loan().release()
    assert_ended(pool, works)


class LenientClock(FakeClock):
    """Brief loans may overtake who waits, as on a real clock."""

    overtake_delay = 0.01


def test_who_comes_to_the_front_by_a_brief_loan_sets_itself_an_alarm():
    """Until that goes off it hears of no return: what lies idle then would wait for it in vain."""
    works, clock = Works(prompt=True), LenientClock()
    pool = make(works, clock, checkout_timeout=None)
    held = pool.try_connect()
    first, second, third = queue(pool, clock, None, None, None)
    clock.advance(0.01)  # the first has been overtaken long enough
    held.release()
    first.loan().release()
    second.loan().release()
    clock.advance(0.01)
    third.loan().release()
    assert_ended(pool, works)


class RestlessClock(LenientClock):
    """Nobody may wait for no time."""

    def wait(self, gate: Gate, timeout: float | None) -> bool:
        assert timeout != 0, "nobody has anything to do, and this thread does not sleep"
        return super().wait(gate, timeout)


def test_who_loses_the_front_to_one_that_comes_back_sleeps_on():
    """Its alarm was for the front: it went off again and again, for as long as the one before it waited."""
    works, clock = Works(prompt=True), RestlessClock()
    pool = make(works, clock, checkout_timeout=None)
    pool.try_connect().release()
    clock.advance(1)
    callers = []
    with door() as dial:

        def look(part):
            callers.extend(queue(pool, clock, None, timeout=None))
            works.opening = dial
            return False

        works.looking = look
        first = Caller(pool, timeout=None)
        dial.until_entered()
        clock.until_waiting(2)
        clock.advance(clock.overtake_delay)  # now the alarm of the second goes off
        clock.until_waiting(2)
        assert callers[0].is_waiting
        assert first.is_waiting
    first.loan().release()
    callers[0].loan().release()
    assert_ended(pool, works)


class OversleepingClock(LenientClock):
    """Nobody's alarm goes off in time, as where threads queue for the interpreter."""

    def pass_by(self, seconds: float) -> None:
        self._now += seconds


@pytest.mark.parametrize("listeners", [(), (lambda event: None,)], ids=["unheard", "heard"])
def test_who_oversleeps_is_not_overtaken_for_longer(listeners):
    works, clock = Works(prompt=True), OversleepingClock()
    pool = make(works, clock, checkout_timeout=None, listeners=listeners)
    held = pool.try_connect()
    (waiter,) = queue(pool, clock, None)
    held.release()
    clock.pass_by(0.00999)
    held = pool.try_connect(timeout=0)
    clock.pass_by(0.00002)
    held.release()
    assert not can_overtake(pool)
    waiter.loan().release()
    assert_ended(pool, works)


@pytest.mark.parametrize("listeners", [(), (lambda event: None,)], ids=["unheard", "heard"])
@pytest.mark.parametrize("shared", [False, True], ids=["exclusive", "shared"])
def test_a_long_loan_lets_nobody_pass_who_has_just_come(listeners, shared):
    works, clock = Works(prompt=True), LenientClock()
    pool = make(works, clock, checkout_timeout=None, listeners=listeners, sharable=True)
    held = pool.try_connect(Request(shared=shared))
    clock.advance(0.005)
    (waiter,) = queue(pool, clock, None)
    held.release()
    assert not can_overtake(pool)
    waiter.loan().release()
    assert_ended(pool, works)


def test_what_lies_idle_for_a_moment_is_had_by_the_second_as_soon_as_the_first_is_served():
    works, clock = Works(prompt=True), LenientClock()
    pool = make(works, clock, max_size=2, checkout_timeout=None)
    brief, long = pool.try_connect(), pool.try_connect()
    first, second = queue(pool, clock, None, None)
    brief.release()
    clock.advance(0.005)
    assert (first.is_waiting, second.is_waiting, pool.stats().idle) == (True, True, 1)
    long.release()
    for loan in (first.loan(), second.loan()):
        loan.release()
    assert_ended(pool, works)


class LaggingClock(LenientClock):
    """Whoever is served is there only a while later, as where threads queue for a processor."""

    lag = 0.0

    def has_alarm(self) -> bool:
        return any(sleeper.deadline < math.inf for sleeper in list(self._sleepers))

    def wait(self, gate: Gate, timeout: float | None) -> bool:
        came = super().wait(gate, timeout)
        if came and self.lag:
            self.advance(self.lag)
        return came


def pool_of_lagging_threads(works, lag):
    """All loans so far were too long for anybody to be overtaken, and too short for the alarm."""
    clock = LaggingClock()
    pool = make(works, clock, checkout_timeout=None)
    clock.lag = lag
    for _ in range(60):
        given_back_after(0.005, pool, clock).loan().release()
    clock.lag = 0.0
    return pool, clock


def given_back_after(seconds, pool, clock):
    """A loan for which one has waited that long. Returns who."""
    held = pool.try_connect()
    (waiter,) = queue(pool, clock, None)
    clock.advance(seconds)
    held.release()
    return waiter


def can_overtake(pool):
    try:
        pool.try_connect(timeout=0).release()
    except PoolExhaustedError:
        return False
    return True


@pytest.mark.parametrize(
    ("lag", "hold", "is_brief"),
    [(0.001, 0.002, True), (0.001, 0.004, False), (0.0, 0.002, False)],
    ids=["brief for such lags", "long for such lags", "no lag"],
)
def test_brief_loans_overtake_only_where_hand_offs_take_as_long(lag, hold, is_brief):
    works = Works(prompt=True)
    pool, clock = pool_of_lagging_threads(works, lag)
    waiter = given_back_after(hold, pool, clock)
    assert can_overtake(pool) is is_brief
    clock.advance(0.01)
    waiter.loan().release()
    assert_ended(pool, works)


def test_where_somebody_waited_for_a_long_loan_only_the_briefest_let_others_pass():
    """Whoever overtakes may be the next who keeps it for long."""
    works = Works(prompt=True)
    pool, clock = pool_of_lagging_threads(works, 0.001)
    held = given_back_after(0.02, pool, clock).loan()
    (waiter,) = queue(pool, clock, None)
    clock.advance(0.002)
    held.release()
    assert not can_overtake(pool)
    held = waiter.loan()
    (waiter,) = queue(pool, clock, None)
    held.release()  # at once
    assert can_overtake(pool)
    clock.advance(0.01)
    waiter.loan().release()
    assert_ended(pool, works)


def test_a_long_loan_for_which_nobody_waited_does_not_matter():
    works = Works(prompt=True)
    pool, clock = pool_of_lagging_threads(works, 0.001)
    held = pool.try_connect()
    clock.advance(0.02)
    held.terminate()
    waiter = given_back_after(0.002, pool, clock)
    assert can_overtake(pool)
    clock.advance(0.01)
    waiter.loan().release()
    assert_ended(pool, works)


def test_who_comes_to_the_front_by_a_loan_that_is_brief_for_such_lags_may_be_overtaken():
    works = Works(prompt=True)
    pool, clock = pool_of_lagging_threads(works, 0.001)
    held = pool.try_connect()
    first, second, third = queue(pool, clock, None, None, None)
    clock.advance(0.005)
    held.release()  # a long one: the second is announced as the next
    held = first.loan()
    clock.advance(0.002)
    held.release()
    held = second.loan()
    works.until(clock.has_alarm, 5)  # the third's
    clock.advance(0.002)
    held.release()
    assert can_overtake(pool)
    clock.advance(0.01)
    third.loan().release()
    assert_ended(pool, works)


class Noting(Pace):
    """Remembers how long each hand-off took."""

    __slots__ = ("noted",)

    def note(self, seconds):
        self.noted.append(seconds)


def test_a_dial_in_place_of_what_was_handed_over_is_no_part_of_a_hand_off():
    def clear_once():
        clock.leaver = None
        pool.clear()
        return True

    clock = LeavingClock(clear_once)
    works = Works(prompt=True)
    pool = make(works, clock)
    pace = pool._lender.books.pace = Noting(clock.overtake_delay)
    pace.noted = []
    held = pool.try_connect()
    (waiter,) = queue(pool, clock, None)
    clock.leaver = waiter._thread
    held.release()
    waiter.loan().release()
    assert works.dials == 2
    assert len(pace.noted) == 1
    assert_ended(pool, works)


def test_a_dial_whose_waiter_left_serves_the_next_and_else_lies_idle():
    works, clock = Works(prompt=True), TellingClock()
    pool = make(works, clock)
    free = threading.Event()
    entered = threading.Event()

    def opening(_):
        entered.set()
        assert free.wait(30)

    works.opening = opening
    gone = Caller(pool, timeout=0.05)
    gone.failure(CheckoutTimeoutError)
    assert entered.is_set()
    caller = Caller(pool, timeout=10)
    clock.until_waiting(1)
    free.set()
    caller.loan().release()
    assert works.dials == 1
    assert balanced(pool).idle == 1
    assert_ended(pool, works)


def test_what_a_waiter_was_given_is_closed_if_it_leaves_a_pool_that_was_closed_meanwhile():
    works = Works(prompt=True)

    def end():
        pool.close()
        raise KeyboardInterrupt

    clock = LeavingClock(end)
    pool = make(works, clock)
    held = pool.try_connect()
    (first,) = queue(pool, clock, None)
    clock.leaver = first._thread
    held.release()
    first.failure(KeyboardInterrupt)
    works.until(lambda: works.n_open == 0, 2)
    assert balanced(pool).size == 0
