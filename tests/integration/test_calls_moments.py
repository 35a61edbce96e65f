"""Calls and channels at the moments between two steps, each brought about on purpose."""

from __future__ import annotations

import gc
import math
import threading
from collections import deque
from collections.abc import Callable, Iterator

import attrs
import pytest

import connpool.calls.farewells
import connpool.calls.line
import connpool.calls.office
import connpool.calls.queueing
from connpool import (
    CallEnded,
    CallPool,
    CallStarted,
    CallTimeoutError,
    ChannelClosed,
    ChannelInfo,
    ChannelOpened,
    ChannelState,
    CloseReason,
    NoResourceError,
    PoolClosedError,
    Reply,
    UnknownChannelError,
)
from connpool.calls.changes import Change
from connpool.calls.ledger import Ledger
from connpool.calls.line import Phase
from connpool.calls.resource import Resource
from connpool.calls.tickets import Ticket
from connpool.testing import FakeClock
from tests.helpers.channels import RESOURCE, Caller, Held, Tape, n_waiting, queue_up
from tests.helpers.interrupts import SignalStrike, at_every_bytecode
from tests.helpers.switchboard import until


@pytest.fixture
def pool() -> Iterator[CallPool]:
    with CallPool("tapes") as made:
        yield made


class Shelf(deque):
    """Where idle keys lie, with things that happen just before and after the first is laid down."""

    deeds: Iterator[Callable[[], object]] = iter(())

    def append(self, key):
        next(self.deeds, int)()
        super().append(key)
        next(self.deeds, int)()


def when_laid_down(pool: CallPool, *deeds: Callable[[], object]) -> None:
    """Have *deeds* done just before a channel comes back, and between that and the look who waits for it."""
    ledger = pool._switch.ledger
    resource = ledger.resources[RESOURCE]
    shelf = Shelf(resource.idle)
    resource.idle = ledger.idle[RESOURCE] = ledger.lines[1].idle = shelf
    shelf.deeds = iter(deeds)


# -- a channel comes back


def test_who_comes_between_the_return_of_a_channel_and_the_look_who_waits_goes_last(pool):
    tape = Tape()
    pool.init(tape)
    callers: list[Caller] = []

    def come_later() -> None:
        callers.append(Caller(pool, "later"))
        until(lambda: len(tape.calls) == 3)

    when_laid_down(pool, lambda: callers.extend(queue_up(pool, ["late"])), come_later)
    pool.call(RESOURCE, "get", "early")
    assert tape.calls == ["early", "late", "later"]
    assert [caller.outcome() for caller in callers] == ["late", "later"]


def test_an_interrupt_between_the_return_of_a_channel_and_the_look_who_waits_forgets_nobody(pool):
    callers: list[Caller] = []
    tape = Tape()
    pool.init(tape)

    def strike() -> None:
        raise KeyboardInterrupt

    when_laid_down(pool, lambda: callers.extend(queue_up(pool, ["late"])), strike)
    with pytest.raises(KeyboardInterrupt):
        pool.call(RESOURCE, "get", "early")
    assert callers[0].outcome() == "late"
    assert tape.closes == 0


@pytest.mark.parametrize("revive", [False, "force"])
def test_a_channel_that_comes_back_in_the_moment_in_which_its_pool_is_closed_is_closed_too(pool, revive):
    tape = Tape()
    pool.init(tape, revive=revive)
    when_laid_down(pool, pool.close)
    assert pool.call(RESOURCE, "get", 1) == 1
    until(lambda: tape.closes == 1)
    assert not pool._switch.ledger.lines
    assert tape.attempts == 1


def test_a_channel_that_is_passed_on_in_the_moment_in_which_its_pool_is_closed_is_closed_too(pool):
    class Late:
        """A switch whose pool is closed just before a key is passed on."""

        def __init__(self, switch) -> None:
            self._switch = switch

        def __getattr__(self, name):
            return getattr(self._switch, name)

        def pass_on(self, key):
            assert pool.close() == 1
            self._switch.pass_on(key)

    tape, held = Tape(), Held()
    tape.doing = held
    pool.init(tape)
    line = pool._switch.ledger.lines[1]
    running = Caller(pool, 1)
    assert held.begun.acquire(timeout=10)
    waiting = queue_up(pool, [2])[0]
    line.switch = Late(line.switch)
    held.may_end.release()
    assert running.outcome() == 1
    assert isinstance(waiting.outcome(), PoolClosedError)
    until(lambda: tape.closes == 1)
    assert not pool._switch.ledger.lines


