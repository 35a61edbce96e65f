"""Which call runs where and when: order, choice, rests, moves, time-outs."""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial

import attrs
import pytest

import connpool.calls.snapshots
from connpool import (
    CallPool,
    CallTimeoutError,
    ChannelClosed,
    ChannelClosedError,
    ChannelInfo,
    ChannelOpened,
    ChannelState,
    ConfigError,
    FilteredOutError,
    MethodNotSupportedError,
    NoResourceError,
    Reply,
    UsageError,
)
from connpool.calls.forecast import n_queued
from connpool.testing import FakeClock
from tests.helpers.channels import RESOURCE, Caller, Held, Tape, n_waiting, queue_up
from tests.helpers.switchboard import until
from tests.helpers.together import together


@pytest.fixture
def pool() -> Iterator[CallPool]:
    with CallPool("tapes") as made:
        yield made


def sleeping(seconds: float) -> Callable[[object, object], None]:
    return lambda method, payload: time.sleep(seconds)


def took(*jobs: Callable[[], object]) -> float:
    began = time.monotonic()
    together(*jobs)
    return time.monotonic() - began


def get(pool: CallPool) -> Callable[[], object]:
    return lambda: pool.call(RESOURCE, "get")


# -- order


def test_twenty_calls_of_one_thread_are_served_in_their_order(pool):
    tape = Tape()
    pool.init(tape)
    for n in range(20):
        assert pool.call(RESOURCE, "get", n) == n
    assert tape.calls == list(range(20))


def test_calls_on_one_channel_run_one_at_a_time_in_order_of_arrival(pool):
    tape, held = Tape(), Held()
    tape.doing = held
    pool.init(tape)
    callers = [Caller(pool, 0)]
    assert held.begun.acquire(timeout=10)
    callers += queue_up(pool, range(1, 6))
    assert pool.info(1).queued == 5
    for _ in range(6):
        held.may_end.release()
    assert [caller.outcome() for caller in callers] == list(range(6))
    assert tape.calls == list(range(6))


def test_who_comes_when_others_wait_does_not_go_before_them(pool):
    tape, held = Tape(), Held()
    tape.doing = held
    pool.init(tape)
    first = Caller(pool, "first")
    assert held.begun.acquire(timeout=10)
    queue_up(pool, ["second"])
    held.may_end.release()
    first.outcome()
    third = Caller(pool, "third")
    held.may_end.release()
    held.may_end.release()
    third.outcome()
    assert tape.calls == ["first", "second", "third"]


def test_who_queues_up_in_the_moment_in_which_a_channel_comes_back_is_served(pool):
    class Slow(deque):
        """Lets somebody queue up, who finds nothing, just before it takes a key in."""

        def append(self, key):
            if not late:
                late.extend(queue_up(pool, ["late"]))
            super().append(key)

    late: list[Caller] = []
    pool.init(Tape())
    ledger = pool._switch.ledger
    resource = ledger.resources[RESOURCE]
    resource.idle = ledger.idle[RESOURCE] = ledger.lines[1].idle = Slow(resource.idle)
    assert pool.call(RESOURCE, "get", "early") == "early"
    assert late[0].outcome() == "late"


# -- choice


def test_four_calls_at_once_are_split_between_two_channels(pool):
    tapes = [Tape(), Tape()]
    for tape in tapes:
        tape.doing = sleeping(0.1)
        pool.init(tape)
    seconds = took(*[get(pool)] * 4)
    assert 0.2 <= seconds < 2.0
    assert [len(tape.calls) for tape in tapes] == [2, 2]


def test_a_fast_channel_serves_more_than_a_slow_one(pool):
    slow, fast = Tape(), Tape()
    slow.doing, fast.doing = sleeping(0.2), sleeping(0.02)
    pool.init(slow)
    pool.init(fast)
    took(*[get(pool)] * 22)
    assert len(fast.calls) >= 18
    assert len(slow.calls) + len(fast.calls) == 22


def test_of_idle_channels_the_one_called_least_recently_is_taken(pool):
    tapes = [Tape(), Tape(), Tape()]
    for tape in tapes:
        pool.init(tape)
    for n in range(6):
        pool.call(RESOURCE, "get", n)
    assert [tape.calls for tape in tapes] == [[0, 3], [1, 4], [2, 5]]


