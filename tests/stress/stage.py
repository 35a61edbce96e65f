"""What the tests of events share: a listener that writes down, a pool that stands on it, and who judges."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import Any

import pytest

from connpool import ConnectionPool, Endpoint, EndpointInfo
from connpool.testing import FakeClock
from tests.stress.works import NEVER, A, Works, assert_ended

FIELDS = {
    "PoolOpened": ("options",),
    "PoolPaused": (),
    "PoolResumed": (),
    "PoolCleared": ("endpoint", "interrupt"),
    "PoolClosed": (),
    "ConnectionOpening": ("id", "endpoint"),
    "ConnectionOpened": ("id", "endpoint", "seconds"),
    "ConnectionClosed": ("id", "endpoint", "reason"),
    "CheckoutStarted": (),
    "CheckedOut": ("id", "endpoint", "seconds"),
    "CheckoutFailed": ("reason", "seconds", "error"),
    "CheckedIn": ("id", "seconds"),
    "EndpointDown": ("endpoint", "error", "until"),
    "EndpointUp": ("endpoint", "seconds"),
    "GroupSwitched": ("old", "new"),
    "LoanLost": ("id", "where"),
    "LoanHeldLong": ("id", "seconds", "where"),
}
NEXT = {  # of one connection; what may follow what
    None: {"ConnectionOpening"},
    "ConnectionOpening": {"ConnectionOpened", "ConnectionClosed"},
    "ConnectionOpened": {"CheckedOut", "ConnectionClosed"},
    "CheckedOut": {"CheckedIn", "LoanHeldLong", "LoanLost"},
    "LoanHeldLong": {"CheckedIn", "LoanLost"},
    "LoanLost": {"CheckedIn", "ConnectionClosed"},
    "CheckedIn": {"CheckedOut", "ConnectionClosed"},
    "ConnectionClosed": set(),
}


class Ears:
    """A listener that keeps what it hears, in order, and which thread told it."""

    def __init__(self) -> None:
        self.heard: list[Any] = []
        self.threads: list[threading.Thread] = []
        self._changed = threading.Condition()

    def __call__(self, event: Any) -> None:
        with self._changed:
            self.heard.append(event)
            self.threads.append(threading.current_thread())
            self._changed.notify_all()

    def of(self, *names: str) -> list[Any]:
        """What was heard of these kinds."""
        return [event for event in list(self.heard) if kind(event) in names]

    def only(self, name: str) -> Any:
        """The one event of that kind."""
        (event,) = self.of(name)
        return event

    def until(self, name: str, n: int = 1) -> Any:
        """Wait for the *n*-th event of that kind; it may be told by a thread of the pool."""
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.of(name)) >= n, NEVER), (name, self.kinds())
        return self.of(name)[n - 1] if n else None

    def kinds(self, *names: str) -> list[str]:
        """The names of what was heard, of these kinds or of all."""
        return [kind(event) for event in list(self.heard) if not names or kind(event) in names]

    def forget(self) -> None:
        """Begin with an empty page."""
        with self._changed:
            self.heard.clear()
            self.threads.clear()


def kind(event: Any) -> str:
    return type(event).__name__


def plain(event: Any) -> tuple[Any, ...]:
    """An event as its name and the values of its fields, endpoints as text, enums as their names."""
    return (kind(event), *(_plain_value(getattr(event, name)) for name in FIELDS[kind(event)]))


def _plain_value(value: Any) -> Any:
    if isinstance(value, Endpoint):
        return str(value)
    if isinstance(value, BaseException):
        return type(value).__name__
    return getattr(value, "name", value)


class Stage:
    """A pool that is swept by hand, on a clock that stands still, with one pair of ears."""

    def __init__(
        self, route: Any = "a:1", works: Works | None = None, *, clock: Any = None, **settings: Any
    ) -> None:
        self.works = works or Works(prompt=True)
        self.clock = clock or FakeClock()
        self.ears = Ears()
        self.down: set[Endpoint] = set()
        self.dial_time = 0.0  # seconds that pass in each dial
        if works is None:
            self.works.opening = self._open
        settings = {"reap_interval": None, "lifetime_jitter": 0, **settings}
        self.pool = ConnectionPool(
            route,
            connector=self.works,
            clock=self.clock,
            name="orders",
            **{"listeners": [self.ears], **settings},
        )

    def _open(self, endpoint: Endpoint) -> None:
        if self.dial_time:
            self.clock.advance(self.dial_time)
        if endpoint in self.down:
            raise ConnectionRefusedError(f"{endpoint} is down")

    def __enter__(self) -> Stage:
        return self

    def __exit__(
        self, type_: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            assert_ended(self.pool, self.works)
        else:
            self.pool.close()

    def story(self, *names: str) -> list[tuple[Any, ...]]:
        """What was told so far, of these kinds or of all, as plain values."""
        return [plain(event) for event in list(self.ears.heard) if not names or kind(event) in names]

    def info(self, endpoint: Endpoint = A) -> EndpointInfo:
        """What the pool says of one endpoint."""
        (found,) = [info for info in self.pool.endpoints() if info.endpoint == endpoint]
        return found


@pytest.fixture(name="stage")
def make_stage() -> Iterator[Callable[..., Stage]]:
    made: list[Stage] = []

    def build(*args: Any, **settings: Any) -> Stage:
        made.append(Stage(*args, **settings))
        return made[-1]

    yield build
    for each in made:
        each.pool.close()


def lives(heard: Iterable[Any]) -> dict[int, list[str]]:
    """The life of each connection, as the names of what was told of it."""
    found: dict[int, list[str]] = defaultdict(list)
    for event in heard:
        if hasattr(event, "id"):
            found[event.id].append(kind(event))
    return found


def check_lives(heard: Iterable[Any], *, from_the_start: bool = True) -> None:
    """Check that each connection's events are told in the only order they can have happened in.

    With *from_the_start* false the ears may have come late: a life may begin anywhere.
    """
    for id, life in lives(heard).items():
        before = None if from_the_start else life[0]
        for event in life if from_the_start else life[1:]:
            assert event in NEXT[before], f"connection {id}: {event} after {before} in {life}"
            before = event


def check_callers(ears: Ears) -> None:
    """Check that each checkout is told on one thread: its start, then its only end."""
    begun: dict[threading.Thread, bool] = defaultdict(bool)
    for event, thread in zip(list(ears.heard), list(ears.threads), strict=True):
        if kind(event) in ("CheckoutStarted", "CheckedOut", "CheckoutFailed"):
            is_start = kind(event) == "CheckoutStarted"
            assert begun[thread] is not is_start, f"{event} on {thread.name}: its start told {begun[thread]}"
            begun[thread] = is_start
    assert not any(begun.values()), "a checkout was begun and has no end"


def check_alternation(heard: Iterable[Any]) -> dict[str, bool]:
    """Check that each endpoint goes down and up in turns; return which of them are down at the end."""
    down: dict[str, bool] = {}
    for event in heard:
        if kind(event) in ("EndpointDown", "EndpointUp"):
            goes_down = kind(event) == "EndpointDown"
            assert down.get(str(event.endpoint), False) is not goes_down, f"twice in a row: {event}"
            down[str(event.endpoint)] = goes_down
    return down


def check_switches(heard: Iterable[Any], first: int | None = 0) -> int | None:
    """Check that each switch of groups goes on from the one before; return the group in use at the end."""
    now = first
    for event in heard:
        if kind(event) == "GroupSwitched":
            assert event.old == now, f"{event} while group {now} is in use"
            assert event.new != event.old, f"no switch at all: {event}"
            now = event.new
    return now
