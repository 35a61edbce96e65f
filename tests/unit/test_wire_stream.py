"""Input and output over a socket pair: all or an error, within one time limit."""

from __future__ import annotations

import array
import contextlib
import ctypes
import os
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from connpool.wire import io, look, stream
from connpool.wire.buffers import as_views, drop_front, gather
from connpool.wire.io import FileStream, Stream, open_stream
from tests.helpers.together import together
from tests.helpers.wire import later, taking


@pytest.fixture
def pair() -> Iterator[tuple[Stream, socket.socket]]:
    """Our end as a Stream, and the peer's socket."""
    ours, theirs = socket.socketpair()
    theirs.settimeout(10)
    with ours, theirs:
        yield Stream(ours), theirs


Pair = tuple[Stream, socket.socket]


def read_all(sock: socket.socket, n: int) -> bytes:
    data = bytearray()
    while len(data) < n:
        data += sock.recv(n - len(data))
    return bytes(data)


def read_to_the_end(sock: socket.socket) -> bytes:
    return b"".join(iter(lambda: sock.recv(65_536), b""))


# -- writing


@pytest.mark.parametrize("timeout", [None, 5.0])
def test_every_buffer_arrives_whole_and_in_order_whatever_its_type(pair: Pair, timeout: float | None) -> None:
    ours, theirs = pair
    numbers = array.array("I", [1, 2, 3])
    nothing = (ctypes.c_uint32 * 2 * 0)()
    letters = (bytearray(b"bc"), memoryview(b"d?e")[::2])
    buffers = (b for b in (b"a", b"", *letters, nothing, numbers, memoryview(numbers), b""))
    ours.writev_all(buffers, timeout)
    expected = b"abcde" + numbers.tobytes() * 2
    assert read_all(theirs, len(expected)) == expected


@pytest.mark.parametrize("timeout", [None, 10.0])
def test_more_buffers_than_the_system_takes_at_once_arrive_whole(pair: Pair, timeout: float | None) -> None:
    ours, theirs = pair
    buffers = [b"%07d" % i for i in range(5_000)] + [b"x" * 300_000, b"y"]
    expected = b"".join(buffers)
    _, received = together(
        lambda: ours.writev_all(buffers, timeout),
        lambda: read_all(theirs, len(expected)),
    )
    assert received == expected


@pytest.mark.parametrize("data", [b"ping", bytearray(b"ping"), memoryview(b"ping"), array.array("I", [1])])
def test_what_is_sent_arrives_once_whatever_its_type(pair: Pair, data) -> None:
    ours, theirs = pair
    ours.sendall(data, timeout=5)
    ours.raw.shutdown(socket.SHUT_WR)
    assert read_to_the_end(theirs) == bytes(data)


def test_nothing_to_write_is_written_at_once(pair: Pair) -> None:
    ours, theirs = pair
    ours.writev_all([])
    ours.writev_all([b"", b""], timeout=0)
    theirs.setblocking(False)
    with pytest.raises(BlockingIOError):
        theirs.recv(1)


def test_a_write_that_is_not_taken_ends_in_time_and_says_how_far_it_got(pair: Pair) -> None:
    ours, _ = pair
    with taking(0.25, 3.0), pytest.raises(TimeoutError, match=r"0\.3 s passed: [1-9]\d* of 4000000 bytes"):
        ours.sendall(b"x" * 4_000_000, timeout=0.3)


def test_a_write_to_a_dribbling_reader_ends_in_time_over_all_its_steps(pair: Pair) -> None:
    ours, theirs = pair
    done = threading.Event()

    def read_slowly() -> None:
        while not done.wait(0.02):
            theirs.recv(20_000)

    def write() -> None:
        try:
            with taking(0.35, 3.0), pytest.raises(TimeoutError):
                ours.sendall(b"x" * 50_000_000, timeout=0.4)
        finally:
            done.set()

    together(read_slowly, write)


def test_a_blocked_write_does_not_spin(pair: Pair) -> None:
    ours, _ = pair
    before = time.thread_time()
    with pytest.raises(TimeoutError):
        ours.sendall(b"x" * 4_000_000, timeout=0.5)
    assert time.thread_time() - before < 0.1


def test_a_write_without_time_takes_what_goes_at_once(pair: Pair) -> None:
    ours, theirs = pair
    ours.sendall(b"now", timeout=0)
    assert theirs.recv(10) == b"now"
    with taking(0, 1.0), pytest.raises(TimeoutError):
        ours.sendall(b"x" * 4_000_000, timeout=0)


