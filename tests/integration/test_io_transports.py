"""Connections over every kind of transport: TCP v4 and v6, Unix sockets, TLS, and an upgrade in place."""

from __future__ import annotations

import os
import socket
import ssl
import subprocess
import sys
from pathlib import Path

import pytest

from connpool import (
    CloseReason,
    Connection,
    ConnectionPool,
    Endpoint,
    HandshakeError,
    NoEndpointError,
    SocketConnector,
    UsageError,
)
from connpool.testing import Answer, Echo, NoHandshake, ScriptedServer, Send, StartTls
from tests.helpers.certificates import Certificates
from tests.helpers.clients import ask
from tests.helpers.wire import LOCALHOSTS, answer_names_with, refused_port, taking

# -- kinds


@pytest.mark.parametrize("host", LOCALHOSTS)
def test_tcp_of_both_families(host: str) -> None:
    with (
        ScriptedServer(host=host) as server,
        ConnectionPool(server.endpoint) as pool,
        pool.try_connect(timeout=5) as conn,
    ):
        assert ask(conn) == b"ping"
        assert conn.info.peer == str(server.endpoint)
        assert conn.ssl_socket is None
        assert conn.socket is conn.raw


def test_a_unix_socket(tmp_path: Path) -> None:
    with ScriptedServer(unix=tmp_path / "s") as server, ConnectionPool(server.endpoint) as pool:
        for expected in range(2):
            with pool.try_connect(timeout=5) as conn:
                assert (ask(conn), conn.uses) == (b"ping", expected)
        with pool.try_connect(Endpoint.unix(tmp_path / "s"), timeout=5) as conn:
            assert conn.uses == 2


def test_every_address_of_a_name_is_tried_and_the_peer_tells_which(monkeypatch: pytest.MonkeyPatch) -> None:
    with ScriptedServer() as server, refused_port() as reserved:
        answer_names_with(monkeypatch, ("127.0.0.1", reserved.getsockname()[1]), ("127.0.0.1", server.port))
        with ConnectionPool("service.test:7") as pool, pool.try_connect(timeout=5) as conn:
            assert ask(conn) == b"ping"
            assert conn.info.peer == f"127.0.0.1:{server.port}"
            assert conn.endpoint == Endpoint("service.test", 7)


def test_options_and_source_address_are_read_back() -> None:
    connector = SocketConnector(keepalive=(30, 5, 3), source_address=("127.0.0.3", 0))
    with (
        ScriptedServer() as server,
        ConnectionPool(server.endpoint, connector=connector) as pool,
        pool.try_connect(timeout=5) as conn,
    ):
        sock = conn.socket
        assert sock.getsockname()[0] == "127.0.0.3"
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        options = (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT)
        assert [sock.getsockopt(socket.IPPROTO_TCP, option) for option in options] == [30, 5, 3]


def test_a_child_process_does_not_inherit_connections() -> None:
    with (
        ScriptedServer() as server,
        ConnectionPool(server.endpoint) as pool,
        pool.try_connect(timeout=5) as conn,
    ):
        code = f"import os; os.fstat({conn.fileno()})"
        child = subprocess.run(
            [sys.executable, "-c", code], close_fds=False, capture_output=True, check=False
        )
        assert b"Bad file descriptor" in child.stderr
        assert not os.get_inheritable(conn.fileno())


def test_the_socket_is_the_holders_while_it_is_lent_and_not_after() -> None:
    with ScriptedServer() as server, ConnectionPool(server.endpoint) as pool:
        with pool.try_connect(timeout=5) as conn:
            assert conn.fileno() == conn.socket.fileno() >= 0
            conn.socket.sendall(b"by hand")
            assert conn.socket.recv(9) == b"by hand"
        for name in ("socket", "raw", "ssl_socket"):
            with pytest.raises(UsageError):
                getattr(conn, name)
        with pytest.raises(UsageError):
            conn.fileno()


# -- TLS


