"""What members send: whole messages, each given out once, from whichever comes first."""

from __future__ import annotations

import random
import select
import socket
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

import pytest

from connpool import (
    Broadcaster,
    ConnectionPool,
    FramingError,
    LengthPrefixed,
    Lines,
    LinkEvent,
    LinkState,
    Raw,
    SocketConnector,
    UsageError,
)
from connpool.delivery.watching import Watch
from connpool.testing import Close, Reset, ScriptedServer, Send, ServedConnection, Silence
from connpool.wire import threads
from tests.helpers.sinks import GUARD, Diary, Sink, broadcasting
from tests.helpers.switchboard import until
from tests.helpers.together import together
from tests.helpers.wire import taking


def alive(sender: Broadcaster) -> int:
    return sum(link.state is LinkState.ALIVE for link in sender.links())


def in_pieces(messages: list[bytes], seed: int) -> Any:
    """A script that sends *messages* as lines, cut at random points."""

    def send(connection: ServedConnection) -> None:
        dice = random.Random(seed)
        data = b"".join(message + b"\n" for message in messages)
        while data:
            n = dice.randrange(1, 200)
            connection.send(data[:n])
            data = data[n:]

    return [send, Silence()]


def test_messages_in_pieces_from_two_members_all_arrive_each_members_in_order():
    first = [b"first %d" % n for n in range(500)]
    second = [b"second %d" % n for n in range(500)]
    with (
        ScriptedServer(script=in_pieces(first, 1)) as a,
        ScriptedServer(script=in_pieces(second, 2)) as b,
        broadcasting(a, "||", b) as sender,
    ):
        got = [sender.recv(GUARD) for _ in range(1_000)]
        assert [message for who, message in got if who == a.endpoint] == first
        assert [message for who, message in got if who == b.endpoint] == second
        assert sender.recv(0) is None


def test_who_never_waits_receives_what_has_come():
    with ScriptedServer(script=Silence()) as a, broadcasting(a) as sender:
        until(lambda: alive(sender) == 1)
        peer = a.until_accepts(1)
        line = sender._office.roster.links[str(a.endpoint)].strand.line
        for message in (b"one", b"two"):
            assert sender.recv(0) is None
            peer.send(message + b"\n")
            until(lambda: select.select([line.fd], [], [], 0)[0])
            assert sender.recv(0) == (a.endpoint, message)


def test_several_receivers_get_each_message_once():
    messages = [b"%d" % n for n in range(600)]
    with ScriptedServer(script=in_pieces(messages, 3)) as a, broadcasting(a) as sender:
        got = together(*[lambda: [sender.recv(GUARD) for _ in range(200)]] * 3)
        assert sorted(message for each in got for _, message in each) == sorted(messages)
        for each in got:
            numbers = [int(message) for _, message in each]
            assert numbers == sorted(numbers)


@pytest.mark.parametrize("timeout", [0, 0.2])
def test_a_receiver_waits_as_long_as_it_said(timeout):
    with ScriptedServer() as a, broadcasting(a) as sender:
        sender.wait_ready(GUARD)
        with taking(timeout, timeout + 1.0):
            assert sender.recv(timeout) is None


def test_a_receiver_without_a_limit_waits_until_something_comes():
    with ScriptedServer(script=Silence()) as a, broadcasting(a) as sender:
        connection = a.until_accepts(1)
        got = together(sender.recv, lambda: connection.send(b"late\n"))
        assert got[0] == (a.endpoint, b"late")


def test_the_end_lets_receivers_go():
    with ScriptedServer(script=Silence()) as a, broadcasting(a) as sender:
        a.until_accepts(1)
        assert together(sender.recv, lambda: sender.close(5))[0] is None
        with taking(0, 1):
            assert sender.recv(5) is None


def test_half_a_message_is_kept_until_the_rest_has_come():
    with ScriptedServer(script=Silence()) as a, broadcasting(a) as sender:
        connection = a.until_accepts(1)
        connection.send(b"in two")
        assert sender.recv(0.1) is None
        connection.send(b" parts\nand")
        assert sender.recv(GUARD) == (a.endpoint, b"in two parts")
        connection.send(b" more\n")
        assert sender.recv(GUARD) == (a.endpoint, b"and more")


