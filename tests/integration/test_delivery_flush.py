"""Emptying the queues: what flush() promises, how fast it may go, and heartbeats in between."""

from __future__ import annotations

import itertools
import socket
import threading
import time

import pytest

import connpool.delivery.keeping
from connpool import Connection, LinkEvent, LinkState, MemorySpool, SocketConnector
from connpool.testing import FakeClock, ScriptedServer, ServedConnection
from connpool.wire import line as line_of_link
from tests.helpers.sinks import (
    GUARD,
    Diary,
    Sink,
    acknowledged,
    all_alive,
    broadcasting,
    fill,
    narrow,
    numbered,
    refused,
    tight,
)
from tests.helpers.switchboard import until
from tests.helpers.together import together
from tests.helpers.upkeep import let_pass
from tests.helpers.wire import taking

PATIENT = {"blacklist_initial": 1_000.0, "blacklist_max": 1_000.0}


# -- flush


def test_a_flush_returns_at_once_if_nothing_is_unsent(a):
    with broadcasting(a) as sender:
        sender.broadcast(b"hello")
        with taking(0, 1.0):
            assert sender.flush() == 0
            assert sender.flush(10) == 0


def test_a_flush_tries_dead_members_at_once(a):
    a.stop()
    with broadcasting(a, pool_settings=PATIENT) as sender:
        for message in numbered(5):
            sender.broadcast(message)
        a.start()
        assert sender.flush(GUARD) == 0
        assert a.until_lines(5) == numbered(5)


def test_a_flush_without_a_limit_returns_what_cannot_be_sent_now(a):
    with refused() as nobody, broadcasting(a, nobody, pool_settings=PATIENT) as sender:
        for message in numbered(5):
            sender.broadcast(message)
        with taking(0, 5.0):
            assert sender.flush() == 5
        assert dict(sender.unsent()) == {nobody: 5}


def test_a_flush_waits_no_longer_than_it_was_told(a):
    a.is_deaf = True
    with broadcasting(a, pool_settings={"connector": narrow()}) as sender:
        all_alive(sender)
        fill(sender, lambda: sender.unsent().total > 2, b"f" * 300_000)
        with taking(0.2, 2.0):
            assert sender.flush(0.2) >= 2
        a.is_deaf = False
        assert sender.flush(GUARD) == 0


def test_a_flush_of_a_member_that_comes_back_meanwhile_ends_when_all_is_sent(a):
    a.stop()
    with broadcasting(a) as sender:
        for message in numbered(100):
            sender.broadcast(message)
        assert together(lambda: sender.flush(GUARD), a.start)[0] == 0
        assert a.until_lines(100) == numbered(100)


def test_a_flush_ends_when_the_broadcaster_is_closed(a):
    a.stop()
    with broadcasting(a) as sender:
        sender.broadcast(b"hello")
        with taking(0, 5.0):
            together(lambda: sender.flush(60), lambda: sender.close(1))


def test_a_flush_is_told_by_the_next_turn_that_all_is_sent_if_nobody_else_did(clock: FakeClock):
    """Who was torn away when it had sent the last message tells nobody."""
    spool = MemorySpool()
    settings = {**PATIENT, "clock": clock, "reap_interval": None}
    with refused() as nobody, broadcasting(nobody, spool=spool, pool_settings=settings) as sender:
        sender.broadcast(b"hello")

        def send() -> None:
            links = sender._office.roster.links.values()
            until(lambda: sender._office.settled._waiters, "somebody who flushes")
            until(lambda: not any(link.is_tended for link in links), "the end of the dial for it")
            spool.remove([item.position for item in spool.peek("", 10, 100)])
            sender.sweep()

        assert together(lambda: sender.flush(60), send)[0] == 0


def test_without_a_spool_there_is_nothing_to_flush(a):
    with broadcasting(a, spool=None) as sender:
        sender.broadcast(b"hello")
        assert sender.flush() == 0
        assert sender.unsent().total == 0


def test_unsent_counts_by_member_and_for_all(a, b):
    a.stop()
    b.stop()
    with broadcasting(a, "||", b, pool_settings=PATIENT) as sender:
        for message in numbered(3):
            sender.broadcast(message)
        unsent = sender.unsent()
        assert (unsent[""], unsent.everywhere, unsent.total, unsent[a.endpoint]) == (3, 3, 3, 0)
        assert repr(unsent) == "<Unsent whoever is back first: 3>"
        assert (list(unsent), len(unsent), "" in unsent) == ([""], 1, True)


# -- a flush does not stand in the way


