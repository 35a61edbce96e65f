"""A stack that is full, or memory that is short, within a call: nothing is lost, nobody is forgotten."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial

import pytest

from connpool import Connection, ConnectionPool
from connpool.pool.service import Service
from connpool.pool.sharing import Share
from connpool.pool.waiters import WaitQueue
from tests.stress.works import A, Caller, TellingClock, Works, assert_ended, assert_whole

AT_ONCE = 2.0  # seconds; who is forgotten waits for ten
ENOUGH = 30  # frames with which each of the calls can be made

pytestmark = pytest.mark.filterwarnings("ignore:.*not given back:ResourceWarning")
needs_calls_without_frames = pytest.mark.skipif(
    sys.version_info < (3, 12), reason="a function written in C takes a frame's place there, too"
)


@pytest.fixture(autouse=True)
def shallow_stack(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A stack that is soon full. What finalisers raise there is not told, for that needs a deeper one."""
    before = sys.getrecursionlimit()
    monkeypatch.setattr(sys, "unraisablehook", bool)
    sys.setrecursionlimit(300)
    yield
    sys.setrecursionlimit(before)


def with_frames_left(n: int, deed: Callable[[], object]) -> None:
    """Do *deed* so deep in the stack that it may go *n* frames deeper. It may fail."""
    depth, frame = 0, sys._getframe()
    while frame is not None:
        depth, frame = depth + 1, frame.f_back

    try:
        descend(sys.getrecursionlimit() - depth - n - 1, deed)
    except RecursionError:
        pass


def descend(n: int, deed: Callable[[], object]) -> None:
    if n:
        descend(n - 1, deed)
    else:
        deed()


def leave_block(conn: Connection) -> None:
    with conn:
        pass


@needs_calls_without_frames
@pytest.mark.parametrize("is_shared", [False, True], ids=["lent", "shared"])
@pytest.mark.parametrize("end", ["release", "terminate", "leave_block"])
def test_a_loan_that_ends_where_the_stack_is_full_goes_to_who_waits_for_it(end, is_shared):
    works, clock = Works(prompt=True), TellingClock()
    pool = ConnectionPool(A, connector=works, clock=clock, max_size=1, sharable=True, reap_interval=None)
    for n in range(1, ENOUGH):
        held = [pool.share() if is_shared else pool.try_connect()]
        waiter = Caller(pool, timeout=10)
        clock.until_waiting()
        with_frames_left(n, partial(leave_block, held[0]) if end == "leave_block" else getattr(held[0], end))
        held.clear()  # where nothing was done it is still the caller's; dropped, it is found
        waiter.loan(AT_ONCE).release()
        del waiter
    assert_whole(pool, works)
    assert_ended(pool, works)


@needs_calls_without_frames
def test_a_checkout_where_the_stack_is_full_costs_no_place():
    for n in range(1, ENOUGH):
        works = Works(prompt=True)
        pool = ConnectionPool(A, connector=works, max_size=1, sharable=True, reap_interval=None)
        for checkout in (pool.try_connect, pool.share):
            with_frames_left(n, lambda checkout=checkout: checkout(timeout=5).release())
            assert_whole(pool, works, may_drop=True)
        assert_ended(pool, works)


def test_who_waits_is_served_though_the_thread_that_has_made_room_runs_out_of_memory(monkeypatch):
    works, clock, failures = Works(prompt=False), TellingClock(), [MemoryError()]
    pool = ConnectionPool(A, connector=works, clock=clock, max_size=1, reap_interval=None)
    serve_queue = Service._serve_queue

    def without_memory(*args) -> None:
        if failures and threading.current_thread().name.startswith("connpool-close"):
            raise failures.pop()
        serve_queue(*args)

    monkeypatch.setattr(Service, "_serve_queue", without_memory)
    held = pool.try_connect()
    waiter = Caller(pool, timeout=10)
    clock.until_waiting()
    held.terminate()
    waiter.loan(AT_ONCE).release()
    assert not failures
    assert_ended(pool, works)


def test_who_waits_behind_one_that_was_served_last_is_served_though_memory_runs_out_in_between(monkeypatch):
    works, clock, leave = Works(prompt=True), TellingClock(), WaitQueue.leave
    pool = ConnectionPool(A, connector=works, clock=clock, max_size=2, reap_interval=None)
    held = [pool.try_connect(), pool.try_connect()]
    pool.pause()
    for conn in held:
        conn.release()
    waiters = [Caller(pool, timeout=10)]
    clock.until_waiting()
    waiters.append(Caller(pool, timeout=10))
    clock.until_waiting(2)

    def without_memory(*args) -> None:
        monkeypatch.setattr(WaitQueue, "leave", leave)
        raise MemoryError

    monkeypatch.setattr(WaitQueue, "leave", without_memory)
    with pytest.raises(MemoryError):
        pool.resume()
    for loan in [waiter.loan(AT_ONCE) for waiter in waiters]:
        loan.release()
    assert_whole(pool, works)
    assert_ended(pool, works)


def test_a_share_that_is_nobodys_yet_costs_no_connection_though_its_finaliser_fails(monkeypatch):
    def without_memory(share: Share) -> None:
        raise MemoryError

    works = Works(prompt=True)
    pool = ConnectionPool(A, connector=works, max_size=1, sharable=True, reap_interval=None)
    with pool.share() as held:
        with monkeypatch.context() as patch:
            patch.setattr(Share, "_report", without_memory)
            share = Share()
            share.record = held._record
            del share
        pool.share().release()  # which would find what is lost
        assert works.n_open == 1
    assert_whole(pool, works)
    assert_ended(pool, works)
