"""A connection in hand: whether it may be lent, and the loan that is made of it."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from connpool.model.states import POOL_OPEN, CloseReason
from connpool.pool.connection import Connection
from connpool.pool.core import Books
from connpool.pool.jobs import Todo
from connpool.pool.record import Key
from connpool.pool.shared import SharedConnection
from connpool.pool.sharing import Share, form, leave
from connpool.pool.snapshots import connection_info
from connpool.pool.waiters import Waiter

if TYPE_CHECKING:
    from connpool.pool.lending import Lender

__all__ = ["Fitting"]


class Fitting:
    """The last step of a ``Checkout``, of which it is a part: from a key to a loan."""

    __slots__ = ()

    _lender: Lender
    _books: Books
    _waiter: Waiter

    def _needs_look_apart(self, key: Key) -> bool:
        """Whether *key*'s connection must be looked at, and by a thread of the pool."""
        now = self._lender.now()
        is_in_its_time = self._books.idle_verdict(key.record, now) is None
        is_slow = not self._lender.service.looks_itself()
        return is_slow and is_in_its_time and self._books.needs_look(key.record, now, self._waiter)

    def _lend(self, key: Key) -> Connection | None:
        """Make a loan of *key* if its connection proves usable; else see it off and return None."""
        record, waiter, lender = key.record, self._waiter, self._lender
        pool, now, request = lender.pool, lender.now(), waiter.request
        if waiter.handed_at is not None:
            self._books.pace.note(now - waiter.handed_at)
            waiter.handed_at = None
        if request.shared and isinstance(key, Share):
            return self._lend_shared(key, now) if self._suits_share(key) else None
        is_beyond_doubt = (  # the fast path would lend it as well
            now < pool._lend_until
            and now < record.expires_at
            and now - record.since < pool._fresh_for
            and not waiter.must_look
            and request.where is None
        )
        if not is_beyond_doubt:
            if not self._is_good(key, now):
                return None
            now = lender.now()  # the loan begins when the look, or the filter, is over
        if request.shared:
            return self._lend_shared(key, now)
        conn = Connection()
        conn._record = record
        conn._key = key
        record.since = now
        record.holder = threading.get_ident()
        record.uses += 1
        most = self._books.config.max_uses
        if most is not None and record.uses >= most:
            record.condemn(CloseReason.USED_UP)
        return conn

    def _lend_shared(self, key: Key, now: float) -> Connection:
        """Make a share of *key*, be it the first."""
        lender, todo = self._lender, Todo()
        if not isinstance(key, Share):
            with lender._lock:
                key = form(self._books, key, now)
                lender.service.serve(now, todo)  # others may join at once
        else:
            key.note_holder(threading.get_ident())  # another thread may have made it for us
        conn = SharedConnection()
        conn._record = key.record
        conn._key = key
        lender.carry_out(todo)
        return conn

    def _is_good(self, key: Key, now: float) -> bool:
        """Whether *key* may be lent. One that may not has been seen off, one that does not suit put back."""
        record, waiter, lender = key.record, self._waiter, self._lender
        reason = self._books.idle_verdict(record, now)
        if reason is not None:
            record.condemn(reason)
        elif lender.service.looks_itself() and self._books.needs_look(record, now, waiter):
            lender.look_at(key)
        if record.fate is not None:
            lender.take_back(key)
            return False
        where = waiter.request.where
        try:
            suits = where is None or bool(where(connection_info(record, is_idle=True)))
        except BaseException:
            self._put_back(key)
            raise
        if not suits:
            waiter.refuse(record)
        elif self._books.state is POOL_OPEN:  # a hook or a filter may have closed it
            return True
        self._put_back(key)
        return False

    def _suits_share(self, share: Share) -> bool:
        """Whether the request likes the connection. A share that it does not is given up."""
        where, suits, is_lent = self._waiter.request.where, False, False
        try:
            suits = where is None or bool(where(connection_info(share.record, is_idle=False)))
            is_lent = suits and self._books.state is POOL_OPEN
        finally:
            if not suits:
                self._waiter.refuse(share.record)
            if not is_lent:
                leave(self._lender, share, was_had=False)
        return is_lent

    def _put_back(self, key: Key) -> None:
        """As it was: nobody used it. Who could do with it is served when we queue up again, or leave."""
        if key.record.fate is not None:  # cleared while the filter was asked
            self._lender.take_back(key)
            return
        key.record.host.idle.append(key)
