"""What a call pool tells of itself: statistics, events, words."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator

import attrs
import pytest

from connpool import (
    CallEnded,
    CallPool,
    CallRefused,
    CallStarted,
    ChannelClosed,
    ChannelClosedError,
    ChannelDown,
    ChannelOpened,
    ChannelState,
    CloseReason,
    ConfigError,
    Event,
    MethodNotSupportedError,
    NoResourceError,
    PoolOpened,
    Reply,
)
from tests.helpers.channels import RESOURCE, Caller, Held, Tape, n_waiting, queue_up
from tests.helpers.switchboard import until


@pytest.fixture
def pool(clock) -> Iterator[CallPool]:
    with CallPool("still", clock=clock, reap_interval=None) as made:
        yield made


@pytest.fixture
def tape(clock) -> Tape:
    made = Tape()
    made.doing = lambda method, payload: clock.advance(payload)
    return made


def test_each_method_has_its_count_its_mean_and_its_slowest(pool, tape):
    id = pool.init(tape)
    for seconds in [1.0] * 49 + [10.0]:
        pool.call(RESOURCE, "get", seconds)
    pool.call(RESOURCE, "set", 3.0)
    stats = pool.info(id).stats
    assert (stats["get"].count, stats["get"].mean) == (50, pytest.approx(59 / 50))
    assert stats["get"].p99 == pytest.approx(10.0, rel=0.07)
    assert stats["set"] == attrs.evolve(stats["set"], count=1, mean=3.0)


def test_it_is_told_when_a_channel_was_opened_and_called_last(pool, tape, clock):
    opened, told = clock.now(), []
    pool.listen(lambda event: told.append(pool.info(event.id).last_called_at), ChannelOpened)
    id = pool.init(tape)
    assert told == [None]
    assert (pool.info(id).opened_at, pool.info(id).last_called_at) == (opened, None)
    clock.advance(3)
    pool.call(RESOURCE, "get", 2.0)
    assert pool.info(id).last_called_at == opened + 3
    pool.call(RESOURCE, "get", 0.05)  # so soon after the one before that nothing is looked at
    assert pool.info(id).last_called_at == opened + 5
    assert pool.info(id).state is ChannelState.IDLE


def test_how_long_calls_took_is_counted_in_as_they_come(pool, tape):
    pool.init(tape)
    for _ in range(100):
        pool.call(RESOURCE, "get", 0.15)
    (line,) = pool._switch.ledger.lines.values()
    assert len(line.took["get"].new) < 5


def test_who_waits_to_take_a_channel_out_is_no_call_that_will_come_to_it(pool):
    tape, held = Tape(), Held()
    tape.doing = held
    id = pool.init(tape)
    running = Caller(pool)
    assert held.begun.acquire(timeout=10)
    waiting = queue_up(pool, [1])[0]
    popper = threading.Thread(target=pool.pop, args=(id,))
    popper.start()
    until(lambda: n_waiting(pool) == 2)
    assert pool.info(id).queued == 1
    held.may_end.release()
    held.may_end.release()
    popper.join(10)
    assert (running.outcome(), waiting.outcome()) == (None, 1)


def test_a_channel_that_is_being_called_is_busy(pool):
    tape, held = Tape(), Held()
    tape.doing = held
    id = pool.init(tape)
    running = Caller(pool)
    assert held.begun.acquire(timeout=10)
    assert pool.info(id).state is ChannelState.BUSY
    held.may_end.release()
    running.outcome()


def test_a_snapshot_does_not_change(pool, tape):
    id = pool.init(tape)
    before = pool.info(id)
    pool.call(RESOURCE, "get", 1.0)
    assert before.stats == {}
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        before.extra = 1


def test_the_whole_story_is_told_in_order(pool, tape, clock):
    told = []
    stop = pool.listen(told.append)
    began = clock.now()
    id = pool.init(tape, ttl=50.0)
    pool.call(RESOURCE, "get", 2.0)
    tape.doing = lambda method, payload: 1 // 0
    with pytest.raises(ZeroDivisionError):
        pool.call(RESOURCE, "get")
    tape.doing = lambda method, payload: Reply("bye", retry_after=math.inf)
    pool.call(RESOURCE, "set")
    until(lambda: len(told) == 8)
    with pytest.raises(NoResourceError):
        pool.call(RESOURCE, "get")
    for _ in range(2):  # nobody is asked to have kept count
        stop()
    pool.init(Tape())
    pool.call(RESOURCE, "get")
    error, refusal = told[4].error, told[8].error
    assert told == [
        ChannelOpened("still", began, id, RESOURCE, 0.0),
        CallStarted("still", began, id, RESOURCE, "get", 0.0),
        CallEnded("still", began + 2, id, RESOURCE, "get", 2.0, None),
        CallStarted("still", began + 2, id, RESOURCE, "get", 0.0),
        CallEnded("still", began + 2, id, RESOURCE, "get", 0.0, error),
        CallStarted("still", began + 2, id, RESOURCE, "set", 0.0),
        CallEnded("still", began + 2, id, RESOURCE, "set", 0.0, None),
        ChannelClosed("still", began + 2, id, RESOURCE, CloseReason.TERMINATED),
        CallRefused("still", began + 2, RESOURCE, "get", 0.0, refusal),
    ]
    assert isinstance(error, ZeroDivisionError)
    assert isinstance(refusal, NoResourceError)


def test_attempts_to_open_again_are_told(pool, tape, clock):
    told = []
    pool.listen(told.append, ChannelDown, ChannelOpened)
    id = pool.init(tape, ttl=5.0, revive=True)
    error = ConnectionError("down")
    error.retry_after = 3.0
    failures = [error]

    def opening():
        if failures:
            raise failures.pop()

    tape.opening = opening
    clock.advance(5)
    pool.sweep()
    until(lambda: len(told) == 2)
    clock.advance(3)
    pool.sweep()
    until(lambda: len(told) == 3)
    assert told[1] == ChannelDown("still", clock.now() - 3, id, RESOURCE, error, clock.now())
    assert told[2] == ChannelOpened("still", clock.now(), id, RESOURCE, 0.0)


def test_who_names_what_all_events_are_hears_everything(pool, tape):
    told, all_of_it = [], []
    pool.listen(told.append)
    pool.listen(all_of_it.append, Event)
    pool.init(tape)
    pool.call(RESOURCE, "get", 1)
    assert [type(event) for event in all_of_it] == [ChannelOpened, CallStarted, CallEnded]
    assert all_of_it == told


def test_a_listener_may_use_the_pool_and_its_failure_is_logged(pool, caplog):
    pool.init(Tape())

    def handler(event):
        assert pool.resources() == [RESOURCE]
        raise ValueError("handler")

    pool.listen(handler, CallStarted)
    assert pool.call(RESOURCE, "get", 1) == 1
    assert "a listener failed" in caplog.text


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_listener_that_ends_the_thread_of_a_failed_opening_keeps_nobody_from_trying_again():
    tape, failures = Tape(), [ConnectionError("down")]

    def opening():
        if failures:
            raise failures.pop()

    def end_the_thread(event):
        raise SystemExit

    with CallPool("still", revive_initial=0.01, reap_interval=0.01) as pool:
        pool.init(tape, revive=True)
        pool.listen(end_the_thread, ChannelDown)
        tape.opening = opening
        tape.doing = Held()
        tape.doing.result = ChannelClosedError("gone")
        tape.doing.may_end.release()
        with pytest.raises(ChannelClosedError):
            pool.call(RESOURCE, "get")
        until(lambda: tape.attempts == 3, "the second attempt to open it again")
        until(lambda: pool.resources() == [RESOURCE])


def test_listeners_hear_only_what_they_asked_for_and_nothing_else_can_be_asked_for(pool):
    told = []
    pool.init(Tape())
    pool.listen(told.append, CallRefused)
    pool.listen(print, CallStarted)()
    assert not pool._switch.ledger.is_heard  # so calls go the short way again
    pool.call(RESOURCE, "get")
    with pytest.raises(MethodNotSupportedError):
        pool.call(RESOURCE, "put")
    assert [type(event) for event in told] == [CallRefused]
    with pytest.raises(ConfigError):
        pool.listen(told.append, PoolOpened)
    with pytest.raises(ConfigError):
        pool.listen("nobody")


def test_listeners_given_at_the_start_hear_of_the_first_channel():
    told = []
    with CallPool(listeners=[told.append]) as pool:
        pool.init(Tape())
    assert [type(event) for event in told] == [ChannelOpened, ChannelClosed]


def test_a_pool_says_what_it_is(pool):
    pool.init(Tape())
    assert repr(pool) == "<CallPool 'still': open, 1 channels>"
    assert CallPool().name != CallPool().name


@pytest.mark.parametrize("setting", ["reap_interval", "revive_initial", "revive_max"])
def test_a_duration_that_is_none_is_refused(setting):
    with pytest.raises(ConfigError, match=setting):
        CallPool(**{setting: 0})
