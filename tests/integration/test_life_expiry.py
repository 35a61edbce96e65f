"""How connections grow old: by age, by idleness, by use."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest

from connpool import CloseReason, Connection, ConnectionPool
from connpool.testing import FakeClock, ScriptedServer
from tests.helpers.switchboard import Switchboard, check_books, until


def port_of(conn: Connection) -> int:
    return int(conn.socket.getsockname()[1])


def turn(pool: ConnectionPool) -> object:
    """One loan; returns what was lent."""
    with pool.try_connect() as conn:
        return conn.raw


def pause(seconds: float) -> None:
    """Let real time pass: it is the thing tested here."""
    threading.Event().wait(seconds)


# -- age ---------------------------------------------------------------------------------


def test_a_connection_in_steady_use_is_replaced_when_its_lifetime_is_over(clock: FakeClock) -> None:
    board = Switchboard()
    settings = {"max_lifetime": 10, "lifetime_jitter": 0}
    with ConnectionPool("a:1", connector=board, clock=clock, **settings) as pool:
        lines = []
        for _ in range(8):
            lines.append(turn(pool))
            clock.advance(3)
        assert [board.lines.index(line) for line in lines] == [0, 0, 0, 0, 1, 1, 1, 1]
        assert pool.stats().closed == {CloseReason.EXPIRED: 1}


def test_a_connection_that_need_not_be_looked_at_is_replaced_as_well(clock: FakeClock) -> None:
    settings = {"max_lifetime": 3, "lifetime_jitter": 0, "look_after_idle": 1_000}
    with ConnectionPool("a:1", connector=Switchboard(), clock=clock, **settings) as pool:
        line = turn(pool)
        clock.advance(2.9)
        assert turn(pool) is line
        clock.advance(0.1)
        assert turn(pool) is not line
        assert pool.stats().closed == {CloseReason.EXPIRED: 1}


def test_real_age_counts_too() -> None:
    with (
        ScriptedServer() as server,
        ConnectionPool(server.endpoint, max_lifetime=0.4, lifetime_jitter=0) as pool,
    ):
        began = time.monotonic()
        with pool.try_connect() as conn:
            port = port_of(conn)
        while time.monotonic() < began + 0.4:
            with pool.try_connect() as conn:
                seen = port_of(conn)
                assert seen == port or time.monotonic() >= began + 0.4
            pause(0.1)
        with pool.try_connect() as conn:
            assert port_of(conn) != port
        server.until_accepts(1).until_eof()


def test_a_connection_is_never_cut_while_in_use_and_closed_when_it_comes_back(clock: FakeClock) -> None:
    with ScriptedServer() as server, ConnectionPool(server.endpoint, clock=clock, max_lifetime=10) as pool:
        with pool.try_connect() as conn:
            clock.advance(1_000)
            pool.sweep()
            conn.sendall(b"x")
            assert conn.recv_exactly(1) == b"x"
        server.until_accepts(1).until_eof()
        assert pool.stats().closed == {CloseReason.EXPIRED: 1}


def test_lifetimes_end_between_ninety_and_a_hundred_per_cent_by_chance(clock: FakeClock) -> None:
    with ConnectionPool("a:1", connector=Switchboard(), clock=clock, max_lifetime=100, max_size=40) as pool:
        loans = [pool.try_connect() for _ in range(40)]
        ends = [
            info.expires_at - info.opened_at for info in pool.connections() if info.expires_at is not None
        ]
        for loan in loans:
            loan.release()
    assert len(ends) == 40
    assert all(90 <= end <= 100 for end in ends), ends
    assert max(ends) - min(ends) > 1, "all at once is what the jitter is to prevent"


def test_without_a_limit_nothing_grows_old(clock: FakeClock) -> None:
    settings = {"max_lifetime": None, "idle_timeout": None, "max_uses": None}
    with ConnectionPool("a:1", connector=Switchboard(), clock=clock, **settings) as pool:
        first = turn(pool)
        assert [info.expires_at for info in pool.connections()] == [None]
        for _ in range(5):
            clock.advance(1e9)
            assert pool.sweep() == 0
            assert turn(pool) is first


# -- idleness ----------------------------------------------------------------------------


def test_idle_no_longer_than_allowed_is_lent_again_and_longer_is_not(clock: FakeClock) -> None:
    board = Switchboard()
    with ConnectionPool("a:1", connector=board, clock=clock, idle_timeout=0.3) as pool:
        first = turn(pool)
        clock.advance(0.2)
        assert turn(pool) is first
        clock.advance(0.2)
        assert turn(pool) is first, "each use begins the count anew"
        clock.advance(0.4)
        assert turn(pool) is not first
        assert not board.lines[0].is_open
        assert pool.stats().closed == {CloseReason.IDLE: 1}


def test_real_idleness_counts_too() -> None:
    with ScriptedServer() as server, ConnectionPool(server.endpoint, idle_timeout=0.3) as pool:
        with pool.try_connect() as conn:
            port = port_of(conn)
        with pool.try_connect() as conn:
            assert port_of(conn) == port
        pause(0.35)
        with pool.try_connect() as conn:
            assert port_of(conn) != port


def test_a_sweep_closes_what_has_been_idle_too_long_and_says_how_many(clock: FakeClock) -> None:
    with ScriptedServer() as server, ConnectionPool(server.endpoint, clock=clock, idle_timeout=5) as pool:
        loans = [pool.try_connect() for _ in range(3)]
        for loan in loans[:2]:
            loan.release()
        assert pool.sweep() == 0
        clock.advance(6)
        assert pool.sweep() == 2
        server.until_accepts(3)
        server.until_open(1)
        assert pool.stats().size == 1
        loans[2].release()
        assert pool.sweep() == 0
        check_books(pool)


def test_a_steady_trickle_lets_the_pool_shrink_to_what_it_needs(clock: FakeClock) -> None:
    """The most recently released is lent first, so that the others can grow old."""
    board = Switchboard()
    with ConnectionPool("a:1", connector=board, clock=clock, idle_timeout=5) as pool:
        loans = [pool.try_connect() for _ in range(8)]
        for loan in loans:
            loan.release()
        for _ in range(10):
            turn(pool)
            clock.advance(1)
            pool.sweep()
        assert board.n_open == pool.stats().size == 1


def test_a_sweep_wakes_a_waiter_for_whom_it_made_room(clock: FakeClock) -> None:
    """What has expired lies idle, but cannot be lent to the one who waits for another."""
    with ConnectionPool(
        "a:1", connector=Switchboard(), clock=clock, max_per_endpoint=1, idle_timeout=5
    ) as pool:
        turn(pool)
        clock.advance(6)
        pool.sweep()
        until(lambda: pool.stats().size == 0)
        turn(pool)
        assert pool.stats().opened == 2


# -- uses --------------------------------------------------------------------------------


@pytest.mark.parametrize("max_uses", [1, 3])
def test_a_connection_is_lent_exactly_as_often_as_allowed(max_uses: int) -> None:
    with ScriptedServer() as server, ConnectionPool(server.endpoint, max_uses=max_uses) as pool:
        ports, uses = [], []
        for _ in range(3 * max_uses):
            with pool.try_connect() as conn:
                ports.append(port_of(conn))
                uses.append(conn.uses)
        assert [ports.count(port) for port in dict.fromkeys(ports)] == [max_uses] * 3
        assert uses == list(range(max_uses)) * 3
        server.until_accepts(3)
        server.until_open(0)
        assert pool.stats().closed == {CloseReason.USED_UP: 3}


def test_a_used_up_connection_makes_room_for_a_waiter(clock: FakeClock) -> None:
    board = Switchboard()
    with ConnectionPool("a:1", connector=board, clock=clock, max_size=1, max_uses=1) as pool:
        loan = pool.try_connect()
        seen = []
        waiter = threading.Thread(target=lambda: seen.append(turn(pool)))
        waiter.start()
        clock.until_waiting(1)
        loan.release()
        waiter.join(10)
        assert seen == [board.lines[1]]


def test_limits_given_at_run_time_hold_for_what_is_open_already(clock: FakeClock) -> None:
    board = Switchboard()
    with ConnectionPool("a:1", connector=board, clock=clock) as pool:
        first = turn(pool)
        clock.advance(50)
        pool.configure(idle_timeout=10)
        assert turn(pool) is not first
        pool.configure(max_uses=1)
        assert turn(pool) is not board.lines[1]
        pool.configure(max_uses=None, max_lifetime=5, lifetime_jitter=0, idle_timeout=None)
        third = turn(pool)
        clock.advance(6)
        assert turn(pool) is not third


@pytest.mark.parametrize("lend", [ConnectionPool.try_connect, ConnectionPool.share])
def test_a_lower_limit_of_uses_closes_what_is_lent_as_soon_as_it_comes_back(
    lend: Callable[[ConnectionPool], Connection], clock: FakeClock
) -> None:
    board = Switchboard()
    with ConnectionPool("a:1", connector=board, clock=clock, sharable=True) as pool:
        turn(pool)
        loan = lend(pool)
        pool.configure(max_uses=2)
        loan.release()
        assert pool.stats().closed == {CloseReason.USED_UP: 1}
        assert board.n_open == 0


def test_upkeep_comes_in_time_for_what_was_lent_the_last_time_it_came(clock: FakeClock) -> None:
    with ConnectionPool("a:1", connector=Switchboard(), clock=clock, max_lifetime=60) as pool:
        with pool.try_connect():
            clock.advance(30)
            pool.sweep()
        (info,) = pool.connections()
        assert pool._lender.books.alarm_at == info.expires_at
