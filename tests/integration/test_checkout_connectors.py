"""Connectors of the user's own, the login on a new connection, its permissions, and filters."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable
from typing import Any

import pytest

from connpool import (
    CancelledError,
    CheckedIn,
    CloseReason,
    Connection,
    ConnectionClosed,
    ConnectionInfo,
    ConnectionPool,
    ConnectTimeoutError,
    Endpoint,
    EndpointState,
    HandshakeError,
    NoEndpointError,
    PermissionDeniedError,
    PoolExhaustedError,
    Request,
    SocketConnector,
    UsageError,
)
from connpool.testing import Answer, Close, Echo, Ending, ScriptedServer, Send, Silence
from tests.helpers.certificates import Certificates
from tests.helpers.switchboard import until
from tests.helpers.wire import taking

# -- connectors


def test_only_open_is_required_of_a_connector_and_it_may_bring_any_socket() -> None:
    peers: list[socket.socket] = []
    asked: list[tuple[Endpoint, bool, bool]] = []

    class Pairs:
        def open(self, endpoint: Endpoint, timeout: float, cancel: Any) -> socket.socket:
            asked.append((endpoint, 0 < timeout <= 5, cancel.is_set()))
            mine, peer = socket.socketpair()
            peers.append(peer)
            return mine

    with ConnectionPool("anything:1", connector=Pairs()) as pool, pool.try_connect() as conn:
        conn.sendall(b"hello")
        assert peers[0].recv(9) == b"hello"
    assert asked == [(Endpoint("anything", 1), True, False)]
    assert peers[0].recv(1) == b"", "closed with the pool"
    peers[0].close()


def test_an_open_that_returns_nothing_has_failed() -> None:
    brought = iter([None, "something"])
    with ConnectionPool.of(lambda: next(brought), blacklist_initial=0) as pool:
        with pytest.raises(NoEndpointError, match="`open` returned None"):
            pool.try_connect(timeout=5)
        with pool.try_connect(timeout=5) as conn:
            assert conn.raw == "something"


def test_a_connectors_goodbye_is_seen_by_the_peer_and_a_hung_one_holds_up_nobody() -> None:
    let_go = threading.Event()

    class Polite(SocketConnector):
        prompt = False

        def close(self, raw: socket.socket) -> None:
            raw.sendall(b"QUIT")
            assert let_go.wait(10)
            super().close(raw)

    with ScriptedServer(script=Silence()) as server:
        pool = ConnectionPool(server.endpoint, connector=Polite())
        pool.try_connect(timeout=5).release()
        with taking(0, 2):
            pool.close(timeout=0.1)
        server.until_accepts(1).until_received(b"QUIT")
        let_go.set()
        server.until_accepts(1).until_ended()


def login(conn: Connection) -> None:
    conn.sendall(b"AUTH me\r\n", timeout=5)
    if conn.recv_until(b"\r\n", timeout=5) != b"OK\r\n":
        raise PermissionError("login refused")


def test_the_handshake_runs_once_on_each_new_connection() -> None:
    script = [Answer(b"OK\r\n", times=1, delimiter=b"\r\n"), Echo()]
    with (
        ScriptedServer(script=script) as server,
        ConnectionPool(server.endpoint, connector=SocketConnector(handshake=login)) as pool,
    ):
        for expected in range(3):
            with pool.try_connect(timeout=5) as conn:
                assert conn.uses == expected
                conn.sendall(b"x", timeout=5)
                assert conn.recv_exactly(1, timeout=5) == b"x"
        assert server.received == [b"AUTH me\r\nxxx"]


def test_the_hooks_may_be_methods_of_ones_own_kind_of_socket_connector() -> None:
    class Reading(SocketConnector):
        def handshake(self, conn: Connection) -> None:
            conn.extra = "logged in"

        def permissions(self, conn: Connection) -> set[str]:
            return {"read"} if conn.extra == "logged in" else set()

    with ScriptedServer() as server:
        with (
            ConnectionPool(server.endpoint, connector=Reading(), required_permissions={"read"}) as pool,
            pool.try_connect(timeout=5) as conn,
        ):
            assert conn.extra == "logged in"
        with (
            ConnectionPool(server.endpoint, connector=Reading(), required_permissions={"write"}) as pool,
            pytest.raises(PermissionDeniedError, match="does not grant: write"),
        ):
            pool.try_connect(timeout=5)


def test_a_login_that_is_refused_is_a_handshake_error_and_closes() -> None:
    with (
        ScriptedServer(script=Answer(b"NO\r\n")) as server,
        ConnectionPool(
            server.endpoint, connector=SocketConnector(handshake=login), blacklist_initial=60
        ) as pool,  # not to be tried again while the test looks
    ):
        with pytest.raises(HandshakeError, match="login refused") as told:
            pool.try_connect(timeout=5)
        assert isinstance(told.value, NoEndpointError)
        assert isinstance(told.value.causes[0][1].__cause__, PermissionError)
        server.until_accepts(1).until_ended()
        assert server.closes[0] in (Ending.EOF, Ending.RESET)
        assert pool.stats().connect_failures == 1
        assert pool.endpoints()[0].state is EndpointState.BLACKLISTED
        pool.close()  # its place is free once it is closed, which the caller need not wait for
        assert pool.stats().size == 0


@pytest.mark.parametrize(
    ("hook", "said"),
    [
        (Connection.release, "connection 1 of pool '.*' cannot be given back here: it is opening"),
        (Connection.terminate, "connection 1 of pool '.*' cannot be given back here: it is opening"),
        (lambda conn: conn.detach().close(), "a hook cannot give back the connection that it greets"),
    ],
)
def test_a_login_that_gives_the_connection_back_is_told_so_and_closes(hook: Any, said: str) -> None:
    returns: list[CheckedIn] = []
    with (
        ScriptedServer() as server,
        ConnectionPool(server.endpoint, connector=SocketConnector(handshake=hook), reconnect=False) as pool,
    ):
        pool.listen(returns.append, CheckedIn)
        with pytest.raises(HandshakeError, match=f"the login at .* failed: .*{said}"):
            pool.try_connect(timeout=5)
        pool.close()
        assert pool.stats().size == 0
    assert returns == []  # of what nobody was lent


def test_a_login_that_hangs_ends_with_the_dial() -> None:
    connector = SocketConnector(handshake=lambda conn: conn.recv(1))
    with (
        ScriptedServer(script=Silence()) as server,
        ConnectionPool(server.endpoint, connector=connector, connect_timeout=0.3) as pool,
    ):
        with taking(0.29, 3), pytest.raises(ConnectTimeoutError):
            pool.try_connect(timeout=10)
        server.until_accepts(1).until_ended()


@pytest.mark.parametrize("script", [Close(), Silence()], ids=["hung up", "swallowed"])
def test_a_login_that_leaves_its_connection_broken_has_failed(
    script: Any,
) -> None:
    def greet(conn: Connection) -> None:
        with contextlib.suppress(TimeoutError):
            conn.recv(1, timeout=0.05)

    with (
        ScriptedServer(script=script) as server,
        ConnectionPool(
            server.endpoint, connector=SocketConnector(handshake=greet), blacklist_initial=60
        ) as pool,
    ):
        with taking(0, 3), pytest.raises(HandshakeError, match="left the connection broken"):
            pool.try_connect(timeout=5)
        server.until_accepts(1)
        assert server.accepts == 1
        assert pool.endpoints()[0].state is EndpointState.BLACKLISTED
        until(lambda: pool.stats().size == 0, "what was opened is closed")


@pytest.mark.parametrize("in_caller", [False, True])
def test_a_cancellation_that_is_not_the_dials_own_is_a_failure_like_any_other(in_caller: bool) -> None:
    def greet(_: Connection) -> None:
        raise CancelledError("asking another pool for the password was cancelled")

    with (
        ScriptedServer() as server,
        ConnectionPool(
            server.endpoint,
            connector=SocketConnector(handshake=greet),
            blacklist_initial=60,
            dial_in_caller=in_caller,
        ) as pool,
    ):
        with taking(0, 3), pytest.raises(NoEndpointError, match="asking another pool"):
            pool.try_connect(timeout=5)
        server.until_accepts(1)
        assert server.accepts == 1
        assert pool.endpoints()[0].state is EndpointState.BLACKLISTED


def test_a_login_that_goes_over_to_tls_leaves_the_connection_with_its_endpoint(
    certificates: Certificates,
) -> None:
    connector = SocketConnector(handshake=lambda conn: conn.start_tls(certificates.client(), timeout=5))
    with (
        ScriptedServer(tls=certificates.server()) as server,
        ConnectionPool(f"localhost:{server.port}", connector=connector) as pool,
    ):
        for uses in (0, 1):
            with pool.try_connect(timeout=5) as conn:
                assert conn.ssl_socket is not None
                assert (conn.uses, conn.endpoint.tls) == (uses, False)
        assert [(info.endpoint.tls, info.size) for info in pool.endpoints()] == [(False, 1)]


def test_bytes_that_the_handshake_left_unread_are_the_first_holders() -> None:
    connector = SocketConnector(handshake=lambda conn: conn.recv_until(b"\n", timeout=5))
    with (
        ScriptedServer(script=[Send(b"banner\nfirst line\n"), Echo()]) as server,
        ConnectionPool(server.endpoint, connector=connector) as pool,
        pool.try_connect(timeout=5) as conn,
    ):
        assert conn.recv_until(b"\n", timeout=5) == b"first line\n"


def test_a_missing_permission_is_an_error_and_closes() -> None:
    connector = SocketConnector(permissions=lambda conn: {"read"})
    with (
        ScriptedServer() as server,
        ConnectionPool(server.endpoint, connector=connector, required_permissions={"read", "write"}) as pool,
    ):
        with pytest.raises(PermissionDeniedError, match="write"):
            pool.try_connect(server.endpoint, timeout=5)
        server.until_accepts(1).until_ended()
        pool.configure(required_permissions={"read"})
        pool.unblacklist(server.endpoint)
        pool.try_connect(timeout=5).release()


def test_permissions_required_later_hold_for_what_is_open_too() -> None:
    connector = SocketConnector(permissions=lambda conn: {"read"})
    with (
        ScriptedServer() as server,
        ConnectionPool(server.endpoint, connector=connector, required_permissions={"read"}) as pool,
    ):
        lent = pool.try_connect(timeout=5)
        pool.try_connect(timeout=5).release()
        pool.configure(required_permissions={"read", "write"})
        lent.sendall(b"x")
        assert lent.recv_exactly(1, timeout=5) == b"x"  # it is closed when it comes back
        lent.release()
        with pytest.raises(PermissionDeniedError, match="write"):
            pool.try_connect(server.endpoint, timeout=5)
        until(lambda: pool.stats().closed[CloseReason.STALE] == 2)


def test_from_the_moment_that_more_permissions_are_required_nothing_that_has_fewer_is_lent() -> None:
    connector = SocketConnector(permissions=lambda conn: {"read"})
    with (
        ScriptedServer() as server,
        ConnectionPool(server.endpoint, connector=connector, required_permissions={"read"}) as pool,
    ):

        def ask(_: object) -> None:
            stop()
            with pytest.raises((PermissionDeniedError, PoolExhaustedError)) as caught:
                pool.try_connect(server.endpoint, timeout=0).terminate()
            refused.append(caught.value)

        refused: list[Exception] = []
        lent = [pool.try_connect(timeout=5) for _ in range(3)]
        for conn in lent:
            conn.release()
        stop = pool.listen(ask, ConnectionClosed)
        pool.configure(required_permissions={"read", "write"}, max_size=2)
        assert len(refused) == 1


def test_fewer_permissions_required_leave_open_what_is_open() -> None:
    connector = SocketConnector(permissions=lambda conn: {"read", "write"})
    with (
        ScriptedServer() as server,
        ConnectionPool(server.endpoint, connector=connector, required_permissions=["read", "write"]) as pool,
    ):
        pool.try_connect(timeout=5).release()
        pool.configure(required_permissions=["read"])
        with pool.try_connect(timeout=5) as conn:
            assert conn.uses == 1


def test_more_permissions_than_required_will_do_and_none_required_asks_nothing() -> None:
    asked: list[int] = []

    def permissions(conn: Connection) -> set[str]:
        asked.append(1)
        return {"read", "write", "admin"}

    with ScriptedServer() as server:
        connector = SocketConnector(permissions=permissions)
        with ConnectionPool(
            server.endpoint, connector=connector, required_permissions=["read", "write"]
        ) as pool:
            for _ in range(2):
                pool.try_connect(timeout=5).release()
        assert asked == [1]


# -- Request.where


def test_where_chooses_among_idle_connections_and_leaves_the_others_idle() -> None:
    with ScriptedServer() as server, ConnectionPool(server.endpoint, max_size=3) as pool:
        conns = [pool.try_connect(timeout=5) for _ in range(3)]
        for n, conn in enumerate(conns):
            conn.extra = n
            conn.release()
        for n in (1, 0, 2, 1):
            with pool.try_connect(Request(where=lambda info, n=n: info.extra == n, timeout=5)) as conn:
                assert conn.extra == n
                assert pool.stats().idle == 2
        server.until_accepts(3)
        assert server.accepts == 3


def test_where_sees_a_snapshot_and_opens_a_new_connection_where_none_will_do() -> None:
    seen: list[ConnectionInfo] = []

    def only_new(info: ConnectionInfo) -> bool:
        seen.append(info)
        return info.uses == 0

    with ScriptedServer() as server, ConnectionPool(server.endpoint, max_size=2) as pool:
        pool.try_connect(timeout=5).release()
        with pool.try_connect(Request(where=only_new, timeout=5)) as conn:
            assert conn.uses == 0
        assert all(isinstance(info, ConnectionInfo) for info in seen)
        assert pool.stats().size == 2


@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt])
def test_a_where_that_raises_loses_nothing(error: type[BaseException]) -> None:
    def fail(info: ConnectionInfo) -> bool:
        raise error

    with ScriptedServer() as server, ConnectionPool(server.endpoint, max_size=1) as pool:
        pool.try_connect(timeout=5).release()
        with pytest.raises(error):
            pool.try_connect(Request(where=fail, timeout=5))
        assert pool.stats().lost == 0
        with pool.try_connect(timeout=0) as conn:
            assert conn.uses == 1


def test_a_where_that_nothing_satisfies_ends_in_time_and_in_few_dials() -> None:
    with ScriptedServer() as server, ConnectionPool(server.endpoint, max_size=3) as pool:
        with taking(0, 3), pytest.raises((TimeoutError, NoEndpointError)):
            pool.try_connect(Request(where=lambda info: False, timeout=0.3))
        assert server.accepts == 1
        pool.try_connect(timeout=1).release()


def test_what_is_no_socket_has_no_descriptor_to_wait_for() -> None:
    with (
        ConnectionPool.of(object) as pool,
        pool.try_connect() as conn,
        pytest.raises(UsageError, match="is not a socket"),
    ):
        conn.fileno()


# -- errors that leave a block


class Refused(Exception):
    """What a server says no to: its connection is as good as before."""


def raise_in_block(pool: ConnectionPool, error: BaseException) -> None:
    with pool.try_connect():
        raise error


def raise_in_share(pool: ConnectionPool, error: BaseException) -> None:
    with pool.share():
        raise error


def raise_in_work(pool: ConnectionPool, error: BaseException) -> None:
    def work(_: Connection) -> None:
        raise error

    pool.run(work)


@pytest.mark.parametrize("way", [raise_in_block, raise_in_share, raise_in_work])
def test_a_connector_may_say_which_errors_are_the_end_of_a_connection(
    way: Callable[[ConnectionPool, BaseException], None],
) -> None:
    asked: list[Exception] = []
    resets: list[object] = []

    def is_fatal(error: Exception) -> bool:
        asked.append(error)
        return not isinstance(error, Refused)

    with ConnectionPool.of(object, reset=resets.append, is_fatal=is_fatal, sharable=True) as pool:
        no, lost, stop = Refused(), OSError(), KeyboardInterrupt()
        with pytest.raises(Refused):
            way(pool, no)
        stats = pool.stats()
        assert (stats.idle, stats.closed, len(resets)) == (1, {}, 1)
        with pytest.raises(OSError):  # noqa: PT011 - that very one
            way(pool, lost)
        with pytest.raises(KeyboardInterrupt):
            way(pool, stop)
        assert asked == [no, lost], "after an interrupt nobody knows how far it was"
        assert (pool.stats().closed, len(resets)) == ({CloseReason.TERMINATED: 2}, 1)


def test_what_is_broken_is_closed_though_the_error_were_harmless() -> None:
    class Lenient(SocketConnector):
        def is_fatal(self, error: Exception) -> bool:
            return False

    with (
        ScriptedServer(script=Close()) as server,
        ConnectionPool(server.endpoint, connector=Lenient()) as pool,
    ):
        with pytest.raises(ConnectionError), pool.try_connect(timeout=5) as conn:
            conn.recv_exactly(1, timeout=5)
        assert pool.stats().closed == {CloseReason.BROKEN: 1}


@pytest.mark.parametrize("blow", [LookupError, KeyboardInterrupt])
def test_a_connector_that_fails_to_say_so_has_the_connection_closed(
    blow: type[BaseException], caplog: pytest.LogCaptureFixture
) -> None:
    def is_fatal(error: Exception) -> bool:
        raise blow

    with ConnectionPool.of(object, is_fatal=is_fatal) as pool:
        with pytest.raises(Refused if blow is LookupError else blow):
            raise_in_block(pool, Refused())
        assert pool.stats().closed == {CloseReason.TERMINATED: 1}
    assert ("is_fatal of connection 1 failed" in caplog.text) is (blow is LookupError)
