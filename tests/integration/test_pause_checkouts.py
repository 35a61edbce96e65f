"""A paused pool lends nothing: who asks waits for the end of the pause, or is told at once."""

from __future__ import annotations

import contextlib
import threading
import time

import pytest

from connpool import (
    CancelledError,
    CheckoutFailed,
    CheckoutTimeoutError,
    ConnectionPool,
    ConnPoolError,
    PoolClosedError,
    PoolExhaustedError,
    PoolPaused,
    PoolPausedError,
    PoolState,
    Request,
)
from connpool.testing import FakeClock, ScriptedServer
from tests.helpers.switchboard import until
from tests.helpers.together import together
from tests.stress.house import make_house, served  # noqa: F401 - make_house is a fixture
from tests.stress.stage import make_stage  # noqa: F401 - a fixture
from tests.stress.works import AT_ONCE, A, Caller, TellingClock, Works, assert_whole, balanced, door

WARM = pytest.mark.parametrize("warm", [True, False], ids=["idle", "empty"])


def warmed(stage, warm, **settings):
    s = stage(**settings)
    if warm:
        s.pool.try_connect().release()
    return s


def queue(s, n, **kwargs):
    """Several callers who wait, in this order."""
    callers = []
    for _ in range(n):
        waiting = s.pool.stats().waiting
        callers.append(Caller(s.pool, timeout=20, **kwargs))
        s.clock.until_waiting(waiting + 1)
        until(
            lambda waiting=waiting: s.pool.stats().waiting == waiting + 1, "the caller's place in the queue"
        )
    return callers


# -- waiting --------------------------------------------------------------------------------------


@WARM
def test_a_checkout_waits_for_its_own_deadline(stage, warm):
    s = warmed(stage, warm)
    dials = s.works.dials
    s.pool.pause()
    caller = Caller(s.pool, timeout=5)
    s.clock.until_waiting(1)
    s.clock.advance(4.9)
    assert caller.is_waiting
    stats = balanced(s.pool)
    assert (stats.waiting, stats.in_use, stats.opening) == (1, 0, 0)
    s.clock.advance(0.1)
    caller.failure(CheckoutTimeoutError)
    assert s.works.dials == dials, "nobody dials for a pool that lends nothing"
    assert balanced(s.pool).timeouts == 1


@WARM
def test_the_default_deadline_counts_too(stage, warm):
    s = warmed(stage, warm, checkout_timeout=3)
    s.pool.pause()
    caller = Caller(s.pool, timeout=None)
    s.clock.until_waiting(1)
    s.clock.advance(3)
    caller.failure(CheckoutTimeoutError)


def test_who_waited_in_vain_is_told_that_the_pool_is_paused():
    with ConnectionPool.of(object) as pool:
        pool.pause()
        with pytest.raises(CheckoutTimeoutError, match=r"within 0.01 s \(it is paused; 0 of 10 open"):
            pool.try_connect(timeout=0.01)


@WARM
def test_a_pinned_checkout_waits_as_well(stage, warm):
    s = warmed(stage, warm)
    s.pool.pause()
    caller = Caller(s.pool, A, timeout=5)
    s.clock.until_waiting(1)
    s.clock.advance(5)
    caller.failure(CheckoutTimeoutError)


@WARM
@pytest.mark.parametrize("fail", [False, True])
def test_who_may_not_wait_is_told_that_the_pool_is_paused(stage, warm, fail):
    s = warmed(stage, warm)
    s.pool.pause(fail=fail)
    dials = s.works.dials
    with pytest.raises(PoolPausedError) as caught:
        s.pool.try_connect(timeout=0)
    assert isinstance(caught.value, ConnPoolError)
    assert caught.value.pool == "orders"
    assert "orders" in str(caught.value)
    assert s.works.dials == dials
    assert balanced(s.pool).in_use == 0
    s.pool.resume()
    assert_whole(s.pool, s.works)


def test_a_paused_pool_does_not_lend_what_was_added_to_it_either():
    with ConnectionPool(None) as pool:
        pool.add_connection(object())
        pool.pause()
        with pytest.raises(PoolPausedError):
            pool.try_connect(timeout=0)
        pool.resume()
        pool.try_connect(timeout=0).release()


