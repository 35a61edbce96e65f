"""The desk between users and the books: everything but the fast path goes through here."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from connpool.clock import Clock
from connpool.errors import CancelledError, PoolClosedError, UsageError
from connpool.model.config import PoolConfig
from connpool.model.endpoint import Endpoint
from connpool.model.states import CloseReason, PoolState
from connpool.pool.core import BRIEF, Books
from connpool.pool.dialing import Dialler
from connpool.pool.failures import as_connect_error
from connpool.pool.hosts import Host
from connpool.pool.jobs import Dial, Todo
from connpool.pool.record import Key, Phase, Record
from connpool.pool.room import would_rather_dial
from connpool.pool.service import Service
from connpool.pool.waiters import Outcome, Waiter
from connpool.wire.connector import FullConnector
from connpool.wire.io import SHUT_RDWR, is_stream
from connpool.wire.look import interrupt

if TYPE_CHECKING:
    from connpool.pool.pool import ConnectionPool

__all__ = ["Lender"]


class Lender:
    """Decides under the lock, acts without it, records under it again.

    The lock guards the books, the service and the queue. It is re-entrant only
    so that a signal handler or a finaliser that strikes in the middle of a
    locked section can be told from another thread, and turned away: see
    ``is_inside``. Nothing is ever decided in a re-entered section.
    """

    def __init__(
        self, pool: ConnectionPool, connector: FullConnector, clock: Clock, config: PoolConfig
    ) -> None:
        self.pool = pool
        self.clock = clock
        self.connector = connector
        self._lock = threading.RLock()
        self.books = Books(pool, config, clock.overtake_delay, has_reset=connector.has_reset)
        self.service = Service(self.books, looks_are_prompt=connector.prompt or config.dial_in_caller)
        self.dialler = Dialler(self, connector, pool.name)
        self.numbers = itertools.count(1)  # of checkouts, in order of arrival
        # Whether this very thread is in a locked section, interrupted by what asks.
        self.is_inside: Callable[[], bool] = self._lock._is_owned  # type: ignore[attr-defined]

    @property
    def config(self) -> PoolConfig:
        return self.books.config

    def serve(self, *, is_brisk: bool = False) -> None:
        """Serve the queue, because something has become free. *is_brisk*: after a brief loan."""
        if self.is_inside():
            self.nudge()
            return
        todo = Todo()
        with self._lock:
            self.service.serve(self.clock.now(), todo, is_brisk=is_brisk)
        self.carry_out(todo)

    def nudge(self) -> None:
        """Make the oldest waiter look for itself. Takes no lock: for finalisers and the like."""
        oldest = self.books.queue.oldest
        if oldest is not None:
            oldest.wake()

    def carry_out(self, todo: Todo) -> None:
        """Do what was decided, and what is decided in consequence. No lock is held."""
        blow: BaseException | None = None
        while todo:
            while todo.dials:
                dial = todo.dials.pop()
                if not self.dialler.start(dial):
                    self._send_on_errand(dial)
            closed, error = self.dialler.close_all(todo.doomed)
            blow = blow or error
            todo = Todo()
            if closed:
                self._forget(closed, todo)
        if blow is not None:
            raise blow

    def _send_on_errand(self, dial: Dial) -> None:
        """No thread can be had for *dial*: the waiter it was begun for runs it on its own."""
        with self._lock:
            for waiter in self.books.queue:
                if waiter.number == dial.number and waiter.is_waiting():
                    waiter.errands.append(dial)
                    waiter.wake()
                    return
        del dial.key  # nobody waits for it any more: its finaliser frees the place

    def record_closed(self, keys: list[Key]) -> None:
        """These are closed: their places are free."""
        todo = Todo()
        self._forget(keys, todo)
        self.carry_out(todo)

    def _forget(self, keys: list[Key], todo: Todo) -> None:
        with self._lock:
            for key in keys:
                self.books.forget(key.record)
            self.service.serve(self.clock.now(), todo)

    # -- what comes back

    def take_back(self, key: Key) -> None:
        """The long way of a return: reset it, hand it to a waiter, keep it, or close it."""
        record = key.record
        if record.phase is not Phase.OPEN:
            raise UsageError(
                f"connection {record.id} of pool {self.pool.name!r} cannot be given back here:"
                f" it is {record.phase.value}, or belongs to the process that this one was forked from",
                pool=self.pool.name,
            )
        if record.fate is None and (self.connector.has_reset or record.stream is not None):
            try:
                self._make_ready(record)
            except BaseException:  # a reset that was interrupted has its connection closed, not forgotten
                self._settle(key)
                raise
        self._settle(key)
        if record.fate is CloseReason.BROKEN and self.service.looks_are_prompt:
            self._look_at_siblings(record.host)

    def _look_at_siblings(self, host: Host) -> None:
        """One connection broke: those idle beside it are looked at now, not by their next holders."""
        for key in host.idle.copy():
            if not host.withdraw(key):
                continue
            self.look_at(key)
            if key.record.fate is not None:
                self._settle(key)
            else:
                host.idle.append(key)
                self.serve()

    def _make_ready(self, record: Record) -> None:
        """Reset what comes back, or condemn it if it cannot serve a next holder."""
        if record.stream is not None and not record.stream.is_clean():
            record.condemn(CloseReason.DIRTY if record.stream.rest else CloseReason.BROKEN)
        if record.fate is None and self.connector.has_reset:
            try:
                is_ready = self.dialler.reset(record)
            except BaseException:
                record.condemn(CloseReason.DIRTY)
                raise
            if not is_ready:
                record.condemn(CloseReason.DIRTY)

    def look_at(self, key: Key) -> None:
        """Look at an idle connection on this very thread; condemn it if it is dead."""
        try:
            is_usable = self.dialler.is_usable(key.record)
        except BaseException:
            key.record.condemn(CloseReason.BROKEN)
            self.take_back(key)
            raise
        if not is_usable:
            key.record.condemn(CloseReason.BROKEN)

    def _settle(self, key: Key) -> None:
        """A waiter gets it, or it lies idle, or it is closed."""
        record = key.record
        if self.is_inside():
            self._settle_inside(key)
            return
        with self._lock:
            now = self.clock.now()
            reason = self._fate_locked(record, now)
            is_brisk = now - record.since < BRIEF
            if reason is None and self.books.fleet.poor and would_rather_dial(self.books, record, now):
                reason = CloseReason.EVICTED
            if reason is None:
                record.since = now
                if not self.service.hand_over(key, now, is_brisk=is_brisk):
                    record.host.idle.append(key)
                elif self.service.is_content(now):
                    return
            todo = Todo()
            if reason is not None:
                self.books.doom(key, reason, todo)
            self.service.serve(now, todo, is_brisk=is_brisk)
        self.carry_out(todo)

    def _settle_inside(self, key: Key) -> None:
        """A return by what interrupted a locked section: only what needs no lock."""
        if key.record.fate is None:
            key.record.since = self.clock.now()
            key.record.host.idle.append(key)
        self.nudge()  # one that must be closed is recovered like a lost one, by who looks next

    def _fate_locked(self, record: Record, now: float) -> CloseReason | None:
        """Why a connection that is on nobody's hands must be closed; None: it is kept."""
        books = self.books
        if now < record.expires_at and not books.is_strict:
            return None
        reason = books.verdict(record, now)
        if reason is None and books.state is PoolState.CLOSED:
            reason = CloseReason.POOL_CLOSED
        if reason is None and books.is_oversized:
            reason = CloseReason.SURPLUS
        return reason

    def let_go(self, key: Key) -> Any:
        """The transport leaves the pool open. Returns it."""
        record = key.record
        with self._lock:
            raw, record.raw = record.raw, None
            self.books.forget(record)
        self.serve()
        return raw

    def upgraded(self, record: Record) -> None:
        """A loan speaks TLS now: it belongs to the TLS endpoint, on the route or not."""
        plain = record.host.endpoint
        if record.phase is not Phase.OPEN or plain.tls:
            return  # while it is being opened, the upgrade is how this pool opens
        with self._lock:
            host = self.books.fleet.host(Endpoint(plain.host, plain.port, tls=True), self.clock.now())
            host.records.add(record)
            old, record.host = record.host, host
            old.records.discard(record)
        self.serve()

    # -- what dials bring

    def record_dial(self, dial: Dial, error: BaseException | None, began: float) -> None:
        """A dial or look is over: its connection is idle, or its place is free, and waiters are told."""
        key, record, books = dial.key, dial.key.record, self.books
        todo = Todo()
        with self._lock:
            now = self.clock.now()
            waiter = self.service.attempt_is_over(record)
            if waiter is not None:
                waiter.is_busy = False
            if error is None:
                if not dial.is_look:
                    books.admit(record, now)
                    record.host.succeed(now)
                    books.dials.record(now - began)
                reason = self._fate_locked(record, now)
                record.since = now
                if reason is not None:
                    books.doom(key, reason, todo)
                elif dial.is_look and waiter is not None and waiter.is_waiting():
                    self.service.give(waiter, key, now)  # one look a checkout, however soon the next is due
                else:
                    record.host.idle.append(key)
            elif dial.is_look:
                books.doom(key, CloseReason.BROKEN, todo)
            else:
                if not self._was_called_off(dial, error):
                    failure = as_connect_error(error, self.pool.name, record.host.endpoint)
                    self.service.blame(dial, failure, now)
                if record.raw is None:
                    books.forget(record)
                else:
                    books.doom(key, CloseReason.BROKEN, todo)
            self.service.serve(now, todo)
        self.carry_out(todo)

    @staticmethod
    def _was_called_off(dial: Dial, error: BaseException) -> bool:
        """Whether a dial failed for our own reasons, and says nothing of the endpoint."""
        is_cancelled = dial.cancel.is_set() or isinstance(error, CancelledError)
        is_haste = dial.is_hurried and isinstance(error, TimeoutError)
        is_interrupt = dial.is_errand and not isinstance(error, Exception)
        return is_cancelled or is_haste or is_interrupt

    def abandon(self, waiter: Waiter) -> None:
        """Call off what is being opened for *waiter*, unless somebody else may use it."""
        with self._lock:
            record = waiter.attempt
            if waiter.is_waiting():  # it leaves before the dial ends, or another would be begun for it
                waiter.outcome = Outcome.LEFT
                self.books.queue.leave(waiter)
            if record is None or record.phase is not Phase.OPENING or len(self.books.queue) > 0:
                return
            self.call_off_locked(record)
        self.interrupt(record, SHUT_RDWR, "the request was cancelled")

    def call_off_locked(self, record: Record) -> None:
        """Cancel the dial that is opening *record*, if one is."""
        cancel = record.host.opening.get(record)
        if cancel is not None:
            cancel.set()

    def check_open_locked(self) -> None:
        state = self.books.state
        if state is not PoolState.OPEN:
            raise PoolClosedError(f"pool {self.pool.name!r} is {state.value}", pool=self.pool.name)

    @staticmethod
    def interrupt(record: Record, how: int, why: str) -> None:
        """Make blocked input and output on *record* end. The owner closes it, not we."""
        if is_stream(record.raw):
            record.streaming().interrupt(how, why)
        elif record.raw is not None:
            interrupt(record.raw, how)
