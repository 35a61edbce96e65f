"""A dial, a look or a close that hangs holds up nobody else, and the limits hold meanwhile."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import pytest

from connpool import (
    CancelledError,
    CheckoutTimeoutError,
    ConnectionPool,
    Endpoint,
    PoolExhaustedError,
    Request,
    SocketConnector,
)
from connpool.pool.checkout import Checkout
from connpool.pool.closing import close_all
from connpool.pool.waiters import PATIENCE
from connpool.testing import FakeClock, NoHandshake, ScriptedServer, Silence
from tests.helpers.certificates import Certificates
from tests.helpers.switchboard import Switchboard
from tests.helpers.together import in_threads, join_all, together
from tests.helpers.wire import later, stuck_resolver, taking


@pytest.mark.parametrize("phase", ["dns", "connect", "tls"])
def test_a_dial_that_hangs_holds_up_nobody_else(
    phase: str, certificates: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (
        ScriptedServer() as fine,
        ScriptedServer(script=NoHandshake(), tls=certificates.server()) as bad,
        stuck_resolver(monkeypatch) as resolver,
    ):
        endpoint = Endpoint("stuck.test", bad.port) if phase == "dns" else bad.endpoint
        if phase == "connect":
            bad.black_hole()
        connector = SocketConnector(tls=certificates.client())
        with ConnectionPool([fine.endpoint, endpoint], connector=connector, connect_timeout=20) as pool:
            pool.try_connect(fine.endpoint, timeout=5).release()
            cancel = threading.Event()

            def hang() -> None:
                with pytest.raises(CancelledError):
                    pool.try_connect(Request(endpoint, timeout=20, cancel=cancel))

            (thread,) = in_threads(hang)
            thread.start()
            if phase == "dns":
                resolver.until_inside(1)
            elif phase == "tls":
                bad.until_accepts(1)
            with taking(0, 1.0):
                for _ in range(1000):
                    pool.try_connect(fine.endpoint, timeout=5).release()
            assert thread.is_alive(), "it hung all the while"
            cancel.set()
            join_all([thread])


@pytest.mark.parametrize("place", ["before its first sleep", "between two"])
def test_who_is_held_up_as_its_patience_ends_looks_elsewhere_all_the_same(
    place: str, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "_wait" if place == "before its first sleep" else "_check_deadline"
    go_on = getattr(Checkout, name)

    def be_held_up(checkout: Checkout, **arguments: bool) -> None:
        monkeypatch.undo()
        if name == "_wait":
            clock.advance(PATIENCE)
        go_on(checkout, **arguments)
        if name != "_wait":
            clock.advance(PATIENCE)

    board = Switchboard()
    board.hold("a:1")
    with ConnectionPool("a:1, b:1", connector=board, clock=clock) as pool:
        monkeypatch.setattr(Checkout, name, be_held_up)
        (thread,) = in_threads(lambda: pool.try_connect(timeout=1000).release())
        thread.start()
        board.until_dialling("a:1")
        if name != "_wait":
            clock.until_waiting(1)
            oldest = pool._lender.books.queue.oldest
            assert oldest is not None
            oldest.wake()
        try:
            join_all([thread])
            assert sorted(board.dialled) == ["a:1", "b:1"]
        finally:
            board.let_go("a:1")


def test_a_close_that_hangs_holds_up_nobody_and_keeps_its_place() -> None:
    let_go, closing = threading.Event(), threading.Event()

    def hang(raw: object) -> None:
        closing.set()
        assert let_go.wait(10)

    pool = ConnectionPool.of(object, close=hang, max_size=2)
    conn = pool.try_connect()
    terminator = threading.Thread(target=conn.terminate, daemon=True)
    terminator.start()
    assert closing.wait(5)
    with taking(0, 2):
        for _ in range(1000):
            pool.try_connect(timeout=5).release()
        with pool.try_connect(timeout=5), pytest.raises(PoolExhaustedError):
            pool.try_connect(timeout=0)  # the place is free only after closing
        assert pool.stats().closing == 1
        pool.close()
    let_go.set()
    join_all([terminator])


@pytest.mark.parametrize("by_whom", ["a checkout", "clear", "resize", "close"])
def test_however_many_closes_hang_nobody_waits_for_each_of_them(by_whom: str) -> None:
    let_go, n = threading.Event(), 40
    pool = ConnectionPool.of(object, close=lambda _: let_go.wait(20), max_size=n, reap_interval=None)
    loans = [pool.try_connect() for _ in range(n)]
    for loan in loans:
        loan.release()

    def ask() -> None:
        pool.configure(look_after_idle=0, max_lifetime=1e-6)
        with pytest.raises(CheckoutTimeoutError):
            pool.try_connect(timeout=0.1)

    ways: dict[str, Callable[[], object]] = {
        "a checkout": ask,
        "clear": pool.clear,
        "resize": lambda: pool.resize(1),
        "close": pool.close,
    }
    try:
        with taking(0, 1.0):
            ways[by_whom]()
        assert pool.stats().closing >= n - 1
    finally:
        let_go.set()
        pool.close(5)


@pytest.mark.parametrize("apart", [True, False])
def test_where_no_thread_is_to_be_had_who_wants_them_closed_closes_them(apart: bool) -> None:
    closed: list[int] = []
    close_all(deque(range(3)), closed.append, lambda *_: False, apart=apart)
    assert closed == [0, 1, 2]


def test_who_has_them_closed_apart_waits_for_none_and_each_has_its_thread_if_it_must() -> None:
    all_closing, threads = threading.Barrier(3), []

    def start(*job: Any) -> bool:
        threads.append(threading.Thread(target=job[0], args=job[1:]))
        if len(threads) > 1:
            threads[-1].start()
        return True

    close_all(deque(range(3)), lambda _: all_closing.wait(10), start, apart=True)
    assert len(threads) == 1, "to wait would take another"
    threads[0].start()
    join_all(threads[:1])
    join_all(threads)


def test_fifty_dials_at_once_never_exceed_the_limit() -> None:
    with ScriptedServer() as server, ConnectionPool(server.endpoint, max_size=7, max_connecting=50) as pool:

        def use() -> None:
            for _ in range(4):
                with pool.try_connect(timeout=20) as conn:
                    conn.sendall(b"x", timeout=5)
                    assert conn.recv_exactly(1, timeout=5) == b"x"
                    assert pool.stats().size <= 7
                pool.try_connect(timeout=20).terminate()

        together(*[use] * 50, limit=40)
        assert server.peak <= 7
        assert (pool.stats().in_use, pool.stats().waiting, pool.stats().closing) == (0, 0, 0)


def test_no_more_than_max_connecting_dials_go_to_one_endpoint_at_a_time() -> None:
    inside, peak, lock = 0, 0, threading.Lock()
    full, go = threading.Event(), threading.Event()

    def dial() -> object:
        nonlocal inside, peak
        with lock:
            inside += 1
            peak = max(peak, inside)
            if inside == 3:
                full.set()
        assert go.wait(10)
        with lock:
            inside -= 1
        return object()

    pool = ConnectionPool.of(dial, max_size=10, max_connecting=3)
    with later(lambda: (full.wait(5), go.set())):
        together(*[lambda: pool.try_connect(timeout=10).release()] * 8)
    assert peak == 3
    pool.close()


def test_a_user_thread_takes_whatever_comes_first_a_release_or_its_dial() -> None:
    with ScriptedServer() as server, ConnectionPool(server.endpoint, max_size=2) as pool:
        held = pool.try_connect(timeout=5)
        server.black_hole()
        began = time.monotonic()
        with later(held.release, 0.1), pool.try_connect(timeout=5) as conn:
            assert conn.uses == 1
            assert time.monotonic() - began < 2
        pool.shutdown()  # ends the dial that is still under way


def test_a_silent_server_is_no_reason_to_wait_at_a_checkout() -> None:
    with ScriptedServer(script=Silence()) as server, ConnectionPool(server.endpoint) as pool:
        pool.try_connect(timeout=5).release()
        with taking(0, 1), pool.try_connect(timeout=5) as conn:
            assert conn.uses == 1