def test_an_update_changes_nobodys_turn(pool):
    tapes = [Tape(), Tape(), Tape()]
    for tape in tapes:
        pool.init(tape, extra=0)
    for n in range(6):
        pool.call(RESOURCE, "get", n)
        pool.update(RESOURCE, lambda info: attrs.evolve(info, extra=info.extra + 1, ttl=100.0 + info.extra))
    assert [tape.calls for tape in tapes] == [[0, 3], [1, 4], [2, 5]]


def test_a_channel_that_a_call_cannot_use_keeps_its_place(pool):
    tapes = [Tape(methods={"get"}), Tape(methods={"set"}), Tape(methods={"get"})]
    for tape in tapes:
        pool.init(tape)
    pool.call(RESOURCE, "set", 1)
    pool.call(RESOURCE, "get", 2)
    assert [tape.calls for tape in tapes] == [[2], [1], []]


def test_a_call_goes_past_a_busy_channel_that_it_may_not_use(pool):
    first, second = Tape(methods={"get"}), Tape(methods={"set"})
    held = Held()
    first.doing = held
    pool.init(first)
    pool.init(second)
    caller = Caller(pool)
    assert held.begun.acquire(timeout=10)
    waiting = queue_up(pool, ["later"])
    assert pool.call(RESOURCE, "set", 1, timeout=5) == 1
    held.may_end.release()
    held.may_end.release()
    assert [each.outcome() for each in (caller, *waiting)] == [None, "later"]


def test_what_will_come_to_each_channel_is_foreseen_from_what_its_calls_took(clock):
    with CallPool(clock=clock) as pool:
        tapes = [Tape(), Tape()]
        ids = [pool.init(tape) for tape in tapes]
        for tape, seconds in zip(tapes, (10.0, 3.0), strict=True):
            tape.doing = lambda method, payload, seconds=seconds: clock.advance(seconds)
        for _ in tapes:
            pool.call(RESOURCE, "get")
        helds = [Held(), Held()]
        for tape, held in zip(tapes, helds, strict=True):
            tape.doing = held
        callers = [Caller(pool), Caller(pool)]
        for held in helds:
            assert held.begun.acquire(timeout=10)
        callers += queue_up(pool, range(3))
        assert [pool.info(id).queued for id in ids] == [0, 3]  # what runs counts
        callers += queue_up(pool, range(2))
        assert [pool.info(id).queued for id in ids] == [1, 4]  # waits of 10 and 20 there, of 3, 6, 9, 12 here
        callers += queue_up(pool, range(1), where=lambda info: info.id == ids[0])
        assert [pool.info(id).queued for id in ids] == [2, 4]  # whatever that has to wait
        for held in helds:
            for _ in range(7):
                held.may_end.release()
        for caller in callers:
            caller.outcome()


@pytest.mark.parametrize(
    "look",
    [
        lambda pool: pool.map(RESOURCE, lambda info: info.queued),
        lambda pool: pool.call(RESOURCE, "get", where=lambda info: info.queued > 9, timeout=0),
    ],
    ids=["map", "where"],
)
def test_what_will_come_is_foreseen_for_all_channels_at_once(pool, monkeypatch, look):
    seen: list[object] = []

    def foresee(resource, now):
        seen.append(resource)
        return n_queued(resource, now)

    monkeypatch.setattr(connpool.calls.snapshots, "n_queued", foresee)
    for _ in range(5):
        pool.init(Tape())
    with suppress(FilteredOutError):
        look(pool)
    assert len(seen) == 1  # nobody is served meanwhile


# -- rests


@pytest.mark.parametrize(("n_channels", "least", "most"), [(1, 0.6, 3.0), (2, 0.3, 0.59)])
def test_a_channel_that_asks_for_a_rest_gets_it(pool, n_channels, least, most):
    for _ in range(n_channels):
        tape = Tape()
        tape.doing = lambda method, payload: Reply(payload, retry_after=0.3)
        pool.init(tape)
    assert least <= took(*[get(pool)] * 3) < most


def test_a_rest_counts_from_the_end_of_the_call_and_a_failed_one_may_ask_for_it_too(clock):
    class BusyError(Exception):
        retry_after = 5.0

    def fail(method: object, payload: object) -> None:
        clock.advance(2.0)
        raise BusyError

    with CallPool(clock=clock) as pool:
        tape = Tape()
        tape.doing = fail
        id = pool.init(tape)
        with pytest.raises(BusyError):
            pool.call(RESOURCE, "get")
        tape.doing = lambda method, payload: payload
        assert pool.info(id).rest_left == 5.0
        assert pool.info(id).state.value == "resting"
        caller = queue_up(pool, ["next"])[0]
        clock.until_waiting(1)
        clock.advance(4.9)
        assert caller.is_alive()
        clock.advance(0.2)
        assert caller.outcome() == "next"
        assert pool.info(id).rest_left == 0.0