def test_a_full_pool_that_is_paused_is_paused_not_exhausted(stage):
    s = stage(max_size=1)
    with s.pool.try_connect():
        s.pool.pause()
        with pytest.raises(PoolPausedError):
            s.pool.try_connect(timeout=0)


def test_a_queue_of_limited_length_is_limited_while_paused(stage):
    s = stage(max_waiters=1)
    s.pool.pause()
    (caller,) = queue(s, 1)
    with pytest.raises(PoolExhaustedError):
        s.pool.try_connect(timeout=5)
    s.pool.resume()
    caller.loan().release()


def test_who_waits_for_the_end_of_a_pause_can_be_cancelled():
    pool = ConnectionPool(A, connector=Works(prompt=True), clock=TellingClock(), reap_interval=None)
    pool.pause()
    cancel = threading.Event()
    caller = Caller(pool, Request(cancel=cancel))
    until(lambda: pool.stats().waiting == 1)
    cancel.set()
    caller.failure(CancelledError)
    assert pool.stats().waiting == 0
    pool.close()


@pytest.mark.parametrize("n", [1, 3])
def test_who_waits_for_the_end_of_a_pause_uses_no_processor_time(n):
    pool = ConnectionPool(A, connector=Works(prompt=True), reap_interval=None)
    pool.pause()

    def wait() -> float:
        with pytest.raises(CheckoutTimeoutError):
            pool.try_connect(timeout=0.5)
        return time.thread_time()

    assert max(together(*[wait] * n)) < 0.1
    pool.close()


def test_run_waits_like_everybody(stage):
    s = stage(checkout_timeout=5)
    s.pool.pause()
    ran = []
    thread = threading.Thread(target=lambda: ran.append(s.pool.run(lambda conn: conn.info.id)))
    thread.start()
    s.clock.until_waiting(1)
    assert ran == []
    s.pool.resume()
    thread.join(10)
    assert ran == [1]


# -- failing --------------------------------------------------------------------------------------


@WARM
def test_with_fail_new_checkouts_fail_at_once(stage, warm):
    s = warmed(stage, warm)
    s.pool.pause(fail=True)
    dials = s.works.dials
    for timeout in (5, 0, None):
        with pytest.raises(PoolPausedError):
            s.pool.try_connect(timeout=timeout)
    stats = balanced(s.pool)
    assert (stats.waiting, stats.timeouts, s.works.dials) == (0, 0, dials)


def test_with_fail_those_who_wait_fail_at_once(house):
    h = house()
    held = h.pool.try_connect()
    waiters = [h.waiter() for _ in range(3)]
    h.pool.pause(fail=True)
    began = h.clock.now()
    for waiter in waiters:
        waiter.failure(PoolPausedError)
        assert waiter.done_at - began < AT_ONCE
    held.release()
    h.pool.resume()
    assert_whole(h.pool, h.works)


def test_a_pause_is_heard_of_before_those_fail_who_wait(house):
    h = house()
    told = []

    def hear(event):
        if isinstance(event, PoolPaused):
            time.sleep(0.2)  # whoever is woken before has time to fail
        told.append(type(event))

    held = h.pool.try_connect()
    h.pool.listen(hear, PoolPaused, CheckoutFailed)
    waiter = h.waiter()
    h.pool.pause(fail=True)
    waiter.failure(PoolPausedError)
    until(lambda: len(told) == 2, "both")
    assert told == [PoolPaused, CheckoutFailed]
    held.release()


def test_an_interrupt_in_a_handler_of_a_pause_leaves_nobody_waiting(house):
    h = house()

    def strike(event):
        raise KeyboardInterrupt

    held = h.pool.try_connect()
    waiter = h.waiter()
    h.pool.listen(strike, PoolPaused)
    with pytest.raises(KeyboardInterrupt):
        h.pool.pause(fail=True)
    waiter.failure(PoolPausedError)
    held.release()


