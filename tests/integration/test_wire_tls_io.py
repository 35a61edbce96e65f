"""Input, output, looks and closes on connections that speak TLS."""

from __future__ import annotations

import contextlib
import select
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from connpool.testing import (
    Answer,
    Deaf,
    Echo,
    ScriptedServer,
    Silence,
)
from connpool.testing.served import ServedConnection
from connpool.wire import look
from connpool.wire.connector import SocketConnector
from connpool.wire.io import Stream, is_tls
from tests.helpers.certificates import Certificates
from tests.helpers.together import together
from tests.helpers.wire import later, taking


def open_tls(server: ScriptedServer, context: ssl.SSLContext, **settings: Any) -> Stream:
    return Stream(SocketConnector(context, **settings).open(server.endpoint, 10.0))


# -- input and output


@pytest.mark.parametrize("timeout", [None, 10.0])
def test_many_small_and_some_large_buffers_arrive_whole(
    certificates: Certificates, timeout: float | None
) -> None:
    buffers = [b"%07d" % i for i in range(3_000)] + [
        bytearray(b"x" * 200_000),
        b"",
        b"y",
        memoryview(b"z" * 70_000),
    ]
    expected = b"".join(buffers)
    with ScriptedServer(script=Echo(), tls=certificates.server()) as server:
        ours = open_tls(server, certificates.client())
        _, back = together(
            lambda: ours.writev_all(buffers, timeout),  # one thread writes while another one reads
            lambda: ours.recv_exactly(len(expected), timeout),
        )
        assert back == expected
        look.close(ours.raw)


def test_lines_and_buffers_are_read_over_tls(certificates: Certificates) -> None:
    with ScriptedServer(script=Answer(b"line\nrest" + b"x" * 40_000), tls=certificates.server()) as server:
        ours = open_tls(server, certificates.client())
        ours.sendall(b"?")
        assert ours.recv_until(b"\n", 100, timeout=5) == b"line\n"
        assert ours.recv_exactly(4, timeout=5) == b"rest"
        target = bytearray(50_000)
        got = 0
        while got < 40_000:
            got += ours.recv_into(memoryview(target)[got:], timeout=5)
        assert target[:got] == b"x" * 40_000
        assert ours.received
        with pytest.raises(TimeoutError):
            ours.recv(1, timeout=0.05)
        look.close(ours.raw)


@pytest.mark.parametrize(
    "read", [lambda ours: ours.recv(10, 10.0), lambda ours: ours.recv_into(bytearray(3), 0, 10.0)]
)
def test_the_end_of_tls_is_the_end_as_often_as_one_reads_though_the_connection_stays(
    certificates: Certificates, read: Callable[[Stream], object]
) -> None:
    here, there = socket.socketpair()
    with here, there:
        ours = Stream(here)
        secure, theirs = together(
            lambda: ours.start_tls(certificates.client(), "localhost", 10.0),
            lambda: certificates.server().wrap_socket(there, server_side=True),
        )
        with secure, theirs:
            theirs.sendall(b"last")
            theirs.settimeout(0.0)
            with contextlib.suppress(ssl.SSLWantReadError):
                theirs.unwrap()  # it says that it has sent its last, and waits for us to say so
            assert ours.recv(10, 10.0) == b"last"
            for _ in range(3):
                assert not read(ours)
                with pytest.raises(ConnectionResetError, match="ended the stream after 0 of 1 bytes"):
                    ours.recv_exactly(1, 10.0)


@pytest.mark.parametrize("timeout", [None, 20.0])
@pytest.mark.parametrize("blocked_in", ["recv", "sendall"])
def test_an_interrupt_ends_blocked_calls_over_tls(
    certificates: Certificates, blocked_in: str, timeout: float | None
) -> None:
    with ScriptedServer(script=Deaf(), tls=certificates.server()) as server:
        ours = open_tls(server, certificates.client())
        calls = {
            "recv": lambda: ours.recv(1, timeout),
            "sendall": lambda: ours.sendall(b"x" * 10_000_000, timeout),
        }
        with (
            later(lambda: ours.interrupt(socket.SHUT_RDWR, "shut down")),
            taking(0.05, 5.0),
            pytest.raises(ConnectionAbortedError, match="shut down"),
        ):
            calls[blocked_in]()
        with pytest.raises(ConnectionAbortedError, match="shut down"):
            ours.sendall(b"not in plain text")
        look.close(ours.raw)


def test_a_tls_socket_blocks_without_limit_between_our_calls(certificates: Certificates) -> None:
    with ScriptedServer(script=Echo(), tls=certificates.server()) as server:
        ours = open_tls(server, certificates.client())
        ours.sendall(b"x", timeout=5)
        assert ours.raw.gettimeout() is None
        ours.recv_exactly(1, timeout=5)
        assert ours.raw.gettimeout() is None
        look.close(ours.raw)


