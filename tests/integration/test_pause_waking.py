"""Whatever makes a connection or a place available serves the oldest waiter at once."""

from __future__ import annotations

import gc
import warnings

import pytest

from connpool import (
    CloseReason,
    Connection,
    ConnectionPool,
    ConnPoolError,
    EndpointState,
    PoolClosed,
    PoolClosedError,
    PoolState,
)
from connpool.pool.control import Control
from connpool.pool.core import Books
from connpool.pool.doors import Doors
from connpool.pool.fleet import Fleet
from connpool.pool.hosts import Host
from connpool.pool.room import evict_surplus
from connpool.pool.waiters import Waiter
from connpool.testing import ScriptedServer
from tests.helpers.interrupts import SignalStrike, at_every_bytecode
from tests.helpers.switchboard import until
from tests.stress.house import make_house, served  # noqa: F401 - make_house is a fixture
from tests.stress.works import AT_ONCE, A, B, Caller, TellingClock, Works, assert_whole, balanced, door


def oldest_first(h, waiters, act):
    """Do *act*, then let each waiter pass its connection on; they must be served in order, at once."""
    began = h.clock.now()
    act()
    for waiter in waiters:
        loan = waiter.loan()
        assert waiter.done_at - began < AT_ONCE
        assert all(other.is_waiting for other in waiters[waiters.index(waiter) + 1 :])
        began = h.clock.now()
        loan.release()


def test_a_warmed_connection_serves_the_oldest_waiter(house):
    h = house(max_size=1, min_idle=1)
    with door() as dial:
        h.works.opening = dial
        h.pool.sweep()
        dial.until_entered()
        waiters = [h.waiter() for _ in range(3)]
        assert balanced(h.pool).opening == 1
        oldest_first(h, waiters, dial.let_go)
    assert h.works.dials == 1


def test_a_connection_warmed_for_the_minimum_is_not_kept_from_who_waits_at_the_limit_of_dials(house):
    h = house(max_size=3, min_idle=2, max_connecting=1)
    with door() as dial:
        h.works.opening = dial
        h.pool.sweep()
        dial.until_entered()
        waiter = h.waiter()
        assert h.works.dials == 1
        served(waiter, dial.let_go)


def test_a_revived_connection_serves_the_oldest_waiter(house):
    h = house(max_size=1, revive=True)
    conn = h.pool.try_connect()
    conn.terminate(OSError("broken"))
    with door() as dial:
        h.works.opening = dial
        h.pool.sweep()
        dial.until_entered()
        waiters = [h.waiter() for _ in range(3)]
        oldest_first(h, waiters, dial.let_go)
    assert h.works.dials == 2


def test_one_who_waits_and_one_to_be_revived_need_one_dial(house):
    h = house(max_size=1, revive=True)
    conn = h.pool.try_connect()
    waiter = h.waiter()
    served(waiter, lambda: conn.terminate(OSError("broken")))
    h.pool.sweep()
    assert (h.works.dials, h.works.peak) == (2, 1)


def test_a_probe_that_finds_its_endpoint_back_serves_the_oldest_waiter(house):
    h = house(max_size=1, fail_fast=False, blacklist_initial=30)
    down = [True]

    def opening(endpoint):
        if down:
            raise ConnectionRefusedError(endpoint)
        dial(endpoint)

    with door() as dial:
        h.works.opening = opening
        waiters = [h.waiter(timeout=100) for _ in range(3)]  # for longer than the leap
        until(lambda: h.pool.endpoints()[0].failures == 1)
        assert all(waiter.is_waiting for waiter in waiters)
        down.clear()
        h.clock.leap(30)
        h.pool.sweep()
        dial.until_entered()
        oldest_first(h, waiters, dial.let_go)
    assert h.works.dials == 2