def test_a_pause_that_ends_in_a_handler_of_it_turns_nobody_away(house):
    h = house()
    held = h.pool.try_connect()
    waiter = h.waiter()
    h.pool.listen(lambda event: h.pool.resume(), PoolPaused)
    h.pool.pause(fail=True)
    held.release()
    waiter.loan().release()
    assert_whole(h.pool, h.works)


def test_a_pause_that_lets_wait_can_become_one_that_fails(stage):
    s = stage()
    s.pool.pause()
    callers = queue(s, 2)
    s.pool.pause(fail=True)
    for caller in callers:
        caller.failure(PoolPausedError)
    with pytest.raises(PoolPausedError):
        s.pool.try_connect(timeout=5)


def test_a_pause_that_fails_can_become_one_that_lets_wait(stage):
    s = stage()
    s.pool.pause(fail=True)
    s.pool.pause()
    (caller,) = queue(s, 1)
    s.pool.resume()
    caller.loan().release()


def test_a_pause_that_failed_leaves_no_trace_in_the_next(stage):
    s = stage()
    s.pool.pause(fail=True)
    s.pool.resume()
    s.pool.pause()
    (caller,) = queue(s, 1)
    s.pool.resume()
    caller.loan().release()


@pytest.mark.parametrize("fail", [False, True])
def test_no_endpoint_is_blamed_for_a_pause(stage, fail):
    s = stage("a:1 || b:1")
    s.pool.pause(fail=fail)
    with pytest.raises(PoolPausedError):
        s.pool.try_connect(timeout=0)
    caller = Caller(s.pool, timeout=1)
    if not fail:
        s.clock.until_waiting(1)
        s.clock.advance(1)
    caller.failure(ConnPoolError)
    assert [(info.failures, info.retry_at) for info in s.pool.endpoints()] == [(0, None)] * 2
    assert s.ears.of("EndpointDown") == []


# -- going on -------------------------------------------------------------------------------------


def test_who_waited_is_served_in_the_order_of_arrival_when_the_pool_goes_on(stage):
    s = stage(max_size=1)
    s.pool.try_connect().release()
    s.pool.pause()
    callers = queue(s, 4)
    s.pool.resume()
    order = []
    for _ in callers:
        until(lambda: any(c.connection for c in callers if c not in order))
        (first,) = [caller for caller in callers if caller.connection and caller not in order]
        order.append(first)
        first.loan().release()
    assert order == callers
    assert s.works.dials == 1


@WARM
def test_the_end_of_a_pause_serves_the_queue_at_once(house, warm):
    h = house(max_size=3)
    if warm:
        h.pool.try_connect().release()
    h.pool.pause()
    waiters = [h.waiter() for _ in range(3)]
    began = h.clock.now()
    h.pool.resume()
    loans = [waiter.loan() for waiter in waiters]
    assert max(waiter.done_at for waiter in waiters) - began < AT_ONCE
    for loan in loans:
        loan.release()
    assert h.works.peak <= 3


def test_who_left_during_the_pause_takes_nothing_at_its_end(stage):
    s = stage(max_size=1)
    s.pool.try_connect().release()
    s.pool.pause()
    leaver = Caller(s.pool, timeout=1)
    s.clock.until_waiting(1)
    stayer = Caller(s.pool, timeout=20)
    s.clock.until_waiting(2)
    s.clock.advance(1)
    leaver.failure(CheckoutTimeoutError)
    s.pool.resume()
    stayer.loan().release()
    assert_whole(s.pool, s.works)


def test_the_time_of_a_pause_counts_as_waiting(stage):
    s = stage()
    s.pool.pause()
    (caller,) = queue(s, 1)
    s.clock.advance(8)
    s.pool.resume()
    caller.loan().release()
    assert s.pool.stats().wait.max == 8.0
    assert s.ears.only("CheckedOut").seconds == 8.0


# -- born paused ----------------------------------------------------------------------------------


def test_a_pool_may_be_born_paused():
    works, clock = Works(prompt=True), FakeClock()
    pool = ConnectionPool(A, connector=works, clock=clock, paused=True, min_idle=2, reap_interval=None)
    assert pool.stats().state is PoolState.PAUSED
    pool.sweep()
    with pytest.raises(PoolPausedError):
        pool.try_connect(timeout=0)
    assert works.dials == 0
    pool.resume()
    assert pool.stats().state is PoolState.OPEN
    pool.try_connect().release()
    pool.close()


