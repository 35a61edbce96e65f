"""What a handler raises, or how long it takes, harms nobody but its own caller."""

from __future__ import annotations

import contextlib
import gc
import logging
import threading
import warnings

import pytest

import connpool
from connpool import ConnPoolError
from tests.helpers.together import together
from tests.stress.stage import Ears, check_lives, make_stage  # noqa: F401 - a fixture
from tests.stress.works import A, Caller, DoomError, Works, assert_ended, assert_whole, balanced, door

# -- handlers that fail ---------------------------------------------------------------------------


def test_an_exception_is_logged_as_an_error_and_everything_goes_on(stage, caplog):
    s = stage()

    def fail(event):
        raise ZeroDivisionError("a bug of the handler's")

    s.pool.listen(fail, connpool.CheckedOut)
    after = Ears()
    s.pool.listen(after)
    with caplog.at_level(logging.DEBUG, "connpool"):
        s.pool.try_connect().release()
    assert after.heard == s.ears.heard[1:]
    (record,) = [record for record in caplog.records if record.name == "connpool.events"]
    assert record.levelno == logging.ERROR
    assert record.exc_info is not None
    assert isinstance(record.exc_info[1], ZeroDivisionError)
    assert "orders" in record.getMessage()
    assert_whole(s.pool, s.works)


@pytest.mark.parametrize("in_caller", [False, True])
def test_a_listener_that_always_fails_costs_nothing_but_log_lines(stage, in_caller, caplog):
    s = stage("a:1 || b:1", max_size=2, dial_in_caller=in_caller, blacklist_initial=0, blacklist_max=0)

    def fail(event):
        raise RuntimeError(event)

    s.pool.listen(fail)
    s.ears.forget()
    s.down.add(A)
    for _ in range(3):
        s.pool.try_connect().terminate()
    s.pool.try_connect().release()
    s.pool.pause()
    s.pool.resume()
    s.pool.clear()
    s.pool.sweep()
    assert_whole(s.pool, s.works)
    s.pool.close()
    s.ears.until("PoolClosed")
    s.works.until(lambda: s.works.n_open == 0)
    check_lives(s.ears.heard)
    assert len([record for record in caplog.records if record.name == "connpool.events"]) >= 20


@pytest.mark.parametrize("n_failing", [1, 2])
@pytest.mark.parametrize("name", ["CheckoutStarted", "CheckedOut", "CheckedIn"])
def test_an_interrupt_while_the_failure_of_a_handler_is_logged_loses_nothing(stage, name, n_failing):
    s = stage(max_size=1, listeners=[])
    borrow(s)

    def fail(event):
        raise ValueError("no")

    def interrupt(record):
        raise KeyboardInterrupt

    for _ in range(n_failing):
        s.pool.listen(fail, getattr(connpool, name))
    logger = logging.getLogger("connpool.events")
    logger.addFilter(interrupt)
    try:
        with pytest.raises(KeyboardInterrupt):
            borrow(s)
    finally:
        logger.removeFilter(interrupt)
    gc.collect()
    stats = balanced(s.pool)
    assert (stats.idle, stats.opened, stats.lost) == (1, 1, 0)


class Doom:
    """Raises what is no Exception, once, where it is armed for."""

    def __init__(self, name):
        self._kind = getattr(connpool, name)
        self.is_armed = False
        self.struck = 0

    def __call__(self, event):
        if self.is_armed and isinstance(event, self._kind):
            self.is_armed = False
            self.struck += 1
            raise KeyboardInterrupt


def borrow(s):
    s.pool.try_connect(timeout=20).release()


def end_a_loan(s):
    s.pool.try_connect(timeout=20).terminate()


def forget_a_loan(s):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        s.pool.try_connect()
        gc.collect()
    s.pool.sweep()


def hold_long(s):
    with s.pool.try_connect():
        s.clock.advance(6)
        s.pool.sweep()