def test_opening_may_ask_for_a_rest_before_the_first_call(clock):
    with CallPool(clock=clock) as pool:
        tape = Tape()
        tape.opening = lambda: 3.0
        id = pool.init(tape)
        assert pool.info(id).rest_left == 3.0
        with pytest.raises(CallTimeoutError):
            pool.call(RESOURCE, "get", timeout=0)
        clock.advance(3.0)
        assert pool.call(RESOURCE, "get", 1) == 1


def test_who_waits_for_a_rest_takes_a_channel_that_is_free_sooner(clock):
    with CallPool(clock=clock) as pool:
        resting, busy, held = Tape(), Tape(), Held()
        resting.opening = lambda: 100.0
        busy.doing = held
        pool.init(resting)
        pool.init(busy)
        first = Caller(pool, 1)
        assert held.begun.acquire(timeout=10)
        second = queue_up(pool, [2])[0]
        held.may_end.release()
        held.may_end.release()
        assert (first.outcome(), second.outcome()) == (1, 2)
        assert busy.calls == [1, 2]


def test_when_the_oldest_leaves_the_next_one_waits_for_the_rest_in_its_stead(clock):
    with CallPool(clock=clock) as pool:
        tape = Tape()
        tape.opening = lambda: 10.0
        pool.init(tape)
        impatient = queue_up(pool, ["a"], timeout=5)[0]
        patient = queue_up(pool, ["b"])[0]
        clock.until_waiting(2)
        clock.advance(6)
        assert isinstance(impatient.outcome(), CallTimeoutError)
        clock.until_waiting(1)
        clock.advance(5)
        assert patient.outcome() == "b"


def test_when_the_oldest_is_served_the_next_one_waits_for_the_rest_in_its_stead(clock):
    with CallPool(clock=clock) as pool:
        resting, busy, held = Tape(), Tape(), Held()
        resting.opening = lambda: 10.0
        busy.doing = held
        pool.init(resting)
        pool.init(busy)
        first = Caller(pool, "a")
        assert held.begun.acquire(timeout=10)
        second, third = queue_up(pool, ["b", "c"])
        clock.until_waiting(2)
        held.may_end.release()
        assert held.begun.acquire(timeout=10)  # a long one
        clock.advance(10)
        assert third.outcome() == "c"
        held.may_end.release()
        assert (first.outcome(), second.outcome()) == ("a", "b")
        assert resting.calls == ["c"]


def test_a_rest_is_cut_short_by_an_update(clock):
    with CallPool(clock=clock) as pool:
        tape = Tape()
        tape.opening = lambda: 100.0
        pool.init(tape)
        caller = queue_up(pool, [1])[0]
        pool.update(RESOURCE, lambda info: attrs.evolve(info, rest_left=0.0))
        assert caller.outcome() == 1


# -- moves


def closing_first() -> tuple[Tape, Held]:
    tape, held = Tape(), Held()
    held.result = ChannelClosedError("gone")
    tape.doing = held
    return tape, held


def test_calls_behind_one_that_closes_the_channel_are_answered_by_another_in_order(pool):
    first, held = closing_first()
    second = Tape()
    pool.init(first)
    doomed = Caller(pool, "doomed")
    assert held.begun.acquire(timeout=10)
    callers = queue_up(pool, range(5))
    second.opening = lambda: 0.05  # so that they still wait
    pool.init(second)
    held.may_end.release()
    assert isinstance(doomed.outcome(), ChannelClosedError)
    assert [caller.outcome() for caller in callers] == list(range(5))
    assert (second.calls, first.calls) == (list(range(5)), ["doomed"])
    assert first.closes == 1


def test_an_error_that_asks_never_to_be_called_again_closes_the_channel(pool):
    class OverError(Exception):
        retry_after = math.inf

    def fail(method: object, payload: object) -> None:
        raise OverError

    tape = Tape()
    tape.doing = fail
    pool.init(tape)
    with pytest.raises(OverError):
        pool.call(RESOURCE, "get")
    assert pool.is_empty(RESOURCE)
    until(lambda: tape.closes == 1)


