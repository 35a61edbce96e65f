"""Every exception that connpool raises on its own behalf, in one tree.

A message is one sentence that names the pool and the numbers. It is the only
positional argument; everything else is a keyword with a default, so that
``pickle`` and ``copy`` rebuild an error with its attributes and need no help.

``TimeoutError`` and ``ConnectionError`` are ``OSError``s, and so are the errors
below that derive from them: ``except OSError`` around a checkout catches those
too. ``except ConnPoolError`` catches exactly what is listed here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from connpool.model.endpoint import Endpoint


class ConnPoolError(Exception):
    """Root of the tree.

    Args:
        message: A whole sentence: what happened, where, with which numbers.
        pool: Name of the pool it is about; None if there is none.
    """

    def __init__(self, message: str, *, pool: str | None = None) -> None:
        super().__init__(message)
        self.pool = pool


# -- what the caller wrote ---------------------------------------------------


class ConfigError(ConnPoolError, ValueError):
    """A setting or an address is unknown or out of range. Nothing was changed."""


class RouteSyntaxError(ConfigError):
    """The text of a route or an endpoint cannot be read.

    Args:
        column: Where, counted in characters from 1.
    """

    def __init__(self, message: str, *, pool: str | None = None, column: int = 1) -> None:
        super().__init__(message, pool=pool)
        self.column = column


class UsageError(ConnPoolError, RuntimeError):
    """A call that is a mistake in the program: released twice, used after release, ..."""


class UnknownEndpointError(UsageError, LookupError):
    """The pool knows of no such endpoint, or no longer. Nothing was changed."""


class NotSharableError(UsageError):
    """A shared connection was asked of a pool that was not made ``sharable``."""


# -- what a checkout may meet ------------------------------------------------


class PoolClosedError(ConnPoolError):
    """The pool is closed or shut down, or was while the caller waited."""


class PoolPausedError(ConnPoolError):
    """The pool is paused and told to fail rather than to wait."""


class PoolExhaustedError(ConnPoolError):
    """No place is free, and the caller may not wait. No endpoint is blamed."""


class CheckoutTimeoutError(ConnPoolError, TimeoutError):
    """Nothing became free in the caller's time. No endpoint is blamed.

    ``__cause__`` is the last dial that failed, unless its endpoint was dialled with success since.
    """


class CancelledError(ConnPoolError):
    """``Request.cancel`` was set. No endpoint is blamed."""


class ConnectError(ConnPoolError, ConnectionError):
    """A connection could not be opened; ``__cause__`` is what the system said.

    Args:
        endpoint: The one that was dialled.
        local: The cause lies on this machine (no descriptor left, own resolver
            out of reach, own certificate refused): no endpoint is blamed.
    """

    errno: int | None = None  # the system's number; where OSError keeps its own, no copy and no pickle has it

    def __init__(
        self,
        message: str,
        *,
        pool: str | None = None,
        endpoint: Endpoint | None = None,
        local: bool = False,
    ) -> None:
        super().__init__(message, pool=pool)
        self.endpoint = endpoint
        self.local = local


class ConnectTimeoutError(ConnectError, TimeoutError):
    """An endpoint did not let itself be dialled within ``connect_timeout``."""


class HandshakeError(ConnectError):
    """The transport stands, but TLS or the login on it failed."""


class PermissionDeniedError(ConnectError):
    """The peer does not grant what the pool requires."""


class NoEndpointError(ConnPoolError, ConnectionError):
    """Every endpoint that could have served failed or is blacklisted.

    Args:
        causes: One ``(endpoint, error)`` for each, in the order of the route.
        retry_at: Monotonic instant (seconds) at which the first may be dialled
            again; None if none will be by itself.
    """

    def __init__(
        self,
        message: str,
        *,
        pool: str | None = None,
        causes: tuple[tuple[Endpoint, BaseException], ...] = (),
        retry_at: float | None = None,
    ) -> None:
        super().__init__(message, pool=pool)
        self.causes = causes
        self.retry_at = retry_at


# -- messages that must arrive -----------------------------------------------


class FramingError(ConnPoolError, ValueError):
    """A message cannot be framed and was not sent; or a peer does not keep to the framing."""


class SpoolError(ConnPoolError):
    """Unsent messages cannot be kept or read back."""


class SpoolFullError(SpoolError):
    """A limit of the spool is reached. The message was not taken."""


class SpoolCorruptError(SpoolError):
    """The spool's file was damaged again as soon as it had been mended. Look at the disk."""


# -- calls queued on shared connections --------------------------------------


class CallError(ConnPoolError):
    """A call found no channel, or lost the one it had."""


class NoResourceError(CallError, LookupError):
    """No channel offers the resource."""


class MethodNotSupportedError(CallError):
    """Channels offer the resource, none of them the method."""


class FilteredOutError(CallError):
    """Channels offer resource and method; the caller's filter refused them all."""


class ChannelClosedError(CallError):
    """The channel closed during the call: whether the peer acted on it is unknown."""


class CallTimeoutError(CallError, TimeoutError):
    """The caller's time was up before a channel took the call; or during it, if the channel says so."""


class UnknownChannelError(CallError, KeyError):
    """The pool has no channel of that id, or no longer."""

    def __str__(self) -> str:
        return str(self.args[0])  # KeyError would print repr(message), quotes and all


# -- named pools -------------------------------------------------------------


class RepositoryError(ConnPoolError):
    """A repository cannot do what was asked with that name."""


class UnknownPoolError(RepositoryError, KeyError):
    """The repository holds no pool of that name."""

    def __str__(self) -> str:
        return str(self.args[0])  # KeyError would print repr(message), quotes and all


class DuplicatePoolError(RepositoryError, ValueError):
    """A pool of that name exists with other settings. It was left as it is."""
