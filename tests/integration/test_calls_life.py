"""How channels come, grow old, are opened again, are taken out and go, and how a pool of them ends."""

from __future__ import annotations

import gc
import math
import os
import threading
import time
import weakref
from collections.abc import Iterator

import attrs
import pytest

from connpool import (
    CallPool,
    CallStarted,
    CallTimeoutError,
    ChannelClosedError,
    ChannelDown,
    ChannelInfo,
    ChannelState,
    CloseReason,
    ConfigError,
    ConnectionPool,
    NoResourceError,
    PoolClosedError,
    Reply,
    UnknownChannelError,
    UsageError,
)
from connpool import ChannelClosed as Closed
from connpool.calls import workers
from connpool.clock import now
from connpool.testing import Ending
from connpool.wire import threads
from tests.helpers.channels import RESOURCE, Caller, Held, Tape, TextChannel, n_waiting, queue_up, text_server
from tests.helpers.forks import fork_mortally, fork_quietly, in_child, status_of
from tests.helpers.interrupts import in_a_handler
from tests.helpers.switchboard import until
from tests.helpers.upkeep import reapers


@pytest.fixture
def pool() -> Iterator[CallPool]:
    with CallPool("tapes") as made:
        yield made


# -- coming


def test_a_channel_that_is_being_opened_cannot_be_added_a_second_time(pool):
    tape = Tape()
    is_opening, may_go_on = threading.Event(), threading.Event()

    def opening() -> None:
        is_opening.set()
        assert may_go_on.wait(10)

    tape.opening = opening
    first = threading.Thread(target=pool.init, args=(tape,))
    first.start()
    assert is_opening.wait(10)
    for add in (pool.init, lambda channel: pool.put(ChannelInfo(channel))):
        with pytest.raises(UsageError, match="has that channel already"):
            add(tape)
    may_go_on.set()
    first.join()
    assert pool.map(RESOURCE, lambda info: info.channel) == [tape]


def test_a_channel_that_could_not_be_opened_may_be_added_again(pool):
    tape = Tape()
    tape.opening = lambda: 1 / 0
    with pytest.raises(ZeroDivisionError):
        pool.init(tape)
    tape.opening = lambda: None
    assert pool.init(tape) == 1


# -- ttl


def test_a_channel_is_called_until_its_ttl_is_over_and_then_there_is_none(still, clock):
    tape = Tape()
    still.init(tape, ttl=5.0)
    clock.advance(4.9)
    assert still.call(RESOURCE, "get", 1) == 1
    clock.advance(0.1)
    assert still.is_empty(RESOURCE)
    assert still.resources() == []
    assert tape.is_open  # nobody has looked yet
    with pytest.raises(NoResourceError):
        still.call(RESOURCE, "get")
    until(lambda: tape.closes == 1)


def test_an_old_channel_is_passed_over_for_a_younger_one(still, clock):
    old, young = Tape(), Tape()
    still.init(old, ttl=5.0)
    clock.advance(3)
    still.init(young, ttl=5.0)
    clock.advance(3)
    assert [still.call(RESOURCE, "get", n) for n in range(3)] == [0, 1, 2]
    assert (old.calls, young.calls) == ([], [0, 1, 2])


def test_what_expires_during_a_call_is_closed_after_it(still, clock):
    tape = Tape()
    still.init(tape, ttl=5.0)
    tape.doing = lambda method, payload: clock.advance(10)
    still.call(RESOURCE, "get")
    until(lambda: tape.closes == 1)
    assert still.resources() == []


def test_a_call_with_a_filter_finds_no_channel_whose_ttl_is_over_either(still, clock):
    tape = Tape()
    still.init(tape, ttl=5.0)
    clock.advance(5)
    with pytest.raises(NoResourceError):
        still.call(RESOURCE, "get", where=lambda info: True)
    assert (tape.calls, tape.closes) == ([], 1)


def test_what_has_interrupted_the_pool_s_own_work_is_turned_away(still, clock):
    tape = Tape()
    still.init(tape, ttl=5.0)
    with still._switch._lock:  # as a signal handler finds it
        with pytest.raises(UsageError, match="cannot be used by what has interrupted it"):
            still.call(RESOURCE, "get", where=lambda info: True)
        clock.advance(5)
        assert still.sweep() == 0
        assert tape.is_open
        for use in (
            lambda: still.init(Tape()),
            lambda: still.put(ChannelInfo(tape)),
            lambda: still.info(1),
            lambda: still.extra(1, "mine"),
            lambda: still.map(RESOURCE, str),
            lambda: still.update(RESOURCE, lambda info: info),
            lambda: still.pop(1),
            still.resources,
            still.close,
        ):
            with pytest.raises(UsageError, match="cannot be used by what has interrupted it"):
                use()
    assert still.sweep() == 1
    until(lambda: tape.closes == 1)


