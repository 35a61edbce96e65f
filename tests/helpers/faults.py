"""What tests of faults share: connectors that keep books, and ways to use a pool."""

from __future__ import annotations

import socket
import threading
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from connpool import Connection, ConnectionPool, ConnPoolError, Endpoint, SocketConnector
from connpool.clock import SystemClock

GUARD = 20.0  # seconds
PING = b"ping\n"


class WatchedConnector:
    """The connector for sockets, and what its tests want to know of every dial.

    Args:
        clock: What the instants are taken from; None: the machine.
        hanging: So many dials hang for ever, whatever their timeout, until ``let_go``.
        before: Called with the endpoint within each dial.

    Attributes:
        dials: When each dial began, and where to.
        peak: Most dials that were under way at once, per endpoint.
    """

    prompt = True

    def __init__(
        self,
        *,
        clock: Any = None,
        hanging: int = 0,
        before: Callable[[Endpoint], object] = bool,
        **settings: Any,
    ) -> None:
        self.dials: list[tuple[float, Endpoint]] = []
        self.peak: Counter[Endpoint] = Counter()
        self._real = SocketConnector(**settings)
        self._clock = clock or SystemClock()
        self._before = before
        self._hanging = hanging
        self._under_way: Counter[Endpoint] = Counter()
        self._changed = threading.Condition()
        self._may_go = threading.Event()

    def n_dials(self, endpoint: Endpoint | None = None) -> int:
        """How many dials there were (to *endpoint*)."""
        return sum(endpoint in (None, where) for _, where in list(self.dials))

    @property
    def n_under_way(self) -> int:
        return sum(self._under_way.values())

    def hang(self, n: int) -> None:
        """Let the next *n* dials hang too."""
        with self._changed:
            self._hanging += n

    def let_go(self) -> None:
        """Let the hanging dials fail."""
        self._may_go.set()

    def open(self, endpoint: Endpoint, timeout: float | None, cancel: Any) -> socket.socket:
        with self._changed:
            self.dials.append((self._clock.now(), endpoint))
            self._under_way[endpoint] += 1
            self.peak[endpoint] = max(self.peak[endpoint], self._under_way[endpoint])
            hangs = self._hanging > 0
            self._hanging -= hangs
            self._changed.notify_all()
        try:
            if hangs:
                assert self._may_go.wait(60), "nobody let the hanging dial go"
                raise ConnectionAbortedError("it hung, and was let go")
            self._before(endpoint)
            return self._real.open(endpoint, timeout, cancel)
        finally:
            with self._changed:
                self._under_way[endpoint] -= 1
                self._changed.notify_all()

    def until_dials(self, n: int) -> None:
        """Return once *n* dials have begun in all."""
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.dials) >= n, GUARD), self.dials

    def close(self, raw: socket.socket) -> None:
        self._real.close(raw)

    def is_usable(self, raw: socket.socket) -> bool:
        return self._real.is_usable(raw)


class PingingConnector(WatchedConnector):
    """Knows that a connection lives by an answer that comes in time.

    Attributes:
        patience: Seconds that an answer may take.
        pings: How often one was asked for.
    """

    prompt = False  # is_usable waits

    def __init__(self, *, patience: float = 0.2, **settings: Any) -> None:
        super().__init__(**settings)
        self.patience = patience
        self.pings = 0

    def is_usable(self, raw: socket.socket) -> bool:
        self.pings += 1
        answer = b""
        raw.settimeout(self.patience)
        with suppress(OSError):
            raw.sendall(PING)
            while len(answer) < len(PING) and (more := raw.recv(len(PING) - len(answer))):
                answer += more
            raw.settimeout(None)
        return answer == PING


def use(conn: Connection, text: bytes = b"hello\n", timeout: float = GUARD) -> None:
    """Send *text* to a server that echoes, and see that it comes back."""
    conn.sendall(text, timeout=timeout)
    assert conn.recv_exactly(len(text), timeout=timeout) == text


def turn(pool: ConnectionPool, **request: Any) -> None:
    """Check out, use, give back."""
    with pool.try_connect(**request) as conn:
        use(conn)


def fill(pool: ConnectionPool, n: int, *where: Endpoint) -> None:
    """Leave *n* idle connections, each used once (pinned to *where*, in turn)."""
    loans = [pool.try_connect(where[i % len(where)] if where else None) for i in range(n)]
    for loan in loans:
        use(loan)
    for loan in loans:
        loan.release()


def turns_until_served(pool: ConnectionPool, within: float, timeout: float = 0.2) -> float:
    """Try until one turn succeeds; return the seconds that took.

    Raises:
        AssertionError: none has within *within* seconds.
    """
    began = SystemClock.now()
    failed: Exception | None = None
    while True:
        try:
            with pool.try_connect(timeout=timeout) as conn:
                use(conn, timeout=timeout)
            is_served = True
        except (ConnPoolError, OSError) as error:
            is_served, failed = False, error
        took = SystemClock.now() - began
        assert took < within, f"not served within {within:g} s but after {took:.2f} s: {failed!r}"
        if is_served:
            return took
        threading.Event().wait(0.005)