def test_a_channel_that_another_call_takes_in_the_moment_in_which_it_is_found_is_not_used_twice(pool):
    class Rival(deque):
        """Somebody on the fast path takes the first key just after the others were told of it."""

        def __iter__(self):
            found = [*super().__iter__()]
            taken.append(self.popleft())
            return iter(found)

    taken: list[object] = []
    tape = Tape()
    pool.init(tape)
    ledger = pool._switch.ledger
    resource, idle = ledger.resources[RESOURCE], ledger.idle[RESOURCE]
    resource.idle = Rival(idle)
    with pytest.raises(CallTimeoutError):
        pool.call(RESOURCE, "get", where=lambda info: True, timeout=0)
    assert tape.calls == []
    assert [key.line.channel for key in taken] == [tape]
    resource.idle = idle


def test_whose_filter_takes_long_keeps_its_place(pool):
    def slow(info: ChannelInfo) -> bool:
        callers.extend(queue_up(pool, ["quick"]))
        return True

    tape, held = Tape(), Held()
    tape.doing = held
    pool.init(tape)
    callers = [Caller(pool, "running")]
    assert held.begun.acquire(timeout=10)
    callers.append(Caller(pool, "slow", where=slow))
    until(lambda: n_waiting(pool) == 2)
    for _ in range(3):
        held.may_end.release()
    for caller in callers:
        caller.outcome()
    assert tape.calls == ["running", "slow", "quick"]


# -- a channel is new


def test_a_channel_that_is_new_between_a_filters_look_and_its_calls_queueing_up_is_used(pool, monkeypatch):
    class Stub(connpool.calls.queueing.Stub):
        def __init__(self, *args: object) -> None:
            monkeypatch.undo()
            pool.init(fresh, extra="good")
            super().__init__(*args)

    fresh = Tape()
    pool.init(Tape(), extra="bad")
    monkeypatch.setattr(connpool.calls.queueing, "Stub", Stub)
    assert pool.call(RESOURCE, "get", 1, where=lambda info: info.extra == "good", timeout=5) == 1
    assert fresh.calls == [1]


def test_a_channel_that_learns_a_method_is_used_by_who_waits_for_it_with_a_filter(pool):
    tape, held = Tape(), Held()
    tape.doing = held
    pool.init(tape)
    pupil = Tape(methods={"set"})
    pool.init(pupil, extra="pupil")
    running = Caller(pool, 1)
    assert held.begun.acquire(timeout=10)
    waiting = queue_up(pool, [2], where=lambda info: True)[0]
    pool.update(
        RESOURCE, lambda info: attrs.evolve(info, methods={"get"}), lambda info: info.extra == "pupil"
    )
    assert waiting.outcome() == 2
    assert pupil.calls == [2]
    held.may_end.release()
    assert running.outcome() == 1


def test_a_waiting_thread_whose_signal_handler_adds_a_channel_uses_it_after_its_rest():
    class Signalled(FakeClock):
        """Has a signal handler run on the first thread that waits."""

        def wait(self, gate, timeout):
            if handlers:
                handlers.pop()()
            return super().wait(gate, timeout)

    clock = Signalled()
    with CallPool(clock=clock) as pool:
        tape, fresh, held = Tape(), Tape(), Held()
        tape.doing = held
        fresh.opening = lambda: 5.0
        handlers = [lambda: pool.init(fresh)]
        pool.init(tape)
        running = Caller(pool, 1)
        assert held.begun.acquire(timeout=10)
        waiting = queue_up(pool, [2])[0]
        until(lambda: not handlers)
        clock.until_waiting(1)
        clock.advance(5)
        until(lambda: fresh.calls == [2], "the call")
        held.may_end.release()
        assert [running.outcome(), waiting.outcome()] == [1, 2]


def test_a_pool_that_closes_just_when_a_channel_is_put_in_leaves_that_to_its_owner(pool, monkeypatch):
    def offer(line, methods):
        offered(line, methods)
        pool.close()

    offered = connpool.calls.line.Line.offer
    monkeypatch.setattr(connpool.calls.line.Line, "offer", offer)
    tape = Tape()
    tape.open()
    with pytest.raises(PoolClosedError):
        pool.put(ChannelInfo(tape))
    assert tape.is_open


