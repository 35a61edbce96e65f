"""As much of a PostgreSQL server as a driver needs to log in, ask nothing, and say goodbye."""

from __future__ import annotations

import socket
import struct
import threading
from types import TracebackType

READY = b"Z\x00\x00\x00\x05I"
LOGIN_OK = (
    b"R\x00\x00\x00\x08\x00\x00\x00\x00"  # authentication ok
    b"S\x00\x00\x00\x19client_encoding\x00UTF8\x00"
    b"S\x00\x00\x00\x18server_version\x0016.0\x00"
    b"K\x00\x00\x00\x0c\x00\x00\x00\x01\x00\x00\x00\x01" + READY
)
NOTHING_ASKED = b"I\x00\x00\x00\x04" + READY


class PostgresLike:
    """Listens on loopback. ``heard`` lists the types of all messages that came, ``X`` being the goodbye."""

    def __init__(self) -> None:
        self.heard: list[str] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def __enter__(self) -> PostgresLike:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join(5)

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            self._threads.append(threading.Thread(target=self._serve, args=(sock,), daemon=True))
            self._threads[-1].start()

    def _serve(self, sock: socket.socket) -> None:
        with sock, sock.makefile("rb") as stream:
            (length,) = struct.unpack("!I", stream.read(4))
            stream.read(length - 4)
            sock.sendall(LOGIN_OK)
            while kind := stream.read(1):
                (length,) = struct.unpack("!I", stream.read(4))
                stream.read(length - 4)
                self.heard.append(kind.decode())
                if kind == b"Q":
                    sock.sendall(NOTHING_ASKED)
                elif kind == b"X":
                    return
