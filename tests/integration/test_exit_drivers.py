"""A forked child that ends, however it does, is not heard of on its parent's connections: real drivers."""

from __future__ import annotations

import os

import pytest

from connpool.testing import Answer, ScriptedServer
from tests.helpers.postgres_like import PostgresLike
from tests.helpers.scripts import run_program
from tests.helpers.switchboard import until

CHILD = """
import gc, os, sys
from connpool import ConnectionPool
port, how = int(sys.argv[1]), sys.argv[2]
{opening}
pool = ConnectionPool.of(open_one)
loan = pool.try_connect()
pool.try_connect().release()
talk(loan.raw)
pid = os.fork()
if pid == 0:
    if how == "drops all":
        del loan, pool
        gc.collect()
    elif how == "closes":
        pool.close(timeout=1)
        pool.shutdown()
    sys.exit(0)  # with all finalisers that the interpreter still runs
os.waitpid(pid, 0)
talk(loan.raw)
with pool.try_connect() as other:
    talk(other.raw)
print("still answered")
loan.release()
pool.close()
"""

PSYCOPG = """
import psycopg
def open_one():
    plain = dict(sslmode="disable", gssencmode="disable")
    return psycopg.connect(host="127.0.0.1", port=port, user="u", dbname="d", **plain)
def talk(conn):
    assert conn.pgconn.exec_(b"").status == psycopg.pq.ExecStatus.EMPTY_QUERY
"""

REDIS = """
import redis
def open_one():
    made = redis.Connection(host="127.0.0.1", port=port, protocol=2, lib_name=None, lib_version=None,
                            driver_info=None)
    made.connect()
    return made
def talk(conn):
    conn.send_command("PING")
    assert conn.read_response() == b"PONG"
"""

ENDS = ["leaves all", "drops all", "closes"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.parametrize("how", ENDS)
def test_a_child_says_no_goodbye_to_postgresql(how: str) -> None:
    pytest.importorskip("psycopg", reason="psycopg is not installed")
    with PostgresLike() as server:
        ran = run_program(CHILD.format(opening=PSYCOPG), server.port, how, flags=("-W", "ignore"))
        assert (ran.err, ran.out, ran.status) == ("", "still answered\n", 0)
        until(lambda: server.heard.count("X") == 2, "the parent's own goodbyes")
        assert "".join(server.heard) in ("QQQXX",)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.parametrize("how", ENDS)
def test_a_child_does_not_hang_up_on_redis(how: str) -> None:
    pytest.importorskip("redis", reason="redis is not installed")
    pong = Answer(lambda request: b"+PONG\r\n" if request == b"PING\r\n" else b"", delimiter=b"\r\n")
    with ScriptedServer(script=pong) as server:
        ran = run_program(CHILD.format(opening=REDIS), server.port, how, flags=("-W", "ignore"))
        assert (ran.err, ran.out, ran.status) == ("", "still answered\n", 0)