# -- what an interrupt drops


def dropped(pool: CallPool) -> None:
    """Drop the key of the channel that is idle, as an interrupt would."""
    pool._switch.ledger.idle[RESOURCE].popleft()


def test_a_channel_that_was_dropped_before_its_call_had_begun_serves_the_next_call(still):
    tape = Tape()
    still.init(tape)
    dropped(still)
    assert still.call(RESOURCE, "get", 1, timeout=0) == 1
    assert tape.closes == 0


def test_a_channel_that_was_dropped_is_found_though_who_had_it_in_hand_before_still_waits(still):
    """A call that takes a channel which cannot serve it must let go of that before it waits for another."""
    useless, tape, held = Tape(methods={"get"}), Tape(methods={"set"}), Held()
    tape.doing = held
    still.init(useless)
    still.init(tape)
    running = Caller(still, 0, method="set")
    assert held.begun.acquire(timeout=10)
    waiting = queue_up(still, [1], method="set")[0]
    dropped(still)
    assert still.call(RESOURCE, "get", 2, timeout=0) == 2
    held.may_end.release()
    held.may_end.release()
    assert (running.outcome(), waiting.outcome()) == (0, 1)


def test_a_channel_that_was_dropped_in_the_midst_of_a_call_is_closed(still):
    reasons = []
    still.listen(lambda event: reasons.append(event.reason), ChannelClosed)
    tape = Tape()
    still.init(tape)
    key = still._switch.ledger.idle[RESOURCE].popleft()
    key.line.run = threading.get_ident(), "get", still._now()
    del key
    still.sweep()
    until(lambda: tape.closes == 1)
    until(lambda: reasons == [CloseReason.LOST])
    with pytest.raises(NoResourceError):
        still.call(RESOURCE, "get")


def test_a_channel_that_was_dropped_is_found_by_who_waits_for_it(still):
    tape = Tape()
    still.init(tape)
    key = still._switch.ledger.idle[RESOURCE].popleft()
    waiting = queue_up(still, [1])[0]
    assert key.line.waiting
    del key
    assert waiting.outcome() == 1


def test_a_channel_that_a_call_has_in_hand_without_any_use_for_it_when_its_pool_is_closed_is_closed(still):
    class Method:
        def __hash__(self) -> int:
            if still._switch.is_wanted():
                still.close()
            return 0

    tape = Tape()
    still.init(tape)
    with pytest.raises(PoolClosedError):
        still.call(RESOURCE, Method())
    until(lambda: tape.closes == 1)


def test_a_call_that_finds_a_channel_dropped_in_the_midst_of_another_has_it_closed(still):
    lost, tape = Tape(), Tape()
    still.init(lost)
    key = still._switch.ledger.idle[RESOURCE].popleft()
    key.line.run = threading.get_ident(), "get", still._now()
    del key
    still.init(tape)
    assert still.call(RESOURCE, "get", 1, where=lambda info: True) == 1
    until(lambda: lost.closes == 1)


def test_a_channel_that_was_condemned_when_an_interrupt_struck_is_closed_by_the_next_turn(still):
    tape = Tape()
    id = still.init(tape)
    still._switch.ledger.lines[id].condemn(CloseReason.TERMINATED)
    assert still.sweep() == 1
    until(lambda: tape.closes == 1)


def test_a_call_whose_leaving_was_interrupted_is_found_by_the_next_that_waits(still, monkeypatch):
    def strike(*_: object) -> None:
        monkeypatch.undo()
        raise KeyboardInterrupt

    still.init(Tape())
    monkeypatch.setattr(connpool.calls.queueing, "withdraw", strike)
    with pytest.raises(KeyboardInterrupt):
        still.call(RESOURCE, "unknown")
    gc.collect()
    assert n_waiting(still) == 1
    assert still.call(RESOURCE, "get", 1, where=lambda info: True) == 1
    assert n_waiting(still) == 0


def test_a_channel_on_its_way_out_when_an_interrupt_strikes_is_closed(still, monkeypatch):
    def strike(resource: object, now: float) -> None:
        if not tape_is_in():
            monkeypatch.undo()
            raise KeyboardInterrupt
        serve(resource, now)

    def tape_is_in() -> bool:
        return any(line.phase is not Phase.GONE for line in lines)

    tape = Tape()
    still.init(tape)
    lines = list(still._switch.ledger.lines.values())
    serve = still._switch.ledger.serve
    monkeypatch.setattr(still._switch.ledger, "serve", strike)
    with pytest.raises(KeyboardInterrupt):
        still.pop(resource=RESOURCE)
    until(lambda: tape.closes == 1)
    assert still.is_empty(RESOURCE)


