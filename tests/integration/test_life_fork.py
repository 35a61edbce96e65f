"""A forked child starts clean and leaves its parent in peace."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable

import pytest

from connpool import (
    CheckedIn,
    CheckedOut,
    Connection,
    ConnectionPool,
    PoolPaused,
    PoolPausedError,
    SocketConnector,
    UsageError,
)
from connpool.pool import core
from connpool.testing import ScriptedServer
from tests.helpers.certificates import Certificates
from tests.helpers.forks import in_child
from tests.helpers.switchboard import Switchboard, until

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")


def ask(conn: Connection, text: bytes = b"hello") -> bytes:
    conn.sendall(text, timeout=5)
    return conn.recv_exactly(len(text), timeout=5)


def test_the_childs_checkout_makes_a_new_connection_and_the_parents_still_answer() -> None:
    with ScriptedServer() as server, ConnectionPool(server.endpoint) as pool:
        idle, lent = pool.try_connect(), pool.try_connect()
        ports = {idle.socket.getsockname()[1], lent.socket.getsockname()[1]}
        idle.release()

        def job() -> tuple[int, bytes]:
            with pool.try_connect(timeout=5) as conn:
                return conn.socket.getsockname()[1], ask(conn)

        port, answer = in_child(job)
        assert answer == b"hello"
        assert port not in ports
        server.until_open(2)  # the child's is gone; the other two were told nothing
        assert ask(lent, b"lent") == b"lent"
        lent.release()
        with pool.try_connect() as first, pool.try_connect() as second:
            assert {first.socket.getsockname()[1], second.socket.getsockname()[1]} == ports
            assert ask(first, b"one") == b"one"
            assert ask(second, b"two") == b"two"
        assert server.accepts == 3


def test_tls_connections_of_the_parent_survive_a_child_too(certificates: Certificates) -> None:
    connector = SocketConnector(tls=certificates.client())
    with (
        ScriptedServer(tls=certificates.server()) as server,
        ConnectionPool(server.endpoint, connector=connector) as pool,
    ):
        with pool.try_connect() as conn:
            assert ask(conn) == b"hello"
        lent = pool.try_connect()
        idle = pool.try_connect()
        assert ask(idle) == b"hello"  # no thread of the server is inside the TLS library at the fork
        idle.release()

        def job() -> bytes:
            with pool.try_connect(timeout=5) as conn:
                answer = ask(conn)
            pool.close()
            return answer

        assert in_child(job) == b"hello"
        server.until_open(2)
        assert ask(lent) == b"hello"
        lent.release()
        for _ in range(2):
            with pool.try_connect() as conn:
                assert ask(conn) == b"hello"
        assert server.accepts == 3


def test_the_child_finds_the_pool_empty_and_the_parents_descriptors_closed() -> None:
    with ScriptedServer() as server, ConnectionPool(server.endpoint) as pool:
        idle, lent = pool.try_connect(), pool.try_connect()
        descriptors = [idle.fileno(), lent.fileno()]
        idle.release()

        def is_open(fd: int) -> bool:
            try:
                os.fstat(fd)
            except OSError:
                return False
            return True

        def job() -> tuple[int, int, int, list[bool]]:
            stats = pool.stats()
            return stats.size, stats.idle, stats.in_use, [is_open(fd) for fd in descriptors]

        assert in_child(job) == (0, 0, 0, [False, False])
        assert pool.stats().size == 2
        assert [is_open(fd) for fd in descriptors] == [True, True]
        lent.release()


@pytest.mark.parametrize("give_back", [Connection.release, Connection.terminate])
def test_the_childs_giving_back_of_the_parents_loan_is_a_usage_error(
    give_back: Callable[[Connection], None],
) -> None:
    with ScriptedServer() as server, ConnectionPool(server.endpoint) as pool:
        lent = pool.try_connect()

        def job() -> int:
            with pytest.raises(UsageError):
                give_back(lent)
            with pytest.raises(UsageError):
                lent.sendall(b"from the child")
            return pool.stats().idle

        assert in_child(job) == 0
        assert ask(lent) == b"hello"
        lent.release()
        assert server.received == [b"hello"]
        assert server.open == 1


def test_leaving_the_block_of_a_parents_loan_in_the_child_spoils_nothing() -> None:
    with ScriptedServer() as server, ConnectionPool(server.endpoint) as pool:
        with pool.try_connect() as lent:

            def job() -> str:
                try:
                    lent.__exit__(None, None, None)
                except UsageError:
                    return "refused"
                return "let go"

            assert in_child(job) == "refused"
            assert ask(lent) == b"hello"
        assert server.open == 1


def test_a_child_may_close_its_pool_without_the_parents_server_noticing() -> None:
    with ScriptedServer() as server, ConnectionPool(server.endpoint) as pool:
        lent = pool.try_connect()
        pool.try_connect().release()

        def job() -> int:
            left = pool.close(timeout=1)
            pool.shutdown()
            return left

        assert in_child(job) == 0
        assert ask(lent) == b"hello"
        lent.release()
        server.until_accepts(2)
        assert server.open == 2
        with pool.try_connect() as conn:
            assert ask(conn) == b"hello"


def test_limits_and_blacklists_of_the_child_are_its_own() -> None:
    with ScriptedServer() as server, ConnectionPool(server.endpoint, max_size=2) as pool:
        loans = [pool.try_connect(), pool.try_connect()]

        def job() -> int:
            mine = [pool.try_connect(timeout=5), pool.try_connect(timeout=5)]
            for loan in mine:
                loan.release()
            pool.blacklist(server.endpoint)
            return pool.stats().idle

        assert in_child(job) == 2
        for loan in loans:
            loan.release()
        pool.try_connect().release()


def test_a_fork_amid_a_dial_and_a_queue_leaves_the_child_neither() -> None:
    board = Switchboard()
    board.hold("a:1")
    with ConnectionPool("a:1 && b:1", connector=board, max_size=2) as pool:
        loan = pool.try_connect("b:1")
        threads = [
            threading.Thread(target=lambda name=name: pool.try_connect(name).release())
            for name in ("a:1", "b:1")
        ]
        for thread in threads:
            thread.start()
        board.until_dialling("a:1")
        until(lambda: pool.stats().waiting == 2)

        def job() -> tuple[int, int, int]:
            stats = pool.stats()
            for _ in range(2):
                pool.try_connect("b:1", timeout=5).terminate()
            return stats.opening, stats.waiting, stats.size

        try:
            assert in_child(job) == (0, 0, 0)
        finally:
            board.let_go("a:1")
            loan.release()
            for thread in threads:
                thread.join(10)


@pytest.mark.parametrize("dial_in_caller", [False, True])
def test_a_fork_at_any_moment_of_busy_threads_gives_a_child_that_works(dial_in_caller: bool) -> None:
    over = threading.Event()
    with ScriptedServer() as server:
        with ConnectionPool(server.endpoint, max_size=2, dial_in_caller=dial_in_caller) as pool:

            def work() -> None:
                while not over.is_set():
                    with pool.try_connect() as conn:
                        conn.extra = "busy"
                    pool.try_connect().terminate()

            threads = [threading.Thread(target=work) for _ in range(4)]
            for thread in threads:
                thread.start()

            def job() -> bytes:
                with pool.try_connect(timeout=5) as conn:
                    return ask(conn)

            try:
                for _ in range(15):
                    assert in_child(job) == b"hello"
            finally:
                over.set()
                for thread in threads:
                    thread.join(10)
        assert pool.stats().in_use == 0


def test_a_grandchild_starts_clean_as_well() -> None:
    with ScriptedServer() as server, ConnectionPool(server.endpoint) as pool:
        pool.try_connect().release()

        def child() -> tuple[int, bytes]:
            pool.try_connect(timeout=5).release()
            return in_child(lambda: (pool.stats().size, ask(pool.try_connect(timeout=5))))

        assert in_child(child) == (0, b"hello")
        with pool.try_connect() as conn:
            assert conn.uses == 1


def test_what_ends_listening_ends_it_in_the_child_too() -> None:
    heard: list[object] = []
    with ConnectionPool("a:1", connector=Switchboard()) as pool:
        stop = pool.listen(heard.append, PoolPaused)

        def job() -> int:
            stop()
            pool.pause()
            return len(heard)

        assert in_child(job) == 0
        pool.pause()
        assert len(heard) == 1


def test_parent_and_child_do_not_draw_the_same_chances() -> None:
    assert in_child(core.CHANCE.random) != core.CHANCE.random()


def test_a_pause_that_fails_checkouts_does_so_in_the_child() -> None:
    with ConnectionPool("a:1", connector=Switchboard()) as pool:
        pool.pause(fail=True)

        def job() -> None:
            with pytest.raises(PoolPausedError):
                pool.try_connect(timeout=5)

        in_child(job)


def test_who_listens_hears_of_the_childs_loans() -> None:
    heard: list[object] = []
    with ConnectionPool("a:1", connector=Switchboard()) as pool:
        pool.listen(heard.append, CheckedOut, CheckedIn)

        def job() -> int:
            pool.try_connect(timeout=5).release()
            return len(heard)

        assert in_child(job) == 2
        assert heard == []
