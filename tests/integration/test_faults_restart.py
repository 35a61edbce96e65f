"""A server goes away and comes back: what lay idle is dead, and nobody is to meet it."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from connpool import ConnectionPool, NoEndpointError, SocketConnector
from connpool.testing import FakeClock, FaultProxy, ScriptedServer
from tests.helpers.certificates import Certificates
from tests.helpers.faults import PingingConnector, WatchedConnector, fill, turn, use
from tests.helpers.switchboard import check_books, until
from tests.helpers.together import together

Restart = Callable[[ScriptedServer], None]


def in_order(server: ScriptedServer) -> None:
    server.stop()
    server.start()


def by_crash(server: ScriptedServer) -> None:
    server.refuse()
    server.kill()
    server.start()


RESTARTS = pytest.mark.parametrize("restart", [in_order, by_crash])


@RESTARTS
@pytest.mark.parametrize("tls", [False, True])
def test_after_a_restart_a_hundred_checkouts_succeed_and_none_meets_a_dead_connection(
    restart: Restart, tls: bool, certificates: Certificates, clock: FakeClock
) -> None:
    with ScriptedServer(tls=certificates.server() if tls else None) as server:
        connector = SocketConnector(tls=certificates.client())
        with ConnectionPool(server.endpoint, connector=connector, clock=clock, max_size=8) as pool:
            fill(pool, 8)
            restart(server)
            clock.advance(1)
            for _ in range(100):
                turn(pool)
            assert 9 <= server.accepts <= 16
            check_books(pool)
        assert server.peak <= 8


@RESTARTS
def test_after_a_restart_eight_threads_meet_no_dead_connection_either(restart: Restart) -> None:
    with (
        ScriptedServer() as server,
        ConnectionPool(server.endpoint, max_size=8, look_after_idle=0) as pool,
    ):
        fill(pool, 8)
        restart(server)

        def work() -> None:
            for _ in range(100):
                turn(pool)

        together(*[work] * 8)
        assert 9 <= server.accepts <= 16
        check_books(pool)


def test_an_outage_that_users_met_leaves_nothing_dead_behind(clock: FakeClock) -> None:
    with ScriptedServer() as server, ConnectionPool(server.endpoint, clock=clock, max_size=4) as pool:
        fill(pool, 4)
        server.stop()
        clock.advance(1)
        for _ in range(4):
            with pytest.raises(NoEndpointError):
                pool.try_connect()
        assert pool.stats().size == 0
        server.start()
        clock.advance(2)
        for _ in range(100):
            turn(pool)
        assert server.accepts == 4 + 1


def test_a_loan_that_was_out_during_the_restart_breaks_and_the_next_is_fresh(clock: FakeClock) -> None:
    with ScriptedServer() as server, ConnectionPool(server.endpoint, clock=clock, max_size=2) as pool:
        fill(pool, 2)
        loan = pool.try_connect()
        by_crash(server)
        with pytest.raises(ConnectionError):
            use(loan)
        loan.release()
        for _ in range(100):  # the other one was idle for no time at all, and is as dead
            turn(pool)
        assert server.accepts == 2 + 1


def test_work_that_may_be_repeated_survives_a_machine_that_came_back_without_memory(clock: FakeClock) -> None:
    with (
        ScriptedServer() as server,
        FaultProxy(server.endpoint) as proxy,
        ConnectionPool(proxy.endpoint, clock=clock) as pool,
    ):
        fill(pool, 1)
        proxy.cut(0)  # no FIN: the first byte is answered with a reset

        def work(conn: object) -> str:
            if conn.uses == 0:  # type: ignore[attr-defined]
                proxy.heal()
            use(conn)  # type: ignore[arg-type]
            return "done"

        assert pool.run(work, idempotent=True) == "done"
        assert proxy.accepts == 2


# -- with the reaper ---------------------------------------------------------------


@RESTARTS
def test_a_sweep_with_keepalive_removes_the_dead_before_anybody_asks(
    restart: Restart, clock: FakeClock
) -> None:
    with (
        ScriptedServer() as server,
        ConnectionPool(server.endpoint, clock=clock, max_size=8, keepalive_interval=5) as pool,
    ):
        fill(pool, 8)
        restart(server)
        pool.sweep()
        assert pool.stats().idle == 8  # not due yet
        clock.advance(5.1)
        pool.sweep()
        until(lambda: pool.stats().size == 0, "removal of the dead")
        assert sum(pool.stats().closed.values()) == 8
        turn(pool)
        assert server.accepts == 9


def test_a_sweep_with_keepalive_leaves_the_living_alone(clock: FakeClock) -> None:
    connector = PingingConnector()
    with (
        ScriptedServer() as server,
        ConnectionPool(
            server.endpoint, connector=connector, clock=clock, max_size=4, keepalive_interval=5
        ) as pool,
    ):
        fill(pool, 4)
        for n in (1, 2, 3):
            clock.advance(5.1)
            pool.sweep()
            until(lambda n=n: connector.pings == 4 * n, "validation of the idle")
            until(lambda: pool.stats().idle == 4)
        clock.advance(0.1)
        fill(pool, 4)
        assert server.accepts == 4


def test_with_a_minimum_the_dead_are_replaced_before_anybody_asks(clock: FakeClock) -> None:
    with (
        ScriptedServer() as server,
        ConnectionPool(server.endpoint, clock=clock, max_size=8, min_idle=3, keepalive_interval=5) as pool,
    ):
        fill(pool, 8)
        in_order(server)
        clock.advance(5.1)

        def three_live() -> bool:
            pool.sweep()
            return server.open == 3 and pool.stats().idle == 3

        until(three_live, "three fresh ones")
        loans = [pool.try_connect() for _ in range(3)]
        for loan in loans:
            use(loan)
            loan.release()
        assert server.accepts == 8 + 3


def test_the_reaper_itself_replaces_the_dead_without_traffic() -> None:
    connector = WatchedConnector()
    settings = {"max_size": 8, "min_idle": 3, "keepalive_interval": 0.2, "reap_interval": 0.05}
    with (
        ScriptedServer() as server,
        ConnectionPool(server.endpoint, connector=connector, **settings) as pool,
    ):
        until(lambda: pool.stats().idle == 3, "the warm-up")
        server.until_accepts(3)
        in_order(server)
        server.until_accepts(6)
        until(lambda: pool.stats().idle == 3 == server.open, "the refill")
        assert server.accepts == connector.n_dials() == 6
        # None of them is dead. Who comes while they are being validated may dial one more.
        together(*[lambda: [turn(pool) for _ in range(33)] and None] * 3)
        check_books(pool)


def test_after_an_outage_the_reaper_finds_the_server_again_and_warms_up() -> None:
    settings = {
        "max_size": 8,
        "min_idle": 3,
        "keepalive_interval": 0.1,
        "reap_interval": 0.05,
        "blacklist_initial": 0.05,
        "blacklist_max": 0.2,
    }
    connector = WatchedConnector()
    with (
        ScriptedServer() as server,
        ConnectionPool(server.endpoint, connector=connector, **settings) as pool,
    ):
        until(lambda: pool.stats().idle == 3, "the warm-up")
        server.stop()
        until(lambda: pool.stats().size == 0, "the end of all")
        connector.until_dials(3 + 3)  # it goes on trying
        server.start()
        until(lambda: pool.stats().idle == 3 and server.open == 3, "the refill")
        turn(pool, timeout=0)  # nobody waits for a dial
        check_books(pool)
