"""Importing costs little, and an interpreter that ends is neither held up nor made to complain."""

from __future__ import annotations

import pytest

from connpool.testing import ScriptedServer
from tests.helpers.scripts import run_program

SOON = 10.0  # seconds; whatever hangs in these programs hangs for sixty

BEGIN = """
import atexit, gc, sys, threading
from connpool import ConnectionPool, ConnectionClosed
port = sys.argv[1]
route = f"127.0.0.1:{port}"
fast = dict(reap_interval=0.01, keepalive_interval=0.02, max_lifetime=0.5, warn_after=60)
def pause(seconds):
    threading.Event().wait(seconds)
def until(predicate):
    for _ in range(1000):
        if predicate():
            return
        pause(0.01)
    raise SystemExit("it never came to that")
"""

PROGRAMS = {
    "unclosed pools with idle connections and the reaper at work": """
        pools = [ConnectionPool(route, min_idle=2, **fast) for _ in range(3)]
        until(lambda: all(pool.stats().idle == 2 for pool in pools))
        pause(0.1)
        """,
    "loans out": """
        pool = ConnectionPool(route, **fast)
        loan, other = pool.try_connect(), pool.try_connect()
        knot = [pool.try_connect()]
        knot.append(knot)
        """,
    "loans out of a local pool": """
        def main():
            pool = ConnectionPool(route, **fast)
            keep.append(pool.try_connect())
            pool.try_connect().release()
        keep = []
        main()
        """,
    "daemon threads in the midst of their work": """
        pool = ConnectionPool(route, max_size=3, **fast)
        def work():
            while True:
                with pool.try_connect() as conn:
                    conn.sendall(b"x")
                    conn.recv_exactly(1)
                pool.try_connect().terminate()
        for _ in range(6):
            threading.Thread(target=work, daemon=True).start()
        until(lambda: pool.stats().checkouts > 100)
        """,
    "daemon threads that wait for a loan": """
        pool = ConnectionPool(route, max_size=1, **fast)
        loan = pool.try_connect()
        for _ in range(4):
            threading.Thread(target=lambda: pool.try_connect(timeout=60), daemon=True).start()
        until(lambda: pool.stats().waiting == 4)
        """,
    "a daemon thread that reads from its loan": """
        pool = ConnectionPool(route, **fast)
        def read():
            with pool.try_connect() as conn:
                conn.recv(1, timeout=60)
        threading.Thread(target=read, daemon=True).start()
        until(lambda: pool.stats().in_use == 1)
        """,
    "a dial that hangs and heeds nothing": """
        dialling = threading.Event()
        def hang():
            dialling.set()
            pause(60)
        pools = [ConnectionPool.of(hang, min_idle=1, **fast), ConnectionPool.of(hang, connect_timeout=60)]
        threading.Thread(target=lambda: pools[1].try_connect(timeout=60), daemon=True).start()
        until(lambda: all(pool.stats().opening for pool in pools))
        """,
    "a name that is looked up for ever": """
        import socket
        asked = threading.Event()
        def hang(*_, **__):
            asked.set()
            pause(60)
        socket.getaddrinfo = hang
        pool = ConnectionPool("db.example:1")
        threading.Thread(target=pool.try_connect, daemon=True).start()
        until(asked.is_set)
        """,
    "a close that hangs": """
        pool = ConnectionPool.of(object, close=lambda raw: pause(60), idle_timeout=0.02, **fast)
        pool.try_connect().release()
        until(lambda: pool.stats().closing)
        """,
    "three hundred idle ones whose close would hang": """
        pools = [ConnectionPool.of(object, close=lambda raw: pause(60)) for _ in range(300)]
        for pool in pools:
            pool.try_connect().release()
        """,
    "a daemon thread that was stopped with a lock of the pool": """
        pool = ConnectionPool(route)
        pool.try_connect().terminate()
        def stop():
            with pool._lender._lock:
                has_it.set()
                pause(60)
        has_it = threading.Event()
        threading.Thread(target=stop, daemon=True).start()
        until(has_it.is_set)
        """,
    "a pool that cannot be closed, and another": """
        pool, broken = ConnectionPool(route), ConnectionPool(route)
        pool.try_connect().release()
        broken._close_at_exit = lambda until: {}["no such key"]
        """,
    "a validation that hangs": """
        asked = threading.Event()
        def look(raw):
            asked.set()
            pause(60)
        pool = ConnectionPool.of(object, is_usable=look, **fast)
        pool.try_connect().release()
        until(asked.is_set)
        """,
    "a listener that hangs in a turn": """
        asked = threading.Event()
        def hear(event):
            asked.set()
            pause(60)
        pool = ConnectionPool.of(object, idle_timeout=0.02, **fast)
        pool.try_connect().release()
        pool.listen(hear, ConnectionClosed)
        until(asked.is_set)
        """,
    "two hundred pools": """
        pools = [ConnectionPool.of(object, name=str(n)) for n in range(200)]
        for pool in pools:
            pool.try_connect().release()
        """,
    "call pools, one of them closed": """
        from connpool import CallPool
        class Channel:
            resource, methods = "echo", ["say"]
            def open(self):
                pass
            def call(self, method, payload):
                return payload
            def close(self):
                pass
        pool, closed = CallPool(), CallPool()
        for each in pool, closed:
            each.init(Channel())
            each.call("echo", "say", 1)
        closed.close()
        """,
    "a thread that outlives the main one": """
        pool = ConnectionPool(route, max_size=2, **fast)
        def work():
            pause(0.2)
            for _ in range(5):
                with pool.try_connect() as conn:
                    conn.sendall(b"x")
                    conn.recv_exactly(1)
                pool.try_connect().terminate()
            print("still served")
        threading.Thread(target=work).start()
        """,
    "a last request at exit": """
        def last():
            for _ in range(3):
                with pool.try_connect(timeout=5) as conn:
                    conn.sendall(b"bye")
                    print(conn.recv_exactly(3).decode())
                pool.try_connect(timeout=5).terminate()
            pool.close(timeout=1)
        atexit.register(last)
        pool = ConnectionPool(route, max_size=2, **fast)
        """,
    "a first pool at exit": """
        def last():
            with ConnectionPool(route, min_idle=1, **fast) as pool, pool.try_connect(timeout=5) as conn:
                conn.sendall(b"bye")
                print(conn.recv_exactly(3).decode())
        atexit.register(last)
        """,
}
SAYS = {
    "a thread that outlives the main one": "still served\n",
    "a last request at exit": "bye\n" * 3,
    "a first pool at exit": "bye\n",
}


