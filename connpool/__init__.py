"""A synchronous, thread-safe connection pool: loans, sharing, failover, messages, calls.

    with ConnectionPool("10.0.0.1:7000, 10.0.0.2:7000 || backup:7000", max_size=16) as pool:
        with pool.try_connect() as conn:
            conn.sendall(b"hello", timeout=5)

``ConnectionPool`` lends connections to threads, ``Repository`` has pools by name, ``CallPool`` queues calls
on connections that do one thing at a time, and ``Broadcaster`` sends messages that must arrive. What they
raise is a ``ConnPoolError``. ``connpool.testing`` has servers that misbehave on request, and a clock that a
test moves by hand.
"""

import atexit
import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

from connpool.errors import (
    CallError,
    CallTimeoutError,
    CancelledError,
    ChannelClosedError,
    CheckoutTimeoutError,
    ConfigError,
    ConnectError,
    ConnectTimeoutError,
    ConnPoolError,
    DuplicatePoolError,
    FilteredOutError,
    FramingError,
    HandshakeError,
    MethodNotSupportedError,
    NoEndpointError,
    NoResourceError,
    NotSharableError,
    PermissionDeniedError,
    PoolClosedError,
    PoolExhaustedError,
    PoolPausedError,
    RepositoryError,
    RouteSyntaxError,
    SpoolCorruptError,
    SpoolError,
    SpoolFullError,
    UnknownChannelError,
    UnknownEndpointError,
    UnknownPoolError,
    UsageError,
)

if TYPE_CHECKING:
    from connpool.calls.call_pool import CallPool
    from connpool.calls.channel import Channel, Reply
    from connpool.calls.socket_channel import SocketChannel
    from connpool.delivery.broadcaster import Broadcaster
    from connpool.delivery.memory_spool import MemorySpool
    from connpool.delivery.spool import Spool, SpoolCount, Spooled
    from connpool.delivery.sqlite_spool import SQLiteSpool
    from connpool.model.call_events import (
        CallEnded,
        CallRefused,
        CallStarted,
        ChannelClosed,
        ChannelDown,
        ChannelOpened,
    )
    from connpool.model.channel import ChannelInfo, ChannelState, MethodStats
    from connpool.model.config import PoolConfig
    from connpool.model.delivery import Delivery, LinkEvent, LinkInfo, LinkState, Unsent
    from connpool.model.endpoint import Endpoint
    from connpool.model.events import (
        CheckedIn,
        CheckedOut,
        CheckoutFailed,
        CheckoutStarted,
        ConnectionClosed,
        ConnectionOpened,
        ConnectionOpening,
        EndpointDown,
        EndpointUp,
        Event,
        GroupSwitched,
        LoanHeldLong,
        LoanLost,
        MessagesDropped,
        PoolCleared,
        PoolClosed,
        PoolOpened,
        PoolPaused,
        PoolResumed,
        SpoolDamaged,
    )
    from connpool.model.request import Request
    from connpool.model.route import Group, Member, Route
    from connpool.model.states import CloseReason, ConnState, EndpointState, FailReason, PoolState
    from connpool.model.stats import ConnectionInfo, EndpointInfo, Percentiles, PoolStats
    from connpool.pool.connection import Connection
    from connpool.pool.pool import ConnectionPool
    from connpool.pool.shared import SharedConnection
    from connpool.registry import Repository, repository
    from connpool.wire.connector import Connector, SocketConnector
    from connpool.wire.framing import Framing, Identified, LengthPrefixed, Lines, Raw