def test_of_two_reasons_to_close_a_channel_the_first_is_told(still, clock):
    tape, held, reasons = Tape(), Held(), []
    tape.doing = held
    still.init(tape, ttl=5.0)
    still.listen(lambda event: reasons.append(event.reason), Closed)
    running = Caller(still, 1)
    assert held.begun.acquire(timeout=10)
    clock.advance(5)
    still.sweep()
    assert still.close() == 1
    held.may_end.release()
    assert running.outcome() == 1
    until(lambda: reasons)
    assert reasons == [CloseReason.EXPIRED]


def test_who_waits_for_a_channel_that_expires_is_refused_at_once(still, clock):
    tape, held = Tape(), Held()
    tape.doing = held
    still.init(tape, ttl=5.0)
    running = Caller(still, 1)
    assert held.begun.acquire(timeout=10)
    waiting = queue_up(still, [2])[0]
    clock.advance(6)
    still.sweep()
    assert isinstance(waiting.outcome(), NoResourceError)
    held.may_end.release()
    assert running.outcome() == 1
    until(lambda: tape.closes == 1)


def test_an_expired_channel_is_closed_without_any_traffic(pool):
    with text_server() as server, ConnectionPool(server.endpoint) as sockets:
        began = now()
        pool.init(TextChannel(sockets), ttl=0.05)
        server.until_accepts(1)
        connection = server.until_accepts(1)
        connection.until_ended()
        assert connection.ending is Ending.EOF
        assert 0.05 <= now() - began < 5
        assert pool.resources() == []


@pytest.mark.parametrize(
    "bad", [{"ttl": 0}, {"ttl": math.inf}, {"revive": "always"}, {"revive": 1}, {"revive": None}]
)
def test_a_policy_that_is_none_is_refused_before_anything_is_opened(pool, bad):
    tape = Tape()
    with pytest.raises(ConfigError):
        pool.init(tape, **bad)
    with pytest.raises(ConfigError):
        pool.put(ChannelInfo(tape, **bad))
    assert tape.attempts == 0


# -- revival


def expire(pool, tape, clock):
    clock.advance(10)
    pool.sweep()


def break_it(pool, tape, clock):
    def fail(method, payload):
        raise ChannelClosedError("broken")

    tape.doing = fail
    with pytest.raises(ChannelClosedError):
        pool.call(RESOURCE, "get")


def stop(pool, tape, clock):
    tape.doing = lambda method, payload: Reply("bye", retry_after=math.inf)
    assert pool.call(RESOURCE, "get") == "bye"


ENDS = {expire: CloseReason.EXPIRED, break_it: CloseReason.BROKEN, stop: CloseReason.TERMINATED}


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("revive", [False, True, "force"])
def test_a_closed_channel_is_opened_again_where_that_is_wished(still, clock, revive, end):
    reasons = []
    still.listen(lambda event: reasons.append(event.reason), Closed)
    tape = Tape()
    id = still.init(tape, 1, "two", ttl=5.0, revive=revive)
    end(still, tape, clock)
    until(lambda: tape.closes == 1)
    is_revived = revive == "force" or (revive is True and end is not stop)
    if is_revived:
        until(lambda: still.resources() == [RESOURCE])
        tape.doing = lambda method, payload: payload
        assert still.call(RESOURCE, "get", 3) == 3
        assert still.info(id).opened_at == clock.now()
    else:
        still.sweep()
        with pytest.raises(UnknownChannelError):
            still.info(id)
        with pytest.raises(NoResourceError):
            still.call(RESOURCE, "get")
    assert tape.opened == [(1, "two")] * (1 + is_revived)
    assert tape.attempts == 1 + is_revived
    assert reasons == [ENDS[end]]


