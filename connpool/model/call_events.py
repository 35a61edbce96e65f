"""What happens in a call pool, for whoever listens: one frozen class for each kind of event.

``id`` is the channel's, as in ``ChannelInfo``. Each call is heard of either
as started and ended, or as refused.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Final

from attrs import frozen

from connpool.model.events import Event
from connpool.model.states import CloseReason

__all__ = [
    "CALL_EVENTS",
    "CallEnded",
    "CallRefused",
    "CallStarted",
    "ChannelClosed",
    "ChannelDown",
    "ChannelOpened",
]


@frozen
class ChannelOpened(Event):
    """A channel takes calls from now on, for the first time or again.

    Attributes:
        seconds: What opening it took; 0 if it came open.
    """

    id: int
    resource: Hashable
    seconds: float


@frozen
class ChannelClosed(Event):
    """A channel is closed. Of one that was taken out of the pool nothing is told.

    Attributes:
        reason: EXPIRED: its ttl ended. BROKEN: a call on it failed so, or was interrupted. TERMINATED:
            it said so itself, with an answer. LOST: a caller was interrupted just before or after
            the channel had its call. POOL_CLOSED.
    """

    id: int
    resource: Hashable
    reason: CloseReason


@frozen
class ChannelDown(Event):
    """An attempt to open a channel again has failed.

    Attributes:
        error: What ``open`` raised.
        until: When it is tried again; None: never, it has left the pool.
    """

    id: int
    resource: Hashable
    error: BaseException
    until: float | None


@frozen
class CallStarted(Event):
    """A channel begins with a call.

    Attributes:
        seconds: How long the call had waited.
    """

    id: int
    resource: Hashable
    method: Hashable
    seconds: float


@frozen
class CallEnded(Event):
    """A call is over; its channel is free, rests or is closed after this was told.

    Attributes:
        seconds: How long it ran.
        error: What it raised; None: it was answered.
    """

    id: int
    resource: Hashable
    method: Hashable
    seconds: float
    error: BaseException | None


@frozen
class CallRefused(Event):
    """No channel took a call.

    Attributes:
        seconds: How long it had waited.
        error: What was raised.
    """

    resource: Hashable
    method: Hashable
    seconds: float
    error: BaseException


CALL_EVENTS: Final[tuple[type[Event], ...]] = (
    ChannelOpened,
    ChannelClosed,
    ChannelDown,
    CallStarted,
    CallEnded,
    CallRefused,
)
