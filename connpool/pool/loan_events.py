"""The three events that every loan has, made in a third of the time.

attrs sets each field of a frozen instance by a call, since plain assignment is
refused. Here the fields are assigned while the instance is of a class that
allows it; then it becomes what it is to be. Such a class must be laid out as the
other, so it stands directly below ``Event``; and it must replace both
``__setattr__`` and ``__delattr__``, or the interpreter keeps the slow way for each.
Its ``__init__`` is C's, which does nothing: one in Python costs as much as the rest.
"""

from __future__ import annotations

from typing import Any, Final

from connpool.model.endpoint import Endpoint
from connpool.model.events import CheckedIn, CheckedOut, CheckoutFailed, CheckoutStarted, Event

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


def started(pool: str, at: float) -> CheckoutStarted:
    """Make a ``CheckoutStarted``."""
    event: Any = StartDraft()
    event.pool = pool
    event.at = at
    event.__class__ = CheckoutStarted
    begun: CheckoutStarted = event
    return begun


def checked_out(pool: str, at: float, id: int, endpoint: Endpoint, seconds: float) -> CheckedOut:
    """Make a ``CheckedOut``."""
    event: Any = OutDraft()
    event.pool = pool
    event.at = at
    event.id = id
    event.endpoint = endpoint
    event.seconds = seconds
    event.__class__ = CheckedOut
    lent: CheckedOut = event
    return lent


def checked_in(pool: str, at: float, id: int, seconds: float) -> CheckedIn:
    """Make a ``CheckedIn``."""
    event: Any = InDraft()
    event.pool = pool
    event.at = at
    event.id = id
    event.seconds = seconds
    event.__class__ = CheckedIn
    returned: CheckedIn = event
    return returned
