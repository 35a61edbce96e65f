"""Reads of a plain socket that nobody else has: the system waits, and nobody notices but the clock."""

from __future__ import annotations

import contextlib
import math
import os
import select
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from itertools import count
from typing import Any

import pytest

from connpool import Connection, ConnectionPool
from connpool.testing import Answer, Close, Echo, Pause, Reset, ScriptedServer, Send, Silence, StartTls
from connpool.wire.io import Stream
from tests.helpers.certificates import Certificates
from tests.helpers.interrupts import Strike, codes_of, needs_monitoring
from tests.helpers.reads import apart, ask, count_polls, count_tellings, every_read, limits_of
from tests.helpers.scripts import running_program
from tests.helpers.wire import taking


@pytest.fixture
def echo() -> Iterator[ScriptedServer]:
    with ScriptedServer(script=Echo()) as server:
        yield server


def limit_of(raw: socket.socket) -> float:
    """Seconds after which the system ends a read of *raw*; 0: it never does."""
    return limits_of(raw)[0]


@every_read
@pytest.mark.parametrize("timeout", [5, 0.5, None])
def test_answers_are_read_without_a_look_before(
    read: Callable[[Connection, float | None], bytes],
    timeout: float | None,
    echo: ScriptedServer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def turns() -> list[float | None]:
        with ConnectionPool(echo.endpoint) as pool, pool.try_connect(timeout=5) as conn:
            waits = count_polls(monkeypatch)
            for _ in range(20):
                conn.sendall(b"ping\n", timeout)
                assert read(conn, timeout) == b"ping\n"
            return waits

    assert len(apart(turns)) < 10  # an answer may be late now and then


def test_the_system_waits_briefly_whatever_the_timeout_is(echo: ScriptedServer) -> None:
    def limits() -> list[float]:
        found = []
        with ConnectionPool(echo.endpoint) as pool, pool.try_connect(timeout=5) as conn:
            raw = conn._record.raw
            for timeout in (5, 0.5, None, 1e300, 4):
                ask(conn, timeout)
                found.append(limit_of(raw))
        return found

    brief, short, without, long, last = apart(limits)
    assert 0 < brief < 0.02
    assert [short, without, long, last] == [brief, 0, brief, brief]


def test_the_system_is_told_once(echo: ScriptedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    def turns() -> int:
        with ConnectionPool(echo.endpoint) as pool:
            for _ in range(20):
                with pool.try_connect(timeout=5) as conn:
                    ask(conn)
        return len(told)

    told = count_tellings(monkeypatch)
    assert apart(turns) == 1


@every_read
@pytest.mark.parametrize("timeout", [0.03, 0.3, 1.2])
def test_silence_ends_a_read_in_time(
    read: Callable[[Connection, float | None], bytes], timeout: float
) -> None:
    def wait() -> None:
        with ConnectionPool(server.endpoint) as pool:
            conn = pool.try_connect(timeout=5)
            with taking(timeout, timeout + 0.3), pytest.raises(TimeoutError, match=f"{timeout:g} s passed"):
                read(conn, timeout)
            conn.release()

    with ScriptedServer(script=Silence()) as server:
        apart(wait)


def test_a_short_timeout_holds_after_a_long_one_and_after_none(echo: ScriptedServer) -> None:
    def wait() -> None:
        with ConnectionPool(echo.endpoint) as pool:
            for before in (60, None):
                conn = pool.try_connect(timeout=5)
                ask(conn, before)
                with taking(0.2, 1), pytest.raises(TimeoutError):
                    conn.recv(1, timeout=0.2)
                conn.release()

    apart(wait)


def test_a_long_timeout_holds_after_a_short_one(echo: ScriptedServer) -> None:
    def wait() -> None:
        with ConnectionPool(server.endpoint) as pool, pool.try_connect(timeout=5) as conn:
            assert conn.recv_exactly(1, timeout=0.2) == b"a"
            assert conn.recv_exactly(1, timeout=5) == b"b"  # comes after 0.5 s
            assert conn.recv_exactly(1, timeout=None) == b"c"

    with ScriptedServer(script=[Send(b"a"), Pause(0.5), Send(b"b"), Pause(0.5), Send(b"c")]) as server:
        apart(wait)


@pytest.mark.parametrize("timeout", [0, -1, math.nan, 1e-9])
def test_odd_timeouts_mean_what_they_do_elsewhere(timeout: float, echo: ScriptedServer) -> None:
    def wait() -> float:
        with ConnectionPool(echo.endpoint) as pool, pool.try_connect(timeout=5) as conn:
            raw = conn._record.raw
            conn.sendall(b"ping", timeout=5)
            assert select.select([raw], [], [], 5)[0]
            assert conn.recv_exactly(4, timeout=timeout) == b"ping"
            return limit_of(raw)

    assert apart(wait) == 0


def test_on_the_main_thread_signals_do_not_make_a_read_last(echo: ScriptedServer) -> None:
    before = signal.signal(signal.SIGALRM, lambda *_: None)
    signal.setitimer(signal.ITIMER_REAL, 0.05, 0.05)
    try:
        with ConnectionPool(echo.endpoint) as pool:
            conn = pool.try_connect(timeout=5)
            with taking(0.4, 2), pytest.raises(TimeoutError):
                conn.recv(1, timeout=0.4)
            conn.release()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


STOPPED = """
    import threading, time
    from connpool import ConnectionPool
    from connpool.testing import ScriptedServer, Silence

    def listen():
        began = time.monotonic()
        print("go", flush=True)
        try:
            conn.recv(1, timeout=1)
        except TimeoutError:
            print(time.monotonic() - began)

    with ScriptedServer(script=Silence()) as server, ConnectionPool(server.endpoint) as pool:
        conn = pool.try_connect(timeout=5)
        thread = threading.Thread(target=listen)
        thread.start()
        thread.join()
        conn.release()
"""


def test_who_stops_the_process_time_and_again_does_not_make_a_read_last() -> None:
    with running_program(STOPPED) as program:
        assert program.stdout is not None
        program.stdout.readline()
        for _ in range(60):  # as a profiler that looks at the threads does
            program.send_signal(signal.SIGSTOP)
            program.send_signal(signal.SIGCONT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                program.wait(0.05)
        assert 1 <= float(program.stdout.read()) < 2


@needs_monitoring
@pytest.mark.parametrize("before", [5, None])
def test_an_interrupt_as_the_system_is_told_leaves_nobody_a_limit(
    before: float | None, echo: ScriptedServer
) -> None:
    def interrupt_at(n: int) -> bool:
        with ConnectionPool(echo.endpoint) as pool:
            conn = pool.try_connect(timeout=5)
            ask(conn, before)
            conn.sendall(b"ping")
            with Strike(n, codes_of(Stream._tell_system)) as strike:
                conn.recv(4, timeout=5 if before is None else None)
            if strike.where is not None:
                with taking(0.2, 1), pytest.raises(TimeoutError):
                    conn.recv_exactly(5, timeout=0.2)
                assert limit_of(conn.socket) == 0
            conn.terminate()
            return strike.where is not None

    def interrupt_everywhere() -> int:
        return next(n for n in count(1) if not interrupt_at(n))

    assert apart(interrupt_everywhere) > 10


def test_who_reads_from_the_descriptor_meets_no_limit() -> None:
    def take() -> bytes:
        with ConnectionPool(server.endpoint) as pool, pool.try_connect(timeout=5) as conn:
            assert conn.recv_exactly(1, timeout=5) == b"a"
            first = os.read(conn.fileno(), 1)
            return first + conn.recv_exactly(1, timeout=5) + os.read(conn.fileno(), 1)

    script = [Send(b"a"), Pause(0.3), Send(b"b"), Pause(0.3), Send(b"c"), Pause(0.3), Send(b"d")]
    with ScriptedServer(script=script) as server:
        assert apart(take) == b"bcd"


HAND_OUTS: dict[str, Callable[[Connection], Any]] = {
    "raw": lambda conn: conn.raw,
    "socket": lambda conn: conn.socket,
    "detach": lambda conn: conn.detach(),
}


@pytest.mark.parametrize("hand_out", HAND_OUTS.values(), ids=HAND_OUTS)
def test_who_is_given_the_socket_itself_finds_it_without_a_limit(
    hand_out: Callable[[Connection], Any], echo: ScriptedServer
) -> None:
    def take() -> float:
        with ConnectionPool(echo.endpoint) as pool, pool.try_connect(timeout=5) as conn:
            ask(conn)
            raw = hand_out(conn)
            assert raw.gettimeout() is None
            limit = limit_of(raw)
            if raw is not conn._record.raw:
                raw.close()
            else:
                ask(conn)
                limit += limit_of(raw)  # and it stays so
            return limit

    assert apart(take) == 0


class Nosy(socket.socket):
    """Is asked for, somewhere else, at the very moment at which a read of it begins."""

    __slots__ = ()
    ask_for: Callable[[], Any]

    def recv(self, *arguments: int) -> bytes:
        Nosy.ask_for()
        return super().recv(*arguments)


@pytest.mark.parametrize("ask_for", [lambda conn: conn.socket, lambda conn: conn.fileno()])
def test_who_asks_for_the_socket_as_a_read_begins_takes_no_time_limit_from_it(
    ask_for: Callable[[Connection], Any], echo: ScriptedServer
) -> None:
    def wait() -> None:
        with ConnectionPool(echo.endpoint) as pool:
            conn = pool.try_connect(timeout=5)
            ask(conn)
            raw = conn._record.raw
            Nosy.ask_for = lambda: ask_for(conn)
            raw.__class__ = Nosy
            with taking(0.3, 1), pytest.raises(TimeoutError):
                conn.recv(1, timeout=0.3)
            assert limit_of(raw) == 0
            conn.release()

    apart(wait)


def test_a_socket_that_others_opened_is_left_alone(echo: ScriptedServer) -> None:
    theirs = socket.create_connection((echo.endpoint.host, echo.endpoint.port))

    def use() -> float:
        with ConnectionPool.of(lambda: theirs) as pool, pool.try_connect(timeout=5) as conn:
            ask(conn)
            return limit_of(theirs)

    assert apart(use) == 0


def test_readers_who_share_each_have_their_own_timeout(echo: ScriptedServer) -> None:
    pool = ConnectionPool(echo.endpoint, sharable=True, max_size=1)
    apart(lambda: (conn := pool.try_connect(timeout=5), ask(conn, 60), conn.release()))
    with pool, pool.share(timeout=5) as patient, pool.share(timeout=5) as hasty:
        assert limit_of(patient._record.raw) == 0

        def listen() -> bytes:
            return patient.recv(1, timeout=10)

        def give_up() -> None:
            with taking(0.2, 1), pytest.raises(TimeoutError):
                hasty.recv(1, timeout=0.2)
            patient._record.raw.sendall(b"!")

        assert apart(listen, give_up) == b"!"


def test_a_read_that_waits_is_interrupted(echo: ScriptedServer) -> None:
    pool = ConnectionPool(echo.endpoint)
    conn = pool.try_connect(timeout=5)

    def listen() -> None:
        ask(conn, 30)
        with taking(0, 5), pytest.raises(ConnectionAbortedError):
            conn.recv(1, timeout=30)
        conn.release()

    def shut() -> None:
        time.sleep(0.3)
        pool.shutdown()

    apart(listen, shut)
    pool.close()


@pytest.mark.parametrize("end", [Close(), Reset()])
def test_the_end_of_the_stream_is_told_as_ever(end: Close | Reset) -> None:
    def listen() -> object:
        with ConnectionPool(server.endpoint) as pool:
            conn = pool.try_connect(timeout=5)
            assert conn.recv_exactly(2, timeout=5) == b"ab"
            try:
                return conn.recv(1, timeout=5)
            except OSError as error:
                return type(error)
            finally:
                conn.release()
                assert pool.stats().size == 0

    with ScriptedServer(script=[Send(b"ab"), Pause(0.2), end]) as server:
        assert apart(listen) == (b"" if isinstance(end, Close) else ConnectionResetError)


def test_an_upgraded_connection_has_no_limit_of_the_systems(certificates: Certificates) -> None:
    def upgrade() -> float:
        context = certificates.client()
        with ConnectionPool(server.endpoint) as pool:
            conn = pool.try_connect(timeout=5)
            conn.sendall(b"STARTTLS\n", timeout=5)
            assert conn.recv_until(b"\n", timeout=5) == b"go ahead\n"
            assert limit_of(conn._record.raw) > 0
            conn.start_tls(context, timeout=5)
            limit = limit_of(conn.socket)
            conn.terminate()
            return limit

    script = [Answer(b"go ahead\n", times=1), StartTls(certificates.server()), Echo()]
    with ScriptedServer(script=script) as server:
        assert apart(upgrade) == 0
