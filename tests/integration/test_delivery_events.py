"""What is told of links: each change once, in order, with no lock held, to threads or to who polls."""

from __future__ import annotations

import os
import resource
import select
import threading
import time
from typing import Any

import pytest

from connpool import Broadcaster, ConfigError, Endpoint, Lines, LinkEvent, LinkState, PoolClosedError
from connpool.delivery import mailbox, telling
from connpool.delivery.link import Link
from connpool.delivery.watching import Watch
from connpool.testing import ScriptedServer, Send, Silence
from tests.helpers.sinks import GUARD, Diary, Sink, all_alive, broadcasting, numbered, refused
from tests.helpers.switchboard import until
from tests.helpers.together import together
from tests.helpers.wire import later, taking

INPUT, DEAD, ALIVE = LinkEvent.INPUT, LinkEvent.DEAD, LinkEvent.ALIVE
ALL = INPUT | DEAD | ALIVE


@pytest.fixture
def diary() -> Diary:
    return Diary()


def until_dead_for(sender: Broadcaster) -> None:
    """Send until that finds out that nobody is there."""
    until(lambda: not sender.broadcast(b"are you there?").sent, "a message that nobody gets")


def until_dead(sender: Broadcaster, n: int) -> None:
    until(lambda: sum(link.state is LinkState.DEAD for link in sender.links()) == n, f"the death of {n}")


# -- once for each change


def test_a_first_connection_is_told_as_life_and_a_failed_one_as_death_once(a, diary):
    with refused() as nobody, broadcasting(a, nobody) as sender:
        sender.on(ALL, diary)
        diary.until(2)
        until(lambda: max(link.failures for link in sender.links()) >= 4, "some attempts")
        assert (diary.of(a), diary.of(nobody)) == ([ALIVE], [DEAD])


@pytest.mark.parametrize("found_by", ["watch", "sender"])
def test_a_death_and_a_return_are_told_once_each_and_in_turn(a, diary, found_by):
    with broadcasting(a) as sender:
        sender.on(DEAD | ALIVE, diary)
        all_alive(sender)
        for n in range(3):
            diary.until(2 * n + 1)
            a.until_accepts(n + 1)
            a.kill()
            if found_by == "sender":
                together(*[lambda: sender.broadcast(b"x")] * 4)
            a.until_accepts(n + 2)
        diary.until(7)
        assert diary.of(a) == [ALIVE, DEAD, ALIVE, DEAD, ALIVE, DEAD, ALIVE]


def test_many_threads_that_find_a_death_at_once_tell_of_it_once(a, diary):
    with broadcasting(a, pool_settings={"blacklist_initial": 100, "blacklist_max": 100}) as sender:
        sender.on(DEAD, diary)
        all_alive(sender)
        for server in (a,):
            server.kill()
        together(*[lambda: [sender.broadcast(m) for m in numbered(20)]] * 8)
        diary.until(1)
        sender.mark_dead(a.endpoint)
        assert sender.check_event(0.05) == 0
        assert diary.told == [(DEAD, str(a.endpoint))]
        assert sender.links()[0].failures == 1


def test_events_of_one_member_are_told_in_their_order_and_input_between_life_and_death(diary):
    with ScriptedServer(script=Silence()) as a, broadcasting(a) as sender:
        sender.on(ALL, diary)
        for n in range(5):
            connection = a.until_accepts(n + 1)
            diary.until(4 * n + 1)
            connection.send(b"one\ntwo\n")
            connection.close()
            diary.until(4 * n + 4)
        told = diary.of(a)[:20]
        assert told == [ALIVE, INPUT, INPUT, DEAD] * 5


def test_the_last_words_of_a_member_are_told_before_its_end_though_a_sender_finds_that_first(
    diary, monkeypatch
):
    may_read = threading.Event()
    read = Watch._read

    def read_later(*args: Any, **options: Any) -> None:
        assert may_read.wait(GUARD)
        read(*args, **options)

    monkeypatch.setattr(Watch, "_read", read_later)
    with ScriptedServer(script=Silence()) as a, broadcasting(a, reconnect=False) as sender:
        sender.on(ALL, diary)
        diary.until(1)
        connection = a.until_accepts(1)
        connection.send(b"one\ntwo\n")
        connection.close()
        until_dead_for(sender)
        may_read.set()
        diary.until(4)
        assert diary.of(a) == [ALIVE, INPUT, INPUT, DEAD]


