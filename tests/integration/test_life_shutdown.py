"""Ends of a pool: shutdown, reopen, close; and what construction does not do."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
from collections.abc import Callable

import pytest

from connpool import ConnectionPool, PoolClosedError, PoolState, SocketConnector
from connpool.testing import NoHandshake, ScriptedServer, Silence
from tests.helpers.certificates import Certificates
from tests.helpers.switchboard import Switchboard, check_books, until
from tests.helpers.together import together
from tests.helpers.wire import taking


def test_shutdown_ends_a_read_a_handshake_and_a_wait_at_once(certificates: Certificates) -> None:
    connector = SocketConnector(tls=certificates.client())
    with (
        ScriptedServer(script=Silence()) as silent,
        ScriptedServer(tls=certificates.server(), script=NoHandshake()) as mute,
        ConnectionPool(silent.endpoint, connector=connector, max_size=2, connect_timeout=30) as pool,
    ):
        conn = pool.try_connect()

        def read() -> None:
            conn.sendall(b"?")
            with pytest.raises(ConnectionError), conn:
                conn.recv(1, timeout=30)

        def dial() -> None:
            with pytest.raises(PoolClosedError):
                pool.try_connect(mute.endpoint)

        def wait() -> None:
            until(lambda: pool.stats().opening == 1)
            with pytest.raises(PoolClosedError):
                pool.try_connect()

        def end() -> int:
            silent.until_accepts(1).until_received(b"?")
            mute.until_accepts(1)
            until(lambda: pool.stats().waiting == 2)
            with taking(0, 2):
                return pool.shutdown()

        with taking(0, 8):
            assert together(read, dial, wait, end)[3] == 2
        until(lambda: pool.shutdown() == 0)
        silent.until_accepts(1).until_eof()
        mute.until_accepts(1).until_ended()
        assert pool.stats().state is PoolState.SHUT_DOWN
        assert pool.stats().size == 0
        check_books(pool)


def test_shutdown_ends_a_connect_into_a_black_hole_and_a_blocked_write() -> None:
    with ScriptedServer() as hole, ScriptedServer(script=lambda c: c.until_gone()) as deaf:
        hole.black_hole()
        with ConnectionPool(deaf.endpoint, connect_timeout=30) as pool:
            conn = pool.try_connect()

            def write() -> None:
                with pytest.raises(ConnectionError), conn:
                    conn.sendall(bytes(50_000_000), timeout=30)

            def dial() -> None:
                with pytest.raises(PoolClosedError):
                    pool.try_connect(hole.endpoint)

            def end() -> None:
                until(lambda: pool.stats().opening == 1)
                assert pool.shutdown() == 2

            with taking(0, 8):
                together(write, dial, end)


def test_after_shutdown_nothing_is_lent_until_reopen() -> None:
    with ScriptedServer() as server, ConnectionPool(server.endpoint) as pool:
        pool.try_connect().release()
        lent = pool.try_connect()
        resting = pool.try_connect()
        resting.release()
        assert pool.shutdown() == 1
        for timeout in (0, 5, None):
            with taking(0, 2), pytest.raises(PoolClosedError):
                pool.try_connect(timeout=timeout)
        pool.reopen()
        with pool.try_connect() as conn:
            assert conn.uses == 1, "idle connections stay"
        lent.release()
        assert sum(pool.stats().closed.values()) == 1
        assert pool.stats().state is PoolState.OPEN
        server.until_open(1)
        with pool.try_connect() as conn:
            conn.sendall(b"x")
            assert conn.recv_exactly(1) == b"x"


def test_shutdown_is_counted_down_as_loans_come_back() -> None:
    with ScriptedServer() as server, ConnectionPool(server.endpoint) as pool:
        loans = [pool.try_connect() for _ in range(3)]
        counts = [pool.shutdown()]
        for loan in loans:
            loan.release()
            counts.append(pool.shutdown())
        assert counts == [3, 2, 1, 0]
        server.until_accepts(3)
        server.until_open(0)


@pytest.mark.parametrize("how", [socket.SHUT_RD, socket.SHUT_WR, socket.SHUT_RDWR])
def test_shutdown_takes_the_direction(how: int) -> None:
    with ScriptedServer(script=Silence()) as server, ConnectionPool(server.endpoint) as pool:
        conn = pool.try_connect()
        served = server.until_accepts(1)
        assert pool.shutdown(how) == 1
        if how == socket.SHUT_RD:
            conn.socket.send(b"hello")
            served.until_received(b"hello")
        else:
            served.until_eof()
        conn.release()
        served.until_ended()


def test_reopen_of_an_open_pool_changes_nothing_and_of_a_closed_one_is_refused() -> None:
    pool = ConnectionPool("a:1", connector=Switchboard())
    pool.try_connect().release()
    pool.reopen()
    assert pool.stats().idle == 1
    pool.close()
    with pytest.raises(PoolClosedError):
        pool.reopen()
    assert pool.shutdown() == 0
    assert pool.stats().state is PoolState.CLOSED


def test_close_waits_for_a_loan_that_comes_back_in_time() -> None:
    with ScriptedServer() as server, ConnectionPool(server.endpoint) as pool:
        conn = pool.try_connect()

        def work() -> None:
            until(lambda: pool.stats().state is PoolState.CLOSED)
            conn.sendall(b"last words", timeout=5)
            assert conn.recv_exactly(10, timeout=5) == b"last words"
            conn.release()

        with taking(0, 5):
            assert together(work, lambda: pool.close(20))[1] == 0
        server.until_accepts(1).until_eof()


def test_all_who_wait_for_the_last_loan_hear_that_it_is_back() -> None:
    with ConnectionPool("a:1", connector=Switchboard()) as pool:
        loan = pool.try_connect()

        def end() -> None:
            with taking(0, 8):
                assert pool.close(timeout=20) == 0

        def give_back() -> None:
            until(lambda: len(pool._lender.books.drains) == 2)
            loan.release()

        together(end, end, give_back, limit=30)


def test_close_interrupts_a_loan_that_does_not() -> None:
    with ScriptedServer(script=Silence()) as server, ConnectionPool(server.endpoint) as pool:
        conn = pool.try_connect()

        def read() -> None:
            with pytest.raises(ConnectionError), conn:
                conn.recv(1, timeout=30)

        with taking(0.2, 5):
            results = together(read, lambda: pool.close(0.2))
        assert results[1] in (0, 1)
        assert pool.close() == 0
        server.until_accepts(1).until_eof()


def test_close_without_a_timeout_neither_waits_nor_interrupts() -> None:
    with ScriptedServer() as server, ConnectionPool(server.endpoint) as pool:
        conn = pool.try_connect()
        pool.try_connect().release()
        assert pool.close() == 1
        server.until_accepts(2)
        server.until_open(1)
        conn.sendall(b"x")
        assert conn.recv_exactly(1) == b"x"
        conn.release()
        server.until_open(0)
        assert pool.stats().size == 0


def test_close_fails_every_waiter_at_once() -> None:
    pool = ConnectionPool("a:1", connector=Switchboard(), max_size=1)
    conn = pool.try_connect()

    errors = []  # each thread's own: a traceback belongs to one of them

    def wait() -> None:
        with pytest.raises(PoolClosedError) as caught:
            pool.try_connect(timeout=30)
        errors.append(caught.value)

    def end() -> None:
        until(lambda: pool.stats().waiting == 5)
        pool.close()

    with taking(0, 5):
        together(*[wait] * 5, end)
    assert len({id(error) for error in errors}) == 5
    conn.release()
    assert pool.stats().waiting == 0


@pytest.mark.parametrize("end", [ConnectionPool.close, ConnectionPool.shutdown])
def test_ending_a_pool_ends_its_dials_and_keeps_none_of_their_connections(
    end: Callable[[ConnectionPool], int],
) -> None:
    board = Switchboard()
    board.hold("a:1")
    with ConnectionPool("a:1", connector=board) as pool:

        def dial() -> None:
            with pytest.raises(PoolClosedError):
                pool.try_connect()

        def finish() -> None:
            board.until_dialling("a:1", 2)
            end(pool)

        together(dial, dial, finish)
        until(lambda: pool.stats().size == 0)
        assert board.n_open == 0


def test_a_dial_that_ignores_its_cancel_flag_is_closed_when_it_ends() -> None:
    board = Switchboard()
    has_begun, let_go = threading.Event(), threading.Event()

    class Stubborn(Switchboard):
        def open(self, *_: object) -> object:
            has_begun.set()
            assert let_go.wait(10)
            return board.open(pool.route.endpoints[0], None, None)

        def close(self, line: object) -> None:
            board.close(line)  # type: ignore[arg-type]

    pool = ConnectionPool("a:1", connector=Stubborn())

    def dial() -> None:
        with pytest.raises(PoolClosedError):
            pool.try_connect()

    def end() -> None:
        assert has_begun.wait(5)
        pool.close()

    together(dial, end, limit=5)
    let_go.set()
    until(lambda: pool.stats().size == 0)
    assert [line.is_open for line in board.lines] == [False]


def test_neither_import_nor_construction_starts_a_thread_or_dials() -> None:
    program = """
import threading, os
import connpool
pool = connpool.ConnectionPool("127.0.0.1:9 && 127.0.0.1:10", max_size=4)
with connpool.ConnectionPool("127.0.0.1:9"):
    assert threading.enumerate() == [threading.main_thread()], threading.enumerate()
assert pool.stats().size == 0
"""
    subprocess.run([sys.executable, "-W", "error", "-c", program], check=True, timeout=30)


def test_a_pool_that_was_never_closed_does_not_delay_the_end_of_the_program() -> None:
    program = """
import connpool, sys
pool = connpool.ConnectionPool.of(lambda: object())
kept = pool.try_connect()
pool.try_connect().release()
"""
    with taking(0, 10):
        subprocess.run([sys.executable, "-c", program], check=True, timeout=30)