def test_a_failed_write_keeps_no_hold_on_the_buffers(pair: Pair) -> None:
    ours, _ = pair
    buffer = bytearray(4_000_000)
    with pytest.raises(TimeoutError) as caught:
        ours.writev_all([buffer, buffer], timeout=0)
    buffer.clear()  # a BufferError if anything still exported it
    assert caught.value is not None


def test_a_write_to_a_peer_that_left_is_an_error_and_no_signal(pair: Pair) -> None:
    ours, theirs = pair
    theirs.close()
    with pytest.raises(BrokenPipeError):
        ours.sendall(b"x")


def test_views_are_cut_at_any_byte_and_never_empty() -> None:
    for cut in range(7):
        views = as_views([b"ab", b"", b"cde", b"f"])
        drop_front(views, cut)
        assert b"".join(views) == b"abcdef"[cut:]
        assert all(views)


def test_gathering_joins_small_buffers_only() -> None:
    views = as_views([b"a" * 3, b"b" * 3, b"c" * 9])
    assert gather(views, 6) == b"aaabbb"
    assert gather(views[2:], 6) == b"c" * 9


# -- reading


def test_exactly_n_bytes_are_read_from_a_dribble(pair: Pair) -> None:
    ours, theirs = pair

    def dribble() -> None:
        for i in range(10):
            theirs.sendall(b"%d" % i)

    _, data = together(dribble, lambda: ours.recv_exactly(10, timeout=5))
    assert data == b"0123456789"
    assert not ours.rest


@pytest.mark.parametrize("timeout", [None, 5.0])
def test_an_end_of_stream_before_n_bytes_says_how_many_came(pair: Pair, timeout: float | None) -> None:
    ours, theirs = pair
    theirs.sendall(b"abc")
    theirs.close()
    with pytest.raises(ConnectionResetError, match="after 3 of 16 bytes"):
        ours.recv_exactly(16, timeout)
    assert ours.recv(10, timeout) == b"abc"
    assert ours.recv(10, timeout) == b""


def test_a_late_read_says_how_far_it_got_and_loses_nothing(pair: Pair) -> None:
    ours, theirs = pair
    theirs.sendall(b"abc")
    with taking(0.15, 2.0), pytest.raises(TimeoutError, match=r"0\.2 s passed: 3 of 16 bytes"):
        ours.recv_exactly(16, timeout=0.2)
    theirs.sendall(b"d\nrest")
    assert ours.recv_until(b"\n", 16, timeout=5) == b"abcd\n"
    assert ours.recv_exactly(4) == b"rest"


def test_a_peer_that_dribbles_cannot_stretch_a_read(pair: Pair) -> None:
    ours, theirs = pair
    done = threading.Event()

    def dribble() -> None:
        while not done.wait(0.03):
            theirs.sendall(b".")

    def read() -> None:
        try:
            with taking(0.25, 2.0), pytest.raises(TimeoutError):
                ours.recv_exactly(1_000_000, timeout=0.3)
            with taking(0.25, 2.0), pytest.raises(TimeoutError):
                ours.recv_until(b"\n", 1_000_000, timeout=0.3)
        finally:
            done.set()

    together(dribble, read)