def test_a_pool_born_paused_lets_wait():
    works, clock = Works(prompt=True), FakeClock()
    pool = ConnectionPool(A, connector=works, clock=clock, paused=True, reap_interval=None)
    caller = Caller(pool, timeout=5)
    clock.until_waiting(1)
    pool.resume()
    caller.loan().release()
    pool.close()


def test_who_may_not_wait_is_told_when_its_dial_ends_in_a_paused_pool(stage):
    s = stage(max_size=1)
    with door() as dial:
        s.works.opening = dial
        caller = Caller(s.pool, timeout=0)
        dial.until_entered()
        s.pool.pause()
        assert caller.is_waiting
        dial.let_go()
        caller.failure(PoolPausedError)
    until(lambda: s.pool.stats().idle == 1)


@contextlib.contextmanager
def about_to_look():
    """A pool with an idle connection, and what is done once a checkout has just taken that for a look."""

    class Treacherous(FakeClock):
        def now(self) -> float:
            if ends and not pool._lender.books.n_idle():
                ends.pop()()
            return super().now()

    ends = []
    settings = {"connector": Works(), "look_after_idle": 0, "clock": Treacherous()}
    with ConnectionPool("a:1", **settings) as pool:
        pool.try_connect().release()
        yield pool, ends


@pytest.mark.parametrize("end", ["pause", "close"])
def test_a_pool_that_stops_lending_just_then_keeps_what_a_checkout_was_about_to_look_at(end):
    with about_to_look() as (pool, ends):
        ends.append(pool.close if end == "close" else lambda: pool.pause(fail=True))
        with pytest.raises((PoolPausedError, PoolClosedError)) as kept:
            pool.try_connect()
        assert kept.tb is not None
        until(lambda: pool.stats().closing == 0)
        stats = pool.stats()
        assert (stats.in_use, stats.lost, stats.idle) == (0, 0, end == "pause")


def test_what_a_checkout_was_about_to_look_at_is_lent_once_after_a_pause_that_begins_just_then():
    with about_to_look() as (pool, ends):
        ends.append(pool.pause)
        caller = Caller(pool)
        until(lambda: pool.stats().waiting == 1)
        assert (pool.stats().idle, pool.stats().in_use) == (1, 0)
        pool.resume()
        with caller.loan() as first, pool.try_connect() as second:
            assert first.raw is not second.raw
            assert (first.uses, second.uses) == (1, 0)


def test_of_can_be_born_paused_too():
    with ConnectionPool.of(object, paused=True) as pool:
        with pytest.raises(PoolPausedError):
            pool.try_connect(timeout=0)
        pool.resume()
        pool.try_connect().release()


def test_a_pool_born_paused_is_no_setting_that_sticks():
    with ConnectionPool.of(object, paused=True, max_size=3) as pool:
        pool.resume()
        pool.configure(max_size=4)
        assert pool.stats().state is PoolState.OPEN
        assert "paused" not in pool.config.changed()


def test_the_server_sees_nothing_of_a_pool_born_paused_until_it_goes_on():
    with ScriptedServer() as server:
        with ConnectionPool(server.endpoint, paused=True, min_idle=2, reap_interval=0.05) as pool:
            caller = Caller(pool, timeout=0.3)
            caller.failure(CheckoutTimeoutError)
            assert server.accepts == 0
            waiter = Caller(pool)
            until(lambda: pool.stats().waiting == 1)
            pool.resume()
            conn = waiter.loan()
            conn.sendall(b"x", timeout=5)
            assert conn.recv_exactly(1, timeout=5) == b"x"
            conn.release()
        server.until_open(0)


def test_a_closed_pool_can_neither_be_paused_nor_resumed(stage):
    s = stage()
    s.pool.close()
    for act in (s.pool.pause, s.pool.resume):
        with pytest.raises(PoolClosedError):
            act()
    assert s.ears.of("PoolPaused", "PoolResumed") == []