def test_without_another_all_of_them_are_refused_and_none_hangs(pool):
    first, held = closing_first()
    pool.init(first)
    doomed = Caller(pool)
    assert held.begun.acquire(timeout=10)
    callers = queue_up(pool, range(5))
    held.may_end.release()
    assert isinstance(doomed.outcome(), ChannelClosedError)
    assert [type(caller.outcome()) for caller in callers] == [NoResourceError] * 5


def test_who_is_left_with_channels_that_its_filter_refuses_is_told_so(pool):
    first, held = closing_first()
    pool.init(first, extra="good")
    pool.init(Tape(), extra="bad")
    doomed = Caller(pool, where=lambda info: info.extra == "good")
    assert held.begun.acquire(timeout=10)
    waiting = queue_up(pool, [1], where=lambda info: info.extra == "good")[0]
    held.may_end.release()
    doomed.outcome()
    assert isinstance(waiting.outcome(), FilteredOutError)


def test_who_loses_its_channel_while_its_filter_is_asked_about_another_that_it_refuses_is_told_so(pool):
    asked, may_answer = threading.Semaphore(0), threading.Semaphore(0)

    def is_good(info: ChannelInfo) -> bool:
        if info.extra == "bad":
            asked.release()
            assert may_answer.acquire(timeout=10)
        return info.extra == "good"

    first, held = closing_first()
    pool.init(first, extra="good")
    doomed = Caller(pool)
    assert held.begun.acquire(timeout=10)
    waiting = queue_up(pool, [1], where=is_good)[0]
    pool.init(Tape(), extra="bad")
    assert asked.acquire(timeout=10)
    held.may_end.release()
    doomed.outcome()
    until(lambda: first.closes == 1)
    may_answer.release()
    assert isinstance(waiting.outcome(), FilteredOutError)


def test_a_channel_that_is_new_is_not_used_by_who_waits_with_a_filter_that_refuses_it(pool):
    tape, held = Tape(), Held()
    tape.doing = held
    pool.init(tape, extra="good")
    busy = Caller(pool, 1)
    assert held.begun.acquire(timeout=10)
    choosy = queue_up(pool, [2], where=lambda info: info.extra == "good")[0]
    fresh = Tape()
    pool.init(fresh, extra="bad")
    held.may_end.release()
    held.may_end.release()
    assert (busy.outcome(), choosy.outcome()) == (1, 2)
    assert (tape.calls, fresh.calls) == ([1, 2], [])


def test_a_channel_that_is_new_is_used_by_who_waits_already(pool):
    tape, held = Tape(), Held()
    tape.doing = held
    pool.init(tape)
    busy = Caller(pool)
    assert held.begun.acquire(timeout=10)
    plain, choosy = queue_up(pool, [1]) + queue_up(pool, [2], where=lambda info: True)
    fresh = Tape()
    pool.init(fresh)
    assert (plain.outcome(), choosy.outcome()) == (1, 2)
    assert fresh.calls == [1, 2]
    held.may_end.release()
    busy.outcome()


def test_calls_waiting_for_one_that_is_taken_out_by_a_filter_go_elsewhere(pool):
    tape, held = Tape(), Held()
    tape.doing = held
    pool.init(tape)
    running = Caller(pool, "running")
    assert held.begun.acquire(timeout=10)
    waiting = queue_up(pool, [1, 2])
    popped: list[list[ChannelInfo]] = []
    popper = threading.Thread(target=lambda: popped.append(pool.pop(resource=RESOURCE)))
    popper.start()
    assert [type(each.outcome()) for each in waiting] == [NoResourceError] * 2
    assert popper.is_alive()  # the call that runs is waited for
    held.may_end.release()
    popper.join(10)
    assert running.outcome() == "running"
    assert [info.channel for info in popped[0]] == [tape]
    assert tape.is_open


# -- time


def test_waiting_ends_in_time_and_the_call_is_not_made(pool):
    tape, held = Tape(), Held()
    tape.doing = held
    pool.init(tape)
    running = Caller(pool, 1)
    assert held.begun.acquire(timeout=10)
    with pytest.raises(
        CallTimeoutError, match=r"pool 'tapes': 'get' of 'clock' .* 1 busy; 0 others wait"
    ) as caught:
        pool.call(RESOURCE, "get", 2, timeout=0.02)
    assert isinstance(caught.value, TimeoutError)
    assert n_waiting(pool) == 0
    held.may_end.release()
    running.outcome()
    assert tape.calls == [1]


