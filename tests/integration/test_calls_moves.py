"""Where waiting calls go when a channel expires, is taken out or comes back, and what they are told."""

from __future__ import annotations

import math
import threading
from http.client import HTTPConnection
from urllib.parse import urlsplit

import attrs
import pytest

from connpool import (
    CallPool,
    CallTimeoutError,
    ChannelClosedError,
    ChannelInfo,
    ChannelState,
    ConnectionPool,
    MethodNotSupportedError,
    NoResourceError,
    Reply,
    UnknownChannelError,
)
from connpool.testing import Answer, FakeClock, ScriptedServer
from tests.helpers.channels import RESOURCE, Caller, Held, Tape, TextChannel, n_waiting, queue_up, text_server
from tests.helpers.switchboard import until


def busy(pool: CallPool, payload: object, **options: object) -> tuple[Tape, Held, Caller]:
    """A channel, and a call that runs on it until the test lets it end."""
    tape, held = Tape(), Held()
    tape.doing = held
    pool.init(tape, **options)
    caller = Caller(pool, payload)
    assert held.begun.acquire(timeout=10)
    return tape, held, caller


# -- who waits moves on, in order


def test_calls_behind_one_that_expires_are_answered_by_another_in_order(still, clock):
    first, held, running = busy(still, "running", ttl=5.0)
    other, other_held, _ = busy(still, "elsewhere")
    waiting = queue_up(still, range(5))
    clock.advance(6)
    still.sweep()
    assert n_waiting(still) == 5
    for _ in range(6):
        other_held.may_end.release()
    assert [caller.outcome() for caller in waiting] == list(range(5))
    assert other.calls == ["elsewhere", *range(5)]
    held.may_end.release()
    assert running.outcome() == "running"
    until(lambda: first.closes == 1)


def test_calls_behind_one_that_is_taken_out_by_a_filter_are_answered_by_another_in_order(still):
    first, held, running = busy(still, "running", extra="mine")
    other, other_held, _ = busy(still, "elsewhere")
    waiting = queue_up(still, range(5))
    popped: list[ChannelInfo] = []
    popper = threading.Thread(
        target=lambda: popped.extend(still.pop(resource=RESOURCE, where=lambda info: info.extra == "mine"))
    )
    popper.start()
    until(lambda: n_waiting(still) == 6)
    held.may_end.release()
    popper.join(10)
    assert running.outcome() == "running"
    assert [info.channel for info in popped] == [first]
    assert first.calls == ["running"]
    for _ in range(6):
        other_held.may_end.release()
    assert [caller.outcome() for caller in waiting] == list(range(5))
    assert other.calls == ["elsewhere", *range(5)]
    first.close()


def test_who_waited_for_a_rest_before_it_was_taken_out_is_served_first(still, clock):
    tape = Tape()
    tape.opening = lambda: 10.0
    id = still.init(tape)
    waiting = queue_up(still, [1])[0]
    popped: list[ChannelInfo] = []
    popper = threading.Thread(target=lambda: popped.append(still.pop(id)))
    popper.start()
    clock.until_waiting(2)
    assert not popped
    clock.advance(10)
    assert waiting.outcome() == 1
    popper.join(10)
    assert popped[0].channel is tape
    tape.close()


def test_the_last_channel_that_offers_a_method_takes_those_with_it_who_wait_for_that(still):
    _, held, doomed = busy(still, "doomed")
    held.result = ChannelClosedError("gone")
    still.init(Tape(methods={"set"}))
    waiting = queue_up(still, [1])[0]
    held.may_end.release()
    assert isinstance(waiting.outcome(), MethodNotSupportedError)
    assert isinstance(doomed.outcome(), ChannelClosedError)


# -- the choice, told beforehand


def test_a_rest_that_is_left_counts_in_what_is_foreseen(still, clock):
    tapes = [Tape(), Tape()]
    for tape in tapes:
        tape.doing = lambda method, payload: clock.advance(2.0)
        still.init(tape)
    for _ in tapes:
        still.call(RESOURCE, "get")
    helds = [Held(), Held()]
    callers = []
    for tape, held in zip(tapes, helds, strict=True):
        tape.doing = held
        callers.append(Caller(still))
        assert held.begun.acquire(timeout=10)
    still.update(RESOURCE, lambda info: attrs.evolve(info, rest_left=5.0), where=lambda info: info.id == 1)
    callers += queue_up(still, range(3))  # waits of 7 here; of 2, 4 and 6 there
    assert [still.info(id).queued for id in (1, 2)] == [0, 3]
    callers += queue_up(still, range(1))  # 7 here, 8 there
    assert [still.info(id).queued for id in (1, 2)] == [1, 3]
    still.update(RESOURCE, lambda info: attrs.evolve(info, rest_left=0.0))
    for held in helds:
        for _ in range(6):
            held.may_end.release()
    for caller in callers:
        caller.outcome()