def test_a_queue_that_is_flushed_slowly_does_not_slow_senders(a, b):
    b.stop()
    with broadcasting(a, b, flush_rate=20.0) as sender:
        for message in numbered(100):
            sender.broadcast(message)
        b.start()
        until(lambda: b.n_lines > 0)
        with taking(0, 2.0):
            for message in numbered(500, 100):
                sender.broadcast(message)
        a.until_lines(600)
        sender.close(0.1)


def test_a_member_that_hangs_in_its_confirmation_does_not_hold_back_another():
    free = threading.Event()

    def confirm(conn: object, message: bytes) -> None:
        assert slow.endpoint != getattr(conn, "endpoint", None) or free.wait(GUARD)

    with Sink() as slow, Sink() as quick:
        slow.stop()
        quick.stop()
        with broadcasting(slow, quick, confirm=confirm) as sender:
            for message in numbered(100):
                sender.broadcast(message)
            slow.start()
            quick.start()
            assert quick.until_lines(100) == numbered(100)
            free.set()
            assert sender.flush(GUARD) == 0


def test_a_flush_is_no_faster_than_it_may_be(a):
    a.stop()
    with broadcasting(a, flush_rate=100.0) as sender:
        for message in numbered(60):
            sender.broadcast(message)
        a.start()
        began = time.monotonic()
        assert sender.flush(GUARD) == 0
        assert time.monotonic() - began > 0.4
        assert a.until_lines(60) == numbered(60)


def test_a_flush_with_a_rate_spreads_messages_over_time(a):
    a.stop()
    with broadcasting(a, flush_rate=50.0) as sender:
        for message in numbered(1_000):
            sender.broadcast(message)
        began = time.monotonic()
        a.start()
        a.until_lines(20)
        assert a.n_lines <= 10 + 50 * (time.monotonic() - began)
        sender.close(0.1)


def test_many_messages_are_confirmed_in_one_batch_in_their_order():
    with Sink(answers=True) as a:
        a.stop()
        with broadcasting(a, confirm=acknowledged) as sender:
            for message in numbered(2_000):
                sender.broadcast(message)
            a.start()
            assert sender.flush(GUARD) == 0
            assert a.lines == numbered(2_000)


@pytest.mark.parametrize("is_secure", [False, True])
def test_a_peer_that_reads_on_only_when_its_answers_are_read_does_not_hold_up_a_flush(
    certificates, is_secure, monkeypatch
):
    monkeypatch.setattr(line_of_link, "SLICE", 60.0)
    lines = [b"%d-" % n + b"x" * 2_000 for n in range(150)]
    connector = tight(certificates.client() if is_secure else None)
    with Sink(tls=certificates.server() if is_secure else None, answers=True, is_tight=True) as a:
        a.stop()
        with broadcasting(
            a, confirm=acknowledged, send_timeout=None, pool_settings={"connector": connector}
        ) as sender:
            for line in lines:
                sender.broadcast(line)
            a.start()
            assert sender.flush(GUARD) == 0
            assert a.sessions == [lines]


@pytest.mark.parametrize("is_secure", [False, True])
def test_answers_that_are_much_longer_than_the_messages_do_not_hold_up_a_flush(certificates, is_secure):
    lines = [b"%d-" % n + b"x" * 500 for n in range(100)]  # with TLS they are several records
    confirmed: list[bytes] = []

    def hold_little(conn: Connection) -> None:
        conn.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4_096)

    def answer_at_length(connection: ServedConnection) -> None:
        connection.limit_buffer(4_096)
        while True:
            n, _ = connection.request(b"\n").split(b"-")
            connection.send(b"%b\n" % n.ljust(10_000_000 if n == b"0" else 1_000))

    def confirm(conn: Connection, message: bytes) -> None:
        answer = conn.recv_until(b"\n", 20_000_000, timeout=GUARD)
        assert message.startswith(answer.strip() + b"-")
        confirmed.append(message)

    tls = certificates.server() if is_secure else None
    connector = SocketConnector(tls=certificates.client() if is_secure else None, handshake=hold_little)
    with ScriptedServer(script=answer_at_length, tls=tls) as server:
        server.stop()
        with broadcasting(server, confirm=confirm, pool_settings={"connector": connector}) as sender:
            for line in lines:
                sender.broadcast(line)
            server.start()
            assert sender.flush(GUARD) == 0
            assert confirmed == lines
            assert len(server.connections) == 1


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_confirm_that_ends_its_thread_ends_the_connection_too():
    """Else its answers would be taken for those to other messages."""
    n_asked = itertools.count()

    def confirm(conn: Connection, message: bytes) -> None:
        if next(n_asked) == 3:
            raise SystemExit
        acknowledged(conn, message)

    with Sink(answers=True) as a:
        a.stop()
        with broadcasting(a, confirm=confirm) as sender:
            for message in numbered(10):
                sender.broadcast(message)
            a.start()
            assert sender.flush(GUARD) == 0
            assert a.sessions == [numbered(10), numbered(10)[3:]]