@pytest.mark.parametrize("timeout", [0, 0.02])
def test_who_has_waited_in_vain_is_told_how_many_others_wait(pool, timeout):
    tape, held = Tape(), Held()
    tape.doing = held
    pool.init(tape)
    callers = [Caller(pool)]
    assert held.begun.acquire(timeout=10)
    callers += queue_up(pool, [1, 2])
    with pytest.raises(CallTimeoutError, match="; 2 others wait"):
        pool.call(RESOURCE, "get", timeout=timeout)
    for caller in callers:
        held.may_end.release()
        caller.outcome()


def test_a_timeout_of_zero_takes_an_idle_channel_and_never_waits(pool):
    tape, held = Tape(), Held()
    pool.init(tape)
    assert pool.call(RESOURCE, "get", 1, timeout=0) == 1
    tape.doing = held
    running = Caller(pool)
    assert held.begun.acquire(timeout=10)
    with pytest.raises(CallTimeoutError):
        pool.call(RESOURCE, "get", timeout=0)
    held.may_end.release()
    running.outcome()


@pytest.mark.parametrize("timeout", [-1, math.inf, math.nan])
def test_a_timeout_that_is_none_is_refused(pool, timeout):
    pool.init(Tape())
    with pytest.raises(ConfigError, match="timeout"):
        pool.call(RESOURCE, "get", timeout=timeout)
    for end in (pool.close, partial(pool.pop, resource=RESOURCE), partial(pool.pop, 1)):
        with pytest.raises(ConfigError, match="timeout"):
            end(timeout=timeout)
    assert pool.call(RESOURCE, "get", 1) == 1


def test_a_channel_that_takes_a_timeout_is_given_what_is_left(clock):
    class Timed(Tape):
        def __init__(self):
            super().__init__()
            self.budgets = []

        def call(self, method, payload, timeout=17.0):
            self.budgets.append(timeout)
            return super().call(method, payload)

    with CallPool(clock=clock) as pool:
        tape = Timed()
        tape.opening = lambda: 2.0
        pool.init(tape)
        caller = queue_up(pool, [1], timeout=5)[0]
        clock.until_waiting(1)
        clock.advance(2)
        caller.outcome()
        pool.call(RESOURCE, "get", timeout=4)
        pool.call(RESOURCE, "get")
        assert tape.budgets == [3.0, 4, None]


# -- re-entry


def test_a_call_that_could_only_wait_for_itself_is_a_mistake(pool):
    tape = Tape()
    tape.doing = lambda method, payload: pool.call(RESOURCE, "get", timeout=5)
    pool.init(tape)
    with pytest.raises(UsageError, match="the very call"):
        pool.call(RESOURCE, "get")
    tape.doing = lambda method, payload: payload
    assert pool.call(RESOURCE, "get", 1) == 1


def test_a_call_within_a_call_uses_another_channel(pool):
    outer, inner = Tape(methods={"get"}), Tape(methods={"get", "set"})
    outer.doing = lambda method, payload: pool.call(RESOURCE, "set", payload + 1)
    pool.init(outer)
    pool.init(inner)
    assert pool.call(RESOURCE, "get", 1) == 2


def test_who_is_left_waiting_for_its_own_call_is_told_so(pool):
    outer, (other, held) = Tape(), closing_first()
    other.methods = {"get", "set"}
    outer.methods = {"get", "set"}
    pool.init(other)
    doomed = Caller(pool)
    assert held.begun.acquire(timeout=10)
    outer.doing = lambda method, payload: pool.call(RESOURCE, "set", timeout=10)
    pool.init(outer)
    nested = Caller(pool)
    until(lambda: n_waiting(pool) == 1)
    held.may_end.release()
    assert isinstance(nested.outcome(), UsageError)
    doomed.outcome()


def test_a_channel_cannot_be_taken_out_by_the_call_that_runs_on_it(pool):
    tape = Tape()
    id = pool.init(tape)
    tape.doing = lambda method, payload: pool.pop(id)
    with pytest.raises(UsageError, match="taken out by the very thread"):
        pool.call(RESOURCE, "get")
    tape.doing = lambda method, payload: payload
    assert pool.call(RESOURCE, "get", 1) == 1


