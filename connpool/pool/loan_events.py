"""The three events that every loan has, made in a third of the time.

attrs sets each field of a frozen instance by a call, since plain assignment is
refused. Here the fields are assigned while the instance is of a class that
allows it; then it becomes what it is to be. Such a class must be laid out as the
other, so it stands directly below ``Event``; and it must replace both
``__setattr__`` and ``__delattr__``, or the interpreter keeps the slow way for each.
"""

# mypy: disable-error-code="assignment,misc"

from __future__ import annotations

from typing import Final

from connpool.model.endpoint import Endpoint
from connpool.model.events import CheckedIn, CheckedOut, CheckoutFailed, CheckoutStarted, Event

__all__ = ["LOAN_EVENTS", "InDraft", "OutDraft", "StartDraft"]


#: What makes checkouts and returns go the way on which they are told of.
LOAN_EVENTS: Final[tuple[type[Event], ...]] = (CheckoutStarted, CheckedOut, CheckoutFailed, CheckedIn)


class StartDraft(Event):
    """Becomes a ``CheckoutStarted``."""

    __slots__ = ()
    __setattr__ = object.__setattr__
    __delattr__ = object.__delattr__

    def __init__(self, pool: str, at: float) -> None:
        self.pool = pool
        self.at = at
        self.__class__ = CheckoutStarted


class OutDraft(Event):
    """Becomes a ``CheckedOut``."""

    __slots__ = ("endpoint", "id", "seconds")
    __setattr__ = object.__setattr__
    __delattr__ = object.__delattr__

    def __init__(self, pool: str, at: float, id: int, endpoint: Endpoint, seconds: float) -> None:
        self.pool = pool
        self.at = at
        self.id = id
        self.endpoint = endpoint
        self.seconds = seconds
        self.__class__ = CheckedOut


class InDraft(Event):
    """Becomes a ``CheckedIn``."""

    __slots__ = ("id", "seconds")
    __setattr__ = object.__setattr__
    __delattr__ = object.__delattr__

    def __init__(self, pool: str, at: float, id: int, seconds: float) -> None:
        self.pool = pool
        self.at = at
        self.id = id
        self.seconds = seconds
        self.__class__ = CheckedIn
