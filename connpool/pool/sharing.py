"""Connections that several hold at once."""

from __future__ import annotations

import itertools
from threading import get_ident
from typing import TYPE_CHECKING, Final

from connpool.model.states import CloseReason
from connpool.pool.lifetimes import verdict
from connpool.pool.record import Key, Phase, Record
from connpool.pool.turns import Turns

if TYPE_CHECKING:
    from connpool.pool.core import Books
    from connpool.pool.lending import Lender
    from connpool.pool.waiters import Waiter

__all__ = ["Hold", "Share", "add_share", "dissolve", "form", "leave", "pick"]


class Hold:
    """A connection that is shared: who shares it holds a ``Share``, and this holds the key.

    A record keeps it for the next time. All but ``turns`` changes under the pool's lock.
    """

    __slots__ = ("joined", "key", "record", "sharers", "turns")

    def __init__(self, record: Record) -> None:
        self.record = record
        self.key: Key | None = None  # while it is shared
        self.sharers: set[int] = set()  # the numbers of the shares, so that one cannot leave twice
        self.joined = 0  # the number of the latest
        self.turns = Turns()  # at writing on it


class Share(Key):
    """The right of one of several to use a record. The record's own key lies in the hold."""

    __slots__ = ("hold", "number", "since")

    def __init__(self, hold: Hold, number: int, now: float) -> None:
        self.record = hold.record
        self.number = number
        self.since = now
        self.hold: Hold | None = hold  # None: it has ended

    def __del__(self) -> None:
        hold: Hold | None = getattr(self, "hold", None)
        if hold is not None and self.record.phase is not Phase.CLOSED:
            self.record.pool._share_dropped(self, hold)


_numbers: Final = itertools.count(1)


def form(books: Books, key: Key, now: float) -> Share:
    """Let *key*'s connection be shared from now on; the first share of it. With the lock held.

    The share is there before the hold has the key: an interrupt in between drops either, and it is found.
    """
    record = key.record
    record.since = now
    notes = record.notes or record.noted()
    hold = notes.hold
    if hold is None:
        hold = notes.hold = Hold(record)
    share = add_share(books, hold, now)
    hold.key = key
    books.holds.append(hold)
    return share


def add_share(books: Books, hold: Hold, now: float) -> Share:
    """One more share of *hold*. With the lock held."""
    record, most = hold.record, books.config.max_uses
    record.holder = get_ident()
    record.uses += 1
    if most is not None and record.uses >= most:
        record.condemn(CloseReason.USED_UP)
    number = next(_numbers)
    share = Share(hold, number, now)
    hold.sharers.add(number)
    hold.joined = number
    return share


def dissolve(books: Books, hold: Hold, number: int) -> Key | None:
    """Share *number* of *hold* ends. Returns the connection's key if it was the last. With the lock held.

    May be done twice: what an interrupt has left half done the finaliser has done again.
    """
    hold.sharers.discard(number)
    key = hold.key
    if hold.sharers or key is None:
        return None
    if hold in books.holds:
        books.holds.remove(hold)
    hold.key = None
    return key


def pick(books: Books, now: float, waiter: Waiter | None = None) -> Hold | None:
    """The least shared connection that one more may hold; None: none. With the lock held.

    Of several the one that was joined longest ago. *waiter*: for whom; None: for one without any wishes.
    """
    most = books.config.max_sharers
    best: Hold | None = None
    for hold in books.holds:
        record = hold.record
        if now >= record.expires_at or verdict(books.config, record, now) is not None:
            continue
        is_free = most is None or len(hold.sharers) < most
        is_best = best is None or (len(hold.sharers), hold.joined) < (len(best.sharers), best.joined)
        if is_free and is_best and _suits(books, record, waiter):
            best = hold
    return best


def _suits(books: Books, record: Record, waiter: Waiter | None) -> bool:
    if waiter is None:
        return books.fleet.lends(record.host)
    if waiter.is_fresh_only or waiter.refused.get(record) == record.since:
        return False
    if waiter.pinned is not None:
        return record.host.endpoint == waiter.pinned
    return books.fleet.lends(record.host)


def leave(lender: Lender, share: Share) -> None:
    """One of several holders gives *share* back.

    Raises:
        UsageError: the process was forked since: the connection is the parent's.
    """
    hold, record, books = share.hold, share.record, lender.books
    if record.phase is not Phase.OPEN:
        share.hold = None  # there is nothing to be found lost
    record.check_may_return()
    assert hold is not None
    try:
        if books.is_heard:
            now = lender.clock.now()
            lender.tell_checked_in(record, now, now - share.since)
    finally:
        with lender._lock:
            key = dissolve(books, hold, share.number)
            # In one go: a connection that somebody else could share is at no moment out of sight.
            is_idle = key is not None and lender.lay_down(key, lender.pool._now())
            share.hold = None
        if key is None or is_idle:
            if lender.pool._is_awaited or books.config.max_sharers is not None:
                lender.serve()
        else:
            lender.take_back(key)
