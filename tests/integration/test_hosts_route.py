"""A route that changes while the pool runs, and clearing."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from connpool import (
    CloseReason,
    ConnectionPool,
    EndpointDown,
    EndpointState,
    NoEndpointError,
    PoolCleared,
    Route,
    RouteSyntaxError,
)
from connpool.pool.control import Control
from connpool.testing import FakeClock, ScriptedServer, Silence
from tests.helpers.interrupts import SignalStrike, at_every_bytecode
from tests.helpers.switchboard import Switchboard, check_books, down, endpoints_of, info_of, until
from tests.helpers.together import together
from tests.stress.works import A, Caller, TellingClock, Works, door


def names(pool: ConnectionPool) -> list[str]:
    return [str(info.endpoint) for info in pool.endpoints()]


def test_no_checkout_fails_while_the_route_changes_between_endpoints_that_live() -> None:
    board, is_over = Switchboard(), threading.Event()
    with ConnectionPool("a:1", connector=board, max_size=2) as pool:

        def use_it() -> None:
            while not is_over.is_set():
                pool.try_connect(timeout=10).release()

        def change_it() -> None:
            try:
                for n in range(300):
                    pool.route = ("b:1", "a:1 || b:1", "b:1, a:1", "a:1")[n % 4]
            finally:
                is_over.set()

        together(use_it, use_it, use_it, use_it, change_it)
        check_books(pool)


def test_a_member_common_to_both_routes_keeps_its_socket() -> None:
    with (
        ScriptedServer() as a,
        ScriptedServer() as b,
        ScriptedServer() as c,
        ConnectionPool(f"{a.endpoint} && {b.endpoint}") as pool,
    ):
        with pool.try_connect(a.endpoint) as conn:
            port = conn.socket.getsockname()[1]
        pool.try_connect(b.endpoint).release()
        pool.route = f"{c.endpoint} || {a.endpoint}"
        b.until_accepts(1).until_eof()
        with pool.try_connect(a.endpoint) as conn:
            assert conn.socket.getsockname()[1] == port
            conn.sendall(b"x")
            assert conn.recv_exactly(1) == b"x"
        with pool.try_connect() as conn:
            assert conn.endpoint == c.endpoint
        assert pool.stats().opened == 3
        check_books(pool)


def test_a_loan_to_an_endpoint_that_left_the_route_works_on_and_is_closed_when_it_comes_back() -> None:
    with ScriptedServer() as a, ScriptedServer() as b, ConnectionPool(a.endpoint) as pool:
        conn = pool.try_connect()
        pool.route = str(b.endpoint)
        conn.sendall(b"x")
        assert conn.recv_exactly(1) == b"x"
        assert a.open == 1
        conn.release()
        a.until_accepts(1).until_eof()
        assert pool.stats().closed == {CloseReason.STALE: 1}
        assert names(pool) == [str(b.endpoint)]


def test_a_route_is_given_back_as_it_was_set(clock: FakeClock) -> None:
    board = Switchboard()
    route = Route.parse("a:1, b:1 && c:1 || d:1")
    with ConnectionPool("x:1", connector=board, clock=clock) as pool:
        pool.route = route
        assert pool.route == route
        pool.route = "a:1&&b:1 ||c:1"
        assert pool.route == Route.parse("a:1 && b:1 || c:1")
        assert names(pool) == ["a:1", "b:1", "c:1"]
        assert [info.group for info in pool.endpoints()] == [0, 0, 1]


@pytest.mark.parametrize("text", ["|| a:1", "a:1 ||", "a:1 b:1", "(a:1 && b:1) || c:1", "a:1 && && b:1", ""])
def test_a_route_that_cannot_be_read_leaves_the_old_one_in_force(text: str, clock: FakeClock) -> None:
    with ConnectionPool("a:1", connector=Switchboard(), clock=clock) as pool:
        pool.try_connect().release()
        with pytest.raises(RouteSyntaxError):
            pool.route = text
        assert pool.route == Route.parse("a:1")
        with pool.try_connect() as conn:
            assert conn.uses == 1


def test_and_binds_tighter_than_else(clock: FakeClock) -> None:
    board = Switchboard("a:1")
    with ConnectionPool("a:1&&b:1||c:1&&d:1", connector=board, clock=clock) as pool:
        loans = [pool.try_connect() for _ in range(3)]
        assert endpoints_of(loans) == ["b:1"] * 3
        board.fail("b:1")
        loans += [pool.try_connect() for _ in range(4)]
        assert sorted(endpoints_of(loans[3:])) == ["c:1", "c:1", "d:1", "d:1"]
        for loan in loans:
            loan.release()


@pytest.mark.parametrize("route", ["a:1 && a:1", "a:1, a:1", "a:1 || a:1", "a:1 && b:1 && a:1"])
def test_an_endpoint_named_twice_is_one(route: str, clock: FakeClock) -> None:
    board = Switchboard()
    with ConnectionPool(route, connector=board, clock=clock, max_per_endpoint=1) as pool:
        assert names(pool).count("a:1") == 1
        for _ in range(6):
            pool.try_connect().terminate()
        assert board.dialled.count("a:1") == 6 // len(names(pool)), "it gets no double share"


def test_adding_and_removing_at_run_time_counts_each_endpoint_once(clock: FakeClock) -> None:
    with ConnectionPool("a:1", connector=Switchboard(), clock=clock) as pool:
        for _ in range(5):
            pool.route = "a:1 && b:1 && b:1"
            assert names(pool) == ["a:1", "b:1"]
        pool.route = None
        assert names(pool) == []
        with pytest.raises(NoEndpointError):
            pool.try_connect()
        pool.route = ["a:1", "c:1"]
        assert names(pool) == ["a:1", "c:1"]
        pool.try_connect().release()


def test_an_endpoint_that_comes_back_to_the_route_is_no_longer_blacklisted(clock: FakeClock) -> None:
    with ConnectionPool("a:1 && b:1", connector=Switchboard(), clock=clock) as pool:
        pool.blacklist("a:1")
        pool.route = "b:1"
        pool.route = "a:1 && b:1"
        assert down(pool) == []


def test_an_endpoint_that_stays_on_the_route_stays_blacklisted(clock: FakeClock) -> None:
    with ConnectionPool("a:1 && b:1", connector=Switchboard(), clock=clock) as pool:
        pool.blacklist("a:1")
        pool.route = "c:1 || a:1"
        assert down(pool) == ["a:1"]


def test_waiters_are_served_by_the_new_route_at_once(clock: FakeClock) -> None:
    with ConnectionPool("a:1", connector=Switchboard(), clock=clock, fail_fast=False) as pool:
        pool.blacklist("a:1")

        def ask() -> str:
            with pool.try_connect() as conn:
                return str(conn.endpoint)

        def change() -> str:
            clock.until_waiting(2)
            pool.route = "b:1"
            return ""

        assert together(ask, ask, change) == ["b:1", "b:1", ""]


def test_a_waiter_for_a_removed_endpoint_that_hangs_goes_on_to_the_new_route(clock: FakeClock) -> None:
    board = Switchboard()
    board.hold("a:1")
    with ConnectionPool("a:1", connector=board, clock=clock) as pool:

        def ask() -> str:
            with pool.try_connect() as conn:
                return str(conn.endpoint)

        def change() -> str:
            board.until_dialling("a:1")
            pool.route = "b:1"
            return ""

        assert together(ask, change) == ["b:1", ""]
        board.let_go("a:1")
        until(lambda: pool.stats().opening + pool.stats().closing == 0)
        assert "a:1" not in [str(info.endpoint) for info in pool.connections()]
        check_books(pool)


def test_removing_an_endpoint_twice_amid_loans_and_waiters_keeps_the_books(clock: FakeClock) -> None:
    """A waiter pinned to the removed one is served too: it need not be on the route."""
    board = Switchboard()
    with ConnectionPool("a:1 && b:1", connector=board, clock=clock, max_size=2) as pool:
        loans = [pool.try_connect("a:1"), pool.try_connect("b:1")]

        def ask(req: str | None) -> str:
            with pool.try_connect(req) as conn:
                check_books(pool)
                return str(conn.endpoint)

        def change() -> str:
            clock.until_waiting(3)
            pool.route = "b:1"
            pool.route = "b:1"
            check_books(pool)
            loans[0].release()
            check_books(pool)
            loans[1].terminate()
            return ""

        answers = together(lambda: ask("a:1"), lambda: ask("b:1"), lambda: ask(None), change)
        assert answers == ["a:1", "b:1", "b:1", ""]
        until(lambda: pool.stats().closing == 0)
        check_books(pool)
        stats = pool.stats()
        assert (stats.in_use, stats.opening, stats.waiting) == (0, 0, 0)
        assert stats.opened - sum(stats.closed.values()) == stats.idle == board.n_open


# -- clear -------------------------------------------------------------------------------


def test_clear_closes_idle_ones_now_and_lent_ones_when_they_come_back() -> None:
    with ScriptedServer() as a, ConnectionPool(a.endpoint) as pool:
        kept, given_back = pool.try_connect(), pool.try_connect()
        given_back.release()
        a.until_accepts(2)
        pool.clear()
        a.until_open(1)
        kept.sendall(b"x")
        assert kept.recv_exactly(1) == b"x"
        kept.release()
        a.until_open(0)
        with pool.try_connect() as conn:
            assert conn.uses == 0
        assert pool.stats().closed == {CloseReason.STALE: 2}


def test_clear_of_one_endpoint_leaves_the_others_alone() -> None:
    with (
        ScriptedServer() as a,
        ScriptedServer() as b,
        ConnectionPool(f"{a.endpoint} && {b.endpoint}") as pool,
    ):
        for server in (a, b):
            pool.try_connect(server.endpoint).release()
        lent = pool.try_connect(b.endpoint)
        pool.clear(a.endpoint)
        a.until_accepts(1).until_eof()
        lent.release()
        with pool.try_connect(b.endpoint) as conn:
            assert conn.uses == 2
        assert pool.stats().opened == 2


def test_clear_with_interrupt_ends_blocked_reads_at_once() -> None:
    with (
        ScriptedServer(script=Silence()) as a,
        ScriptedServer() as b,
        ConnectionPool(f"{a.endpoint} && {b.endpoint}") as pool,
    ):
        conn, other = pool.try_connect(a.endpoint), pool.try_connect(b.endpoint)

        def read() -> None:
            conn.sendall(b"x")
            with pytest.raises(ConnectionError), conn:
                conn.recv(1, timeout=20)

        def clear() -> None:
            a.until_accepts(1).until_received(b"x")
            pool.clear(a.endpoint, interrupt=True)

        together(read, clear, limit=5)
        a.until_accepts(1).until_eof()
        other.sendall(b"y")
        assert other.recv_exactly(1) == b"y"
        other.release()
        assert pool.stats().idle == 1


def test_a_dial_that_was_under_way_when_the_pool_was_cleared_is_stale(clock: FakeClock) -> None:
    board = Switchboard()
    board.hold("a:1")
    with ConnectionPool("a:1", connector=board, clock=clock) as pool:

        def ask() -> None:
            with pool.try_connect() as conn:
                assert conn.raw.is_open
            assert not conn_is_kept(pool, board.lines[0]), "opened before, and kept after the clear"

        def clear() -> None:
            board.until_dialling("a:1")
            pool.clear()
            board.let_go("a:1")

        together(ask, clear)


def conn_is_kept(pool: ConnectionPool, line: object) -> bool:
    raw = pool.take()
    if raw is not None:
        raw.is_open = False
    return raw is line


def test_clear_wakes_a_waiter_for_whom_it_made_room(clock: FakeClock) -> None:
    """Its endpoint had no place, for another's idle connections could not be lent to it."""
    board = Switchboard()
    with ConnectionPool("a:1", connector=board, clock=clock) as pool:
        pool.try_connect().release()
        pool.clear("a:1")
        until(lambda: pool.stats().size == 0)
        assert info_of(pool, "a:1").state is EndpointState.UP
        pool.clear()
        pool.try_connect().release()
        assert board.n_open == 1


