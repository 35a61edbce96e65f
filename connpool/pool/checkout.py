"""One checkout on the long way: look, queue up, wait, and leave without losing anything."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

from connpool import clock as real
from connpool.errors import CancelledError, PoolPausedError, UsageError
from connpool.model.checks import require_seconds
from connpool.model.request import Request
from connpool.model.states import POOL_OPEN
from connpool.pool.connection import HAS_GIL, Connection
from connpool.pool.dialing import EitherCancel
from connpool.pool.failures import exhausted, not_sharable, timed_out
from connpool.pool.fitting import Fitting
from connpool.pool.jobs import Todo
from connpool.pool.record import Key, Phase
from connpool.pool.sharing import Share, leave
from connpool.pool.waiters import PATIENCE, WAITING, Outcome, Waiter

if TYPE_CHECKING:
    from connpool.pool.lending import Lender

__all__ = ["Checkout"]

CANCEL_POLL: Final = 0.02  # seconds between two looks at a request's cancel flag
DIAL_MARGIN: Final = 0.1  # seconds by which a caller that may not wait outlives its own dial
# Without the GIL, what one thread has made and another drops is finalised by the first: it must not sleep on.
LONGEST_NAP: Final = 1.0  # seconds


class Checkout(Fitting):
    """What one thread does to get one connection when none lies ready.

    Args:
        turn: Number of the turn that the fast path took already; None: none yet.
        fresh_only: Nothing that was lent before will do.
    """

    __slots__ = ("_books", "_deadline", "_has_tried_all", "_lender", "_limit", "_waiter")

    def __init__(
        self,
        lender: Lender,
        request: Request,
        timeout: float | None,
        turn: int | None,
        fresh_only: bool = False,
    ) -> None:
        self._lender = lender
        self._books = books = lender.books
        if request.shared and not books.config.sharable:
            raise not_sharable(self._name)
        if lender.is_inside():
            raise UsageError(
                f"pool {self._name!r}: a checkout by what interrupted the pool itself"
                " (a signal handler, a finaliser)",
                pool=self._name,
            )
        if timeout is None:
            timeout = request.timeout
        if timeout is None:
            timeout = books.config.checkout_timeout
        else:
            require_seconds("timeout", timeout, or_zero=True)
        now = lender.now()
        self._limit = timeout
        self._deadline = math.inf if timeout is None else now + timeout
        # The fast path found nothing idle anywhere, or there is nothing else it could have tried.
        self._has_tried_all = turn is not None or (books.fleet.is_single and request.endpoint is None)
        if turn is None:
            turn = next(books.fleet.turns)
        self._waiter = waiter = Waiter(request, next(lender.numbers), turn, now, fresh_only)
        if timeout == 0:
            waiter.may_wait = False

    @property
    def _name(self) -> str:
        return self._lender.pool.name

    def run(self, key: Key | None = None) -> Connection:
        """Get a connection. *key*: an idle one the fast path took but could not lend unseen."""
        waiter = self._waiter
        try:
            if waiter.request.cancel is not None:
                self._check_cancel()
            if key is None and not self._has_tried_all:
                key = self._take_quickly()
            if key is not None and not self._needs_look_apart(key):
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
            try:
                self._leave()
            except BaseException:  # Ctrl-C twice: nobody else would do it
                self._leave()
                raise
            raise

    # -- an idle one in hand

    def _take_quickly(self) -> Key | None:
        """An idle key without the lock, where that takes nobody's turn: pinned, or no place is left."""
        waiter, books = self._waiter, self._books
        if waiter.request.where is not None or waiter.is_fresh_only or books.state is not POOL_OPEN:
            return None
        try:
            if waiter.pinned is not None:
                host = books.fleet.hosts.get(waiter.pinned)
                return books.warm_reserve.take_from(host) if host is not None and host.is_up() else None
            fleet = books.fleet
            return fleet.take_any(waiter.turn) if fleet.is_full and not fleet.poor else None
        except IndexError:
            return None

    # -- the queue

    def _enter(self, key: Key | None) -> None:
        """Queue up, then look: what came back before we stood in the queue is found now."""
        waiter, books, lender = self._waiter, self._books, self._lender
        todo: Todo | None = None
        with lender._lock:
            if books.state is not POOL_OPEN:
                if key is not None:  # an error's traceback would keep it for as long as the error is kept
                    key.record.host.put_back(key)
                    key = None
                self._check_state_locked()
            waiter.outcome = WAITING
            books.queue.join(waiter)
            if key is not None or not lender.service.stands_behind(waiter):
                now, todo = lender.now(), Todo()
                if key is not None:
                    lender.service.begin_look(waiter, key, now, todo)
                lender.service.welcome(waiter, now, todo)
            if not waiter.may_wait or books.config.max_waiters is not None:
                self._check_limits_locked()
        if todo or lender.listeners.pending:
            lender.carry_out(Todo() if todo is None else todo)

    def _check_state_locked(self) -> None:
        """Refuse a checkout of a pool that is not open, unless it is worth while to wait for that."""
        self._lender.check_open_locked()
        if not self._waiter.may_wait or self._books.pause_fails:
            raise PoolPausedError(f"pool {self._name!r} is paused", pool=self._name)

    def _check_limits_locked(self) -> None:
        """Refuse a checkout that would have to wait and may not."""
        waiter, books = self._waiter, self._books
        most = books.config.max_waiters
        if not waiter.is_waiting() or waiter.has_something_coming():
            return
        if not waiter.may_wait:
            self._refuse_locked("nothing is free, and it may not wait")
        elif most is not None and len(books.queue) > most:
            self._refuse_locked(f"nothing is free, and {most} wait already, as many as may")

    def _refuse_locked(self, why: str) -> None:
        self._lender.service.fail(self._waiter, exhausted(self._books, why))

    def _wait(self) -> None:
        """Return when the waiter holds a key; raise what else comes of it."""
        waiter, lender = self._waiter, self._lender
        seen_at = waiter.since  # what falls due after that is still to be seen to
        while waiter.outcome is WAITING:
            if waiter.errands:
                self._run_errand()
                self._check_cancel()
                if waiter.is_waiting():
                    self._check_deadline(is_over=False)
                continue
            if waiter.attempt is None and lender.dialler.idents:
                self._refuse_deadlock()
            nap, is_last_nap = self._nap(seen_at)
            is_over = not lender.clock.wait(waiter.gate, nap) and is_last_nap
            if waiter.outcome is WAITING:
                self._check_cancel()
                seen_at = self._look_again(seen_at)  # also when it is late
                if waiter.is_waiting() and not waiter.errands:
                    self._check_deadline(is_over=is_over)
        if waiter.error is not None:
            try:
                raise waiter.error
            finally:
                waiter.error = None  # its traceback leads back here: a circle would keep the stack alive

    def _until(self) -> float:
        """The instant at which this checkout gives up."""
        if self._waiter.may_wait:
            return self._deadline
        # It waits for nothing but the dial that it could start at once, PATIENCE before ``patience_at``.
        began = self._waiter.patience_at - PATIENCE
        return began + self._books.config.connect_timeout + DIAL_MARGIN

    def _nap(self, since: float) -> tuple[float | None, bool]:
        """Seconds until this waiter must look again even if nobody wakes it; whether it gives up then."""
        waiter, books, now, front_at = self._waiter, self._books, self._lender.now(), self._waiter.front_at
        first = until = self._until()
        if front_at is not None and not waiter.is_asleep:  # looked at once: who comes before us takes it away
            first = min(first, front_at + books.pace.grace)
        if waiter.attempt is not None and waiter.patience_at > since:
            first = min(first, waiter.patience_at)
        if waiter.eviction is not None and waiter.evict_again_at > since:
            first = min(first, waiter.evict_again_at)
        if waiter.again_at > since:
            first = min(first, waiter.again_at)
        if books.next_change < first:
            first = books.next_change
        if waiter.request.cancel is not None:
            first = min(first, now + CANCEL_POLL)
        if not HAS_GIL:
            first = min(first, now + LONGEST_NAP)
        if first == math.inf:
            return None, False
        return (first - now if first > now else 0.0), first == until

    def _look_again(self, since: float) -> float:
        todo = Todo()
        with self._lender._lock:
            now = self._lender.now()
            if self._waiter.is_waiting() and self._must_look(since, now):
                self._lender.service.look(self._waiter, now, todo)
        self._lender.carry_out(todo)
        return now

    def _must_look(self, since: float, now: float) -> bool:
        """Whether nobody has looked for it since then: of many that wake at once, the first does."""
        waiter, books, oldest = self._waiter, self._books, self._books.queue.oldest
        # A change of the books has all looked for, unless returns go untold; the oldest may be woken alone.
        is_led = oldest is not None and oldest is not waiter and oldest.is_waiting()
        if not (HAS_GIL and books.pool._is_awaited and is_led) or books.next_change <= now:
            return True
        dues = [waiter.patience_at, waiter.evict_again_at, waiter.again_at]
        if waiter.front_at is not None:
            dues.append(waiter.front_at + books.pace.grace)
        return any(since < due <= now for due in dues)

    def _check_cancel(self) -> None:
        cancel = self._waiter.request.cancel
        if cancel is not None and cancel.is_set():
            self._lender.abandon(self._waiter)
            raise CancelledError(f"pool {self._name!r}: the request was cancelled", pool=self._name)

    def _check_deadline(self, *, is_over: bool) -> None:
        """Give up if the time is up, be it because the last nap ended though the clock stands still."""
        waiter, books, now = self._waiter, self._books, self._lender.now()
        is_refused = not waiter.may_wait and not waiter.has_something_coming()
        if not (is_refused or is_over or now >= self._until()):
            return
        with self._lender._lock:
            if not waiter.is_waiting():
                return  # served at the last moment
            if is_refused:
                if books.state is not POOL_OPEN:
                    self._check_state_locked()
                self._refuse_locked("nothing is free, and it may not wait")
                return
            waiter.outcome = Outcome.LEFT  # nobody gives it anything while it tells why
            books.queue.leave(waiter)
            books.tally.timeouts += 1
        n_refused = sum(record.phase is Phase.OPEN for record in waiter.refused)
        raise timed_out(books, self._limit or books.config.connect_timeout, now, n_refused)

    def _refuse_deadlock(self) -> None:
        if self._lender.dialler.is_dialling_here():
            raise UsageError(
                f"pool {self._name!r}: a checkout from inside `open` would wait for itself", pool=self._name
            )

    def _run_errand(self) -> None:
        """Dial on the waiter's own thread."""
        waiter = self._waiter
        with self._lender._lock:
            if not waiter.errands:
                return  # it was served meanwhile, and they were called off
            dial = waiter.next_errand()
            waiter.is_busy = True  # what comes back meanwhile goes to those who can take it
        dial.is_errand = True
        timeout, left = self._books.config.connect_timeout, self._deadline - self._lender.now()
        if waiter.may_wait and left < timeout:
            timeout = max(0.0, left)
            dial.hurried_at = real.now() + timeout / 2
        if waiter.request.cancel is not None:
            dial.cancel = EitherCancel(dial.cancel, waiter.request.cancel)
        try:
            self._lender.dialler.run(dial, timeout)
        finally:
            waiter.is_busy = False

    def _leave(self) -> None:
        """Go, for whatever reason; what was given to us meanwhile goes to the next."""
        todo, given = Todo(), None
        with self._lender._lock:
            key = self._lender.service.leave(self._waiter)
            if isinstance(key, Share):
                given, key = key, None
            elif key is not None:
                key.record.host.idle.append(key)
            if self._waiter.pinned is not None:
                self._books.fleet.forget_empty()  # its host may have been made for it alone
            self._lender.service.serve(self._lender.now(), todo)
        self._lender.carry_out(todo)
        if given is not None:
            leave(self._lender, given, was_had=False)
