"""A synchronous, thread-safe connection pool: exclusive loans over several endpoints, with failover."""

import connpool.upkeep.fork  # noqa: F401 - a forked child starts with empty pools
from connpool.errors import (
    CallError,
    CancelledError,
    ChannelClosedError,
    CheckoutTimeoutError,
    ConfigError,
    ConnectError,
    ConnectTimeoutError,
    ConnPoolError,
    DuplicatePoolError,
    FilteredOutError,
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
    UnknownEndpointError,
    UnknownPoolError,
    UsageError,
)
from connpool.model.config import PoolConfig
from connpool.model.endpoint import Endpoint
from connpool.model.request import Request
from connpool.model.route import Group, Member, Route
from connpool.model.states import CloseReason, ConnState, EndpointState, PoolState
from connpool.model.stats import ConnectionInfo, EndpointInfo, Percentiles, PoolStats
from connpool.pool.connection import Connection
from connpool.pool.pool import ConnectionPool
from connpool.wire.connector import Connector, SocketConnector

__all__ = [
    "CallError",
    "CancelledError",
    "ChannelClosedError",
    "CheckoutTimeoutError",
    "CloseReason",
    "ConfigError",
    "ConnPoolError",
    "ConnState",
    "ConnectError",
    "ConnectTimeoutError",
    "Connection",
    "ConnectionInfo",
    "ConnectionPool",
    "Connector",
    "DuplicatePoolError",
    "Endpoint",
    "EndpointInfo",
    "EndpointState",
    "FilteredOutError",
    "Group",
    "HandshakeError",
    "Member",
    "MethodNotSupportedError",
    "NoEndpointError",
    "NoResourceError",
    "NotSharableError",
    "Percentiles",
    "PermissionDeniedError",
    "PoolClosedError",
    "PoolConfig",
    "PoolExhaustedError",
    "PoolPausedError",
    "PoolState",
    "PoolStats",
    "RepositoryError",
    "Request",
    "Route",
    "RouteSyntaxError",
    "SocketConnector",
    "SpoolCorruptError",
    "SpoolError",
    "SpoolFullError",
    "UnknownEndpointError",
    "UnknownPoolError",
    "UsageError",
]
