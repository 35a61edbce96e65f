"""Waiting for a connection: in order, within one deadline, and nothing lost when somebody gives up."""

from __future__ import annotations

import threading
from contextlib import suppress
from functools import partial

import pytest

from connpool import (
    CheckoutTimeoutError,
    ConnectError,
    ConnectionPool,
    ConnectTimeoutError,
    Endpoint,
    EndpointState,
    NoEndpointError,
    PoolExhaustedError,
    SocketConnector,
)
from connpool.testing import FakeClock, NoHandshake, ScriptedServer
from tests.helpers.certificates import Certificates
from tests.helpers.switchboard import Switchboard
from tests.helpers.together import in_threads, join_all, together
from tests.helpers.wire import answer_names_with, later, taking


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
        server.until_accepts(1)
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


def test_a_detached_connection_makes_room_for_who_waits(clock: FakeClock) -> None:
    with ScriptedServer() as server, ConnectionPool(server.endpoint, max_size=1, clock=clock) as pool:
        held = pool.try_connect(timeout=20)

        def leave() -> None:
            clock.until_waiting(1)
            held.detach().close()

        together(lambda: pool.try_connect(timeout=20).release(), leave)
        assert (pool.stats().size, pool.stats().opened) == (1, 2)


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


def test_a_callers_own_haste_blames_nobody_where_it_dials_itself() -> None:
    with (
        ScriptedServer() as server,
        ConnectionPool(server.endpoint, dial_in_caller=True, connect_timeout=5) as pool,
    ):
        server.black_hole()
        with taking(0.1, 2), pytest.raises(CheckoutTimeoutError):
            pool.try_connect(timeout=0.1)
        told = pool.endpoints()[0]
        assert (told.state, told.failures) == (EndpointState.UP, 0)
        assert pool.stats().size == 0


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


def test_a_timeout_has_the_dial_that_failed_for_its_cause_until_one_works() -> None:
    with (
        ScriptedServer() as server,
        ConnectionPool(server.endpoint, max_size=1, fail_fast=False, reconnect=False) as pool,
    ):
        server.stop()
        with pytest.raises(CheckoutTimeoutError, match=r"last connect error: .*refused") as told:
            pool.try_connect(timeout=0.1)
        assert isinstance(told.value.__cause__, ConnectError)
        server.start()
        pool.unblacklist(server.endpoint)
        with pool.try_connect(timeout=5), pytest.raises(CheckoutTimeoutError) as told:
            pool.try_connect(timeout=0.05)
        assert "connect error" not in str(told.value), "what was put right long ago misleads"
        assert told.value.__cause__ is None


def test_a_timeout_has_the_dial_that_failed_for_its_cause_though_another_endpoint_works() -> None:
    board = Switchboard("a:1")
    with ConnectionPool("a:1 || b:1", connector=board, max_size=1) as pool:
        with pool.try_connect() as held:
            assert str(held.endpoint) == "b:1"
            with pytest.raises(CheckoutTimeoutError, match="a:1 is down") as told:
                pool.try_connect(timeout=0.01)
        assert isinstance(told.value.__cause__, ConnectError)
