"""A loan is given back exactly once; whoever holds the connection next is unharmed."""

from __future__ import annotations

import gc
import os
import socket
import ssl
import threading
import warnings
from collections.abc import Callable
from contextlib import nullcontext

import pytest

from connpool import CloseReason, Connection, ConnectionPool, PoolClosedError, UsageError
from connpool.pool import drops
from connpool.testing import Ending, FakeClock, ScriptedServer, Send
from tests.helpers.clients import ask
from tests.helpers.switchboard import until
from tests.helpers.together import together

USES: dict[str, Callable[[Connection], object]] = {
    "release": lambda conn: conn.release(),
    "terminate": lambda conn: conn.terminate(),
    "detach": lambda conn: conn.detach(),
    "with": lambda conn: conn.__enter__(),
    "writev_all": lambda conn: conn.writev_all([b"x"]),
    "sendall": lambda conn: conn.sendall(b"x"),
    "recv": lambda conn: conn.recv(1),
    "recv_into": lambda conn: conn.recv_into(bytearray(1)),
    "recv_exactly": lambda conn: conn.recv_exactly(1),
    "recv_until": lambda conn: conn.recv_until(b"\n"),
    "raw": lambda conn: conn.raw,
    "socket": lambda conn: conn.socket,
    "ssl_socket": lambda conn: conn.ssl_socket,
    "fileno": lambda conn: conn.fileno(),
    "endpoint": lambda conn: conn.endpoint,
    "info": lambda conn: conn.info,
    "uses": lambda conn: conn.uses,
    "extra": lambda conn: conn.extra,
    "set extra": lambda conn: setattr(conn, "extra", 1),
}


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("how", ["release", "terminate", "detach"])
def test_every_use_of_a_loan_given_back_is_an_error_that_touches_nothing(use: str, how: str) -> None:
    with ScriptedServer() as server, ConnectionPool(server.endpoint, max_size=1) as pool:
        old = pool.try_connect(timeout=5)
        old.extra = "mine"
        with getattr(old, how)() or nullcontext(), pool.try_connect(timeout=5) as conn:
            with pytest.raises(UsageError):
                USES[use](old)
            assert ask(conn) == b"ping", "the next holder's traffic is unharmed"
            assert conn.extra in ("mine", None)
            stats = pool.stats()
            assert (stats.in_use, stats.size) == (1, 1)
        assert pool.stats().idle == 1


def test_start_tls_on_a_loan_given_back_is_an_error() -> None:
    with ScriptedServer() as server, ConnectionPool(server.endpoint) as pool:
        conn = pool.try_connect(timeout=5)
        conn.release()
        with pytest.raises(UsageError):
            conn.start_tls(ssl.create_default_context(), timeout=1)
        with pool.try_connect(timeout=5) as again:
            assert ask(again) == b"ping"


@pytest.mark.parametrize("ways", [("release", "release"), ("release", "terminate"), ("detach", "release")])
def test_of_two_threads_that_give_back_at_once_exactly_one_succeeds(ways: tuple[str, str]) -> None:
    with ScriptedServer() as server, ConnectionPool(server.endpoint, max_size=2) as pool:
        for _ in range(150):
            conn = pool.try_connect(timeout=5)

            def give_back(way: str, conn: Connection = conn) -> tuple[bool, object]:
                try:
                    return True, getattr(conn, way)()
                except UsageError:
                    return False, None

            done = together(*(lambda way=way: give_back(way) for way in ways))
            assert sorted(success for success, _ in done) == [False, True]
            for _, raw in done:
                if raw is not None:
                    raw.close()  # type: ignore[attr-defined]
            with pool.try_connect(timeout=5) as one, pool.try_connect(timeout=5) as other:
                assert one.info.id != other.info.id
                assert ask(one, b"1") + ask(other, b"2") == b"12"
            assert pool.stats().size == 2


