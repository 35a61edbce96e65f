"""What finalisers report: keys, and shares of connections, that nobody gave back."""

from __future__ import annotations

import sys
import threading
import warnings
from threading import get_ident
from typing import TYPE_CHECKING

from connpool.model.states import CloseReason
from connpool.pool.census import wink
from connpool.pool.piles import look_through
from connpool.pool.record import Phase, Record

if TYPE_CHECKING:
    from connpool.pool.pool import ConnectionPool
    from connpool.pool.sharing import Hold, Share

__all__ = ["key_dropped", "share_dropped"]


def key_dropped(pool: ConnectionPool, record: Record) -> None:
    """A finaliser's report; it may come at any moment, in any thread, so it takes no lock."""
    if any(key.record is record for key in look_through(record.host.idle)):
        pool._lender.dialler.close_forgotten(record)  # the pool itself is being collected
        return
    if sys.is_finalizing():
        pool._lender.dialler.close_forgotten(record)
        return
    if record.holder == get_ident():  # once it has ended, a thread has no name any more
        record.noted().taker = _own_name()
    # A loan that is to be closed when it comes back is missed as well; but a terminated one did come back.
    is_forgotten = record.phase is Phase.OPEN and record.fate is not CloseReason.TERMINATED
    raw = record.raw
    if is_forgotten:
        record.noted().was_forgotten = True
    pool._lender.books.lost.append(record)  # from here on others recover it, be it this instant
    pool._lender.nudge()
    wink(pool)
    if is_forgotten:
        held = pool._now() - record.since
        notes = record.noted()
        warnings.warn(
            f"connection {record.id} of pool {pool.name!r} to {record.host.endpoint} was not given back:"
            f" it was dropped {held:.1f} s after thread {notes.taker or record.holder!r} took it"
            + (f" at {notes.origin}" if notes.origin is not None else ""),
            ResourceWarning,
            stacklevel=2,
            source=raw,
        )


def share_dropped(pool: ConnectionPool, share: Share, hold: Hold) -> None:
    """The same of one of several holders."""
    if sys.is_finalizing():
        return
    since, thread, origin = hold.sharers.get(share.number, (share.since, get_ident(), None))
    if thread == get_ident():  # once it has ended, a thread has no name any more
        share.is_of(thread := _own_name(), origin)
    pool._lender.books.lost.append((hold, share.number))
    pool._lender.nudge()
    wink(pool)
    record = share.record
    warnings.warn(
        f"a share of connection {record.id} of pool {pool.name!r} to {record.host.endpoint}"
        f" was not given back: it was dropped {pool._now() - since:.1f} s after thread {thread!r} took it"
        + (f" at {origin}" if origin is not None else ""),
        ResourceWarning,
        stacklevel=2,
        source=record.raw,
    )


def _own_name() -> str:
    """The name of this thread, which may have ended but for its finalisers.

    ``current_thread`` would make up another one then, which stays for ever.
    """
    ident = get_ident()
    thread = threading._active.get(ident)  # type: ignore[attr-defined]
    return f"ended thread {ident}" if thread is None else thread.name
