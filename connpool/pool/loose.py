"""Loans out of the ordinary: over a file, for one piece of work that may be repeated, to be shared."""

from __future__ import annotations

from collections.abc import Callable
from threading import get_ident
from typing import TypeVar

import attrs

from connpool.errors import ConfigError
from connpool.model.checks import is_whole, require_flag, require_function
from connpool.model.endpoint import Endpoint
from connpool.model.request import Request
from connpool.model.states import CloseReason
from connpool.pool.connection import Connection
from connpool.pool.failures import not_sharable
from connpool.pool.hosts import Host
from connpool.pool.lending import Lender
from connpool.pool.observed import lend_fresh
from connpool.pool.record import Key, Phase, Record
from connpool.pool.shared import SharedConnection
from connpool.pool.unwinding import keeping_no_key
from connpool.wire.io import FileStream

__all__ = ["open_file", "run", "share"]

T = TypeVar("T")


def open_file(lender: Lender, fd: int) -> Connection:
    """A loan over *fd*, of a host of its own that no checkout ever sees."""
    if not is_whole(fd):
        raise ConfigError(f"fd must be an open descriptor, got {fd!r}", pool=lender.pool.name)
    now = lender.now()
    host = Host(Endpoint.callable("file"), now=now, dialable=False)
    record = Record(0, lender.pool, host, now)  # it expired before it was opened: a return closes it
    record.raw = record.stream = FileStream(fd)
    record.move(Phase.OPEN)
    record.uses = 1
    record.holder = get_ident()
    conn = Connection()
    conn._record = record
    conn._key = Key(record)
    return conn


@keeping_no_key
def run(
    lender: Lender,
    work: Callable[[Connection], T],
    req: Request | Endpoint | str | None,
    *,
    idempotent: bool,
) -> T:
    """See ``ConnectionPool.run``."""
    require_function("work", work)
    require_flag("idempotent", idempotent)
    conn = _lend_alive(lender, req)
    record = conn._key.record
    if record.stream is not None:
        record.stream.begin()
    may_repeat = idempotent and record.uses > 1
    is_stale = False
    try:
        with conn:
            try:
                return work(conn)
            except Exception as error:  # asked before its next holder can have it, who may break it as well
                is_stale = may_repeat and _is_stale(record, error)
                raise
    except Exception:
        if not is_stale:
            raise
    with lend_fresh(lender, Request.of(req)) as fresh:
        return work(fresh)


def _lend_alive(lender: Lender, req: Request | Endpoint | str | None) -> Connection:
    """A loan of a connection that its peer has not hung up on.

    It may have done so a moment ago, after a loan so recent that a checkout does not look. Here the
    loan is for one request, which takes much longer than a look, and of which nothing is sent yet.
    """
    while True:
        conn = lender.pool.try_connect(req)
        record = conn._key.record
        if (
            record.uses == 1
            or not lender.connector.looks_promptly
            or isinstance(conn, SharedConnection)  # answers to others may lie there
            or lender.dialler.is_usable(record)
        ):
            return conn
        record.condemn(CloseReason.BROKEN)
        conn.release()


def _is_stale(record: Record, error: Exception) -> bool:
    """Whether it broke before a byte came back; of a transport that has its own input nobody knows."""
    if isinstance(error, TimeoutError):  # slow is not dead
        return False
    return record.fate is CloseReason.BROKEN and record.stream is not None and not record.stream.received


@keeping_no_key
def share(lender: Lender, req: Request | Endpoint | str | None, timeout: float | None) -> SharedConnection:
    """As ``ConnectionPool.share``, the long way."""
    if not lender.config.sharable:
        raise not_sharable(lender.pool.name)
    request = Request.of(req)
    conn = lender.pool.try_connect(
        request if request.shared else attrs.evolve(request, shared=True), timeout=timeout
    )
    assert isinstance(conn, SharedConnection)
    return conn