@pytest.mark.parametrize("moment", ["close", "open again", ChannelClosed, ChannelOpened])
def test_a_channel_cannot_be_taken_out_from_within_its_opening_or_its_close_or_a_listener_told_of_it(
    pool, moment
):
    tape, refused = Tape(), []
    pool.init(tape, revive=True)

    def break_down(method, payload):
        raise ChannelClosedError("over")

    def take_out(*_: object) -> None:
        if not refused:
            with pytest.raises(UsageError, match="taken out by the very thread") as caught:
                pool.pop(resource=RESOURCE, timeout=10)
            refused.append(caught.value)

    tape.closing = take_out if moment == "close" else tape.closing
    tape.opening = take_out if moment == "open again" else tape.opening
    if isinstance(moment, type):
        pool.listen(take_out, moment)
    tape.doing = break_down
    with pytest.raises(ChannelClosedError):
        pool.call(RESOURCE, "get")
    until(lambda: refused and pool.resources() == [RESOURCE])
    assert (tape.opens, tape.closes) == (2, 1)


def test_a_listener_that_takes_a_new_channel_out_too_early_is_told(pool, caplog):
    pool.listen(lambda event: pool.pop(event.id, timeout=10), ChannelOpened)
    id = pool.init(Tape())
    assert "taken out by the very thread" in caplog.text
    assert pool.pop(id).state is ChannelState.IDLE


# -- errors


def test_an_error_reaches_its_caller_as_it_is_and_the_channel_goes_on(pool):
    tape, error = Tape(), ValueError("mine")

    def fail(method: object, payload: object) -> None:
        raise error

    tape.doing = fail
    id = pool.init(tape)
    with pytest.raises(ValueError, match="mine") as caught:
        pool.call(RESOURCE, "get")
    assert caught.value is error
    assert error.__cause__ is error.__context__ is None
    tape.doing = lambda method, payload: payload
    assert pool.call(RESOURCE, "get", 1) == 1
    assert pool.info(id).stats["get"].count == 2


@pytest.mark.parametrize("verdict", [True, False])
def test_a_channel_may_say_which_errors_are_its_end(pool, verdict):
    class Choosy(Tape):
        def is_fatal(self, error):
            assert isinstance(error, ValueError)
            return verdict

    tape = Choosy()
    tape.doing = lambda method, payload: int("x")
    pool.init(tape)
    with pytest.raises(ValueError, match="invalid literal"):
        pool.call(RESOURCE, "get")
    assert pool.is_empty(RESOURCE) is verdict
    assert tape.closes == verdict


def test_a_channel_that_cannot_say_it_is_closed_and_the_caller_sees_its_own_error(pool, caplog):
    class Broken(Tape):
        def is_fatal(self, error):
            raise KeyError("is_fatal")

    tape = Broken()
    tape.doing = lambda method, payload: int("x")
    pool.init(tape)
    with pytest.raises(ValueError, match="invalid literal"):
        pool.call(RESOURCE, "get")
    assert tape.closes == 1
    assert "is_fatal of channel 1 failed" in caplog.text


def test_an_interrupt_while_a_channel_is_asked_closes_it_though_the_interrupt_is_kept(pool):
    class Slow(Tape):
        def is_fatal(self, error):
            raise KeyboardInterrupt

    tape = Slow()
    tape.doing = lambda method, payload: int("x")
    pool.init(tape)
    with pytest.raises(KeyboardInterrupt) as caught:
        pool.call(RESOURCE, "get")
    assert tape.closes == 1
    assert caught.value


def test_an_interrupt_in_a_call_closes_the_channel_and_the_next_in_the_queue_moves_on(pool):
    first, held = Tape(), Held()
    held.result = KeyboardInterrupt()
    first.doing = held
    pool.init(first)
    struck = Caller(pool)
    assert held.begun.acquire(timeout=10)
    waiting = queue_up(pool, [1])[0]
    second = Tape()
    second.opening = lambda: 0.02
    pool.init(second)
    held.may_end.release()
    assert isinstance(struck.outcome(), KeyboardInterrupt)
    assert waiting.outcome() == 1
    assert (first.closes, second.calls) == (1, [1])