def test_what_is_confirmed_leaves_the_spool_though_more_of_its_batch_is_to_come():
    """Or an end in the midst of a slow batch would have all of it come again."""
    with Sink(answers=True) as a:
        seen: list[int] = []

        def confirm(conn: Connection, message: bytes) -> None:
            acknowledged(conn, message)
            seen.append(sender.unsent().total)
            let_pass(0.01)

        a.stop()
        with broadcasting(a, confirm=confirm) as sender:
            for message in numbered(50):
                sender.broadcast(message)
            a.start()
            assert sender.flush(GUARD) == 0
        assert seen[0] == 50
        assert seen[-1] < 25
        assert a.lines == numbered(50)


def test_a_peer_that_says_nothing_before_all_have_come_is_asked_only_then():
    """Though it does not take all at once."""
    lines = [b"%d-" % n + b"x" * 2_000 for n in range(100)]
    asked: list[bytes] = []
    with Sink(is_tight=True) as a:

        def confirm(conn: Connection, message: bytes) -> None:
            a.until_lines(len(lines))
            asked.append(message)

        a.stop()
        a.is_deaf = True
        with broadcasting(a, confirm=confirm, pool_settings={"connector": tight()}) as sender:
            for line in lines:
                sender.broadcast(line)
            a.start()
            until(lambda: a.connections and a.has_unread)
            let_pass(0.1)
            a.is_deaf = False
            assert sender.flush(GUARD) == 0
            assert a.lines == asked == lines


def test_a_peer_that_takes_nothing_any_more_is_waited_for_once_not_with_each_message_it_has():
    confirmed: list[bytes] = []
    diary = Diary()
    with Sink(is_tight=True) as a:
        a.stop()
        a.is_deaf = True
        with broadcasting(
            a,
            confirm=lambda conn, message: confirmed.append(message),
            send_timeout=0.5,
            pool_settings={"connector": tight()},
        ) as sender:
            sender.on(LinkEvent.ALIVE | LinkEvent.DEAD, diary)
            for n in range(100):
                sender.broadcast(b"%d-" % n + b"x" * 2_000)
            diary.until(1)
            a.start()
            diary.until(2)
            with taking(0.4, 5.0):
                diary.until(3)
            assert diary.of(a) == [LinkEvent.DEAD, LinkEvent.ALIVE, LinkEvent.DEAD]
            a.is_deaf = False
            assert len(confirmed) > 10
            assert sender.flush(GUARD) == 0


# -- heartbeats


def test_heartbeats_come_at_their_interval_and_one_at_the_end(a):
    with broadcasting(a, heartbeat=(0.1, b"alive")) as sender:
        all_alive(sender)
        let_pass(0.55)
        n_before = a.n_lines
        assert 3 <= n_before <= 6
        sender.close()
        until(lambda: a.n_lines >= n_before + 1)
        a.until_open(0)
        assert n_before < a.n_lines <= n_before + 2
        assert set(a.lines) == {b"alive"}


@pytest.mark.parametrize("has_spool", [True, False])
def test_a_heartbeat_may_be_a_function_and_its_failure_is_no_bodys_end(
    a, clock: FakeClock, caplog, has_spool: bool
):
    beats = iter([b"one", b"two"])
    settings = {"clock": clock, "reap_interval": None}
    spool = MemorySpool() if has_spool else None
    with broadcasting(a, spool=spool, heartbeat=(1.0, lambda: next(beats)), pool_settings=settings) as sender:
        sender.wait_ready(GUARD)
        for n in range(4):
            clock.advance(1.0)
            sender.sweep()
            until(lambda n=n: a.n_lines >= min(n + 1, 2))
            until(sender._keeping._beating.turns.are_free)
        sender.broadcast(b"still here")
        assert sender.close(5) == 0
        assert a.until_lines(3) == [b"one", b"two", b"still here"]
    assert "StopIteration" in caplog.text


