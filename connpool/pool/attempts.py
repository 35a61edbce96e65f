"""Dials and looks on behalf of those who wait: begun, given up, called off, blamed."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterable

from connpool.errors import ConnectError, ConnectTimeoutError
from connpool.model.states import CloseReason
from connpool.pool.backoff import pause_after
from connpool.pool.core import Books
from connpool.pool.failures import again
from connpool.pool.hosts import Host
from connpool.pool.jobs import Dial, Todo
from connpool.pool.record import Key, Phase, Record
from connpool.pool.waiters import PATIENCE, Outcome, Waiter

__all__ = ["Attempts"]


class Attempts:
    """Begins dials and looks for waiters, and ends them. Every method is called with the pool's lock held."""

    def __init__(self, books: Books, *, looks_promptly: bool) -> None:
        self._books = books
        self._queue = books.queue
        self._looks_promptly = looks_promptly

    def looks_itself(self) -> bool:
        """Whether the new holder looks: that never blocks, or its thread does everything. Needs no lock."""
        return self._looks_promptly or self._books.config.dial_in_caller

    def begin_dial(self, waiter: Waiter, host: Host, now: float, todo: Todo) -> bool:
        books = self._books
        if not host.is_for_dialling(waiter.pinned):
            return False
        if books.fleet.is_full or not books.has_place(host, now) or host.endpoint in waiter.dialled:
            if waiter.pinned is None:
                host.rely_on(host.opening)  # begun by those who pin it: this one would have begun them, too
            return False
        if any(record in host.opening for record in waiter.attempts):
            return False  # one dial at a time to one endpoint
        key, cancel = books.reserve(host, now, blames=waiter.pinned is None)
        if waiter.request.where is not None:
            waiter.dialled |= {host.endpoint}  # one that does not pass is not tried again
        self._attempt(waiter, Dial(key, cancel, waiter.number, is_look=False), now, todo)
        return True

    def begin_look(self, waiter: Waiter, key: Key, now: float, todo: Todo) -> None:
        key.record.host.looks[key.record] = now
        self._books.expect(now + self._books.config.connect_timeout)
        dial = Dial(key, threading.Event(), waiter.number, is_look=True)
        self._attempt(waiter, dial, now, todo)

    def _attempt(self, waiter: Waiter, dial: Dial, now: float, todo: Todo) -> None:
        waiter.attempt = dial.key.record
        waiter.attempts += (dial.key.record,)
        waiter.patience_at = now + PATIENCE
        if self._books.config.dial_in_caller:
            waiter.errands += (dial,)
            waiter.wake()
        else:
            todo.dials.append(dial)

    # -- how one ends

    def blame(self, dial: Dial, error: ConnectError, now: float) -> None:
        """A dial failed: remember it for the host, and for who waited for it."""
        host = dial.key.record.host
        underway = host.opening.get(dial.key.record)
        self._charge(host, error, now, blames=underway is not None and underway.blames)
        for waiter in self._queue:
            if waiter.number == dial.number:
                self._note_failure(waiter, host, error, now)
                waiter.wake()
            elif not self._books.config.fail_fast:
                waiter.wake()  # it may sleep till the host is due, and that is another instant now

    def _charge(self, host: Host, error: ConnectError, now: float, *, blames: bool) -> None:
        books = self._books
        books.tally.connect_failures += 1
        books.last_error = error
        host.n_failed += 1
        if blames and not error.local:
            host.fail(error, now, books.config, books.rng)

    def _note_failure(self, waiter: Waiter, host: Host, error: ConnectError, now: float) -> None:
        """*waiter* has tried *host* in vain: it tries it no more, or not before that is due again.

        Where that would be at once (it pins *host*, which is not blacklisted for that; the fault is on this
        machine; a back-off of 0), the waiter has a pause of its own: else it would dial without end.
        """
        waiter.note_failure(host.endpoint, error)
        if host.retry_at is None or now >= host.retry_at:
            pause = pause_after(waiter.n_in_vain + 1, error, self._books.config, self._books.rng)
            waiter.put_off(now + pause)

    def come_back(self, host: Host) -> None:
        """*host* was dialled with success: waiters that have tried it in vain need not wait any longer."""
        last = self._books.last_error
        if last is not None and last.endpoint == host.endpoint:
            self._books.last_error = None
        for waiter in self._queue:
            if host.endpoint in waiter.tried:
                waiter.again_at = waiter.since

    def give_up_hung(self, now: float) -> None:
        """Count dials that should long have ended as failed, though they keep their places until they end."""
        books = self._books
        if now < books.hang_at:
            return
        books.hang_at = math.inf
        for host in list(books.fleet.hosts.values()):
            for record, underway in list(host.opening.items()):
                if now < (hangs_at := books.hangs_at(record)):
                    books.hang_at = min(books.hang_at, hangs_at)
                    continue
                blames = underway.blames and not underway.cancel.is_set()  # called off, it says nothing
                host.hung[record] = underway._replace(blames=blames)
                del host.opening[record]
                error = self._hangs(record, now)
                failed_at = record.opened_at + books.config.connect_timeout  # it is seen only now
                self._charge(host, error, failed_at, blames=blames)
                waiter = self.end_attempt(record)
                if waiter is not None:
                    self._note_failure(waiter, host, error, now)

    def _hangs(self, record: Record, now: float) -> ConnectTimeoutError:
        endpoint = record.host.endpoint
        return ConnectTimeoutError(
            f"opening a connection to {endpoint} goes on after {now - record.opened_at:.1f} s",
            pool=self._books.pool.name,
            endpoint=endpoint,
        )

    def blame_hung(self, hosts: Iterable[Host], now: float) -> bool:
        """Somebody wants any of *hosts*: is one down whose dials all hang, and blamed it for nobody else?"""
        books, is_news = self._books, False
        for host in hosts:
            if host.idle or len(host.hung) < books.config.max_connecting:
                continue
            if host.rely_on(host.hung):
                host.fail(self._hangs(next(iter(host.hung)), now), now, books.config, books.rng)
                is_news = True
        if is_news:
            books.publish(now)
        return is_news

    def asker_of(self, dial: Dial) -> Waiter | None:
        """The waiter for which *dial* was begun, if it still waits."""
        for waiter in self._queue:
            if waiter.number == dial.number and waiter.is_waiting():
                return waiter
        return None

    def end_attempt(self, record: Record) -> Waiter | None:
        """The dial or look of *record* is over, called off or given up. Returns who waited for it."""
        for waiter in self._queue:
            if waiter.attempt is record:
                waiter.attempt = None
                if not waiter.may_wait:
                    waiter.wake()  # it leaves, unless that has brought it something
                return waiter
        return None

    def _bequeath(self, waiter: Waiter) -> None:
        """*waiter* has something now: what is being opened for it is for the next one that could use it."""
        record, waiter.attempt = waiter.attempt, None
        if record is None or record.phase is not Phase.OPENING or not record.host.is_up():
            return  # nobody else need hope for a mere probe
        for heir in self._queue:
            could_use = heir.pinned in (None, record.host.endpoint) and heir.attempt is None
            if could_use and heir.is_waiting() and not heir.errands:
                heir.attempt = record
                heir.patience_at = waiter.patience_at
                return

    def end_eviction(self, record: Record) -> None:
        """*record* is closed. If a waiter that may not wait had it make room, it takes that or leaves."""
        if record.fate is not CloseReason.EVICTED:
            return
        for waiter in self._queue:
            if waiter.eviction is record and not waiter.may_wait:
                waiter.wake()

    def fail(self, waiter: Waiter, error: BaseException) -> None:
        waiter.error = error
        waiter.outcome = Outcome.FAILED
        waiter.wake()
        self._queue.leave(waiter)

    def fail_all(self, error: Exception) -> None:
        """Every waiter gets its own copy of *error*."""
        for waiter in self._queue:
            self.fail(waiter, again(error))
        self._books.publish_queue()

    def call_off(self, dial: Dial) -> None:
        """Nobody will run *dial*: all is as it was before."""
        record, host = dial.key.record, dial.key.record.host
        self.end_attempt(record)
        if dial.is_look:
            host.looks.pop(record, None)
            host.put_back(dial.key)
        else:
            host.owed += dial.is_owed
            self._books.forget(record)

    def _drop_errands(self, waiter: Waiter) -> None:
        while waiter.errands:
            self.call_off(waiter.next_errand())
