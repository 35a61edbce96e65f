"""Waits, dials and holds as percentiles of what happened lately."""

from __future__ import annotations

import gc
import tracemalloc

import pytest

from connpool import ConnectionPool, Percentiles
from connpool.pool.timings import MANY
from connpool.testing import FakeClock
from tests.stress.stage import make_stage  # noqa: F401 - a fixture
from tests.stress.works import A, Caller, Works, assert_ended

NOTHING = Percentiles(p50=0, p95=0, p99=0, max=0)
LONG_AGO = 600.0  # seconds; "lately" is a minute or two
NOW_AND_THEN = 20.0  # seconds; surely "lately"


def about(seconds):
    return pytest.approx(seconds, rel=0.07)  # a bucket's width


def dial(s, seconds, n=1):
    for _ in range(n):
        s.dial_time = seconds
        s.pool.try_connect().terminate()
    s.dial_time = 0.0


def hold(s, seconds, n=1):
    for _ in range(n):
        with s.pool.try_connect():
            s.clock.advance(seconds)


def wait(s, seconds):
    """Somebody waits so long for what is lent."""
    held = s.pool.try_connect()
    caller = Caller(s.pool, timeout=1000)
    s.clock.until_waiting(1)
    s.clock.advance(seconds)
    held.release()
    caller.loan().release()


def test_a_pool_that_has_done_nothing_has_measured_nothing(stage):
    stats = stage().pool.stats()
    assert (stats.wait, stats.dial, stats.hold) == (NOTHING,) * 3


def test_dials_are_measured_by_the_pools_clock(stage):
    s = stage()
    for hundredths in range(1, 101):
        dial(s, hundredths / 100)
    stats = s.pool.stats()
    assert stats.dial.max == pytest.approx(1.0)
    assert (stats.dial.p50, stats.dial.p95, stats.dial.p99) == (about(0.5), about(0.95), about(0.99))


def test_a_dial_that_fails_is_no_measure_of_dials(stage):
    s = stage(blacklist_initial=0, blacklist_max=0)
    dial(s, 0.01)
    s.down.update(info.endpoint for info in s.pool.endpoints())
    s.dial_time = 4
    with pytest.raises(ConnectionError):
        s.pool.try_connect()
    assert s.pool.stats().dial.max == pytest.approx(0.01)


def test_waits_are_measured_from_asking_to_having(stage):
    s = stage(max_size=1)
    wait(s, 3)
    stats = s.pool.stats()
    assert stats.wait.max == 3
    assert stats.wait.p50 == 0, "most were served at once"
    assert stats.wait.p99 == about(3)


def test_checkouts_that_need_not_wait_count_as_such(stage):
    s = stage(max_size=1)
    wait(s, 3)
    for _ in range(400):
        s.pool.try_connect().release()
    assert s.pool.stats().wait.p99 == 0
    assert s.pool.stats().wait.max == 3


def test_a_dial_counts_as_a_wait(stage):
    s = stage()
    dial(s, 2)
    assert s.pool.stats().wait.max == 2


@pytest.mark.parametrize("what", ["dial", "wait", "hold"])
def test_what_happened_long_ago_is_forgotten(stage, what):
    s = stage(max_size=1, idle_timeout=None, max_lifetime=None, connect_timeout=1000)
    act = {"dial": dial, "wait": wait, "hold": hold}[what]
    act(s, 8)
    assert getattr(s.pool.stats(), what).max == 8
    s.clock.advance(LONG_AGO)
    assert getattr(s.pool.stats(), what) == NOTHING
    act(s, 0.25)
    found = getattr(s.pool.stats(), what)
    assert (found.max, found.p99) == (0.25, about(0.25))


@pytest.mark.parametrize("what", ["dial", "wait", "hold"])
def test_what_happened_lately_is_remembered(stage, what):
    s = stage(max_size=1, idle_timeout=None, max_lifetime=None, connect_timeout=1000)
    act = {"dial": dial, "wait": wait, "hold": hold}[what]
    act(s, 8)
    s.clock.advance(NOW_AND_THEN)
    assert getattr(s.pool.stats(), what).max == 8
    act(s, 1)
    s.clock.advance(NOW_AND_THEN)
    assert getattr(s.pool.stats(), what).max == 8


def test_looking_often_changes_nothing(stage):
    s = stage(max_size=1)
    dial(s, 1, 3)
    before = s.pool.stats().dial
    for _ in range(50):
        s.clock.advance(0.1)
        assert s.pool.stats().dial == before


def test_holds_are_measured_while_somebody_listens(stage):
    s = stage()
    hold(s, 2, 98)
    hold(s, 30)
    found = s.pool.stats().hold
    assert (found.max, found.p50) == (30, about(2))


def test_how_long_a_share_and_what_leaves_the_pool_were_held_is_measured_too(stage):
    s = stage(sharable=True)
    share = s.pool.share()
    s.clock.advance(2)
    share.release()
    assert s.pool.stats().hold.max == 2
    conn = s.pool.try_connect()
    s.clock.advance(5)
    s.works.disown(conn.detach())
    assert s.pool.stats().hold.max == 5


def test_measuring_holds_begins_with_the_first_who_listens_and_ends_with_the_last(stage):
    s = stage(listeners=())
    hold(s, 3)
    assert s.pool.stats().hold == NOTHING
    stop = s.pool.listen(lambda event: None)
    hold(s, 5)
    assert s.pool.stats().hold.max == 5
    stop()
    hold(s, 9)
    conn = s.pool.try_connect()
    s.clock.advance(9)
    conn.terminate()
    assert s.pool.stats().hold.max == 5


def test_percentiles_never_exceed_the_maximum_and_never_fall(stage):
    s = stage(connect_timeout=1000)
    for seconds in (0.000_5, 0.003, 0.1, 0.7, 5, 11):
        dial(s, seconds, 3)
        found = s.pool.stats().dial
        assert 0 <= found.p50 <= found.p95 <= found.p99 <= found.max


def test_measuring_takes_no_memory_that_grows(stage):
    s = stage(listeners=(), idle_timeout=None, max_lifetime=None)
    s.pool.listen(lambda event: None)

    def work(n):
        for i in range(n):
            dial(s, 0.001 * (i % 97))
            hold(s, 0.01 * (i % 89))
            s.clock.advance(1)
            s.works.parts.clear()
        s.pool.stats()

    work(300)
    gc.collect()
    tracemalloc.start()
    try:
        work(100)
        gc.collect()
        before, _ = tracemalloc.get_traced_memory()
        work(600)
        gc.collect()
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert after - before < 20_000, f"{after - before} bytes more"


def test_a_busy_pool_forgets_too(stage):
    s = stage(max_size=1, idle_timeout=None, max_lifetime=None)
    wait(s, 8)
    for _ in range(int(LONG_AGO / 5)):
        s.clock.advance(5)
        s.pool.try_connect().release()
    assert s.pool.stats().wait == NOTHING


def test_waits_that_nobody_looks_at_are_counted_in_before_they_are_many():
    """A pool may do nothing but hand over for days."""
    works, clock = Works(prompt=True), FakeClock()
    pool = ConnectionPool(A, connector=works, clock=clock, max_size=1, reap_interval=None)
    most = 0
    for _ in range(MANY + 10):
        held = pool.try_connect()
        caller = Caller(pool, timeout=1000)
        clock.until_waiting(1)
        clock.advance(0.001)
        held.release()
        caller.loan().release()
        most = max(most, len(pool._lender.books.timings.new_waits))
    assert most <= MANY
    assert pool.stats().wait.max == pytest.approx(0.001)
    assert_ended(pool, works)