def test_a_filter_that_fails_fails_its_call_and_no_other(pool):
    pool.init(Tape())
    with pytest.raises(ZeroDivisionError):
        pool.call(RESOURCE, "get", where=lambda info: 1 // 0)
    assert pool.call(RESOURCE, "get", 1) == 1


def test_a_filter_may_use_the_pool(pool):
    id = pool.init(Tape())
    assert pool.call(RESOURCE, "get", 1, where=lambda info: pool.info(id).extra is None) == 1


def test_what_a_clock_that_stands_still_cannot_say_a_wait_does(pool):
    """A wait that is over ends the call, whatever the clock says."""

    class Frozen(FakeClock):
        def wait(self, gate, timeout):
            return gate.acquire(timeout=0.01)

    with CallPool(clock=Frozen()) as frozen:
        tape = Tape()
        tape.opening = lambda: 100.0
        frozen.init(tape)
        with pytest.raises(CallTimeoutError):
            frozen.call(RESOURCE, "get", timeout=5)


def test_a_method_without_a_hash_fails_its_call_and_no_other(pool):
    seen: list[int] = []

    class Foul:
        def __hash__(self) -> int:
            seen.append(n_waiting(pool))
            raise TypeError

    tape, held = Tape(), Held()
    tape.doing = held
    pool.init(tape)
    running = Caller(pool, 1)
    assert held.begun.acquire(timeout=10)
    with pytest.raises(ConfigError, match=r"method must be hashable, got <.*Foul object"):
        pool.call(RESOURCE, Foul())
    assert seen == [0]  # in the queue, others would come upon it
    held.may_end.release()
    assert running.outcome() == 1


def test_a_key_without_a_hash_is_named_and_leaves_the_channels_as_they_were(pool):
    tape = Tape()
    pool.init(tape)
    with pytest.raises(ConfigError, match=r"resource must be hashable, got \['clock'\]"):
        pool.call([RESOURCE], "get")
    for resource in ([RESOURCE], {}):
        with pytest.raises(ConfigError, match="resource"):
            pool.pop(resource=resource)
        with pytest.raises(ConfigError, match="resource"):
            pool.map(resource, lambda info: info)
        with pytest.raises(ConfigError, match="resource"):
            pool.update(resource, lambda info: info)
    odd = Tape([RESOURCE])
    with pytest.raises(ConfigError, match="resource"):
        pool.init(odd)
    assert not odd.is_open
    for _ in range(2):  # with the channel idle: on the fast path, which has it in hand by then
        with pytest.raises(ConfigError, match=r"method must be hashable, got \['get'\]"):
            pool.call(RESOURCE, ["get"])
        assert pool._switch.ledger.lost == deque()
        assert pool.call(RESOURCE, "get", 1, timeout=0.1) == 1
    assert tape.opens == 1


class Interrupted(Exception):
    """What a signal handler raises."""


def test_who_waits_is_served_though_a_signal_handler_raises_just_before_the_last_look_who_waits(pool):
    waiting: list[Caller] = []

    class Idle(deque):
        def append(self, key):
            if not waiting:
                waiting.append(queue_up(pool, [2])[0])  # it comes after who has the key has looked who waits
                super().append(key)
                raise Interrupted
            super().append(key)

    pool.init(Tape())
    line = pool._switch.ledger.lines[1]
    pool.call(RESOURCE, "get")
    line.idle = line.resource.idle = pool._idle[RESOURCE] = Idle(line.idle)
    with pytest.raises(Interrupted):
        pool.call(RESOURCE, "get", 1)
    assert waiting[0].outcome() == 2


# -- changes while calls wait


def test_who_waits_for_a_method_that_is_taken_away_is_told_so(pool):
    tape, held = Tape(), Held()
    tape.doing = held
    pool.init(tape)
    running = Caller(pool)
    assert held.begun.acquire(timeout=10)
    waiting = queue_up(pool, [1])[0]
    pool.update(RESOURCE, lambda info: attrs.evolve(info, methods={"set"}))
    assert isinstance(waiting.outcome(), MethodNotSupportedError)
    held.may_end.release()
    running.outcome()


def test_an_idle_channel_can_be_sent_to_rest(clock):
    with CallPool(clock=clock) as pool:
        pool.init(Tape())
        pool.update(RESOURCE, lambda info: attrs.evolve(info, rest_left=5.0))
        with pytest.raises(CallTimeoutError):
            pool.call(RESOURCE, "get", timeout=0)
        clock.advance(5)
        assert pool.call(RESOURCE, "get", 1, timeout=0) == 1