# -- who leaves with something in hand


def test_what_a_leaver_has_in_hand_goes_to_who_waits(still, clock):
    """Two are taken out; one of them is free, for the other one waits in vain."""
    tapes, helds = [Tape(), Tape(), Tape()], [None, Held(), Held()]
    callers = []
    for n, (tape, held) in enumerate(zip(tapes, helds, strict=True)):
        still.init(tape, extra=n)
        if held is not None:
            tape.doing = held
            callers.append(Caller(still, n, where=lambda info, n=n: info.extra == n))
            assert held.begun.acquire(timeout=10)
    outcome: list[object] = []

    def take_out() -> None:
        try:
            still.pop(resource=RESOURCE, where=lambda info: info.extra < 2, timeout=5)
        except CallTimeoutError as error:
            outcome.append(error)

    popper = threading.Thread(target=take_out)
    popper.start()
    clock.until_waiting(1)
    waiting = queue_up(still, ["waiting"])[0]  # for the third
    clock.advance(5)
    popper.join(10)
    assert len(outcome) == 1
    assert waiting.outcome() == "waiting"
    assert tapes[0].calls == ["waiting"]
    for held in helds[1:]:
        held.may_end.release()
    assert [caller.outcome() for caller in callers] == [1, 2]


# -- a rest


class CountingClock(FakeClock):
    n_waits = 0

    def wait(self, gate, timeout):
        self.n_waits += 1
        return super().wait(gate, timeout)


def test_who_waits_for_a_rest_that_is_made_longer_sleeps_on():
    clock = CountingClock()
    with CallPool(clock=clock) as pool:
        tape = Tape()
        tape.opening = lambda: 10.0
        pool.init(tape)
        caller = queue_up(pool, [1])[0]
        clock.until_waiting(1)
        pool.update(RESOURCE, lambda info: attrs.evolve(info, rest_left=30.0))
        n_waits = clock.n_waits
        clock.advance(10)
        until(lambda: clock.n_waits > n_waits)
        clock.until_waiting(1)
        assert caller.is_alive()
        clock.advance(20)
        assert caller.outcome() == 1
        assert clock.n_waits < 10  # it did not spin


def test_a_channel_that_is_sent_to_rest_during_its_call_rests_after_it(still, clock):
    tape, held = Tape(), Held()
    tape.doing = held
    id = still.init(tape)
    running = Caller(still, 1)
    assert held.begun.acquire(timeout=10)
    waiting = queue_up(still, [2])[0]
    still.update(RESOURCE, lambda info: attrs.evolve(info, rest_left=5.0))
    held.may_end.release()
    assert running.outcome() == 1
    assert still.info(id).state is ChannelState.RESTING
    held.may_end.release()
    clock.until_waiting(1)
    clock.advance(5)
    assert waiting.outcome() == 2


def test_an_answer_of_a_kind_of_its_own_rests_the_channel_too(still):
    @attrs.frozen
    class Meter(Reply):
        unit: str = "V"

    tape = Tape()
    tape.doing = lambda method, payload: Meter(payload, retry_after=5.0)
    id = still.init(tape)
    assert still.call(RESOURCE, "get", 1) == 1
    assert still.info(id).rest_left == 5.0


# -- changes


def test_a_method_that_is_taken_away_from_a_call_that_was_given_its_channel_is_still_done(still):
    def take_away(event: CallStarted) -> None:
        still.update(RESOURCE, lambda info: attrs.evolve(info, methods={"set"}))

    tape = Tape()
    id = still.init(tape)
    still.listen(take_away, CallStarted)
    assert still.call(RESOURCE, "get", 1) == 1
    assert still.info(id).methods == {"set"}
    assert still.info(id).stats == {}
    assert tape.closes == 0


def test_an_update_that_others_were_quicker_than_begins_again(still):
    id = still.init(Tape(), extra=0)
    seen = []

    def count(info):
        if not seen:
            still.extra(id, 10)
        seen.append(info.extra)
        return attrs.evolve(info, extra=info.extra + 1)

    still.update(RESOURCE, count)
    assert seen == [0, 10]
    assert still.info(id).extra == 11


