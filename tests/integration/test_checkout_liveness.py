"""Idle connections are looked at before they are lent: dead ones are replaced, healthy ones are not."""

from __future__ import annotations

import select
import socket
import threading
from collections.abc import Callable
from typing import Any

import pytest

from connpool import CloseReason, Connection, ConnectionPool, SocketConnector, UsageError
from connpool.testing import (
    Answer,
    Close,
    Deaf,
    Echo,
    FakeClock,
    ScriptedServer,
    Send,
    ServedConnection,
    Silence,
)
from connpool.wire import stream
from tests.helpers.certificates import Certificates
from tests.helpers.clients import ask
from tests.helpers.together import together
from tests.helpers.wire import taking


def until_readable(raw: socket.socket) -> None:
    """Wait until something has arrived: bytes, the end of the stream, or a reset."""
    poll = select.poll()
    poll.register(raw.fileno(), select.POLLIN)
    assert poll.poll(5000)


CAUSES: dict[str, Callable[[ServedConnection], None]] = {
    "closed": lambda served: served.close(),
    "reset": lambda served: served.reset(),
    "stray byte": lambda served: served.send(b"?"),
}


@pytest.mark.parametrize("cause", CAUSES)
@pytest.mark.parametrize("is_tls", [False, True])
def test_an_idle_connection_that_died_is_replaced_unseen(
    cause: str, is_tls: bool, certificates: Certificates, clock: FakeClock
) -> None:
    tls = certificates.server() if is_tls else None
    connector = SocketConnector(tls=certificates.client())
    with (
        ScriptedServer(tls=tls) as server,
        ConnectionPool(server.endpoint, connector=connector, clock=clock, max_size=1) as pool,
    ):
        conn = pool.try_connect(timeout=5)
        assert ask(conn) == b"ping"  # consumes TLS session tickets too
        first, raw = conn.info.local, conn.socket
        conn.release()
        CAUSES[cause](server.until_accepts(1))
        until_readable(raw)
        clock.advance(0.6)
        with pool.try_connect(timeout=5) as conn:
            assert conn.info.local != first
            assert ask(conn) == b"ping"
        assert pool.stats().closed == {CloseReason.BROKEN: 1}
        assert (pool.stats().connect_failures, pool.endpoints()[0].failures) == (0, 0)


def test_a_fresh_tls_connection_with_session_tickets_pending_is_alive(
    certificates: Certificates, clock: FakeClock
) -> None:
    with (
        ScriptedServer(tls=certificates.server()) as server,
        ConnectionPool(
            server.endpoint, connector=SocketConnector(tls=certificates.client()), clock=clock
        ) as pool,
    ):
        conn = pool.try_connect(timeout=5)
        assert conn.ssl_socket is not None
        assert conn.ssl_socket.version() == "TLSv1.3"
        raw, first = conn.socket, conn.info.local
        conn.release()
        until_readable(raw)  # the tickets, which nobody has read
        for _ in range(3):
            clock.advance(0.6)
            with pool.try_connect(timeout=5) as conn:
                assert conn.info.local == first
        with pool.try_connect(timeout=5) as conn:
            assert ask(conn) == b"ping"
        assert server.accepts == 1


def test_a_look_at_a_silent_tls_connection_does_not_block(
    certificates: Certificates, clock: FakeClock
) -> None:
    with (
        ScriptedServer(tls=certificates.server(), script=Silence()) as server,
        ConnectionPool(
            server.endpoint, connector=SocketConnector(tls=certificates.client()), clock=clock
        ) as pool,
    ):
        pool.try_connect(timeout=5).release()
        with taking(0, 2):
            for _ in range(50):
                clock.advance(1)
                pool.try_connect(timeout=5).release()
        assert server.accepts == 1


def test_several_dead_ones_are_passed_over_for_the_one_alive(clock: FakeClock) -> None:
    with ScriptedServer() as server, ConnectionPool(server.endpoint, max_size=4, clock=clock) as pool:
        conns = [pool.try_connect(timeout=5)]
        survivor = conns[0].info.id
        server.until_accepts(1)
        conns += [pool.try_connect(timeout=5) for _ in range(3)]
        server.until_accepts(4)
        raws = [conn.socket for conn in conns[1:]]
        for conn in conns:
            conn.release()
        for served in server.connections[1:]:
            served.close()
        for raw in raws:
            until_readable(raw)
        clock.advance(1)
        with pool.try_connect(timeout=5) as conn:
            assert conn.info.id == survivor
            assert ask(conn) == b"ping"
        assert pool.stats().closed[CloseReason.BROKEN] == 3


