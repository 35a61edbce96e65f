"""Each checkout is told from its start to its only end, on the thread that makes it."""

from __future__ import annotations

import threading

import pytest

from connpool import (
    CancelledError,
    CheckoutTimeoutError,
    ConnectError,
    ConnectionPool,
    NoEndpointError,
    PoolClosedError,
    PoolExhaustedError,
    PoolPausedError,
    Request,
)
from connpool.testing import ScriptedServer
from tests.stress.stage import Ears, Stage, check_callers, make_stage  # noqa: F401 - a fixture
from tests.stress.works import A, Caller, TellingClock, door

ENDS = ("CheckoutStarted", "CheckedOut", "CheckoutFailed")


def failed(s, kind, act, seconds=0.0):
    """Do *act*, which must raise a *kind*; return the reason that was told."""
    s.ears.forget()
    with pytest.raises(kind) as caught:
        act()
    assert s.ears.kinds(*ENDS) == ["CheckoutStarted", "CheckoutFailed"]
    event = s.ears.only("CheckoutFailed")
    assert event.error is caught.value
    assert event.seconds == seconds
    return event.reason.name


def test_a_full_pool_that_may_not_be_waited_for_is_exhausted(stage):
    s = stage(max_size=1)
    held = s.pool.try_connect()
    assert failed(s, PoolExhaustedError, lambda: s.pool.try_connect(timeout=0)) == "EXHAUSTED"
    held.release()


def test_a_queue_that_is_full_is_exhausted(stage):
    s = stage(max_size=1, max_waiters=0)
    held = s.pool.try_connect()
    assert failed(s, PoolExhaustedError, lambda: s.pool.try_connect(timeout=5)) == "EXHAUSTED"
    held.release()


def test_a_wait_in_vain_is_a_timeout_and_says_how_long_it_was(stage):
    s = stage(max_size=1)
    held = s.pool.try_connect()
    s.ears.forget()
    caller = Caller(s.pool, timeout=5)
    s.clock.until_waiting(1)
    assert s.ears.kinds() == ["CheckoutStarted"], "the start is told before the wait"
    s.clock.advance(5)
    error = caller.failure(CheckoutTimeoutError)
    event = s.ears.only("CheckoutFailed")
    assert (event.reason.name, event.seconds, event.error) == ("TIMEOUT", 5.0, error)
    held.release()


def test_a_checkout_that_is_cancelled_before_it_begins_is_told_as_that(stage):
    s = stage()
    cancel = threading.Event()
    cancel.set()
    assert failed(s, CancelledError, lambda: s.pool.try_connect(Request(cancel=cancel))) == "CANCELLED"


def test_a_checkout_that_is_cancelled_while_it_waits_is_told_as_that():
    with Stage(clock=TellingClock(), max_size=1) as s:
        held = s.pool.try_connect()
        cancel = threading.Event()
        caller = Caller(s.pool, Request(cancel=cancel))
        s.ears.until("CheckoutStarted", 2)
        cancel.set()
        error = caller.failure(CancelledError)
        event = s.ears.only("CheckoutFailed")
        assert (event.reason.name, event.error) == ("CANCELLED", error)
        held.release()


@pytest.mark.parametrize("in_caller", [False, True])
def test_an_endpoint_that_cannot_be_dialled_is_a_failure_to_connect(stage, in_caller):
    s = stage(dial_in_caller=in_caller)
    s.down.add(A)
    s.dial_time = 0.5
    assert failed(s, NoEndpointError, s.pool.try_connect, 0.5) == "CONNECT"
    assert failed(s, NoEndpointError, s.pool.try_connect) == "CONNECT", "blacklisted: nothing was dialled"


def test_a_pinned_endpoint_that_cannot_be_dialled_is_a_failure_to_connect(stage):
    s = stage()
    s.down.add(A)
    assert failed(s, ConnectError, lambda: s.pool.try_connect(A)) == "CONNECT"


def test_a_pool_without_a_route_has_nothing_to_connect_to(stage):
    s = stage(None)
    assert failed(s, NoEndpointError, s.pool.try_connect) == "CONNECT"


@pytest.mark.parametrize(("fail", "timeout"), [(True, 5), (True, 0), (False, 0)])
def test_a_paused_pool_that_does_not_let_wait_is_told_as_that(stage, fail, timeout):
    s = stage()
    s.pool.pause(fail=fail)
    assert failed(s, PoolPausedError, lambda: s.pool.try_connect(timeout=timeout)) == "PAUSED"


