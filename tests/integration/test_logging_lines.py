"""What the library writes down, at which level, under which name; and what it never writes."""

from __future__ import annotations

import gc
import logging
import re
import subprocess
import sys
import textwrap
import threading
import warnings

import pytest

import connpool
from connpool import CloseReason, ConnectionPool, ConnPoolError, SocketConnector
from connpool.testing import Answer, FakeClock, ScriptedServer
from tests.stress.stage import make_stage  # noqa: F401 - a fixture
from tests.stress.works import A, Works

SECRET = "open-sesame-4711"


@pytest.fixture
def log(caplog):
    caplog.set_level(logging.DEBUG, "connpool")
    return caplog


def lines(log, logger, level=logging.INFO):
    return [
        (record.levelname, record.getMessage())
        for record in log.records
        if record.name == logger and record.levelno >= level
    ]


def forget_a_loan(pool):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        pool.try_connect()
        gc.collect()
    return [str(warning.message) for warning in caught if warning.category is ResourceWarning]


# -- quiet ----------------------------------------------------------------------------------------


def test_a_pool_at_work_says_nothing(stage, log):
    s = stage(max_size=2)
    for _ in range(20):
        s.pool.try_connect().release()
    s.pool.try_connect().terminate()
    s.pool.clear()
    s.pool.sweep()
    s.pool.resize(max_size=1)
    s.pool.close()
    assert [record.getMessage() for record in log.records if record.levelno >= logging.INFO] == []


def test_all_lines_come_from_loggers_under_one_name(stage, log):
    s = stage(warn_after=1)
    s.pool.listen(lambda event: 1 / 0, connpool.PoolCleared)
    s.pool.clear()
    s.down.add(A)
    with pytest.raises(ConnPoolError):
        s.pool.try_connect()
    s.down.clear()
    s.pool.unblacklist(A)
    forget_a_loan(s.pool)
    with s.pool.try_connect():
        s.clock.advance(5)
        s.pool.sweep()
    names = {record.name for record in log.records}
    assert {"connpool.endpoint", "connpool.pool", "connpool.events"} <= names
    assert all(name == "connpool" or name.startswith("connpool.") for name in names)


def test_nothing_is_written_to_the_standard_streams_whatever_happens():
    """A program that has not set up logging finds nothing on its terminal."""
    program = """
        import gc, socket
        from connpool import ConnectionPool, ConnPoolError
        port = socket.socket()
        port.bind(("127.0.0.1", 0))
        def fail(event):
            raise ValueError("a bug of the handler's")
        pool = ConnectionPool("127.0.0.1:%d" % port.getsockname()[1], warn_after=0.01, listeners=[fail])
        for _ in range(3):
            try:
                pool.try_connect()
            except ConnPoolError:
                pass
        ours, theirs = socket.socketpair()
        pool.add_connection(ours)
        held = pool.try_connect()
        pool.sweep()
        del held
        gc.collect()
        pool.sweep()
        pool.pause(); pool.resume(); pool.clear(); pool.close()
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, timeout=30, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


@pytest.mark.parametrize("spool", ["MemorySpool(1)", "SQLiteSpool(sys.argv[1], 1)"])
def test_a_program_that_has_nothing_but_a_spool_hears_nothing_either(tmp_path, spool):
    program = f"""
        import sys
        from connpool import MemorySpool, SQLiteSpool
        spool = {spool}
        for _ in range(3):
            spool.put(["a"], b"1", bytes(16))
        assert spool.counts()["a"].dropped == 2
        spool.close()
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program), tmp_path / "spool"],
        capture_output=True,
        timeout=30,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_who_sets_logging_up_sees_the_lines():
    program = """
        import logging, socket
        logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s %(message)s")
        from connpool import ConnectionPool, ConnPoolError
        port = socket.socket()
        port.bind(("127.0.0.1", 0))
        with ConnectionPool("127.0.0.1:%d" % port.getsockname()[1]) as pool:
            try:
                pool.try_connect()
            except ConnPoolError:
                pass
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        capture_output=True,
        timeout=30,
        check=True,
        text=True,
    )
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert re.match(r"WARNING connpool\.endpoint .*127\.0\.0\.1:\d+.*refused", line, re.IGNORECASE), line


def test_importing_sets_no_level_and_lets_lines_through():
    program = """
        import logging
        import connpool
        for name in ("connpool", "connpool.pool", "connpool.endpoint", "connpool.events"):
            logger = logging.getLogger(name)
            assert logger.level == logging.NOTSET, name
            assert logger.propagate, name
            assert all(type(handler) is logging.NullHandler for handler in logger.handlers), name
        assert not logging.getLogger().handlers
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(program)], timeout=30, check=True)


# -- loans ----------------------------------------------------------------------------------------


