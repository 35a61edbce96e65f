"""Idleness, what is kept ready in spite of it, and a fleet that does not expire at once."""

from __future__ import annotations

import time
from collections import Counter
from typing import Any

import pytest

from connpool import CloseReason, ConnectionPool
from connpool.clock import SystemClock
from connpool.pool import reserve
from connpool.testing import FakeClock, ScriptedServer
from tests.helpers.switchboard import Switchboard, check_books, until
from tests.helpers.upkeep import OFTEN, fill, let_pass, reapers, settle, sweep_until, turn
from tests.helpers.wire import taking
from tests.stress.works import Works

# -- L5: nobody asks, and they go nevertheless -------------------------------------------------


def test_a_turn_closes_what_has_been_idle_too_long_though_nobody_asks(clock: FakeClock) -> None:
    with ScriptedServer() as server, ConnectionPool(server.endpoint, clock=clock, idle_timeout=0.3) as pool:
        fill(pool, 3)
        clock.advance(0.29)
        assert pool.sweep() == 0
        server.until_open(3)
        clock.advance(0.02)
        assert pool.sweep() == 3
        server.until_accepts(1).until_eof()
        server.until_open(0)
        until(lambda: pool.stats().size == 0)
        assert pool.stats().closed == {CloseReason.IDLE: 3}


class Ahead(SystemClock):
    """The system's clock, but that it may leap."""

    seconds = 0.0

    def now(self) -> float:
        return super().now() + self.seconds


@pytest.mark.parametrize(
    "limit",
    [
        {"idle_timeout": 900},
        {"max_lifetime": 900, "lifetime_jitter": 0, "idle_timeout": None},
    ],
)
def test_what_has_had_its_time_is_counted_as_idle_no_more_though_no_turn_has_come(
    limit: dict[str, Any],
) -> None:
    clock = Ahead()
    with ConnectionPool("a:1 && b:1", connector=Works(), clock=clock, reap_interval=600, **limit) as pool:
        pool.try_connect("a:1").release()
        clock.seconds += 800
        pool.try_connect("b:1").release()
        assert states_of(pool) == {"a:1": "IDLE", "b:1": "IDLE"}
        clock.seconds += 100
        assert states_of(pool) == {"a:1": "CLOSING", "b:1": "IDLE"}
        assert pool.sweep() == 1
        until(lambda: states_of(pool) == {"b:1": "IDLE"})


def test_what_is_kept_ready_is_idle_however_long() -> None:
    settings: dict[str, Any] = {"max_size": 3, "idle_timeout": 900, "min_idle": 2, "reap_interval": 600}
    clock = Ahead()
    with ConnectionPool("a:1", connector=Works(), clock=clock, **settings) as pool:
        fill(pool, 3)
        clock.seconds += 900
        assert Counter(info.state.name for info in pool.connections())["IDLE"] == pool.stats().idle == 2
        pool.sweep()
        until(lambda: pool.stats().size == 2)
        assert pool.stats().idle == 2


def test_without_a_thread_it_is_idle_until_somebody_sweeps(clock: FakeClock) -> None:
    with ConnectionPool("a:1", connector=Works(), clock=clock, idle_timeout=10) as pool:
        fill(pool, 1)
        clock.advance(10)
        assert states_of(pool) == {"a:1": "IDLE"}
        assert pool.sweep() == 1
        until(lambda: states_of(pool) == {})


def states_of(pool: ConnectionPool) -> dict[str, str]:
    """The state of the one connection of each endpoint, of which all that counts must know."""
    states = {str(info.endpoint): info.state.name for info in pool.connections()}
    stats, infos = pool.stats(), {str(info.endpoint): info for info in pool.endpoints() if info.size}
    assert (stats.size, stats.in_use) == (len(states), 0)
    assert stats.idle == sum(info.idle for info in infos.values()) == list(states.values()).count("IDLE")
    assert (
        stats.closing
        == sum(info.closing for info in infos.values())
        == list(states.values()).count("CLOSING")
    )
    assert {endpoint: "IDLE" if info.idle else "CLOSING" for endpoint, info in infos.items()} == states
    assert not any(info.in_use for info in infos.values())
    return states