def test_an_endpoint_taken_off_the_blacklist_serves_the_oldest_waiter(house):
    h = house(max_size=1, fail_fast=False)
    h.pool.blacklist(A)
    waiters = [h.waiter() for _ in range(3)]
    oldest_first(h, waiters, lambda: h.pool.unblacklist(A))


def test_a_higher_maximum_serves_the_oldest_waiter(house):
    h = house()
    held = h.pool.try_connect()
    waiters = [h.waiter() for _ in range(3)]
    oldest_first(h, waiters, lambda: h.pool.resize(max_size=2))
    held.release()


def test_the_end_of_a_pause_serves_the_oldest_waiter(house):
    h = house()
    h.pool.pause()
    waiters = [h.waiter() for _ in range(3)]
    oldest_first(h, waiters, h.pool.resume)


def test_an_interrupt_as_a_pause_ends_leaves_nobody_waiting():
    for strike in at_every_bytecode(Doors.resume, Doors._go_locked, Books.expect, kind=SignalStrike):
        clock = TellingClock()
        pool = ConnectionPool(A, connector=Works(prompt=True), clock=clock, reap_interval=None)
        pool.pause()
        waiter = Caller(pool)
        clock.until_waiting()
        with strike:
            pool.resume()
        if pool.stats().state is PoolState.PAUSED:
            pool.resume()
        waiter.loan(2).release()
        pool.close()


def test_an_interrupt_as_an_endpoint_is_taken_off_the_blacklist_leaves_nobody_waiting():
    for strike in at_every_bytecode(Host.lift, Waiter.forget_failures, kind=SignalStrike):
        clock = TellingClock()
        pool = ConnectionPool(
            A, connector=Works(prompt=True), clock=clock, reap_interval=None, fail_fast=False
        )
        pool.blacklist(A)
        waiter = Caller(pool)
        clock.until_waiting()
        with strike:
            pool.unblacklist(A)
        if pool.endpoints()[0].state is not EndpointState.UP:
            pool.unblacklist(A)
        waiter.loan(2).release()
        pool.close()


def add_a_place(conn):
    conn._record.pool.configure(max_size=2)


@pytest.mark.filterwarnings("ignore:.*not given back:ResourceWarning")
@pytest.mark.parametrize("end", [Connection.terminate, Connection.detach, add_a_place])
def test_an_interrupt_as_a_place_is_freed_leaves_nobody_waiting(end):
    steps = Books.forget, Books._count_parting, Fleet.forget_empty, Books.adopt_config, evict_surplus
    for strike in at_every_bytecode(*steps, kind=SignalStrike):
        works, clock = Works(prompt=True), TellingClock()
        pool = ConnectionPool(A, connector=works, clock=clock, reap_interval=None, max_size=1)
        held = pool.try_connect()
        waiter = Caller(pool)
        clock.until_waiting()
        with strike:
            end(held)
        if end is add_a_place and pool.config.max_size == 1:  # it was struck before
            end(held)
        waiter.loan(2).release()
        if end is add_a_place:
            held.release()
        pool.close()


def test_an_interrupt_as_the_route_changes_leaves_nobody_waiting():
    for strike in at_every_bytecode(Control._renew_locked, Books.drain_idle, kind=SignalStrike):
        works, clock = Works(prompt=True), TellingClock()
        pool = ConnectionPool(A, connector=works, clock=clock, reap_interval=None, fail_fast=False)
        pool.blacklist(A)
        waiter = Caller(pool)
        clock.until_waiting()
        with strike:
            pool.route = "b:1"
        waiter.loan(2).release()
        pool.close()


