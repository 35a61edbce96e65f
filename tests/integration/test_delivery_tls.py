"""Over TLS all holds that holds without: nothing torn, nothing lost in buffers, no thread in the way."""

from __future__ import annotations

import ssl
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from connpool import (
    ConnPoolError,
    LinkEvent,
    MemorySpool,
    NoEndpointError,
    SocketConnector,
    UsageError,
)
from connpool.testing import FakeClock, Send, Silence
from connpool.wire.io import Stream
from tests.helpers.certificates import Certificates
from tests.helpers.sinks import (
    GUARD,
    MUCH,
    Diary,
    Sink,
    acknowledged,
    all_alive,
    broadcasting,
    check_ascending,
    fill,
    narrow,
    numbered,
)
from tests.helpers.switchboard import until
from tests.helpers.together import together


@pytest.fixture
def secure(certificates: Certificates) -> Iterator[Sink]:
    with Sink(tls=certificates.server()) as server:
        yield server


def trusting(certificates: Certificates, **options: Any) -> dict[str, Any]:
    return {"connector": SocketConnector(tls=certificates.client(), **options), "connect_timeout": GUARD}


def narrowly(certificates: Certificates) -> dict[str, Any]:
    return trusting(certificates, handshake=narrow().handshake)


def test_messages_arrive_over_tls_from_many_threads(secure, certificates):
    with broadcasting(secure, pool_settings=trusting(certificates)) as sender:
        together(*(lambda who=who: list(map(sender.broadcast, numbered(100, who=who))) for who in "rstuvwxy"))
        lines = secure.until_lines(800)
        check_ascending(lines)
        assert len(lines) == 800


def test_a_peer_that_is_not_to_be_trusted_gets_nothing_and_the_next_group_takes_its_place(certificates):
    with (
        Sink(tls=certificates.server("elsewhere.test")) as impostor,
        Sink() as c,
        broadcasting(impostor, "||", c, pool_settings=trusting(certificates)) as sender,
    ):
        assert sender.broadcast(b"secret").group == 1
        c.until_has(b"secret")
        assert impostor.lines == []
        until(lambda: "certificate" in str(sender.links()[0].last_error), "the reason")


def test_what_waits_is_flushed_over_tls_in_order(secure, certificates):
    secure.stop()
    with broadcasting(secure, pool_settings=trusting(certificates)) as sender:
        for message in numbered(1_000):
            sender.broadcast(message)
        secure.start()
        for message in numbered(200, 1_000):
            sender.broadcast(message)
        assert secure.until_lines(1_200) == numbered(1_200)


def test_a_tls_peer_that_stops_reading_gets_every_message_whole_in_the_end(secure, certificates):
    secure.is_deaf = True
    with broadcasting(secure, pool_settings=narrowly(certificates)) as sender:
        all_alive(sender)
        n = fill(sender, lambda: sender.unsent().total > 5, b"f" * 20_000)
        for message in numbered(50):
            sender.broadcast(message)
        secure.is_deaf = False
        lines = secure.until_lines(n + 50)
        assert set(lines[:n]) == {b"f" * 20_000}
        assert lines[n:] == numbered(50)


@pytest.mark.parametrize("with_spool", [True, False])
def test_threads_that_meet_full_buffers_tear_no_message(secure, certificates, with_spool):
    over = threading.Event()
    senders = "stuv"

    def send(who: str) -> None:
        for n in range(60):
            sender.broadcast(f"{who}-{n}-".encode() + who.encode() * (n * 997 % 30_000))

    def torment() -> None:
        while not over.is_set():
            secure.is_deaf = True
            over.wait(0.02)
            secure.is_deaf = False
            over.wait(0.005)

    options: dict[str, Any] = {} if with_spool else {"spool": None}
    with broadcasting(secure, pool_settings=narrowly(certificates), **options) as sender:
        all_alive(sender)
        tormentor = threading.Thread(target=torment)
        tormentor.start()
        try:
            together(*(lambda who=who: send(who) for who in senders), limit=20)
            lines = secure.until_lines(240)
        finally:
            over.set()
            tormentor.join()
        check_ascending(lines)
        assert secure.accepts == 1
        for line in lines:
            who, number, body = line.split(b"-")
            assert body == who * (int(number) * 997 % 30_000)


def test_a_heartbeat_that_finds_no_room_leaves_nothing_of_itself_before_the_next_message(certificates):
    clock = FakeClock()
    heartbeat = b"h" * 10_000
    settings = {**narrowly(certificates), "clock": clock, "reap_interval": None}
    with (
        Sink(tls=certificates.server()) as server,
        broadcasting(server, heartbeat=(1.0, heartbeat), pool_settings=settings) as sender,
    ):
        sender.wait_ready(GUARD)
        server.is_deaf = True
        for _ in range(100):  # more than all buffers hold: the last are left out
            clock.advance(1.0)
            sender.sweep()
            until(sender._keeping._beating.turns.are_free)
        sender.broadcast(b"m" * 30_000)
        server.is_deaf = False
        server.until_has(b"m" * 30_000)
        assert set(server.lines) == {heartbeat, b"m" * 30_000}


def test_reading_and_writing_on_one_tls_connection_do_not_disturb_each_other(secure, certificates):
    secure.answers = True
    with broadcasting(secure, pool_settings=trusting(certificates)) as sender:
        sender.wait_ready(GUARD)

        def send() -> None:
            for n in range(200):
                sender.broadcast(b"%d-" % n + b"x" * 5_000)

        def receive() -> None:
            for n in range(200):
                got = sender.recv(GUARD)
                assert got == (secure.endpoint, b"got %d-" % n + b"x" * 5_000)

        together(send, receive, limit=20)


