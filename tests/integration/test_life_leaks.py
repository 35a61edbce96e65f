"""A hundred of each failure leave behind no descriptor, no thread, no place and no memory of a host."""

from __future__ import annotations

import contextlib
import gc
import os
import threading
from collections.abc import Callable, Iterator

import pytest

from connpool import ConnectionPool, ConnPoolError, HandshakeError, Request, SocketConnector
from connpool.testing import NoHandshake, Reset, ScriptedServer, Send
from tests.helpers.certificates import Certificates
from tests.helpers.switchboard import Switchboard, check_books, until

CYCLES = 100
FAST = {"blacklist_initial": 0, "blacklist_max": 0, "reap_interval": None}


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    with ScriptedServer() as server:
        yield server


def n_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def names_of_threads() -> set[str]:
    return {thread.name for thread in threading.enumerate() if not thread.name.startswith("scripted-server")}


def cycles(pool: ConnectionPool, one: Callable[[], object], server: ScriptedServer) -> None:
    """Do *one* again and again; see that neither descriptors nor threads grow, in its life and after it."""
    threads, descriptors = names_of_threads(), n_descriptors()
    with pool:
        for _ in range(CYCLES):
            one()
        pool.clear()
        until(lambda: pool.stats().size == pool.stats().waiting == 0)
        until(lambda: n_descriptors() <= descriptors + 2, "no growth in descriptors")  # the server's go late
        assert len(names_of_threads() - threads) <= pool.config.max_connecting + 1
        check_books(pool)
    until(lambda: names_of_threads() <= threads, "the end of the pool's threads")
    gc.collect()
    until(lambda: n_descriptors() <= descriptors, "the end of the pool's descriptors")
    until(lambda: server.open == 0, "the end at the server, which closes before it counts")


def failing(
    pool: ConnectionPool, req: Request | None = None, timeout: float | None = 5
) -> Callable[[], None]:
    def one() -> None:
        with pytest.raises(ConnPoolError):
            pool.try_connect(req, timeout=timeout)

    return one


@pytest.mark.parametrize("dial_in_caller", [False, True])
def test_refused_dials_leave_nothing(server: ScriptedServer, dial_in_caller: bool) -> None:
    server.refuse()
    pool = ConnectionPool(server.endpoint, dial_in_caller=dial_in_caller, **FAST)
    cycles(pool, failing(pool), server)


def test_dials_that_time_out_leave_nothing(server: ScriptedServer) -> None:
    server.black_hole()
    pool = ConnectionPool(server.endpoint, connect_timeout=0.01, **FAST)
    cycles(pool, failing(pool), server)


def test_deadlines_that_end_before_the_dial_leave_nothing(server: ScriptedServer) -> None:
    server.black_hole()
    pool = ConnectionPool(server.endpoint, connect_timeout=0.1, **FAST)
    cycles(pool, failing(pool, timeout=0.005), server)


def test_cancelled_dials_leave_nothing(server: ScriptedServer) -> None:
    server.black_hole()
    cancel = threading.Event()
    cancel.set()
    pool = ConnectionPool(server.endpoint, connect_timeout=0.1, **FAST)
    cycles(pool, failing(pool, Request(cancel=cancel)), server)


def test_failed_tls_handshakes_leave_nothing(certificates: Certificates) -> None:
    connector = SocketConnector(tls=certificates.client())
    with ScriptedServer(tls=Certificates().server()) as server:
        pool = ConnectionPool(server.endpoint, connector=connector, **FAST)
        cycles(pool, failing(pool), server)


def test_tls_handshakes_that_never_come_leave_nothing(certificates: Certificates) -> None:
    connector = SocketConnector(tls=certificates.client())
    with ScriptedServer(tls=certificates.server(), script=NoHandshake()) as server:
        pool = ConnectionPool(server.endpoint, connector=connector, connect_timeout=0.02, **FAST)
        cycles(pool, failing(pool), server)


def test_failed_logins_leave_nothing(server: ScriptedServer) -> None:
    def log_in(conn: object) -> None:
        raise HandshakeError("wrong password")

    pool = ConnectionPool(server.endpoint, connector=SocketConnector(handshake=log_in), **FAST)
    cycles(pool, failing(pool), server)


def test_connections_reset_or_dirtied_by_the_server_leave_nothing(server: ScriptedServer) -> None:
    pool = ConnectionPool(server.endpoint, look_after_idle=0, **FAST)
    scripts = [Reset(), Send(b"stray")]

    def one() -> None:
        server.script = scripts[server.accepts % 2]
        with contextlib.suppress(ConnectionError), pool.try_connect(timeout=5):
            pass  # the reset may come while it is still being dialled

    cycles(pool, one, server)


def test_loans_that_end_in_an_exception_leave_nothing(server: ScriptedServer) -> None:
    pool = ConnectionPool(server.endpoint, **FAST)

    def one() -> None:
        with contextlib.suppress(ZeroDivisionError), pool.try_connect() as conn:
            conn.sendall(b"x")
            raise ZeroDivisionError

    cycles(pool, one, server)


def test_reads_that_time_out_leave_nothing(server: ScriptedServer) -> None:
    pool = ConnectionPool(server.endpoint, **FAST)

    def one() -> None:
        with pytest.raises(TimeoutError), pool.try_connect() as conn:
            conn.recv(1, timeout=0.001)

    cycles(pool, one, server)


def test_exhaustion_leaves_nothing(server: ScriptedServer) -> None:
    pool = ConnectionPool(server.endpoint, max_size=1, **FAST)

    def one() -> None:
        with pool.try_connect():
            failing(pool, timeout=0)()
            failing(pool, timeout=0.001)()

    cycles(pool, one, server)


def test_shutdown_and_reopen_leave_nothing(server: ScriptedServer) -> None:
    pool = ConnectionPool(server.endpoint, **FAST)

    def one() -> None:
        conn = pool.try_connect(timeout=5)
        pool.shutdown()
        failing(pool)()
        conn.release()
        pool.reopen()

    cycles(pool, one, server)


def test_clearing_and_rerouting_leave_nothing(server: ScriptedServer) -> None:
    pool = ConnectionPool(server.endpoint, **FAST)

    def one() -> None:
        with pool.try_connect(timeout=5):
            pool.clear(interrupt=True)
        with pool.try_connect(timeout=5):
            pool.route = "127.0.0.1:9"
            pool.route = server.endpoint

    cycles(pool, one, server)


def test_a_hundred_pools_leave_nothing(server: ScriptedServer) -> None:
    def one() -> None:
        with ConnectionPool(server.endpoint) as short:
            short.try_connect(timeout=5).release()
            kept = short.try_connect(timeout=5)
        kept.release()

    cycles(ConnectionPool(server.endpoint, **FAST), one, server)


def test_endpoints_that_were_pinned_once_are_forgotten() -> None:
    """Otherwise a crawler's pool would remember every host of its life."""
    board = Switchboard()
    with ConnectionPool("a:1", connector=board, max_size=2) as pool:
        for i in range(500):
            pool.try_connect(f"host-{i}:1").terminate()
        until(lambda: pool.stats().size == 0)
        pool.sweep()
        assert len(pool.endpoints()) <= 10
