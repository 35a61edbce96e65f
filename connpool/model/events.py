"""What happens in a pool, for whoever listens: one frozen class for each kind of event.

Seconds are durations; ``at`` and ``until`` are instants of the pool's clock;
``id`` is the connection's, as in ``ConnectionInfo``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from attrs import frozen

from connpool.model.endpoint import Endpoint
from connpool.model.states import CloseReason, FailReason

__all__ = [
    "EVENTS",
    "CheckedIn",
    "CheckedOut",
    "CheckoutFailed",
    "CheckoutStarted",
    "ConnectionClosed",
    "ConnectionOpened",
    "ConnectionOpening",
    "EndpointDown",
    "EndpointUp",
    "Event",
    "GroupSwitched",
    "LoanHeldLong",
    "LoanLost",
    "MessagesDropped",
    "PoolCleared",
    "PoolClosed",
    "PoolOpened",
    "PoolPaused",
    "PoolResumed",
    "SpoolDamaged",
]


@frozen
class Event:
    """Something that happened.

    Attributes:
        pool: The pool's name.
        at: When, in monotonic seconds of the pool's clock.
    """

    pool: str
    at: float


# -- the pool ----------------------------------------------------------------


@frozen
class PoolOpened(Event):
    """A pool was made.

    Attributes:
        options: The settings that differ from the defaults.
    """

    options: Mapping[str, Any]


@frozen
class PoolPaused(Event):
    """Checkouts wait, or fail, until the pool is resumed."""


@frozen
class PoolResumed(Event):
    """The pool lends again."""


@frozen
class PoolCleared(Event):
    """Everything that was open until now is closed, at the latest when it is given back.

    Attributes:
        endpoint: Only connections to it; None: all.
        interrupt: Whether loans were cut off at once.
    """

    endpoint: Endpoint | None
    interrupt: bool


@frozen
class PoolClosed(Event):
    """The pool was closed for good."""


# -- connections -------------------------------------------------------------


@frozen
class ConnectionOpening(Event):
    """A dial begins, or a transport from outside is taken in."""

    id: int
    endpoint: Endpoint


@frozen
class ConnectionOpened(Event):
    """A connection can be lent.

    Attributes:
        seconds: What opening it took, login included.
    """

    id: int
    endpoint: Endpoint
    seconds: float


@frozen
class ConnectionClosed(Event):
    """A connection is closed, or the dial for it has failed. Its place is free after this was told."""

    id: int
    endpoint: Endpoint
    reason: CloseReason


# -- loans -------------------------------------------------------------------


@frozen
class CheckoutStarted(Event):
    """A thread asks for a connection."""


@frozen
class CheckedOut(Event):
    """A thread got one.

    Attributes:
        seconds: From asking to having.
    """

    id: int
    endpoint: Endpoint
    seconds: float


@frozen
class CheckoutFailed(Event):
    """A thread got none.

    Attributes:
        seconds: From asking to the error.
        error: What was raised.
    """

    reason: FailReason
    seconds: float
    error: BaseException


@frozen
class CheckedIn(Event):
    """A connection comes back; it is idle, handed on or closed after this was told.

    Attributes:
        seconds: How long it was held.
    """

    id: int
    seconds: float


@frozen
class LoanLost(Event):
    """A loan was dropped without being given back. Its connection is closed after this was told.

    Attributes:
        where: Who took it, and from where if origins are tracked.
    """

    id: int
    where: str


@frozen
class LoanHeldLong(Event):
    """A loan has lasted longer than ``warn_after``. Told once for each.

    Attributes:
        seconds: How long so far.
        where: The name of the thread that has it.
    """

    id: int
    seconds: float
    where: str


# -- endpoints ---------------------------------------------------------------


@frozen
class EndpointDown(Event):
    """An endpoint is left alone from now on. Told once, however often it fails after that.

    Of one that leaves the route nothing more is told; should it come back, it comes as one that is up.

    Attributes:
        error: What happened; None: it was blacklisted by hand.
        until: When it is tried again; None: not by itself.
    """

    endpoint: Endpoint
    error: BaseException | None
    until: float | None


@frozen
class EndpointUp(Event):
    """An endpoint serves again.

    Attributes:
        seconds: How long it was down.
    """

    endpoint: Endpoint
    seconds: float


@frozen
class GroupSwitched(Event):
    """Checkouts go to another group of the route.

    Attributes:
        old: Number of the group they went to, counted from 0; None: there was none.
        new: Number of the one they go to now; None: every group is down, or there is no route any more.
    """

    old: int | None
    new: int | None


# -- messages that wait --------------------------------------------------------
# ``pool`` is the one of the broadcaster. To the spool's own listener it is empty.


@frozen
class MessagesDropped(Event):
    """A limit of the spool has cost messages: the oldest that nobody had claimed.

    Attributes:
        queue: Whose they were: a member's endpoints as a text, or ``""`` for nobody's in particular.
        count: How many.
    """

    queue: str
    count: int


@frozen
class SpoolDamaged(Event):
    """A spool's file was damaged, or removed while it was in use. What could be read goes on in a new one.

    Attributes:
        path: The file.
        aside: Where the damaged one, or what has taken its place, lies now; "" if there is nothing.
        recovered: Messages that go on.
        lost: Messages that are known to be lost.
    """

    path: str
    aside: str
    recovered: int
    lost: int


EVENTS: Final[tuple[type[Event], ...]] = tuple(
    kind
    for kind in globals().copy().values()
    if isinstance(kind, type) and issubclass(kind, Event) and kind is not Event
)