def test_a_channel_without_a_past_is_foreseen_to_be_like_the_others(still, clock):
    known, fresh = Tape(), Tape()
    known.doing = lambda method, payload: clock.advance(4.0)
    still.init(known)
    still.call(RESOURCE, "get")
    still.init(fresh)
    helds, callers = [Held(), Held()], []
    for tape, held in zip((known, fresh), helds, strict=True):
        tape.doing = held
        callers.append(Caller(still))
        assert held.begun.acquire(timeout=10)
    callers += queue_up(still, range(4))
    assert [still.info(id).queued for id in (1, 2)] == [2, 2]
    for held in helds:
        for _ in range(5):
            held.may_end.release()
    for caller in callers:
        caller.outcome()


def test_a_method_that_is_slow_on_one_channel_and_fast_on_another_is_done_by_the_fast_one(still, clock):
    """Each channel is good at one thing. Sixteen calls wait; the forecast and what happens agree."""
    tapes = [Tape(), Tape()]
    speeds = [{"get": 10.0, "set": 1.0}, {"get": 1.0, "set": 10.0}]
    ids = [still.init(tape) for tape in tapes]
    for tape, speed in zip(tapes, speeds, strict=True):
        tape.doing = lambda method, payload, speed=speed: clock.advance(speed[method])
        for method in speed:
            still.call(RESOURCE, method, where=lambda info, tape=tape: info.channel is tape)
    helds, callers = [Held(), Held()], []
    for tape, held in zip(tapes, helds, strict=True):
        tape.doing = held
        callers.append(Caller(still, "first"))
        assert held.begun.acquire(timeout=10)
    callers += queue_up(still, range(9))
    assert [still.info(id).queued for id in ids] == [0, 9]  # the first runs 10 s: nine are done by then
    for n in range(9):
        helds[1].may_end.release()
        until(lambda n=n: len(tapes[1].calls) == n + 4)
    for held in helds:
        held.may_end.release()
    for caller in callers:
        caller.outcome()
    assert [call for call in tapes[1].calls if isinstance(call, int)] == list(range(9))


# -- a channel comes back


def test_opening_again_may_ask_for_a_rest_too(still, clock):
    tape = Tape()
    id = still.init(tape, ttl=5.0, revive=True)
    tape.opening = lambda: 3.0
    clock.advance(5)
    still.sweep()
    until(lambda: still.resources() == [RESOURCE])
    assert still.info(id).state is ChannelState.RESTING
    with pytest.raises(CallTimeoutError):
        still.call(RESOURCE, "get", timeout=0)
    clock.advance(3)
    assert still.call(RESOURCE, "get", 1, timeout=0) == 1


def test_the_ttl_counts_anew_from_each_opening(still, clock):
    tape = Tape()
    still.init(tape, ttl=5.0, revive=True)
    clock.advance(7)
    still.sweep()
    until(lambda: still.resources() == [RESOURCE])
    clock.advance(4.9)
    assert still.call(RESOURCE, "get", 1) == 1
    assert still.sweep() == 0
    clock.advance(0.1)
    assert still.resources() == []
    assert still.sweep() == 1


def test_one_that_was_put_in_is_opened_again_with_what_its_info_says(still):
    tape = Tape()
    tape.open()
    id = still.put(ChannelInfo(tape, args=(1, "two"), revive=True, extra="kept", resource=RESOURCE))
    tape.doing = Held()
    tape.doing.result = ChannelClosedError("broken")
    tape.doing.may_end.release()
    with pytest.raises(ChannelClosedError):
        still.call(RESOURCE, "get")
    until(lambda: still.resources() == [RESOURCE])
    assert tape.opened == [(), (1, "two")]
    assert still.info(id).extra == "kept"


# -- over real servers


def test_a_channel_whose_server_dies_is_opened_again_at_the_next_one():
    with text_server() as first, text_server() as second:
        route = f"{first.endpoint} || {second.endpoint}"
        with ConnectionPool(route, max_size=2) as sockets, CallPool() as pool:
            pool.init(TextChannel(sockets), revive=True)
            assert pool.call(RESOURCE, "INC", 5) == "5"
            first.stop()
            first.kill()
            with pytest.raises(ChannelClosedError):
                pool.call(RESOURCE, "GET")
            until(lambda: pool.resources() == [RESOURCE])
            assert pool.call(RESOURCE, "GET") == "0"
            assert (first.accepts, second.accepts) == (1, 1)
            pool.close()


