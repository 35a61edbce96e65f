"""What each event says, and that it says it once and for all."""

from __future__ import annotations

import gc
import threading
import warnings

import attrs
import pytest

import connpool
from connpool import ConnectionPool, ConnPoolError, PoolConfig, Request, UnknownEndpointError
from connpool.testing import FakeClock
from tests.stress.stage import FIELDS, Ears, make_stage  # noqa: F401 - make_stage is a fixture
from tests.stress.works import A, B, Works

NAMES = pytest.mark.parametrize("name", FIELDS)


@NAMES
def test_every_event_is_a_public_frozen_value_with_the_fields_promised(name):
    assert name in connpool.__all__
    event_type = getattr(connpool, name)
    assert {field.name for field in attrs.fields(event_type)} >= {"pool", "at", *FIELDS[name]}
    values = {"pool": "orders", "at": 1.5, **dict.fromkeys(FIELDS[name], 7)}
    event = event_type(**values)
    assert {field: getattr(event, field) for field in values} == values
    for field in values:
        with pytest.raises(attrs.exceptions.FrozenInstanceError):
            setattr(event, field, None)


@NAMES
def test_events_are_equal_exactly_if_all_they_say_is(name):
    event_type = getattr(connpool, name)
    values = {"pool": "orders", "at": 1.5, **dict.fromkeys(FIELDS[name], 7)}
    assert event_type(**values) == event_type(**values)
    for field in values:
        assert event_type(**values) != event_type(**{**values, field: 8})


def test_the_reasons_are_those_promised():
    assert {reason.name for reason in connpool.CloseReason} == set(
        "STALE IDLE EXPIRED USED_UP BROKEN TERMINATED DIRTY EVICTED SURPLUS LOST POOL_CLOSED".split()
    )
    assert {reason.name for reason in connpool.FailReason} == set(
        "TIMEOUT EXHAUSTED CANCELLED CONNECT PAUSED CLOSED".split()
    )
    assert "FailReason" in connpool.__all__


def test_every_event_names_its_pool_and_the_instant_of_its_clock(stage):
    s = stage()
    s.clock.advance(5)
    before = s.clock.now()
    s.pool.try_connect().release()
    s.pool.clear()
    assert {event.at for event in s.ears.heard[1:]} == {before}
    s.clock.advance(2)
    s.ears.forget()
    s.pool.close()
    assert {event.at for event in s.ears.heard} == {before + 2}
    assert {event.pool for event in s.ears.heard} == {"orders"}


def test_an_event_without_a_name_given_bears_the_name_the_pool_gave_itself():
    ears = Ears()
    with ConnectionPool("a:1", connector=Works(prompt=True), listeners=[ears]) as pool:
        assert ears.only("PoolOpened").pool == pool.stats().name


def test_the_opening_of_a_pool_tells_the_settings_that_differ_from_the_defaults():
    ears, clock = Ears(), FakeClock()
    config = PoolConfig(max_size=3, idle_timeout=None)
    with ConnectionPool(
        "a:1", connector=Works(), config=config, min_idle=0, max_uses=9, listeners=(ears,), clock=clock
    ):
        opened = ears.heard[0]
        assert type(opened) is connpool.PoolOpened
        assert dict(opened.options) == {"max_size": 3, "idle_timeout": None, "max_uses": 9}
        assert opened.at == clock.now()


def test_a_pool_of_defaults_opens_with_no_options():
    ears = Ears()
    with ConnectionPool.of(object, listeners=[ears]):
        assert dict(ears.only("PoolOpened").options) == {}


def test_a_listener_that_comes_later_never_hears_of_the_opening():
    ears = Ears()
    with ConnectionPool("a:1", connector=Works()) as pool:
        pool.listen(ears)
        assert ears.heard == []


@pytest.mark.parametrize("in_caller", [False, True])
def test_durations_are_measured_by_the_clock_of_the_pool(stage, in_caller):
    s = stage(dial_in_caller=in_caller)
    s.dial_time = 0.25
    conn = s.pool.try_connect()
    id = conn.info.id
    s.clock.advance(3)
    conn.release()
    assert s.story()[1:] == [
        ("CheckoutStarted",),
        ("ConnectionOpening", id, "a:1"),
        ("ConnectionOpened", id, "a:1", 0.25),
        ("CheckedOut", id, "a:1", 0.25),
        ("CheckedIn", id, 3.0),
    ]
    assert [event.at - 1000 for event in s.ears.heard] == [0, 0, 0, 0.25, 0.25, 3.25]


def test_a_reused_connection_has_its_loan_told_and_nothing_else(stage):
    s = stage()
    s.pool.try_connect().release()
    s.ears.forget()
    conn = s.pool.try_connect()
    s.clock.advance(2)
    conn.release()
    id = conn_id(s)
    assert s.story() == [("CheckoutStarted",), ("CheckedOut", id, "a:1", 0.0), ("CheckedIn", id, 2.0)]


def conn_id(s):
    (info,) = s.pool.connections()
    return info.id


@pytest.mark.parametrize("end", ["terminate", "raise"])
def test_the_end_of_a_loan_is_told_however_it_ends(stage, end):
    s = stage()
    conn = s.pool.try_connect()
    s.clock.advance(4)
    if end == "terminate":
        conn.terminate()
    else:
        with pytest.raises(KeyError), conn:
            raise KeyError
    assert s.story()[-2:] == [("CheckedIn", 1, 4.0), ("ConnectionClosed", 1, "a:1", "TERMINATED")]