def test_a_second_release_does_not_take_it_from_a_waiter_it_was_handed_to(clock: FakeClock) -> None:
    served, go_on = threading.Event(), threading.Event()

    def wait() -> None:
        with pool.try_connect(timeout=20) as conn:
            served.set()
            assert go_on.wait(10)
            assert ask(conn, b"unharmed") == b"unharmed"

    with ScriptedServer() as server, ConnectionPool(server.endpoint, max_size=1, clock=clock) as pool:
        old = pool.try_connect(timeout=20)
        waiter = threading.Thread(target=wait, daemon=True)
        waiter.start()
        clock.until_waiting(1)
        old.release()
        assert served.wait(10)
        for again in (old.release, old.terminate, old.detach):
            with pytest.raises(UsageError):
                again()
        go_on.set()
        waiter.join(10)
        assert not waiter.is_alive()
        assert pool.stats().idle == 1


def test_an_error_tells_the_pool_by_its_name() -> None:
    pool = ConnectionPool.of(object, name="orders")
    conn = pool.try_connect()
    conn.release()
    with pytest.raises(UsageError, match="'orders'") as told:
        conn.release()
    assert told.value.pool == "orders"
    pool.close()


def test_a_loan_cannot_be_made_by_hand() -> None:
    with pytest.raises(UsageError):
        Connection().release()


def test_a_loan_released_by_another_thread_comes_back() -> None:
    with ScriptedServer() as server, ConnectionPool(server.endpoint, max_size=1) as pool:
        conn = pool.try_connect(timeout=5)
        together(conn.release)
        with pool.try_connect(timeout=0) as again:
            assert again.uses == 1


def test_a_forked_child_cannot_give_back_what_its_parent_lent() -> None:
    with ScriptedServer() as server, ConnectionPool(server.endpoint) as pool:
        conn = pool.try_connect(timeout=5)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # threads are running: the server's
            child = os.fork()
        if child == 0:
            told = 1
            try:
                for use in (conn.release, conn.terminate, lambda: conn.sendall(b"child")):
                    try:
                        use()
                    except UsageError:
                        continue
                    os._exit(2)
                told = 0
            finally:
                os._exit(told)
        assert os.waitpid(child, 0)[1] == 0
        assert ask(conn) == b"ping"
        conn.release()
        with pool.try_connect(timeout=5) as again:
            assert again.uses == 1
        assert server.received == [b"ping"]


# -- lost loans


def drop(held: list[Connection]) -> None:
    """Without the GIL who took or opened it finalises it, on its own thread; if that sleeps, a collection."""
    name = held[0].info.endpoint
    with pytest.warns(ResourceWarning, match=str(name)) as seen:  # noqa: PT031 - whoever does it, and when
        held.clear()
        gc.collect()
        until(lambda: seen.list)


def drop_a_loan(pool: ConnectionPool) -> None:
    drop([pool.try_connect(timeout=5)])


def test_a_lost_loan_is_warned_about_and_its_place_comes_back() -> None:
    with ScriptedServer() as server, ConnectionPool(server.endpoint, max_size=1, reap_interval=None) as pool:
        for n in range(1, 4):
            drop_a_loan(pool)
            assert pool.sweep() == 1
            assert pool.stats().lost == n
        with pool.try_connect(timeout=5) as conn:
            assert ask(conn) == b"ping"
        server.until_open(1)
        assert server.closes[:3] == [Ending.EOF] * 3, "nobody knows in which state a lost one is"
        assert pool.stats().closed == {CloseReason.LOST: 3}


def test_a_lost_loan_is_found_by_the_checkout_that_needs_its_place() -> None:
    with ScriptedServer() as server, ConnectionPool(server.endpoint, max_size=1) as pool:
        drop_a_loan(pool)
        with pool.try_connect(timeout=5) as conn:
            assert ask(conn) == b"ping"


