"""Which group a message goes to, and how it finds another way when one is closed."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from typing import Any

import pytest

from connpool import Broadcaster, LinkEvent, LinkState, NoEndpointError
from connpool.delivery import telling, watching
from connpool.delivery.link import Link, Outcome
from connpool.delivery.mailbox import Mailbox
from connpool.delivery.roster import Roster
from connpool.testing import FakeClock, FaultProxy, ServedConnection
from connpool.wire import threads
from connpool.wire.line import Poller
from tests.helpers.faults import WatchedConnector
from tests.helpers.sinks import Sink, all_alive, broadcasting, established, kill, narrow, numbered, refused
from tests.helpers.switchboard import until
from tests.helpers.together import together

NARROW = {"connector": narrow()}
NEVER = {"blacklist_initial": 1_000.0, "blacklist_max": 1_000.0}


def end_silently(connection: ServedConnection) -> None:
    """Close it, and wait until the system of the other side knows."""
    port = connection._transport.sock.getpeername()[1]
    connection.close()
    until(lambda: not established(port), "the arrival of the end")


def living(sender: Broadcaster) -> list[str]:
    return [str(link.endpoint) for link in sender.links() if link.state is LinkState.ALIVE]


def until_dead(sender: Broadcaster, server: Sink) -> None:
    until(lambda: str(server.endpoint) not in living(sender), f"the death of {server}")


def until_alive(sender: Broadcaster, server: Sink) -> None:
    until(lambda: str(server.endpoint) in living(sender), f"the life of {server}")


def test_a_group_of_which_one_member_lives_stays_the_active_one(a, b, c, d):
    with broadcasting(a, b, "||", c, d) as sender:
        all_alive(sender)
        kill(a)
        until_dead(sender, a)
        delivery = sender.broadcast(b"one")
        assert (delivery.sent, delivery.spooled) == ((b.endpoint,), (str(a.endpoint),))
        assert a.endpoint in delivery.spooled
        assert b.endpoint not in delivery.spooled
        b.until_has(b"one")
        kill(b)
        until_dead(sender, b)
        delivery = sender.broadcast(b"two")
        assert (delivery.sent, delivery.spooled, delivery.group) == ((c.endpoint, d.endpoint), (), 1)
        c.until_has(b"two")
        d.until_has(b"two")
    assert (a.lines, b.lines, c.lines, d.lines) == ([], [b"one"], [b"two"], [b"two"])


@pytest.mark.parametrize("ahead", [False, True])
@pytest.mark.parametrize(
    "end", [Sink.kill, lambda server: server.connections[-1].close()], ids=["rst", "fin"]
)
def test_the_message_that_meets_a_death_goes_to_the_next_group_in_the_same_call(
    a: Sink, c: Sink, end: Callable[[Sink], None], ahead: bool
):
    with broadcasting(a, "||", c, write_ahead=ahead, pool_settings=NEVER) as sender:
        all_alive(sender)
        sender.broadcast(b"one")
        a.until_has(b"one")
        end(a)
        delivery = sender.broadcast(b"two")
        assert (delivery.sent, delivery.spooled, delivery.group) == ((c.endpoint,), (), 1)
        assert living(sender) == [str(c.endpoint)]
        c.until_has(b"two")
        assert sender.unsent().total == 0
    assert (a.lines, c.lines) == ([b"one"], [b"two"])


def test_when_one_of_a_group_is_found_dead_those_before_it_have_the_message_and_it_has_a_copy(
    a: Sink, b: Sink, monkeypatch: pytest.MonkeyPatch
):
    def send(link: Link, *args: Any) -> Outcome:
        return Outcome.DEAD if link.queue == str(b.endpoint) else try_send(link, *args)

    try_send = Link.try_send
    with broadcasting(a, b) as sender:
        all_alive(sender)
        with monkeypatch.context() as patch:
            patch.setattr(Link, "try_send", send)
            delivery = sender.broadcast(b"one")
        assert (delivery.sent, delivery.spooled) == ((a.endpoint,), (str(b.endpoint),))
        for server in (a, b):
            server.until_has(b"one")
    assert a.lines == b.lines == [b"one"]


def test_without_a_spool_too_the_message_that_meets_a_death_is_sent_to_the_next_group(a, c):
    with broadcasting(a, "||", c, spool=None, pool_settings=NEVER) as sender:
        all_alive(sender)
        for message in numbered(50):
            if message == b"m-25":
                a.until_lines(25)
                a.kill()
            sender.broadcast(message)
        c.until_has(b"m-49")
    assert a.lines + c.lines == numbered(50)


def test_a_silent_end_loses_not_even_the_first_message_after_it(a):
    with broadcasting(a) as sender:
        for message in numbered(20):
            sender.broadcast(message)
            a.until_has(message)
            end_silently(a.connections[-1])
        assert sender.flush(10) == 0
        assert a.lines == numbered(20)


def test_traffic_returns_to_an_earlier_group_as_soon_as_a_member_of_it_lives(a, b, c):
    with broadcasting(a, b, "||", c) as sender:
        all_alive(sender)
        kill(a)
        kill(b)
        until_dead(sender, a)
        until_dead(sender, b)
        assert sender.broadcast(b"one").group == 1
        b.start()
        until_alive(sender, b)
        delivery = sender.broadcast(b"two")
        assert (delivery.group, delivery.sent, delivery.spooled) == (0, (b.endpoint,), (str(a.endpoint),))
        a.start()
        a.until_has(b"two")
        assert (a.lines, b.lines, c.lines) == ([b"two"], [b"two"], [b"one"])


def test_traffic_returns_only_after_the_earlier_group_has_lived_for_a_while(a, c, clock: FakeClock):
    by_hand = {"clock": clock, "reap_interval": None, "dial_in_caller": True}
    backoff = {"blacklist_initial": 1.0, "blacklist_max": 1.0}
    with broadcasting(a, "||", c, fail_back_after=10.0, pool_settings={**by_hand, **backoff}) as sender:
        all_alive(sender)
        a.kill()
        until_dead(sender, a)
        assert sender.broadcast(b"one").group == 1
        clock.advance(1.0)
        sender.sweep()
        until_alive(sender, a)
        clock.advance(9.9)
        sender.sweep()
        assert sender.broadcast(b"two").group == 1
        clock.advance(0.2)
        sender.sweep()
        assert sender.broadcast(b"three").group == 0
        a.until_has(b"three")
        c.until_lines(2)
    assert (a.lines, c.lines) == ([b"three"], [b"one", b"two"])


def test_the_wait_before_the_return_ends_by_itself(a, c):
    with broadcasting(a, "||", c, fail_back_after=0.1) as sender:
        all_alive(sender)
        a.kill()
        until(lambda: sender.broadcast(b"elsewhere").group == 1)
        until(lambda: sender.broadcast(b"m").group == 0, "the return")


def test_a_group_that_dies_while_traffic_waits_to_return_gives_it_up_at_once(a, c):
    with broadcasting(a, "||", c, fail_back_after=1_000.0) as sender:
        all_alive(sender)
        a.kill()
        until(lambda: sender.broadcast(b"m").group == 1)
        a.until_accepts(2)
        until_alive(sender, a)
        assert sender._office.roster.switch_at < math.inf  # then upkeep sees to it
        kill(c)
        assert sender.broadcast(b"home").group == 0
        a.until_has(b"home")


def test_a_broken_member_that_is_back_before_anybody_sends_is_no_reason_to_switch(a, c):
    with broadcasting(a, "||", c) as sender:
        all_alive(sender)
        for n in range(5):
            a.kill()
            a.until_accepts(n + 2)
            until_alive(sender, a)
        assert sender.broadcast(b"hello").group == 0
        a.until_has(b"hello")
    assert c.lines == []


def test_without_failover_a_later_group_gets_nothing(a, c):
    with broadcasting(a, "||", c, failover=False) as sender:
        all_alive(sender)
        kill(a)
        until_dead(sender, a)
        assert (sender.ready, sender.wait_ready(0)) == (False, False)
        delivery = sender.broadcast(b"one")
        assert (delivery.sent, delivery.group) == ((), None)
        a.start()
        a.until_has(b"one")
    assert c.lines == []


def test_without_failover_and_spool_a_dead_group_is_an_error_and_never_silence(a, c):
    with broadcasting(a, "||", c, failover=False, spool=None) as sender:
        all_alive(sender)
        kill(a)
        until_dead(sender, a)
        with pytest.raises(NoEndpointError) as caught:
            sender.broadcast(b"one")
        assert str(c.endpoint) not in str(caught.value)
        assert str(a.endpoint) in str(caught.value)
    assert c.lines == []


def test_the_first_message_waits_until_all_of_its_group_have_been_tried(a, b):
    may_open = threading.Event()
    connector = WatchedConnector(before=lambda where: where == a.endpoint or may_open.wait(10))
    with broadcasting(a, b, spool=None, pool_settings={"connector": connector}) as sender:

        def go_on() -> None:
            until_alive(sender, a)
            until(lambda: any(link.was_awaited for link in sender._office.roster.links.values()))
            assert not over.wait(0.05)
            may_open.set()

        def send() -> None:
            sent.extend(sender.broadcast(b"one").sent)
            over.set()

        over, sent = threading.Event(), []
        together(send, go_on)
        assert sent == [a.endpoint, b.endpoint]


def test_who_was_taken_down_by_hand_is_no_cause_of_a_refusal(a):
    with broadcasting(a, spool=None, reconnect=False) as sender:
        all_alive(sender)
        sender.mark_dead(a.endpoint)
        with pytest.raises(NoEndpointError, match=f"{a.endpoint} is dead") as caught:
            sender.broadcast(b"one")
        assert caught.value.causes == ()


# -- when no group lives


def test_what_nobody_can_take_waits_for_the_first_to_come_back_in_order(a):
    a.stop()
    with broadcasting(a) as sender:
        for message in numbered(3):
            delivery = sender.broadcast(message)
            assert (delivery.sent, delivery.spooled, delivery.group) == ((), ("",), None)
        assert sender.unsent().everywhere == 3
        a.start()
        assert a.until_lines(3) == numbered(3)
        until(lambda: sender.unsent().total == 0)


def test_a_member_that_never_returns_does_not_hold_back_what_waits_for_all(a, b):
    a.stop()
    b.stop()
    with broadcasting(a, b) as sender:
        for message in numbered(3):
            sender.broadcast(message)
        a.start()
        assert a.until_lines(3) == numbered(3)
        until(lambda: dict(sender.unsent()) == {str(b.endpoint): 3}, f"3 for the other: {sender.unsent()}")
        b.start()
        assert b.until_lines(3) == numbered(3)


def test_a_later_group_takes_what_waits_for_all_if_it_is_the_first_to_live(a, c):
    a.stop()
    c.stop()
    with broadcasting(a, "||", c) as sender:
        for message in numbered(3):
            sender.broadcast(message)
        c.start()
        assert c.until_lines(3) == numbered(3)
        a.start()
        until_alive(sender, a)
        assert sender.broadcast(b"new").group == 0
        a.until_has(b"new")
        assert a.lines == [b"new"]


def test_what_waits_for_all_is_sent_before_what_comes_later(a, b):
    a.stop()
    b.stop()
    with broadcasting(a, "||", b) as sender:
        for message in numbered(600):  # more than one helping
            sender.broadcast(message)
        b.start()
        for message in numbered(600, 600):
            sender.broadcast(message)
        assert b.until_lines(1_200) == numbered(1_200)


def test_a_switch_is_logged_once_with_both_groups(a, c, caplog):
    caplog.set_level("INFO", "connpool.delivery")
    with broadcasting(a, "||", c) as sender:
        all_alive(sender)
        sender.broadcast(b"one")
        kill(a)
        until_dead(sender, a)
        sender.broadcast(b"two")
        wanted = "broadcaster 'sensors': sends to group 1, before to 0"
        until(lambda: [r.getMessage() for r in caplog.records].count(wanted) == 1, "the line in the log")


def test_the_end_switches_to_no_group_and_logs_no_switch(a, c, caplog):
    caplog.set_level("INFO", "connpool.delivery")
    with broadcasting(a, "||", c) as sender:
        all_alive(sender)
        until(lambda: sender.broadcast(b"one").group == 0, "the first group")
        until(lambda: caplog.text.count("is connected") == 2, "the telling of both")
        caplog.clear()
        sender.close()
        assert not [r.getMessage() for r in caplog.records]


def test_a_refusal_is_logged_once_with_the_address_and_the_reason(caplog, capsys):
    with refused() as nobody, broadcasting(nobody) as sender:
        until(lambda: sender.links()[0].failures >= 3, "three attempts")
        told = [
            r.getMessage() for r in caplog.records if nobody in r.getMessage() and r.name.endswith("delivery")
        ]
    assert len(told) == 1
    assert "refused" in told[0]
    assert capsys.readouterr().out == ""


# -- the network between


def test_a_line_that_is_cut_in_the_middle_of_a_message_delivers_it_whole_later(a):
    with FaultProxy(a.endpoint) as proxy, broadcasting(proxy) as sender:
        sender.broadcast(b"one")
        a.until_has(b"one")
        proxy.cut(10)
        sender.broadcast(b"x" * 1_000)
        until(lambda: proxy.open == 0 or proxy.accepts > 1)
        proxy.heal()
        until(lambda: sender.broadcast(b"m").sent, "the way back")
        a.until_has(b"m")
        assert {line for line in a.lines if line not in (b"one", b"m")} <= {b"x" * 1_000}


def test_a_peer_that_takes_nothing_for_the_time_allowed_is_dead_and_others_take_its_place(a, c):
    a.is_deaf = True
    with broadcasting(a, "||", c, spool=None, send_timeout=0.2, pool_settings={**NEVER, **NARROW}) as sender:
        all_alive(sender)
        messages = [b"%d" % n + b"-" * 100_000 for n in range(40)]
        groups = [sender.broadcast(message).group for message in messages]
        assert groups == sorted(groups)
        assert groups[-1] == 1
        assert str(a.endpoint) not in living(sender)
        c.until_has(messages[-1])
        assert c.lines == messages[groups.index(1) :]


def test_a_link_whose_end_met_a_lack_of_memory_is_opened_again(a, monkeypatch):
    failures, refresh = [MemoryError()], Roster.refresh

    def without_memory(roster: Roster, now: float) -> None:
        if failures and threading.current_thread().name.startswith("connpool-watch"):
            raise failures.pop()
        refresh(roster, now)

    with broadcasting(a, spool=None) as sender:
        all_alive(sender)
        with monkeypatch.context() as patch:
            patch.setattr(Roster, "refresh", without_memory)
            while failures:  # who finds the end first is chance
                until_alive(sender, a)
                a.kill()
        until_alive(sender, a)
        kill(a)
        until_dead(sender, a)


@pytest.mark.parametrize(
    ("owner", "name", "thread"),
    [
        (Mailbox, "post_locked", "connpool-link"),
        (Roster, "refresh", "connpool-link"),
        (Poller, "watch", "connpool-watch"),
    ],
    ids=["at the news of a link", "at the choice of a group", "at the look for its end"],
)
def test_a_link_whose_beginning_met_a_lack_of_memory_is_opened_and_watched(
    a, monkeypatch, owner, name, thread
) -> None:
    failures, usual = [MemoryError()], getattr(owner, name)

    def without_memory(*arguments: object, **more: object) -> object:
        if failures and threading.current_thread().name.startswith(thread):
            raise failures.pop()
        return usual(*arguments, **more)

    monkeypatch.setattr(watching, "BREATH", 0.05)
    monkeypatch.setattr(owner, name, without_memory)
    with broadcasting(a, spool=None) as sender:
        until(lambda: not failures)
        until_alive(sender, a)
        kill(a)
        until_dead(sender, a)


def test_events_are_told_although_a_look_for_them_met_a_lack_of_memory(a, monkeypatch) -> None:
    failures, take_news, told = [MemoryError()], Mailbox.take_news, threading.Event()

    def without_memory(*arguments: Any, **more: Any) -> object:
        if failures:
            raise failures.pop()
        return take_news(*arguments, **more)

    monkeypatch.setattr(telling, "BREATH", 0.01)
    monkeypatch.setattr(Mailbox, "take_news", without_memory)
    with broadcasting(a, spool=None) as sender:
        sender.on(LinkEvent.ALIVE, lambda *_: told.set())
        assert told.wait(10)
        assert not failures


def test_a_link_for_which_no_thread_could_be_had_is_opened_a_moment_later(a, b, monkeypatch):
    """Of a group that is dialled on demand, without a spool: nothing else would have upkeep look at it."""
    start, missed = threads.start, []

    def refuse_once(thread: threading.Thread) -> bool:
        if thread.name.startswith("connpool-link-") and not missed:
            missed.append(thread.name)
            return False
        return start(thread)

    with broadcasting(a, "||", b, standby="cold", spool=None) as sender:
        until_alive(sender, a)
        (link,) = (each for each in sender._office.roster.links.values() if 1 in each.groups)
        monkeypatch.setattr(threads, "start", refuse_once)
        sender._office.want(link)
        assert missed
        until_alive(sender, b)
