"""What goes on while a pool is paused, and what does not."""

from __future__ import annotations

import gc
import warnings

import pytest

from connpool import CloseReason, ConnectionPool, ConnPoolError, PoolClosedError, PoolPausedError, PoolState
from connpool.testing import Echo, ScriptedServer
from tests.helpers.switchboard import until
from tests.stress.house import make_house  # noqa: F401 - a fixture
from tests.stress.stage import make_stage  # noqa: F401 - a fixture
from tests.stress.works import AT_ONCE, A, B, Caller, assert_whole, balanced, door


def waiter(s, req=None, timeout=20):
    n = s.pool.stats().waiting
    caller = Caller(s.pool, req, timeout=timeout)
    s.clock.until_waiting(n + 1)
    return caller


# -- loans ----------------------------------------------------------------------------------------


def test_a_loan_goes_on_talking_and_comes_back_as_idle():
    with ScriptedServer(script=Echo()) as server, ConnectionPool(server.endpoint) as pool:
        conn = pool.try_connect()
        pool.pause()
        conn.sendall(b"still here", timeout=5)
        assert conn.recv_exactly(10, timeout=5) == b"still here"
        conn.release()
        assert balanced(pool).idle == 1
        pool.resume()
        with pool.try_connect() as again:
            assert again.uses == 1
        assert server.accepts == 1


def test_a_release_serves_nobody_while_the_pool_is_paused(stage):
    s = stage(max_size=1)
    conn = s.pool.try_connect()
    caller = waiter(s)
    s.pool.pause()
    conn.release()
    stats = balanced(s.pool)
    assert (stats.idle, stats.in_use, stats.waiting) == (1, 0, 1)
    assert caller.is_waiting
    s.pool.resume()
    caller.loan().release()
    assert s.works.dials == 1


def test_a_termination_serves_nobody_while_the_pool_is_paused(stage):
    s = stage(max_size=1)
    conn = s.pool.try_connect()
    caller = waiter(s)
    s.pool.pause()
    conn.terminate()
    stats = balanced(s.pool)
    assert (stats.size, stats.waiting, s.works.dials) == (0, 1, 1)
    s.pool.resume()
    caller.loan().release()
    assert s.works.dials == 2