@pytest.mark.parametrize("interrupt", [False, True])
@pytest.mark.parametrize("endpoint", [None, A])
def test_clearing_tells_what_was_cleared_and_how(stage, endpoint, interrupt):
    s = stage()
    s.pool.clear(endpoint, interrupt=interrupt)
    event = s.ears.only("PoolCleared")
    assert (event.endpoint, event.interrupt) == (endpoint, interrupt)


def test_clearing_an_endpoint_that_is_not_known_tells_nothing(stage):
    s = stage()
    with pytest.raises(UnknownEndpointError):
        s.pool.clear("elsewhere:1")
    s.pool.pause()
    assert s.ears.of("PoolCleared") == []


def test_clearing_an_endpoint_given_as_text_tells_an_endpoint(stage):
    s = stage()
    s.pool.clear("a:1")
    assert s.ears.only("PoolCleared").endpoint == A


def test_clearing_an_endpoint_that_the_pool_does_not_know_is_not_told(stage):
    s = stage()
    with pytest.raises(connpool.UsageError, match="no endpoint b:1"):
        s.pool.clear("b:1")
    s.pool.pause()
    assert s.story("PoolCleared", "PoolPaused") == [("PoolPaused",)]
    s.pool.resume()


def test_pausing_and_resuming_are_told_once_each(stage):
    s = stage()
    for _ in range(2):
        s.pool.pause()
        s.pool.pause()
        s.clock.advance(1)
        s.pool.resume()
        s.pool.resume()
    assert s.story()[1:] == [("PoolPaused",), ("PoolResumed",)] * 2
    assert [event.at - 1000 for event in s.ears.heard[1:]] == [0, 1, 1, 2]


def test_closing_is_told_once(stage):
    s = stage()
    s.pool.shutdown()
    s.pool.reopen()
    assert s.ears.of("PoolClosed") == []
    s.pool.close()
    s.pool.close()
    s.pool.close(timeout=0)
    assert len(s.ears.of("PoolClosed")) == 1


def test_a_shutdown_is_no_pause_and_no_close(stage):
    s = stage()
    s.pool.shutdown()
    s.pool.shutdown()
    s.pool.reopen()
    assert s.story()[1:] == []


def test_a_lost_loan_is_told_with_its_number_and_who_took_it(stage):
    s = stage()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        s.pool.try_connect()
        gc.collect()
    s.pool.sweep()
    lost = s.ears.only("LoanLost")
    assert lost.id == 1
    assert threading.current_thread().name in str(lost.where)
    assert s.story("ConnectionClosed") == [("ConnectionClosed", 1, "a:1", "LOST")]
    assert s.pool.stats().lost == 1
    s.pool.sweep()
    assert len(s.ears.of("LoanLost")) == 1


def test_with_track_origin_a_lost_loan_names_the_line_that_took_it(stage):
    s = stage(track_origin=True)

    def take_it_from_here():
        s.pool.try_connect()

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        take_it_from_here()
        gc.collect()
    s.pool.sweep()
    where = str(s.ears.only("LoanLost").where)
    assert f"{__file__}:{take_it_from_here.__code__.co_firstlineno + 1}" in where or (
        __file__ in where and f"line {take_it_from_here.__code__.co_firstlineno + 1}" in where
    ), where


def test_a_loan_held_long_is_told_once_with_how_long_and_by_whom(stage):
    s = stage(warn_after=5)
    conn = s.pool.try_connect()
    s.clock.advance(4.5)
    s.pool.sweep()
    assert s.ears.of("LoanHeldLong") == []
    s.clock.advance(2)
    s.pool.sweep()
    held = s.ears.only("LoanHeldLong")
    assert (held.id, held.seconds) == (1, 6.5)
    assert threading.current_thread().name in str(held.where)
    s.clock.advance(20)
    s.pool.sweep()
    assert len(s.ears.of("LoanHeldLong")) == 1, "once for each loan"
    conn.release()
    with s.pool.try_connect():
        s.clock.advance(6)
        s.pool.sweep()
    assert [event.id for event in s.ears.of("LoanHeldLong")] == [1, 1], "the next loan has its own"


def test_an_idle_connection_is_not_held_long(stage):
    s = stage(warn_after=5)
    s.pool.try_connect().release()
    s.clock.advance(20)
    s.pool.sweep()
    assert s.ears.of("LoanHeldLong") == []


def test_an_event_keeps_what_it_said_when_things_move_on(stage):
    s = stage()
    options = s.ears.only("PoolOpened").options
    before = dict(options)
    s.pool.configure(max_size=3)
    assert dict(options) == before


def test_a_checkout_that_pins_an_endpoint_tells_that_one(stage):
    s = stage("a:1, b:1")
    for endpoint in (B, A):
        s.pool.try_connect(Request(endpoint)).release()
    assert [event.endpoint for event in s.ears.of("CheckedOut")] == [B, A]


def test_the_error_told_is_the_one_raised(stage):
    s = stage()
    s.down.add(A)
    with pytest.raises(ConnPoolError) as caught:
        s.pool.try_connect()
    assert s.ears.only("CheckoutFailed").error is caught.value