@pytest.mark.parametrize("trouble", ["untrusted", "wrong name", "expired", "no client certificate"])
def test_tls_with_whom_cannot_be_trusted_is_refused(trouble: str, certificates: Certificates) -> None:
    server_side = {
        "untrusted": certificates.server(),
        "wrong name": certificates.server("other.test"),
        "expired": certificates.server(expired=True),
        "no client certificate": certificates.demanding_server(),
    }[trouble]
    client = None if trouble == "untrusted" else certificates.client()
    with (
        ScriptedServer(tls=server_side) as server,
        ConnectionPool(server.endpoint, connector=SocketConnector(tls=client)) as pool,
    ):
        if trouble == "no client certificate":  # with TLS 1.3 the client learns of it by its first read
            with pytest.raises(OSError, match=r"(?i)certificate|reset|closed|ended|EOF"):
                pool.run(ask)
        else:
            with pytest.raises(HandshakeError):
                pool.try_connect(timeout=5)
        assert pool.stats().size == 0


def test_tls_that_is_trusted_works_and_tells(certificates: Certificates) -> None:
    connector = SocketConnector(tls=certificates.client())
    with (
        ScriptedServer(tls=certificates.server()) as server,
        ConnectionPool(server.endpoint, connector=connector) as pool,
        pool.try_connect(timeout=5) as conn,
    ):
        assert ask(conn) == b"ping"
        assert conn.ssl_socket is conn.socket
        assert isinstance(conn.socket, ssl.SSLSocket)
        assert conn.info.tls is not None
        assert "TLSv1" in conn.info.tls


def test_a_server_that_demands_one_sees_the_clients_certificate(certificates: Certificates) -> None:
    connector = SocketConnector(tls=certificates.client("worker-1"))
    with (
        ScriptedServer(tls=certificates.demanding_server()) as server,
        ConnectionPool(server.endpoint, connector=connector) as pool,
        pool.try_connect(timeout=5) as conn,
    ):
        assert ask(conn) == b"ping"
        assert server.until_accepts(1).client_subject["commonName"] == "worker-1"


def test_the_name_asked_for_may_differ_from_the_address(certificates: Certificates) -> None:
    connector = SocketConnector(tls=certificates.client(), server_hostname="db.test")
    with (
        ScriptedServer(tls=certificates.server("db.test")) as server,
        ConnectionPool(server.endpoint, connector=connector) as pool,
        pool.try_connect(timeout=5) as conn,
    ):
        assert ask(conn) == b"ping"
        assert server.until_accepts(1).sni == "db.test"


# -- an upgrade in place


def upgrade(conn: Connection, certificates: Certificates) -> None:
    conn.sendall(b"STARTTLS\n", timeout=5)
    assert conn.recv_until(b"\n", timeout=5) == b"go ahead\n"
    conn.start_tls(certificates.client(), timeout=5)


def starttls(certificates: Certificates) -> list[object]:
    return [
        Answer(b"go ahead\n", times=1, delimiter=b"\n"),
        StartTls(certificates.server()),
        Echo(),
    ]


def test_an_upgraded_connection_serves_the_tls_endpoint_and_never_the_plain_one(
    certificates: Certificates,
) -> None:
    with ScriptedServer(script=starttls(certificates)) as server:
        plain, secure = server.endpoint, Endpoint(server.endpoint.host, server.port, tls=True)
        with ConnectionPool(plain) as pool:
            with pool.try_connect(timeout=5) as conn:
                before = conn.socket
                upgrade(conn, certificates)
                assert conn.endpoint == secure
                assert conn.ssl_socket is conn.socket is conn.raw
                assert conn.socket is not before
                assert ask(conn) == b"ping"
                number = conn.info.id
            with pool.try_connect(timeout=5) as conn:
                assert conn.info.id != number
                assert (conn.endpoint, conn.ssl_socket) == (plain, None)
            with pool.try_connect(secure, timeout=5) as conn:
                assert (conn.info.id, conn.uses) == (number, 1)
                assert ask(conn) == b"ping"
            server.until_accepts(2)
            assert server.accepts == 2


