"""A thousand lives leave nothing behind: no descriptor, no thread, no memory."""

from __future__ import annotations

from tests.helpers.scripts import run_program

BEGIN = """
import gc, logging, os, socket, sys, threading, tracemalloc
from connpool import ConnectionPool, ConnPoolError
from connpool.testing import FakeClock

logging.getLogger("connpool").addHandler(logging.NullHandler())

def until(predicate):
    for _ in range(20_000):
        if predicate():
            return
        threading.Event().wait(0.0003)
    raise SystemExit("it never came to that")

class Pairs:
    '''Opens one half of a pair; the other half is the server, and never answers.'''
    prompt = True
    def __init__(self):
        self.others, self.refuses = {}, False
    def open(self, endpoint, timeout, cancel):
        if self.refuses:
            raise ConnectionRefusedError("down")
        ours, theirs = socket.socketpair()
        self.others[ours] = theirs
        return ours
    def close(self, raw):
        raw.close()
        self.others.pop(raw).close()

def measure(n_before, n, one, rest=lambda: None):
    '''Do *one* so often, and print what has grown between the first measurement and the last.'''
    def state():
        rest()
        gc.collect()
        return (
            tracemalloc.get_traced_memory()[0],
            len(os.listdir("/proc/self/fd")),
            threading.active_count(),
        )
    for _ in range(n_before):
        one()
    before = state()
    for _ in range(n):
        one()
    after = state()
    grown = after[0] / before[0] - 1
    print(after[1] - before[1], after[2] - before[2], "steady" if grown < 0.05 else f"grown by {grown:.1%}")
"""

POOLS = """
events = []
def one():
    clock = FakeClock()
    pairs = Pairs()
    settings = dict(idle_timeout=5, max_lifetime=50, min_idle=1, keepalive_interval=2, revive=True,
                    track_origin=True, warn_after=3, max_size=4)
    with ConnectionPool("a:1 && b:1", connector=pairs, clock=clock, name="same", **settings) as pool:
        pool.listen(events.append)
        pool.sweep()
        until(lambda: pool.stats().idle)
        with pool.try_connect(), pool.try_connect() as conn:
            conn.sendall(b"x")
            clock.advance(4)
            pool.sweep()
        try:
            with pool.try_connect():
                raise KeyError
        except KeyError:
            pass
        clock.advance(60)
        pool.sweep()
        until(lambda: pool.stats().opening == pool.stats().closing == 0)
        pairs.refuses = True
        pool.clear()
        try:
            pool.try_connect(timeout=0).release()
        except ConnPoolError:
            pass
        pool.sweep()
        until(lambda: pool.stats().opening == 0)
    until(lambda: pool.stats().size == 0)
    assert not pairs.others
    events.clear()
measure(150, 1000, one)
"""

ONE_POOL = """
clock, pairs = FakeClock(), Pairs()
settings = dict(idle_timeout=5, max_lifetime=9, min_idle=1, keepalive_interval=2, revive="force", max_size=3)
pool = ConnectionPool("a:1 && b:1", connector=pairs, clock=clock, max_uses=5, blacklist_initial=1, **settings)
heard = [0]
def hear(event):
    heard[0] += 1
def one():
    stop = pool.listen(hear)
    pairs.refuses = False
    clock.advance(3)
    pool.sweep()
    until(lambda: pool.stats().opening == 0)
    with pool.try_connect(timeout=0) as conn:
        conn.sendall(b"x")
    pool.try_connect(timeout=0).terminate(OSError("gone"))
    clock.advance(10)
    pool.sweep()
    until(lambda: pool.stats().opening == 0)
    pairs.refuses = True
    pool.clear()
    pool.pause()
    pool.resume()
    try:
        pool.try_connect(timeout=0).release()
    except ConnPoolError:
        pass
    clock.advance(100)
    stop()
def rest():
    pairs.refuses = False
    pool.unblacklist("a:1"), pool.unblacklist("b:1")
    pool.clear()
    pool.sweep()
    until(lambda: pool.stats().opening == 0)
    while pool.take() is not None:
        pass
    for other in pairs.others.values():
        other.close()
    for mine in list(pairs.others):
        mine.close()
    pairs.others.clear()
measure(150, 1000, one, rest)
"""

REAPED = """
forgotten = [0]
def one():
    pairs = Pairs()
    pool = ConnectionPool("a:1", connector=pairs, min_idle=1, keepalive_interval=60, name="same", max_size=3)
    with pool.try_connect():
        pool.try_connect().release()
    if forgotten[0] % 2:
        pool.close()
    forgotten[0] += 1
    if forgotten[0] % 50 == 0:
        del pool
        gc.collect()
def rest():
    gc.collect()
    until(lambda: not [t for t in threading.enumerate() if t is not threading.main_thread()])
measure(300, 1000, one, rest)
"""

STEADY = """
pairs = Pairs()
pool = ConnectionPool("a:1", connector=pairs, idle_timeout=0.001, reap_interval=0.001, min_idle=0, max_size=8)
other = ConnectionPool("b:1", connector=pairs)
other.try_connect().release()
def one():
    loans = [pool.try_connect() for _ in range(4)]
    for loan in loans:
        loan.release()
    until(lambda: pool.stats().size == 0)
until(lambda: threading.active_count() == 2)
measure(100, 500, one)
"""


def grown(text: str) -> str:
    ran = run_program(BEGIN + text, flags=("-X", "tracemalloc"))
    assert (ran.status, ran.err) == (0, "")
    return ran.out


def test_a_thousand_pools_that_open_use_expire_fail_and_close_leave_nothing() -> None:
    assert grown(POOLS) == "0 0 steady\n"


def test_a_thousand_lives_of_one_pool_leave_nothing() -> None:
    assert grown(ONE_POOL) == "0 0 steady\n"


def test_a_thousand_pools_closed_or_forgotten_under_the_reaper_leave_nothing() -> None:
    assert grown(REAPED) == "0 0 steady\n"


def test_what_the_reaper_does_all_the_time_leaves_nothing() -> None:
    assert grown(STEADY) == "0 0 steady\n"