def test_the_end_that_a_sender_finds_is_told_by_the_next_poll_although_that_does_not_wait(diary):
    with ScriptedServer(script=Silence()) as a, broadcasting(a, reconnect=False) as sender:
        all_alive(sender)
        a.until_accepts(1).close()
        until_dead_for(sender)
        assert sender.check_event(0, diary) == 2
        assert diary.of(a) == [ALIVE, DEAD]


def test_an_interrupt_in_the_midst_of_the_last_words_keeps_nobody_from_hearing_of_the_end(monkeypatch):
    def strike(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with ScriptedServer(script=Silence()) as a, broadcasting(a, reconnect=False) as sender:
        all_alive(sender)
        (link,) = sender._office.roster.links.values()
        strand = link.strand
        assert strand is not None
        with monkeypatch.context() as patch:
            patch.setattr(Watch, "_take_in", strike)
            strand.line.error = ConnectionResetError()
            with pytest.raises(KeyboardInterrupt):
                sender._watch.hear_out(strand)
        assert strand.is_heard


def test_of_a_connection_that_was_taken_down_nothing_comes_any_more(diary):
    begun, may_go_on = threading.Event(), threading.Event()

    class Slow(Lines):
        def feed(self, data: bytes) -> list[bytes]:
            begun.set()
            assert may_go_on.wait(GUARD)
            return super().feed(data)

    with ScriptedServer(script=Silence()) as a, broadcasting(a, framing=Slow(), reconnect=False) as sender:
        sender.on(ALL, diary)
        connection = a.until_accepts(1)
        connection.send(b"one\n")
        assert begun.wait(GUARD)
        sender.mark_dead(a.endpoint)
        diary.until(2)
        may_go_on.set()
        connection.until_ended()
        assert sender.recv(0) is None
        assert diary.of(a) == [ALIVE, DEAD]


def test_only_what_a_handler_asked_for_is_told_to_it(a):
    deaths, lives = Diary(), Diary()
    with broadcasting(a) as sender:
        sender.on(DEAD, deaths)
        sender.on(ALIVE, lives)
        all_alive(sender)
        a.kill()
        lives.until(2)
        assert (deaths.of(a), lives.of(a)) == ([DEAD], [ALIVE, ALIVE])


def test_what_happened_before_the_first_handler_came_is_told_to_it(a, diary):
    with broadcasting(a) as sender:
        all_alive(sender)
        a.kill()
        a.until_accepts(2)
        all_alive(sender)
        sender.on(DEAD | ALIVE, diary)
        diary.until(3)
        assert diary.of(a) == [ALIVE, DEAD, ALIVE]


@pytest.mark.parametrize("wrong", [0, 7, None, LinkEvent(0), "DEAD"])
def test_what_is_no_event_is_an_error(a, diary, wrong):
    with broadcasting(a) as sender:
        with pytest.raises(ConfigError, match="LinkEvent"):
            sender.on(wrong, diary)
        with pytest.raises(ConfigError, match="LinkEvent"):
            sender.on_any(wrong, lambda *_: None)


# -- sets


def test_what_happens_at_one_time_is_told_once_to_who_wants_sets(a, b, c):
    sets: list[LinkEvent] = []
    each = Diary()
    with broadcasting(a, b, c, pool_settings={"blacklist_initial": 100, "blacklist_max": 100}) as sender:
        all_alive(sender)
        assert sender.check_event(0) == 0  # from now on events are told here only
        sender.on(DEAD, each)
        sender.on_any(ALL, lambda _, events: sets.append(events))
        assert sender.check_event(0) == 3
        for server in (a, b, c):
            sender.mark_dead(server.endpoint)
        assert sender.check_event(0) == 3
        assert sets == [ALIVE, DEAD]
        assert len(each.told) == 3


def test_a_set_holds_all_kinds_of_events_that_were_wanted(a, b):
    sets: list[LinkEvent] = []
    with broadcasting(a, b) as sender:
        sender.check_event(0)
        sender.on_any(DEAD | ALIVE, lambda _, events: sets.append(events))
        all_alive(sender)
        sender.mark_dead(a.endpoint)
        sender.check_event(0)
        assert sets == [DEAD | ALIVE]


def test_what_happens_soon_after_is_told_in_one_set_with_what_woke_the_thread(a, monkeypatch):
    sets: list[LinkEvent] = []
    with broadcasting(a) as sender:
        all_alive(sender)

        def die(_: float) -> None:
            if not sets:
                sender.mark_dead(a.endpoint)

        monkeypatch.setattr(telling, "pause", die)
        sender.on_any(DEAD | ALIVE, lambda _, events: sets.append(events))
        until(lambda: sets, "a set")
        assert sets[0] == DEAD | ALIVE


# -- polling


def test_who_polls_gets_each_event_once_and_no_thread_tells_it_too(a, b, diary):
    with broadcasting(a, b) as sender:
        sender.on(DEAD | ALIVE, diary)
        all_alive(sender)
        diary.until(2)
        sender.check_event(0)
        a.kill()
        b.kill()
        until(lambda: sender.check_event(0.1) or len(diary.told) >= 6, "four more")
        while len(diary.told) < 6:
            sender.check_event(1)
        assert {each.name for each in diary.threads[2:]} == {threading.current_thread().name}
        assert diary.of(a) == diary.of(b) == [ALIVE, DEAD, ALIVE]


def test_from_the_first_poll_on_no_thread_tells_anything(a, diary):
    with broadcasting(a) as sender:
        sender.on(DEAD, diary)
        starter = sender._telling._starter
        sender.on(DEAD, Diary())
        assert sender._telling._starter is starter
        assert starter.thread.is_alive()
        sender.check_event(0)
        starter.thread.join(GUARD)
        assert not starter.thread.is_alive()
    with broadcasting(a) as sender:
        sender.check_event(0)
        sender.on(DEAD, diary)
        assert sender._telling._starter is None


@pytest.mark.parametrize("timeout", [0, 0.3])
def test_a_poll_lasts_as_long_as_it_was_told(a, timeout):
    with broadcasting(a) as sender:
        all_alive(sender)
        with taking(timeout, timeout + 1.0):
            assert sender.check_event(timeout) == 0


def test_a_poll_without_wait_waits_for_a_look_and_no_longer(a, monkeypatch):
    monkeypatch.setattr(mailbox, "A_LOOK", GUARD)
    with broadcasting(a) as sender:
        all_alive(sender)
        since = time.monotonic()
        assert sender.check_event(0) == 0
        assert time.monotonic() - since < GUARD


@pytest.mark.parametrize("timeout", [-1, None, 5.0])
def test_a_poll_returns_after_the_first_event(timeout, diary):
    with ScriptedServer(script=Silence()) as a, broadcasting(a) as sender:
        sender.check_event(0)
        sender.on(INPUT, diary)
        connection = a.until_accepts(1)
        with later(lambda: connection.send(b"hello\n"), 0.1), taking(0.05, 4.0):
            assert sender.check_event(timeout) == 1
        assert diary.told == [(INPUT, str(a.endpoint))]


def test_a_poll_tells_how_many_events_were_handled():
    with (
        ScriptedServer(script=Silence()) as a,
        ScriptedServer(script=Silence()) as b,
        broadcasting(a, b) as sender,
    ):
        sender.check_event(0)
        diary = Diary()
        sender.on(INPUT, diary)
        for server in (a, b):
            server.until_accepts(1).send(b"hello\n")
        until(lambda: len(sender._office.mailbox._letters) == 2)
        assert sender.check_event(0) == 2
        assert sender.check_event(0) == 0


def test_a_poll_without_wait_tells_all_that_lies_at_the_members_by_then(diary):
    with (
        ScriptedServer(script=Silence()) as a,
        ScriptedServer(script=Silence()) as b,
        broadcasting(a, b) as sender,
    ):
        all_alive(sender)
        for server in (a, b):
            server.until_accepts(1).send(b"hello\n")
        until(lambda: _has_come(sender, 2))
        assert sender.check_event(0, diary) == 4
        assert sorted(event.name for event, _ in diary.told) == ["ALIVE", "ALIVE", "INPUT", "INPUT"]
        assert sender.check_event(0, diary) == 0


def test_where_nobody_handles_anything_a_poll_counts_the_messages_that_have_come():
    with (
        ScriptedServer(script=Silence()) as a,
        ScriptedServer(script=Silence()) as b,
        broadcasting(a, b) as sender,
    ):
        all_alive(sender)
        assert sender.check_event(0) == 0
        for server in (a, b):
            server.until_accepts(1).send(b"hello\n")
        until(lambda: _has_come(sender, 2))
        assert sender.check_event(GUARD) == 2
        assert sender.check_event(0) == 0
        assert [sender.recv(0)[1], sender.recv(0)[1]] == [b"hello", b"hello"]
        with later(lambda: a.until_accepts(1).send(b"more\n"), 0.1):
            assert sender.check_event(None) == 1


def test_a_handler_that_is_installed_while_somebody_polls_is_told_of_what_comes_after_that(diary):
    with ScriptedServer(script=Silence()) as a, broadcasting(a) as sender:
        all_alive(sender)

        def install() -> None:
            until(lambda: sender._office.mailbox._gates, "somebody who polls")
            sender.on(INPUT, diary)
            a.until_accepts(1).send(b"hello\n")

        assert together(lambda: sender.check_event(GUARD), install) == [1, None]
        assert diary.told == [(INPUT, str(a.endpoint))]


def _has_come(sender, n):
    """Whether something lies at *n* members that nobody has read."""
    strands = [link.strand for link in sender._office.roster.links.values()]
    return sum(bool(select.select([strand.line.fd], [], [], 0)[0]) for strand in strands) == n


def test_a_handler_given_to_a_poll_takes_the_place_of_all_others(a, diary):
    other = Diary()
    sets: list[LinkEvent] = []
    with broadcasting(a) as sender:
        sender.check_event(0)
        sender.on(DEAD | ALIVE, other)
        sender.on_any(DEAD | ALIVE, lambda _, events: sets.append(events))
        assert sender.check_event(GUARD, diary) == 1
        assert (diary.told, other.told, sets) == ([(ALIVE, str(a.endpoint))], [], [])


@pytest.mark.parametrize("way", ["on", "on_any"])
def test_a_handler_that_comes_late_is_told_of_input_all_the_same(clock, way):
    told: list[LinkEvent] = []
    settings = {"clock": clock, "reap_interval": None}
    with ScriptedServer(script=Silence()) as a, broadcasting(a, pool_settings=settings) as sender:
        all_alive(sender)
        until(lambda: not any(link.is_tended for link in sender._office.roster.links.values()), "rest")
        getattr(sender, way)(INPUT, lambda _, event, *__: told.append(event))
        a.until_accepts(1).send(b"hello\n")
        until(lambda: told == [INPUT])


def test_a_message_that_was_received_is_told_to_nobody_any_more(diary):
    with ScriptedServer(script=Silence()) as a, broadcasting(a) as sender:
        sender.check_event(0)
        sender.on(INPUT, diary)
        a.until_accepts(1).send(b"one\ntwo\n")
        assert sender.recv(GUARD) == (a.endpoint, b"one")
        assert sender.check_event(GUARD) == 1
        assert diary.told == [(INPUT, str(a.endpoint))]
        assert sender.recv(0) == (a.endpoint, b"two")


def test_a_poll_that_waits_ends_with_the_broadcaster(a):
    with broadcasting(a) as sender:
        all_alive(sender)
        sender.check_event(0)
        with later(lambda: sender.close(5), 0.1):
            assert together(lambda: sender.check_event(None, Diary()))[0] >= 0


# -- what a handler may do


def test_a_handler_that_falls_far_behind_gets_all_that_comes_when_it_takes_it_at_last():
    got: list[Any] = []

    def take(who: Broadcaster, *_: object) -> None:
        if not got:
            until(lambda: len(who._office.mailbox._letters) >= 1_000, "all that is read ahead")
        got.append(who.recv(0))

    messages = [b"%0500d" % n for n in range(5_000)]
    with (
        ScriptedServer(script=[Send(b"\n".join(messages) + b"\n"), Silence()]) as a,
        broadcasting(a) as sender,
    ):
        sender.on(INPUT, take)
        until(lambda: len(got) == 5_000)
        assert [message for _, message in got] == messages


def test_who_polls_is_told_of_each_message_however_many_have_come_when_a_link_breaks():
    got: list[bytes] = []
    messages = [b"%d" % n for n in range(1_500)]
    with ScriptedServer(script=Silence()) as a, broadcasting(a, reconnect=False) as sender:
        connection = a.until_accepts(1)

        def take(who: Broadcaster, event: LinkEvent, _: Endpoint) -> None:
            if event is not INPUT:
                return
            found = who.recv(0)
            assert found is not None
            got.append(found[1])
            if len(got) == 1:  # the rest comes while it is busy with the first
                connection.send(b"".join(b"%b\n" % message for message in messages[1:]))
                connection.close()
                until_dead(who, 1)

        connection.send(messages[0] + b"\n")
        while len(got) < len(messages) and sender.check_event(1.0, take):
            pass
        assert got == messages


def test_a_handler_may_take_the_message_it_is_told_of():
    got: list[Any] = []
    with ScriptedServer(script=Silence()) as a, broadcasting(a) as sender:
        sender.on(INPUT, lambda who, *_: got.append(who.recv(0)))
        a.until_accepts(1).send(b"".join(b"%d\n" % n for n in range(100)))
        until(lambda: len(got) == 100)
        assert got == [(a.endpoint, b"%d" % n) for n in range(100)]


@pytest.mark.parametrize("event", [DEAD, ALIVE, INPUT])
def test_a_handler_may_call_anything(event):
    done: list[object] = []

    def handler(sender: Broadcaster, event: LinkEvent, endpoint: Endpoint) -> None:
        if done:
            return
        sender.broadcast(b"from the handler")
        sender.broadcast_async(b"later").result(GUARD)
        sender.recv(0)
        sender.links(), sender.unsent(), sender.ready, repr(sender)
        sender.flush(0)
        sender.sweep()
        sender.on(DEAD, lambda *_: None)
        sender.mark_dead(endpoint)
        sender.mark_alive(endpoint)
        sender.add(a2.endpoint, 1)
        sender.remove(a2.endpoint)
        done.append(sender)

    def hello(connection: Any) -> None:
        connection.send(b"hello\n")

    with (
        ScriptedServer(script=[hello, Silence()]) as a,
        ScriptedServer(script=Silence()) as a2,
        broadcasting(a) as sender,
    ):
        sender.on(event, handler)
        all_alive(sender)
        if event is DEAD:
            a.until_accepts(1)  # a connection that it has not seen yet would not be killed
            a.kill()
        until(lambda: done, "the end of the handler")
        until(lambda: sender.unsent().total == 0)
        all_alive(sender)


def test_a_handler_that_itself_finds_the_death_leaves_the_counters_right(diary):
    """It sends to the very member of which it is told, and that is gone."""
    with ScriptedServer(script=Silence()) as a, Sink() as c, broadcasting(a, "||", c) as sender:

        def handler(sender: Broadcaster, event: LinkEvent, endpoint: Endpoint) -> None:
            a.kill()
            sender.broadcast(b"out")
            sender.mark_dead(endpoint)

        sender.on(INPUT, handler)
        sender.on(DEAD | ALIVE, diary)
        all_alive(sender)
        a.until_accepts(1).send(b"hello\n")
        until(lambda: diary.of(a) == [ALIVE, DEAD, ALIVE])
        all_alive(sender)
        assert sender.broadcast(b"back").group == 0


@pytest.mark.parametrize("event", [DEAD, ALIVE, INPUT])
def test_a_handler_may_close(event):
    closed: list[int] = []

    def hello(connection: Any) -> None:
        connection.send(b"hello\n")

    with ScriptedServer(script=[hello, Silence()]) as a, broadcasting(a) as sender:
        sender.on(event, lambda who, *_: closed.append(who.close(5)))
        if event is DEAD:
            all_alive(sender)
            a.until_open(1)
            a.kill()
        until(lambda: closed, "the end of close")
        with pytest.raises(PoolClosedError):
            sender.broadcast(b"late")
        a.until_open(0)


@pytest.mark.parametrize("who", ["another", "the handler"])
def test_after_the_end_no_handler_is_called_though_more_has_come(who):
    told: list[LinkEvent] = []
    is_called, is_closed = threading.Event(), threading.Event()

    def handler(sender: Broadcaster, event: LinkEvent, _: Endpoint) -> None:
        told.append(event)
        is_called.set()
        if who == "the handler":
            sender.close(GUARD)
        else:
            is_closed.wait(GUARD)

    with ScriptedServer(script=[Send(b"one\ntwo\nthree\n"), Silence()]) as a, broadcasting(a) as sender:
        sender.on(INPUT, handler)
        sender.on_any(INPUT, lambda _, events: told.append(events))
        assert is_called.wait(GUARD)
        sender.close(0.1)
        is_closed.set()
        until(
            lambda: not any(thread.name == "connpool-events-sensors" for thread in threading.enumerate()),
            "the end of the thread that calls handlers",
        )
        assert told == [INPUT]


def test_two_closes_at_once_one_of_them_in_a_handler_both_end_soon(a):
    begun = threading.Event()

    def handler(sender: Broadcaster, *_: object) -> None:
        begun.set()
        threading.Event().wait(0.05)
        sender.close()

    with broadcasting(a) as sender:
        sender.on(ALIVE, handler)
        assert begun.wait(GUARD)
        with taking(0, 3.0):
            sender.close()


def test_a_handler_that_polls_may_close(a, diary):
    with broadcasting(a) as sender:
        sender.check_event(0)
        all_alive(sender)
        assert sender.check_event(GUARD, lambda who, *_: who.close()) == 1


def test_a_failing_handler_of_input_breaks_that_link_and_no_other(diary):
    def handler(sender: Broadcaster, *_: object) -> None:
        assert sender.recv(0) is not None
        raise ValueError("not what I expected")

    with (
        ScriptedServer(script=Silence()) as a,
        ScriptedServer(script=Silence()) as b,
        broadcasting(a, b, reconnect=False) as sender,
    ):
        sender.on(INPUT, handler)
        sender.on(DEAD, diary)
        all_alive(sender)
        connection = a.until_accepts(1)
        connection.send(b"hello\n")
        diary.until(1)
        connection.until_ended()
        assert diary.told == [(DEAD, str(a.endpoint))]
        assert isinstance(sender.links()[0].last_error, ValueError)
        assert sender.links()[1].state is LinkState.ALIVE


def test_why_a_link_was_lost_is_known_though_upkeep_comes_before_who_lost_it(diary, monkeypatch):
    def handler(sender: Broadcaster, *_: object) -> None:
        raise ValueError("not what I expected")

    with ScriptedServer(script=Silence()) as a, broadcasting(a, reconnect=False) as sender:
        sender.on(INPUT, handler)
        sender.on(DEAD, diary)
        connection = a.until_accepts(1)
        all_alive(sender)
        drop = Link.drop

        def overtaken(link: Link, *args: Any) -> Any:
            monkeypatch.undo()
            dropped = drop(link, *args)
            sender._office.heal()
            return dropped

        monkeypatch.setattr(Link, "drop", overtaken)
        connection.send(b"hello\n")
        diary.until(1)
        assert isinstance(sender.links()[0].last_error, ValueError)


def test_a_handler_of_input_that_returns_less_than_nothing_breaks_that_link(diary):
    with ScriptedServer(script=Silence()) as a, broadcasting(a) as sender:
        sender.on(INPUT, lambda who, *_: -1 if who.recv(0) == (a.endpoint, b"bad") else 0)
        sender.on(DEAD | ALIVE, diary)
        connection = a.until_accepts(1)
        connection.send(b"good\nbad\n")
        connection.until_ended()
        diary.until(3)
        assert diary.of(a) == [ALIVE, DEAD, ALIVE]


@pytest.mark.parametrize("event", [DEAD, ALIVE])
def test_a_failing_handler_of_other_events_is_logged_and_others_are_told(a, diary, event, caplog):
    def failing(*_: object) -> None:
        raise ZeroDivisionError("a bug")

    with broadcasting(a) as sender:
        a.until_accepts(1)
        all_alive(sender)
        sender.on(event, failing)
        sender.on_any(event, failing)
        sender.on(DEAD | ALIVE, diary)
        a.kill()
        until(lambda: diary.of(a)[-2:] == [DEAD, ALIVE], "the telling of both")
    assert "a handler failed" in caplog.text
    assert "ZeroDivisionError" in caplog.text


def test_the_answer_of_a_handler_to_other_events_is_no_verdict(a):
    def judge(sender: Broadcaster, event: LinkEvent, endpoint: object) -> int:
        told.append(event)
        return -1

    told: list[LinkEvent] = []
    with broadcasting(a) as sender:
        sender.on(DEAD | ALIVE, judge)
        until(lambda: told == [ALIVE])
        sender.mark_dead(a.endpoint)
        until(lambda: told == [ALIVE, DEAD, ALIVE])
        sender.broadcast(b"one")
        a.until_has(b"one")
    assert a.accepts == 2


def test_a_handler_for_all_that_has_happened_may_fail_within_a_look_for_events(a, caplog):
    def failing(*_: object) -> None:
        raise ZeroDivisionError("a bug")

    with broadcasting(a) as sender:
        all_alive(sender)
        sender.check_event(0)
        sender.on_any(DEAD, failing)
        sender.mark_dead(a.endpoint)
        sender.check_event(GUARD)
    assert "ZeroDivisionError" in caplog.text


def test_a_handler_that_wants_to_end_its_thread_ends_nothing(a, diary, caplog):
    def leave(*_: object) -> None:
        raise SystemExit

    with broadcasting(a) as sender:
        sender.on(ALIVE, leave)
        until(lambda: "a handler failed" in caplog.text, "a line in the log")
        sender.on(DEAD, diary)
        sender.mark_dead(a.endpoint)
        diary.until(1)


def test_a_handler_that_hangs_holds_up_no_sender_and_no_reconnection(a):
    hanging, free = threading.Event(), threading.Event()

    def handler(*_: object) -> None:
        hanging.set()
        assert free.wait(GUARD)

    with broadcasting(a) as sender:
        sender.on(ALIVE, handler)
        assert hanging.wait(GUARD)
        a.until_accepts(1)
        try:
            a.kill()
            a.until_accepts(2)
            all_alive(sender)
            for message in numbered(50):
                sender.broadcast(message)
            a.until_lines(50)
        finally:
            free.set()


def test_no_thread_is_started_for_events_that_nobody_asked_for(a):
    with broadcasting(a) as sender:
        all_alive(sender)
        assert not [t.name for t in threading.enumerate() if t.name.startswith("connpool-events")]


def test_events_that_nobody_took_do_not_fill_the_memory(a, monkeypatch):
    monkeypatch.setattr(mailbox, "MOST_NEWS", 20)
    with broadcasting(a, pool_settings={"blacklist_initial": 1e-9, "blacklist_max": 1e-9}) as sender:
        all_alive(sender)
        for _ in range(30):
            sender.mark_dead(a.endpoint)
            sender.mark_alive(a.endpoint)
            all_alive(sender)
        assert 0 < len(sender._office.mailbox._news) <= 20


# -- many descriptors


def test_members_beyond_the_thousandth_descriptor_are_served_like_any_other(diary):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 1_500
    if hard != resource.RLIM_INFINITY and hard < wanted:
        pytest.skip(f"only {hard} descriptors are allowed")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
    others = [os.open(os.devnull, os.O_RDONLY) for _ in range(1_100)]
    try:
        with Sink(answers=True) as a, Sink(answers=True) as b, broadcasting(a, b) as sender:
            all_alive(sender)
            assert min(link.strand.line.fd for link in sender._office.roster.links.values()) > 1_100
            sender.on(DEAD, diary)
            assert sender.broadcast(b"hello").sent == (a.endpoint, b.endpoint)
            assert {sender.recv(GUARD), sender.recv(GUARD)} == {
                (a.endpoint, b"got hello"),
                (b.endpoint, b"got hello"),
            }
            a.kill()
            diary.until(1)
            assert diary.told == [(DEAD, str(a.endpoint))]
    finally:
        for other in others:
            os.close(other)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
