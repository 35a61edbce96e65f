"""The same input and output over files, pipes and terminals."""

from __future__ import annotations

import errno
import os
import pty
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest

from connpool.errors import UsageError
from connpool.wire import look
from connpool.wire.io import FileStream
from tests.helpers.together import together
from tests.helpers.wire import taking


@pytest.fixture
def pipe() -> Iterator[tuple[FileStream, FileStream]]:
    """The reading and the writing end."""
    ends = tuple(FileStream(fd) for fd in os.pipe())
    yield ends[0], ends[1]
    for end in ends:
        end.close()


Pipe = tuple[FileStream, FileStream]


def test_a_file_is_written_whole_and_read_back(tmp_path: Path) -> None:
    path = tmp_path / "file"
    buffers = [b"%05d\n" % i for i in range(3_000)]
    file = FileStream(os.open(path, os.O_RDWR | os.O_CREAT))
    file.writev_all(buffers, timeout=5)
    assert path.read_bytes() == b"".join(buffers)
    os.lseek(file.fileno(), 0, os.SEEK_SET)
    assert file.recv_until(b"\n", 10) == b"00000\n"
    assert file.recv_exactly(6, timeout=5) == b"00001\n"
    target = bytearray(6)
    assert file.recv_into(target) == 6
    assert target == b"00002\n"
    look.close(file)
    file.close()
    assert file.fileno() == -1


def test_a_file_ends_in_an_empty_read(tmp_path: Path) -> None:
    file = FileStream(os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT))
    assert file.recv(10, timeout=1) == b""
    file.close()


@pytest.mark.parametrize("timeout", [None, 10.0])
def test_a_pipe_takes_more_than_it_holds(pipe: Pipe, timeout: float | None) -> None:
    reader, writer = pipe
    data = os.urandom(500_000)
    _, received = together(
        lambda: writer.sendall(data, timeout),
        lambda: reader.recv_exactly(len(data), timeout),
    )
    assert received == data


@pytest.mark.parametrize("mode", [True, False], ids=["blocking", "non-blocking"])
def test_timeouts_hold_on_a_pipe_in_either_mode(pipe: Pipe, mode: bool) -> None:
    reader, writer = pipe
    for end in pipe:
        os.set_blocking(end.fileno(), mode)
    with taking(0.15, 3.0), pytest.raises(TimeoutError, match="nothing was received"):
        reader.recv(1, timeout=0.2)
    with taking(0.15, 3.0), pytest.raises(TimeoutError, match=r"[1-9]\d* of 500000 bytes"):
        writer.sendall(b"x" * 500_000, timeout=0.2)
    assert os.get_blocking(writer.fileno()) is mode


def test_a_terminal_reads_and_writes() -> None:
    master, slave = (FileStream(fd) for fd in pty.openpty())
    slave.writev_all([b"a", b"b\n"], timeout=5)
    assert master.recv_until(b"\n", 10, timeout=5) == b"ab\r\n"
    with pytest.raises(TimeoutError):
        master.recv(1, timeout=0.05)
    master.close()
    slave.close()


def test_what_is_not_a_socket_cannot_go_over_to_tls(pipe: Pipe) -> None:
    with pytest.raises(UsageError, match="cannot speak TLS"):
        pipe[0].start_tls(ssl.create_default_context(), None)


def test_an_interrupted_file_says_so_where_it_would_have_ended(pipe: Pipe) -> None:
    reader, writer = pipe
    assert reader.raw is reader
    reader.interrupt(socket.SHUT_RDWR, "enough")
    writer.close()
    with pytest.raises(ConnectionAbortedError, match="enough"):
        reader.recv(1)


def test_a_descriptor_that_is_not_open_is_refused_at_once() -> None:
    with pytest.raises(OSError, match="Bad file descriptor"):
        FileStream(-1)


def test_one_that_the_system_could_not_store_is_closed_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    close = os.close

    def fail(fd: int) -> None:
        close(fd)
        raise OSError(errno.ENOSPC, "no space left")

    file = FileStream(os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT))
    with monkeypatch.context() as patch:
        patch.setattr(os, "close", fail)
        with pytest.raises(OSError, match="no space left"):
            file.close()
        file.close()
    assert file.fileno() == -1