def test_the_thread_closes_what_has_been_idle_too_long_though_nobody_asks() -> None:
    with (
        ScriptedServer() as server,
        ConnectionPool(server.endpoint, idle_timeout=0.3, reap_interval=0.05) as pool,
    ):
        fill(pool, 2)
        released = time.monotonic()
        server.until_accepts(2).until_eof()
        assert 0.25 < time.monotonic() - released < 3
        server.until_open(0)
        until(lambda: pool.stats().size == 0)
        assert pool.stats().closed == {CloseReason.IDLE: 2}
        until(lambda: not reapers(), "the end of a thread that has nothing left to do")


def test_the_thread_closes_what_is_too_old_though_nobody_asks() -> None:
    settings: dict[str, Any] = {"max_lifetime": 0.3, "lifetime_jitter": 0, "reap_interval": 0.05}
    with ScriptedServer() as server, ConnectionPool(server.endpoint, **settings) as pool:
        turn(pool)
        server.until_accepts(1).until_eof()
        until(lambda: pool.stats().closed == {CloseReason.EXPIRED: 1})


@pytest.mark.parametrize("limit", ["idle_timeout", "max_lifetime"])
def test_what_is_over_sooner_than_the_thread_comes_as_a_rule_is_closed_in_time(limit: str) -> None:
    with (
        ScriptedServer() as server,
        ConnectionPool(server.endpoint, reap_interval=30, **{limit: 0.3}) as pool,
    ):
        turn(pool)
        with taking(0.2, 5.0):
            server.until_accepts(1).until_eof()


def test_a_shorter_idle_timeout_given_at_run_time_wakes_the_thread() -> None:
    with ScriptedServer() as server, ConnectionPool(server.endpoint, reap_interval=OFTEN) as pool:
        turn(pool)
        pool.configure(idle_timeout=0.1)
        server.until_accepts(1).until_eof()


def test_what_is_lent_is_not_reaped_however_old(clock: FakeClock) -> None:
    with ScriptedServer() as server, ConnectionPool(server.endpoint, clock=clock, min_idle=0) as pool:
        loan = pool.try_connect()
        clock.advance(1e6)
        assert pool.sweep() == 0
        loan.sendall(b"x", timeout=5)
        assert loan.recv_exactly(1, timeout=5) == b"x"
        loan.release()
        server.until_accepts(1).until_eof()


# -- L6: kept ready ------------------------------------------------------------------------------


def test_what_is_to_be_ready_is_dialled_at_once_though_nobody_asks() -> None:
    began = time.monotonic()
    with ScriptedServer() as server, ConnectionPool(server.endpoint, min_idle=2, reap_interval=30) as pool:
        server.until_accepts(2)
        until(lambda: pool.stats().idle == 2)
        assert time.monotonic() - began < 10, "the warm-up does not wait for the first interval"
        assert pool.stats().checkouts == 0
        assert server.accepts == 2


