"""Input and output of a loan: whole or an error, and in time, on TLS too."""

from __future__ import annotations

import math
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from connpool import CloseReason, ConfigError, Connection, ConnectionPool, SocketConnector, UsageError
from connpool.pool.lending import Lender
from connpool.testing import Deaf, Echo, Ending, Pause, ReadSlowly, Script, ScriptedServer, Send, Silence
from tests.helpers.certificates import Certificates
from tests.helpers.interrupts import in_a_handler
from tests.helpers.together import together
from tests.helpers.wire import taking


@contextmanager
def serving(
    script: Script, is_tls: bool, certificates: Certificates
) -> Iterator[tuple[ScriptedServer, ConnectionPool]]:
    tls = certificates.server() if is_tls else None
    connector = SocketConnector(tls=certificates.client())
    with (
        ScriptedServer(script=script, tls=tls) as server,
        ConnectionPool(server.endpoint, connector=connector) as pool,
    ):
        yield server, pool


both = pytest.mark.parametrize("is_tls", [False, True])


@both
@pytest.mark.parametrize("script", [ReadSlowly(10_000), Deaf()])
def test_a_write_to_a_slow_reader_ends_in_time_and_closes(
    script: Script, is_tls: bool, certificates: Certificates
) -> None:
    with serving(script, is_tls, certificates) as (_, pool):
        conn = pool.try_connect(timeout=5)
        with taking(0.25, 1.5), pytest.raises(TimeoutError):
            conn.writev_all([b"x" * 5_000] * 2_000, timeout=0.25)
        raw = conn.raw
        conn.release()
        assert raw.fileno() == -1
        assert pool.stats().closed == {CloseReason.BROKEN: 1}


@both
def test_a_time_limit_that_the_program_has_set_for_all_sockets_is_none_of_ours(
    is_tls: bool, certificates: Certificates
) -> None:
    with serving([Pause(0.2), Send(b"late")], is_tls, certificates) as (_, pool):
        socket.setdefaulttimeout(0.02)
        try:
            with pool.try_connect(timeout=5) as conn:
                assert conn.recv_exactly(4) == b"late"
        finally:
            socket.setdefaulttimeout(None)


@both
def test_more_buffers_than_the_system_takes_at_once_arrive_whole(
    is_tls: bool, certificates: Certificates
) -> None:
    parts = [b"%05d," % i for i in range(3000)] + [b"", bytearray(b"end"), memoryview(b"!")]  # type: ignore[list-item]
    whole = b"".join(bytes(part) for part in parts)
    with serving(Echo(), is_tls, certificates) as (server, pool), pool.try_connect(timeout=5) as conn:
        conn.writev_all(iter(parts), timeout=10)
        assert conn.recv_exactly(len(whole), timeout=10) == whole
        assert server.received == [whole]


@both
def test_much_arrives_whole_while_the_other_side_writes_too(is_tls: bool, certificates: Certificates) -> None:
    data = bytes(range(256)) * 8_000
    with serving(Echo(), is_tls, certificates) as (_, pool), pool.try_connect(timeout=5) as conn:
        assert together(
            lambda: conn.sendall(data, timeout=20), lambda: conn.recv_exactly(len(data), timeout=20), limit=30
        ) == [None, data]


@both
@pytest.mark.parametrize("read", ["recv", "recv_into", "recv_exactly", "recv_until"])
def test_a_read_ends_in_time_even_if_the_peer_dribbles(
    read: str, is_tls: bool, certificates: Certificates
) -> None:
    dribble = [Send(b"a"), Pause(0.05)] * 60
    reads = {
        "recv": lambda conn: [conn.recv(1, timeout=0.15) for _ in range(2)],
        "recv_into": lambda conn: conn.recv_into(bytearray(4), timeout=0.15),
        "recv_exactly": lambda conn: conn.recv_exactly(40, timeout=0.15),
        "recv_until": lambda conn: conn.recv_until(b"\n", timeout=0.15),
    }
    silent = read in ("recv", "recv_into")
    with serving(Silence() if silent else dribble, is_tls, certificates) as (_, pool):
        conn = pool.try_connect(timeout=5)
        with taking(0.15, 1.5), pytest.raises(TimeoutError):
            reads[read](conn)
        conn.release()
        assert pool.stats().size == 0