def test_a_disk_that_hangs_holds_up_no_heartbeat(a, clock: FakeClock):
    is_free = threading.Event()

    class Stalled(MemorySpool):
        def adopt(self) -> dict[str, int]:
            is_free.wait(60)
            return {}

    settings = {"clock": clock, "reap_interval": None}
    with broadcasting(
        a, spool=Stalled(max_age=1_000.0), heartbeat=(1.0, b"beat"), pool_settings=settings
    ) as sender:
        try:
            all_alive(sender)
            for n in range(3):
                clock.advance(1.0)
                sender.sweep()
                a.until_lines(n + 1)
                until(sender._keeping._beating.turns.are_free)
        finally:
            is_free.set()


def test_what_others_have_left_is_looked_for_once_a_second(a, clock: FakeClock):
    class Watched(MemorySpool):
        def adopt(self) -> dict[str, int]:
            looks.append(clock.now())
            return {}

    looks: list[float] = []
    began = clock.now()
    settings = {"clock": clock, "reap_interval": None}
    with broadcasting(a, spool=Watched(max_age=1_000.0), pool_settings=settings) as sender:
        for _ in range(3):
            for _ in range(3):
                until(sender._keeping._adopting.turns.are_free)
                sender.sweep()
            until(sender._keeping._adopting.turns.are_free)
            clock.advance(1.0)
    assert looks == [began, began + 1.0, began + 2.0]


def test_a_look_for_what_others_have_left_that_outlasts_its_turn_is_followed_by_the_next(a, monkeypatch):
    class Slow(MemorySpool):
        def adopt(self) -> dict[str, int]:
            looks.append(None)
            may_end.wait(GUARD)
            return {}

    looks: list[None] = []
    may_end = threading.Event()
    monkeypatch.setattr(connpool.delivery.keeping, "ADOPT_INTERVAL", 0.02)
    with broadcasting(a, spool=Slow(max_age=1_000.0)) as sender:
        all_alive(sender)
        sender.sweep()
        may_end.set()
        until(lambda: len(looks) >= 3, "the looks after the first")


def test_heartbeats_that_a_leap_of_the_clock_has_left_out_are_not_made_up_for(a, clock: FakeClock):
    settings = {"clock": clock, "reap_interval": None}
    with broadcasting(a, heartbeat=(1.0, b"beat"), pool_settings=settings) as sender:
        all_alive(sender)
        clock.advance(100.0)
        for _ in range(10):
            sender.sweep()
            until(sender._keeping._beating.turns.are_free)
        sender.broadcast(b"hello")
        a.until_has(b"hello")
        assert 1 <= a.lines.count(b"beat") <= 2


def test_a_heartbeat_is_never_spooled_and_a_dead_member_gets_none_later(a, b, clock: FakeClock):
    b.stop()
    settings = {"clock": clock, "reap_interval": None, **PATIENT}
    with broadcasting(a, b, heartbeat=(1.0, b"beat"), pool_settings=settings) as sender:
        sender.wait_ready(GUARD)
        until(lambda: not any(link.state is LinkState.NEW for link in sender.links()))
        for n in range(3):
            clock.advance(1.0)
            sender.sweep()
            a.until_lines(n + 1)
            until(sender._keeping._beating.turns.are_free)
        assert sender.unsent().total == 0
        b.start()
        sender.mark_alive(b.endpoint)
        all_alive(sender)
        sender.broadcast(b"hello")
        assert b.until_lines(1) == [b"hello"]


def test_a_heartbeat_to_a_deaf_member_holds_up_neither_other_heartbeats_nor_messages(a, b, clock: FakeClock):
    settings = {"clock": clock, "reap_interval": None, "connector": narrow()}
    with broadcasting(b, a, heartbeat=(1.0, b"beat"), pool_settings=settings) as sender:
        all_alive(sender)
        b.is_deaf = True
        n = fill(sender, lambda: sender.unsent()[b.endpoint] > 2)
        a.until_lines(n)
        until(lambda: not sender._office.roster.links[str(a.endpoint)].is_flushing, "a rest for the other")
        for _ in range(5):
            clock.advance(1.0)
            sender.sweep()
            until(sender._keeping._beating.turns.are_free)
        until(lambda: a.lines.count(b"beat") >= 3)
        b.is_deaf = False
        assert sender.flush(GUARD) == 0
        b.until_lines(n)


def test_a_heartbeat_keeps_a_message_that_comes_at_the_same_time_whole(a):
    with broadcasting(a, heartbeat=(0.005, b"h" * 5_000)) as sender:
        all_alive(sender)
        together(*(lambda w=w: [sender.broadcast(w * 7_000) for _ in range(50)] for w in (b"x", b"y", b"z")))
        a.until_lines(150)
        sender.close()
        a.until_open(0)
        assert set(a.lines) <= {b"h" * 5_000, b"x" * 7_000, b"y" * 7_000, b"z" * 7_000}
