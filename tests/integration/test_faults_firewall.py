"""A firewall forgets flows, a cable is cut: nothing comes, no end and no reset."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest

from connpool import CheckoutTimeoutError, CloseReason, ConnectionPool, ConnPoolError, SocketConnector
from connpool.testing import FakeClock, FaultProxy, ScriptedServer, Way
from tests.helpers.faults import PingingConnector, fill, turn, turns_until_served, use
from tests.helpers.switchboard import Switchboard, check_books, until
from tests.helpers.together import together
from tests.helpers.wire import taking


def test_keepalive_validation_finds_what_a_look_cannot_see(clock: FakeClock) -> None:
    connector = PingingConnector()
    with (
        ScriptedServer() as server,
        FaultProxy(server.endpoint) as proxy,
        ConnectionPool(
            proxy.endpoint, connector=connector, clock=clock, max_size=4, keepalive_interval=5
        ) as pool,
    ):
        fill(pool, 4)
        proxy.forget()
        loan = pool.try_connect()
        assert SocketConnector().is_usable(loan.raw)  # a look sees nothing wrong
        loan.release()
        clock.advance(5.1)
        pool.sweep()
        until(lambda: pool.stats().size == 0, "removal of the half-open")
        proxy.until_open(0)
        with taking(0, 5):
            turn(pool)
        assert proxy.accepts == 5
        check_books(pool)


def test_many_idle_ones_are_all_validated_within_the_interval() -> None:
    connector = PingingConnector()
    settings = {"max_size": 40, "keepalive_interval": 1, "reap_interval": 0.5, "look_after_idle": 60}
    with (
        ScriptedServer() as server,
        FaultProxy(server.endpoint) as proxy,
        ConnectionPool(proxy.endpoint, connector=connector, **settings) as pool,
    ):
        fill(pool, 40)
        began = time.monotonic()
        until(lambda: connector.pings >= 40, "validation of all")
        assert time.monotonic() - began < 3
        assert pool.stats().size == 40
        assert server.accepts == 40


def test_the_reaper_replaces_the_half_open_before_anybody_asks() -> None:
    connector = PingingConnector()
    settings = {"max_size": 6, "min_idle": 4, "keepalive_interval": 0.2, "reap_interval": 0.05}
    with (
        ScriptedServer() as server,
        FaultProxy(server.endpoint) as proxy,
        ConnectionPool(proxy.endpoint, connector=connector, **settings) as pool,
    ):
        until(lambda: pool.stats().idle == 4, "the warm-up")
        server.until_accepts(4)
        proxy.forget()
        server.until_accepts(8)
        until(lambda: proxy.open == 4 and pool.stats().idle == 4, "the refill")
        together(*[lambda: [turn(pool) for _ in range(25)] and None] * 4)
        check_books(pool)


def test_a_validation_that_waits_holds_up_no_checkout_and_no_sweep_of_another_pool(clock: FakeClock) -> None:
    connector = PingingConnector(patience=3)
    with (
        ScriptedServer() as server,
        FaultProxy(server.endpoint) as proxy,
        ConnectionPool(
            proxy.endpoint, connector=connector, clock=clock, max_size=8, keepalive_interval=5
        ) as pool,
        ConnectionPool(server.endpoint, clock=clock, idle_timeout=5) as other,
    ):
        fill(pool, 1)
        fill(other, 1)
        proxy.forget()
        clock.advance(5.1)

        def go_on() -> None:
            until(lambda: connector.pings == 1, "the validation")
            with taking(0, 2):
                turn(pool)
                turn(pool)
                assert other.sweep() == 1

        together(lambda: pool.sweep() and None, go_on)
        until(lambda: proxy.open == 1, "removal of the half-open")
        check_books(pool)


def test_what_is_being_validated_is_lent_to_nobody() -> None:
    connector = PingingConnector(patience=5)
    settings = {"max_size": 4, "keepalive_interval": 0.01, "reap_interval": 0.01, "look_after_idle": 0.005}
    with (
        ScriptedServer() as server,
        ConnectionPool(server.endpoint, connector=connector, **settings) as pool,
    ):

        def work(who: int) -> None:
            until_at = time.monotonic() + 1.0
            for n in range(100_000):
                with pool.try_connect() as conn:
                    use(conn, b"%d says %d\n" % (who, n))
                if time.monotonic() > until_at:
                    break
                if n % 20 == who:
                    threading.Event().wait(0.02)  # idle for long enough to be due

        together(*[lambda who=who: work(who) for who in range(3)])
        assert connector.pings > 10
        assert server.accepts <= 4
        assert sum(pool.stats().closed.values()) == 0


def test_a_checkout_looks_with_the_same_round_trip_and_takes_the_next(clock: FakeClock) -> None:
    connector = PingingConnector()
    with (
        ScriptedServer() as server,
        FaultProxy(server.endpoint) as proxy,
        ConnectionPool(proxy.endpoint, connector=connector, clock=clock, max_size=4) as pool,
    ):
        fill(pool, 3)
        proxy.forget()
        clock.advance(1)
        turn(pool)
        assert proxy.accepts == 4
        until(lambda: pool.stats().size == 1, "removal of the half-open")


def test_of_many_only_a_few_are_validated_at_a_time(
    clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_end, under_way = threading.Event(), []

    def look(board: Switchboard, line: object) -> bool:
        under_way.append(line)
        return may_end.wait(10)

    monkeypatch.setattr(Switchboard, "is_usable", look)
    settings: dict[str, Any] = {"max_size": 6, "max_connecting": 2, "keepalive_interval": 1}
    with ConnectionPool("a:1", connector=Switchboard(), clock=clock, **settings) as pool:
        for loan in [pool.try_connect() for _ in range(6)]:
            loan.release()
        clock.advance(2)
        pool.sweep()
        until(lambda: len(under_way) >= 2)
        assert (len(under_way), pool.stats().idle) == (2, 4)
        may_end.set()
        until(lambda: len(under_way) == pool.stats().idle == 6)


def test_a_look_that_hangs_is_cut_off_though_nothing_else_is_due() -> None:
    connector = PingingConnector(patience=60)
    settings = {"max_size": 1, "connect_timeout": 0.2, "look_after_idle": 0, "reap_interval": 0.02}
    with (
        ScriptedServer() as server,
        FaultProxy(server.endpoint) as proxy,
        ConnectionPool(proxy.endpoint, connector=connector, **settings) as pool,
    ):
        turn(pool)
        proxy.forget()
        with taking(0, 8):
            turn(pool, timeout=20)
        assert pool.stats().closed == {CloseReason.BROKEN: 1}


def test_a_cut_cable_costs_each_checkout_its_own_timeout_and_no_more() -> None:
    settings = {
        "max_size": 4,
        "connect_timeout": 0.3,
        "blacklist_initial": 0.05,
        "blacklist_max": 0.1,
        "fail_fast": False,
    }
    with (
        ScriptedServer() as server,
        FaultProxy(server.endpoint) as proxy,
        ConnectionPool(proxy.endpoint, connector=PingingConnector(), look_after_idle=0, **settings) as pool,
    ):
        fill(pool, 4)
        proxy.drop()
        proxy.black_hole()

        def ask() -> None:
            with taking(0.3, 3), pytest.raises(CheckoutTimeoutError):
                pool.try_connect(timeout=0.5)

        together(*[ask] * 8)
        proxy.heal()
        assert turns_until_served(pool, within=2, timeout=1) < 2
        check_books(pool)


def test_an_answer_that_never_comes_breaks_the_loan_and_the_next_one_dials(clock: FakeClock) -> None:
    with (
        ScriptedServer() as server,
        FaultProxy(server.endpoint) as proxy,
        ConnectionPool(proxy.endpoint, clock=clock) as pool,
    ):
        turn(pool)
        proxy.drop(Way.DOWN)
        loan = pool.try_connect()
        with pytest.raises(TimeoutError):
            use(loan, timeout=0.2)
        loan.release()
        assert pool.stats().size == 0
        proxy.heal()
        turn(pool)
        assert proxy.accepts == 2


def test_a_dial_into_silence_ends_with_its_timeout_and_blames_the_endpoint() -> None:
    def greet(conn: object) -> None:
        conn.recv_exactly(1, timeout=0.3)  # type: ignore[attr-defined]

    with (
        ScriptedServer() as server,
        FaultProxy(server.endpoint) as proxy,
        ConnectionPool(proxy.endpoint, connector=SocketConnector(handshake=greet)) as pool,
    ):
        proxy.drop()
        with taking(0.2, 4), pytest.raises(ConnPoolError):
            pool.try_connect()
        assert pool.endpoints()[0].failures == 1
        until(lambda: pool.stats().size == 0, "the closing")
        proxy.until_open(0)