def test_half_a_message_is_not_mixed_with_what_the_next_connection_brings():
    with ScriptedServer(script=Silence()) as a, broadcasting(a) as sender:
        a.until_accepts(1).send(b"half of")
        assert sender.recv(0.1) is None
        a.kill()
        a.until_accepts(2).send(b"whole\n")
        assert sender.recv(GUARD) == (a.endpoint, b"whole")


def test_what_a_member_says_before_it_leaves_is_received():
    with ScriptedServer(script=[Send(b"one\ntwo\n"), Close()]) as a, broadcasting(a) as sender:
        got = [sender.recv(GUARD), sender.recv(GUARD)]
        assert got == [(a.endpoint, b"one"), (a.endpoint, b"two")]


def test_what_a_member_says_before_it_leaves_is_received_by_who_comes_later():
    """Between two calls nobody waits for a message; what comes then is not lost."""
    with ScriptedServer(script=Silence()) as a, broadcasting(a) as sender:
        first = a.until_accepts(1)
        first.send(b"one\n")
        assert sender.recv(GUARD) == (a.endpoint, b"one")
        first.send(b"two\nthree\n")
        first.close()
        a.until_accepts(2)
        assert sender.recv(GUARD) == (a.endpoint, b"two")
        assert sender.recv(GUARD) == (a.endpoint, b"three")


def test_what_a_member_says_before_it_leaves_is_told_to_a_handler_however_far_that_is_behind():
    may_go_on, got = threading.Event(), []

    def take(sender: Broadcaster, *_: object) -> None:
        assert may_go_on.wait(GUARD)
        got.append(sender.recv(0))

    messages = [b"%030d" % n for n in range(3_000)]  # more than are read ahead, and few enough to lie unread
    with ScriptedServer(script=Silence()) as a, broadcasting(a, reconnect=False) as sender:
        sender.on(LinkEvent.INPUT, take)
        connection = a.until_accepts(1)
        connection.send(b"\n".join(messages) + b"\n")
        connection.close()
        until(lambda: sender.links()[0].state is LinkState.DEAD)
        may_go_on.set()
        until(lambda: len(got) == len(messages), "all that it has said")
        assert got == [(a.endpoint, message) for message in messages]


def test_a_sender_that_finds_a_member_gone_takes_no_message_from_receivers():
    with ScriptedServer(script=Silence()) as a, broadcasting(a) as sender:
        assert sender.recv(0) is None
        for n in range(30):
            connection = a.until_accepts(n + 1)
            until(lambda: alive(sender) == 1)
            connection.send(b"%d\n" % n)
            connection.close()
            sender.broadcast(b"x")
            assert sender.recv(GUARD) == (a.endpoint, b"%d" % n)


def test_who_only_sends_reads_nothing_and_a_talkative_member_does_not_fill_the_memory():
    def talk(connection: ServedConnection) -> None:
        while True:
            connection.send(b"blah\n" * 1_000)

    with ScriptedServer(script=talk) as a, broadcasting(a) as sender:
        sender.wait_ready(GUARD)
        for _ in range(50):
            sender.broadcast(b"x")
        assert len(sender._office.mailbox._letters) == 0


def test_of_messages_that_were_received_nothing_is_kept():
    messages = [b"%0500d" % n for n in range(10_000)]
    script = [Send(b"".join(message + b"\n" for message in messages)), Silence()]
    with ScriptedServer(script=script) as a, broadcasting(a) as sender:
        assert [sender.recv(GUARD) for _ in messages] == [(a.endpoint, message) for message in messages]
        assert len(sender._office.mailbox._news) < 3_000


@pytest.mark.parametrize("is_tls", [False, True])
def test_what_comes_together_with_what_a_handshake_reads_is_received(certificates, is_tls):
    connector = SocketConnector(
        tls=certificates.client() if is_tls else None, handshake=lambda conn: conn.recv_until(b"\n", 100)
    )
    with (
        ScriptedServer(
            script=[Send(b"welcome\nfirst\nsec"), Silence()], tls=certificates.server() if is_tls else None
        ) as a,
        broadcasting(a, pool_settings={"connector": connector}) as sender,
    ):
        assert sender.recv(GUARD) == (a.endpoint, b"first")
        a.until_accepts(1).send(b"ond\n")
        assert sender.recv(GUARD) == (a.endpoint, b"second")
        assert a.accepts == 1


