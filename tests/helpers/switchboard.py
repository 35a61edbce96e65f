"""A connector without a network: endpoints are up, down or hanging just as the test says."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

from connpool import ConnectionPool, Endpoint, EndpointInfo, EndpointState

GUARD = 10.0


class Line:
    """What the switchboard opens."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self.is_open = self.is_alive = True


class Switchboard:
    """Opens lines, and keeps the books that a test looks at.

    Attributes:
        dialled: Every endpoint that was dialled, in order; *threads* and *timeouts* likewise.
        lines: Every line that was opened, in order.
        looked_at: Every line that was looked at, in order.
        peak: Most dials that were under way at once, per endpoint.
    """

    prompt = True  # neither close nor is_usable blocks

    def __init__(self, *down: str) -> None:
        self.dialled: list[str] = []
        self.threads: list[threading.Thread] = []
        self.timeouts: list[float | None] = []
        self.lines: list[Line] = []
        self.looked_at: list[Line] = []
        self.peak: Counter[str] = Counter()
        self._inside: Counter[str] = Counter()
        self._errors: dict[str, BaseException] = {}
        self._held: set[str] = set()
        self._changed = threading.Condition()
        for endpoint in down:
            self.fail(endpoint)

    # -- what the test makes of it ---------------------------------------------

    def fail(self, endpoint: str, error: BaseException | None = None) -> None:
        """Let every dial to *endpoint* raise *error*, from now on."""
        with self._changed:
            self._errors[endpoint] = error or ConnectionRefusedError(f"{endpoint} is down")

    def mend(self, endpoint: str) -> None:
        """Let dials to *endpoint* succeed again."""
        with self._changed:
            self._errors.pop(endpoint, None)

    def hold(self, endpoint: str) -> None:
        """Let every dial to *endpoint* hang until ``let_go``, or until it is cancelled."""
        with self._changed:
            self._held.add(endpoint)

    def let_go(self, endpoint: str) -> None:
        """Let the dials to *endpoint* go on."""
        with self._changed:
            self._held.discard(endpoint)
            self._changed.notify_all()

    def until_dialling(self, endpoint: str, n: int = 1) -> None:
        """Return once *n* dials to *endpoint* are under way."""
        with self._changed:
            assert self._changed.wait_for(lambda: self._inside[endpoint] == n, GUARD), self._inside

    @property
    def n_open(self) -> int:
        """How many lines are open."""
        return sum(line.is_open for line in self.lines)

    # -- what the pool calls ---------------------------------------------------

    def open(self, endpoint: Endpoint, timeout: float | None, cancel: Any) -> Line:
        name = str(endpoint)
        with self._changed:
            self.dialled.append(name)
            self.threads.append(threading.current_thread())
            self.timeouts.append(timeout)
            self._inside[name] += 1
            self.peak[name] = max(self.peak[name], self._inside[name])
            self._changed.notify_all()
            try:
                until = time.monotonic() + GUARD
                while name in self._held:
                    if cancel is not None and cancel.is_set():
                        raise ConnectionAbortedError("the dial was cancelled")
                    assert time.monotonic() < until, f"nobody let the dials to {name} go"
                    self._changed.wait(0.005)  # a cancel flag can only be asked
                if name in self._errors:
                    raise self._errors[name]
                self.lines.append(Line(endpoint))
                return self.lines[-1]
            finally:
                self._inside[name] -= 1
                self._changed.notify_all()

    def is_usable(self, line: Line) -> bool:
        self.looked_at.append(line)
        return line.is_alive

    def close(self, line: Line) -> None:
        assert line.is_open, "closed twice"
        line.is_open = False


def until(predicate: Callable[[], object], what: str = "it") -> None:
    """Wait until *predicate* is true. For what the pool announces to nobody: its statistics."""
    end = time.monotonic() + GUARD
    while not predicate():
        assert time.monotonic() < end, f"{what} is not so after {GUARD:g} s"
        threading.Event().wait(0.001)


def info_of(pool: ConnectionPool, endpoint: Endpoint | str) -> EndpointInfo:
    """What *pool* says of *endpoint*."""
    found = [info for info in pool.endpoints() if info.endpoint == Endpoint.of(endpoint)]
    assert len(found) == 1, pool.endpoints()
    return found[0]


def down(pool: ConnectionPool) -> list[str]:
    """The endpoints that *pool* does not take to be up."""
    return [str(info.endpoint) for info in pool.endpoints() if info.state is not EndpointState.UP]


def endpoints_of(loans: Iterable[Any]) -> list[str]:
    """Where each of *loans* leads to."""
    return [str(loan.endpoint) for loan in loans]


def check_books(pool: ConnectionPool) -> None:
    """Check that the numbers of *pool* add up, for the pool and for its endpoints."""
    stats = pool.stats()
    assert stats.size == stats.idle + stats.in_use + stats.shared + stats.opening + stats.closing, stats
    assert stats.size == sum(info.size for info in pool.endpoints()), (stats, pool.endpoints())
    assert stats.size == len(pool.connections())
    assert stats.idle == sum(info.idle for info in pool.endpoints())
    assert stats.size <= stats.max_size or stats.in_use, stats
