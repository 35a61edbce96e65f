"""Whoever comes back into the pool from inside of it gets an answer or a UsageError, and never hangs."""

from __future__ import annotations

import gc
import logging
import signal
import threading
import time
import warnings
from collections.abc import Iterator

import pytest

from connpool import (
    CheckedIn,
    CheckoutTimeoutError,
    Connection,
    ConnectionPool,
    ConnPoolError,
    PoolClosedError,
    PoolExhaustedError,
    Repository,
    Request,
    UsageError,
)
from connpool.pool import shared, sharing
from connpool.pool.connection import HAS_GIL
from tests.helpers.together import together
from tests.stress.works import (
    A,
    Caller,
    ResettingWorks,
    TellingClock,
    Works,
    assert_ended,
    assert_whole,
    balanced,
)


def make(works, clock=None, **settings):
    settings = {"max_size": 1, "blacklist_initial": 0, "reap_interval": None, **settings}
    return ConnectionPool(A, connector=works, clock=clock or TellingClock(), **settings)


class Visitor:
    """Uses everything a pool has, once, from wherever it is called; notes what came of it."""

    def __init__(self) -> None:
        self.pool: ConnectionPool | None = None
        self.answers: list[object] = []
        self.calls = 0
        self._is_inside = threading.local()

    def __call__(self, *_: object) -> None:
        if self.pool is None or getattr(self._is_inside, "now", False):
            return
        self._is_inside.now = True
        self.calls += 1
        try:
            for visit in (self.lend, self.pool.stats, self.pool.connections, self.pool.endpoints,
                          self.pool.sweep, lambda: repr(self.pool), self.take):  # fmt: skip
                try:
                    self.answers.append(visit())
                except ConnPoolError as error:
                    self.answers.append(error.with_traceback(None))  # whose frames would keep loans
        finally:
            self._is_inside.now = False

    def lend(self) -> None:
        self.pool.try_connect(timeout=0.02).release()

    def take(self) -> None:
        assert self.pool.take(Request(endpoint="elsewhere:1")) is None


@pytest.fixture
def visitor() -> Iterator[Visitor]:
    made = Visitor()
    yield made
    made.pool = None


@pytest.mark.parametrize("in_caller", [False, True])
@pytest.mark.parametrize("prompt", [False, True])
@pytest.mark.parametrize("stage", ["opening", "looking", "resetting", "closing"])
@pytest.mark.parametrize("size", [1, 3])
def test_a_hook_may_use_the_pool(visitor, stage, prompt, in_caller, size):
    works, clock = ResettingWorks(prompt=prompt), TellingClock()
    pool = make(works, clock, dial_in_caller=in_caller, max_size=size)
    if stage != "opening":
        Caller(pool).loan().release()
    clock.leap(1)
    setattr(works, stage, visitor)
    visitor.pool = pool

    def use():
        with pool.try_connect(timeout=10):
            pass
        pool.try_connect(timeout=10).terminate()

    together(use, limit=15)
    setattr(works, stage, lambda _: None)
    assert visitor.calls
    assert_whole(pool, works)
    visitor.pool = None
    assert_ended(pool, works)


@pytest.mark.parametrize("size", [1, 3])
def test_a_condition_may_use_the_pool(visitor, size):
    works = Works(prompt=True)
    pool = make(works, max_size=size)
    pool.try_connect().release()
    visitor.pool = pool

    def where(info):
        visitor()
        return True

    together(lambda: pool.try_connect(Request(where=where), timeout=10).release(), limit=15)
    assert visitor.calls
    visitor.pool = None
    assert_whole(pool, works)
    assert_ended(pool, works)


def test_a_condition_that_raises_costs_no_place():
    works = Works(prompt=True)
    pool = make(works, max_size=2)
    pool.try_connect().release()

    def where(info):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        pool.try_connect(Request(where=where), timeout=1)
    assert_whole(pool, works)
    assert_ended(pool, works)


@pytest.mark.parametrize("n_holders", [0, 1])
@pytest.mark.parametrize("shared", [False, True])
def test_a_pool_that_a_condition_closes_lends_nothing_more(shared, n_holders):
    works = Works(prompt=True)
    pool = make(works, sharable=True, max_size=2)
    held = [pool.share() for _ in range(n_holders)]
    with pytest.raises(PoolClosedError):
        pool.try_connect(Request(shared=shared, where=lambda _: pool.close() is not None), timeout=5)
    assert pool.stats().size == n_holders
    for share in held:
        share.release()
    assert_ended(pool, works)


