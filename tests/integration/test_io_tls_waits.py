"""Input and output over TLS that nobody else has: the system waits, and nobody notices but the clock."""

from __future__ import annotations

import contextlib
import gc
import os
import select
import signal
import socket
import ssl
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from itertools import count
from typing import Any

import pytest

from connpool import Connection, ConnectionPool, SocketConnector, UsageError
from connpool.testing import (
    Answer,
    Close,
    Echo,
    Pause,
    Reset,
    ScriptedServer,
    Send,
    ServedConnection,
    Silence,
    StartTls,
)
from connpool.wire import look
from connpool.wire.io import Stream
from connpool.wire.modes import WATCHED, SocketModes
from connpool.wire.waiting import limit_waits
from tests.helpers.certificates import Certificates
from tests.helpers.forks import in_child
from tests.helpers.interrupts import Strike, codes_of, in_a_handler, needs_monitoring
from tests.helpers.reads import apart, ask, count_polls, count_tellings, every_read, limits_of
from tests.helpers.switchboard import until
from tests.helpers.together import together
from tests.helpers.wire import taking


@pytest.fixture
def echo(certificates: Certificates) -> Iterator[ScriptedServer]:
    with ScriptedServer(script=Echo(), tls=certificates.server()) as server:
        yield server


def secure_pool(server: ScriptedServer, certificates: Certificates, **settings: Any) -> ConnectionPool:
    return ConnectionPool(server.endpoint, connector=SocketConnector(certificates.client()), **settings)


def is_waiting_mode(raw: Any) -> bool:
    return raw.gettimeout() == 0.0 and os.get_blocking(raw.fileno()) and all(limits_of(raw))


def blocks_without_limit(raw: Any) -> bool:
    return raw.gettimeout() is None and os.get_blocking(raw.fileno()) and not any(limits_of(raw))