def test_an_error_in_use_closes_even_what_is_released(clock: FakeClock) -> None:
    with ScriptedServer(script=Silence()) as server, ConnectionPool(server.endpoint, clock=clock) as pool:
        conn = pool.try_connect(timeout=5)
        with pytest.raises(TimeoutError):
            conn.recv(1, timeout=0.02)
        conn.release()
        assert pool.stats().closed == {CloseReason.BROKEN: 1}
        server.until_accepts(1).until_ended()


def test_the_end_of_the_stream_closes_what_is_released() -> None:
    def serve(served: ServedConnection) -> None:
        served.request()
        served.close()

    with ScriptedServer(script=serve) as server, ConnectionPool(server.endpoint) as pool:
        conn = pool.try_connect(timeout=5)
        conn.sendall(b"last words", timeout=5)
        assert conn.recv(9, timeout=5) == b""
        conn.release()
        assert (pool.stats().idle, pool.stats().size) == (0, 0)
        server.script = Echo()
        with pool.try_connect(timeout=5) as conn:
            assert ask(conn) == b"ping"


def test_bytes_read_and_not_consumed_make_a_connection_dirty() -> None:
    with ScriptedServer(script=Send(b"one\ntwo\n")) as server, ConnectionPool(server.endpoint) as pool:
        with pool.try_connect(timeout=5) as conn:
            first = conn.info.id
            assert conn.recv_until(b"\n", timeout=5) == b"one\n"  # one packet: the rest was read with it
        assert pool.stats().closed == {CloseReason.DIRTY: 1}
        with pool.try_connect(timeout=5) as conn:
            assert conn.info.id != first
            assert conn.recv_until(b"\n", timeout=5) == b"one\n", "a new stream begins at its beginning"
            assert conn.recv_until(b"\n", timeout=5) == b"two\n"
            second = conn.info.id
        with pool.try_connect(timeout=5) as conn:
            assert conn.info.id == second, "everything was consumed: it is clean"


@pytest.mark.parametrize("is_main", [True, False])  # on the main thread no read waits in the system
@pytest.mark.parametrize(
    "read",
    [
        lambda conn: conn.recv(4, timeout=5),
        lambda conn: conn.recv_exactly(4, timeout=5),
        lambda conn: conn.recv_into(bytearray(4), timeout=5),
        lambda conn: conn.socket.recv(4),
    ],
    ids=["recv", "recv_exactly", "recv_into", "by hand"],
)
def test_bytes_that_tls_has_decrypted_and_nobody_consumed_make_a_connection_dirty(
    read: Callable[[Connection], object], is_main: bool, certificates: Certificates
) -> None:
    def use() -> None:
        with pool.try_connect(timeout=5) as conn:
            conn.sendall(b"request", timeout=5)
            read(conn)  # no look at the socket would tell of the rest of the record

    with (
        ScriptedServer(script=Answer(b"one\ntwo\n"), tls=certificates.server()) as server,
        ConnectionPool(server.endpoint, connector=SocketConnector(tls=certificates.client())) as pool,
    ):
        use() if is_main else together(use)
        assert pool.stats().closed == {CloseReason.DIRTY: 1}
        with pool.try_connect(timeout=5) as conn:
            conn.sendall(b"request", timeout=5)
            assert conn.recv_exactly(8, timeout=5) == b"one\ntwo\n"
        assert pool.stats().idle == 1, "everything was consumed: it is clean"


