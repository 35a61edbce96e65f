"""A login whose answer the test can hold back: what makes a dial slow, or fail late."""

from __future__ import annotations

import math
import threading
from typing import Final

from connpool import Connection
from connpool.testing import ServedConnection

LIMIT: Final = 10.0  # seconds a login may be held
HELLO: Final = b"hello\n"
GO_AWAY: Final = b"go away\n"


class Doorman:
    """The server's half, a step of its script: greets whoever comes, as soon as it may."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._n_admitted = math.inf
        self._greeting = HELLO

    def __call__(self, connection: ServedConnection) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: self._n_admitted > 0, LIMIT), "nobody admits this login"
            if connection.is_gone():
                return  # called off meanwhile; another may come in its stead
            self._n_admitted -= 1
        connection.send(self._greeting)

    def hold(self) -> None:
        """Answer nobody from now on."""
        with self._changed:
            self._n_admitted = 0

    def admit(self, n: float) -> None:
        """Answer *n* more."""
        with self._changed:
            self._n_admitted += n
            self._changed.notify_all()

    def refuse(self, *, is_refusing: bool = True) -> None:
        """Turn everybody away from now on, or no longer."""
        self._greeting = GO_AWAY if is_refusing else HELLO


def log_in(connection: Connection) -> None:
    """The pool's half, a connector's ``handshake`` hook."""
    if connection.recv_until(b"\n", len(GO_AWAY)) != HELLO:
        raise PermissionError("turned away")