def test_a_lost_loan_is_warned_about_though_others_recover_it_in_that_very_instant(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with ScriptedServer() as server, ConnectionPool(server.endpoint, max_size=1, reap_interval=None) as pool:
        monkeypatch.setattr(drops, "wink", ConnectionPool.sweep)
        drop_a_loan(pool)
        assert pool.stats().lost == 1


def test_a_waiter_is_served_when_a_loan_is_lost() -> None:
    with ScriptedServer() as server, ConnectionPool(server.endpoint, max_size=1) as pool:
        held = [pool.try_connect(timeout=5)]
        waiting = threading.Event()

        def wait() -> None:
            waiting.set()
            with pool.try_connect(timeout=20) as conn:
                assert ask(conn) == b"ping"

        def lose() -> None:
            assert waiting.wait(5)
            while not pool.stats().waiting:
                threading.Event().wait(0.001)
            drop(held)
            pool.sweep()

        together(wait, lose, limit=15)


# -- after the pool has closed


def test_close_may_be_repeated_and_loans_alive_are_harmless_afterwards() -> None:
    with ScriptedServer() as server:
        pool = ConnectionPool(server.endpoint)
        conns = [pool.try_connect(timeout=5) for _ in range(3)]
        assert [pool.close(), pool.close()] == [3, 3]
        with pytest.raises(PoolClosedError):
            pool.try_connect()
        assert ask(conns[0]) == b"ping", "close without a timeout does not interrupt"
        conns[0].release()
        conns[1].terminate()
        raw = conns[2].detach()
        assert pool.close() == 0
        with pytest.raises(UsageError):
            conns[0].release()
        server.until_open(1)
        raw.close()
        assert pool.stats().size == 0


def test_a_loan_lost_after_close_is_warned_about_once_and_closed() -> None:
    with ScriptedServer() as server:
        pool = ConnectionPool(server.endpoint)
        held = [pool.try_connect(timeout=5) for _ in range(2)]
        server.until_accepts(2)
        pool.close()
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            held.clear()
            gc.collect()
            pool.sweep()
            del pool
            gc.collect()
        assert [warning.category for warning in told].count(ResourceWarning) == 2
        server.until_open(0)


def test_a_detached_transport_is_the_callers_alone() -> None:
    with ScriptedServer() as server, ConnectionPool(server.endpoint, max_size=1) as pool:
        raw = pool.try_connect(timeout=5).detach()
        assert pool.stats().size == 0
        with pool.try_connect(timeout=0) as conn:  # its place is free
            assert ask(conn) == b"ping"
        pool.close()
        raw.sendall(b"still mine")
        assert raw.recv(20) == b"still mine"
        raw.close()


def test_what_was_read_ahead_does_not_get_lost_when_its_connection_is_detached() -> None:
    with (
        ScriptedServer(script=Send(b"101 switching\nfirst frame")) as server,
        ConnectionPool(server.endpoint) as pool,
        pool.try_connect(timeout=5) as conn,
    ):
        assert conn.recv_until(b"\n", timeout=5) == b"101 switching\n"
        with pytest.raises(UsageError, match="11 bytes that were read ahead lie unread"):
            conn.detach()
        assert conn.recv(100, timeout=5) == b"first frame"
        conn.detach().close()


def test_no_descriptor_is_closed_twice() -> None:
    ours, theirs = socket.socketpair()  # a server would open and close descriptors meanwhile
    with theirs, ConnectionPool() as pool:
        pool.add_connection(ours)
        conn = pool.try_connect(timeout=5)
        fd = conn.fileno()
        conn.terminate()
        spare = os.open(os.devnull, os.O_RDONLY)
        os.dup2(spare, fd)  # the number belongs to somebody else now
        with pytest.raises(UsageError):
            conn.terminate()
        del conn
        pool.sweep()
        pool.close()
        gc.collect()
        os.close(fd)  # EBADF if anybody closed it before
        if spare != fd:
            os.close(spare)


def test_a_holder_that_closes_the_socket_itself_harms_nobody() -> None:
    with ScriptedServer() as server, ConnectionPool(server.endpoint, max_size=1) as pool:
        conn = pool.try_connect(timeout=5)
        conn.socket.close()
        conn.release()
        with pool.try_connect(timeout=5) as fresh:
            assert (ask(fresh), fresh.uses) == (b"ping", 0)
