"""A user's thread blocks only on the pool: not on a dial, not on a look, not on a close."""

from __future__ import annotations

import threading
import time

import pytest

from connpool import CheckoutTimeoutError, ConnectionPool
from tests.helpers.switchboard import until
from tests.helpers.together import together
from tests.stress.works import A, B, Caller, TellingClock, Works, assert_ended, balanced, door

LOOSE = 2  # machines are shared


def make(works, clock=None, **settings):
    settings = {"blacklist_initial": 0, "reap_interval": None, **settings}
    return ConnectionPool(A, connector=works, clock=clock or TellingClock(), **settings)


def warm(pool, n):
    loans = [pool.try_connect() for _ in range(n)]
    for loan in loans:
        loan.release()


def test_a_burst_is_served_by_what_is_open_and_does_not_wait_for_dials():
    """HikariCP's spike: 50 threads, a dial takes 150 ms, the work 2 ms, and five are warm."""
    works = Works(prompt=True)
    pool = make(works, max_size=50)
    warm(pool, 5)
    works.opening = lambda _: time.sleep(0.15)  # what a slow dial takes

    def work():
        with pool.try_connect(timeout=10):
            time.sleep(0.002)

    def at(job):
        job()
        return time.monotonic()

    gate = threading.Barrier(50)
    began = []

    def run():
        gate.wait(10)
        began.append(time.monotonic())
        return at(work)

    ended = together(*[run] * 50)
    assert max(ended) - min(began) < 0.15 * LOOSE
    assert works.dials <= 5 + 2
    pool.close()
    works.until(lambda: works.n_open == 0)


def test_impatient_callers_cause_no_more_than_max_connecting_dials_and_those_are_kept():
    works = Works(prompt=True)
    pool = make(works, max_size=20, max_connecting=2)
    with door() as dial:
        works.opening = dial

        def ask():
            with pytest.raises(CheckoutTimeoutError):
                pool.try_connect(timeout=0.1)

        together(*[ask] * 20)
        assert works.dials == 2
        stats = balanced(pool)
        assert (stats.opening, stats.waiting, stats.timeouts) == (2, 0, 20)
    until(lambda: pool.stats().idle == 2)
    loans = [pool.try_connect(timeout=5), pool.try_connect(timeout=5)]
    assert works.dials == 2
    for loan in loans:
        loan.release()
    assert balanced(pool).idle == 2
    assert_ended(pool, works)


def test_a_deadline_holds_even_if_open_ignores_its_own():
    works = Works()
    pool = make(works)
    with door() as dial:
        works.opening = dial
        began = time.monotonic()
        with pytest.raises(CheckoutTimeoutError):
            pool.try_connect(timeout=0.2)
        assert 0.2 <= time.monotonic() - began < 0.3 * LOOSE
    assert_ended(pool, works)


def test_a_deadline_holds_even_if_a_look_hangs():
    works, clock = Works(), TellingClock()
    pool = make(works, clock, max_size=1)
    pool.try_connect().release()
    clock.leap(1)
    with door() as look:
        works.looking = look
        began = time.monotonic()
        with pytest.raises(CheckoutTimeoutError):
            pool.try_connect(timeout=0.2)
        assert 0.2 <= time.monotonic() - began < 0.3 * LOOSE
    assert_ended(pool, works)


def test_a_look_that_hangs_keeps_nobody_from_another_connection():
    works, clock = Works(), TellingClock()
    pool = make(works, clock, max_size=2)
    warm(pool, 2)
    clock.leap(1)
    with door() as look:
        works.looking = lambda part: look(part) if look.entered == 0 else None
        began = time.monotonic()
        together(*[lambda: pool.try_connect(timeout=5).release()] * 2)  # one meets the look that hangs
        assert time.monotonic() - began < 0.5
        assert look.inside == 1
    assert works.dials == 2
    assert_ended(pool, works)


