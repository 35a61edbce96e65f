"""open_file: a descriptor of the user's own with the same input and output."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from connpool import (
    Connection,
    ConnectionPool,
    Event,
    NoEndpointError,
    UsageError,
)
from connpool.testing import ScriptedServer

# -- open_file


def test_a_file_is_a_connection_that_is_not_counted(tmp_path: Path) -> None:
    path = tmp_path / "log"
    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    with ConnectionPool(max_size=1) as pool:
        conn = pool.open_file(fd)
        assert isinstance(conn, Connection)
        assert conn.fileno() == fd
        assert pool.stats().size == 0
        conn.writev_all([b"one\n", b"two\n", b""], timeout=5)
        os.lseek(fd, 0, os.SEEK_SET)
        assert conn.recv_until(b"\n") == b"one\n"
        assert conn.recv_exactly(4) == b"two\n"
        assert conn.recv(1) == b""
        conn.release()
        with pytest.raises(OSError, match="descriptor"):
            os.fstat(fd)
        with pytest.raises(UsageError):
            conn.release()
        with pytest.raises(NoEndpointError):
            pool.try_connect(timeout=0)
    assert path.read_bytes() == b"one\ntwo\n"


@pytest.mark.parametrize("how", ["release", "terminate", "detach"])
def test_who_listens_to_the_pool_hears_nothing_of_a_file(how: str) -> None:
    heard: list[Event] = []
    reader, writer = os.pipe()
    with ConnectionPool() as pool:
        stop = pool.listen(heard.append)
        getattr(pool.open_file(writer), how)()
        stop()
        assert (heard, pool.stats().hold.max) == ([], 0)
    os.close(reader)
    if how == "detach":
        os.close(writer)


@pytest.mark.parametrize("how", ["release", "terminate", "with", "raise"])
def test_a_file_is_closed_however_it_is_given_back(how: str) -> None:
    reader, writer = os.pipe()
    with ConnectionPool() as pool:
        conn = pool.open_file(writer)
        conn.sendall(b"x")
        if how == "with":
            with conn:
                pass
        elif how == "raise":
            with pytest.raises(KeyError), conn:
                raise KeyError
        else:
            getattr(conn, how)()
    assert os.read(reader, 9) == b"x"
    assert os.read(reader, 9) == b"", "the end that was given back is closed"
    os.close(reader)


def test_a_file_is_available_without_a_place_and_a_bad_one_is_refused() -> None:
    with ScriptedServer() as server, ConnectionPool(server.endpoint, max_size=1) as pool:
        with pool.try_connect(timeout=5):
            server.until_accepts(1)  # else what it opens may get the number of what we close
            reader, writer = os.pipe()
            with pool.open_file(writer) as conn, pool.open_file(reader) as back:
                conn.sendall(b"through")
                assert back.recv_exactly(7) == b"through"
        with pytest.raises((OSError, UsageError)):
            pool.open_file(writer)