def test_a_channel_serves_until_its_ttl_is_over_and_a_fresh_one_beside_it_longer(still, clock):
    with text_server() as server, ConnectionPool(server.endpoint) as sockets:
        still.init(TextChannel(sockets), ttl=5.0)
        clock.advance(4)
        assert still.call(RESOURCE, "INC") == "1"
        still.init(TextChannel(sockets), ttl=5.0)
        clock.advance(1)
        assert still.call(RESOURCE, "GET") == "0"  # the fresh one's counter
        server.until_accepts(1).until_ended()
        clock.advance(4)
        with pytest.raises(NoResourceError):
            still.call(RESOURCE, "GET")
        assert still.resources() == []
        server.until_accepts(2).until_ended()
        until(lambda: sockets.stats().size == 0)


def test_the_first_call_after_the_ttl_finds_none_and_a_later_one_the_channel_opened_again(still, clock):
    with text_server() as server, ConnectionPool(server.endpoint) as sockets:
        channel, may_open = TextChannel(sockets), threading.Event()
        still.init(channel, ttl=5.0, revive=True)
        assert still.call(RESOURCE, "INC") == "1"
        clock.advance(5)
        reopen = channel.open
        channel.open = lambda: may_open.wait(10) and reopen()
        with pytest.raises(NoResourceError):
            still.call(RESOURCE, "GET")
        may_open.set()
        until(lambda: still.resources() == [RESOURCE])
        assert still.call(RESOURCE, "GET") == "0"
        assert server.accepts == 2
        still.close()


class Web:
    """A channel of one's own: HTTP over the standard library's connection, with mirrors."""

    methods = frozenset({"GET"})

    def __init__(self, *urls: str) -> None:
        self.resource = "web"
        self._urls = list(urls)
        self._conn: HTTPConnection | None = None

    def open(self) -> None:
        self._conn = HTTPConnection(urlsplit(self._urls[0]).netloc, timeout=5)

    def call(self, method: str, payload: str) -> object:
        self._conn.request(method, payload)
        answer = self._conn.getresponse()
        body = answer.read()
        if answer.status == 503:
            self._urls.append(self._urls.pop(0))  # the next one, when it is opened again
            return Reply(None, retry_after=math.inf)
        return body

    def close(self) -> None:
        self._conn.close()


def test_a_page_is_got_from_a_mirror_when_the_first_server_is_overloaded(still):
    def page(status: bytes, body: bytes) -> Answer:
        head = b"HTTP/1.1 " + status + b" X\r\nContent-Length: %d\r\n\r\n" % len(body)
        return Answer(head + body, delimiter=b"\r\n\r\n")

    with (
        ScriptedServer(script=page(b"503", b"")) as overloaded,
        ScriptedServer(script=page(b"200", b"hello")) as mirror,
    ):
        still.init(Web(*(f"http://{server.endpoint}/" for server in (overloaded, mirror))), revive="force")
        assert still.call("web", "GET", "/") is None
        until(lambda: still.resources() == ["web"])
        assert [still.call("web", "GET", "/") for _ in range(2)] == [b"hello"] * 2
        assert (overloaded.accepts, mirror.accepts) == (1, 1)
        still.close()


# -- what ends while somebody is at it


def test_a_channel_that_breaks_while_somebody_waits_to_take_it_out_is_handed_over_as_down(still):
    tape, held, running = busy(still, 1, revive="force")
    held.result = ChannelClosedError("gone")
    popped: list[ChannelInfo] = []
    popper = threading.Thread(target=lambda: popped.append(still.pop(1)))
    popper.start()
    until(lambda: n_waiting(still) == 1)
    held.may_end.release()
    popper.join(10)
    assert isinstance(running.outcome(), ChannelClosedError)
    assert popped[0].state is ChannelState.DOWN
    assert (tape.attempts, tape.closes) == (1, 1)
    assert not still._switch.ledger.lines


def reopening(still: CallPool, clock: FakeClock) -> tuple[Tape, threading.Event]:
    """A channel whose second opening hangs until an event is set, and then fails."""
    tape, gate = Tape(), threading.Event()

    def fail_later() -> None:
        gate.wait(10)
        raise ConnectionError("down")

    still.init(tape, ttl=5.0, revive=True)
    tape.opening = fail_later
    clock.advance(5)
    still.sweep()
    until(lambda: tape.attempts == 2)
    return tape, gate


def test_who_takes_a_channel_out_while_it_is_opened_again_in_vain_has_it_as_it_is(still, clock):
    tape, gate = reopening(still, clock)
    popped: list[ChannelInfo] = []
    popper = threading.Thread(target=lambda: popped.append(still.pop(1)))
    popper.start()
    until(lambda: n_waiting(still) == 1)
    gate.set()
    popper.join(10)
    assert (popped[0].channel, popped[0].state) == (tape, ChannelState.DOWN)
    clock.advance(100)
    still.sweep()
    assert tape.attempts == 2