def test_so_do_those_of_an_answer_for_which_nobody_had_to_wait(
    certificates: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    dial, opened = SocketConnector.open, []

    def open_and_note(*arguments: Any) -> socket.socket:
        opened.append(dial(*arguments))
        return opened[-1]

    def use() -> None:
        with pool.try_connect(timeout=5) as conn:
            for n in (9, 4):
                conn.sendall(b"request", timeout=5)
                until_readable(opened[0])
                conn.recv(n, timeout=5)

    monkeypatch.setattr(SocketConnector, "open", open_and_note)

    with (
        ScriptedServer(script=Answer(b"one\ntwo\n"), tls=certificates.server()) as server,
        ConnectionPool(server.endpoint, connector=SocketConnector(tls=certificates.client())) as pool,
    ):
        together(use)
        assert pool.stats().closed == {CloseReason.DIRTY: 1}


@pytest.mark.parametrize("is_tls", [False, True])
def test_what_is_given_back_in_the_midst_of_a_write_is_closed(
    is_tls: bool, certificates: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wait(*args: Any) -> bool:
        """Give it back, as a signal handler may, while the peer has read but a part of the message."""
        monkeypatch.undo()
        conn.release()
        return wait_until_ready(*args)

    with (
        ScriptedServer(script=Deaf(), tls=certificates.server() if is_tls else None) as server,
        ConnectionPool(
            server.endpoint, connector=SocketConnector(tls=certificates.client()), max_size=1
        ) as pool,
    ):
        conn = pool.try_connect(timeout=5)
        wait_until_ready = stream.wait_until_ready
        monkeypatch.setattr(stream, "wait_until_ready", wait)
        with pytest.raises(UsageError):
            conn.sendall(bytes(20_000_000), timeout=1)
        assert pool.stats().closed == {CloseReason.BROKEN: 1}
        with pool.try_connect(timeout=5) as conn:
            assert conn.uses == 0


def test_stray_bytes_on_a_healthy_looking_connection_never_reach_the_next_holder(clock: FakeClock) -> None:
    with ScriptedServer() as server, ConnectionPool(server.endpoint, clock=clock, max_size=1) as pool:
        conn = pool.try_connect(timeout=5)
        raw = conn.socket
        conn.sendall(b"late answer", timeout=5)
        until_readable(raw)  # the answer is in the socket, read by nobody
        conn.release()
        clock.advance(1)
        with pool.try_connect(timeout=5) as conn:
            assert ask(conn) == b"ping"
        server.until_accepts(2)


def test_where_the_connector_has_no_look_of_its_own_no_thread_is_started_for_one(
    monkeypatch: pytest.MonkeyPatch, clock: FakeClock
) -> None:
    started: list[str] = []
    start = threading.Thread.start

    def note(thread: threading.Thread) -> None:
        started.append(thread.name)
        start(thread)

    with ConnectionPool.of(object, max_size=1, clock=clock) as pool:
        pool.try_connect().release()
        clock.advance(1)
        monkeypatch.setattr(threading.Thread, "start", note)
        pool.try_connect().release()
        assert started == []


def test_one_whose_holder_has_closed_its_socket_counts_as_broken() -> None:
    with ScriptedServer() as server, ConnectionPool(server.endpoint) as pool:
        with pool.try_connect(timeout=5) as conn:
            conn.socket.close()
        assert pool.stats().closed == {CloseReason.BROKEN: 1}


@pytest.mark.parametrize(
    "read",
    [
        lambda conn: conn.recv(9, timeout=5),
        lambda conn: conn.recv_into(bytearray(9), timeout=5),
        lambda conn: conn.recv_exactly(9, timeout=5),
        lambda conn: conn.recv_until(b"!", timeout=5),
    ],
)
def test_who_was_interrupted_while_it_waited_for_an_answer_leaves_that_to_nobody(
    read: Callable[[Connection], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    def strike(*_: object) -> bool:
        raise KeyboardInterrupt

    with ScriptedServer(script=Silence()) as server, ConnectionPool(server.endpoint) as pool:
        conn = pool.try_connect(timeout=5)
        with monkeypatch.context() as patch:
            patch.setattr(stream, "wait_until_ready", strike)
            with pytest.raises(KeyboardInterrupt):
                read(conn)
        conn.release()
        assert pool.stats().closed == {CloseReason.BROKEN: 1}


@pytest.mark.parametrize(
    "read", [lambda conn: conn.recv(9, timeout=5), lambda conn: conn.recv_into(bytearray(9), timeout=5)]
)
def test_one_whose_end_its_holder_has_read_is_lent_to_nobody(read: Callable[[Connection], object]) -> None:
    with ScriptedServer(script=Close()) as server, ConnectionPool(server.endpoint) as pool:
        with pool.try_connect(timeout=5) as conn:
            assert not read(conn)
        assert pool.stats().closed == {CloseReason.BROKEN: 1}
