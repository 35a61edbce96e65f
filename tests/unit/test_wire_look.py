"""Looking at plain transports, and letting go of them."""

from __future__ import annotations

import os
import select
import socket
import ssl
import struct
import sys
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from connpool.wire import look
from tests.helpers.together import together


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Two ends of one TCP connection."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ours = socket.create_connection(listener.getsockname())
        theirs, _ = listener.accept()
    with ours, theirs:
        yield ours, theirs


Pair = tuple[socket.socket, socket.socket]


def until_readable(sock: socket.socket) -> None:
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    assert poll.poll(5_000)


@pytest.mark.parametrize("timeout", [None, 0.0, 5.0])
def test_a_quiet_connection_is_usable_and_its_timeout_stays(pair: Pair, timeout: float | None) -> None:
    ours, _ = pair
    ours.settimeout(timeout)
    assert look.is_usable(ours)
    assert ours.gettimeout() == timeout


def test_an_end_of_stream_a_reset_and_a_stray_byte_are_seen(pair: Pair) -> None:
    ours, theirs = pair
    theirs.sendall(b"!")
    until_readable(ours)
    assert not look.is_usable(ours)
    ours.recv(1)
    assert look.is_usable(ours)
    theirs.shutdown(socket.SHUT_WR)
    until_readable(ours)
    assert not look.is_usable(ours)


def test_a_connection_that_only_reads_is_usable_until_its_peer_ends_it(pair: Pair) -> None:
    ours, theirs = pair
    ours.shutdown(socket.SHUT_WR)
    until_readable(theirs)  # and so the peer knows
    assert look.is_usable(ours)
    theirs.close()
    until_readable(ours)
    assert not look.is_usable(ours)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="other systems do not tell")
def test_an_end_that_comes_while_the_interpreter_is_given_to_others_is_seen(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, theirs = pair

    class Outdated:
        """Answers, and then waits for the interpreter, as ``poll`` does."""

        def __init__(self) -> None:
            self._poll = _poll()

        def register(self, *args: object) -> None:
            self._poll.register(*args)

        def poll(self, timeout: float) -> list[tuple[int, int]]:
            answer = self._poll.poll(timeout)
            theirs.close()
            until_readable(ours)
            return answer

    _poll = select.poll
    monkeypatch.setattr(look, "select", SimpleNamespace(poll=Outdated))
    assert not look.is_usable(ours)


def test_a_reset_is_seen(pair: Pair) -> None:
    ours, theirs = pair
    theirs.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    theirs.close()
    until_readable(ours)
    assert not look.is_usable(ours)


def test_urgent_data_is_seen(pair: Pair) -> None:
    ours, theirs = pair
    theirs.send(b"!", socket.MSG_OOB)
    poll = select.poll()
    poll.register(ours, select.POLLPRI)
    assert poll.poll(5_000)
    assert not look.is_usable(ours)


def test_a_closed_or_unconnected_socket_is_not_usable(pair: Pair) -> None:
    ours, _ = pair
    look.close(ours)
    assert not look.is_usable(ours)
    with socket.socket() as fresh:
        assert not look.is_usable(fresh)


def test_what_is_no_socket_is_trusted_left_alone_and_nameless() -> None:
    raw = object()
    assert look.is_usable(raw)
    look.interrupt(raw)
    look.close(raw)
    assert look.describe(raw) == (None, None, None)


def test_an_interrupt_of_a_dead_socket_is_no_error(pair: Pair) -> None:
    ours, theirs = pair
    look.interrupt(ours)
    look.interrupt(ours)
    assert theirs.recv(1) == b""
    ours.close()
    look.interrupt(ours)


def test_an_interrupt_wakes_a_thread_in_a_plain_recv(pair: Pair) -> None:
    ours, _ = pair
    data, _ = together(lambda: ours.recv(1), lambda: look.interrupt(ours))
    assert data == b""


def test_a_close_may_be_repeated_and_survives_a_reset(pair: Pair) -> None:
    ours, theirs = pair
    theirs.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    theirs.close()
    until_readable(ours)
    look.close(ours)
    look.close(ours)
    assert ours.fileno() == -1


def test_a_foreign_object_is_closed_by_its_own_close() -> None:
    calls = []

    class Client:
        def close(self) -> None:
            calls.append("close")

    look.close(Client())
    assert calls == ["close"]


def test_one_that_is_closed_by_another_thread_in_the_midst_of_it_is_described_as_far_as_it_was(
    pair: Pair,
) -> None:
    class Closed(ssl.SSLSocket):
        """Whoever looks whether it is open has another close it."""

        @property
        def _sslobj(self) -> object:
            return self.__dict__.pop("layer", None)

        @_sslobj.setter
        def _sslobj(self, layer: object) -> None:
            self.__dict__["layer"] = layer

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.sslsocket_class = Closed
    local, peer = (end.getsockname()[1] for end in pair)
    secure = context.wrap_socket(pair[0], do_handshake_on_connect=False, server_hostname="a")
    secure._sslobj = object()
    with secure:
        assert look.describe(secure) == (f"127.0.0.1:{local}", f"127.0.0.1:{peer}", None)


def test_both_ends_are_described(pair: Pair) -> None:
    ours, _ = pair
    local, peer = ours.getsockname()[1], ours.getpeername()[1]
    assert look.describe(ours) == (f"127.0.0.1:{local}", f"127.0.0.1:{peer}", None)
    ours.close()
    assert look.describe(ours) == (None, None, None)


@pytest.mark.parametrize(
    ("address", "text"),
    [
        (("::1", 80, 0, 0), "[::1]:80"),
        (("10.0.0.1", 80), "10.0.0.1:80"),
        ((3, 1024), "3:1024"),  # a virtual machine
        (("can0",), "can0"),
        ("/run/x", "/run/x"),
        (b"\0abstract", "\0abstract"),
        ("", None),
    ],
)
def test_addresses_are_written_as_endpoints_are(address: object, text: str | None) -> None:
    assert look.address_text(address) == text


def test_abandoning_a_socket_says_nothing_to_its_peer(pair: Pair) -> None:
    """What a forked child does, played with a duplicate of the descriptor."""
    ours, theirs = pair
    childs = ours.dup()
    look.abandon(childs)
    look.abandon(childs)
    assert childs.fileno() == -1
    theirs.setblocking(False)
    with pytest.raises(BlockingIOError):
        theirs.recv(1)
    ours.sendall(b"alive")
    theirs.settimeout(5)
    assert theirs.recv(5) == b"alive"


def test_the_goodbye_of_an_abandoned_client_reaches_nobody(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, theirs = pair

    class Client:
        """Says goodbye when it is closed, as database drivers do."""

        def __init__(self, fd: int) -> None:
            self.fd = fd

        def fileno(self) -> int:
            return self.fd

        def close(self) -> None:
            os.write(self.fd, b"goodbye")
            os.close(self.fd)

    kept: list[object] = []
    monkeypatch.setattr(look, "_abandoned", kept)
    client = Client(os.dup(ours.fileno()))
    look.abandon(client)
    assert kept == [client]
    assert not os.get_inheritable(client.fd)
    client.close()
    theirs.setblocking(False)
    with pytest.raises(BlockingIOError):
        theirs.recv(1)


@pytest.mark.parametrize("fileno", [lambda: -1, lambda: None, lambda: 1 / 0])
def test_a_client_without_a_descriptor_is_abandoned_all_the_same(
    fileno: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(look, "_abandoned", [])
    client = type("Client", (), {"fileno": staticmethod(fileno)})()
    look.abandon(client)