@every_read
@pytest.mark.parametrize("timeout", [5, 0.5, None])
def test_answers_are_read_without_a_look_before(
    read: Callable[[Connection, float | None], bytes],
    timeout: float | None,
    echo: ScriptedServer,
    certificates: Certificates,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def turns() -> list[float | None]:
        with secure_pool(echo, certificates) as pool, pool.try_connect(timeout=5) as conn:
            waits = count_polls(monkeypatch)
            for _ in range(20):
                conn.sendall(b"ping\n", timeout)
                assert read(conn, timeout) == b"ping\n"
            return waits

    assert len(apart(turns)) < 10  # an answer may be late now and then


def test_the_mode_is_set_once(
    echo: ScriptedServer, certificates: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    def turns() -> int:
        with secure_pool(echo, certificates) as pool:
            for _ in range(20):
                with pool.try_connect(timeout=5) as conn:
                    ask(conn)
                    raw = conn._record.raw
                    assert conn._record.stream not in WATCHED.calls
                    n_waiting.append(is_waiting_mode(raw))
        return sum(n_waiting)

    n_waiting: list[bool] = []
    told, begun = count_tellings(monkeypatch), []
    begin = WATCHED.begin
    monkeypatch.setattr(WATCHED, "begin", lambda: begun.append(None) or begin())
    assert apart(turns) > 10
    assert len(told) < 20  # an answer may be late now and then
    assert len(begun) < 20


@every_read
@pytest.mark.parametrize("timeout", [0, 0.01, 0.03, 0.3, 1.2])
def test_silence_ends_a_read_in_time(
    read: Callable[[Connection, float | None], bytes], timeout: float, certificates: Certificates
) -> None:
    def wait() -> None:
        with secure_pool(server, certificates) as pool:
            conn = pool.try_connect(timeout=5)
            conn.sendall(b"?", timeout=5)
            with taking(timeout, timeout + 0.3), pytest.raises(TimeoutError, match=f"{timeout:g} s passed"):
                read(conn, timeout)
            conn.release()

    with ScriptedServer(script=Silence(), tls=certificates.server()) as server:
        apart(wait)


@pytest.fixture
def dribbled(certificates: Certificates) -> Iterator[Callable[[Callable[[Stream], Any]], Any]]:
    """Runs a job on a connection whose peer sends one byte of a TLS record after the other, each in time."""
    ours, theirs = socket.socketpair()
    stream = Stream(ours, is_private=True)
    context = certificates.client()
    context.check_hostname = False
    is_over = threading.Event()

    def dribble() -> None:
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        tls = certificates.server().wrap_bio(incoming, outgoing, server_side=True)
        while True:
            try:
                tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                theirs.sendall(outgoing.read())
                incoming.write(theirs.recv(65_536))
        theirs.sendall(outgoing.read())
        tls.write(bytes(10_000))
        while not is_over.wait(0.0005):
            theirs.sendall(outgoing.read(1))

    def run(job: Callable[[Stream], Any]) -> Any:
        def on_the_other_side() -> Any:
            try:
                stream.start_tls(context, None, timeout=5)
                return job(stream)
            finally:
                is_over.set()

        return apart(on_the_other_side, dribble)

    with theirs, ConnectionPool():  # where there is a pool there is upkeep
        yield run
    stream.raw.close()


def test_who_dribbles_a_record_stretches_no_read(
    dribbled: Callable[[Callable[[Stream], Any]], list[float]],
) -> None:
    """OpenSSL reads on until it has a record, and each piece of it may come in time."""

    def read(stream: Stream) -> list[float]:
        took = []
        for _ in range(4):
            began = time.monotonic()
            with pytest.raises(TimeoutError):
                stream.recv_exactly(10_000, timeout=0.1)
            took.append(time.monotonic() - began)
        return took

    assert max(dribbled(read)) < 0.5


def test_while_a_record_is_dribbled_others_have_their_turn(
    dribbled: Callable[[Callable[[Stream], Any]], float],
) -> None:
    def read_and_write(stream: Stream) -> float:
        def read() -> None:
            with contextlib.suppress(TimeoutError):
                stream.recv_exactly(10_000, timeout=3)

        def write() -> float:
            time.sleep(0.05)
            began = time.monotonic()
            stream.sendall(b"x", timeout=5)
            return time.monotonic() - began

        return float(together(write, read, limit=20)[0])

    assert dribbled(read_and_write) < 0.5


def test_each_timeout_holds_whatever_came_before(certificates: Certificates) -> None:
    def wait() -> None:
        with secure_pool(server, certificates) as pool, pool.try_connect(timeout=5) as conn:
            assert conn.recv_exactly(1, timeout=0.2) == b"a"
            with taking(0.1, 0.4), pytest.raises(TimeoutError):
                conn.recv(1, timeout=0.1)
            assert conn.recv_exactly(1, timeout=5) == b"b"  # comes after 0.5 s
            with taking(0.005, 0.3), pytest.raises(TimeoutError):
                conn.recv(1, timeout=0.005)
            assert conn.recv_exactly(1, timeout=None) == b"c"

    script = [Send(b"a"), Pause(0.5), Send(b"b"), Pause(0.5), Send(b"c")]
    with ScriptedServer(script=script, tls=certificates.server()) as server:
        apart(wait)


@pytest.mark.parametrize("timeout", [0.3, 0.01])
@pytest.mark.parametrize("size", [50_000, 60_000, 500_000])
def test_who_does_not_read_ends_a_write_in_time(
    size: int, timeout: float, certificates: Certificates
) -> None:
    def write() -> None:
        with secure_pool(server, certificates) as pool:
            conn = pool.try_connect(timeout=5)
            conn.sendall(b"?", timeout=5)
            for _ in range(1_000):
                began = time.monotonic()
                try:
                    conn.sendall(bytes(size), timeout=timeout)
                except TimeoutError:
                    assert timeout <= time.monotonic() - began < timeout + 0.3
                    break
            else:
                pytest.fail("everything was taken")
            conn.release()

    with ScriptedServer(script=[Pause(20)], tls=certificates.server()) as server:
        apart(write)


def test_what_a_slow_reader_gets_is_whole_and_in_order(
    echo: ScriptedServer, certificates: Certificates
) -> None:
    """Writes that the system breaks off midway go on where they were, byte for byte."""
    parts = [bytes([n]) * 40_000 for n in range(100)]

    def write() -> None:
        for part in parts:
            conn.sendall(part, timeout=10)

    def read() -> None:
        time.sleep(0.3)
        for part in parts:
            assert conn.recv_exactly(len(part), timeout=10) == part

    with secure_pool(echo, certificates) as pool, pool.try_connect(timeout=5) as conn:
        apart(lambda: ask(conn))
        apart(write, read)


def test_a_reader_that_waits_holds_up_no_writer(echo: ScriptedServer, certificates: Certificates) -> None:
    """The first that finds it waiting may; from then on there are two of them."""
    with secure_pool(echo, certificates) as pool, pool.try_connect(timeout=5) as conn:
        apart(lambda: ask(conn))

        def listen() -> bytes:
            return conn.recv_exactly(100, timeout=20)

        def talk() -> float:
            time.sleep(0.05)
            took = []
            for _ in range(100):
                time.sleep(0.002)
                began = time.monotonic()
                conn.sendall(b"x", timeout=5)
                took.append(time.monotonic() - began)
            return sorted(took)[50]

        assert together(listen, talk, limit=30)[1] < 0.002


def test_who_finds_another_at_it_has_the_system_wait_no_more(
    echo: ScriptedServer, certificates: Certificates
) -> None:
    """The other may be about to give the socket away."""
    with secure_pool(echo, certificates) as pool, pool.try_connect(timeout=5) as conn:
        other = conn._record.stream
        assert isinstance(other, Stream)

        def listen() -> bytes:
            return conn.recv_exactly(1, timeout=10)

        def give_away() -> None:
            other._tls_turn.acquire()
            is_held.set()
            time.sleep(0.2)  # the reader comes
            other._tls_turn.release()
            time.sleep(0.2)
            assert not any(limits_of(conn._record.raw))
            conn.sendall(b"!", timeout=5)

        is_held = threading.Event()
        assert apart(lambda: is_held.wait(5) and listen(), give_away) == b"!"


def test_where_nobody_can_cut_a_call_short_the_system_does_not_wait(
    echo: ScriptedServer, certificates: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    def turn() -> None:
        with secure_pool(echo, certificates) as pool, pool.try_connect(timeout=5) as conn:
            monkeypatch.setattr(WATCHED, "begin", bool)
            monkeypatch.setattr(WATCHED, "is_watched", False)
            ask(conn)
            assert not any(limits_of(conn._record.raw))

    apart(turn)


def test_calls_are_watched_no_longer_than_there_are_any(
    echo: ScriptedServer, certificates: Certificates
) -> None:
    with secure_pool(echo, certificates) as pool, pool.try_connect(timeout=5) as conn:
        apart(lambda: ask(conn))
        until(lambda: not WATCHED.is_watched and not WATCHED.calls, "end of looking")


class Ledger(dict[SocketModes, int]):
    """The calls that are watched. Something happens as one is taken out."""

    def __init__(self, happens: Callable[[], object]) -> None:
        super().__init__()
        self.happens = happens

    def pop(self, *args: Any) -> Any:
        self.happens()
        return super().pop(*args)


def test_a_call_that_begins_as_that_of_another_thread_ends_is_watched(monkeypatch):
    # One of them writes, say, and the other reads.
    here, there = socket.socketpair()
    stream = Stream(here, is_private=True)
    is_inside, may_end = threading.Event(), threading.Event()
    second = threading.Thread(
        target=lambda: stream._on_tls_alone(lambda _: is_inside.set() or may_end.wait(10), None)
    )

    def begin_second() -> None:
        if second.ident is None and not stream._tls_turn.locked():
            second.start()
            assert is_inside.wait(10)

    monkeypatch.setattr(WATCHED, "calls", Ledger(begin_second))
    monkeypatch.setattr(WATCHED, "is_watched", True)
    with here, there:
        stream._on_tls_alone(lambda _: None, None)
        begin_second()
        try:
            assert stream in WATCHED.calls
        finally:
            may_end.set()
            second.join(10)
        assert not WATCHED.calls


HAND_OUTS: dict[str, Callable[[Connection], Any]] = {
    "raw": lambda conn: conn.raw,
    "socket": lambda conn: conn.socket,
    "ssl_socket": lambda conn: conn.ssl_socket,
    "detach": lambda conn: conn.detach(),
}


@pytest.mark.parametrize("hand_out", HAND_OUTS.values(), ids=HAND_OUTS)
def test_who_is_given_the_socket_itself_finds_it_blocking_without_a_limit(
    hand_out: Callable[[Connection], Any], echo: ScriptedServer, certificates: Certificates
) -> None:
    def take() -> None:
        with secure_pool(echo, certificates) as pool, pool.try_connect(timeout=5) as conn:
            ask(conn)
            raw = hand_out(conn)
            assert blocks_without_limit(raw)
            if raw is not conn._record.raw:
                raw.close()
            else:
                ask(conn)
                assert blocks_without_limit(raw)  # and it stays so

    apart(take)


def test_what_is_shared_is_read_by_nobody_for_whom_the_system_waits(
    echo: ScriptedServer, certificates: Certificates
) -> None:
    def share() -> None:
        with secure_pool(echo, certificates, sharable=True) as pool:
            with pool.try_connect(timeout=5) as conn:
                ask(conn)
            with pool.share(timeout=5) as conn:
                ask(conn)
                assert not any(limits_of(conn._record.raw))

    apart(share)


def test_a_socket_that_others_opened_is_left_alone(echo: ScriptedServer, certificates: Certificates) -> None:
    theirs = SocketConnector(certificates.client()).open(echo.endpoint, 5.0)

    def use() -> None:
        with ConnectionPool.of(lambda: theirs) as pool, pool.try_connect(timeout=5) as conn:
            ask(conn)
            assert blocks_without_limit(theirs)

    apart(use)


def test_a_look_leaves_the_mode_as_it_is(echo: ScriptedServer, certificates: Certificates) -> None:
    """Tickets lie there unread: to read them it must not wait."""
    raw = SocketConnector(certificates.client()).open(echo.endpoint, 5.0)
    with raw:
        assert isinstance(raw, ssl.SSLSocket)
        assert select.select([raw], [], [], 5)[0]  # the tickets
        limit_waits(raw, 0.5)
        with taking(0, 0.4):
            assert look.is_usable(raw)
        assert is_waiting_mode(raw)
        limit_waits(raw, 0.0)
        assert look.is_usable(raw)
        assert not os.get_blocking(raw.fileno())


def test_on_the_main_thread_signals_do_not_make_a_read_last(
    echo: ScriptedServer, certificates: Certificates
) -> None:
    before = signal.signal(signal.SIGALRM, lambda *_: None)
    signal.setitimer(signal.ITIMER_REAL, 0.05, 0.05)
    try:
        with secure_pool(echo, certificates) as pool:
            conn = pool.try_connect(timeout=5)
            ask(conn)
            with taking(0.4, 2), pytest.raises(TimeoutError):
                conn.recv(1, timeout=0.4)
            conn.release()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_a_signal_handler_may_use_the_connection_whose_read_it_interrupts(
    echo: ScriptedServer, certificates: Certificates
) -> None:
    with secure_pool(echo, certificates) as pool, pool.try_connect(timeout=5) as conn:
        apart(lambda: ask(conn))
        with in_a_handler(lambda: conn.sendall(b"!", timeout=5), 0.2):
            assert conn.recv_exactly(1, timeout=5) == b"!"


def test_a_signal_handler_may_use_it_also_if_the_read_has_no_time_limit(
    echo: ScriptedServer, certificates: Certificates
) -> None:
    with secure_pool(echo, certificates) as pool, pool.try_connect(timeout=5) as conn:
        used = conn._record.stream
        assert isinstance(used, Stream)

        found: list[bool] = []  # whether a handler would wait for what it has interrupted

        def answer(*_: object) -> None:
            found.append(used._tls_turn.locked())
            if found[-1]:
                signal.setitimer(signal.ITIMER_REAL, 0.002)
            else:
                conn.sendall(b"!")

        before = signal.signal(signal.SIGALRM, answer)
        try:
            first: list[bool] = []
            for _ in range(10):
                found.clear()
                signal.setitimer(signal.ITIMER_REAL, 0.002)
                assert conn.recv_exactly(1) == b"!"
                first.append(found[0])
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
        assert first.count(True) < 5  # a busy machine may strike before the read has come to its wait


@needs_monitoring
@pytest.mark.parametrize("step", [SocketModes._tell_system, limit_waits])
def test_an_interrupt_as_the_system_is_told_leaves_nobody_a_limit(
    step: Any, echo: ScriptedServer, certificates: Certificates
) -> None:
    def interrupt_at(n: int) -> bool:
        with secure_pool(echo, certificates) as pool:
            conn = pool.try_connect(timeout=5)
            with Strike(n, codes_of(step)) as strike:
                conn.sendall(b"ping", timeout=5)
                conn.recv_exactly(4, timeout=5)
            if strike.where is not None:
                with taking(0.01, 1), pytest.raises(TimeoutError):
                    conn.recv_exactly(50, timeout=0.01)
                assert blocks_without_limit(conn.socket)
            conn.terminate()
            return strike.where is not None

    def interrupt_everywhere() -> int:
        return next(n for n in count(1) if not interrupt_at(n))

    assert apart(interrupt_everywhere) > 10


def test_a_read_that_waits_is_interrupted(echo: ScriptedServer, certificates: Certificates) -> None:
    pool = secure_pool(echo, certificates)
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


@pytest.mark.parametrize("until", ["its own end", "it is cut off"])
def test_who_terminates_closes_it_when_no_other_thread_is_in_a_call_of_tls(
    until: str, echo: ScriptedServer, certificates: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two calls at once on one connection, and a goodbye is one, end the process now and then."""
    order: list[str] = []
    close = look.close

    def noting(raw: Any) -> None:
        order.append("closed")
        close(raw)

    monkeypatch.setattr(look, "close", noting)
    with secure_pool(echo, certificates) as pool:
        conn = pool.try_connect(timeout=5)
        conn.sendall(b"ping", timeout=5)
        assert conn.recv_exactly(4, timeout=5) == b"ping"
        used = conn._record.stream
        assert isinstance(used, Stream)
        is_in_call = threading.Event()

        def call() -> None:
            with used._tls_turn:
                is_in_call.set()
                if until == "its own end":
                    time.sleep(0.01)
                else:
                    assert select.select([used.raw], [], [], 5)[0]
                order.append("called")

        def terminate() -> None:
            assert is_in_call.wait(5)
            conn.terminate()

        together(call, terminate)
        assert order == ["called", "closed"]
        assert pool.stats().size == 0


@pytest.mark.parametrize("is_apart", [True, False], ids=["the system waits", "on the main thread"])
@pytest.mark.parametrize("last", ["a write", "a read", "a look", "nothing"])
def test_a_call_that_comes_while_it_is_being_closed_waits_and_finds_it_closed(
    last: str, is_apart: bool, echo: ScriptedServer, certificates: Certificates
) -> None:
    """And the next one as well: whoever closes gives the turn back."""
    is_closing = threading.Event()

    def close() -> None:
        def slowly(raw: socket.socket) -> None:
            is_closing.set()
            time.sleep(0.05)  # the call comes
            raw.close()

        assert has_spoken.wait(5)
        used.close_in_turn(slowly)

    def call() -> None:
        if last != "nothing":
            used.sendall(b"ping", timeout=5)
        if last in ("a read", "a look"):
            used.recv_exactly(4, timeout=5)
        if last == "a look":
            assert used.must_wait_to_read(False)
        has_spoken.set()
        assert is_closing.wait(5)
        for use in (lambda: used.recv(1, 5), lambda: used.sendall(b"x", 5)):
            with taking(0, 1), pytest.raises((OSError, ValueError)):
                use()

    with secure_pool(echo, certificates) as pool, pool.try_connect(timeout=5) as conn:
        stream = conn._record.stream
        assert isinstance(stream, Stream)
        used, has_spoken = stream, threading.Event()
        if is_apart:
            apart(call, close)
        else:
            closer = threading.Thread(target=close)
            closer.start()
            call()
            closer.join()


def test_who_closes_in_a_signal_handler_what_it_has_interrupted_does_not_wait_for_itself(
    echo: ScriptedServer, certificates: Certificates
) -> None:
    with secure_pool(echo, certificates) as pool, pool.try_connect(timeout=5) as conn:
        used = conn._record.stream
        assert isinstance(used, Stream)
        with used._tls_turn, taking(0, 1):
            used.close_in_turn(look.close)
            assert used._tls_turn.locked()  # the call gives it back
        assert used.raw.fileno() == -1


def test_a_child_forked_in_the_middle_of_a_call_does_not_wait_for_its_end(
    echo: ScriptedServer, certificates: Certificates
) -> None:
    """The thread that is in the call stays with the parent."""
    with secure_pool(echo, certificates) as pool, pool.try_connect(timeout=5) as conn:

        def use() -> bool:
            with pytest.raises(OSError, match="Bad file descriptor"):
                conn.recv(1, timeout=0.1)
            return True

        used = conn._record.stream
        assert isinstance(used, Stream)
        with used._tls_turn:
            assert in_child(use)
        ask(conn)


@pytest.mark.parametrize("end", [Close(), Reset()])
def test_the_end_of_the_stream_is_told_as_ever(end: Close | Reset, certificates: Certificates) -> None:
    def listen() -> object:
        with secure_pool(server, certificates) as pool:
            conn = pool.try_connect(timeout=5)
            assert conn.recv_exactly(2, timeout=5) == b"ab"
            try:
                return conn.recv(1, timeout=5)
            except ConnectionResetError:
                return b""  # of a reset TLS knows as well, or does not
            finally:
                conn.release()
                assert pool.stats().size == 0

    script = [Send(b"ab"), Pause(0.2), end]
    with ScriptedServer(script=script, tls=certificates.server()) as server:
        assert apart(listen) == b""


@pytest.mark.skipif(sys.version_info < (3, 13), reason="the ssl module tells of that reset as of an end")
def test_a_reset_that_came_before_the_read_is_no_end_of_the_stream(certificates: Certificates) -> None:
    """The system tells of it but once: who asks again is told of an end."""

    def listen() -> None:
        with secure_pool(server, certificates) as pool:
            conn = pool.try_connect(timeout=5)
            conn.sendall(b"ping\n", timeout=5)
            assert conn.recv_until(b"\n", timeout=5) == b"ping\n"
            conn.sendall(b"ping\n", timeout=5)
            raw = conn._record.raw
            until(lambda: select.select([raw], [], [], 5)[0] and is_reset(raw), "reset")
            with pytest.raises(ConnectionResetError):
                conn.recv(1, timeout=5)
            conn.release()

    def is_reset(raw: socket.socket) -> bool:
        poll = select.poll()
        poll.register(raw, 0)
        return any(events & select.POLLERR for _, events in poll.poll(0))

    def answer_once(connection: ServedConnection) -> None:
        connection.send(connection.request(b"\n"))
        connection.request(b"\n")
        connection.reset()

    with ScriptedServer(script=answer_once, tls=certificates.server()) as server:
        apart(listen)


def test_a_write_on_what_another_has_broken_off_says_why(
    echo: ScriptedServer, certificates: Certificates
) -> None:
    def write() -> None:
        with secure_pool(echo, certificates) as pool:
            conn = pool.try_connect(timeout=5)
            ask(conn)
            stream = conn._record.stream
            assert isinstance(stream, Stream)
            stream.interrupt(socket.SHUT_RDWR, "it had to be")
            with pytest.raises(ConnectionAbortedError, match="it had to be"):
                conn.sendall(b"x", timeout=5)
            conn.release()

    apart(write)


def test_the_system_waits_no_more_in_a_connection_of_which_a_call_was_cut_short(
    echo: ScriptedServer, certificates: Certificates
) -> None:
    def turns() -> None:
        with secure_pool(echo, certificates) as pool, pool.try_connect(timeout=5) as conn:
            used = conn._record.stream
            assert isinstance(used, Stream)
            for _ in range(20):  # an answer may be late now and then
                ask(conn)
                if is_waiting_mode(used.raw):
                    break
            used.cut_short()
            conn.sendall(b"ping", timeout=5)
            assert not any(limits_of(used.raw))
            assert conn.recv_exactly(4, timeout=5) == b"ping"
            assert not any(limits_of(used.raw))

    apart(turns)


class Probe:
    """Lives as long as the frames that an error's traceback keeps."""


@pytest.mark.parametrize("is_apart", [True, False], ids=["the system waits", "on the main thread"])
@pytest.mark.parametrize("is_secure", [True, False], ids=["TLS", "plain"])
def test_an_error_that_nobody_keeps_keeps_no_frame(
    is_secure: bool, is_apart: bool, certificates: Certificates
) -> None:
    """Else a loan that is forgotten there would be found lost only when rubbish is collected."""

    def fail() -> Any:
        probe = Probe()
        with pool.try_connect(timeout=5) as conn:
            raw = conn._record.raw
            raw.close()
            for use in (lambda: conn.recv(1, timeout=5), lambda: conn.sendall(b"x", timeout=5)):
                try:
                    use()
                except OSError:
                    pass
                else:
                    pytest.fail("it is closed")
        return weakref.ref(probe)

    tls = certificates.server() if is_secure else None
    with ScriptedServer(script=Silence(), tls=tls) as server:
        pool = secure_pool(server, certificates) if is_secure else ConnectionPool(server.endpoint)
        with pool:
            gc.disable()
            try:
                kept = apart(fail) if is_apart else fail()
                assert kept() is None
            finally:
                gc.enable()


def test_after_the_end_of_tls_a_read_does_not_wait_for_the_end_of_tcp(certificates: Certificates) -> None:
    """The peer says that it sends no more, and keeps the socket open."""
    ours, theirs = socket.socketpair()
    ours_to_be = Stream(ours, is_private=True)
    context = certificates.client()
    context.check_hostname = False

    def listen() -> list[bytes]:
        ours_to_be.start_tls(context, None, timeout=5)
        with taking(0, 3):
            return [ours_to_be.recv(1, timeout=10) for _ in range(3)]

    def serve() -> ssl.SSLSocket:
        secure = certificates.server().wrap_socket(theirs, server_side=True)
        secure.settimeout(0.2)
        with contextlib.suppress(OSError):
            secure.unwrap()
        return secure

    read, secure = together(listen, serve, limit=30)
    with secure, ours_to_be.raw:
        assert read == [b"", b"", b""]


def test_an_upgraded_connection_is_read_without_a_look_and_has_no_limit_left(
    certificates: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    def upgrade() -> int:
        with ConnectionPool(server.endpoint) as pool:
            conn = pool.try_connect(timeout=5)
            conn.sendall(b"STARTTLS\n", timeout=5)
            assert conn.recv_until(b"\n", timeout=5) == b"go ahead\n"
            conn.start_tls(certificates.client(), timeout=5)
            waits = count_polls(monkeypatch)
            for _ in range(20):
                ask(conn)
            assert blocks_without_limit(conn.socket)
            conn.terminate()
            return len(waits)

    script = [Answer(b"go ahead\n", times=1), StartTls(certificates.server()), Echo()]
    with ScriptedServer(script=script) as server:
        assert apart(upgrade) < 10


@pytest.mark.parametrize("is_apart", [True, False], ids=["the system waits", "on the main thread"])
@pytest.mark.parametrize("is_private", [True, False], ids=["nobody else has it", "handed out"])
def test_a_finaliser_within_a_call_that_uses_the_same_connection_is_refused(
    is_private: bool, is_apart: bool, echo: ScriptedServer, certificates: Certificates, monkeypatch: Any
) -> None:
    """As the end of a cursor that is collected just there: it would wait for what it has interrupted."""
    methods = ("read", "recv", "write", "send", "pending")

    def visit_all() -> list[str]:
        return [method for method in methods if visit(method)]

    def visit(method: str) -> bool:
        refused: list[str] = []
        do = getattr(ssl.SSLSocket, method)

        def visited(raw: ssl.SSLSocket, *arguments: Any) -> Any:
            if raw is conn._record.raw and not refused:
                refused.append("")
                stream = conn._record.stream
                assert isinstance(stream, Stream)
                assert stream._has_turn == threading.get_ident()  # else it hangs
                uses = [lambda: stream.sendall(b"x", 5), lambda: stream.recv(1, 5)]
                if is_private:
                    uses.append(stream.hand_out)
                for use in uses:
                    with pytest.raises(UsageError, match="from within a call on it"):
                        use()
            return do(raw, *arguments)

        with secure_pool(echo, certificates) as pool, pool.try_connect(timeout=5) as conn:
            if not is_private:
                assert conn.socket
            with monkeypatch.context() as patch:
                patch.setattr(ssl.SSLSocket, method, visited)
                ask(conn)
                conn.sendall(b"ping", timeout=0.01)  # too short for the system to wait
                assert conn.recv_exactly(4, timeout=5) == b"ping"
            return bool(refused)

    visited = apart(visit_all) if is_apart else visit_all()
    assert len(visited) >= 3


def test_a_finaliser_that_uses_a_connection_just_as_its_socket_is_handed_out_is_refused(
    echo: ScriptedServer, certificates: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused: list[bool] = []
    settimeout = ssl.SSLSocket.settimeout

    def visited(raw: ssl.SSLSocket, seconds: float | None) -> None:
        if raw is conn._record.raw and not refused:
            stream = conn._record.stream
            assert isinstance(stream, Stream)
            assert stream._has_turn == threading.get_ident()  # else it hangs
            with pytest.raises(UsageError, match="from within a call on it"):
                stream.recv(1, 5)
            refused.append(True)
        settimeout(raw, seconds)

    with secure_pool(echo, certificates) as pool, pool.try_connect(timeout=5) as conn:
        ask(conn)
        monkeypatch.setattr(ssl.SSLSocket, "settimeout", visited)
        assert conn.socket
        ask(conn)
    assert refused