def test_a_lost_loan_is_recovered_while_the_pool_is_paused(stage):
    s = stage(max_size=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        s.pool.try_connect()
        gc.collect()
    s.pool.pause()
    s.pool.sweep()
    stats = balanced(s.pool)
    assert (stats.in_use, stats.lost) == (0, 1)
    s.pool.resume()
    assert_whole(s.pool, s.works)


def test_a_detached_connection_leaves_a_paused_pool(stage):
    s = stage(max_size=1)
    conn = s.pool.try_connect()
    s.pool.pause()
    s.works.disown(conn.detach())
    assert balanced(s.pool).size == 0


# -- dials ----------------------------------------------------------------------------------------


def test_a_dial_that_was_under_way_is_kept_for_the_end_of_the_pause(stage):
    s = stage(max_size=1)
    with door() as dial:
        s.works.opening = dial
        caller = waiter(s)
        dial.until_entered()
        s.pool.pause()
        dial.let_go()
        until(lambda: s.pool.stats().idle == 1, "what was dialled being idle")
    assert caller.is_waiting
    assert balanced(s.pool).waiting == 1
    s.pool.resume()
    caller.loan().release()
    assert s.works.dials == 1


def test_a_dial_that_was_under_way_does_not_save_who_waits_from_a_pause_that_fails(stage):
    s = stage(max_size=1)
    with door() as dial:
        s.works.opening = dial
        caller = waiter(s)
        dial.until_entered()
        s.pool.pause(fail=True)
        caller.failure(PoolPausedError)
    until(lambda: balanced(s.pool).opening == 0)
    s.pool.resume()
    assert_whole(s.pool, s.works)


def test_a_dial_that_fails_during_the_pause_begins_no_other(stage):
    def refuse(endpoint):
        raise ConnectionRefusedError(endpoint)

    s = stage("a:1 || b:1", max_size=1)
    with door(refuse) as dial:
        s.works.opening = lambda endpoint: dial(endpoint) if endpoint == A else None
        caller = waiter(s)
        dial.until_entered()
        s.pool.pause()
        dial.let_go()
        until(lambda: s.pool.stats().opening == 0)
    assert s.works.dials == 1
    assert caller.is_waiting
    s.pool.resume()
    assert caller.loan().endpoint == B
    caller.loan().release()


def test_a_callers_own_dial_that_was_under_way_loses_no_place(stage):
    s = stage(max_size=1, dial_in_caller=True)
    with door() as dial:
        s.works.opening = dial
        caller = Caller(s.pool, timeout=20)
        dial.until_entered()
        s.pool.pause()
    until(lambda: balanced(s.pool).opening == 0)
    s.pool.resume()
    caller.loan().release()
    assert_whole(s.pool, s.works)


def test_a_paused_pool_dials_neither_for_its_minimum_nor_for_who_waits(stage):
    s = stage(min_idle=2, max_size=4)
    s.pool.pause()
    caller = waiter(s)
    s.pool.sweep()
    s.clock.advance(1)
    s.pool.sweep()
    assert (balanced(s.pool).opening, s.works.dials) == (0, 0)
    s.pool.resume()
    caller.loan().release()
    s.pool.sweep()
    until(lambda: balanced(s.pool).idle >= 2, "the minimum")


def test_a_paused_pool_revives_nothing(stage):
    s = stage(revive="force", max_size=4)
    conn = s.pool.try_connect()
    s.pool.pause()
    conn.terminate(OSError("gone"))
    s.pool.sweep()
    assert (balanced(s.pool).size, s.works.dials) == (0, 1)


def test_a_paused_pool_probes_no_endpoint(stage):
    s = stage()
    s.down.add(A)
    with pytest.raises(ConnPoolError):
        s.pool.try_connect()
    s.pool.pause()
    s.clock.advance(100)
    s.pool.sweep()
    assert s.works.dials == 1


@pytest.mark.parametrize(
    "act",
    [
        lambda pool: pool.unblacklist(A),
        lambda pool: pool.resize(max_size=5),
        lambda pool: pool.configure(max_connecting=5),
        lambda pool: pool.clear(),
        lambda pool: setattr(pool, "route", "a:1, b:1"),
        lambda pool: pool.sweep(),
    ],
    ids=["unblacklist", "resize", "configure", "clear", "route", "sweep"],
)
def test_nothing_but_the_end_of_the_pause_serves_who_waits(stage, act):
    s = stage(max_size=1)
    s.pool.try_connect().release()
    s.pool.pause()
    caller = waiter(s)
    s.pool.blacklist(A)
    act(s.pool)
    stats = balanced(s.pool)
    assert (stats.in_use, stats.opening, stats.waiting, s.works.dials) == (0, 0, 1, 1)
    assert caller.is_waiting
    s.pool.unblacklist(A)
    s.pool.resume()
    caller.loan().release()
    assert_whole(s.pool, s.works)


def test_what_is_adopted_during_a_pause_waits_for_its_end(stage):
    s = stage(max_size=1)
    s.pool.pause()
    caller = waiter(s)
    s.pool.add_connection(s.works.open(A, None, None))
    stats = balanced(s.pool)
    assert (stats.idle, stats.waiting) == (1, 1)
    s.pool.resume()
    caller.loan().release()
    assert s.works.dials == 1


# -- expiry, clearing -----------------------------------------------------------------------------


def test_idle_connections_expire_during_a_pause(stage):
    s = stage(idle_timeout=10)
    s.pool.try_connect().release()
    s.pool.pause()
    s.clock.advance(11)
    assert s.pool.sweep() == 1
    assert balanced(s.pool).closed == {CloseReason.IDLE: 1}
    assert s.works.n_open == 0


def test_a_loan_too_old_is_closed_when_it_comes_back_during_a_pause(stage):
    s = stage(max_lifetime=10)
    conn = s.pool.try_connect()
    s.pool.pause()
    s.clock.advance(11)
    conn.release()
    assert balanced(s.pool).closed == {CloseReason.EXPIRED: 1}


def test_what_expired_during_a_pause_is_not_lent_at_its_end(stage):
    s = stage(idle_timeout=10)
    s.pool.try_connect().release()
    s.pool.pause()
    caller = waiter(s)
    s.clock.advance(11)
    s.pool.resume()
    assert caller.loan().uses == 0
    caller.loan().release()
    assert s.works.dials == 2


def test_a_paused_pool_can_be_cleared(stage):
    s = stage(max_size=2)
    idle, lent = s.pool.try_connect(), s.pool.try_connect()
    idle.release()
    s.pool.pause()
    s.pool.clear()
    assert balanced(s.pool).size == 1
    lent.release()
    assert balanced(s.pool).closed == {CloseReason.STALE: 2}
    assert s.pool.stats().state is PoolState.PAUSED


# -- the ends of a pool ---------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["close", "shutdown"])
def test_the_end_of_a_paused_pool_is_told_to_who_waits_at_once(house, end):
    h = house(max_size=2)
    h.pool.pause()
    waiters = [h.waiter() for _ in range(3)]
    began = h.clock.now()
    getattr(h.pool, end)()
    for each in waiters:
        each.failure(PoolClosedError)
        assert each.done_at - began < AT_ONCE
    with pytest.raises(PoolClosedError):
        h.pool.try_connect()


def test_a_paused_pool_can_be_closed_with_its_loans_awaited(stage):
    s = stage()
    conn = s.pool.try_connect()
    s.pool.pause()
    assert s.pool.close() == 1
    conn.release()
    assert s.pool.close() == 0
    assert s.works.n_open == 0
    assert s.pool.stats().state is PoolState.CLOSED


def test_a_paused_pool_can_be_shut_down_and_reopened(stage):
    s = stage()
    conn = s.pool.try_connect()
    s.pool.pause()
    assert s.pool.shutdown() == 1
    assert s.pool.stats().state is PoolState.SHUT_DOWN
    conn.release()
    assert s.pool.shutdown() == 0
    s.pool.reopen()
    assert s.pool.stats().state is PoolState.OPEN
    assert_whole(s.pool, s.works)


def test_a_pause_that_failed_is_over_after_a_shutdown(stage):
    s = stage()
    s.pool.pause(fail=True)
    s.pool.shutdown()
    s.pool.reopen()
    s.pool.try_connect().release()


def test_reopening_a_pool_that_is_merely_paused_does_no_harm(stage):
    s = stage()
    s.pool.pause()
    s.pool.reopen()
    if s.pool.stats().state is PoolState.PAUSED:
        s.pool.resume()
    assert_whole(s.pool, s.works)


def test_pausing_and_resuming_twice_is_the_same_as_once(stage):
    s = stage()
    s.pool.resume()
    assert s.pool.stats().state is PoolState.OPEN
    s.pool.pause()
    s.pool.pause()
    assert s.pool.stats().state is PoolState.PAUSED
    s.pool.resume()
    assert s.pool.stats().state is PoolState.OPEN
    assert s.ears.kinds()[1:] == ["PoolPaused", "PoolResumed"]
    assert_whole(s.pool, s.works)


def test_leaving_the_with_block_of_a_paused_pool_closes_it(stage):
    s = stage()
    with s.pool as pool:
        pool.pause()
    assert pool.stats().state is PoolState.CLOSED