def test_confirmed_delivery_over_tls_survives_the_death_of_the_peer(certificates):
    with (
        Sink(tls=certificates.server(), answers=True) as server,
        broadcasting(server, confirm=acknowledged, pool_settings=trusting(certificates)) as sender,
    ):
        for n, message in enumerate(numbered(60)):
            if n % 20 == 10:
                server.kill()
            sender.broadcast(message)
        until(lambda: sender.unsent().total == 0)
        assert list(dict.fromkeys(server.lines)) == numbered(60)


def test_two_messages_in_one_tls_record_are_both_told_and_received_without_more_traffic(secure, certificates):
    secure.script = [Send(b"one\ntwo\n"), Silence()]
    diary = Diary()
    with broadcasting(secure, pool_settings=trusting(certificates)) as sender:
        sender.on(LinkEvent.INPUT, diary)
        diary.until(2)
        assert [sender.recv(GUARD), sender.recv(GUARD)] == [
            (secure.endpoint, b"one"),
            (secure.endpoint, b"two"),
        ]


def test_what_was_decrypted_before_anybody_wanted_it_is_received_without_more_traffic(certificates):
    """More than one record's worth waits inside of TLS when the first reader comes."""
    lines = [b"%d" % n + b"." * 9_000 for n in range(20)]
    with (
        Sink(tls=certificates.server()) as server,
        broadcasting(server, pool_settings=trusting(certificates)) as sender,
    ):
        server.script = [Send(b"".join(line + b"\n" for line in lines)), Silence()]
        sender.wait_ready(GUARD)
        server.kill()
        server.until_accepts(2)
        got = [sender.recv(GUARD) for _ in lines]
        assert got == [(server.endpoint, line) for line in lines]


def test_a_member_that_marks_the_end_of_tls_without_a_word_is_dead(secure, certificates):
    with broadcasting(secure, pool_settings=trusting(certificates)) as sender:
        all_alive(sender)
        sender.broadcast(b"one")
        secure.until_has(b"one")
        secure.until_accepts(1).close()
        sender.broadcast(b"two")
        secure.until_has(b"two")
        assert len(b"".join(secure.lines)) < MUCH


def test_a_message_that_waits_for_the_peers_part_of_a_new_handshake_uses_no_processor_time(
    certificates, monkeypatch
):
    """With TLS 1.2 there may be one at any time, and nothing can be written before it is over."""
    tried = []
    context = certificates.server()
    context.maximum_version = ssl.TLSVersion.TLSv1_2

    def want_to_read(stream: Stream, views: list[memoryview], eager: bool) -> int:
        tried.append(eager)
        raise ssl.SSLWantReadError

    with (
        Sink(tls=context) as old,
        broadcasting(old, pool_settings=trusting(certificates), spool=None, send_timeout=0.6) as sender,
    ):
        all_alive(sender)
        with monkeypatch.context() as patch:
            patch.setattr(Stream, "try_write", want_to_read)
            with pytest.raises(NoEndpointError, match=r"the peer took nothing for 0\.6 s"):
                sender.broadcast(b"one")
    assert len(tried) < 10


@pytest.mark.parametrize("spool", [None, MemorySpool()], ids=["no spool", "spool"])
def test_a_finaliser_on_the_thread_that_reads_may_broadcast(secure, certificates, monkeypatch, spool):
    """It comes from within a call on TLS, of which there is one at a time."""
    results: list[object] = []
    read = ssl.SSLSocket.recv

    def visited(raw: ssl.SSLSocket, *arguments: Any) -> bytes:
        if threading.current_thread().name.startswith("connpool-watch") and not results:
            try:
                assert sender._office.roster.find(secure.endpoint)[0].is_inside()  # else it hangs
                results.append(sender.broadcast(b"farewell").spooled)
            except ConnPoolError as error:
                results.append(type(error))
            except AssertionError as error:
                results.append(error)
        return read(raw, *arguments)

    secure.answers = True
    with broadcasting(secure, spool=spool, pool_settings=trusting(certificates)) as sender:
        assert sender.wait_ready(GUARD)
        monkeypatch.setattr(ssl.SSLSocket, "recv", visited)
        sender.broadcast(b"hello")
        assert sender.recv(GUARD) == (secure.endpoint, b"got hello")
        assert results == [UsageError if spool is None else (str(secure.endpoint),)]
        assert sender.flush(GUARD) == 0
        sender.broadcast(b"last")
        lines = [b"hello", b"last"] if spool is None else [b"hello", b"farewell", b"last"]
        assert secure.until_lines(len(lines)) == lines


def test_what_a_tls_peer_has_of_a_batch_as_its_link_is_taken_down_is_not_sent_again(
    secure, certificates, monkeypatch
):
    write = Stream.try_write

    def write_and_end(stream: Stream, views: list[memoryview], eager: bool) -> int:
        n_written = write(stream, views, eager)
        monkeypatch.undo()
        sender.mark_dead(secure.endpoint)
        return n_written

    messages = [message + b"x" * 10_000 for message in numbered(6)]  # a record has one of them, and a half
    with broadcasting(secure, pool_settings=trusting(certificates)) as sender:
        all_alive(sender)
        secure.refuse()
        sender.mark_dead(secure.endpoint)
        for message in messages:
            assert sender.broadcast(message).spooled
        monkeypatch.setattr(Stream, "try_write", write_and_end)
        secure.start()
        assert sender.flush(GUARD) == 0
    secure.stop()
    assert secure.lines == messages