@pytest.mark.parametrize("program", PROGRAMS)
def test_the_interpreter_ends_at_once_and_in_silence_with(program: str) -> None:
    with ScriptedServer() as server:
        ran = run_program(BEGIN + dedented(PROGRAMS[program]), server.port)
        assert ran.err == ""
        assert (ran.status, ran.out) == (0, SAYS.get(program, ""))
        assert ran.seconds < SOON
        server.until_open(0)


def dedented(text: str) -> str:
    return "\n".join(line[8:] for line in text.splitlines())


@pytest.mark.parametrize("flags", [(), ("-W", "error"), ("-O",)], ids=str)
def test_so_it_does_without_the_development_mode(flags: tuple[str, ...]) -> None:
    with ScriptedServer() as server:
        text = BEGIN + "".join(
            dedented(PROGRAMS[name]).replace("pool =", f"pool_{n} = pool =")
            for n, name in enumerate(["loans out", "loans out of a local pool"])
        )
        ran = run_program(text, server.port, flags=flags)
        assert (ran.status, ran.out, ran.err) == (0, "", "")


def test_an_error_of_the_program_is_all_it_prints() -> None:
    with ScriptedServer() as server:
        text = BEGIN + "pool = ConnectionPool(route, min_idle=1, **fast)\nloan = pool.try_connect()\n1 / 0"
        ran = run_program(text, server.port)
        assert ran.status == 1
        assert ran.err.count("Traceback") == 1
        assert ran.err.endswith("ZeroDivisionError: division by zero\n")


def test_a_pool_that_was_closed_leaves_an_interpreter_without_threads() -> None:
    text = """
        pool = ConnectionPool.of(object, min_idle=2, **fast)
        until(lambda: pool.stats().idle == 2)
        names = {thread.name for thread in threading.enumerate()}
        assert "connpool-reaper" in names, names
        pool.close()
        until(lambda: threading.active_count() == 1)
        """
    ran = run_program(BEGIN + dedented(text), 1)
    assert (ran.status, ran.err) == (0, "")


# -- import -----------------------------------------------------------------------------------------


def test_importing_starts_no_thread_and_brings_in_little() -> None:
    text = """
        import sys, threading, time
        import attrs, logging, ssl
        before, began = set(sys.modules), time.perf_counter()
        import connpool
        print(threading.active_count(), len(set(sys.modules) - before), time.perf_counter() - began)
        heavy = {"asyncio", "sqlite3", "multiprocessing", "concurrent.futures", "unittest", "argparse",
                 "connpool.testing", "connpool.cli", "http", "email", "pytest"}
        print(sorted(heavy & (set(sys.modules) - before)))
        """
    ran = run_program(text, flags=())
    assert ran.err == ""
    counts, heavy = ran.out.splitlines()
    n_threads, n_modules, seconds = counts.split()
    assert n_threads == "1"
    assert heavy == "[]"
    assert int(n_modules) < 120
    assert float(seconds) < 3


def test_constructing_pools_starts_no_thread_and_opens_nothing() -> None:
    text = """
        import os, threading
        import connpool
        before = os.listdir("/proc/self/fd")
        pools = [connpool.ConnectionPool("127.0.0.1:9"), connpool.ConnectionPool.of(object)]
        print(threading.active_count(), len(os.listdir("/proc/self/fd")) - len(before))
        """
    ran = run_program(text)
    assert (ran.out, ran.err) == ("1 0\n", "")
