"""A thousand lives leave nothing behind: no descriptor, no thread, no memory."""

from __future__ import annotations

import pytest

from tests.helpers.scripts import run_program

BEGIN = """
import gc, linecache, logging, os, socket, sys, threading, tracemalloc
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

def memory():
    linecache.clearcache()  # lines of whatever file a thread stood in when it was described
    gc.collect()
    return tracemalloc.get_traced_memory()[0] if tracemalloc.is_tracing() else sys.getallocatedblocks()

def state(rest):
    rest()
    return memory(), len(os.listdir("/proc/self/fd")), threading.active_count()

def measure(one, rest=lambda: None):
    '''Do *one* many times, and print what has grown since it had been done a few times.

    What leaks grows each time; what a cache or a thread's timing has left does so once.
    '''
    n = int(sys.argv[1])
    for _ in range(max(30, n // 8)):
        one()
    for _ in range(3):
        before = state(rest)
        for _ in range(n):
            one()
        after = state(rest)
        more, descriptors, threads = (now - then for now, then in zip(after, before))
        is_steady = more < 0.05 * before[0] and more / n < (150 if tracemalloc.is_tracing() else 0.5)
        if is_steady:
            break
    print(descriptors, threads, "steady" if is_steady else f"{more / n:.1f} more each time")
"""

POOLS = """
events = []
def one():
    clock = FakeClock()
    pairs = Pairs()
    settings = dict(idle_timeout=5, max_lifetime=50, max_size=4)
    with ConnectionPool("a:1 && b:1", connector=pairs, clock=clock, name="same", **settings) as pool:
        pool.listen(events.append)
        with pool.try_connect() as conn:  # open and use
            conn.sendall(b"x")
        clock.advance(60)  # expire
        pool.sweep()
        assert not pairs.others
        pairs.refuses = True  # fail
        try:
            pool.try_connect().release()
        except ConnPoolError:
            pass
    assert pool.stats().size == 0  # close
    events.clear()
measure(one)
"""

ONE_POOL = """
clock, pairs = FakeClock(), Pairs()
settings = dict(idle_timeout=5, max_lifetime=9, min_idle=1, keepalive_interval=2, revive="force", max_size=3,
                track_origin=True, warn_after=4)
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
        clock.advance(5)
        pool.sweep()
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
measure(one, rest)
"""

REAPED = """
forgotten = [0]
def one():
    pairs = Pairs()
    settings = dict(keepalive_interval=60, dial_in_caller=True)
    pool = ConnectionPool("a:1", connector=pairs, name="same", **settings)
    with pool.try_connect():
        pool.try_connect().release()
    if forgotten[0] % 2:
        pool.close()
    forgotten[0] += 1
    if forgotten[0] % 50 == 0:
        del pool
        gc.collect()
def rest():  # a turn of upkeep may have a pool in hand in the moment of the first collection
    until(lambda: gc.collect() >= 0 and threading.active_count() == 1)
measure(one, rest)
"""

BESIDE = REAPED.replace(
    "measure(one, rest)",
    """
keeper = ConnectionPool("b:1", connector=Pairs())  # its reaper has no reason to end
keeper.try_connect().release()
measure(one, gc.collect)
""",
)

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
measure(one, lambda: until(lambda: threading.active_count() == 2))  # ours, and the reaper; dials have ended
"""


PROGRAMS = {
    "pools": (POOLS, 1_000),
    "reaped": (REAPED, 1_000),
    "beside another pool": (BESIDE, 1_000),
    "one pool": (ONE_POOL, 200),
    "steady": (STEADY, 150),
}


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_thousand_lives_leave_nothing(program: str) -> None:
    text, times = PROGRAMS[program]
    ran = run_program(BEGIN + text, times, flags=())
    assert (ran.status, ran.err, ran.out) == (0, "", "0 0 steady\n")


@pytest.mark.parametrize("program", ["pools", "reaped"])
def test_nor_do_they_leave_larger_objects(program: str) -> None:
    """Traced, which takes three times as long."""
    ran = run_program(BEGIN + PROGRAMS[program][0], 200, flags=("-X", "tracemalloc"))
    assert (ran.status, ran.err, ran.out) == (0, "", "0 0 steady\n")