def test_a_pool_that_a_condition_pauses_lends_after_that_and_one_that_a_look_closes_never():
    works = Works(prompt=True)
    pool = make(works)
    with pytest.raises(CheckoutTimeoutError):
        pool.try_connect(Request(where=lambda _: pool.pause() is None), timeout=0.01)
    pool.resume()
    pool.try_connect().release()
    works.looking = lambda _: pool.close() is not None
    pool.configure(look_after_idle=0)
    with pytest.raises(PoolClosedError):
        pool.try_connect(timeout=5)
    assert_ended(pool, works)


def test_a_pool_that_a_look_closes_gives_no_share_either():
    works = Works(prompt=True)
    with Repository("mine") as repo:
        pool = repo.new("a", A, connector=works, sharable=True, look_after_idle=0, reap_interval=None)
        pool.try_connect().release()
        works.looking = lambda _: pool.close() is not None
        with pytest.raises(PoolClosedError):
            repo.share_from_pool("a")
    assert_ended(pool, works)


def test_a_condition_that_raises_while_its_thread_waits_harms_nobody_else():
    works, clock = Works(prompt=True), TellingClock()
    pool = make(works, clock)
    held = pool.try_connect()

    def where(info):
        raise ZeroDivisionError

    first = Caller(pool, Request(where=where))
    clock.until_waiting(1)
    second = Caller(pool)
    clock.until_waiting(2)
    held.release()
    first.failure(ZeroDivisionError)
    second.loan().release()
    assert_whole(pool, works)
    assert_ended(pool, works)


@pytest.mark.parametrize("in_caller", [False, True])
def test_a_checkout_from_inside_open_of_a_full_pool_is_a_mistake_and_no_wait_for_ever(in_caller):
    works = Works()
    pool = make(works, dial_in_caller=in_caller)
    seen = []

    def opening(_):
        works.opening = lambda _: None
        try:
            pool.try_connect(timeout=None)
        except BaseException as error:
            seen.append(error)
            raise

    works.opening = opening
    pool.configure(checkout_timeout=None)
    caller = Caller(pool, timeout=None)
    caller.join(5)
    assert isinstance(seen[0], UsageError)
    if caller.connection is not None:
        caller.connection.release()
    assert_whole(pool, works)
    assert_ended(pool, works)


def test_a_log_handler_may_use_the_pool(visitor):
    works, clock = Works(), TellingClock()
    pool = make(works, clock, max_size=2)
    logger = logging.getLogger("connpool")

    class Handler(logging.Handler):
        def emit(self, record):
            visitor()

    handler = Handler()
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    try:
        visitor.pool = pool

        def fail(_):
            raise ConnectionRefusedError("no")

        works.opening = fail
        for _ in range(2):
            with pytest.raises(ConnPoolError):
                pool.try_connect(timeout=2)
        works.opening = lambda _: None
        works.closing = fail
        pool.try_connect(timeout=5).terminate()
        works.until(lambda: any(not part.is_open for part in works.parts))  # the handler may have the first
        works.closing = lambda _: None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)
            pool.try_connect(timeout=5)  # and lost
            gc.collect()
            pool.sweep()
        assert_whole(pool, works)
    finally:
        visitor.pool = None
        logger.setLevel(before)
        logger.removeHandler(handler)
    assert_ended(pool, works)


@pytest.mark.skipif(not HAS_GIL, reason="without the GIL a few allocations begin no collection")
def test_a_finaliser_may_use_the_pool_wherever_it_runs(visitor):
    """Garbage with a finaliser is collected at every few allocations, thus in the middle of the pool."""

    class Garbage:
        def __init__(self):
            self.me = self

        def __del__(self):
            visitor()

    works = Works(prompt=True)
    pool = make(works, max_size=3)
    visitor.pool = pool
    before = gc.get_threshold()
    gc.set_threshold(3)
    try:
        for _ in range(300):
            Garbage()
            connection = pool.try_connect(timeout=5)
            Garbage()
            connection.release() if _ % 3 else connection.terminate()
    finally:
        gc.set_threshold(*before)
        visitor.pool = None
    gc.collect()
    assert visitor.calls > 10
    assert_whole(pool, works)
    assert_ended(pool, works)