@pytest.mark.parametrize("kind", ["unix", "callable", "adopted"])
def test_an_upgraded_connection_that_has_no_tls_endpoint_is_the_next_holders_no_more(
    kind: str, tmp_path: Path, certificates: Certificates
) -> None:
    path = str(tmp_path / "s")
    context = certificates.client()
    context.check_hostname = False  # there is no host whose name it could be

    def dial() -> socket.socket:
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(path)
        return sock

    with ScriptedServer(script=[StartTls(certificates.server()), Echo()], unix=path) as server:
        if kind == "unix":
            pool = ConnectionPool(server.endpoint)
        else:
            pool = ConnectionPool.of(dial) if kind == "callable" else ConnectionPool()
        with pool:
            for given in (None, "localhost"):
                if kind == "adopted":
                    pool.add_connection(dial())
                with pool.try_connect(timeout=5) as conn:
                    assert (conn.ssl_socket, conn.uses) == (None, 0)
                    conn.start_tls(context, given, timeout=5)
                    assert conn.ssl_socket is not None
                    assert ask(conn) == b"ping"
                assert pool.stats().size == 0
            assert pool.stats().closed == {CloseReason.DIRTY: 2}


def looking(context: ssl.SSLContext, at: str) -> ssl.SSLContext:
    """*context*, which verifies names, authorities only, or nobody."""
    if at != "names":
        context.check_hostname = False
    if at == "nobody":
        context.verify_mode = ssl.CERT_NONE
    return context


@pytest.mark.parametrize(
    ("own", "host", "looks_at", "name", "serves"),
    [
        ("names", "localhost", "names", None, True),
        ("names", "localhost", "names", "db.test", False),  # who asks for that host would get another
        ("names", "127.0.0.1", "names", "db.test", True),  # whose name could not be told from the address
        ("names", "127.0.0.1", "authorities", None, False),
        ("names", "127.0.0.1", "nobody", None, False),
        ("authorities", "localhost", "authorities", "db.test", True),
        ("authorities", "localhost", "nobody", None, False),
        ("nobody", "localhost", "nobody", None, True),
    ],
)
def test_an_upgrade_that_has_verified_less_than_the_pool_would_never_serves_the_tls_endpoint(
    own: str, host: str, looks_at: str, name: str | None, serves: bool, certificates: Certificates
) -> None:
    script = [StartTls(certificates.server("127.0.0.1", "localhost", "db.test")), Echo()]
    connector = SocketConnector(tls=looking(certificates.client(), own))
    with (
        ScriptedServer(script=script) as server,
        ConnectionPool(f"{host}:{server.port}", connector=connector) as pool,
    ):
        with pool.try_connect(timeout=5) as conn:
            conn.start_tls(looking(certificates.client(), looks_at), name, timeout=5)
            assert ask(conn) == b"ping"
        assert pool.stats().closed == ({} if serves else {CloseReason.DIRTY: 1})
        with pool.try_connect(Endpoint(host, server.port, tls=True), timeout=5) as conn:
            assert (ask(conn), conn.uses) == (b"ping", int(serves))


def test_upgrades_at_one_address_for_two_names_never_serve_the_same_endpoint(
    certificates: Certificates,
) -> None:
    script = [StartTls(certificates.server("localhost", "db.test")), Echo()]
    connector = SocketConnector(tls=certificates.client())
    with (
        ScriptedServer(script=script) as server,
        ConnectionPool(server.endpoint, connector=connector) as pool,
    ):
        first, again, other = (pool.try_connect(timeout=5) for _ in range(3))
        for conn, name in ((first, "localhost"), (again, "localhost"), (other, "db.test")):
            conn.start_tls(certificates.client(), name, timeout=5)
            assert ask(conn) == b"ping"
        for conn in (first, again, other):
            conn.release()
        assert (pool.stats().idle, pool.stats().closed) == (2, {CloseReason.DIRTY: 1})
        for _ in range(2):
            with pool.try_connect(Endpoint("127.0.0.1", server.port, tls=True), timeout=5) as conn:
                assert conn.ssl_socket is not None
                assert conn.ssl_socket.server_hostname == "localhost"
        pool.clear()
        with pool.try_connect(timeout=5) as conn:  # nobody is there under the first name any more
            conn.start_tls(certificates.client(), "db.test", timeout=5)
        assert pool.stats().idle == 1


