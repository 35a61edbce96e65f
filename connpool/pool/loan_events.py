"""The three events that every loan has, made in a third of the time.

attrs sets each field of a frozen instance by a call, since plain assignment is
refused. Here the fields are assigned while the instance is of a class that
allows it; then it becomes what it is to be. Such a class must be laid out as the
other, so it stands directly below ``Event``; and it must replace both
``__setattr__`` and ``__delattr__``, or the interpreter keeps the slow way for each.
Its ``__init__`` is C's, which does nothing: one in Python costs as much as the rest.

Without the GIL it would be the other way round: there each change of a class stops
all threads of the process, one after the other, so attrs has its way.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from connpool.model.endpoint import Endpoint
from connpool.model.events import CheckedIn, CheckedOut, CheckoutFailed, CheckoutStarted, Event
from connpool.pool.connection import HAS_GIL

__all__ = ["LOAN_EVENTS", "InDraft", "OutDraft", "StartDraft", "checked_in", "checked_out", "started"]


#: What makes checkouts and returns go the way on which they are told of.
LOAN_EVENTS: Final[tuple[type[Event], ...]] = (CheckoutStarted, CheckedOut, CheckoutFailed, CheckedIn)


class StartDraft(Event):
    """Becomes a ``CheckoutStarted``."""

    __slots__ = ()
    __init__: Any = object.__init__
    __setattr__ = object.__setattr__
    __delattr__ = object.__delattr__


class OutDraft(Event):
    """Becomes a ``CheckedOut``."""

    __slots__ = ("endpoint", "id", "seconds")
    __init__: Any = object.__init__
    __setattr__ = object.__setattr__
    __delattr__ = object.__delattr__


class InDraft(Event):
    """Becomes a ``CheckedIn``."""

    __slots__ = ("id", "seconds")
    __init__: Any = object.__init__
    __setattr__ = object.__setattr__
    __delattr__ = object.__delattr__


def _started(pool: str, at: float) -> CheckoutStarted:
    """Draft a ``CheckoutStarted``."""
    event: Any = StartDraft()
    event.pool = pool
    event.at = at
    event.__class__ = CheckoutStarted
    begun: CheckoutStarted = event
    return begun


def _checked_out(pool: str, at: float, id: int, endpoint: Endpoint, seconds: float) -> CheckedOut:
    """Draft a ``CheckedOut``."""
    event: Any = OutDraft()
    event.pool = pool
    event.at = at
    event.id = id
    event.endpoint = endpoint
    event.seconds = seconds
    event.__class__ = CheckedOut
    lent: CheckedOut = event
    return lent


def _checked_in(pool: str, at: float, id: int, seconds: float) -> CheckedIn:
    """Draft a ``CheckedIn``."""
    event: Any = InDraft()
    event.pool = pool
    event.at = at
    event.id = id
    event.seconds = seconds
    event.__class__ = CheckedIn
    returned: CheckedIn = event
    return returned


#: Make an event of its fields.
started: Final[Callable[[str, float], CheckoutStarted]] = _started if HAS_GIL else CheckoutStarted
checked_out: Final[Callable[[str, float, int, Endpoint, float], CheckedOut]] = (
    _checked_out if HAS_GIL else CheckedOut
)
checked_in: Final[Callable[[str, float, int, float], CheckedIn]] = _checked_in if HAS_GIL else CheckedIn
