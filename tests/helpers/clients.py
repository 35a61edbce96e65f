"""The other end of a scripted server: plain client sockets, and loans."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from connpool import Connection
from connpool.testing import ScriptedServer

LIMIT: Final = 10.0  # seconds


@contextmanager
def dialled(server: ScriptedServer) -> Iterator[socket.socket]:
    """Connect to *server*, and close in the end."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=LIMIT) as client:
        yield client


def reset(client: socket.socket) -> None:
    """Close *client* with a reset."""
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()


def read_all(client: socket.socket) -> bytes:
    """Read until the server closes."""
    data = b""
    while more := client.recv(65_536):
        data += more
    return data


def ask(conn: Connection, text: bytes = b"ping") -> bytes:
    """Have a server that echoes answer *text*. Returns its answer."""
    conn.sendall(text, timeout=5)
    return conn.recv_exactly(len(text), timeout=5)