def lead_elsewhere(pool: ConnectionPool) -> None:
    pool.route = "b:1"


@pytest.mark.parametrize(
    ("act", "deed"), [(lead_elsewhere, Control.reroute), (ConnectionPool.clear, Control.clear)]
)
def test_what_an_interrupted_change_is_told_of_has_been_done(
    act: Callable[[ConnectionPool], None], deed: Callable[..., None]
) -> None:
    for strike in at_every_bytecode(deed, kind=SignalStrike):
        works = Works(prompt=True)
        told: list[PoolCleared] = []
        pool = ConnectionPool(A, connector=works, clock=TellingClock(), reap_interval=None)
        pool.listen(told.append, PoolCleared)
        pool.try_connect().release()
        with strike:
            act(pool)
        pool.sweep()  # which tells what has been decided
        if told or str(pool.route) != str(A):
            works.until(lambda works=works: works.n_open == 0)
        pool.close()


def test_a_dial_that_hangs_on_after_its_endpoint_has_left_the_route_leaves_nothing_of_it(
    clock: FakeClock,
) -> None:
    works = Works()
    told: list[EndpointDown] = []
    with door() as dial, ConnectionPool(A, connector=works, clock=clock) as pool:
        works.opening = lambda endpoint: dial(endpoint) if endpoint == A else None
        pool.listen(told.append, EndpointDown)
        waiter = Caller(pool, timeout=60)
        dial.until_entered()
        pool.route = "b:1"
        clock.advance(1)  # its patience is at an end
        waiter.loan().release()
        clock.advance(10)
        pool.sweep()
        dial.let_go()
        until(lambda: names(pool) == ["b:1"])
        assert told == []