def test_of_two_updates_at_once_the_slower_begins_again(still):
    id = still.init(Tape(), extra=0)
    seen = []

    def count(info):
        seen.append(info.extra)
        if len(seen) == 1:
            still.update(RESOURCE, lambda info: attrs.evolve(info, extra=info.extra + 10))
        return attrs.evolve(info, extra=info.extra + 1)

    still.update(RESOURCE, count)
    assert seen == [0, 10]
    assert still.info(id).extra == 11


def test_a_resource_whose_last_channel_goes_while_a_call_is_refused_is_forgotten(pool, monkeypatch):
    def is_still_waiting(ticket: Ticket) -> bool:
        if pool._switch.is_inside():
            pass
        elif ticket.line is not None and not callers:
            callers.append(Caller(pool))
            assert is_refused.wait(10)
        elif ticket.line is None:
            is_refused.set()
            assert has_gone.wait(10)
        return is_waiting(ticket)

    id = pool.init(Tape())
    callers: list[Caller] = []
    is_refused, has_gone = threading.Event(), threading.Event()
    is_waiting = Ticket.is_waiting
    monkeypatch.setattr(Ticket, "is_waiting", is_still_waiting)
    pool.pop(id)
    has_gone.set()
    assert isinstance(callers[0].outcome(), NoResourceError)
    assert pool._switch.ledger.resources == pool._switch.ledger.idle == {}


# -- the way in and the way out


def test_an_interrupt_while_a_new_channel_is_told_of_closes_it_for_good(still):
    def strike(event: ChannelOpened) -> None:
        raise KeyboardInterrupt

    stop = still.listen(strike, ChannelOpened)
    tape = Tape()
    with pytest.raises(KeyboardInterrupt):
        still.init(tape, revive="force")
    stop()
    until(lambda: tape.closes == 1)
    until(lambda: not still._switch.ledger.lines)
    still.sweep()
    assert tape.attempts == 1
    with pytest.raises(NoResourceError):
        still.call(RESOURCE, "get")


def test_an_interrupt_while_the_beginning_of_a_call_is_told_of_costs_no_channel(still):
    def strike(event: CallStarted) -> None:
        raise KeyboardInterrupt

    tape = Tape()
    still.init(tape)
    stop = still.listen(strike, CallStarted)
    with pytest.raises(KeyboardInterrupt) as caught:  # which keeps all that lies on its way
        still.call(RESOURCE, "get")
    stop()
    assert still.call(RESOURCE, "get", 1, where=lambda info: True, timeout=0) == 1
    assert (tape.calls, tape.closes) == ([1], 0)
    del caught


def test_an_interrupt_while_the_end_of_a_call_is_told_of_costs_no_channel(still):
    def strike(event: CallEnded) -> None:
        raise KeyboardInterrupt

    tape = Tape()
    still.init(tape)
    stop = still.listen(strike, CallEnded)
    with pytest.raises(KeyboardInterrupt):
        still.call(RESOURCE, "get")
    stop()
    assert still.call(RESOURCE, "get", 1) == 1
    assert tape.closes == 0


def test_a_pool_that_is_closing_takes_no_call_although_a_channel_is_idle(pool, monkeypatch):
    real, tried = connpool.calls.office.drain, []

    def drain(*args: object) -> None:
        real(*args)
        with pytest.raises(PoolClosedError):
            pool.call(RESOURCE, "get")
        tried.append(True)

    monkeypatch.setattr(connpool.calls.office, "drain", drain)
    tape = Tape()
    pool.init(tape)
    assert pool.close(5) == 0
    assert tried
    assert tape.calls == []


def test_a_call_may_close_the_pool_and_give_the_others_time(pool):
    tape, other, held = Tape(), Tape("other"), Held()
    other.doing = held
    pool.init(tape)
    pool.init(other)
    running = threading.Thread(target=lambda: pool.call("other", "get"))
    running.start()
    assert held.begun.acquire(timeout=10)

    def close(method: object, payload: object) -> int:
        held.may_end.release()
        return pool.close(5)

    tape.doing = close
    assert pool.call(RESOURCE, "get") == 1  # that call itself
    running.join(10)
    assert (tape.closes, other.closes) == (1, 1)


