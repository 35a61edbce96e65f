"""Loans out of the ordinary: over a file, and for one piece of work that may be repeated."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import attrs

from connpool.errors import NotSharableError
from connpool.model.endpoint import Endpoint
from connpool.model.request import Request
from connpool.model.states import CloseReason, PoolState
from connpool.pool.connection import Connection
from connpool.pool.hosts import Host
from connpool.pool.lending import Lender
from connpool.pool.observed import lend_fresh
from connpool.pool.record import Key, Phase, Record
from connpool.pool.shared import SharedConnection
from connpool.pool.sharing import add_share, form, pick
from connpool.wire.io import FileStream

__all__ = ["open_file", "run", "share"]

T = TypeVar("T")


def open_file(lender: Lender, fd: int) -> Connection:
    """A loan over *fd*, of a host of its own that no checkout ever sees."""
    now = lender.clock.now()
    host = Host(Endpoint.callable("file"), now=now, on_route=False, dialable=False)
    record = Record(0, lender.pool, host, now)  # it expired before it was opened: a return closes it
    record.raw = record.stream = FileStream(fd)
    record.move(Phase.OPEN)
    record.uses = 1
    conn = Connection()
    conn._record = record
    conn._key = Key(record)
    return conn


def run(lender: Lender, work: Callable[[Connection], T], request: Request, *, idempotent: bool) -> T:
    """See ``ConnectionPool.run``."""
    conn = lender.pool.try_connect(request if request != Request() else None)
    record = conn._key.record
    if record.stream is not None:
        record.stream.begin()
    is_reused = record.uses > 1
    try:
        with conn:
            return work(conn)
    except Exception as error:
        is_stale = is_reused and record.fate is CloseReason.BROKEN and not _was_answered(record)
        is_stale = is_stale and not isinstance(error, TimeoutError)  # slow is not dead
        if not (idempotent and is_stale):
            raise
    with lend_fresh(lender, request) as fresh:
        return work(fresh)


def _was_answered(record: Record) -> bool:
    """Whether a byte came back; of a transport that has its own input nobody knows."""
    return record.stream is None or record.stream.received


def share(lender: Lender, req: Request | Endpoint | str | None, timeout: float | None) -> SharedConnection:
    """As ``ConnectionPool.share``."""
    if not lender.books.config.sharable:
        raise NotSharableError(
            f"pool {lender.pool.name!r} is not sharable: sharable=False", pool=lender.pool.name
        )
    conn: Connection | None = None
    if req is None and not lender.books.is_heard and not lender.is_inside():
        conn = _share_at_hand(lender)
    if conn is None:
        request = Request.of(req)
        conn = lender.pool.try_connect(
            request if request.shared else attrs.evolve(request, shared=True), timeout=timeout
        )
    assert isinstance(conn, SharedConnection)
    return conn


def _share_at_hand(lender: Lender) -> SharedConnection | None:
    """A share of what lies idle, or is shared already, if that can be had without a look or a wait."""
    pool, books = lender.pool, lender.books
    key: Key | None = None
    try:
        with lender._lock:
            try:
                key = pool._take()
            except IndexError:
                pass
            now = pool._now()
            if key is not None and not (
                now < pool._lend_until
                and now - key.record.since < pool._fresh_for
                and now < key.record.expires_at
            ):
                key.record.host.idle.append(key)
                key = None
                return None
            if key is not None:
                found = form(books, key, now)
            elif books.queue.waiters or books.state is not PoolState.OPEN:
                return None
            elif (hold := pick(books, now)) is not None:
                found = add_share(books, hold, now)
            else:
                return None
        conn = SharedConnection()
        conn._record, conn._key = found.record, found
        if key is not None and books.queue.waiters:
            lender.serve()  # others may join
        return conn
    except BaseException:
        key = None  # its finaliser sees to it
        raise
