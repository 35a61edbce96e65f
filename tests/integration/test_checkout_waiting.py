"""Waiting for a connection: in order, within one deadline, and nothing lost when somebody gives up."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial

import pytest

from connpool import (
    CancelledError,
    CheckoutTimeoutError,
    ConnectionPool,
    ConnectTimeoutError,
    Endpoint,
    EndpointState,
    NoEndpointError,
    PoolExhaustedError,
    Request,
    SocketConnector,
)
from connpool.testing import FakeClock, NoHandshake, ScriptedServer, Silence
from tests.helpers.certificates import Certificates
from tests.helpers.together import together
from tests.helpers.wire import answer_names_with, later, stuck_resolver, taking


def in_threads(*jobs: Callable[[], None]) -> list[threading.Thread]:
    return [threading.Thread(target=job, daemon=True) for job in jobs]


def join_all(threads: list[threading.Thread]) -> None:
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()


def test_waiters_are_served_in_the_order_of_their_coming(clock: FakeClock) -> None:
    order: list[int] = []

    def wait(i: int) -> None:
        with pool.try_connect(timeout=20):
            order.append(i)

    with ScriptedServer() as server, ConnectionPool(server.endpoint, max_size=1, clock=clock) as pool:
        held = pool.try_connect(timeout=20)
        threads = in_threads(*(partial(wait, i) for i in range(5)))
        for n, thread in enumerate(threads, 1):
            thread.start()
            clock.until_waiting(n)
        assert pool.stats().waiting == 5
        held.release()
        join_all(threads)
        assert order == [0, 1, 2, 3, 4]
        assert server.accepts == 1


def test_a_termination_serves_the_oldest_waiter_too(clock: FakeClock) -> None:
    order: list[int] = []

    def wait(i: int) -> None:
        conn = pool.try_connect(timeout=20)
        order.append(i)
        conn.terminate()

    with ScriptedServer() as server, ConnectionPool(server.endpoint, max_size=1, clock=clock) as pool:
        held = pool.try_connect(timeout=20)
        threads = in_threads(*(partial(wait, i) for i in range(3)))
        for n, thread in enumerate(threads, 1):
            thread.start()
            clock.until_waiting(n)
        held.terminate()
        join_all(threads)
        assert order == [0, 1, 2]
        server.until_accepts(4)
        assert (server.accepts, pool.stats().size) == (4, 0)


def test_a_wait_ends_at_its_deadline_and_tells_the_numbers() -> None:
    with ScriptedServer() as server, ConnectionPool(server.endpoint, max_size=1, name="orders") as pool:
        with pool.try_connect(timeout=5):
            with taking(0.2, 2), pytest.raises(CheckoutTimeoutError) as told:
                pool.try_connect(timeout=0.2)
            text = str(told.value)
            assert told.value.pool == "orders"
            for piece in ("'orders'", "0.2 s", "1 of 1", threading.current_thread().name):
                assert piece in text
        assert pool.stats().timeouts == 1
        assert pool.endpoints()[0].state is EndpointState.UP
        with pool.try_connect(timeout=5) as conn:
            assert conn.uses == 1, "what came back after the time-out is there for the next"


def test_a_release_that_meets_a_time_out_is_not_lost() -> None:
    got: list[int] = []

    def wait(timeout: float) -> None:
        with suppress(CheckoutTimeoutError), pool.try_connect(timeout=timeout) as conn:
            got.append(conn.info.id)

    with ScriptedServer() as server, ConnectionPool(server.endpoint, max_size=1) as pool:
        for i in range(60):
            held = pool.try_connect(timeout=5)
            thread = threading.Thread(target=wait, args=(0.005,), daemon=True)
            thread.start()
            pause = threading.Event()
            pause.wait(0.004 + i % 10 * 0.0002)  # around the moment of the deadline
            held.release()
            join_all([thread])
            pool.try_connect(timeout=0).release()  # at once: nothing waits, nothing is lost
        assert server.accepts == 1


def test_the_waiting_room_may_be_limited(clock: FakeClock) -> None:
    with (
        ScriptedServer() as server,
        ConnectionPool(server.endpoint, max_size=1, max_waiters=1, clock=clock) as pool,
    ):
        held = pool.try_connect(timeout=20)
        (thread,) = in_threads(lambda: pool.try_connect(timeout=20).release())
        thread.start()
        clock.until_waiting(1)
        with pytest.raises(PoolExhaustedError):
            pool.try_connect(timeout=20)
        held.release()
        join_all([thread])


# -- one budget


@pytest.mark.parametrize("trouble", ["silent tls", "black hole", "two silent addresses"])
def test_one_deadline_covers_the_whole_checkout(
    trouble: str, certificates: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    connector = SocketConnector(tls=certificates.client())
    with (
        ScriptedServer(script=NoHandshake(), tls=certificates.server("a.test")) as server,
        ScriptedServer(host="127.0.0.2") as other,
    ):
        endpoint = server.endpoint
        if trouble != "silent tls":
            server.black_hole()
        if trouble == "two silent addresses":
            other.black_hole()
            answer_names_with(monkeypatch, ("127.0.0.1", server.port), ("127.0.0.2", other.port))
            endpoint = Endpoint("a.test", server.port, tls=True)
        with ConnectionPool(endpoint, connector=connector) as pool:
            with taking(0.5, 1.5), pytest.raises(CheckoutTimeoutError):
                pool.try_connect(timeout=0.5)
            (told,) = pool.endpoints()
            assert told.state is EndpointState.UP, "a caller's own deadline blames nobody"


def test_time_spent_in_the_queue_counts_for_the_dial_that_follows() -> None:
    with ScriptedServer() as server, ConnectionPool(server.endpoint, max_size=1) as pool:
        held = pool.try_connect(timeout=5)
        server.black_hole()
        with later(held.terminate, 0.3), taking(0.6, 0.89), pytest.raises(CheckoutTimeoutError):
            pool.try_connect(timeout=0.6)


def test_a_dial_that_exceeds_connect_timeout_is_the_endpoints_failure() -> None:
    with ScriptedServer() as server, ConnectionPool(server.endpoint, connect_timeout=0.2) as pool:
        server.black_hole()
        with taking(0.2, 2), pytest.raises(NoEndpointError) as told:
            pool.try_connect(timeout=5)
        assert isinstance(told.value, ConnectTimeoutError)
        assert pool.endpoints()[0].state is EndpointState.BLACKLISTED


def test_a_deadline_holds_even_if_open_ignores_it() -> None:
    let_go = threading.Event()

    def stubborn() -> object:
        assert let_go.wait(10)
        return object()

    pool = ConnectionPool.of(stubborn, max_size=1)
    with taking(0.2, 2), pytest.raises(CheckoutTimeoutError):
        pool.try_connect(timeout=0.2)
    let_go.set()
    with pool.try_connect(timeout=5) as conn:  # the dial whose waiter has left is kept
        assert conn.info.id == 1
    pool.close()


def test_a_dial_whose_waiter_has_left_is_kept_for_the_next() -> None:
    gate = threading.Event()

    class Slow(SocketConnector):
        def open(self, *args: object, **kwargs: object) -> object:
            assert gate.wait(10)
            return super().open(*args, **kwargs)  # type: ignore[arg-type]

    with ScriptedServer() as server, ConnectionPool(server.endpoint, max_size=1, connector=Slow()) as pool:
        with pytest.raises(CheckoutTimeoutError):
            pool.try_connect(timeout=0.05)
        gate.set()
        with pool.try_connect(timeout=5):
            pass
        server.until_accepts(1)
        assert server.accepts == 1


# -- nothing slow holds anybody up


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