@pytest.mark.parametrize("end", [ConnectionPool.close, ConnectionPool.shutdown])
def test_an_interrupt_as_a_pool_ends_leaves_nobody_waiting_and_a_second_close_finishes_it(end):
    for strike in at_every_bytecode(Doors.close, Doors.shutdown, Doors._go_locked, kind=SignalStrike):
        works, clock, told = Works(prompt=True), TellingClock(), []
        pool = ConnectionPool(A, connector=works, clock=clock, reap_interval=None, max_size=1)
        pool.listen(told.append, PoolClosed)
        held = pool.try_connect()
        waiter = Caller(pool)
        clock.until_waiting()
        with strike:
            end(pool)
        if pool.stats().state is not PoolState.OPEN:
            waiter.join(2)
        pool.close()
        waiter.failure(PoolClosedError)
        held.release()
        assert len(told) == 1
        assert works.n_open == 0


def test_an_adopted_connection_serves_the_oldest_waiter(house):
    h = house(route="a:1, b:1", fail_fast=False)
    for endpoint in (A, B):
        h.pool.blacklist(endpoint)
    waiters = [h.waiter() for _ in range(2)]
    part = h.works.open(A, None, None)
    began = h.clock.now()
    h.pool.add_connection(part, A)  # lent though its endpoint is out: no other can serve
    waiters[0].loan().release()
    assert waiters[0].done_at - began < AT_ONCE
    waiters[1].loan().release()


@pytest.mark.parametrize("how", ["expire", "idle"])
def test_a_sweep_that_closes_an_idle_one_serves_who_waits_for_another_endpoint(house, how):
    """Nothing idle can serve them, so the freed place must."""
    h = house(route="a:1, b:1", max_size=1, max_lifetime=5, idle_timeout=5)
    waiting = []

    def late(part):
        if not waiting:
            waiting.append(h.waiter(B))

    h.pool.try_connect(A).release()
    h.clock.leap(6)
    h.works.closing = late
    assert h.pool.sweep() == 1
    waiting[0].loan().release()
    assert [part.endpoint for part in h.works.parts] == [A, B]


def test_the_first_of_a_release_and_a_dial_serves_the_oldest_waiter(house):
    h = house(max_size=2)
    held = h.pool.try_connect()
    with door() as dial:
        h.works.opening = dial
        first = h.waiter()
        dial.until_entered()
        second = h.waiter()
        served(first, held.release)
        served(second, dial.let_go) if second.is_waiting else second.loan().release()
    assert_whole(h.pool, h.works)


def test_a_recovered_loan_serves_the_oldest_waiter(house):
    h = house()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        h.pool.try_connect()
        gc.collect()
    waiter = Caller(h.pool, timeout=10)
    h.pool.sweep()
    waiter.loan().release()
    assert balanced(h.pool).closed == {CloseReason.LOST: 1}


# -- with the thread of the pool's own -------------------------------------------------------------


def test_the_reaper_brings_a_returning_server_to_who_waits():
    settings = {"blacklist_initial": 0.05, "blacklist_max": 0.05, "reap_interval": 0.05}
    with ScriptedServer() as server:
        with ConnectionPool(server.endpoint, fail_fast=False, **settings) as pool:
            server.refuse()
            callers = [Caller(pool) for _ in range(5)]
            until(lambda: pool.endpoints()[0].failures >= 2, "a second dial")
            server.start()
            for caller in callers:
                caller.loan().release()
        server.until_open(0)


def test_the_reaper_warms_a_pool_for_whom_waits():
    with ScriptedServer() as server:
        with ConnectionPool(server.endpoint, min_idle=2, max_size=2, reap_interval=0.05) as pool:
            server.until_accepts(2)
            until(lambda: pool.stats().idle == 2)
            pool.try_connect(timeout=0).release()
            assert server.accepts == 2
        server.until_open(0)


def test_a_waiter_meets_the_failure_of_the_dial_it_waits_for_at_once(house):
    def refuse(endpoint):
        raise ConnectionRefusedError(endpoint)

    h = house(min_idle=1)
    with door(refuse) as dial:
        h.works.opening = dial
        h.pool.sweep()
        dial.until_entered()
        waiter = h.waiter()
        dial.let_go()
        waiter.failure(ConnPoolError)