def test_the_first_call_after_the_end_finds_none_even_if_it_is_opened_again(pool):
    tape, gate = Tape(), threading.Event()
    pool.init(tape, revive=True)
    tape.opening = lambda: gate.wait(10) and None
    break_it(pool, tape, None)
    with pytest.raises(NoResourceError):
        pool.call(RESOURCE, "get")
    assert pool.resources() == []
    assert pool.info(1).state is ChannelState.DOWN
    gate.set()
    until(pool.resources)


class LaterError(Exception):
    def __init__(self, retry_after: float) -> None:
        super().__init__(retry_after)
        self.retry_after = retry_after


def failing(*delays: float | None):
    """What ``open`` does: fails once for each of *delays*, asking for them."""
    left = list(delays)

    def opening(*args: object) -> None:
        if left:
            delay = left.pop(0)
            raise ConnectionError("down") if delay is None else LaterError(delay)

    return opening


def test_an_attempt_that_fails_is_repeated_when_the_channel_says_and_counted(still, clock):
    tape = Tape()
    id = still.init(tape, ttl=5.0, revive=True)
    tape.opening = failing(7.0, 3.0)
    expire(still, tape, clock)
    until(lambda: still.info(id).failures == 1)
    clock.advance(6.9)
    still.sweep()
    assert tape.attempts == 2
    clock.advance(0.1)
    still.sweep()
    until(lambda: still.info(id).failures == 2)
    clock.advance(3.0)
    still.sweep()
    until(lambda: still.resources() == [RESOURCE])
    assert (tape.attempts, tape.opens, tape.closes) == (4, 2, 1)
    assert still.info(id).failures == 0
    assert not still._switch.ledger.down


def test_a_channel_that_says_never_again_leaves_the_pool(still, clock):
    tape = Tape()
    id = still.init(tape, ttl=5.0, revive=True)
    tape.opening = failing(math.inf)
    expire(still, tape, clock)
    until(lambda: RESOURCE not in still._switch.ledger.resources)
    with pytest.raises(UnknownChannelError):
        still.info(id)
    clock.advance(1000)
    still.sweep()
    assert (tape.attempts, tape.closes) == (2, 1)


def test_a_channel_that_is_down_and_not_to_be_revived_any_more_leaves_the_pool(still, clock):
    tape = Tape()
    id = still.init(tape, ttl=5.0, revive=True)
    tape.opening = failing(7.0)
    expire(still, tape, clock)
    until(lambda: still.info(id).failures == 1)
    still.update(RESOURCE, lambda info: attrs.evolve(info, revive=False))
    clock.advance(7.0)
    still.sweep()
    until(lambda: RESOURCE not in still._switch.ledger.resources)
    with pytest.raises(UnknownChannelError):
        still.info(id)
    assert (tape.attempts, tape.closes) == (2, 1)


def test_without_a_word_from_the_channel_attempts_come_less_and_less_often(clock):
    with CallPool(clock=clock, revive_initial=1.0, revive_max=4.0) as pool:
        tape = Tape()
        id = pool.init(tape, ttl=5.0, revive=True)
        tape.opening = failing(*[None] * 5)
        expire(pool, tape, clock)
        gaps = []
        for n in range(1, 5):
            until(lambda n=n: pool.info(id).failures == n)
            line = pool._switch.ledger.lines[id]
            gaps.append(line.retry_at - clock.now())
            clock.advance(gaps[-1])
            pool.sweep()
        assert all(0.9 * most <= gap <= most for gap, most in zip(gaps, [1, 2, 4, 4], strict=True))


def test_the_reaper_opens_again_in_real_time(pool):
    tape = Tape()
    pool.init(tape, ttl=0.05, revive=True)
    tape.opening = failing(0.02, 0.02)
    until(lambda: tape.opens >= 2)
    assert tape.attempts >= 4
    until(lambda: pool.resources() == [RESOURCE])


def test_opening_again_holds_up_neither_callers_nor_the_reaper(pool):
    stuck, other, gate = Tape("stuck"), Tape(), threading.Event()
    pool.init(stuck, revive=True)
    pool.init(other, ttl=0.05, revive=True)
    threads = []
    stuck.opening = lambda: threads.append(threading.current_thread().name) or (gate.wait(10) and None)

    def fail(method, payload):
        raise ChannelClosedError("broken")

    stuck.doing = fail
    with pytest.raises(ChannelClosedError):
        pool.call("stuck", "get")
    until(lambda: other.opens >= 3, "a channel that comes and goes meanwhile")
    assert threads[0].startswith("connpool-")
    assert threads[0] != "connpool-reaper"
    gate.set()