def test_a_receiver_that_is_slow_makes_members_wait_instead_of_the_memory_fill():
    n_all = 20_000

    def talk(connection: ServedConnection) -> None:
        for n in range(n_all):
            connection.send(b"%d\n" % n)

    with ScriptedServer(script=[talk, Silence()]) as a, broadcasting(a) as sender:
        assert sender.recv(GUARD) == (a.endpoint, b"0")
        sender.on(LinkEvent.INPUT, lambda *_: None)
        most = 0
        for n in range(1, n_all):
            most = max(most, len(sender._office.mailbox._letters))
            assert sender.recv(GUARD) == (a.endpoint, b"%d" % n)
        assert most < 15_000


# -- framings


@pytest.mark.parametrize("announced", [2**32 - 1, 1_001])
def test_a_length_beyond_the_limit_breaks_the_link_before_memory_is_taken(announced):
    framing = LengthPrefixed(4, max_size=1_000)
    said = announced.to_bytes(4, "big") + b"whatever"
    with ScriptedServer(script=[Send(said), Silence()]) as a, broadcasting(a, framing=framing) as sender:
        diary = Diary()
        sender.on(LinkEvent.INPUT | LinkEvent.DEAD, diary)
        diary.until(1)
        assert diary.told[0] == (LinkEvent.DEAD, str(a.endpoint))
        assert "max_size=1000" in str(sender.links()[0].last_error)
        a.until_accepts(1).until_ended()


def test_messages_before_an_offence_are_received(caplog):
    framing = Lines(max_size=10)
    with (
        ScriptedServer(script=[Send(b"good\n" + b"x" * 100), Silence()]) as a,
        broadcasting(a, framing=framing, reconnect=False) as sender,
    ):
        assert sender.recv(GUARD) == (a.endpoint, b"good")
        until(lambda: alive(sender) == 0, "the death")
        assert isinstance(sender.links()[0].last_error, FramingError)
    assert "cannot be read" not in caplog.text, "it is the peer's fault"


def test_an_offence_of_one_member_does_not_touch_another():
    with (
        ScriptedServer(script=[Send(b"x" * 100), Silence()]) as a,
        ScriptedServer(script=Silence()) as b,
        broadcasting(a, b, framing=Lines(max_size=10), reconnect=False) as sender,
    ):
        connection = b.until_accepts(1)
        assert sender.recv(0.05) is None
        until(lambda: alive(sender) == 1, "the death of one")
        connection.send(b"hello\n")
        assert sender.recv(GUARD) == (b.endpoint, b"hello")


def test_a_framing_of_ones_own_keeps_its_half_messages_by_connection():
    class Stars:
        """A message ends with a star."""

        def __init__(self) -> None:
            self.rest = b""

        def encode(self, message: bytes) -> bytes:
            return message + b"*"

        def feed(self, data: bytes) -> list[bytes]:
            *whole, self.rest = (self.rest + data).split(b"*")
            return whole

    with (
        ScriptedServer(script=Silence()) as a,
        ScriptedServer(script=Silence()) as b,
        broadcasting(a, b, framing=Stars()) as sender,
    ):
        one, other = a.until_accepts(1), b.until_accepts(1)
        sender.broadcast(b"to all")
        one.until_received(b"to all*")
        one.send(b"from ")
        other.send(b"by ")
        assert sender.recv(0.1) is None
        one.send(b"one*")
        assert sender.recv(GUARD) == (a.endpoint, b"from one")
        other.send(b"other*")
        assert sender.recv(GUARD) == (b.endpoint, b"by other")


def test_a_framing_whose_feed_fails_breaks_the_link_and_nothing_else(caplog):
    class Failing(Lines):
        def feed(self, data: bytes) -> list[bytes]:
            if b"bad" in data:
                raise ZeroDivisionError("a bug of the user's")
            return super().feed(data)

    with (
        ScriptedServer(script=Silence()) as a,
        ScriptedServer(script=Silence()) as b,
        broadcasting(a, b, framing=Failing(), reconnect=False) as sender,
    ):
        one, other = a.until_accepts(1), b.until_accepts(1)
        sender.on(LinkEvent.INPUT, Diary())
        until(lambda: alive(sender) == 2)
        one.send(b"bad\n")
        until(lambda: alive(sender) == 1, "the death of one")
        other.send(b"good\n")
        assert sender.recv(GUARD) == (b.endpoint, b"good")
    assert "sends cannot be read" in caplog.text


