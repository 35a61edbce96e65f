"""What is idle: taken for good, or shared, without a dial."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterable
from contextlib import suppress
from typing import Any, Final

from connpool.model.request import Request
from connpool.model.states import POOL_CLOSED, CloseReason
from connpool.pool.flock import Flock
from connpool.pool.hosts import Host
from connpool.pool.jobs import Todo
from connpool.pool.lending import Lender
from connpool.pool.observed import tell_of
from connpool.pool.record import Key
from connpool.pool.shared import SharedConnection
from connpool.pool.sharing import Share, add_share, form, leave, pick
from connpool.pool.snapshots import connection_info
from connpool.pool.unwinding import keeping_no_key

__all__ = ["Stock"]

LONGEST_LOOK: Final = 0.1  # seconds that another's look is waited for: it may be foreign code, and hang


class Look(threading.Event):
    """One thread looks at an idle connection; set when that is shared, or seen off."""

    def __init__(self) -> None:
        super().__init__()
        self.thread = threading.get_ident()


class Stock:
    """Takes and shares idle connections of one pool; dials nothing."""

    def __init__(self, lender: Lender) -> None:
        self._lender = lender
        self._lock = lender._lock
        self._books = lender.books
        self._looks: Flock[Look] = Flock()  # at connections that are neither idle nor shared meanwhile

    @keeping_no_key
    def take(self, request: Request) -> Any:
        """An idle transport, for good; None: none is usable. Dials nothing, waits for nothing."""
        key = self._find_idle(request)
        return None if key is None else self._lender.let_go(key)

    @keeping_no_key
    def share(self) -> SharedConnection | None:
        """A share of what is idle, or shared already. Dials nothing, waits for nothing but another's look."""
        while True:
            todo = Todo()
            with self._lock:
                self._lender.check_open_locked()
                found = self._find_locked(todo)
            if found is None or (isinstance(found, Look) and not found.wait(LONGEST_LOOK)):
                return None
            if isinstance(found, Look):
                continue  # it is shared by now, or gone
            share = self._look_and_form(*found, todo) if isinstance(found, tuple) else found
            if share is None:
                continue
            self._lender.carry_out(todo)
            is_closed = self._books.state is POOL_CLOSED  # by a hook, perhaps, of the look
            if share.record.fate in (None, CloseReason.USED_UP) and not is_closed:
                conn = SharedConnection()
                conn._record, conn._key = share.record, share
                return tell_of(self._lender, conn)
            leave(self._lender, share, was_had=False)

    def _find_locked(self, todo: Todo) -> Share | tuple[Key, Look] | Look | None:
        """A share; or what must be looked at first, and that look; or else the look of another thread."""
        now = self._lender.now()
        if (key := self._pop_lending()) is not None:
            if (reason := self._books.idle_verdict(key.record, now)) is not None:
                key.record.condemn(reason)
            elif now - key.record.since < self._lender.pool._fresh_for:
                return self._form_locked(key, todo)
            self._looks.add(look := Look())
            return key, look
        if not self._books.queue.has_loner() and (hold := pick(self._books, now)) is not None:
            return add_share(self._books, hold, now)
        me = threading.get_ident()
        return next((look for look in self._looks if look.thread != me), None)

    def _look_and_form(self, key: Key, look: Look, todo: Todo) -> Share | None:
        """Look while nobody shares it: over TLS a look reads. None: it is dead, and seen off."""
        try:
            if key.record.fate is None:
                self._lender.look_at(key)
            if key.record.fate is not None:
                self._lender.take_back(key)
                return None
            with self._lock:
                share = self._form_locked(key, todo)
            return share  # noqa: RET504 - no signal is looked for between a store and the end of a locked section
        finally:
            self._looks.discard(look)
            look.set()

    def _form_locked(self, key: Key, todo: Todo) -> Share:
        now = self._lender.now()
        share = form(self._books, key, now)
        self._lender.service.serve(now, todo)  # others may join at once
        return share

    def _find_idle(self, request: Request) -> Key | None:
        """An idle key whose connection is usable and suits *request*; dead ones are seen off."""
        aside: list[Key] = []
        try:
            while (key := self._pop_any(request)) is not None:
                record = key.record
                reason = self._books.idle_verdict(record, self._lender.now())
                if reason is not None:
                    record.condemn(reason)
                else:
                    self._lender.look_at(key)
                if record.fate is not None:
                    self._lender.take_back(key)
                    continue
                aside.append(key)  # unless it suits: `where` may raise
                if request.where is None or request.where(connection_info(record, is_idle=True)):
                    return aside.pop()
            return None
        finally:
            for key in reversed(aside):
                if key.record.fate is None:
                    key.record.host.idle.append(key)
                else:  # cleared while the filter was asked
                    self._lender.take_back(key)
            if aside:
                self._lender.serve()

    def _pop_any(self, request: Request) -> Key | None:
        """An idle key of the endpoint asked for; else of a host that lends just now, or else of any other."""
        fleet = self._books.fleet
        if request.endpoint is not None:
            host = fleet.hosts.get(request.endpoint)
            return self._pop_from(() if host is None else (host,))
        key = self._pop_lending()
        return self._pop_from(itertools.chain(*fleet.groups, fleet.beside())) if key is None else key

    def _pop_lending(self) -> Key | None:
        """An idle key that a checkout without wishes may get just now."""
        fleet = self._books.fleet
        try:
            return fleet.take_any(next(fleet.turns))
        except IndexError:
            return None

    def _pop_from(self, hosts: Iterable[Host]) -> Key | None:
        for host in hosts:
            with suppress(IndexError):
                return host.idle.pop()
        return None