@both
def test_a_line_that_is_too_long_is_an_error_and_closes(is_tls: bool, certificates: Certificates) -> None:
    with serving(Send(b"x" * 200 + b"\n"), is_tls, certificates) as (server, pool):
        conn = pool.try_connect(timeout=5)
        with pytest.raises(ConnectionError):
            conn.recv_until(b"\n", limit=100, timeout=5)
        conn.release()
        assert pool.stats().size == 0
        server.until_accepts(1).until_ended()


@both
def test_every_reader_gets_its_part(is_tls: bool, certificates: Certificates) -> None:
    stream = b"HTTP/1.1 200 OK\r\nLength: 5\r\n\r\nhello1234end"
    with serving(Send(stream), is_tls, certificates) as (_, pool), pool.try_connect(timeout=5) as conn:
        assert conn.recv_until(b"\r\n\r\n", limit=100, timeout=5) == stream[: stream.index(b"hello")]
        assert conn.recv_exactly(5, timeout=5) == b"hello"
        buffer = bytearray(10)
        assert conn.recv_into(buffer, 2, timeout=5) == 2
        assert buffer[:3] == b"12\0"
        assert conn.recv_exactly(2, timeout=5) == b"34"
        rest = b""
        while len(rest) < 3:
            rest += conn.recv(10, timeout=5)
        assert rest == b"end"


@both
def test_two_tls_records_are_two_reads_without_more_traffic(is_tls: bool, certificates: Certificates) -> None:
    with serving([Send(b"one two")], is_tls, certificates) as (_, pool), pool.try_connect(timeout=5) as conn:
        assert conn.recv_exactly(3, timeout=5) == b"one"
        with taking(0, 1):  # what is buffered inside TLS never shows on the socket
            assert conn.recv(4, timeout=5) == b" two"


@both
def test_an_end_in_the_middle_is_an_error(is_tls: bool, certificates: Certificates) -> None:
    with serving([Send(b"abc"), lambda served: served.close()], is_tls, certificates) as (_, pool):
        conn = pool.try_connect(timeout=5)
        with pytest.raises(ConnectionError):
            conn.recv_exactly(4, timeout=5)
        conn.release()
        assert pool.stats().size == 0


@both
def test_a_write_to_a_peer_that_left_is_an_error_and_no_signal(
    is_tls: bool, certificates: Certificates
) -> None:
    with serving(Silence(), is_tls, certificates) as (server, pool):
        conn = pool.try_connect(timeout=5)
        server.until_accepts(1).reset()
        with pytest.raises(OSError, match=r"(?i)reset|pipe|EOF|abort"):
            conn.writev_all([b"x" * 10_000] * 1_000, timeout=5)
        conn.release()
        assert pool.stats().closed == {CloseReason.BROKEN: 1}


def test_a_write_tells_why_the_connection_broke() -> None:
    with ScriptedServer(script=Silence()) as server, ConnectionPool(server.endpoint, name="p") as pool:
        for interrupt, expected in ((None, ConnectionResetError), (pool.shutdown, ConnectionAbortedError)):
            conn = pool.try_connect(timeout=5)
            served = server.until_accepts(1 if interrupt is None else 2)
            (interrupt or served.reset)()
            look = select.poll()
            look.register(conn.fileno(), 0)
            assert look.poll(5_000)  # the end of it has arrived
            with pytest.raises(expected):
                conn.sendall(b"ping", timeout=5)
            conn.release()


@both
def test_a_blocked_call_uses_no_processor_time(is_tls: bool, certificates: Certificates) -> None:
    with serving(Deaf(), is_tls, certificates) as (_, pool):
        calls: tuple[Callable[[Connection], object], ...] = (
            lambda conn: conn.writev_all([b"x" * 65_536] * 100, timeout=0.3),
            lambda conn: conn.recv(1, timeout=0.3),
        )
        for call in calls:
            conn = pool.try_connect(timeout=5)
            before = time.thread_time()
            with pytest.raises(TimeoutError):
                call(conn)
            assert time.thread_time() - before < 0.1
            conn.release()


def test_waiting_for_a_place_uses_no_processor_time() -> None:
    with ConnectionPool.of(object, max_size=1) as pool, pool.try_connect(timeout=5):
        before = time.thread_time()
        with pytest.raises(TimeoutError):
            pool.try_connect(timeout=0.3)
        assert time.thread_time() - before < 0.1