# Imported when they are first asked for: a program that only borrows connections does not wait for spools and
# channels, and one that never makes a pool waits for nothing.
_LATER = {
    "connpool.calls.call_pool": ("CallPool",),
    "connpool.calls.channel": ("Channel", "Reply"),
    "connpool.calls.socket_channel": ("SocketChannel",),
    "connpool.delivery.broadcaster": ("Broadcaster",),
    "connpool.delivery.memory_spool": ("MemorySpool",),
    "connpool.delivery.spool": ("Spool", "SpoolCount", "Spooled"),
    "connpool.delivery.sqlite_spool": ("SQLiteSpool",),
    "connpool.model.call_events": (
        "CallEnded",
        "CallRefused",
        "CallStarted",
        "ChannelClosed",
        "ChannelDown",
        "ChannelOpened",
    ),
    "connpool.model.channel": ("ChannelInfo", "ChannelState", "MethodStats"),
    "connpool.model.config": ("PoolConfig",),
    "connpool.model.delivery": ("Delivery", "LinkEvent", "LinkInfo", "LinkState", "Unsent"),
    "connpool.model.endpoint": ("Endpoint",),
    "connpool.model.events": (
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
    ),
    "connpool.model.request": ("Request",),
    "connpool.model.route": ("Group", "Member", "Route"),
    "connpool.model.states": ("CloseReason", "ConnState", "EndpointState", "FailReason", "PoolState"),
    "connpool.model.stats": ("ConnectionInfo", "EndpointInfo", "Percentiles", "PoolStats"),
    "connpool.pool.connection": ("Connection",),
    "connpool.pool.pool": ("ConnectionPool",),
    "connpool.pool.shared": ("SharedConnection",),
    "connpool.registry": ("Repository", "repository"),
    "connpool.wire.connector": ("Connector", "SocketConnector"),
    "connpool.wire.framing": ("Framing", "Identified", "LengthPrefixed", "Lines", "Raw"),
}


def __getattr__(name: str) -> Any:
    for module, names in _LATER.items():
        if name in names:
            globals()[name] = found = getattr(import_module(module), name)
            return found
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _end() -> None:
    # The spools last: while broadcasters are being closed they still put into them.
    for name in ("connpool.upkeep.exit", "connpool.delivery.sqlite_spool"):
        if (module := sys.modules.get(name)) is not None:
            module.end()


atexit.register(_end)  # now, not with the first pool: what is registered after this import runs before it

__all__ = [
    "Broadcaster",
    "CallEnded",
    "CallError",
    "CallPool",
    "CallRefused",
    "CallStarted",
    "CallTimeoutError",
    "CancelledError",
    "Channel",
    "ChannelClosed",
    "ChannelClosedError",
    "ChannelDown",
    "ChannelInfo",
    "ChannelOpened",
    "ChannelState",
    "CheckedIn",
    "CheckedOut",
    "CheckoutFailed",
    "CheckoutStarted",
    "CheckoutTimeoutError",
    "CloseReason",
    "ConfigError",
    "ConnPoolError",
    "ConnState",
    "ConnectError",
    "ConnectTimeoutError",
    "Connection",
    "ConnectionClosed",
    "ConnectionInfo",
    "ConnectionOpened",
    "ConnectionOpening",
    "ConnectionPool",
    "Connector",
    "Delivery",
    "DuplicatePoolError",
    "Endpoint",
    "EndpointDown",
    "EndpointInfo",
    "EndpointState",
    "EndpointUp",
    "Event",
    "FailReason",
    "FilteredOutError",
    "Framing",
    "FramingError",
    "Group",
    "GroupSwitched",
    "HandshakeError",
    "Identified",
    "LengthPrefixed",
    "Lines",
    "LinkEvent",
    "LinkInfo",
    "LinkState",
    "LoanHeldLong",
    "LoanLost",
    "Member",
    "MemorySpool",
    "MessagesDropped",
    "MethodNotSupportedError",
    "MethodStats",
    "NoEndpointError",
    "NoResourceError",
    "NotSharableError",
    "Percentiles",
    "PermissionDeniedError",
    "PoolCleared",
    "PoolClosed",
    "PoolClosedError",
    "PoolConfig",
    "PoolExhaustedError",
    "PoolOpened",
    "PoolPaused",
    "PoolPausedError",
    "PoolResumed",
    "PoolState",
    "PoolStats",
    "Raw",
    "Reply",
    "Repository",
    "RepositoryError",
    "Request",
    "Route",
    "RouteSyntaxError",
    "SQLiteSpool",
    "SharedConnection",
    "SocketChannel",
    "SocketConnector",
    "Spool",
    "SpoolCorruptError",
    "SpoolCount",
    "SpoolDamaged",
    "SpoolError",
    "SpoolFullError",
    "Spooled",
    "UnknownChannelError",
    "UnknownEndpointError",
    "UnknownPoolError",
    "Unsent",
    "UsageError",
    "repository",
]
