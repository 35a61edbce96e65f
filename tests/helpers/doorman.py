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
    """Both halves of a login: a step of the script, which greets as soon as it may, and ``log_in``."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._n_admitted = math.inf
        self._greeting = HELLO
        self._n_knocks = 0

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

    def log_in(self, connection: Connection) -> None:
        """Wait to be greeted: a connector's ``handshake`` hook."""
        with self._changed:
            self._n_knocks += 1
            self._changed.notify_all()
        if connection.recv_until(b"\n", len(GO_AWAY)) != HELLO:
            raise PermissionError("turned away")

    def until_knocks(self, n: int) -> None:
        """Return once *n* logins have begun."""
        with self._changed:
            assert self._changed.wait_for(lambda: self._n_knocks >= n, LIMIT), f"{self._n_knocks} logins"