# -- taking out


def test_taking_out_waits_for_who_is_queued_and_gets_the_channel_open(pool):
    tape, held = Tape(), Held()
    tape.doing = held
    id = pool.init(tape)
    running = Caller(pool, 0)
    assert held.begun.acquire(timeout=10)
    waiting = queue_up(pool, [1, 2])
    popped: list[ChannelInfo] = []
    popper = threading.Thread(target=lambda: popped.append(pool.pop(id)))
    popper.start()
    until(lambda: len(pool._switch.ledger.resources[RESOURCE].queue) == 3)
    with pytest.raises(NoResourceError):  # who comes after it finds none
        pool.call(RESOURCE, "get")
    for _ in range(3):
        assert popper.is_alive()
        held.may_end.release()
    popper.join(10)
    assert [each.outcome() for each in (running, *waiting)] == [0, 1, 2]
    assert popped[0].channel is tape
    assert popped[0].stats["get"].count == 3
    assert tape.is_open
    assert pool.resources() == []


def test_taking_out_in_vain_leaves_the_channel_where_it_was(pool):
    tape, held = Tape(), Held()
    tape.doing = held
    id = pool.init(tape)
    running = Caller(pool)
    assert held.begun.acquire(timeout=10)
    with pytest.raises(CallTimeoutError, match="channel 1"):
        pool.pop(id, timeout=0.01)
    with pytest.raises(CallTimeoutError, match="channel 1"):
        pool.pop(resource=RESOURCE, timeout=0.01)
    waiting = queue_up(pool, [1])[0]
    held.may_end.release()
    held.may_end.release()
    running.outcome()
    assert waiting.outcome() == 1
    assert pool.pop(id).channel is tape


def test_a_resting_channel_is_taken_out_with_the_rest_that_is_left(still, clock):
    tape = Tape()
    tape.opening = lambda: 10.0
    id = still.init(tape)
    clock.advance(4)
    info = still.pop(id)
    assert (info.state, info.rest_left) == (ChannelState.RESTING, 6.0)
    again = still.put(info)
    assert still.info(again).rest_left == 6.0


def test_a_channel_that_is_down_can_be_taken_out_and_is_not_opened_any_more(still, clock):
    tape = Tape()
    id = still.init(tape, ttl=5.0, revive=True)
    tape.opening = failing(1.0)
    expire(still, tape, clock)
    until(lambda: still.info(id).failures == 1)
    assert still.pop(id).state is ChannelState.DOWN
    clock.advance(5)
    still.sweep()
    assert tape.attempts == 2


def test_the_ttl_of_one_that_is_put_back_still_counts_from_its_opening(still, clock):
    id = still.init(Tape(), ttl=5.0)
    clock.advance(3)
    again = still.put(still.pop(id))
    assert still.info(again).opened_at == clock.now() - 3
    clock.advance(2)
    assert still.resources() == []


def test_a_channel_is_put_in_once(pool):
    tape = Tape()
    tape.open()
    pool.put(ChannelInfo(tape))
    with pytest.raises(UsageError, match="already"):
        pool.put(ChannelInfo(tape))
    with pytest.raises(UsageError, match="already"):
        pool.init(tape)
    assert tape.is_open
    assert pool.call(RESOURCE, "get", 1) == 1


def test_ids_are_positive_and_never_the_same(pool):
    ids = []
    for _ in range(10_000):
        tape = Tape()
        tape.open()
        ids.append(pool.put(ChannelInfo(tape)))
    assert len(set(ids)) == 10_000
    assert min(ids) > 0
    assert len(pool.pop(resource=RESOURCE)) == 10_000


def test_a_change_of_the_ttl_counts_at_once(still, clock):
    tape = Tape()
    still.init(tape)
    clock.advance(5)
    assert still.call(RESOURCE, "get", 1) == 1
    still.update(RESOURCE, lambda info: attrs.evolve(info, ttl=5.0))
    assert still.resources() == []
    until(lambda: tape.closes == 1)


# -- the end


