"""A calendar that a test library froze, or a machine that slept: no pool hangs, and none goes mad."""

from __future__ import annotations

import threading

import pytest
from freezegun import freeze_time

from connpool import (
    CheckoutTimeoutError,
    ConnectionPool,
    ConnectTimeoutError,
    NoEndpointError,
    Request,
)
from connpool.testing import FakeClock, FaultProxy, ScriptedServer
from tests.helpers.faults import PingingConnector, WatchedConnector, fill, turn, use
from tests.helpers.switchboard import check_books, until
from tests.helpers.together import together
from tests.helpers.wire import later

LONG_AGO = "2001-02-03 04:05:06"


def test_under_a_frozen_clock_everything_that_waits_ends_in_its_time() -> None:
    with ScriptedServer() as server, FaultProxy(server.endpoint) as proxy, freeze_time(LONG_AGO):
        settings = {"max_size": 1, "connect_timeout": 0.3, "blacklist_initial": 0.05}
        with ConnectionPool(proxy.endpoint, **settings) as pool:
            with pool.try_connect() as conn:
                use(conn)
                with pytest.raises(CheckoutTimeoutError):
                    pool.try_connect(timeout=0.1)
                proxy.drop()
                with pytest.raises(TimeoutError):
                    conn.recv(1, timeout=0.1)
                conn.terminate()
            proxy.black_hole()
            with pytest.raises(ConnectTimeoutError):
                pool.try_connect()
            proxy.heal()
            until_served(pool)
            check_books(pool)


def until_served(pool: ConnectionPool) -> None:
    """Try, up to a thousand times, until the blacklist is over."""
    for _ in range(1_000):
        try:
            turn(pool)
        except NoEndpointError:
            threading.Event().wait(0.01)
        else:
            return
    pytest.fail("never served again")


def test_a_pool_from_before_the_freeze_serves_threads_within_it() -> None:
    with ScriptedServer() as server, ConnectionPool(server.endpoint, max_size=2) as pool:
        fill(pool, 2)
        with freeze_time(LONG_AGO):

            def work() -> None:
                for _ in range(50):
                    turn(pool, timeout=5)

            together(*[work] * 8)
        fill(pool, 2)
        assert server.accepts == 2
        assert sum(pool.stats().closed.values()) == 0


def test_a_calendar_that_leaps_by_years_ages_nothing() -> None:
    settings = {"max_size": 3, "idle_timeout": 60, "max_lifetime": 600, "reap_interval": 0.02}
    connector = PingingConnector()
    with (
        freeze_time(LONG_AGO) as frozen,
        ScriptedServer() as server,
        ConnectionPool(server.endpoint, connector=connector, keepalive_interval=0.05, **settings) as pool,
    ):
        fill(pool, 3)
        for date in ("2031-01-01", "1999-01-01"):
            frozen.move_to(date)
            before = connector.pings
            until_pinged(connector, before + 6)
        fill(pool, 3)
        assert server.accepts == 3
        check_books(pool)


def until_pinged(connector: PingingConnector, n: int) -> None:
    """Wait for *n* validations in all, by counting, since the clock is not to be asked."""
    for _ in range(5_000):
        if connector.pings >= n:
            return
        threading.Event().wait(0.002)
    pytest.fail(f"{connector.pings} of {n} validations: the reaper stands still")


def test_under_a_frozen_clock_the_reaper_works_on() -> None:
    settings = {"min_idle": 2, "idle_timeout": 0.1, "reap_interval": 0.02, "max_size": 4}
    with freeze_time(LONG_AGO), ScriptedServer() as server:
        with ConnectionPool(server.endpoint, **settings) as pool:
            server.until_open(2)  # warmed up
            fill(pool, 4)
            server.until_open(2)  # the surplus idled for too long
        server.until_open(0)


def test_under_a_frozen_clock_an_endpoint_is_found_again_by_the_reaper() -> None:
    settings = {
        "min_idle": 1,
        "reap_interval": 0.02,
        "blacklist_initial": 0.02,
        "blacklist_max": 0.1,
        "keepalive_interval": 0.05,
    }
    connector = WatchedConnector()
    with (
        freeze_time(LONG_AGO),
        ScriptedServer() as server,
        ConnectionPool(server.endpoint, connector=connector, **settings) as pool,
    ):
        server.until_open(1)
        server.stop()
        connector.until_dials(4)
        server.start()
        server.until_open(1)
        until_served(pool)


def test_a_cancelled_checkout_ends_under_a_frozen_clock() -> None:
    cancel = threading.Event()
    with (
        ScriptedServer() as server,
        freeze_time(LONG_AGO),
        ConnectionPool(server.endpoint, max_size=1) as pool,
        pool.try_connect(),
        later(cancel.set),
        pytest.raises(Exception, match="cancel"),
    ):
        pool.try_connect(Request(cancel=cancel))


@pytest.mark.parametrize("lifetime", [None, 3_600])
def test_after_a_machine_slept_idle_ones_are_looked_at_and_not_closed_unseen(
    lifetime: float | None, clock: FakeClock
) -> None:
    settings = {"max_size": 4, "idle_timeout": None, "max_lifetime": lifetime}
    with ScriptedServer() as server, ConnectionPool(server.endpoint, clock=clock, **settings) as pool:
        fill(pool, 4)
        server.until_accepts(2).close()
        server.until_accepts(3).reset()
        clock.advance(1_800)
        fill(pool, 2)
        assert server.accepts == 4
        until(lambda: server.open == 2)
        check_books(pool)
