"""One checkout on the long way: look, queue up, wait, and leave without losing anything."""

from __future__ import annotations

import math
import threading
from typing import TYPE_CHECKING, Final

from connpool.errors import (
    CancelledError,
    CheckoutTimeoutError,
    NotSharableError,
    PoolExhaustedError,
    UsageError,
)
from connpool.model.checks import require_seconds
from connpool.model.request import Request
from connpool.model.states import CloseReason, PoolState
from connpool.pool.connection import Connection
from connpool.pool.dialing import EitherCancel
from connpool.pool.jobs import Todo
from connpool.pool.record import Key, Record
from connpool.pool.service import PATIENCE
from connpool.pool.snapshots import connection_info, describe_loans
from connpool.pool.waiters import Outcome, Waiter

if TYPE_CHECKING:
    from connpool.pool.lending import Lender

__all__ = ["Checkout"]

CANCEL_POLL: Final = 0.02  # seconds between two looks at a request's cancel flag
DIAL_MARGIN: Final = 0.1  # seconds by which a caller that may not wait outlives its own dial


class Checkout:
    """What one thread does to get one connection when none lies ready.

    Args:
        turn: Number of the turn that the fast path took already; None: none yet.
        fresh_only: Nothing that was lent before will do.
    """

    def __init__(
        self,
        lender: Lender,
        request: Request,
        timeout: float | None,
        turn: int | None,
        *,
        fresh_only: bool = False,
    ) -> None:
        self._lender = lender
        self._lock = lender._lock
        self._books = lender.books
        self._clock = lender.clock
        self._request = request
        self._name = lender.pool.name
        if request.shared:
            raise NotSharableError(f"pool {self._name!r} lends exclusively", pool=self._name)
        if lender.is_inside():
            raise UsageError(
                f"pool {self._name!r}: a checkout by what interrupted the pool itself"
                " (a signal handler, a finaliser)",
                pool=self._name,
            )
        self._limit = self._seconds(timeout)
        now = lender.clock.now()
        self._deadline = None if self._limit is None else now + self._limit
        self._has_tried_all = turn is not None  # the fast path found nothing idle anywhere
        turn = next(self._books.fleet.turns) if turn is None else turn
        self._waiter = Waiter(request, next(lender.numbers), turn, now, fresh_only=fresh_only)

    def _seconds(self, timeout: float | None) -> float | None:
        if timeout is None:
            timeout = self._request.timeout
        if timeout is None:
            return self._books.config.checkout_timeout
        require_seconds("timeout", timeout, or_zero=True)
        return timeout

    def run(self, key: Key | None = None) -> Connection:
        """Get a connection. *key*: an idle one the fast path took but could not lend unseen."""
        waiter = self._waiter
        try:
            self._check_cancel()
            if key is None:
                key = self._take_quickly()
            if key is not None and not (self._is_in_its_time(key) and self._needs_look_apart(key)):
                conn = self._lend(key)
                if conn is not None:
                    return conn
                key = None
            while True:
                self._enter(key)
                key = None
                self._wait()
                key, waiter.key = waiter.key, None
                assert key is not None
                conn = self._lend(key)
                if conn is not None:
                    return conn
                key = None
        except BaseException:
            key = conn = None  # an interrupt may have struck with it in our hands: its finaliser sees to it
            self._leave()
            raise

    # -- an idle one in hand

    def _take_quickly(self) -> Key | None:
        """An idle key without the lock, where that takes nobody's turn: pinned, or no place is left."""
        waiter, books = self._waiter, self._books
        if self._has_tried_all and waiter.pinned is None:
            return None
        if waiter.request.where is not None or waiter.is_fresh_only or books.state is not PoolState.OPEN:
            return None
        try:
            if waiter.pinned is not None:
                host = books.fleet.hosts.get(waiter.pinned)
                return host.idle.pop() if host is not None and host.is_up() else None
            fleet = books.fleet
            return fleet.take_any(waiter.turn) if fleet.is_full and not fleet.poor else None
        except IndexError:
            return None

    def _is_in_its_time(self, key: Key) -> bool:
        return self._books.idle_verdict(key.record, self._clock.now()) is None

    def _needs_look_apart(self, key: Key) -> bool:
        is_old = self._books.needs_look(key.record, self._clock.now(), self._waiter)
        return is_old and not self._lender.service.looks_are_prompt

    def _lend(self, key: Key) -> Connection | None:
        """Make a loan of *key* if its connection proves usable; else see it off and return None."""
        record, waiter, lender = key.record, self._waiter, self._lender
        now = self._clock.now()
        reason = self._books.idle_verdict(record, now)
        if reason is not None:
            record.condemn(reason)
        elif lender.service.looks_are_prompt and self._books.needs_look(record, now, waiter):
            lender.look_at(key)
        if record.fate is not None:
            lender.take_back(key)
            return None
        try:
            suits = self._suits(record)
        except BaseException:
            self._put_back(key)
            raise
        if not suits:
            waiter.refused[record] = record.since
            self._put_back(key)
            return None
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

    def _suits(self, record: Record) -> bool:
        where = self._request.where
        return where is None or bool(where(connection_info(record, is_idle=True)))

    def _put_back(self, key: Key) -> None:
        """As it was: nobody used it."""
        key.record.host.idle.append(key)
        self._lender.serve()

    # -- the queue

    def _enter(self, key: Key | None) -> None:
        """Queue up, then look: what came back before we stood in the queue is found now."""
        waiter, books, service = self._waiter, self._books, self._lender.service
        todo = Todo()
        with self._lock:
            self._lender.check_open_locked()
            now = self._clock.now()
            waiter.outcome = Outcome.WAITING
            books.queue.join(waiter)
            if key is not None:
                service.begin_look(waiter, key, now, todo)
            service.welcome(waiter, now, todo)
            most = books.config.max_waiters
            is_stuck = waiter.is_waiting() and not waiter.has_something_coming()
            if is_stuck and self._limit == 0:
                self._refuse_locked("nothing is free, and it may not wait")
            elif is_stuck and most is not None and len(books.queue) > most:
                self._refuse_locked(f"nothing is free, and {most} wait already, as many as may")
        self._lender.carry_out(todo)

    def _refuse_locked(self, why: str) -> None:
        error = PoolExhaustedError(f"pool {self._name!r}: {why} ({self._books.summary()})", pool=self._name)
        self._lender.service.fail(self._waiter, error)

    def _wait(self) -> None:
        """Return when the waiter holds a key; raise what else comes of it."""
        waiter = self._waiter
        while waiter.is_waiting():
            if waiter.errands:
                self._run_errand()
                self._check_cancel()
                if waiter.is_waiting():
                    self._check_deadline(is_over=False)
                continue
            self._refuse_deadlock()
            nap, is_last_nap = self._nap()
            is_woken = self._clock.wait(waiter.gate, nap)
            if waiter.is_waiting():
                self._check_cancel()
                self._look_again()  # one last look, even when late
                if waiter.is_waiting() and not waiter.errands:
                    self._check_deadline(is_over=is_last_nap and not is_woken)
        if waiter.error is not None:
            raise waiter.error

    def _until(self) -> float:
        """The instant at which this checkout gives up."""
        if self._limit == 0:  # waits for nothing but the dial it could start at once
            began = self._waiter.patience_at - PATIENCE
            return began + self._books.config.connect_timeout + DIAL_MARGIN
        return math.inf if self._deadline is None else self._deadline

    def _nap(self) -> tuple[float | None, bool]:
        """Seconds until this waiter must look again even if nobody wakes it; whether it gives up then."""
        waiter, now, until = self._waiter, self._clock.now(), self._until()
        instants = [until]
        if waiter.front_at is not None and not waiter.is_asleep:
            instants.append(waiter.front_at + self._books.overtake_delay)
        if waiter.attempt is not None and waiter.patience_at > now:
            instants.append(waiter.patience_at)
        elif waiter.attempt is not None:
            instants.append(
                max(now + PATIENCE, waiter.attempt.opened_at + self._books.config.connect_timeout)
            )
        if self._books.next_change > now:
            instants.append(self._books.next_change)
        if waiter.request.cancel is not None:
            instants.append(now + CANCEL_POLL)
        first = min(instants)
        return (None, False) if first == math.inf else (max(0.0, first - now), first == until)

    def _look_again(self) -> None:
        todo = Todo()
        with self._lock:
            if self._waiter.is_waiting():
                self._lender.service.serve(self._clock.now(), todo)
        self._lender.carry_out(todo)

    def _check_cancel(self) -> None:
        cancel = self._request.cancel
        if cancel is not None and cancel.is_set():
            self._lender.abandon(self._waiter)
            raise CancelledError(f"pool {self._name!r}: the request was cancelled", pool=self._name)

    def _check_deadline(self, *, is_over: bool) -> None:
        """Raise if the time is up, be it because the last nap ended though the clock stands still."""
        now = self._clock.now()
        if self._limit == 0 and not self._waiter.has_something_coming():
            raise PoolExhaustedError(
                f"pool {self._name!r}: nothing is free, and it may not wait ({self._books.summary()})",
                pool=self._name,
            )
        if is_over or now >= self._until():
            with self._lock:
                self._books.timeouts += 1
            limit = self._limit or self._books.config.connect_timeout
            loans = describe_loans(self._books, now)
            last = self._books.last_error
            raise CheckoutTimeoutError(
                f"pool {self._name!r}: no connection within {limit:g} s ({self._books.summary()}"
                + (f"; longest held: {loans}" if loans else "")
                + (f"; last connect error: {last}" if last is not None else "")
                + ")",
                pool=self._name,
            )

    def _refuse_deadlock(self) -> None:
        if self._waiter.attempt is None and self._lender.dialler.is_dialling_here():
            raise UsageError(
                f"pool {self._name!r}: a checkout from inside `open` would wait for itself", pool=self._name
            )

    def _run_errand(self) -> None:
        """Dial on the waiter's own thread."""
        waiter = self._waiter
        dial = waiter.errands.popleft()
        dial.is_errand = True
        waiter.is_busy = True  # what comes back meanwhile goes to those who can take it
        timeout = self._books.config.connect_timeout
        if self._limit != 0 and self._until() - self._clock.now() < timeout:
            timeout = max(0.0, self._until() - self._clock.now())
            dial.is_hurried = True
        if self._request.cancel is not None:
            dial.cancel = EitherCancel(dial.cancel, self._request.cancel)
        try:
            self._lender.dialler.run(dial, timeout)
        finally:
            waiter.is_busy = False

    def _leave(self) -> None:
        """Go, for whatever reason; what was given to us meanwhile goes to the next."""
        todo = Todo()
        with self._lock:
            key = self._lender.service.leave(self._waiter)
            if key is not None:
                key.record.host.idle.append(key)
            self._lender.service.serve(self._clock.now(), todo)
        self._lender.carry_out(todo)