def test_a_closed_pool_forgets_a_channel_that_cannot_be_opened_again(still, clock):
    _, gate = reopening(still, clock)
    assert still.close() == 0
    gate.set()
    until(lambda: not still._switch.ledger.lines)


def test_a_closed_pool_forgets_a_channel_that_is_down(still, clock):
    tape, gate = reopening(still, clock)
    gate.set()
    until(lambda: still.info(1).failures == 1)
    still.close()
    with pytest.raises(UnknownChannelError):
        still.info(1)
    clock.advance(100)
    still.sweep()
    assert tape.attempts == 2


def test_a_channel_that_has_expired_is_neither_shown_nor_changed_nor_taken_out(still, clock):
    old = still.init(Tape(), ttl=5.0)
    young = Tape()
    still.init(young)
    changed = []
    clock.advance(5)
    assert still.map(RESOURCE, lambda info: info.channel) == [young]
    still.update(RESOURCE, lambda info: changed.append(info.channel) or attrs.evolve(info, ttl=60.0))
    assert changed == [young]
    for look in (still.info, still.pop, lambda id: still.extra(id, "mine")):
        with pytest.raises(UnknownChannelError, match=f"no channel {old}"):
            look(old)
    assert [info.channel for info in still.pop(resource=RESOURCE)] == [young]


def test_a_channel_that_is_given_a_ttl_later_is_closed_without_any_traffic_too():
    with CallPool() as pool:
        tape = Tape()
        pool.init(tape)
        pool.update(RESOURCE, lambda info: attrs.evolve(info, ttl=0.05))
        until(lambda: tape.closes == 1)


def test_channels_that_were_not_taken_out_after_all_keep_their_turns(still, clock):
    tapes, last = [Tape() for _ in range(4)], Tape()
    for tape in [*tapes, last]:
        still.init(tape)
        still.call(RESOURCE, "get", None, where=lambda info, tape=tape: info.channel is tape)
        clock.advance(1)
    last.doing = held = Held()
    running = Caller(still, "running", where=lambda info: info.channel is last)
    assert held.begun.acquire(timeout=10)
    with pytest.raises(CallTimeoutError):
        still.pop(resource=RESOURCE, where=lambda info: info.channel not in tapes[2:], timeout=0)
    for number in range(4):
        still.call(RESOURCE, "get", number)
    assert [tape.calls[-1] for tape in tapes] == [0, 1, 2, 3]
    held.may_end.release()
    assert running.outcome() == "running"


def test_a_channel_whose_rest_is_over_or_was_changed_keeps_its_turn(still, clock):
    first, second = Tape(), Tape()
    first.doing = lambda method, payload: Reply(payload, retry_after=10.0 if payload == 1 else None)
    for tape in (first, second):
        still.init(tape)
    for number in (1, 2):
        still.call(RESOURCE, "get", number)
        clock.advance(5)
    still.sweep()
    still.call(RESOURCE, "get", 3)
    assert first.calls == [1, 3]
    still.update(RESOURCE, lambda info: attrs.evolve(info, rest_left=0.0), where=lambda info: info.id == 2)
    still.call(RESOURCE, "get", 4)
    assert second.calls == [2, 4]


def test_a_channel_that_leaves_during_an_update_is_not_changed(still):
    ids = [still.init(Tape()) for _ in range(2)]
    seen = []

    def change(info: ChannelInfo) -> ChannelInfo:
        seen.append(info.id)
        if info.id == ids[0]:
            still.pop(ids[1])
        return info

    still.update(RESOURCE, change)
    assert seen == ids[:1]


def test_an_update_that_takes_its_time_makes_no_rest_longer(still, clock):
    tape = Tape()
    tape.opening = lambda: 10.0
    id = still.init(tape)
    still.update(RESOURCE, lambda info: clock.advance(3) or attrs.evolve(info, extra="new"))
    assert (still.info(id).extra, still.info(id).rest_left) == ("new", 7.0)


def test_one_that_is_put_in_for_another_resource_is_called_there(still):
    id = still.init(Tape())
    still.put(attrs.evolve(still.pop(id), resource="other"))
    assert still.resources() == ["other"]
    assert still.call("other", "get", 1) == 1


def test_a_filter_is_asked_about_those_channels_alone_that_support_the_method(still):
    seen = []
    for methods in ({"get"}, {"set"}):
        still.init(Tape(methods=methods))
    still.call(RESOURCE, "get", where=lambda info: seen.append(info.methods) or True)
    assert seen == [{"get"}]
