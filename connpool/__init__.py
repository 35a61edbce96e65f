"""A synchronous, thread-safe connection pool: exclusive loans over several endpoints, with failover."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

import connpool.upkeep.exit
import connpool.upkeep.fork  # noqa: F401 - and with it the reaper
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
from connpool.model.config import PoolConfig
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
from connpool.repository import Repository, repository
from connpool.wire.connector import Connector, SocketConnector

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
    from connpool.model.delivery import Delivery, LinkEvent, LinkInfo, LinkState, Unsent
    from connpool.wire.framing import Framing, Identified, LengthPrefixed, Lines, Raw

# Imported when they are asked for: who only borrows connections should not wait for them.
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
    "connpool.model.delivery": ("Delivery", "LinkEvent", "LinkInfo", "LinkState", "Unsent"),
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