def test_a_signal_handler_may_use_the_pool_even_while_the_lock_is_held(visitor):
    works = Works(prompt=True)
    pool = make(works, max_size=3)
    visitor.pool = pool
    before = signal.signal(signal.SIGUSR1, visitor)
    over = threading.Event()
    main = threading.main_thread().ident

    def shoot():
        while not over.is_set():
            signal.pthread_kill(main, signal.SIGUSR1)
            over.wait(0.0005)

    gun = threading.Thread(target=shoot)
    gun.start()
    try:
        until = time.monotonic() + 1.0
        i = 0
        while time.monotonic() < until:
            i += 1
            connection = pool.try_connect(timeout=5)
            connection.release() if i % 3 else connection.terminate()
            balanced(pool)
    finally:
        over.set()
        gun.join()
        signal.signal(signal.SIGUSR1, before)
        visitor.pool = None
    assert visitor.calls > 10
    assert_whole(pool, works)
    assert_ended(pool, works)


def test_a_signal_handler_that_finds_the_lock_held_by_its_own_thread_completes_or_raises():
    """The lock is taken by name: only so is it certain that the handler came while it was held."""
    works = Works(prompt=True)
    pool = make(works, max_size=2)
    pool.try_connect().release()
    visitor = Visitor()
    visitor.pool = pool
    lender = pool._lender
    done = []

    def visit():
        with lender._lock:
            visitor()
        done.append(True)

    together(visit, limit=10)
    assert done
    visitor.pool = None
    assert_whole(pool, works)
    assert_ended(pool, works)


@pytest.mark.parametrize("end", [Connection.release, Connection.terminate])
def test_a_loan_that_comes_back_for_good_while_the_lock_is_held_is_closed_and_not_called_lost(end):
    works = Works(prompt=True)
    pool = make(works, max_uses=1)
    conn = pool.try_connect()
    with pool._lender._lock:
        end(conn)
    assert pool.sweep() == 1
    assert balanced(pool).lost == 0
    assert works.n_open == 0
    assert_ended(pool, works)


def test_a_loan_that_comes_back_the_long_way_while_the_lock_is_held_is_kept():
    works = Works(prompt=True)
    pool = make(works)
    pool.listen(print, CheckedIn)
    conn = pool.try_connect()
    with pool._lender._lock:
        conn.release()
    assert (balanced(pool).idle, pool.sweep()) == (1, 0)
    with pool.try_connect() as conn:
        assert conn.uses == 1
    assert_whole(pool, works)
    assert_ended(pool, works)


@pytest.mark.parametrize("moment", ["searched", "found"])
def test_a_share_that_comes_back_while_another_is_looked_for_leaves_that_search_alone(monkeypatch, moment):
    """By a signal handler, say: what was found is not idle by the time that it is joined."""
    works = Works(prompt=True)
    pool = make(works, max_size=2, sharable=True, max_sharers=1)
    held = [pool.share(), pool.share()]
    pool.configure(max_sharers=None)
    where, name = {"searched": (sharing, "_suits"), "found": (shared, "pick")}[moment]
    step = getattr(where, name)

    def struck(*args, **kwargs):
        outcome = step(*args, **kwargs)
        for _ in range(len(held)):
            held.pop().release()
        return outcome

    monkeypatch.setattr(where, name, struck)
    joined = pool.share()
    with pool.try_connect() as alone:
        assert alone.raw is not joined.raw
    joined.release()
    assert balanced(pool).lost == 0
    assert_whole(pool, works)
    assert_ended(pool, works)


def test_a_lost_loan_takes_no_lock():
    """Its finaliser runs while another thread holds the lock, and does not wait for it."""
    works = Works(prompt=True)
    pool = make(works)
    held = [pool.try_connect()]
    locked, over = threading.Event(), threading.Event()

    def hold():
        with pool._lender._lock:
            locked.set()
            assert over.wait(10)

    holder = threading.Thread(target=hold)
    holder.start()
    locked.wait(10)
    try:
        began = time.monotonic()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)
            held.clear()
            gc.collect()
        assert time.monotonic() - began < 5
    finally:
        over.set()
        holder.join()
    assert pool.sweep() == 1
    assert balanced(pool).lost == 1
    assert_whole(pool, works)
    assert_ended(pool, works)


def test_a_lost_loan_is_found_by_the_next_who_finds_the_pool_full():
    works = Works(prompt=True)
    pool = make(works)
    held = [pool.try_connect()]
    with pytest.warns(ResourceWarning, match="not given back"):
        held.clear()
    pool.try_connect(timeout=5).release()
    assert works.dials == 2
    assert_ended(pool, works)


def test_who_holds_every_place_itself_is_refused_in_time():
    works = Works(prompt=True)
    pool = make(works)
    held = pool.try_connect()
    with pytest.raises(PoolExhaustedError):
        pool.try_connect(timeout=0)
    held.release()
    assert_ended(pool, works)