def test_a_loan_held_long_is_logged_once_and_once_more_when_it_comes_back(stage, log):
    s = stage(warn_after=5)
    taken, done = threading.Event(), threading.Event()

    def hold_on_to_it():
        with s.pool.try_connect():
            taken.set()
            wait_right_here(done)

    thread = threading.Thread(target=hold_on_to_it, name="greedy")
    thread.start()
    assert taken.wait(10)
    s.clock.advance(6)
    s.pool.sweep()
    s.clock.advance(6)
    s.pool.sweep()
    ((level, line),) = lines(log, "connpool.pool")
    assert level == "WARNING"
    assert "greedy" in line
    assert "orders" in line
    assert re.search(r"\b6(\.0+)? ?s", line), line
    assert "wait_right_here" in line or "wait_right_here" in log.text, "where that thread is now"
    done.set()
    thread.join()
    s.pool.sweep()
    assert len(lines(log, "connpool.pool")) == 2
    level, line = lines(log, "connpool.pool")[1]
    assert level in ("INFO", "WARNING")
    assert re.search(r"\b12(\.0+)? ?s", line), line


def wait_right_here(event):
    assert event.wait(10)


def test_a_loan_that_comes_back_in_time_is_not_logged(stage, log):
    s = stage(warn_after=5)
    with s.pool.try_connect():
        s.clock.advance(4)
        s.pool.sweep()
    s.clock.advance(4)
    s.pool.sweep()
    assert lines(log, "connpool.pool") == []


def test_with_track_origin_the_whole_stack_that_took_a_lost_loan_is_logged(stage, log):
    s = stage(track_origin=True)

    def take_it_from_here():
        s.pool.try_connect()

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        take_it_from_here()
        gc.collect()
    s.pool.sweep()
    assert "take_it_from_here" in log.text
    assert "test_with_track_origin" in log.text


def test_a_close_that_fails_is_logged_and_harms_nobody(log):
    works = Works(prompt=True)

    def fail(part):
        raise RuntimeError("the door is stuck")

    works.closing = fail
    with ConnectionPool("a:1", connector=works, clock=FakeClock(), reap_interval=None) as pool:
        pool.try_connect().terminate()
        assert pool.stats().size == 0
    assert len([record for record in log.records if record.levelno >= logging.WARNING]) == 1
    assert "the door is stuck" in log.text


def test_a_reset_that_fails_is_one_line_and_one_that_says_no_is_none(log):
    def explode(raw):
        raise AttributeError("no such method")

    for reset in (explode, lambda raw: False):
        with ConnectionPool.of(object, reset=reset, name="orders") as pool:
            pool.try_connect().release()
            assert pool.stats().closed == {CloseReason.DIRTY: 1}
    (line,) = [record for record in log.records if record.levelno >= logging.WARNING]
    assert line.getMessage() == (
        "pool 'orders': resetting connection 1 failed: AttributeError('no such method')"
    )


# -- secrets --------------------------------------------------------------------------------------


def everything(log):
    """All that any formatter could make of the records."""
    formatter = logging.Formatter("%(name)s %(message)s")
    return "\n".join(formatter.format(record) + repr(record.args) for record in log.records)


def test_what_is_sent_attached_or_logged_in_with_is_never_logged(log):
    secret = SECRET

    def log_in(conn):
        conn.sendall(secret.encode(), timeout=5)
        assert conn.recv_exactly(2, timeout=5) == b"ok"

    with ScriptedServer(script=Answer(b"ok")) as server:
        connector = SocketConnector(handshake=log_in)
        with ConnectionPool(
            server.endpoint, connector=connector, warn_after=0.001, reap_interval=None, track_origin=True
        ) as pool:
            conn = pool.try_connect()
            conn.extra = {"password": secret}
            conn.sendall(secret.encode(), timeout=5)
            assert conn.recv_exactly(2, timeout=5) == b"ok"
            threading.Event().wait(0.01)  # held long, for once
            pool.sweep()
            conn.terminate()
            server.refuse()
            with pytest.raises(ConnPoolError):
                pool.try_connect()
        server.start()
    assert len(log.records) >= 3
    assert secret not in everything(log)


def test_what_a_pool_is_told_of_its_connector_is_never_logged_nor_told(log):
    secret = SECRET
    events = []

    class Vault:
        def __init__(self, password):
            self.password = password

        def __repr__(self):
            return f"Vault({self.password})"

        def open(self, endpoint, timeout, cancel):
            raise ConnectionRefusedError("nobody there")

    pool = ConnectionPool("a:1", connector=Vault(secret), reap_interval=None, listeners=[events.append])
    with pool, pytest.raises(ConnPoolError) as caught:
        pool.try_connect()
    assert secret not in everything(log)
    assert secret not in str(caught.value)
    assert secret not in repr(pool)
    assert secret not in "".join(map(repr, events))


def test_a_lost_loan_warns_at_once_and_is_logged_at_the_next_turn(stage, log):
    s = stage()
    (warning,) = forget_a_loan(s.pool)
    assert "orders" in warning
    assert threading.current_thread().name in warning
    assert lines(log, "connpool.pool") == []
    s.pool.sweep()
    ((level, line),) = lines(log, "connpool.pool")
    assert level == "WARNING"
    assert "orders" in line
    assert threading.current_thread().name in line
    s.pool.sweep()
    assert len(lines(log, "connpool.pool")) == 1