def test_a_channel_that_was_closed_under_its_call_is_not_closed_again(pool, caplog):
    tape, held = Tape(), Held()
    tape.doing = held
    pool.init(tape)
    running = Caller(pool, 1)
    assert held.begun.acquire(timeout=10)
    assert pool.close(0.01) == 1
    until(lambda: tape.closes == 1)
    held.may_end.release()
    assert running.outcome() == 1
    until(lambda: not pool._switch.ledger.lines)
    assert tape.closes == 1
    assert caplog.text == ""


def test_of_channels_to_be_opened_again_four_are_at_a_time_and_none_once_the_pool_is_closed(still, clock):
    def fail(method: object, payload: object) -> object:
        return Reply(payload, retry_after=math.inf)

    class LaterError(Exception):
        retry_after = 1.0

    def later() -> None:
        raise LaterError

    gate, tapes = threading.Event(), [Tape() for _ in range(6)]
    for tape in tapes:
        tape.doing = fail
        still.init(tape, revive="force")
        tape.opening = later
    for _ in tapes:
        still.call(RESOURCE, "get")
    until(lambda: [info.failures for info in still.map(RESOURCE, lambda info: info)] == [1] * 6)
    for tape in tapes:
        tape.opening = lambda: gate.wait(10) and None
    clock.advance(1)
    still.sweep()
    until(lambda: sum(tape.attempts for tape in tapes) == 6 * 2 + 4)
    still.sweep()
    still.close()
    gate.set()
    until(lambda: not still._switch.ledger.lines)
    assert sum(tape.attempts for tape in tapes) == 6 * 2 + 4
    assert not any(tape.is_open for tape in tapes)


def test_of_channels_that_calls_have_closed_four_are_opened_again_at_a_time(pool):
    gate, tapes = threading.Event(), [Tape() for _ in range(6)]
    for tape in tapes:
        tape.doing = lambda method, payload: Reply(payload, retry_after=math.inf)
        pool.init(tape, revive="force")
        tape.opening = lambda: gate.wait(10) and None
    try:
        for _ in tapes:
            pool.call(RESOURCE, "get")
        until(lambda: sum(tape.attempts for tape in tapes) == 6 + 4)
    finally:
        gate.set()
    until(lambda: sum(tape.opens for tape in tapes) == 6 + 6)


def test_openings_that_hang_keep_no_other_channel_from_being_opened_again(still, clock):
    gate, begun, tapes = threading.Event(), threading.Semaphore(0), [Tape() for _ in range(5)]

    def hang() -> None:
        begun.release()
        gate.wait(60)

    for tape in tapes:
        tape.doing = lambda method, payload: Reply(payload, retry_after=math.inf)
        still.init(tape, revive="force")
    for tape in tapes[:-1]:
        tape.opening = hang
    try:
        for _ in tapes[:-1]:
            still.call(RESOURCE, "get")
            assert begun.acquire(timeout=10)
        still.call(RESOURCE, "get")
        until(lambda: still._switch.workers.openings)
        still.sweep()
        assert tapes[-1].attempts == 1
        clock.advance(5)
        still.sweep()
        until(lambda: tapes[-1].is_open)
    finally:
        gate.set()
    until(lambda: all(tape.is_open for tape in tapes) and len(still._switch.workers._free) == 4)


def test_while_a_channel_is_closed_calls_find_the_others_or_none(pool):
    gate, tape, other = threading.Event(), Tape(), Tape()
    tape.closing = lambda: gate.wait(10)
    tape.doing = lambda method, payload: Reply(payload, retry_after=math.inf)
    id = pool.init(tape, revive="force")
    try:
        assert pool.call(RESOURCE, "get", "bye") == "bye"
        assert pool.info(id).state is ChannelState.DOWN
        with pytest.raises(NoResourceError):
            pool.call(RESOURCE, "get", timeout=5)
        with pytest.raises(NoResourceError):
            pool.call(RESOURCE, "get", where=lambda info: True)
        pool.init(other)
        assert pool.call(RESOURCE, "get", 1) == 1
        assert pool.call(RESOURCE, "get", 2, where=lambda info: True) == 2
    finally:
        gate.set()
    until(lambda: tape.opens == 2)
    assert n_waiting(pool) == 0


def test_a_channel_that_was_closed_in_the_moment_in_which_it_is_taken_out_is_said_to_be_down(
    pool, monkeypatch
):
    def await_key(*args: object) -> None:
        waited_for(*args)
        pool.close(0)

    waited_for = connpool.calls.farewells._await_key
    monkeypatch.setattr(connpool.calls.farewells, "_await_key", await_key)
    tape = Tape()
    id = pool.init(tape)
    assert pool.pop(id).state is ChannelState.DOWN
    assert tape.closes == 1