def ask_too_much(s):
    held = [s.pool.try_connect() for _ in range(2)]
    try:
        s.pool.try_connect(timeout=0)
    finally:
        for conn in held:
            conn.release()


def pause(s):
    s.pool.pause()


def pause_and_resume(s):
    s.pool.pause()
    s.pool.resume()


def clear(s):
    s.pool.clear()


def take_out(s):
    s.pool.blacklist(A)


def take_out_and_in(s):
    s.pool.blacklist(A)
    s.pool.unblacklist(A)


TELLING = {
    "CheckoutStarted": borrow,
    "ConnectionOpening": borrow,
    "ConnectionOpened": borrow,
    "CheckedOut": borrow,
    "CheckedIn": borrow,
    "ConnectionClosed": end_a_loan,
    "CheckoutFailed": ask_too_much,
    "PoolPaused": pause,
    "PoolResumed": pause_and_resume,
    "PoolCleared": clear,
    "EndpointDown": take_out,
    "EndpointUp": take_out_and_in,
    "GroupSwitched": take_out,
    "LoanLost": forget_a_loan,
    "LoanHeldLong": hold_long,
}


@pytest.mark.parametrize("where", ["fresh", "reused"])
@pytest.mark.parametrize("name", TELLING)
def test_an_interrupt_in_a_handler_reaches_the_caller_and_loses_nothing(stage, name, where):
    s = stage("a:1 || b:1", max_size=2, warn_after=5, dial_in_caller=True)
    doom = Doom(name)
    s.pool.listen(doom)
    if where == "reused" and name not in ("ConnectionOpening", "ConnectionOpened"):
        borrow(s)
    doom.is_armed = True
    with pytest.raises(KeyboardInterrupt):
        TELLING[name](s)
    assert doom.struck == 1
    s.pool.resume()
    s.pool.unblacklist(A)
    gc.collect()
    s.pool.sweep()
    assert balanced(s.pool).in_use == 0
    assert_whole(s.pool, s.works)
    assert_ended(s.pool, s.works)
    check_lives(s.ears.heard)


def test_an_interrupt_in_a_handler_of_a_failed_dial_keeps_no_place_though_it_is_itself_kept(stage):
    s = stage(max_size=1, dial_in_caller=True, blacklist_initial=0, blacklist_max=0)
    doom = Doom("ConnectionClosed")
    s.pool.listen(doom)
    s.down.add(A)
    doom.is_armed = True
    with pytest.raises(KeyboardInterrupt) as kept:
        borrow(s)
    assert (s.pool.stats().size, s.info().failures) == (0, 1)
    s.down.clear()
    borrow(s)
    assert s.ears.only("CheckoutFailed").error is kept.value
    assert_whole(s.pool, s.works)
    assert_ended(s.pool, s.works)


def test_an_interrupt_in_a_handler_of_a_clear_stops_nothing_of_it(stage):
    s = stage(max_size=2)
    doom = Doom("PoolCleared")
    s.pool.listen(doom)
    with s.pool.try_connect():
        borrow(s)
        doom.is_armed = True
        with pytest.raises(KeyboardInterrupt) as kept:
            s.pool.clear()
        assert (s.pool.stats().size, s.works.n_open) == (1, 1)
    assert kept.value.__traceback__ is not None
    assert (s.pool.stats().size, s.works.n_open) == (0, 0)
    assert_whole(s.pool, s.works)


@pytest.mark.parametrize("name", ["ConnectionOpening", "ConnectionOpened"])
def test_an_interrupt_in_a_handler_of_an_adoption_has_it_closed_and_is_no_lost_loan(stage, name):
    s = stage(max_size=1)
    doom = Doom(name)
    s.pool.listen(doom)
    doom.is_armed = True
    with pytest.raises(KeyboardInterrupt) as kept:
        s.pool.add_connection(s.works.open(A, None, None))
    stats = s.pool.stats()
    assert kept.value.__traceback__ is not None
    assert (stats.size, stats.lost, s.works.n_open) == (0, 0, 0)
    assert s.ears.only("ConnectionClosed").reason is connpool.CloseReason.BROKEN
    assert_whole(s.pool, s.works)