def test_a_close_that_hangs_delays_nobody_not_even_the_end_of_the_pool():
    works = Works()
    pool = make(works, max_size=3)
    with door() as close:
        works.closing = lambda part: close(part) if part.number == 1 else None
        began = time.monotonic()
        loans = [pool.try_connect() for _ in range(3)]
        hangs = next(loan for loan in loans if loan.raw.number == 1)
        hangs.terminate()
        close.until_entered()
        for loan in loans:
            if loan is not hangs:
                loan.release()
        assert balanced(pool).closing == 1
        loans = [pool.try_connect(), pool.try_connect()]
        with pytest.raises(CheckoutTimeoutError):
            pool.try_connect(timeout=0.05)  # its place is not free yet
        for loan in loans:
            loan.release()
        pool.clear()
        pool.sweep()
        pool.resize(max_size=2)
        works.until(lambda: works.n_open == 1)
        pool.close()
        assert time.monotonic() - began < 2
    works.until(lambda: works.n_open == 0)
    assert works.peak == 3


def test_a_close_that_hangs_does_not_hold_up_the_close_of_the_next():
    works = Works()
    pool = make(works, max_size=4)
    with door() as close:
        works.closing = lambda part: close(part) if part.number == 1 else None
        warm(pool, 4)
        pool.close()
        works.until(lambda: works.n_open == 1)


def test_a_dial_that_hangs_delays_nobody_elsewhere():
    works = Works(prompt=True)
    pool = make(works, max_size=4)
    with door() as dial:
        works.opening = lambda endpoint: dial(endpoint) if endpoint == A else None
        hangs = Caller(pool, A)
        dial.until_entered()
        began = time.monotonic()
        for _ in range(1000):
            pool.try_connect(B, timeout=5).release()
        assert time.monotonic() - began < 0.5 * LOOSE
        assert hangs.is_waiting
    hangs.loan().release()
    assert works.peak == 2
    assert_ended(pool, works)


def test_fifty_dials_at_once_do_not_exceed_the_limit():
    works = Works(prompt=True)
    pool = make(works, max_size=4, max_connecting=50)
    works.opening = lambda _: time.sleep(0.002)

    def work():
        for i in range(5):
            connection = pool.try_connect(timeout=20)
            time.sleep(0.001)
            connection.terminate() if i % 2 else connection.release()

    together(*[work] * 50, limit=30)
    assert works.peak <= 4
    assert_ended(pool, works)


def test_nothing_is_dialled_when_a_release_came_first():
    works = Works(prompt=True)
    pool = make(works, max_size=2)
    held = pool.try_connect()
    with door() as dial:
        works.opening = dial
        caller = Caller(pool)
        dial.until_entered()
        held.release()
        began = time.monotonic()
        loan = caller.loan()
        assert loan.raw.number == 1
        assert time.monotonic() - began < 0.5
    works.until(lambda: len(works.parts) == 2)
    loan.release()
    assert_ended(pool, works)


def test_close_with_a_time_limit_waits_for_what_is_lent_and_no_longer():
    works = Works(prompt=True)
    pool = make(works)
    held = pool.try_connect()
    began = time.monotonic()
    assert pool.close(timeout=0.1) == 1
    assert 0.1 <= time.monotonic() - began < 1
    held.release()
    works.until(lambda: works.n_open == 0)


def test_close_with_a_time_limit_ends_with_the_last_loan():
    works, clock = Works(prompt=True), TellingClock()
    pool = make(works, clock)
    held = pool.try_connect()
    began = time.monotonic()
    closer = threading.Thread(target=pool.close, args=(20,))
    closer.start()
    clock.until_waiting()
    held.release()
    closer.join(10)
    assert time.monotonic() - began < 5
    works.until(lambda: works.n_open == 0)


def test_two_closes_at_once_both_end():
    works = Works(prompt=True)
    pool = make(works)
    warm(pool, 3)
    assert together(*[pool.close] * 4) == [0] * 4
    works.until(lambda: works.n_open == 0)
