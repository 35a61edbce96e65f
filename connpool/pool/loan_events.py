"""The three events that every loan has, as they are while their fields are assigned.

A class that allows it must be laid out as what its instances are to become, so each
stands directly below ``Event``; and it must replace both ``__setattr__`` and
``__delattr__``, or the interpreter keeps the slow way for each. Its ``__init__`` is C's,
which does nothing: one in Python costs as much as the rest.

Without the GIL they are of no use: there each change of a class stops all threads of
the process, one after the other.
"""

from __future__ import annotations

from typing import Any, Final

from connpool.model.events import CheckedIn, CheckedOut, CheckoutFailed, CheckoutStarted, Event

__all__ = ["LOAN_EVENTS", "InDraft", "OutDraft", "StartDraft"]


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