def test_an_interrupt_in_a_handler_of_the_end_of_a_pause_leaves_nobody_asleep(stage):
    s = stage(max_size=1)
    borrow(s)
    doom = Doom("PoolResumed")
    s.pool.listen(doom)
    s.pool.pause()
    caller = Caller(s.pool)
    s.clock.until_waiting(1)
    doom.is_armed = True
    with pytest.raises(KeyboardInterrupt):
        s.pool.resume()
    caller.loan().release()


def test_an_interrupt_in_a_handler_of_the_end_leaves_the_pool_closed(stage):
    s = stage()
    borrow(s)
    doom = Doom("PoolClosed")
    s.pool.listen(doom)
    doom.is_armed = True
    with pytest.raises(KeyboardInterrupt):
        s.pool.close()
    assert s.pool.stats().state is connpool.PoolState.CLOSED
    assert_ended(s.pool, s.works)


@pytest.mark.parametrize(
    "name", ["ConnectionOpening", "ConnectionOpened", "ConnectionClosed", "EndpointDown"]
)
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_doom_in_a_handler_on_a_thread_of_the_pool_loses_no_place(stage, name):
    s = stage("a:1", Works(prompt=False), max_size=2, blacklist_initial=0, blacklist_max=0)
    armed = [True]

    def doom(event):
        if armed:
            armed.clear()
            raise DoomError

    s.pool.listen(doom, getattr(connpool, name))
    if name == "EndpointDown":

        def refuse(endpoint):
            if armed:
                raise ConnectionRefusedError(endpoint)

        s.works.opening = refuse
    for _ in range(2):
        with contextlib.suppress(ConnPoolError, DoomError):
            s.pool.try_connect(timeout=20).terminate()
    assert not armed
    assert_whole(s.pool, s.works)
    assert_ended(s.pool, s.works)


# -- handlers that take their time ----------------------------------------------------------------


@pytest.mark.parametrize("name", ["CheckoutStarted", "CheckedOut", "CheckedIn", "ConnectionClosed"])
def test_a_handler_that_hangs_holds_up_its_own_thread_alone(stage, name):
    s = stage(max_size=2)
    with door() as hearing:
        s.pool.listen(
            lambda event: hearing(event) if threading.current_thread().name == "slow" else None,
            getattr(connpool, name),
        )
        slow = threading.Thread(target=lambda: s.pool.try_connect(timeout=20).terminate(), name="slow")
        slow.start()
        hearing.until_entered()

        def others():
            for _ in range(20):
                s.pool.try_connect(timeout=20).release()
            s.pool.clear()
            s.pool.pause()
            s.pool.resume()
            s.pool.sweep()
            s.pool.connections()
            return balanced(s.pool)

        together(others, limit=10)
        assert slow.is_alive()
    slow.join()
    check_lives(s.ears.heard)


def test_a_handler_that_hangs_in_one_dial_does_not_hold_up_another_endpoint(stage):
    s = stage("a:1, b:1", max_size=2)
    with door() as hearing:
        s.pool.listen(
            lambda event: hearing(event) if event.endpoint == A else None, connpool.ConnectionOpened
        )
        caller = Caller(s.pool, A, timeout=20)
        hearing.until_entered()
        together(lambda: s.pool.try_connect("b:1", timeout=20).release(), limit=10)
        assert caller.is_waiting
    caller.loan().release()


def test_a_deadline_holds_while_the_handler_of_a_dial_hangs(stage):
    s = stage(max_size=1)
    with door() as hearing:
        s.pool.listen(hearing, connpool.ConnectionOpened)
        caller = Caller(s.pool, timeout=5)
        hearing.until_entered()
        s.clock.until_waiting(1)
        s.clock.advance(5)
        caller.failure(connpool.CheckoutTimeoutError)
    s.ears.until("ConnectionOpened")
    assert_whole(s.pool, s.works)
