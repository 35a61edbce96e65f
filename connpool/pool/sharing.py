"""Connections that several hold at once."""

from __future__ import annotations

import gc
import itertools
from collections.abc import Collection
from threading import get_ident
from typing import TYPE_CHECKING, Final

from connpool.model.states import CloseReason
from connpool.pool.census import wink
from connpool.pool.record import CLOSED, OPEN, Key, Record, Tenure
from connpool.pool.turns import Turns

if TYPE_CHECKING:
    from connpool.pool.core import Books
    from connpool.pool.hosts import Host
    from connpool.pool.lending import Lender
    from connpool.pool.origin import Origin
    from connpool.pool.waiters import Waiter

__all__ = ["BROKEN_OFF", "Hold", "Share", "add_share", "dissolve", "form", "leave", "loans_of", "pick"]


BROKEN_OFF: Final = 0  # stands for a thread; no thread has this number


class Hold:
    """A connection that is shared: who shares it holds a ``Share``, and this holds the key.

    A record keeps it for the next time. All but ``turns`` and ``amid`` changes under the pool's lock, except
    that a number leaves ``sharers`` without it: whoever finds none left looks again with the lock.
    """

    __slots__ = ("amid", "joined", "key", "record", "sharers", "spare", "turns")

    def __init__(self, record: Record) -> None:
        self.record = record
        self.key: Key | None = None  # while it is shared
        # By the numbers of the shares, so that one cannot leave twice; the oldest first.
        self.sharers: dict[int, Tenure] = {}
        self.joined = 0  # the number of the latest
        self.spare: Share | None = None  # one that has ended: to make and to finalise another takes a tenth
        self.turns = Turns()  # at writing on it
        self.amid: int | None = None  # the thread that writes or exchanges, in its turn; or BROKEN_OFF


class Share(Key):
    """The right of one of several to use a record. The record's own key lies in the hold."""

    __slots__ = ("hold", "number", "since", "uses")

    hold: Hold | None  # None: it has ended
    number: int
    since: float
    uses: int  # loans of its connection before it

    def note_holder(self, thread: int | str, origin: Origin | None = None) -> None:
        """Write down whose it is, where that was not known when it was made, or may not be known for long."""
        if self.hold is not None and self.number in self.hold.sharers:
            self.hold.sharers[self.number] = (self.since, thread, origin)

    def __init__(self) -> None:
        """Nothing yet: ``add_share`` fills it in, without the cost of a call."""

    def _report(self) -> None:
        record, hold = getattr(self, "record", None), getattr(self, "hold", None)
        if record is not None and hold is not None and record.phase is not CLOSED:
            record.pool._share_dropped(self, hold)


_numbers: Final = itertools.count(1)


def add_share(books: Books, hold: Hold, now: float, key: Key | None = None) -> Share:
    """One more share of *hold*; with the *key* of its connection: the first. With the lock held.

    The share is there before the hold has the key: an interrupt in between drops either, and it is found.
    """
    record, most = hold.record, books.config.max_uses
    record.holder = holder = get_ident()
    record.uses += 1
    if most is not None and record.uses >= most:
        record.condemn(CloseReason.USED_UP)
    share = hold.spare
    if share is None or gc.is_finalized(share):  # its finaliser would not come again
        share = Share()
        share.record = record
    else:
        hold.spare = None
    share.since = now
    share.uses = record.uses - 1
    share.number = hold.joined = number = next(_numbers)
    share.hold = hold
    hold.sharers[number] = (now, holder, None)
    if key is not None:
        record.since = now
        hold.key = key
        books.holds[hold] = None
    return share


def form(books: Books, key: Key, now: float) -> Share:
    """Let *key*'s connection be shared from now on. With the lock held."""
    notes = key.record.notes or key.record.noted()
    hold = notes.hold
    if hold is None:
        hold = notes.hold = Hold(key.record)
        if key.record.stream is not None:
            key.record.stream.expect_company()
    return add_share(books, hold, now, key)


def loans_of(record: Record) -> dict[int, Tenure]:
    """All present loans of *record*, which is lent: its shares by their numbers, the oldest first, or one."""
    hold = None if record.notes is None else record.notes.hold
    return {0: record.tenure} if hold is None or hold.key is None else hold.sharers.copy()


def dissolve(books: Books, hold: Hold) -> Key | None:
    """A share of *hold* has ended. Returns the connection's key if it was the last. With the lock held.

    May be done twice: what an interrupt has left half done the finaliser has done again.
    """
    if hold.sharers:
        return None
    if hold.amid is not None:  # the rest of a message or of an answer is still to come
        hold.record.condemn(CloseReason.BROKEN)
    key = hold.key
    books.holds.pop(hold, None)
    hold.key = None
    return key


def pick(
    books: Books, now: float, waiter: Waiter | None = None, hosts: Collection[Host] | None = None
) -> Hold | None:
    """The least shared connection that one more may hold; None: none. With the lock held.

    Of several the one that was joined longest ago. *waiter*: for whom; None: for one without any wishes.
    *hosts*: to which it may lead, where nothing is pinned; None: to those that are lent from just now.
    """
    most = books.config.max_sharers
    best: Hold | None = None
    for hold in books.holds:
        record, load = hold.record, len(hold.sharers)
        if now >= record.expires_at:
            continue
        if best is not None:
            is_better = (load, hold.joined) < (len(best.sharers), best.joined)
        else:
            is_better = most is None or load < most
        if is_better and _suits(record, waiter, books.fleet.lending if hosts is None else hosts):
            best = hold
    return best


def _suits(record: Record, waiter: Waiter | None, hosts: Collection[Host]) -> bool:
    if waiter is not None:
        if waiter.is_fresh_only or waiter.refused.get(record) == record.since:
            return False
        if waiter.pinned is not None:
            return record.host.endpoint == waiter.pinned
    return record.host in hosts


def leave(lender: Lender, share: Share, *, was_had: bool = True) -> None:
    """One of several holders gives *share* back.

    Args:
        was_had: Somebody was told of having it, and so is told of its return; else it came too late, or
            did not suit.

    Raises:
        UsageError: the process was forked since: the connection is the parent's.

    Locking: the pool's lock for the last one; none for the others, which only strike out their number.
    """
    hold, record, books = share.hold, share.record, lender.books
    if record.phase is not OPEN:
        share.hold = None  # there is nothing to be found lost
        record.check_may_return()
    assert hold is not None
    key: Key | None = None
    try:
        if not was_had:
            with lender._lock:
                record.uses -= 1
        elif books.is_heard:
            now = lender.now()
            lender.tell_checked_in(record, now, now - share.since)
    finally:
        hold.sharers.pop(share.number, None)
        if not hold.sharers and lender.is_inside():  # whom we interrupted may let somebody join
            books.lost.append((hold, share.number))
            lender.nudge()
            wink(lender.pool)
        elif not hold.sharers:
            with lender._lock:
                # In one go: a connection that somebody else could share is at no moment out of sight.
                key = dissolve(books, hold)
                if key is not None:
                    pool, now, stream = record.pool, record.pool._now(), record.stream
                    if (
                        now < record.expires_at
                        and now < books.return_until
                        and now - record.since < pool._brief_for
                        and (stream is None or stream.is_clean())
                    ):
                        record.since = now
                        record.host.idle.append(key)
                        key = None
        share.hold = None
        hold.spare = share
        if key is not None:
            lender.take_back(key)
        elif lender.pool._is_awaited or books.config.max_sharers is not None:
            lender.serve()