def test_raw_bytes_can_be_forwarded_from_one_stream_to_another():
    data = random.Random(9).randbytes(1_000_000)
    with (
        ScriptedServer(script=[Send(data), Silence()]) as source,
        ScriptedServer(script=Silence()) as target,
        broadcasting(source, framing=Raw()) as incoming,
        broadcasting(target, framing=Raw(), pool_settings={"name": "out"}) as outgoing,
    ):
        forwarded = 0
        while forwarded < len(data):
            got = incoming.recv(GUARD)
            assert got is not None
            outgoing.broadcast(got[1])
            forwarded += len(got[1])
        outgoing.flush(GUARD)
        served = target.until_accepts(1)
        served.until(lambda: len(served.received) >= len(data))
        assert target.received == [data]


# -- whose input it is


def test_input_belongs_to_confirm_where_there_is_one():
    with Sink(answers=True) as a, broadcasting(a, confirm=lambda conn, _: conn.recv(100)) as sender:
        with pytest.raises(UsageError, match="belongs to confirm"):
            sender.recv(0)
        assert sender.broadcast(b"hello").sent == (a.endpoint,)
        assert sender.broadcast(b"hello").sent == (a.endpoint,)


def test_a_member_that_resets_while_its_messages_are_read_is_dead_and_comes_back():
    script = [Send(b"one\n"), Reset()]
    with ScriptedServer(script=script) as a, broadcasting(a) as sender:
        sender.on(LinkEvent.ALIVE, Diary())
        a.until_accepts(3)
        a.script = Silence()
        until(lambda: sender.broadcast(b"x") and any(b"x\n" in each for each in a.received))


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    yield ours, theirs
    theirs.close()


def test_a_connection_that_was_adopted_raises_input_like_any_other(pair):
    ours, theirs = pair
    with ConnectionPool("a:1", reap_interval=None) as pool:
        pool.add_connection(ours, "a:1")
        diary = Diary()
        with Broadcaster(pool, framing=Lines()) as sender:
            sender.on(LinkEvent.INPUT, diary)
            assert sender.wait_ready(GUARD)
            theirs.sendall(b"hello\n")
            diary.until(1)
            assert sender.recv(0) == (diary.told[0][1] and sender.links()[0].endpoint, b"hello")


def test_a_member_that_is_added_later_raises_input_like_any_other():
    diary = Diary()
    with (
        ScriptedServer(script=Silence()) as a,
        ScriptedServer(script=Silence()) as b,
        broadcasting(a) as sender,
    ):
        sender.on(LinkEvent.INPUT, diary)
        a.until_accepts(1)
        sender.add(b.endpoint)
        b.until_accepts(1).send(b"hello\n")
        diary.until(1)
        assert diary.told == [(LinkEvent.INPUT, str(b.endpoint))]


def test_input_is_read_while_who_started_the_thread_before_is_still_at_it(monkeypatch, clock):
    """The thread ends with the last link, and the next link may come before that thread's start returns."""
    lingers, may_return = threading.Event(), threading.Event()
    start = threads.start

    def linger(thread: threading.Thread) -> bool:
        is_started = start(thread)
        if thread.name.startswith("connpool-watch") and not lingers.is_set():
            lingers.set()
            may_return.wait(GUARD)
        return is_started

    monkeypatch.setattr(threads, "start", linger)
    with (
        Sink(answers=True) as a,
        Sink(answers=True) as b,
        broadcasting(a, pool_settings={"clock": clock}) as sender,  # without upkeep, which would start it
    ):
        try:
            sender.broadcast(b"one")
            assert sender.recv(GUARD) == (a.endpoint, b"got one")
            assert lingers.wait(GUARD)
            sender.remove(a.endpoint)
            until(lambda: sender._watch._poller is None, "the end of the thread")
            sender.add(b.endpoint)
            sender.broadcast(b"two")
            assert sender.recv(GUARD) == (b.endpoint, b"got two")
        finally:
            may_return.set()


