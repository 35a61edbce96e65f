"""Loans of a pool that somebody listens to: both fast paths once more, with what is told on the way.

To wrap the fast paths of every pool, and tell before and after, would cost a turn half as
much again: each wrapper would look up what the path has in hand. These are closures for
the same reason: what stays the same for as long as somebody listens is looked up once.

The events of a loan are made in a third of the time that attrs takes for a frozen
instance, whose fields it sets by a call each: they are assigned while the instance is of
a class that allows it (``loan_events``), and then it becomes what it is to be. Without the
GIL attrs has its way.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from threading import TIMEOUT_MAX, get_ident
from typing import TYPE_CHECKING, Any

from connpool.model.checks import PLAIN_NUMBERS
from connpool.model.endpoint import Endpoint
from connpool.model.events import CheckedIn, CheckedOut, CheckoutFailed, CheckoutStarted
from connpool.model.request import Request
from connpool.pool.checkout import Checkout
from connpool.pool.connection import HAS_GIL, Connection
from connpool.pool.failures import reason_of
from connpool.pool.fleet import Missed
from connpool.pool.listeners import FAILED
from connpool.pool.loan_events import InDraft, OutDraft, StartDraft
from connpool.pool.origin import Origin, origin_of
from connpool.pool.record import OPEN, Key
from connpool.pool.sharing import Share
from connpool.pool.timings import MANY
from connpool.pool.unwinding import drop_keys

if TYPE_CHECKING:
    from connpool.pool.lending import Lender

__all__ = ["keep_origin", "lend_aloud", "receive_aloud"]

logger = logging.getLogger("connpool.events")


def lend_aloud(lender: Lender) -> Callable[..., Connection]:
    """What lends a connection of *lender*'s pool, and tells how it went: its ``try_connect``.

    It may be given *connect*: what is done in place of the pool's own.
    """
    pool, ask = lender.pool, lender.now
    name, is_tracked = pool.name, lender.config.track_origin

    def try_connect(
        req: Request | Endpoint | str | None = None,
        *,
        timeout: float | None = None,
        connect: Callable[[], Connection] | None = None,
    ) -> Connection:
        key: Key | None = None
        conn: Connection | None = None
        listeners = pool._lender.listeners  # by now it may be another lender: who kept this may be forked
        began = ask()
        if (tell := listeners.of_start) is not None:
            begun: Any
            if HAS_GIL:
                begun = StartDraft()
                begun.pool = name
                begun.at = began
                begun.__class__ = CheckoutStarted
            else:
                begun = CheckoutStarted(name, began)
            try:
                tell(begun)
            except Exception:
                logger.exception(FAILED, name, begun)
        try:
            if connect is not None:
                conn = connect()
                at = ask()
            else:
                turn: int | None = None
                if req is None and (
                    timeout is None or (timeout.__class__ in PLAIN_NUMBERS and 0 <= timeout <= TIMEOUT_MAX)
                ):
                    try:
                        take = pool._take  # called as an attribute, it would be sought as a method
                        key = take()
                        record = key.record
                        at = ask()
                        if (
                            at < pool._lend_until
                            and at - record.since < pool._fresh_for
                            and at < record.expires_at
                        ):
                            conn = Connection()
                            conn._record = record
                            conn._key = key
                            record.since = at
                            record.holder = get_ident()
                            record.uses += 1
                    except Missed as missed:
                        turn = missed.turn
                    except IndexError:
                        pass
                if conn is None:
                    if key is not None:  # its turn was taken with it
                        turn = pool._lender.books.fleet.turn_of(key.record.host)
                    request = Request.of(req)
                    conn = Checkout(pool._lender, request, timeout, turn).run(key)
                    at = ask()
        except BaseException as error:
            drop_keys(error)
            key = conn = None  # a traceback must not keep a key from its finaliser
            if handlers := listeners.by_kind[CheckoutFailed]:
                at = ask()
                listeners.tell(CheckoutFailed(name, at, reason_of(error), at - began, error), handlers)
            raise
        try:
            if is_tracked:
                keep_origin(conn, origin_of(sys._getframe(1)))
            if (tell := listeners.of_loan) is not None:
                record = conn._record
                lent: Any
                if HAS_GIL:
                    lent = OutDraft()
                    lent.pool = name
                    lent.at = at
                    lent.id = record.id
                    lent.endpoint = record.host.endpoint
                    lent.seconds = at - began
                    lent.__class__ = CheckedOut
                else:
                    lent = CheckedOut(name, at, record.id, record.host.endpoint, at - began)
                try:
                    try:
                        tell(lent)
                    except Exception:
                        logger.exception(FAILED, name, lent)
                except BaseException:  # Ctrl-C in a handler, or while the log is told of it
                    conn.release()
                    raise
        except BaseException as error:
            drop_keys(error)
            key = conn = None  # its caller will never have it, and a traceback must not keep it
            raise
        return conn

    return try_connect


def receive_aloud(lender: Lender) -> Callable[[Key, float], None]:
    """What takes back a loan of *lender*'s pool, and tells of it."""
    pool, books, listeners, timings = lender.pool, lender.books, lender.listeners, lender.books.timings
    name, take_back = pool.name, lender.take_back

    def receive(key: Key, now: float) -> None:
        record = key.record
        if not record.id or record.phase is not OPEN:  # a file, or refused: nothing to tell
            take_back(key, now)
            return
        held = now - record.since
        holds = timings.new_holds
        holds.append(held)
        try:
            if now >= timings.count_at or len(holds) >= MANY:
                lender.count_in(now)
            if (tell := listeners.of_return) is not None:
                returned: Any
                if HAS_GIL:
                    returned = InDraft()
                    returned.pool = name
                    returned.at = now
                    returned.id = record.id
                    returned.seconds = held
                    returned.__class__ = CheckedIn
                else:
                    returned = CheckedIn(name, now, record.id, held)
                try:
                    tell(returned)
                except Exception:
                    logger.exception(FAILED, name, returned)
        except BaseException:  # Ctrl-C in a handler: it comes back all the same
            take_back(key, now)
            raise
        if (
            now < record.expires_at
            and now < books.return_until
            and held < pool._brief_for
            and (record.stream is None or record.stream.is_clean())
        ):
            record.since = now
            record.host.idle.append(key)
            if pool._is_awaited:
                lender.serve(is_brisk=True)
        else:
            take_back(key, now)

    return receive


def keep_origin(conn: Connection, origin: Origin) -> None:
    """Write down who took *conn*, unless that is no longer wanted: nobody would strike it out."""
    key = conn._key
    if not conn._record.pool._lender.config.track_origin:
        return
    if isinstance(key, Share):
        key.note_holder(get_ident(), origin)
    else:
        key.record.noted().origin = origin