@both
def test_a_mistake_in_the_arguments_does_not_break_a_connection(
    is_tls: bool, certificates: Certificates
) -> None:
    with serving(Echo(), is_tls, certificates) as (_, pool):
        conn = pool.try_connect(timeout=5)
        with pytest.raises((TypeError, UsageError)):
            conn.sendall("text", timeout=5)  # type: ignore[arg-type]
        with pytest.raises((ValueError, TypeError, UsageError)):
            conn.recv_until(b"", timeout=5)
        with pytest.raises(TypeError):
            conn.recv_until(10, timeout=5)  # type: ignore[arg-type]
        client = certificates.client()
        wrong = ((None, None), ("tls", None), (certificates.server(), None), (client, 5), (client, "a\0b"))
        for context, name in wrong:
            with pytest.raises(ConfigError, match=r"context must be an ssl|server_hostname .*(text|NUL)"):
                conn.start_tls(context, name, timeout=5)  # type: ignore[arg-type]
        conn.sendall(b"ok", timeout=5)
        assert conn.recv_exactly(2, timeout=5) == b"ok"
        conn.release()
        assert pool.stats().idle == 1


@both
def test_an_error_among_the_buffers_breaks_a_connection(is_tls: bool, certificates: Certificates) -> None:
    def some() -> Iterator[bytes]:
        yield b"half of it"
        raise ZeroDivisionError

    with serving(Echo(), is_tls, certificates) as (_, pool):
        conn = pool.try_connect(timeout=5)
        with pytest.raises(ZeroDivisionError):
            conn.writev_all(some(), timeout=5)
        conn.release()
        assert pool.stats().closed == {CloseReason.BROKEN: 1}


@both
def test_to_read_nothing_is_not_the_end_of_the_stream(is_tls: bool, certificates: Certificates) -> None:
    with serving(Echo(), is_tls, certificates) as (_, pool):
        with pool.try_connect(timeout=5) as conn:
            assert conn.recv(0, timeout=5) == b""
            assert conn.recv_into(bytearray(), timeout=5) == 0
        assert pool.stats().idle == 1


@both
@pytest.mark.parametrize(
    "read",
    [
        lambda conn: conn.recv(5),
        lambda conn: conn.recv(5, timeout=5),
        lambda conn: conn.recv_into(bytearray(5), timeout=5),
        lambda conn: conn.recv_exactly(5, timeout=5),
        lambda conn: conn.recv_until(b"?", timeout=5),
    ],
)
def test_a_connection_whose_answer_a_signal_handler_has_not_let_come_is_not_lent_again(
    read: Callable[[Connection], object], is_tls: bool, certificates: Certificates
) -> None:
    def fail() -> None:
        raise ValueError("what the settings say cannot be read")

    with serving(Silence(), is_tls, certificates) as (_, pool):
        conn = pool.try_connect(timeout=5)
        with in_a_handler(fail, 0.1), pytest.raises(ValueError, match="cannot be read"):
            read(conn)
        conn.release()
        assert pool.stats().closed == {CloseReason.BROKEN: 1}


def test_an_upgrade_that_a_signal_handler_has_ended_leaves_nothing_to_the_next(
    certificates: Certificates,
) -> None:
    def fail() -> None:
        raise TypeError("what the settings say cannot be read")

    with serving(Silence(), False, certificates) as (_, pool):
        conn, context = pool.try_connect(timeout=5), certificates.client()
        with in_a_handler(fail, 0.2), pytest.raises(TypeError, match="cannot be read"):
            conn.start_tls(context, timeout=5)
        conn.release()
        assert pool.stats().closed == {CloseReason.BROKEN: 1}