def test_the_thread_is_started_once_though_upkeep_sees_to_it_while_it_is_made(monkeypatch):
    started: list[threading.Thread] = []
    visitors: list[threading.Thread] = []
    lingers, may_start = threading.Event(), threading.Event()
    start = threads.start

    def linger(thread: threading.Thread) -> bool:
        if thread.name.startswith("connpool-watch"):
            started.append(thread)
            if threading.current_thread() in visitors:
                lingers.set()
                assert may_start.wait(GUARD)
        return start(thread)

    def visit(frame: FrameType, event: str, arg: Any) -> Any:
        """Before each line of the look that makes the thread: what upkeep does, on a thread of its own."""
        if event == "line" and not lingers.is_set():
            watch = frame.f_locals["self"]
            visitor = threading.Thread(target=watch.start, args=(watch._office(),))
            visitors.append(visitor)
            visitor.start()
            until(lambda: lingers.is_set() or not visitor.is_alive(), "the visitor")
        return visit

    monkeypatch.setattr(threads, "start", linger)
    with ScriptedServer(script=Silence()) as a:
        threading.settrace(lambda frame, *_: visit if frame.f_code is Watch.look.__code__ else None)
        try:
            with broadcasting(a) as sender:
                assert sender.wait_ready(GUARD)
                until(lambda: started, "the thread")
                may_start.set()
                for visitor in visitors:
                    visitor.join(GUARD)
        finally:
            threading.settrace(None)  # type: ignore[arg-type]
    assert len(visitors) > 5
    assert len(started) == 1


def test_input_of_who_comes_while_the_thread_is_about_to_leave_is_read(monkeypatch):
    leaving, may_leave = threading.Event(), threading.Event()
    end = Watch._end

    def linger(*arguments: Any) -> None:
        leaving.set()
        assert may_leave.wait(GUARD)
        end(*arguments)

    patient = {"blacklist_initial": 1_000.0, "blacklist_max": 1_000.0}
    diary = Diary()
    with ScriptedServer(script=Silence()) as a, broadcasting(a, pool_settings=patient) as sender:
        sender.on(LinkEvent.INPUT, diary)
        assert sender.wait_ready(GUARD)
        until(lambda: sender._watch._thread is not None, "the thread")  # it starts after the link is up
        monkeypatch.setattr(Watch, "_end", linger)
        sender.mark_dead(a.endpoint)
        assert leaving.wait(GUARD)
        try:
            sender.mark_alive(a.endpoint)
            until(lambda: alive(sender) == 1, "another connection")
        finally:
            may_leave.set()
        a.until_accepts(2).send(b"hello\n")
        diary.until(1)


def test_a_message_that_comes_just_before_a_receiver_waits_is_not_waited_for(clock):
    settings = {"clock": clock, "reap_interval": None}
    with ScriptedServer(script=Silence()) as a, broadcasting(a, pool_settings=settings) as sender:
        assert sender.wait_ready(GUARD)
        until(lambda: not any(link.is_tended for link in sender._office.roster.links.values()), "rest")
        mailbox = sender._office.mailbox
        take, looks = mailbox._take_letter_locked, []

        def deliver_after_the_first_look() -> Any:
            found = take()
            looks.append(found)
            if len(looks) == 1:
                mailbox.deliver(a.endpoint, [b"hello"])
            return found

        mailbox._take_letter_locked = deliver_after_the_first_look  # type: ignore[method-assign]
        with taking(0, 3.0):
            assert sender.recv(GUARD) == (a.endpoint, b"hello")
        assert looks[0] is None


def test_a_thread_that_could_not_be_started_leaves_no_socket_open(monkeypatch):
    start = threads.start
    monkeypatch.setattr(
        threads, "start", lambda thread: not thread.name.startswith("connpool-watch") and start(thread)
    )
    with Sink() as a, broadcasting(a) as sender:
        sender.broadcast(b"one")
        until(lambda: sender._watch._poller is not None, "somebody who wants the thread")
        assert sender._watch._thread.ident is None