def test_closing_lets_calls_that_run_or_wait_end_and_takes_no_more(pool):
    tape, held = Tape(), Held()
    tape.doing = held
    pool.init(tape)
    running = Caller(pool, 1)
    assert held.begun.acquire(timeout=10)
    waiting = queue_up(pool, [2])[0]
    left: list[int] = []
    closer = threading.Thread(target=lambda: left.append(pool.close(10)))
    closer.start()
    until(lambda: n_waiting(pool) == 2)
    with pytest.raises(PoolClosedError):
        pool.call(RESOURCE, "get")
    with pytest.raises(PoolClosedError):
        pool.init(Tape())
    held.may_end.release()
    held.may_end.release()
    closer.join(10)
    assert (running.outcome(), waiting.outcome(), left) == (1, 2, [0])
    assert tape.closes == 1
    with pytest.raises(PoolClosedError):  # also now that it has no channel any more
        pool.call(RESOURCE, "get")


def test_a_call_that_does_not_end_in_time_is_cut_off_with_its_channel(pool):
    with text_server() as server, ConnectionPool(server.endpoint) as sockets:
        pool.init(TextChannel(sockets))
        running = Caller(pool, method="HUSH")
        server.until_accepts(1).until_received(b"HUSH\n")
        began = now()
        assert pool.close(0.05) == 1
        assert now() - began < 5
        assert isinstance(running.outcome(), ChannelClosedError)
        until(lambda: sockets.stats().size == 0)


def test_what_is_cut_off_is_closed_and_that_is_told_when_the_close_of_the_pool_returns(pool, monkeypatch):
    monkeypatch.setattr(workers, "CLOSE_GRACE", 10)
    told, tape, held = [], Tape(), Held()
    tape.doing, tape.closing = held, lambda: time.sleep(0.01)
    pool.listen(told.append, Closed)
    id = pool.init(tape)
    running = Caller(pool, 1)
    assert held.begun.acquire(timeout=10)
    began = now()
    assert pool.close(0) == 1
    assert tape.closes == 1
    assert [(event.id, event.reason) for event in told] == [(id, CloseReason.POOL_CLOSED)]
    assert now() - began < 5
    held.may_end.release()
    running.outcome()


def test_closing_without_a_timeout_waits_for_nobody(pool):
    tape, held = Tape(), Held()
    tape.doing = held
    idle = Tape("idle")
    pool.init(tape)
    pool.init(idle)
    running = Caller(pool, 1)
    assert held.begun.acquire(timeout=10)
    waiting = queue_up(pool, [2])[0]
    assert pool.close() == 1
    assert pool.close() == 1
    assert isinstance(waiting.outcome(), PoolClosedError)
    assert (tape.closes, idle.closes) == (0, 1)
    held.may_end.release()
    assert running.outcome() == 1
    until(lambda: tape.closes == 1)
    assert pool.close() == 0


def test_a_close_with_a_timeout_gives_calls_that_run_their_time_though_the_pool_is_closed_already(pool):
    tape, held = Tape(), Held()
    tape.doing = held
    pool.init(tape)
    running = Caller(pool, 1)
    assert held.begun.acquire(timeout=10)
    assert pool.close() == 1
    left: list[int] = []
    closer = threading.Thread(target=lambda: left.append(pool.close(10)))
    closer.start()
    until(lambda: n_waiting(pool) == 1 or left)
    assert tape.closes == 0
    held.may_end.release()
    closer.join(10)
    assert (running.outcome(), left, tape.closes) == (1, [0], 1)


def test_a_close_that_gives_calls_their_time_ends_early_when_another_closes_the_pool_at_once(pool):
    tape, held = Tape(), Held()
    tape.doing = held
    pool.init(tape)
    running = Caller(pool, 1)
    assert held.begun.acquire(timeout=10)
    left: list[int] = []
    closer = threading.Thread(target=lambda: left.append(pool.close(60)))
    closer.start()
    until(lambda: n_waiting(pool) == 1)
    assert pool.close() == 1
    closer.join(10)
    held.may_end.release()
    assert (running.outcome(), left, tape.closes) == (1, [1], 1)


def test_where_no_thread_can_be_had_channels_are_closed_all_the_same(monkeypatch):
    pool = CallPool(reap_interval=None)
    idle, busy, held = Tape(), Tape(methods=["hold"]), Held()
    busy.doing = held
    pool.init(idle)
    pool.init(busy)
    running = Caller(pool, 1, method="hold")
    assert held.begun.acquire(timeout=10)
    monkeypatch.setattr(threads, "start", lambda thread: False)
    assert pool.close(0.05) == 1
    assert (idle.closes, busy.closes) == (1, 1)
    held.may_end.release()
    assert running.outcome() == 1


