"""Checkouts that somebody hears of, or whose origin is kept. A pool that nobody watches never comes here."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from types import MethodType
from typing import TYPE_CHECKING, Any

from connpool.model.request import Request
from connpool.pool.checkout import Checkout
from connpool.pool.connection import Connection
from connpool.pool.hearing import keep_origin, lend_aloud, receive_aloud
from connpool.pool.origin import origin_of

if TYPE_CHECKING:
    from connpool.pool.lending import Lender
    from connpool.pool.pool import ConnectionPool
    from connpool.pool.shared import SharedConnection

__all__ = ["lend_fresh", "observe", "tell_of"]


def observe(pool: ConnectionPool, *, is_heard: bool, is_tracked: bool) -> None:
    """Let loans of *pool* go the way on which they are told of, or remembered, or no longer.

    The pool gets a ``try_connect`` of its own that hides its class's, so that a
    pool that is not watched pays nothing, not even for asking whether it is.
    """
    lender = pool._lender
    if is_heard:
        pool.__dict__["try_connect"] = _heard(pool)
    elif is_tracked:
        pool.__dict__["try_connect"] = MethodType(_tracked, pool)
    else:
        with suppress(AttributeError):  # not by way of the dictionary, which would come into being only then
            delattr(pool, "try_connect")
    pool._receive = receive_aloud(lender) if is_heard else lender.take_back
    pool._shares_at_hand = lender.config.sharable and not (is_heard or is_tracked)


def _heard(pool: ConnectionPool) -> Callable[..., Connection]:
    """What lends and tells; by way of what a class below ``ConnectionPool`` has in its stead."""
    lend, connect = lend_aloud(pool._lender), type(pool).try_connect
    if connect is type(pool)._lend_untold:
        return lend
    return lambda *args, **kwargs: lend(connect=partial(connect, pool, *args, **kwargs))


def _tracked(pool: ConnectionPool, *args: Any, **kwargs: Any) -> Connection:
    """As the ``try_connect`` of its class, and remember who asked."""
    conn = type(pool).try_connect(pool, *args, **kwargs)
    keep_origin(conn, origin_of(sys._getframe(1)))
    return conn


def lend_fresh(lender: Lender, request: Request) -> Connection:
    """A loan of a connection that nobody has used before."""
    checkout = Checkout(lender, request, None, None, fresh_only=True)
    if lender.books.is_heard:
        return lend_aloud(lender)(request, connect=checkout.run)
    return checkout.run()


def tell_of(lender: Lender, conn: SharedConnection) -> SharedConnection:
    """Tell of *conn*, which was had without any waiting, as of a checkout. Returns it."""
    if lender.books.is_heard:
        lend_aloud(lender)(connect=lambda: conn)
    return conn
