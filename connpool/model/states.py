"""Where connections, pools and endpoints can stand."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Final


class ConnState(enum.Enum):
    """Where one connection stands, for whoever looks at the pool."""

    OPENING = "opening"  # holds a place; nothing open yet
    IDLE = "idle"  # open, in the pool
    IN_USE = "in use"  # lent to one holder
    SHARED = "shared"  # lent to several, or to one who will share it
    CLOSING = "closing"  # being closed; still holds its place
    CLOSED = "closed"  # out of the pool for good; its place is free


class PoolState(enum.Enum):
    """Where a pool stands. ``POOL_MOVES`` lists the only ways on."""

    OPEN = "open"  # lends
    PAUSED = "paused"  # lends nothing for the time being
    SHUT_DOWN = "shut down"  # lends nothing; loans are cut off; may be reopened
    CLOSED = "closed"  # lends nothing, for good


POOL_OPEN: Final = PoolState.OPEN  # to ask an enum for its member costs 0.1 us on 3.11
POOL_CLOSED: Final = PoolState.CLOSED

POOL_MOVES: Final[Mapping[PoolState, frozenset[PoolState]]] = {
    PoolState.OPEN: frozenset({PoolState.PAUSED, PoolState.SHUT_DOWN, PoolState.CLOSED}),
    PoolState.PAUSED: frozenset({PoolState.OPEN, PoolState.SHUT_DOWN, PoolState.CLOSED}),
    PoolState.SHUT_DOWN: frozenset({PoolState.OPEN, PoolState.CLOSED}),
    PoolState.CLOSED: frozenset(),
}


class EndpointState(enum.Enum):
    """What a pool thinks of an endpoint."""

    UP = "up"  # dialled when needed
    BLACKLISTED = "blacklisted"  # not dialled before its retry_at
    PROBING = "probing"  # one dial is under way to see whether it is back


class CloseReason(enum.Enum):
    """Why the pool parted with a connection."""

    STALE = "stale"  # of an older generation: the pool was cleared, or its route changed
    IDLE = "idle"  # unused for idle_timeout
    EXPIRED = "expired"  # max_lifetime
    USED_UP = "used up"  # max_uses
    BROKEN = "broken"  # found dead by a look, a validation or its holder's I/O
    TERMINATED = "terminated"  # its holder said so, or left its block with an exception
    DIRTY = "dirty"  # came back with bytes that were read ahead and not taken, or could not be reset
    EVICTED = "evicted"  # made room for a connection to another endpoint
    SURPLUS = "surplus"  # more than a lowered max_size or max_per_endpoint
    LOST = "lost"  # its holder forgot it
    POOL_CLOSED = "pool closed"  # the pool was closed, or shut down while it was lent


class FailReason(enum.Enum):
    """Why a checkout came to nothing."""

    TIMEOUT = "timeout"  # its time was up
    EXHAUSTED = "exhausted"  # no place was free, and it might not wait
    CANCELLED = "cancelled"  # by its request's flag, or interrupted
    CONNECT = "connect"  # no endpoint could be dialled
    PAUSED = "paused"  # the pool is paused and says so
    CLOSED = "closed"  # the pool is, or was meanwhile, closed or shut down
