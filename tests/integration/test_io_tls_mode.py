"""Who finds a TLS socket in which mode: ours alone stays non-blocking between calls, any other blocks."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from connpool import CloseReason, Connection, ConnectionPool, HandshakeError, SocketConnector
from connpool.testing import Answer, Echo, ScriptedServer, StartTls
from connpool.wire.io import TLSSocket, is_tls
from tests.helpers.certificates import Certificates
from tests.helpers.wire import later


@pytest.fixture
def server(certificates: Certificates) -> Iterator[ScriptedServer]:
    with ScriptedServer(script=Echo(), tls=certificates.server()) as server:
        yield server


def ask(conn: Connection, text: bytes = b"ping") -> None:
    conn.sendall(text, timeout=5)
    assert conn.recv_exactly(len(text), timeout=5) == text


def ask_by_hand(raw: Any) -> None:
    """As who has the socket itself does: it blocks, so one need not wait for anything."""
    assert raw.gettimeout() is None
    raw.sendall(b"by hand")
    assert raw.recv(7) == b"by hand"


def modes(monkeypatch: pytest.MonkeyPatch) -> list[float | None]:
    """What this thread sets TLS sockets to from now on; the server has threads and sockets of its own."""
    told: list[float | None] = []
    here = threading.current_thread()

    def settimeout(self: ssl.SSLSocket, seconds: float | None) -> None:
        if threading.current_thread() is here:
            told.append(seconds)
        socket.socket.settimeout(self, seconds)

    monkeypatch.setattr(TLSSocket, "settimeout", settimeout, raising=False)
    return told


def test_the_mode_of_a_socket_that_nobody_else_has_is_set_once(
    server: ScriptedServer, certificates: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ConnectionPool(server.endpoint, connector=SocketConnector(certificates.client())) as pool:
        with pool.try_connect(timeout=5) as conn:
            ask(conn)
        told = modes(monkeypatch)
        for _ in range(3):
            with pool.try_connect(timeout=5) as conn:
                ask(conn)
        assert told == []


@pytest.mark.parametrize(
    "of", [lambda conn: conn.raw, lambda conn: conn.socket, lambda conn: conn.ssl_socket], ids=str
)
def test_who_asks_for_the_socket_finds_it_blocking_before_ours_and_after(
    server: ScriptedServer, certificates: Certificates, of: Callable[[Connection], Any]
) -> None:
    with ConnectionPool(server.endpoint, connector=SocketConnector(certificates.client())) as pool:
        for _ in range(2):
            with pool.try_connect(timeout=5) as conn:
                ask(conn)
                raw = of(conn)
                ask_by_hand(raw)
                ask(conn)
                ask_by_hand(raw)


@pytest.mark.parametrize("has_spoken", [True, False])
def test_what_leaves_the_pool_blocks(
    server: ScriptedServer, certificates: Certificates, has_spoken: bool
) -> None:
    with ConnectionPool(server.endpoint, connector=SocketConnector(certificates.client())) as pool:
        left: list[Any] = []
        with pool.try_connect(timeout=5) as conn:
            if has_spoken:
                ask(conn)
            left.append(conn.detach())
        with pool.try_connect(timeout=5) as conn:
            if has_spoken:
                ask(conn)
        left.append(pool.take())
        for raw in left:
            with raw:
                ask_by_hand(raw)


@pytest.mark.parametrize("how", ["opened", "upgraded", "added"])
def test_whose_tls_its_holder_has_taken_off_is_not_lent_again(certificates: Certificates, how: str) -> None:
    is_upgraded = how == "upgraded"
    context, theirs = certificates.client(), certificates.server()
    connector = SocketConnector(
        context, handshake=(lambda conn: conn.start_tls(context)) if is_upgraded else None
    )
    with (
        ScriptedServer(
            script=(StartTls(theirs), Echo()) if is_upgraded else Echo(), tls=None if is_upgraded else theirs
        ) as server,
        ConnectionPool(server.endpoint, connector=connector) as pool,
    ):
        if how == "added":
            pool.add_connection(connector.open(server.endpoint, 5.0), server.endpoint)
        with pool.try_connect(timeout=5) as conn:
            ask(conn)
            assert conn.ssl_socket is not None
            conn.ssl_socket.shutdown(socket.SHUT_RD)  # on top of what a socket's own does
        with pool.try_connect(timeout=5) as conn:
            assert conn.uses == 0
            ask(conn)
        assert pool.stats().closed == {CloseReason.BROKEN: 1}


def test_what_came_from_outside_blocks_between_our_calls(
    server: ScriptedServer, certificates: Certificates
) -> None:
    connector = SocketConnector(certificates.client())
    raw = connector.open(server.endpoint, 5.0)
    with ConnectionPool(connector=connector) as pool:
        pool.add_connection(raw)
        with pool.try_connect(timeout=5) as conn:
            ask(conn)
            ask_by_hand(raw)


def test_who_opens_for_a_pool_and_keeps_the_socket_finds_it_blocking(
    server: ScriptedServer, certificates: Certificates
) -> None:
    """One that is derived from ours too: it may look at what it opens, or reset it, in its own way."""

    class Keeping(SocketConnector):
        def open(self, *arguments: Any) -> socket.socket:
            kept.append(super().open(*arguments))
            return kept[-1]

        def reset(self, raw: Any) -> None:
            ask_by_hand(raw)

    kept: list[socket.socket] = []
    with ConnectionPool(server.endpoint, connector=Keeping(certificates.client())) as pool:
        for _ in range(2):
            with pool.try_connect(timeout=5) as conn:
                ask(conn)
                ask_by_hand(kept[0])
        assert pool.stats().opened == 1


def test_who_shakes_hands_may_use_the_socket_itself(
    server: ScriptedServer, certificates: Certificates
) -> None:
    def greet(conn: Connection) -> None:
        ask(conn)
        ask_by_hand(conn.raw)

    connector = SocketConnector(certificates.client(), handshake=greet)
    with ConnectionPool(server.endpoint, connector=connector) as pool, pool.try_connect(timeout=5) as conn:
        ask(conn)


def test_an_upgraded_socket_is_ours_alone_until_somebody_asks_for_it(
    certificates: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = [Answer(b"go ahead\n", times=1), StartTls(certificates.server()), Echo()]
    with (
        ScriptedServer(script=script) as server,
        ConnectionPool(server.endpoint) as pool,
        pool.try_connect(timeout=5) as conn,
    ):
        conn.sendall(b"STARTTLS\n", timeout=5)
        conn.recv_until(b"\n", timeout=5)
        conn.start_tls(certificates.client(), timeout=5)
        told = modes(monkeypatch)
        ask(conn)
        assert told == []
        assert is_tls(conn.raw)
        ask_by_hand(conn.raw)


def test_what_an_upgrade_has_closed_can_be_asked_for_as_well(certificates: Certificates) -> None:
    with (
        ScriptedServer() as server,
        ConnectionPool(server.endpoint) as pool,
        pool.try_connect(timeout=5) as conn,
    ):
        with pytest.raises(HandshakeError):
            conn.start_tls(certificates.client(), server_hostname=".", timeout=5)
        assert conn.raw.fileno() == -1


def test_a_reader_that_waits_goes_on_when_another_holder_asks_for_the_socket(
    server: ScriptedServer, certificates: Certificates
) -> None:
    with (
        ConnectionPool(
            server.endpoint, connector=SocketConnector(certificates.client()), sharable=True
        ) as pool,
        pool.share(timeout=5) as one,
        pool.share(timeout=5) as other,
    ):
        ask(one)
        seen: list[Any] = []
        with later(lambda: (seen.append(other.raw.gettimeout()), other.sendall(b"late", timeout=5))):
            assert one.recv_exactly(4, timeout=5) == b"late"
        assert seen == [None]