def test_a_peer_that_floods_cannot_stretch_a_call_either(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """However ready the next piece is, a call takes none when its time is up."""
    ours, theirs = pair
    monkeypatch.setattr(stream, "_BULK_CHUNK", 4)
    monkeypatch.setattr(stream, "_LINE_CHUNK", 4)
    theirs.sendall(b"abcdefg\n")
    with pytest.raises(TimeoutError, match="4 of 8 bytes"):
        ours.recv_exactly(8, timeout=0)
    ours.rest = b""
    theirs.sendall(b"abc\n")
    with pytest.raises(TimeoutError, match="4 bytes came"):
        ours.recv_until(b"\r", 100, timeout=0)
    with pytest.raises(TimeoutError, match=r"[1-9]\d* of 5000 bytes"):
        ours.writev_all([b"x"] * 5_000, timeout=0)


def test_a_false_alarm_is_waited_out(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """Poll said "readable", and another thread was quicker: a read must not block beyond its time."""
    ours, theirs = pair
    wait, answers = stream.wait_until_ready, [True]
    monkeypatch.setattr(stream, "wait_until_ready", lambda *args: answers.pop() if answers else wait(*args))
    with later(lambda: theirs.sendall(b"late"), 1.5), taking(0.15, 1.4), pytest.raises(TimeoutError):
        ours.recv(4, timeout=0.2)
    answers.append(True)
    theirs.close()
    assert ours.recv_into(bytearray(4), timeout=0.2) == 0


def test_each_kind_of_read_takes_the_rest_first(pair: Pair) -> None:
    ours, theirs = pair
    theirs.sendall(b"line\nabcdefghij")
    assert ours.recv_until(b"\n", 100) == b"line\n"
    assert ours.rest == b"abcdefghij"
    assert ours.recv(2) == b"ab"
    target = bytearray(3)
    assert ours.recv_into(target, 2) == 2
    assert bytes(target) == b"cd\0"
    assert ours.recv_exactly(3) == b"efg"
    assert ours.recv_until(b"i", 100) == b"hi"
    theirs.sendall(b"kl")
    assert ours.recv_exactly(3) == b"jkl"
    assert not ours.rest


def test_a_delimiter_split_over_two_packets_is_found(pair: Pair) -> None:
    ours, theirs = pair
    theirs.sendall(b"ab\r")
    with pytest.raises(TimeoutError, match="3 bytes came, and no delimiter"):
        ours.recv_until(b"\r\n", 100, timeout=0)
    theirs.sendall(b"\ncd")
    assert ours.recv_until(b"\r\n", 100, timeout=5) == b"ab\r\n"
    assert ours.rest == b"cd"


@pytest.mark.parametrize("extra", [b"", b"more\n"])
def test_a_line_is_read_up_to_its_limit_and_not_a_byte_further(pair: Pair, extra: bytes) -> None:
    ours, theirs = pair
    theirs.sendall(b"abcd\n" + extra)
    for _ in range(2):  # the second time it lies in the rest
        with pytest.raises(ConnectionAbortedError, match="within the 4 bytes allowed"):
            ours.recv_until(b"\n", 4, timeout=5)
    assert ours.recv_until(b"\n", 5, timeout=5) == b"abcd\n"


def test_reading_into_a_buffer_fills_what_fits(pair: Pair) -> None:
    ours, theirs = pair
    theirs.sendall(b"abcdefgh")
    numbers = array.array("H", [0, 0])
    assert ours.recv_into(numbers) == 4
    assert numbers.tobytes() == b"abcd"
    assert ours.recv_into(bytearray(9), timeout=5) == 4
    assert ours.recv_into(bytearray(0)) == 0
    with pytest.raises(ValueError, match="room for 3 bytes, not for 4"):
        ours.recv_into(bytearray(3), 4)
    with pytest.raises(TypeError, match="a bytes cannot be written to"):
        ours.recv_into(b"abc")
    with pytest.raises(TypeError, match=r"must be a whole number, got 1\.5"):
        ours.recv_into(bytearray(3), 1.5)  # type: ignore[arg-type]
    with pytest.raises(TimeoutError, match="nothing was received"):
        ours.recv_into(bytearray(3), timeout=0.05)


def test_arguments_without_sense_are_refused(pair: Pair) -> None:
    ours, _ = pair
    for call in (ours.recv, ours.recv_exactly):
        with pytest.raises(ValueError, match="negative: -1"):
            call(-1)
        for odd in (1.0, "1", None):
            with pytest.raises(TypeError, match=f"must be a whole number, got {odd!r}"):
                call(odd)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="empty"):
        ours.recv_until(b"", 10)
    assert ours.recv(0) == b""
    assert ours.recv_exactly(0) == b""


def test_received_tells_whether_an_answer_has_begun(pair: Pair) -> None:
    ours, theirs = pair
    assert not ours.received
    theirs.sendall(b"xy")
    ours.recv(2)
    assert ours.received
    ours.begin()
    assert not ours.received
    with pytest.raises(TimeoutError):
        ours.recv(1, timeout=0)
    theirs.close()
    assert ours.recv(1) == b""
    assert not ours.received


@pytest.mark.parametrize("timeout", [None, 30.0])
def test_the_deadline_of_a_stream_ends_every_call(pair: Pair, timeout: float | None) -> None:
    ours, _ = pair
    ours.deadline = time.monotonic() + 0.2
    with taking(0.15, 3.0), pytest.raises(TimeoutError, match="the deadline passed"):
        ours.recv_exactly(1, timeout)
    with taking(0.0, 1.0), pytest.raises(TimeoutError, match="the deadline passed"):
        ours.writev_all([b"x" * 4_000_000], timeout)


def test_a_clock_that_stands_still_makes_no_wait_endless(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, _ = pair
    monkeypatch.setattr(stream, "now", lambda: 1e9)
    with taking(0.1, 3.0), pytest.raises(TimeoutError):
        ours.recv_exactly(1, timeout=0.15)


def read_into(ours: Stream, n: int, timeout: float | None) -> bytes:
    buffer = bytearray(n)
    return bytes(buffer[: ours.recv_into(buffer, timeout=timeout)])


@pytest.mark.parametrize("read", [Stream.recv, Stream.recv_exactly, read_into])
@pytest.mark.parametrize("timeout", [None, 10])
def test_a_timeout_set_on_the_socket_itself_does_not_cut_our_calls(pair: Pair, read, timeout) -> None:
    ours, theirs = pair
    ours.raw.settimeout(0.02)
    with later(lambda: theirs.sendall(b"late"), 0.1):
        assert read(ours, 4, timeout=timeout) == b"late"
    assert ours.raw.gettimeout() is None


def fill(ours: Stream) -> None:
    """Send until the system takes no more."""
    ours.raw.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while True:
            ours.raw.send(bytes(65_536))
    ours.raw.setblocking(True)


WRITES = {
    "sendall": lambda ours, timeout: ours.sendall(b"x", timeout),
    "writev_all of one": lambda ours, timeout: ours.writev_all([b"x"], timeout),
    "writev_all of two": lambda ours, timeout: ours.writev_all([b"x", b"y"], timeout),
}


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_a_timeout_set_on_the_socket_itself_neither_stretches_a_write_nor_cuts_it(pair: Pair, write) -> None:
    ours, theirs = pair
    fill(ours)
    ours.raw.settimeout(5)
    with taking(0.05, 2), pytest.raises(TimeoutError, match=r"0\.05 s passed: 0 of [12] bytes were sent"):
        write(ours, 0.05)
    ours.raw.settimeout(0.02)
    with later(lambda: theirs.recv(1_000_000), 0.1):
        write(ours, None)


def test_two_readers_with_different_timeouts_do_not_disturb_each_other(pair: Pair) -> None:
    """One end reads without limit while it writes with one: the socket's own mode is never touched."""
    ours, theirs = pair

    def write_in_vain() -> None:
        with pytest.raises(TimeoutError):
            ours.sendall(b"x" * 4_000_000, timeout=0.2)
        theirs.sendall(b"!")

    data, _ = together(lambda: ours.recv(1), write_in_vain)
    assert data == b"!"


# -- interrupts


@pytest.mark.parametrize("timeout", [None, 20.0])
@pytest.mark.parametrize("blocked_in", ["recv", "recv_into", "recv_exactly", "recv_until", "sendall"])
def test_an_interrupt_ends_blocked_calls_at_once_and_says_why(
    pair: Pair, blocked_in: str, timeout: float | None
) -> None:
    ours, _ = pair
    calls = {
        "recv": lambda: ours.recv(1, timeout),
        "recv_into": lambda: ours.recv_into(bytearray(1), 0, timeout),
        "recv_exactly": lambda: ours.recv_exactly(1, timeout),
        "recv_until": lambda: ours.recv_until(b"\n", 10, timeout),
        "sendall": lambda: ours.sendall(b"x" * 4_000_000, timeout),
    }
    with (
        later(lambda: ours.interrupt(socket.SHUT_RDWR, "pool 'p' was shut down")),
        taking(0.05, 5.0),
        pytest.raises(ConnectionAbortedError, match="pool 'p' was shut down"),
    ):
        calls[blocked_in]()
    with pytest.raises(ConnectionAbortedError, match="pool 'p' was shut down"):
        ours.recv(1, timeout)
    assert ours.fileno() >= 0  # the owner closes it, nobody else


def test_what_had_come_before_an_interrupt_can_still_be_read(pair: Pair) -> None:
    ours, theirs = pair
    theirs.sendall(b"abc")
    ours.interrupt(socket.SHUT_RDWR, "enough")
    assert ours.recv(10) == b"abc"
    with pytest.raises(ConnectionAbortedError, match="enough"):
        ours.recv(10)


def test_a_closed_socket_is_an_error_and_not_a_wait(pair: Pair) -> None:
    ours, _ = pair
    look.close(ours.raw)
    ours.interrupt(socket.SHUT_RDWR, "again")
    for timeout in (None, 1.0):
        with pytest.raises(ConnectionAbortedError, match="again"):
            ours.recv(1, timeout)
    ours.interrupted = None
    with pytest.raises(OSError, match="Bad file descriptor"):
        ours.recv(1, 1.0)


# -- which raws have a stream


def test_only_sockets_and_files_have_a_stream(pair: Pair) -> None:
    ours, _ = pair
    assert io.is_stream(ours.raw)
    stream = open_stream(ours.raw)
    assert stream is not None
    assert stream.raw is ours.raw
    assert not io.is_tls(ours.raw)
    file = FileStream(os.open(os.devnull, os.O_RDWR))
    assert io.is_stream(file)
    assert open_stream(file) is file
    file.close()
    assert not io.is_stream(object())
    assert open_stream({}) is None