def test_a_call_is_given_its_time_when_the_pool_closes_though_somebody_waits_to_take_its_channel_out(pool):
    tape, held = Tape(), Held()
    tape.doing = held
    id = pool.init(tape)
    running = Caller(pool, 1)
    assert held.begun.acquire(timeout=10)
    popped: list[ChannelInfo] = []
    popper = threading.Thread(target=lambda: popped.append(pool.pop(id)))
    popper.start()
    until(lambda: n_waiting(pool) == 1)
    left: list[int] = []
    closer = threading.Thread(target=lambda: left.append(pool.close(10)))
    closer.start()
    until(lambda: n_waiting(pool) == 2)
    assert tape.is_open
    held.may_end.release()
    for thread in (popper, closer):
        thread.join(10)
    assert running.outcome() == 1
    assert left == [0]
    assert [info.channel for info in popped] == [tape]  # who came first has it
    assert tape.is_open


def test_a_channel_that_goes_just_when_it_is_to_be_taken_out_is_not_waited_for(still, clock, monkeypatch):
    def take_out(*args, **options):
        clock.advance(5)
        still.sweep()
        until(lambda: not still._switch.ledger.lines)
        return taken_out(*args, **options)

    taken_out = connpool.calls.office.take_out
    monkeypatch.setattr(connpool.calls.office, "take_out", take_out)
    id = still.init(Tape(), ttl=5.0)
    with pytest.raises(UnknownChannelError):
        still.pop(id, timeout=5)
    still.init(Tape(), ttl=5.0)
    assert still.pop(resource=RESOURCE, timeout=5) == []


@pytest.mark.parametrize("is_put", [False, True])
def test_a_channel_that_comes_while_the_pool_is_closed_is_refused_and_not_kept(pool, is_put) -> None:
    tape = Tape()
    pool.listen(lambda _: pool.close(), ChannelOpened)  # after it was taken in, before it can be called
    if is_put:
        tape.open()
    with pytest.raises(PoolClosedError):
        pool.put(ChannelInfo(tape)) if is_put else pool.init(tape)
    until(lambda: tape.is_open is is_put, "its end, unless it is the caller's")
    assert pool.resources() == []


# -- Ctrl-C in the midst of a change


def test_an_interrupt_while_a_close_waits_for_calls_ends_the_wait_and_closes(monkeypatch):
    def strike(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(connpool.calls.office, "drain", strike)
    pool, tape, held, idle = CallPool(), Tape(methods={"get"}), Held(), Tape(methods={"set"})
    tape.doing = held
    pool.init(tape)
    pool.init(idle)
    running = Caller(pool, "running")
    assert held.begun.acquire(timeout=10)
    waiting = queue_up(pool, ["waiting"])[0]
    with pytest.raises(KeyboardInterrupt):
        pool.close(10)
    assert isinstance(waiting.outcome(), PoolClosedError)
    assert not idle.is_open
    held.may_end.release()
    assert running.outcome() == "running"
    until(lambda: not tape.is_open)


@pytest.mark.parametrize("is_new", [True, False])
def test_an_interrupt_as_another_channel_can_be_called_leaves_nobody_waiting(is_new):
    deeds = Change._apply_locked, Ledger.admit, Ledger.lay_down, Ledger.serve, Resource.take_for
    for strike in at_every_bytecode(*deeds, kind=SignalStrike):
        with CallPool(reap_interval=0.01) as pool:
            tape, other, held = Tape(), Tape(methods={"set"}), Held()
            tape.doing = held
            pool.init(tape)
            running = Caller(pool, "running")
            assert held.begun.acquire(timeout=10)
            if not is_new:
                pool.init(other)
            waiting = queue_up(pool, ["waiting"])[0]
            with strike:
                if is_new:
                    other.methods = {"get"}
                    pool.init(other)
                else:
                    pool.update(RESOURCE, lambda info: attrs.evolve(info, methods={"get"}))
            can = [info.methods for info in pool.map(RESOURCE, lambda info: info) if info.channel is other]
            if can == [{"get"}]:
                assert waiting.outcome() == "waiting"
            held.may_end.release()
            held.may_end.release()
            running.outcome()
            waiting.outcome()
