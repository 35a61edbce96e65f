"""Each endpoint has counts of its own, and they make up those of the pool."""

from __future__ import annotations

import threading

import pytest

from connpool import CloseReason, ConnectionPool, ConnPoolError, EndpointState
from connpool.testing import ScriptedServer
from tests.helpers.switchboard import info_of
from tests.stress.stage import make_stage  # noqa: F401 - a fixture
from tests.stress.works import A, B, C, Works, door

COUNTS = ("size", "idle", "in_use", "opening", "closing", "opened", "connect_failures", "checkouts")


def counts(s, endpoint):
    info = info_of(s.pool, endpoint)
    return {name: value for name in COUNTS if (value := getattr(info, name))}


def check_sums(pool):
    stats, infos = pool.stats(), pool.endpoints()
    for name in COUNTS:
        assert sum(getattr(info, name) for info in infos) == getattr(stats, name), name
    for reason in CloseReason:
        assert sum(info.closed.get(reason, 0) for info in infos) == stats.closed.get(reason, 0), reason


def test_the_story_of_two_endpoints_is_kept_apart(stage):
    s = stage("a:1 && b:1", max_size=3, blacklist_initial=60)
    assert counts(s, A) == counts(s, B) == {}
    at_a, at_b = s.pool.try_connect(A), s.pool.try_connect(B)
    assert counts(s, A) == {"size": 1, "in_use": 1, "opened": 1, "checkouts": 1}
    check_sums(s.pool)
    at_a.release()
    at_b.terminate()
    assert counts(s, A) == {"size": 1, "idle": 1, "opened": 1, "checkouts": 1}
    assert counts(s, B) == {"opened": 1, "checkouts": 1}
    assert dict(info_of(s.pool, B).closed) == {CloseReason.TERMINATED: 1}
    assert dict(info_of(s.pool, A).closed) == {}
    s.down.add(B)
    for _ in range(4):
        s.pool.try_connect().release()
    with pytest.raises(ConnPoolError):
        s.pool.try_connect(B)
    info = info_of(s.pool, B)
    assert info.connect_failures == info.failures >= 1
    assert counts(s, A) == {"size": 1, "idle": 1, "opened": 1, "checkouts": 5}
    assert info.state is EndpointState.BLACKLISTED
    check_sums(s.pool)
    s.down.clear()
    s.pool.unblacklist(B)
    before = info.connect_failures
    s.pool.try_connect(B).release()
    info = info_of(s.pool, B)
    assert (info.failures, info.connect_failures) == (0, before), "one counts since the last success, one all"
    s.pool.clear(A)
    assert dict(info_of(s.pool, A).closed) == {CloseReason.STALE: 1}
    assert dict(info_of(s.pool, B).closed) == {CloseReason.TERMINATED: 1}
    check_sums(s.pool)
    s.pool.close()
    check_sums(s.pool)


def test_opening_and_closing_ones_are_counted_at_their_endpoint(stage):
    s = stage("a:1, b:1", Works(prompt=False), max_size=4)
    conn = s.pool.try_connect(A)
    with door() as dial, door() as close:
        s.works.opening, s.works.closing = dial, close
        threads = [
            threading.Thread(target=conn.terminate),
            threading.Thread(target=lambda: s.pool.try_connect(B, timeout=20).release()),
        ]
        for thread in threads:
            thread.start()
        dial.until_entered()
        close.until_entered()
        at_a, at_b = info_of(s.pool, A), info_of(s.pool, B)
        assert (at_a.size, at_a.closing, at_a.opening, at_a.opened) == (1, 1, 0, 1)
        assert (at_b.size, at_b.closing, at_b.opening, at_b.opened) == (1, 0, 1, 0)
        check_sums(s.pool)
    for thread in threads:
        thread.join()
    s.works.until(lambda: s.pool.stats().closing == 0)
    check_sums(s.pool)


def test_an_eviction_is_counted_where_the_evicted_one_was(stage):
    s = stage("a:1, b:1", max_size=1)
    s.pool.try_connect(A).release()
    s.pool.try_connect(B).release()
    assert dict(info_of(s.pool, A).closed) == {CloseReason.EVICTED: 1}
    assert dict(info_of(s.pool, B).closed) == {}
    assert (info_of(s.pool, A).opened, info_of(s.pool, B).opened) == (1, 1)
    check_sums(s.pool)


def test_a_pinned_endpoint_off_the_route_has_its_counts(stage):
    s = stage("a:1")
    s.pool.try_connect(C).release()
    info = info_of(s.pool, C)
    assert info.group is None
    assert counts(s, C) == {"size": 1, "idle": 1, "opened": 1, "checkouts": 1}
    check_sums(s.pool)


def test_an_adopted_connection_counts_at_its_endpoint(stage):
    s = stage("a:1, b:1")
    s.pool.add_connection(s.works.open(B, None, None), B)
    assert counts(s, B) == {"size": 1, "idle": 1, "opened": 1}
    check_sums(s.pool)


def test_a_reused_connection_counts_as_a_checkout_and_not_as_opened(stage):
    s = stage()
    for _ in range(10):
        s.pool.try_connect().release()
    assert counts(s, A) == {"size": 1, "idle": 1, "opened": 1, "checkouts": 10}


def test_a_state_is_told_with_its_beginning_and_its_cause(stage):
    s = stage()
    s.clock.advance(5)
    s.down.add(A)
    with pytest.raises(ConnPoolError):
        s.pool.try_connect()
    info = info_of(s.pool, A)
    assert (info.state, info.since, info.failures) == (EndpointState.BLACKLISTED, s.clock.now(), 1)
    assert s.clock.now() < info.retry_at <= s.clock.now() + 1
    assert "a:1 is down" in str(info.last_error)
    s.clock.advance(50)
    s.down.clear()
    s.pool.try_connect().release()
    info = info_of(s.pool, A)
    assert (info.state, info.since, info.failures) == (EndpointState.UP, s.clock.now(), 0)
    assert info.retry_at is None


def test_counts_agree_with_what_the_servers_saw():
    with ScriptedServer() as one, ScriptedServer() as other:
        endpoints = [one.endpoint, other.endpoint]
        with ConnectionPool(endpoints, max_size=6, reap_interval=None) as pool:
            loans = [pool.try_connect() for _ in range(6)]
            for loan in loans[:3]:
                loan.terminate()
            for loan in loans[3:]:
                loan.release()
            for server in (one, other):
                info = info_of(pool, server.endpoint)
                server.until_accepts(3)
                server.until_open(info.idle)
                assert info.opened == server.accepts == 3
                assert info.opened - info.closed.get(CloseReason.TERMINATED, 0) == server.open
            check_sums(pool)
        one.until_open(0)
        other.until_open(0)


def test_a_list_of_connections_is_a_copy(stage):
    s = stage(max_size=5)
    loans = [s.pool.try_connect() for _ in range(5)]
    for info, loan in zip(s.pool.connections(), loans, strict=True):
        loan.terminate()
        assert info.id
    assert s.pool.connections() == ()
    before = s.pool.endpoints()
    for _ in before:
        s.pool.route = "b:1"
    assert [info.endpoint for info in before] == [A]


def test_a_dial_nobody_is_blamed_for_is_counted_all_the_same(stage):
    """The caller's own short time is no fault of the endpoint; the dial failed, though."""
    s = stage()
    s.down.add(A)
    with pytest.raises(ConnPoolError):
        s.pool.try_connect(timeout=0.001)
    info = info_of(s.pool, A)
    assert (info.connect_failures, s.pool.stats().connect_failures) == (1, 1)
