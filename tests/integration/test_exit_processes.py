"""Whole programs of several processes: forked, spawned, and ended in the ordinary way."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from connpool.pool.connection import HAS_GIL
from connpool.testing import ScriptedServer
from tests.helpers.scripts import run_file, run_program

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")

QUIET = ("-X", "dev", "-W", "ignore:This process:DeprecationWarning")  # threads and fork: it is the point

GOODBYES = """
import os, socket, sys, threading
from connpool import ConnectionPool

class Driver:
    def __init__(self):
        self.sock = socket.create_connection(("127.0.0.1", int(sys.argv[1])), timeout=5)
        self.fd = self.sock.fileno()
    def close(self):
        if self.sock is not None:
            self.sock.sendall(b"BYE")
            self.sock.close()
            self.sock = None
    def __del__(self):
        try:
            self.close()
        except OSError:
            pass
    HAS_FILENO

pool = ConnectionPool.of(Driver, close=Driver.close)
loan, other = pool.try_connect(), pool.try_connect()
other.release()
pid = os.fork()
if pid == 0:
    ENDING
assert os.waitpid(pid, 0)[1] == 0
loan.raw.sock.sendall(b"ALIVE")
with pool.try_connect() as again:
    again.raw.sock.sendall(b"ALIVE")
os._exit(0)
"""


@pytest.mark.parametrize("has_fileno", [True, False], ids=["with fileno", "without"])
@pytest.mark.parametrize(
    "ending",
    ["sys.exit()", "del loan, other, pool; sys.exit()", "pool.close(); sys.exit()", "os._exit(0)"],
)
def test_a_child_that_ends_in_the_ordinary_way_says_no_goodbye_either(ending: str, has_fileno: bool) -> None:
    if ending.startswith("del") and not HAS_GIL:
        pytest.skip("without the GIL the interpreter takes even that apart which nobody may touch")
    with ScriptedServer(script=[]) as server:
        fileno = "def fileno(self): return self.fd" if has_fileno else ""
        text = GOODBYES.replace("HAS_FILENO", fileno).replace("ENDING", ending)
        ran = run_program(text, server.port, flags=QUIET)
        assert (ran.status, ran.out, ran.err) == (0, "", "")
        server.until_accepts(2)  # the program may be over before the server has seen all of it
        server.until_open(0)
        assert server.received == [b"ALIVE", b"ALIVE"]


def test_a_forked_child_that_ends_with_loans_and_pools_unclosed_prints_nothing() -> None:
    text = """
        import os, sys
        from connpool import ConnectionPool
        often = dict(reap_interval=0.01, keepalive_interval=0.02)
        pool = ConnectionPool(f"127.0.0.1:{sys.argv[1]}", min_idle=2, **often)
        idle, lent = pool.try_connect(), pool.try_connect()
        idle.release()
        pid = os.fork()
        if pid == 0:
            mine, more = pool.try_connect(), pool.try_connect()
            more.release()
            sys.exit(7)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
        for conn in (lent, pool.try_connect()):
            conn.sendall(b"x")
            assert conn.recv_exactly(1) == b"x"
            conn.release()
        """
    with ScriptedServer() as server:
        ran = run_program(text, server.port, flags=QUIET)
        assert (ran.status, ran.out, ran.err) == (0, "", "")
        server.until_open(0)


WORKERS = """
import multiprocessing, os, sys
from connpool import ConnectionPool

pool = ConnectionPool(f"127.0.0.1:{sys.argv[1]}", max_size=2, min_idle=1, reap_interval=0.02)

def work(n):
    text = b"%06d" % n
    with pool.try_connect(timeout=10) as conn:
        conn.sendall(text)
        assert conn.recv_exactly(6) == text
        return os.getpid(), conn.socket.getsockname()[1]

if __name__ == "__main__":
    used = {work(0)}
    context = multiprocessing.get_context(sys.argv[2])
    with context.Pool(3) as workers:
        used |= set(workers.map(work, range(30), chunksize=1))
        workers.close()
        workers.join()
    used.add(work(1))
    owners = {}
    for pid, port in used:
        owners.setdefault(port, set()).add(pid)
    assert all(len(pids) == 1 for pids in owners.values()), owners
    assert os.getpid() in {pid for pid, _ in used}
    print("processes", min(2, len({pid for pid, _ in used})))
"""


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_workers_of_multiprocessing_each_have_connections_of_their_own(method: str, tmp_path: Path) -> None:
    program = tmp_path / "workers.py"
    program.write_text(WORKERS)
    with ScriptedServer() as server:
        ran = run_file(program, server.port, method, flags=QUIET)
        assert (ran.status, ran.out, ran.err) == (0, "processes 2\n", "")
        server.until_open(0)