def test_no_two_threads_are_inside_one_tls_connection(certificates: Certificates) -> None:
    """OpenSSL does not bear it, and a crash would be rare: so count who is inside."""
    inside: list[str] = []
    overlaps: list[list[str]] = []

    class Watched(ssl.SSLSocket):
        def recv(self, buflen: int = 1024, flags: int = 0) -> bytes:
            with watching("recv"):
                return super().recv(buflen, flags)

        def send(self, data: Any, flags: int = 0) -> int:
            with watching("send"):
                return super().send(data, flags)

    @contextlib.contextmanager
    def watching(what: str) -> Iterator[None]:
        inside.append(what)
        time.sleep(0.002)  # gives the other thread its chance
        if len(inside) > 1:
            overlaps.append(list(inside))
        try:
            yield
        finally:
            inside.remove(what)

    context = certificates.client()
    context.sslsocket_class = Watched
    with ScriptedServer(script=Echo(), tls=certificates.server()) as server:
        ours = open_tls(server, context)
        data = b"x" * 2_000_000
        together(lambda: ours.sendall(data, 10.0), lambda: ours.recv_exactly(len(data), 10.0))
        look.close(ours.raw)
    assert not overlaps


# -- looking and closing


@pytest.fixture
def idle(certificates: Certificates) -> Iterator[tuple[ssl.SSLSocket, ServedConnection]]:
    """A fresh TLS 1.3 connection whose session tickets lie unread."""
    with ScriptedServer(script=Silence(), tls=certificates.server()) as server:
        raw = open_tls(server, certificates.client()).raw
        assert is_tls(raw)
        until_readable(raw)
        yield raw, server.until_accepts(1)
        look.close(raw)


def until_readable(raw: socket.socket, n: int = 1) -> None:
    """Wait until *n* bytes, or the end, have come; they stay unread."""
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, n)
    poll = select.poll()
    poll.register(raw, select.POLLIN)
    assert poll.poll(5_000)
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)


def unread(raw: socket.socket) -> int:
    return len(socket.socket.recv(raw, 10_000, socket.MSG_PEEK | socket.MSG_DONTWAIT))


Idle = tuple[ssl.SSLSocket, ServedConnection]


def test_a_fresh_connection_with_its_tickets_unread_is_usable(idle: Idle) -> None:
    raw, _ = idle
    raw.settimeout(7.0)
    assert look.is_usable(raw)
    assert look.is_usable(raw)  # now without tickets
    assert raw.gettimeout() == 7.0


@pytest.mark.parametrize("tickets", ["unread", "read"])
@pytest.mark.parametrize("how", ["close", "reset", "stray byte"])
def test_a_goodbye_a_reset_and_a_stray_byte_are_seen(idle: Idle, how: str, tickets: str) -> None:
    raw, served = idle
    before = unread(raw)
    if tickets == "read":
        assert look.is_usable(raw)
        before = 0
    {"close": served.close, "reset": served.reset, "stray byte": lambda: served.send(b"!")}[how]()
    until_readable(raw, before + 1)
    assert not look.is_usable(raw)


def test_bytes_that_tls_has_decrypted_already_are_seen(certificates: Certificates) -> None:
    with ScriptedServer(script=Answer(b"ab"), tls=certificates.server()) as server:
        ours = open_tls(server, certificates.client())
        ours.sendall(b"?")
        assert ours.recv(1, timeout=5) == b"a"
        assert not look.is_usable(ours.raw)
        look.close(ours.raw)


def test_a_socket_whose_tls_was_taken_off_is_not_usable(certificates: Certificates) -> None:
    with ScriptedServer(script=Silence(), tls=certificates.server()) as server:
        raw = open_tls(server, certificates.client()).raw
        raw.shutdown(socket.SHUT_WR)  # what SSLSocket.shutdown does on top
        assert not look.is_usable(raw)
        look.close(raw)


def test_a_close_says_goodbye_without_waiting_for_an_answer(certificates: Certificates) -> None:
    ended: list[bytes] = []

    def listen(connection: ServedConnection) -> None:
        sock = connection._transport.sock
        assert isinstance(sock, ssl.SSLSocket)
        sock.suppress_ragged_eofs = False  # an end without goodbye would be an error
        until_readable(sock)
        ended.append(sock.recv(1))

    with ScriptedServer(script=listen, tls=certificates.server()) as server:
        ours = open_tls(server, certificates.client())
        with taking(0, 1.0):
            look.close(ours.raw)
        server.until_accepts(1).until_ended()
    assert ended == [b""]


def test_a_close_does_not_wait_for_a_peer_that_never_answers(certificates: Certificates) -> None:
    with ScriptedServer(script=Deaf(), tls=certificates.server()) as server:
        ours = open_tls(server, certificates.client())
        ours.sendall(b"unread")
        with taking(0, 2.0):
            look.close(ours.raw)


def test_an_abandoned_connection_says_no_goodbye(certificates: Certificates) -> None:
    with ScriptedServer(script=Echo(), tls=certificates.server()) as server:
        ours = open_tls(server, certificates.client())
        kept = socket.socket(fileno=socket.dup(ours.fileno()))  # the parent's descriptor
        look.abandon(ours.raw)
        kept.settimeout(0.2)

        def read_to_the_end() -> None:  # past the tickets; a goodbye would have ended the connection
            while kept.recv(10_000):
                pass

        with pytest.raises(TimeoutError):
            read_to_the_end()
        assert server.until_accepts(1).ending is None
        kept.close()