def test_upkeep_is_told_at_once_of_what_was_taken_from_those_kept_ready_by_name(
    clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    board, told = Switchboard(), []
    monkeypatch.setattr(reserve, "wink", told.append)
    with ConnectionPool("a:1", connector=board, clock=clock, min_idle=2) as pool:
        settle(pool)
        with pool.try_connect("a:1"), pool.try_connect("a:1"):
            assert told == [pool]
            settle(pool)
            assert pool.stats().idle == 2


def test_a_burst_finds_what_was_kept_ready_open(clock: FakeClock) -> None:
    board = Switchboard()
    with ConnectionPool("a:1", connector=board, clock=clock, min_idle=3) as pool:
        sweep_until(pool, lambda: pool.stats().idle == 3)
        board.hold("a:1")
        loans = [pool.try_connect(timeout=0) for _ in range(3)]
        assert {loan.uses for loan in loans} == {0}
        assert {loan.raw for loan in loans} == set(board.lines)
        board.let_go("a:1")
        for loan in loans:
            loan.release()


def test_what_is_lent_is_made_good_up_to_the_maximum(clock: FakeClock) -> None:
    board = Switchboard()
    with ConnectionPool("a:1", connector=board, clock=clock, min_idle=2, max_size=5) as pool:
        loans = []
        for lent, idle in ((0, 2), (2, 2), (4, 1), (5, 0)):
            loans += [pool.try_connect(timeout=5) for _ in range(lent - len(loans))]
            settle(pool)
            assert (pool.stats().idle, pool.stats().in_use) == (idle, lent)
            check_books(pool)
        for loan in loans:
            loan.release()
        settle(pool)
        assert (len(board.dialled), pool.stats().idle) == (5, 5)


@pytest.mark.parametrize("is_lifted_by_hand", [True, False])
def test_what_was_to_be_ready_while_nothing_could_be_dialled_is_opened_when_it_can(
    is_lifted_by_hand: bool,
) -> None:
    settings: dict[str, Any] = {"min_idle": 2, "reap_interval": OFTEN, "reconnect": False}
    with ConnectionPool("a:1", connector=Switchboard(), **settings) as pool:
        until(lambda: pool.stats().idle == 2)
        pool.blacklist("a:1", None if is_lifted_by_hand else 0.2)
        pool.clear()
        let_pass(5 * OFTEN)
        assert pool.stats().size == 0
        if is_lifted_by_hand:
            pool.unblacklist("a:1")
        until(lambda: pool.stats().idle == 2, "what is to be ready")


def test_what_is_to_be_ready_is_opened_as_soon_as_its_endpoint_has_a_place_again() -> None:
    settings: dict[str, Any] = {"min_idle": 1, "max_per_endpoint": 2, "reap_interval": OFTEN}
    with ConnectionPool("a:1", connector=Switchboard(), **settings) as pool:
        loans = [pool.try_connect(), pool.try_connect()]
        let_pass(5 * OFTEN)  # upkeep has come, and found no place
        assert pool.stats().size == 2
        loans.pop().terminate()
        until(lambda: pool.stats().idle == 1, "what is to be ready")
        loans.pop().release()


def idle_at(pool: ConnectionPool) -> list[int]:
    """How many lie idle at each endpoint."""
    return [info.idle for info in pool.endpoints()]


def after_failover(pool: ConnectionPool) -> None:
    """The first endpoint goes and comes back: as many lie idle at the one that filled in."""
    settle(pool)
    pool.blacklist("a:1")
    settle(pool)
    pool.unblacklist("a:1")
    ready = pool.stats().min_idle
    assert idle_at(pool) == [ready, ready]


def test_what_is_to_be_ready_is_so_where_checkouts_go(clock: FakeClock) -> None:
    settings: dict[str, Any] = {"min_idle": 2, "idle_timeout": 60, "max_lifetime": 500, "lifetime_jitter": 0}
    with ConnectionPool("a:1 || b:1", connector=Switchboard(), clock=clock, **settings) as pool:
        settle(pool)
        assert idle_at(pool) == [2, 0]
        pool.blacklist("a:1")
        settle(pool)
        assert idle_at(pool) == [2, 2], "those at an endpoint that is out serve no burst"
        pool.unblacklist("a:1")
        clock.advance(61)
        settle(pool)
        assert idle_at(pool) == [2, 0], "and those at the one that filled in are not kept for ever"
        assert pool.stats().closed == {CloseReason.IDLE: 2}, "at the cost of nobody"
        pool.blacklist("a:1")
        settle(pool)
        pool.unblacklist("a:1")
        clock.advance(440)
        settle(pool)
        assert idle_at(pool) == [2, 0], "nor replaced when they expire"


def test_what_expires_where_no_checkout_goes_is_not_replaced_though_too_few_are_ready(
    clock: FakeClock,
) -> None:
    board = Switchboard()
    settings: dict[str, Any] = {"min_idle": 2, "max_lifetime": 500, "lifetime_jitter": 0}
    with ConnectionPool("a:1 || b:1", connector=board, clock=clock, **settings) as pool:
        after_failover(pool)
        loans = [pool.try_connect(), pool.try_connect()]
        clock.advance(501)
        settle(pool)
        assert idle_at(pool) == [2, 0]
        assert Counter(board.dialled) == {"a:1": 4, "b:1": 2}
        for loan in loans:
            loan.release()


def test_a_burst_is_made_good_where_checkouts_go_though_enough_lie_idle_elsewhere() -> None:
    settings: dict[str, Any] = {"min_idle": 2, "reap_interval": OFTEN}
    with ConnectionPool("a:1 || b:1", connector=Switchboard(), **settings) as pool:
        until(lambda: idle_at(pool) == [2, 0])
        pool.blacklist("a:1")
        until(lambda: idle_at(pool) == [2, 2])
        pool.unblacklist("a:1")
        let_pass(5 * OFTEN)
        began = time.monotonic()
        loans = [pool.try_connect(), pool.try_connect()]
        until(lambda: idle_at(pool) == [2, 2], "what is to be ready")
        assert time.monotonic() - began < 3, "it is told, and does not come by chance"
        for loan in loans:
            loan.release()


def test_the_probe_of_an_endpoint_that_is_out_makes_nothing_ready(clock: FakeClock) -> None:
    board = Switchboard("a:1")
    settings: dict[str, Any] = {"min_idle": 2, "connect_timeout": 100, "blacklist_max": 1}
    with ConnectionPool("a:1 || b:1", connector=board, clock=clock, **settings) as pool:
        settle(pool)
        assert idle_at(pool) == [0, 2]
        board.hold("a:1")
        clock.advance(2)
        pool.sweep()
        board.until_dialling("a:1")
        with pool.try_connect(), pool.try_connect():
            sweep_until(pool, lambda: idle_at(pool) == [0, 2], "what is to be ready")
        board.let_go("a:1")


def test_a_pause_lets_those_go_that_no_checkout_will_come_to(clock: FakeClock) -> None:
    board = Switchboard()
    settings: dict[str, Any] = {"min_idle": 2, "idle_timeout": 60, "max_lifetime": None}
    with ConnectionPool("a:1 || b:1", connector=board, clock=clock, **settings) as pool:
        after_failover(pool)
        pool.pause()
        for _ in range(2):
            clock.advance(61)
            settle(pool)
            assert idle_at(pool) == [2, 0]
        pool.resume()
        with pool.try_connect(timeout=0) as conn:
            assert conn.raw in board.lines[:2]


def test_while_every_endpoint_is_out_as_many_as_are_to_be_ready_are_kept(clock: FakeClock) -> None:
    settings: dict[str, Any] = {"min_idle": 2, "idle_timeout": 60, "max_lifetime": None}
    with ConnectionPool("a:1", connector=Switchboard(), clock=clock, **settings) as pool:
        settle(pool)
        pool.blacklist("a:1")
        clock.advance(61)
        settle(pool)
        assert idle_at(pool) == [2]


def test_one_killed_by_the_server_is_replaced_though_nobody_asks() -> None:
    settings: dict[str, Any] = {"min_idle": 2, "keepalive_interval": 0.05, "reap_interval": OFTEN}
    with ScriptedServer() as server, ConnectionPool(server.endpoint, **settings) as pool:
        until(lambda: pool.stats().idle == 2)
        server.until_accepts(2)
        server.until_accepts(1).reset()
        server.until_accepts(3)
        server.until_accepts(2).close()
        server.until_accepts(4)
        until(lambda: pool.stats().idle == 2)
        server.until_open(2)
        assert pool.stats().closed == {CloseReason.BROKEN: 2}


def test_one_found_dead_by_a_checkout_is_replaced(clock: FakeClock) -> None:
    with ScriptedServer() as server, ConnectionPool(server.endpoint, clock=clock, min_idle=2) as pool:
        sweep_until(pool, lambda: pool.stats().idle == 2)
        server.until_accepts(2)
        server.kill()
        clock.advance(1)
        turn(pool)
        sweep_until(pool, lambda: pool.stats().idle == 2 and server.open == 2, "two new ones")
        settle(pool)
        assert server.open == 2


def test_idleness_takes_none_of_those_kept_ready(clock: FakeClock) -> None:
    board = Switchboard()
    settings: dict[str, Any] = {"idle_timeout": 5, "min_idle": 2, "max_lifetime": None}
    with ConnectionPool("a:1", connector=board, clock=clock, **settings) as pool:
        fill(pool, 6)
        settle(pool)
        clock.advance(6)
        settle(pool)
        assert (pool.stats().idle, len(board.dialled)) == (2, 6)
        for _ in range(5):
            clock.advance(1_000)
            settle(pool)
        assert (board.n_open, len(board.dialled)) == (2, 6), "kept, not closed and dialled again"
        assert pool.stats().closed == {CloseReason.IDLE: 4}


def test_one_kept_ready_is_lent_however_long_it_was_idle(clock: FakeClock) -> None:
    board = Switchboard()
    with ConnectionPool("a:1", connector=board, clock=clock, idle_timeout=5, min_idle=1) as pool:
        fill(pool, 1)
        settle(pool)
        clock.advance(1_000)
        lent = turn(pool)
        assert lent is board.lines[0]
        assert board.looked_at == [lent], "but it is looked at first"
        assert pool.stats().closed == {}


def test_a_checkout_finds_too_long_idle_what_is_more_than_is_to_be_ready(clock: FakeClock) -> None:
    board = Switchboard()
    with ConnectionPool("a:1", connector=board, clock=clock, idle_timeout=5, min_idle=1) as pool:
        fill(pool, 2)
        clock.advance(6)
        turn(pool)
        assert (pool.stats().closed, len(board.dialled)) == ({CloseReason.IDLE: 1}, 2)


def test_what_lies_idle_elsewhere_is_not_ready_and_makes_nothing_too_long_idle(clock: FakeClock) -> None:
    board = Switchboard()
    with ConnectionPool("a:1 || b:1", connector=board, clock=clock, idle_timeout=60, min_idle=1) as pool:
        after_failover(pool)
        clock.advance(61)
        with pool.try_connect() as kept_ready, pool.try_connect("b:1") as pinned:
            assert kept_ready.raw is board.lines[0]
            assert pinned.raw is not board.lines[1]
        assert pool.stats().closed == {CloseReason.IDLE: 1}


def test_one_kept_ready_and_found_dead_after_long_idleness_is_not_lent(clock: FakeClock) -> None:
    board = Switchboard()
    with ConnectionPool("a:1", connector=board, clock=clock, idle_timeout=5, min_idle=1) as pool:
        fill(pool, 1)
        settle(pool)
        clock.advance(1_000)
        board.lines[0].is_alive = False
        assert turn(pool) is not board.lines[0]
        assert pool.stats().closed == {CloseReason.BROKEN: 1}


def test_age_takes_those_kept_ready_too(clock: FakeClock) -> None:
    board = Switchboard()
    settings: dict[str, Any] = {"max_lifetime": 10, "lifetime_jitter": 0, "idle_timeout": None}
    with ConnectionPool("a:1", connector=board, clock=clock, min_idle=2, **settings) as pool:
        settle(pool)
        clock.advance(11)
        sweep_until(pool, lambda: pool.stats().closed == {CloseReason.EXPIRED: 2})
        settle(pool)
        assert pool.stats().idle == 2
        assert [line.is_open for line in board.lines] == [False, False, True, True]


def test_more_are_dialled_when_more_are_to_be_ready(clock: FakeClock) -> None:
    board = Switchboard()
    with ConnectionPool("a:1", connector=board, clock=clock) as pool:
        settle(pool)
        assert board.dialled == []
        pool.resize(min_idle=4)
        settle(pool)
        assert pool.stats().idle == 4
        pool.resize(min_idle=1)
        clock.advance(601)
        settle(pool)
        assert pool.stats().idle == 1


def test_a_larger_reserve_given_at_run_time_wakes_the_thread() -> None:
    with ScriptedServer() as server, ConnectionPool(server.endpoint, reap_interval=OFTEN) as pool:
        pool.resize(min_idle=2)
        server.until_accepts(2)
        pool.configure(min_idle=3)
        server.until_accepts(3)


def test_warming_up_dials_no_more_at_a_time_than_allowed(clock: FakeClock) -> None:
    board = Switchboard()
    board.hold("a:1")
    with ConnectionPool("a:1", connector=board, clock=clock, min_idle=8, max_connecting=2) as pool:
        for _ in range(5):
            pool.sweep()
        board.until_dialling("a:1", 2)
        board.let_go("a:1")
        sweep_until(pool, lambda: pool.stats().idle == 8)
        assert (board.peak["a:1"], len(board.dialled)) == (2, 8)


@pytest.mark.parametrize("route", ["a:1, b:1", "a:1 && b:1"])
def test_warming_up_goes_round_the_endpoints_of_the_active_group(route: str, clock: FakeClock) -> None:
    board = Switchboard()
    with ConnectionPool(f"{route} || c:1", connector=board, clock=clock, min_idle=4) as pool:
        sweep_until(pool, lambda: pool.stats().idle == 4)
        assert Counter(board.dialled) == {"a:1": 2, "b:1": 2}


def test_warming_up_passes_an_endpoint_over_that_is_down(clock: FakeClock) -> None:
    board = Switchboard("a:1")
    settings: dict[str, Any] = {"min_idle": 3, "blacklist_initial": 50, "max_connecting": 1}
    with ConnectionPool("a:1 && b:1", connector=board, clock=clock, **settings) as pool:
        sweep_until(pool, lambda: pool.stats().idle == 3)
        settle(pool)
        assert Counter(board.dialled) == {"a:1": 1, "b:1": 3}


def test_the_group_in_use_is_kept_ready_though_nobody_probes_the_one_before(clock: FakeClock) -> None:
    board = Switchboard("a:1")
    with ConnectionPool("a:1 || b:1", connector=board, clock=clock, min_idle=2, reconnect=False) as pool:
        sweep_until(pool, lambda: pool.stats().idle == 2)
        clock.advance(100)
        pool.clear()
        sweep_until(pool, lambda: pool.stats().idle == 2)
        assert Counter(board.dialled)["b:1"] == 4


def test_a_paused_pool_dials_nothing_to_keep_ready(clock: FakeClock) -> None:
    board = Switchboard()
    with ConnectionPool("a:1", connector=board, clock=clock, min_idle=2, paused=True) as pool:
        settle(pool)
        assert board.dialled == []
        pool.resume()
        sweep_until(pool, lambda: pool.stats().idle == 2)


# -- a fleet ---------------------------------------------------------------------------------------


def expiries(clock: FakeClock, **settings: Any) -> list[int]:
    """How many of 30 connections opened together expire in each of a hundred seconds."""
    board = Switchboard()
    settings = {"max_lifetime": 100, "idle_timeout": None, "max_size": 30, **settings}
    with ConnectionPool("a:1", connector=board, clock=clock, **settings) as pool:
        fill(pool, 30)
        found = []
        for _ in range(101):
            clock.advance(1)
            before = board.n_open
            settle(pool, 1)
            found.append(before - board.n_open)
    assert sum(found) == 30
    return found


def test_a_fleet_opened_together_does_not_expire_together(clock: FakeClock) -> None:
    found = expiries(clock)
    assert sum(found[:89]) == 0
    assert max(found) <= 15, found
    assert sum(map(bool, found)) >= 5, found


def test_without_jitter_it_does(clock: FakeClock) -> None:
    assert max(expiries(clock, lifetime_jitter=0)) == 30


def test_replacements_are_spread_as_well(clock: FakeClock) -> None:
    board = Switchboard()
    settings: dict[str, Any] = {"max_lifetime": 100, "idle_timeout": None, "max_size": 30, "revive": "force"}
    with ConnectionPool("a:1", connector=board, clock=clock, max_connecting=30, **settings) as pool:
        fill(pool, 30)
        pool.clear()
        sweep_until(pool, lambda: pool.stats().idle == 30)
        ends = [info.expires_at for info in pool.connections() if info.expires_at is not None]
        assert len(ends) == 30
        assert max(ends) - min(ends) > 1


@pytest.mark.parametrize(
    ("idle_timeout", "look_after_idle", "age"), [(10, None, 5), (None, 10, 10), (60, 10, 10), (None, None, 0)]
)
def test_after_a_leap_nothing_is_closed_for_its_idleness_though_nothing_is_looked_at(
    idle_timeout: float | None, look_after_idle: float | None, age: float, clock: FakeClock
) -> None:
    settings: dict[str, Any] = {"idle_timeout": idle_timeout, "look_after_idle": look_after_idle}
    with ConnectionPool("a:1", connector=Switchboard(), clock=clock, max_lifetime=None, **settings) as pool:
        fill(pool, 3)
        lent = pool.try_connect()
        clock.advance(5_000)
        lent.release()
        assert pool._chores.turn(is_leap=True) == 0
        idle_since = [info.idle_since for info in pool.connections() if info.idle_since is not None]
        assert len(idle_since) == 3
        assert min(idle_since) == clock.now() - age, "the others are to be looked at, where that is wished"
        assert max(idle_since) == clock.now(), "what has come back since then did so just now"