def test_a_wait_for_a_paused_pool_is_a_timeout(stage):
    s = stage()
    s.pool.pause()
    caller = Caller(s.pool, timeout=5)
    s.clock.until_waiting(1)
    s.clock.advance(5)
    caller.failure(CheckoutTimeoutError)
    assert s.ears.only("CheckoutFailed").reason.name == "TIMEOUT"


@pytest.mark.parametrize("end", ["close", "shutdown"])
def test_a_closed_pool_is_told_as_that_to_who_comes_and_to_who_waits(stage, end):
    s = stage(max_size=1)
    held = s.pool.try_connect()
    caller = Caller(s.pool, timeout=20)
    s.clock.until_waiting(1)
    getattr(s.pool, end)()
    caller.failure(PoolClosedError)
    assert [event.reason.name for event in s.ears.of("CheckoutFailed")] == ["CLOSED"]
    assert failed(s, PoolClosedError, s.pool.try_connect) == "CLOSED"
    held.release()


def test_a_wait_that_is_served_tells_how_long_it_was(stage):
    s = stage(max_size=1)
    held = s.pool.try_connect()
    caller = Caller(s.pool, timeout=20)
    s.clock.until_waiting(1)
    s.clock.advance(7)
    held.release()
    caller.loan().release()
    assert [event.seconds for event in s.ears.of("CheckedOut")] == [0.0, 7.0]
    check_callers(s.ears)


@pytest.mark.parametrize("in_caller", [False, True])
def test_each_checkout_is_told_on_its_own_thread(stage, in_caller):
    s = stage(max_size=2, dial_in_caller=in_caller)
    held = [s.pool.try_connect() for _ in range(2)]
    callers = []
    for i in range(4):
        callers.append(Caller(s.pool, timeout=20))
        s.clock.until_waiting(i + 1)
    for conn in held:
        conn.release()
    for caller in callers[:2]:
        caller.loan()
    s.clock.advance(20)
    for caller in callers[2:]:
        caller.failure(CheckoutTimeoutError)
    for caller in callers[:2]:
        caller.loan().release()
    check_callers(s.ears)
    threads = {
        thread
        for event, thread in zip(s.ears.heard, s.ears.threads, strict=True)
        if type(event).__name__ in ENDS
    }
    assert len(threads) == 5
    assert len(s.ears.of("CheckedOut")) == s.pool.stats().checkouts == 4
    assert len(s.ears.of("CheckoutFailed")) == s.pool.stats().timeouts == 2


def test_a_dial_whose_caller_left_is_told_to_its_end_though_nobody_has_it(stage):
    s = stage(max_size=1)
    with door() as dial:
        s.works.opening = dial
        caller = Caller(s.pool, timeout=5)
        dial.until_entered()
        s.clock.until_waiting(1)
        s.clock.advance(5)
        caller.failure(CheckoutTimeoutError)
        assert s.ears.kinds()[1:] == ["CheckoutStarted", "ConnectionOpening", "CheckoutFailed"]
    s.ears.until("ConnectionOpened")
    assert s.ears.of("CheckedOut") == []


def test_run_is_a_checkout_like_any_other(stage):
    s = stage()
    assert s.pool.run(lambda conn: conn.info.id) == 1
    assert s.ears.kinds()[1:] == [
        "CheckoutStarted",
        "ConnectionOpening",
        "ConnectionOpened",
        "CheckedOut",
        "CheckedIn",
    ]


def test_a_run_that_is_repeated_is_two_checkouts():
    ears = Ears()
    with ScriptedServer() as server, ConnectionPool(server.endpoint, listeners=[ears]) as pool:
        pool.try_connect().release()
        server.until_accepts(1)

        def work(conn):
            if conn.uses == 1:
                server.kill()
            conn.sendall(b"x", timeout=5)
            return conn.recv_exactly(1, timeout=5)

        ears.forget()
        assert pool.run(work, idempotent=True) == b"x"
        assert ears.kinds(*ENDS) == ["CheckoutStarted", "CheckedOut"] * 2
        first, second = ears.of("CheckedOut")
        assert first.id != second.id


def test_taking_and_adding_are_no_checkouts(stage):
    s = stage()
    part = s.works.open(A, None, None)
    s.pool.add_connection(part)
    assert s.pool.take() is part
    s.works.disown(part)
    assert s.pool.take() is None
    assert s.ears.kinds(*ENDS) == []
