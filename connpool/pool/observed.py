"""Checkouts that somebody hears of, or whose origin is kept. A pool that nobody watches never comes here."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import suppress
from threading import get_ident
from types import MethodType
from typing import TYPE_CHECKING, Final

from connpool.errors import (
    CancelledError,
    CheckoutTimeoutError,
    ConnectError,
    ConnPoolError,
    NoEndpointError,
    PoolClosedError,
    PoolExhaustedError,
    PoolPausedError,
)
from connpool.model.endpoint import Endpoint
from connpool.model.events import CheckedOut, CheckoutFailed, CheckoutStarted
from connpool.model.request import Request
from connpool.model.states import FailReason
from connpool.pool.checkout import Checkout
from connpool.pool.connection import Connection
from connpool.pool.loan_events import checked_out, started
from connpool.pool.origin import Origin, origin_of
from connpool.pool.sharing import Share

if TYPE_CHECKING:
    from connpool.pool.lending import Lender
    from connpool.pool.pool import ConnectionPool
    from connpool.pool.shared import SharedConnection

__all__ = ["lend_fresh", "observe", "tell_of"]

REASONS: Final[tuple[tuple[type[ConnPoolError], FailReason], ...]] = (
    (CheckoutTimeoutError, FailReason.TIMEOUT),
    (PoolExhaustedError, FailReason.EXHAUSTED),
    (PoolPausedError, FailReason.PAUSED),
    (PoolClosedError, FailReason.CLOSED),
    (CancelledError, FailReason.CANCELLED),
    (NoEndpointError, FailReason.CONNECT),
    (ConnectError, FailReason.CONNECT),
)


def observe(pool: ConnectionPool, *, is_heard: bool, is_tracked: bool) -> None:
    """Let checkouts of *pool* go through here, or no longer.

    The pool gets a ``try_connect`` of its own that hides its class's, so that a
    pool that is not watched pays nothing, not even for asking whether it is.
    """
    if is_heard or is_tracked:
        pool.__dict__["try_connect"] = MethodType(_told if is_heard else _tracked, pool)
    else:
        with suppress(AttributeError):  # not by way of the dictionary, which would come into being only then
            delattr(pool, "try_connect")
    pool._shares_at_hand = pool._lender.config.sharable and not (is_heard or is_tracked)


def _tracked(
    pool: ConnectionPool, req: Request | Endpoint | str | None = None, *, timeout: float | None = None
) -> Connection:
    """As ``ConnectionPool.try_connect``, and remember who asked."""
    conn = type(pool).try_connect(pool, req, timeout=timeout)
    _keep_origin(conn, origin_of(sys._getframe(1)))
    return conn


def _keep_origin(conn: Connection, origin: Origin) -> None:
    key = conn._key
    if isinstance(key, Share):
        key.is_of(get_ident(), origin)
    else:
        key.record.noted().origin = origin


def lend_fresh(lender: Lender, request: Request) -> Connection:
    """A loan of a connection that nobody has used before."""
    checkout = Checkout(lender, request, None, None, fresh_only=True)
    if lender.books.is_heard:
        return _told(lender.pool, request, connect=checkout.run)
    return checkout.run()


def tell_of(lender: Lender, conn: SharedConnection) -> SharedConnection:
    """Tell of *conn*, which was had without any waiting, as of a checkout. Returns it."""
    if lender.books.is_heard:
        _told(lender.pool, connect=lambda: conn)
    return conn


def _told(
    pool: ConnectionPool,
    req: Request | Endpoint | str | None = None,
    *,
    timeout: float | None = None,
    connect: Callable[[], Connection] | None = None,
) -> Connection:
    """As ``ConnectionPool.try_connect``, and tell how it went. *connect*: what is done in its stead."""
    lender, now = pool._lender, pool._now
    listeners = lender.listeners
    conn: Connection | None = None
    began = now()
    if handlers := listeners.by_kind[CheckoutStarted]:
        listeners.tell(started(pool.name, began), handlers)
    try:
        conn = pool.__class__.try_connect(pool, req, timeout=timeout) if connect is None else connect()
    except BaseException as error:
        if handlers := listeners.by_kind[CheckoutFailed]:
            at = now()
            listeners.tell(CheckoutFailed(pool.name, at, reason_of(error), at - began, error), handlers)
        raise
    try:
        record = conn._record
        if lender.books.config.track_origin:
            _keep_origin(conn, origin_of(sys._getframe(1)))
        if handlers := listeners.by_kind[CheckedOut]:
            at = now()
            event = checked_out(pool.name, at, record.id, record.host.endpoint, at - began)
            try:
                listeners.tell(event, handlers)
            except BaseException:  # Ctrl-C in a handler
                conn.release()
                raise
        return conn
    except BaseException:
        conn = None  # its caller will never have it, and a traceback must not keep it from its finaliser
        raise


def reason_of(error: BaseException) -> FailReason:
    """What to call *error*; an interrupt has cancelled the checkout."""
    for kind, reason in REASONS:
        if isinstance(error, kind):
            return reason
    return FailReason.CONNECT if isinstance(error, Exception) else FailReason.CANCELLED
