"""A dial that never ends, whatever its timeout, is one place lost and no more."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from connpool import (
    CheckoutTimeoutError,
    ConnectionPool,
    ConnectTimeoutError,
    Endpoint,
    EndpointDown,
    EndpointState,
    HandshakeError,
    NoEndpointError,
    PoolExhaustedError,
    Request,
)
from connpool.testing import FakeClock, ScriptedServer
from tests.helpers.faults import WatchedConnector, turn
from tests.helpers.switchboard import Switchboard, check_books, info_of, until
from tests.helpers.together import together
from tests.helpers.upkeep import sweep_until

LIMITS = {"connect_timeout": 2, "blacklist_initial": 0.5, "blacklist_max": 1}


@contextmanager
def a_pool(
    clock: FakeClock, **settings: Any
) -> Iterator[tuple[ConnectionPool, WatchedConnector, ScriptedServer]]:
    """A pool with one server; what hangs is let go in the end."""
    connector = WatchedConnector(clock=clock)
    with (
        ScriptedServer() as server,
        ConnectionPool(server.endpoint, connector=connector, clock=clock, **LIMITS | settings) as pool,
    ):
        try:
            yield pool, connector, server
        finally:
            connector.let_go()
            until(lambda: connector.n_under_way == 0)


def pass_time(clock: FakeClock, pool: ConnectionPool, seconds: float, *, sweeps: bool) -> None:
    """Let *seconds* pass in small steps."""
    for _ in range(round(seconds / 0.1)):
        clock.advance(0.1)
        if sweeps:
            pool.sweep()


def passes_and_nobody_waits(pool: ConnectionPool, clock: FakeClock) -> bool:
    """Let a moment pass. Whether all who waited are gone then."""
    clock.advance(0.1)
    return pool.stats().waiting == 0


@pytest.mark.parametrize("fail_fast", [False, True])
@pytest.mark.parametrize("by_whom", ["a checkout", "the reaper"])
def test_a_probe_that_hangs_keeps_nobody_from_the_endpoint_for_longer_than_its_timeout(
    by_whom: str, fail_fast: bool, clock: FakeClock
) -> None:
    with a_pool(clock, fail_fast=fail_fast) as (pool, connector, server):
        server.refuse()
        with pytest.raises((NoEndpointError, CheckoutTimeoutError)):
            pool.try_connect(timeout=0)
        until(lambda: info_of(pool, server.endpoint).failures == 1)
        server.start()
        connector.hang(1)
        clock.advance(1)
        if by_whom == "the reaper":
            pool.sweep()
        else:

            def begin() -> None:
                with pytest.raises(CheckoutTimeoutError):
                    pool.try_connect(timeout=0.5)

            def pass_by() -> None:
                connector.until_dials(2)
                clock.until_waiting(1)
                clock.advance(0.6)

            together(begin, pass_by)
        connector.until_dials(2)
        pass_time(clock, pool, 2 + 1, sweeps=by_whom == "the reaper")  # a dial's timeout and the cap

        def ask() -> None:
            turn(pool, timeout=5)

        together(ask, ask, ask, limit=8)
        until(lambda: connector.n_under_way == 1, "the end of all others")
        check_books(pool)


def test_who_waits_for_a_probe_that_hangs_is_served_by_the_next_one(clock: FakeClock) -> None:
    with a_pool(clock, fail_fast=False, reconnect=False) as (pool, connector, server):
        server.refuse()

        def ask() -> None:
            turn(pool, timeout=1_000)

        def go_on() -> None:
            until(lambda: pool.stats().waiting == 4)
            until(lambda: info_of(pool, server.endpoint).failures == 1)
            until(lambda: pool.stats().opening == 0, "the end of a second dial that began with the first")
            n_dials = connector.n_dials()
            connector.hang(1)
            server.start()
            clock.advance(0.6)
            connector.until_dials(n_dials + 1)
            until(lambda: passes_and_nobody_waits(pool, clock), "everybody's turn")

        together(ask, ask, ask, ask, go_on, limit=20)
        until(lambda: connector.n_under_way == 1, "the end of all others")


@pytest.mark.parametrize("fail_fast", [False, True])
def test_a_first_dial_that_hangs_counts_as_one_that_was_not_answered_in_time(
    fail_fast: bool, clock: FakeClock
) -> None:
    with a_pool(clock, fail_fast=fail_fast) as (pool, connector, server):
        connector.hang(1)

        def ask() -> None:
            if not fail_fast:
                turn(pool, timeout=100)
                return
            with pytest.raises(ConnectTimeoutError, match=r"goes on after \d") as caught:
                turn(pool, timeout=100)
            assert isinstance(caught.value, NoEndpointError)
            assert info_of(pool, server.endpoint).failures == 1

        def go_on() -> None:
            connector.until_dials(1)
            until(lambda: passes_and_nobody_waits(pool, clock), "its turn")

        together(ask, go_on, limit=20)
        until(lambda: connector.n_under_way == 1, "the end of all others")
        if not fail_fast:
            check_books(pool)


def test_dials_that_hang_take_no_more_places_than_may_be_dialled_at_once(clock: FakeClock) -> None:
    with a_pool(clock, max_size=8, max_connecting=2) as (pool, connector, server):
        connector.hang(100)
        pass_by = threading.Event()

        def tick() -> None:
            while not pass_by.wait(0.001):
                clock.advance(0.2)

        def ask() -> None:
            for _ in range(8):
                with pytest.raises((NoEndpointError, CheckoutTimeoutError)):
                    pool.try_connect(timeout=10)
                clock.advance(2)  # and it may be dialled again
            pass_by.set()

        together(tick, ask, limit=20)
        assert connector.n_under_way == 2
        assert pool.stats().opening == 2
        assert info_of(pool, server.endpoint).failures == 2


def test_a_warm_up_dial_that_hangs_stops_no_refill(clock: FakeClock) -> None:
    with a_pool(clock, min_idle=1) as (pool, connector, _):
        connector.hang(1)
        pool.sweep()
        connector.until_dials(1)

        def is_warm() -> bool:
            clock.advance(0.1)
            pool.sweep()
            return pool.stats().idle == 1

        until(is_warm, "the warm-up")
        turn(pool, timeout=0)
        check_books(pool)


def test_who_finds_all_dials_of_an_endpoint_hanging_goes_on_to_the_next_group(clock: FakeClock) -> None:
    connector = WatchedConnector(clock=clock)
    settings: dict[str, Any] = {"connector": connector, "clock": clock, "max_connecting": 1, **LIMITS}
    with (
        ScriptedServer() as deaf,
        ScriptedServer() as other,
        ConnectionPool(f"{deaf.endpoint} || {other.endpoint}", **settings) as pool,
    ):
        connector.hang(1)

        def go_on() -> None:
            connector.until_dials(1)
            until(lambda: passes_and_nobody_waits(pool, clock), "its turn")

        together(lambda: turn(pool, timeout=100), go_on, limit=20)
        pass_time(clock, pool, 3, sweeps=True)
        assert info_of(pool, deaf.endpoint).retry_at < clock.now(), "due, and nobody can probe it"
        with pool.try_connect(timeout=0) as first, pool.try_connect(timeout=0) as second:
            assert {first.endpoint, second.endpoint} == {other.endpoint}
        with pytest.raises(NoEndpointError, match="goes on after"):
            pool.try_connect(deaf.endpoint)
        connector.let_go()
        until(lambda: connector.n_under_way == 0)
        sweep_until(pool, lambda: info_of(pool, deaf.endpoint).state is EndpointState.UP)
        with pool.try_connect(timeout=0) as conn:
            assert conn.endpoint == deaf.endpoint


def test_who_waits_behind_the_hanging_dials_of_pinned_checkouts_goes_on_to_the_next_group(
    clock: FakeClock,
) -> None:
    """They blacklist nobody as long as nobody else wants their endpoint, and so would starve the route."""
    connector = WatchedConnector(clock=clock)
    settings: dict[str, Any] = {"connector": connector, "clock": clock, "max_connecting": 1, **LIMITS}
    with (
        ScriptedServer() as deaf,
        ScriptedServer() as other,
        ConnectionPool(f"{deaf.endpoint} || {other.endpoint}", **settings) as pool,
    ):

        def pin() -> None:
            with pytest.raises(ConnectTimeoutError, match="goes on after"):
                pool.try_connect(deaf.endpoint, timeout=100)

        def ask() -> None:
            connector.until_dials(1)
            with pool.try_connect(timeout=10) as conn:
                assert conn.endpoint == other.endpoint

        def go_on() -> None:
            until(lambda: pool.stats().waiting == 2)
            until(lambda: passes_and_nobody_waits(pool, clock), "their turn")

        connector.hang(1)
        try:
            together(pin, ask, go_on, limit=20)
        finally:
            connector.let_go()
        assert info_of(pool, deaf.endpoint).failures == 1
        until(lambda: connector.n_under_way == 0)


@pytest.mark.parametrize("timeout", [0, 10])
@pytest.mark.parametrize("n_dials", [1, 2])
def test_who_comes_when_the_dials_of_pinned_checkouts_hang_already_goes_on_to_the_next_group(
    clock: FakeClock, n_dials: int, timeout: float
) -> None:
    told: list[EndpointDown] = []
    told_before_dials: list[int] = []
    connector = WatchedConnector(clock=clock, before=lambda _: told_before_dials.append(len(told)))
    settings: dict[str, Any] = {"connector": connector, "clock": clock, "max_connecting": n_dials, **LIMITS}
    with (
        ScriptedServer() as deaf,
        ScriptedServer() as other,
        ConnectionPool(f"{deaf.endpoint} || {other.endpoint}", **settings) as pool,
    ):

        def pin() -> None:
            with pytest.raises(ConnectTimeoutError, match="goes on after"):
                pool.try_connect(deaf.endpoint, timeout=100)

        def go_on() -> None:
            until(lambda: pool.stats().opening == n_dials)
            until(lambda: passes_and_nobody_waits(pool, clock), "the end of the pinned checkouts")

        pool.listen(told.append, EndpointDown)
        connector.hang(n_dials)
        try:
            together(*[pin] * n_dials, go_on, limit=20)
            assert info_of(pool, deaf.endpoint).failures == 0  # nobody else wants it
            with pool.try_connect(timeout=timeout) as conn:
                assert conn.endpoint == other.endpoint
            assert info_of(pool, deaf.endpoint).failures == 1
            with pool.try_connect(timeout=timeout) as conn:
                assert (conn.endpoint, conn.uses) == (other.endpoint, 1)
            assert told_before_dials == [1]
        finally:
            connector.let_go()
        until(lambda: connector.n_under_way == 0)
        check_books(pool)


def test_an_endpoint_where_fewer_dials_hang_than_may_be_under_way_is_dialled_and_not_blamed(
    clock: FakeClock,
) -> None:
    connector = WatchedConnector(clock=clock)
    settings: dict[str, Any] = {"connector": connector, "clock": clock, "max_connecting": 2, **LIMITS}
    with ScriptedServer() as server, ConnectionPool(server.endpoint, **settings) as pool:

        def pin() -> None:
            with pytest.raises(ConnectTimeoutError, match="goes on after"):
                pool.try_connect(server.endpoint, timeout=100)

        def go_on() -> None:
            until(lambda: pool.stats().opening == 1)
            until(lambda: passes_and_nobody_waits(pool, clock), "the end of the pinned checkout")

        connector.hang(1)
        try:
            together(pin, go_on, limit=20)
            with pool.try_connect(timeout=10):
                assert info_of(pool, server.endpoint).failures == 0
        finally:
            connector.let_go()
        until(lambda: connector.n_under_way == 0)


def test_an_endpoint_where_all_dials_hang_and_one_is_idle_is_not_blamed_by_who_does_not_want_that(
    clock: FakeClock,
) -> None:
    connector = WatchedConnector(clock=clock)
    settings: dict[str, Any] = {"connector": connector, "clock": clock, "max_connecting": 1, **LIMITS}
    with ScriptedServer() as server, ConnectionPool(server.endpoint, **settings) as pool:
        loan = pool.try_connect()

        def pin() -> None:
            with pytest.raises(ConnectTimeoutError, match="goes on after"):
                pool.try_connect(server.endpoint, timeout=100)

        def go_on() -> None:
            connector.until_dials(2)
            until(lambda: passes_and_nobody_waits(pool, clock), "the end of the pinned checkout")

        connector.hang(1)
        try:
            together(pin, go_on, limit=20)
            loan.release()
            with pytest.raises(PoolExhaustedError):
                pool.try_connect(Request(timeout=0, where=lambda _: False))
            assert info_of(pool, server.endpoint).failures == 0
        finally:
            connector.let_go()
        until(lambda: connector.n_under_way == 0)


@pytest.mark.parametrize("reconnect", [True, False])
@pytest.mark.parametrize("is_left", [True, False])
def test_who_waits_for_anothers_probe_tries_again_when_that_has_failed(
    is_left: bool, reconnect: bool, clock: FakeClock
) -> None:
    board = Switchboard("a:1")
    settings = {"fail_fast": False, "reconnect": reconnect, "blacklist_max": 1}
    with ConnectionPool("a:1", connector=board, clock=clock, **settings) as pool:

        def begins_the_probe() -> None:
            try:
                pool.try_connect(timeout=3 if is_left else 1_000).release()
            except CheckoutTimeoutError:
                assert is_left

        def waits_for_it() -> None:
            until(lambda: info_of(pool, "a:1").failures == 1)
            clock.until_waiting(1)
            board.hold("a:1")
            clock.advance(1.1)
            board.until_dialling("a:1")
            together(lambda: pool.try_connect(timeout=500).release(), go_on)

        def go_on() -> None:
            clock.until_waiting(2)
            if is_left:
                clock.advance(2)
                until(lambda: pool.stats().waiting == 1, "leaving of who began it")
            board.let_go("a:1")
            until(lambda: info_of(pool, "a:1").failures == 2, "failure of the probe")
            board.mend("a:1")
            clock.until_waiting(1)
            clock.advance(1.1)
            until(lambda: pool.stats().waiting == 0, "the turn of who waits")

        together(begins_the_probe, waits_for_it)


def test_a_failed_login_whose_close_hangs_keeps_nobody_from_trying_again() -> None:
    may_close = threading.Event()
    opened: list[Endpoint] = []

    class Unwilling:
        def open(self, endpoint: Endpoint, timeout: float | None, cancel: object) -> object:
            opened.append(endpoint)
            return object()

        def handshake(self, conn: object) -> None:
            if len(opened) == 1:
                raise PermissionError("login refused")

        def close(self, raw: object) -> None:
            may_close.wait(10)

    with ConnectionPool("a:1", connector=Unwilling(), max_connecting=1, blacklist_initial=60) as pool:
        try:
            with pytest.raises(HandshakeError, match="login refused"):
                pool.try_connect(timeout=5)
            assert info_of(pool, "a:1").state is EndpointState.BLACKLISTED  # nobody probes it
            pool.unblacklist("a:1")
            pool.try_connect(timeout=5).release()
            assert (len(opened), pool.stats().closing) == (2, 1)
        finally:
            may_close.set()


def test_who_waited_for_a_dial_that_hung_is_not_told_of_an_earlier_failure() -> None:
    gate = threading.Event()
    with ConnectionPool.of(lambda: gate.wait(20), connect_timeout=0.05) as pool:
        with pytest.raises(NoEndpointError) as caught:
            pool.try_connect(timeout=10)
        assert "goes on after" in str(caught.value)
        assert "blacklisted for" not in str(caught.value)
        gate.set()


def test_a_lowered_timeout_holds_for_a_dial_under_way(
    clock: FakeClock,
) -> None:
    with a_pool(clock, max_size=1, connect_timeout=60) as (pool, connector, _):
        connector.hang(1)
        failures = []

        def wait() -> None:
            with pytest.raises(ConnectTimeoutError) as caught:
                pool.try_connect(timeout=30)
            failures.append(caught.value)

        def lower() -> None:
            clock.until_waiting(1)
            clock.advance(5)
            pool.configure(connect_timeout=2)

        together(wait, lower)
        assert "goes on after 5.0 s" in str(failures[0])