def test_a_close_that_hangs_or_fails_holds_up_nobody(pool, caplog):
    gate = threading.Event()
    hanging, failing, healthy = Tape(), Tape(), Tape()
    hanging.closing = lambda: gate.wait(10)
    failing.closing = lambda: 1 // 0
    for tape in (hanging, failing, healthy):
        pool.init(tape)
    began = now()
    pool.close()
    assert now() - began < 5
    until(lambda: failing.closes == healthy.closes == 1)
    gate.set()
    until(lambda: "closing channel 2 failed" in caplog.text)


@pytest.mark.parametrize("is_running", [False, True])
def test_however_many_closes_hang_nobody_waits_for_each_of_them(pool, is_running):
    gate, held, tapes = threading.Event(), Held(), [Tape() for _ in range(40)]
    for tape in tapes:
        tape.doing, tape.closing = held, lambda: gate.wait(10)
        pool.init(tape)
    callers = [Caller(pool, n) for n in range(40)] if is_running else []
    assert all(held.begun.acquire(timeout=10) for _ in callers)
    began = now()
    assert pool.close(0.1) == len(callers)
    assert now() - began < 1
    until(lambda: all(tape.closes for tape in tapes))
    gate.set()
    held.may_end.release(40)
    for caller in callers:
        caller.outcome()


def test_a_channel_is_opened_again_later_where_no_thread_can_be_had_just_then(pool, monkeypatch):
    tape, start, kept_back = Tape(), threads.start, []

    def refused_once(thread: threading.Thread) -> bool:
        if thread.name.startswith("connpool-open") and not kept_back:
            kept_back.append(thread)
            return False
        return start(thread)

    def opening() -> None:
        if tape.attempts == 2:
            error = ConnectionError("not yet")
            error.retry_after = 0.05
            raise error

    monkeypatch.setattr(threads, "start", refused_once)
    tape.opening = opening
    pool.init(tape, revive=True)
    break_it(pool, tape, None)
    until(lambda: tape.opens == 2)
    assert kept_back


def test_an_opening_that_ends_its_thread_is_an_attempt_like_any_other(pool):
    def opening() -> None:
        if tape.attempts > 1:
            raise SystemExit("no more")

    tape, told = Tape(), []
    tape.opening = opening
    pool.init(tape, revive=True)
    pool.listen(lambda event: told.append(event.error), ChannelDown)
    break_it(pool, tape, None)
    until(lambda: told)
    assert [type(error) for error in told] == [SystemExit]
    assert tape.attempts == 2


def test_a_pool_that_is_closed_opens_nothing_again(pool):
    tape, gate = Tape(), threading.Event()
    pool.init(tape, revive=True)
    tape.opening = lambda: gate.wait(10) and None
    break_it(pool, tape, None)
    until(lambda: tape.attempts == 2)
    pool.close()
    gate.set()
    until(lambda: tape.closes == tape.opens == 2)


def test_an_open_that_is_interrupted_leaves_a_channel_that_is_closed(pool):
    tape = Tape()

    def interrupted() -> None:
        tape.opens += 1
        raise KeyboardInterrupt

    tape.opening = interrupted
    with pytest.raises(KeyboardInterrupt):
        pool.init(tape, revive=True)
    until(lambda: tape.closes == 1)
    assert pool.resources() == []


def test_a_pool_that_closes_while_a_channel_is_opened_closes_that_too(pool):
    tape = Tape()
    tape.opening = lambda: pool.close() and None
    with pytest.raises(PoolClosedError):
        pool.init(tape)
    assert tape.closes == 1


def test_a_forgotten_pool_goes_although_something_is_due_and_closes_its_channels():
    pool, tape = CallPool(), Tape()
    pool.init(tape, ttl=60)
    until(reapers)
    gone = weakref.ref(pool)
    del pool
    gc.collect()
    assert gone() is None
    until(lambda: tape.closes == 1)
    until(lambda: not reapers())


def test_a_forked_child_starts_empty_and_says_nothing_on_the_parents_channels(pool):
    with text_server() as server, ConnectionPool(server.endpoint) as sockets:
        tape = Tape("tape")
        pool.init(TextChannel(sockets))
        pool.init(tape)
        pool.call(RESOURCE, "INC")

        def in_it() -> tuple[object, ...]:
            with pytest.raises(NoResourceError):
                pool.call(RESOURCE, "GET")
            own = Tape("own")
            pool.init(own)
            answer = pool.call("own", "get", 5)
            pool.close()
            gc.collect()
            return answer, own.closes, tape.closes, inherited() is not None

        inherited = weakref.ref(pool.map(RESOURCE, lambda info: info.channel)[0])
        assert in_child(in_it) == (5, 1, 0, True)  # not even its finaliser may speak
        assert pool.call(RESOURCE, "GET") == "1"
        assert server.until_accepts(1).ending is None