def test_an_upgrade_that_is_interrupted_when_its_handshake_is_done_is_not_lent_as_a_plain_one(
    certificates: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    def strike(*_: object) -> None:
        raise KeyboardInterrupt

    with (
        ScriptedServer(tls=certificates.server()) as server,
        ConnectionPool(f"localhost:{server.port}") as pool,
    ):
        conn = pool.try_connect(timeout=5)
        monkeypatch.setattr(Lender, "upgraded", strike)
        with pytest.raises(KeyboardInterrupt):
            conn.start_tls(certificates.client(), timeout=5)
        conn.release()
        assert pool.stats().closed == {CloseReason.BROKEN: 1}


@pytest.mark.parametrize("is_shared", [False, True])
def test_an_exchange_that_could_not_read_its_answer_sends_nothing(
    is_shared: bool, certificates: Certificates
) -> None:
    with serving(Echo(), False, certificates) as (_, pool):
        pool.configure(sharable=True)
        with (pool.share if is_shared else pool.try_connect)(timeout=5) as conn:
            for read in (None, 5):
                with pytest.raises(ConfigError, match=f"read must be a function, got {read!r}"):
                    conn.exchange([b"lost"], read, timeout=5)  # type: ignore[arg-type, misc]
            assert conn.exchange([b"kept"], lambda conn: conn.recv_exactly(4, timeout=5)) == b"kept"
        assert pool.stats().idle == 1


@pytest.mark.parametrize("is_shared", [False, True])
@both
def test_a_timeout_that_is_no_number_is_said_so_before_a_byte_is_sent(
    is_tls: bool, is_shared: bool, certificates: Certificates
) -> None:
    with serving(Echo(), is_tls, certificates) as (server, pool):
        pool.configure(sharable=True)
        conn = (pool.share if is_shared else pool.try_connect)(timeout=5)
        for act in (
            lambda: conn.sendall(b"half a message " * 1_000_000, timeout="5"),  # type: ignore[arg-type]
            lambda: conn.writev_all([b"half", b"a message"], timeout="5"),  # type: ignore[arg-type]
            lambda: conn.recv(5, timeout="5"),  # type: ignore[arg-type]
        ):
            with pytest.raises(ConfigError, match="timeout must be a number of seconds or None, got '5'"):
                act()
        conn.sendall(b"whole", timeout=5)
        assert conn.recv_exactly(5, timeout=5) == b"whole"
        conn.release()
        assert pool.stats().idle == 1
        assert server.accepts == 1


@both
def test_a_time_that_is_not_a_number_is_over(is_tls: bool, certificates: Certificates) -> None:
    with serving(Deaf(), is_tls, certificates) as (_, pool):
        conn = pool.try_connect(timeout=5)
        with pytest.raises(TimeoutError):
            conn.sendall(b"half a message " * 1_000_000, timeout=math.nan)
        conn.release()
        assert pool.stats().closed == {CloseReason.BROKEN: 1}


@both
def test_a_timeout_of_one_call_is_not_the_next_holders(is_tls: bool, certificates: Certificates) -> None:
    with serving([Echo(times=1), Pause(0.25), Send(b"late")], is_tls, certificates) as (_, pool):
        with pool.try_connect(timeout=5) as conn:
            conn.sendall(b"x", timeout=0.2)
            assert conn.recv_exactly(1, timeout=0.2) == b"x"
        with pool.try_connect(timeout=5) as conn:
            assert conn.uses == 1
            assert conn.socket.gettimeout() is None
            assert conn.recv_exactly(4) == b"late"


@both
def test_a_time_set_on_the_socket_itself_is_not_the_next_holders(
    is_tls: bool, certificates: Certificates
) -> None:
    with serving([Pause(0.1), Send(b"late")], is_tls, certificates) as (_, pool):
        with pool.try_connect(timeout=5) as conn:
            conn.socket.settimeout(0.05)
        with pool.try_connect(timeout=5) as conn:
            assert conn.recv_exactly(4, timeout=5) == b"late"


@both
def test_a_termination_says_goodbye_to_the_peer(is_tls: bool, certificates: Certificates) -> None:
    with serving(Silence(), is_tls, certificates) as (server, pool):
        pool.try_connect(timeout=5).terminate()
        assert server.until_accepts(1).until_ended() is Ending.EOF


def test_a_close_of_a_deaf_peer_blocks_nobody(certificates: Certificates) -> None:
    with serving(Deaf(), True, certificates) as (_, pool):
        conn = pool.try_connect(timeout=5)
        with pytest.raises(TimeoutError):
            conn.sendall(b"x" * 8_000_000, timeout=0.2)
        with taking(0, 1):
            conn.terminate()


@both
def test_closing_with_a_limit_interrupts_what_is_lent(is_tls: bool, certificates: Certificates) -> None:
    with serving(Silence(), is_tls, certificates) as (server, pool):
        lent = threading.Event()

        def read() -> None:
            conn: Connection = pool.try_connect(timeout=5)
            lent.set()
            with pytest.raises(OSError, match="clos"):
                conn.recv(1)
            conn.release()

        def close() -> None:
            assert lent.wait(5)
            pool.close(timeout=0.2)

        with taking(0.2, 3):
            together(read, close)
        server.until_open(0)
        assert pool.stats().size == 0