def test_an_upgrade_where_the_connector_is_of_ones_own_is_as_sure_as_the_default(
    certificates: Certificates,
) -> None:
    class Own:
        def open(self, endpoint: Endpoint, timeout: float | None, cancel: object) -> socket.socket:
            return socket.create_connection((endpoint.host, endpoint.port), timeout=5)

    for looks_at in ("names", "authorities"):
        with (
            ScriptedServer(script=[StartTls(certificates.server()), Echo()]) as server,
            ConnectionPool(server.endpoint, connector=Own()) as pool,
        ):
            with pool.try_connect(timeout=5) as conn:
                conn.start_tls(looking(certificates.client(), looks_at), timeout=5)
            assert pool.stats().idle == int(looks_at == "names")


def test_an_upgrade_verifies_the_name_without_the_dot_of_the_root(
    certificates: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ScriptedServer(script=starttls(certificates)) as server:
        answer_names_with(monkeypatch, ("127.0.0.1", server.port))
        with (
            ConnectionPool(f"localhost.:{server.port}") as pool,
            pool.try_connect(timeout=5) as conn,
        ):
            upgrade(conn, certificates)
            assert ask(conn) == b"ping"


@pytest.mark.parametrize("trouble", ["untrusted", "silent", "not tls"])
def test_an_upgrade_that_fails_closes_the_connection(trouble: str, certificates: Certificates) -> None:
    script = {
        "untrusted": [StartTls(certificates.server())],
        "silent": NoHandshake(),
        "not tls": Answer(b"HTTP/1.1 400 Bad Request\r\n\r\n"),
    }[trouble]
    with ScriptedServer(script=script) as server, ConnectionPool(server.endpoint) as pool:
        conn = pool.try_connect(timeout=5)
        context = certificates.stranger() if trouble == "untrusted" else certificates.client()
        expected = TimeoutError if trouble == "silent" else HandshakeError
        with taking(0, 3), pytest.raises(expected) as caught:
            conn.start_tls(context, timeout=0.3)
        if isinstance(caught.value, HandshakeError):
            assert (caught.value.pool, caught.value.endpoint) == (pool.name, server.endpoint)
        conn.release()
        assert pool.stats().size == 0
        server.until_accepts(1).until_ended(timeout=3)


def test_bytes_that_came_in_clear_forbid_an_upgrade(certificates: Certificates) -> None:
    script = Send(b"220 hi\nINJECTED\n")
    with ScriptedServer(script=script) as server, ConnectionPool(server.endpoint) as pool:
        conn = pool.try_connect(timeout=5)
        assert conn.recv_until(b"\n", timeout=5) == b"220 hi\n"
        with pytest.raises(UsageError):
            conn.start_tls(certificates.client(), timeout=5)
        conn.release()
        assert pool.stats().size == 0


def test_tls_cannot_be_begun_twice(certificates: Certificates) -> None:
    connector = SocketConnector(tls=certificates.client())
    with (
        ScriptedServer(tls=certificates.server()) as server,
        ConnectionPool(server.endpoint, connector=connector) as pool,
        pool.try_connect(timeout=5) as conn,
    ):
        with pytest.raises(UsageError):
            conn.start_tls(certificates.client(), timeout=5)
        assert ask(conn) == b"ping"


def test_an_upgraded_connection_counts_for_its_new_endpoint(certificates: Certificates) -> None:
    with ScriptedServer(script=starttls(certificates)) as server:
        secure = Endpoint(server.endpoint.host, server.port, tls=True)
        with ConnectionPool(server.endpoint, max_size=1) as pool:
            conn = pool.try_connect(timeout=5)
            upgrade(conn, certificates)
            by_endpoint = {told.endpoint: told.size for told in pool.endpoints()}
            assert by_endpoint[secure] == 1
            assert by_endpoint[server.endpoint] == 0
            conn.release()
            assert pool.stats().size == 1
            with pool.try_connect(timeout=5) as fresh:  # the idle TLS one makes room
                assert fresh.ssl_socket is None
            assert pool.stats().size == 1


def test_an_endpoint_that_fails_tls_is_not_tried_in_clear(certificates: Certificates) -> None:
    with ScriptedServer() as server:
        secure = Endpoint(server.endpoint.host, server.port, tls=True)
        with ConnectionPool(secure, connector=SocketConnector(tls=certificates.client())) as pool:
            with pytest.raises(NoEndpointError):
                pool.try_connect(timeout=5)
            assert not any(b"ping" in data for data in server.received)
