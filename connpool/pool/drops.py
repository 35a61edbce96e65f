"""What finalisers report: keys, and shares of connections, that nobody gave back."""

from __future__ import annotations

import sys
import threading
import warnings
from threading import get_ident
from typing import TYPE_CHECKING

from connpool.model.states import CloseReason
from connpool.pool.census import wink
from connpool.pool.record import Key, Phase

if TYPE_CHECKING:
    from connpool.pool.pool import ConnectionPool
    from connpool.pool.sharing import Hold, Share

__all__ = ["key_dropped", "share_dropped"]


def key_dropped(pool: ConnectionPool, key: Key) -> None:
    """A finaliser's report; it may come at any moment, in any thread, so it takes no lock."""
    record, is_loan = key.record, key.record.phase is Phase.OPEN
    if _leaves_pool(key) or sys.is_finalizing():  # the pool itself is being collected
        record.condemn(CloseReason.POOL_CLOSED)
        pool._lender.dialler.close_forgotten(record)
        pool._lender.books.lost.append(record)  # for a finaliser that uses the pool nevertheless
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
    if is_loan:
        del key.record  # a finaliser of others that comes later and has the loan cannot use it
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
        share.note_holder(thread := _own_name(), origin)
    record = share.record
    pool._lender.books.lost.append((hold, share.number))
    pool._lender.nudge()
    wink(pool)
    del share.record  # as above
    warnings.warn(
        f"a share of connection {record.id} of pool {pool.name!r} to {record.host.endpoint}"
        f" was not given back: it was dropped {pool._now() - since:.1f} s after thread {thread!r} took it"
        + (f" at {origin}" if origin is not None else ""),
        ResourceWarning,
        stacklevel=2,
        source=record.raw,
    )


def _leaves_pool(key: Key) -> bool:
    """Take *key* from where it lies in its pool. False: it is in a loan, or in somebody's hands."""
    notes = key.record.notes
    hold = None if notes is None else notes.hold
    if hold is not None and hold.key is key:
        hold.key = None
        return True
    return key.record.host.withdraw(key)


def _own_name() -> str:
    """The name of this thread, which may have ended but for its finalisers.

    ``current_thread`` would make up another one then, which stays for ever.
    """
    ident = get_ident()
    thread = threading._active.get(ident)  # type: ignore[attr-defined]
    return f"ended thread {ident}" if thread is None else thread.name