def test_a_fork_in_the_midst_of_a_call_leaves_the_child_its_answer(pool):
    tape = Tape()
    answers = []
    tape.doing = lambda method, payload: answers.append(in_child(lambda: len(pool.resources()))) or "done"
    pool.init(tape)
    assert pool.call(RESOURCE, "get") == "done"
    assert answers == [0]
    assert pool.resources() == [RESOURCE]


def test_a_forked_child_has_the_parent_s_listeners_and_of_a_closed_pool_a_closed_one(pool):
    told: list[object] = []
    pool.listen(told.append, CallStarted)

    def call_in_it() -> int:
        pool.init(Tape())
        pool.call(RESOURCE, "get")
        pool.call(RESOURCE, "get")
        return len(told)

    def init_in_it() -> str:
        with pytest.raises(PoolClosedError) as caught:
            pool.init(Tape())
        return str(caught.value)

    assert in_child(call_in_it) == 2
    pool.close()
    assert in_child(init_in_it) == "call pool 'tapes' is closed"


def test_a_call_ends_in_a_forked_child_though_another_thread_had_the_lock_at_the_fork(pool):
    tape, pids = Tape(), []
    is_held, may_end = threading.Event(), threading.Event()

    def hold() -> None:
        with pool._switch._lock:
            is_held.set()
            may_end.wait(10)

    holder = threading.Thread(target=hold)

    def fork(method, payload):
        holder.start()
        assert is_held.wait(10)
        pids.append(fork_mortally())
        if pids[0] != 0:
            may_end.set()
        return "done"

    tape.doing = fork
    pool.init(tape)
    status = 99
    try:
        assert pool.call(RESOURCE, "get") == "done"
        status = 0
    finally:
        if pids[0] == 0:
            os._exit(status)
    holder.join()
    assert status_of(pids[0]) == 0


def test_a_call_that_ends_in_a_forked_child_closes_no_channel_of_the_parents(pool):
    tape, pids = Tape(), []

    def fork(method, payload):
        pids.append(fork_quietly())
        if pids[0] == 0:
            raise ChannelClosedError("in the child")
        return "done"

    tape.doing = fork
    pool.init(tape)
    status = 99
    try:
        assert pool.call(RESOURCE, "get") == "done"
    except ChannelClosedError:
        status = tape.closes
    finally:
        if pids[0] == 0:
            os._exit(status)
    assert status_of(pids[0]) == 0
    assert pool.resources() == [RESOURCE]


def test_a_call_that_waits_ends_in_a_child_that_a_signal_handler_has_forked(pool):
    tape, pids = Tape(), []
    is_running, may_end = threading.Event(), threading.Event()
    tape.doing = lambda method, payload: is_running.set() or may_end.wait(10)
    pool.init(tape)
    caller = threading.Thread(target=pool.call, args=(RESOURCE, "get"))
    caller.start()
    assert is_running.wait(10)

    def fork_here() -> None:
        pids.append(fork_mortally())
        if pids[0] != 0:
            may_end.set()

    status = 99
    try:
        with in_a_handler(fork_here, 0.05):
            pool.call(RESOURCE, "get")
    except UsageError as error:
        status = int(not str(error).endswith("the process was forked while this call waited"))
    finally:
        if pids[0] == 0:
            os._exit(status)
    caller.join()
    assert status_of(pids[0]) == 0


def test_what_was_about_to_be_closed_is_left_to_the_parent_by_a_child(pool):
    tapes, pids = [Tape() for _ in range(3)], []

    def fork_here(event: object) -> None:
        if not pids:
            pids.append(fork_quietly())
            if pids[0] == 0:
                switch.carry_out()  # as who has told of it does next
                os._exit(sum(tape.closes for tape in tapes))

    for tape in tapes:
        pool.init(tape)
    switch = pool._switch
    pool.listen(fork_here, Closed)
    pool.close()
    assert status_of(pids[0]) == 1
    assert [tape.closes for tape in tapes] == [1, 1, 1]
