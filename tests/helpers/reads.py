"""What tests of reads in which the system waits share, with TLS and without."""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable
from typing import Any

import pytest

from connpool import Connection
from connpool.wire import modes, stream
from tests.helpers.together import together

READS: dict[str, Callable[[Connection, float | None], bytes]] = {
    "recv": lambda conn, timeout: conn.recv(5, timeout),
    "recv_exactly": lambda conn, timeout: conn.recv_exactly(5, timeout),
    "recv_until": lambda conn, timeout: conn.recv_until(b"\n", timeout=timeout),
}
every_read = pytest.mark.parametrize("read", READS.values(), ids=READS)


def apart(*jobs: Callable[[], Any]) -> Any:
    """Run *jobs* on threads that are not the main one. Returns what the first does."""
    return together(*jobs, limit=30)[0]


def ask(conn: Connection, timeout: float | None = 5) -> None:
    conn.sendall(b"ping", timeout=timeout)
    assert conn.recv_exactly(4, timeout=timeout) == b"ping"


def limits_of(raw: socket.socket) -> list[float]:
    """Seconds after which the system ends a read and a write of *raw*; 0: it never does."""
    found = [raw.getsockopt(socket.SOL_SOCKET, name, 16) for name in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO)]
    return [seconds + micros / 1e6 for seconds, micros in (struct.unpack("ll", one) for one in found)]


def count_polls(monkeypatch: pytest.MonkeyPatch) -> list[float | None]:
    """The seconds of each wait in front of a read or a write, from now on."""
    waits: list[float | None] = []
    wait = stream.wait_until_ready

    def noting(fd: int, events: int, seconds: float | None) -> bool:
        waits.append(seconds)
        return wait(fd, events, seconds)

    monkeypatch.setattr(stream, "wait_until_ready", noting)
    return waits


def count_tellings(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds of each limit that the system is told, from now on."""
    told: list[float] = []
    tell = modes.limit_waits

    def noting(raw: socket.socket, seconds: float) -> bool:
        told.append(seconds)
        return tell(raw, seconds)

    monkeypatch.setattr(modes, "limit_waits", noting)
    return told
