"""Deciding under the lock and acting without it: what every way through a pool has in common."""

from __future__ import annotations

import itertools
import logging
import math
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from connpool.clock import Clock, open_gate
from connpool.errors import PoolClosedError, UsageError
from connpool.model.config import PoolConfig
from connpool.model.events import ConnectionClosed, LoanLost
from connpool.model.states import CloseReason, PoolState
from connpool.pool.census import watch
from connpool.pool.core import Books
from connpool.pool.dialing import Dialler
from connpool.pool.failures import again
from connpool.pool.jobs import Dial, Todo
from connpool.pool.listeners import Listeners, Teller
from connpool.pool.record import Key, Record, Tenure
from connpool.pool.service import Service
from connpool.pool.snapshots import describe_tenure
from connpool.wire.full_connector import FullConnector
from connpool.wire.io import SHUT_RDWR
from connpool.wire.look import interrupt

if TYPE_CHECKING:
    from connpool.pool.pool import ConnectionPool

__all__ = ["Desk"]

logger = logging.getLogger("connpool.pool")


class Desk:
    """Decides under the lock, acts without it, records under it again.

    The lock guards the books, the service and the queue. It is re-entrant only
    so that a signal handler or a finaliser that strikes in the middle of a
    locked section can be told from another thread, and turned away: see
    ``is_inside``. Nothing is ever decided in a re-entered section.
    """

    dialler: Dialler

    def __init__(
        self, pool: ConnectionPool, connector: FullConnector, clock: Clock, config: PoolConfig
    ) -> None:
        self.pool = pool
        self.clock = clock
        self.now: Callable[[], float] = clock.now
        self.connector = connector
        self._lock = threading.RLock()
        self.listeners = Listeners(pool.name)
        self.books = Books(
            pool, config, self.listeners, clock.overtake_delay, has_reset=connector.reset is not None
        )
        self.service = Service(self.books, looks_promptly=connector.looks_promptly)
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
            self.service.serve(self.now(), todo, is_brisk=is_brisk)
        self.carry_out(todo)

    def nudge(self) -> None:
        """Make the oldest waiter look for itself. Takes no lock: for finalisers and the like."""
        oldest = self.books.queue.oldest
        if oldest is not None:
            oldest.wake()

    def leave_to_parent(self) -> None:
        """In a forked child: calls that were under way end here, whoever had the lock or was waited for."""
        if not self.is_inside():
            self._lock._at_fork_reinit()  # type: ignore[attr-defined]  # a thread that is not here may hold it
        error = UsageError(
            f"pool {self.pool.name!r}: the process was forked while this checkout waited", pool=self.pool.name
        )
        for waiter in self.books.queue:
            self.service.fail(waiter, again(error))
        while self.books.drains:
            open_gate(self.books.drains.pop())

    def carry_out(self, todo: Todo, *, apart: bool = False) -> None:
        """Do what was decided, and what is decided in consequence. No lock is held.

        *apart*: closes run on a thread of their own, whose end is not waited for.
        """
        interrupts: list[BaseException] = []  # an interrupt keeps nothing from being done
        if self.listeners.pending:
            _do(interrupts, self.flush)
        while todo:
            while todo.dials:
                dial = todo.dials.pop()
                if not self.dialler.start(dial):
                    self._send_on_errand(dial, todo)
                del dial
            for record, tenure in todo.lost:
                _do(interrupts, self._tell_lost, record, tenure)
            for record in todo.gone:
                _do(interrupts, self.tell_closed, record)
            closed, error = self.dialler.close_all(todo.doomed, apart=apart)
            if error is not None:
                interrupts.append(error)
                del error
            todo = Todo()
            if closed:
                _do(interrupts, self._forget, closed, todo)
        if self.listeners.pending:
            _do(interrupts, self.flush)
        if self.books.is_alarm_new:
            _do(interrupts, self._set_alarm)
        _raise_first(interrupts)

    def _set_alarm(self) -> None:
        """Let the reaper know when this pool needs it. Takes no lock: what it is told last must be true."""
        books = self.books
        told: float | None = None
        books.is_alarm_new = False
        try:
            while told != books.alarm_at:  # looked at again: what is newer another may have told before us
                told = books.alarm_at
                if not watch(self.pool, told):
                    books.alarm_at = told = math.inf  # nobody keeps it in mind: the next alarm is news again
        except BaseException:
            books.is_alarm_new = True  # interrupted: the next to come by does it
            raise

    def _send_on_errand(self, dial: Dial, todo: Todo) -> None:
        """No thread can be had for *dial*: the waiter it was begun for runs it on its own, or nobody."""
        with self._lock:
            waiter = self.service.asker_of(dial)
            if waiter is not None:
                waiter.errands += (dial,)
                waiter.wake()
                return
            self.service.call_off(dial)
            self.service.serve(self.now(), todo)
            if dial.replaces is not None:
                todo.doomed.append(dial.replaces)
            elif dial.is_upkeep:
                self.books.expect(-math.inf)  # the next turn tries again

    def record_closed(self, keys: list[Key]) -> None:
        """These are closed: their places are free."""
        todo = Todo()
        self._forget(keys, todo)
        self.carry_out(todo)

    def _forget(self, keys: list[Key], todo: Todo) -> None:
        interrupts: list[BaseException] = []
        for key in keys:
            _do(interrupts, self.tell_closed, key.record)
        with self._lock:
            for key in keys:
                self.service.end_eviction(key.record)
            try:
                self.books.forget(*[key.record for key in keys])
            finally:  # Ctrl-C in the midst of it: the waiters are served all the same
                self.service.serve(self.now(), todo)
        _raise_first(interrupts)

    def check_open_locked(self) -> None:
        """Refuse what needs a pool that is not at its end.

        Raises:
            PoolClosedError: it is.
        """
        state = self.books.state
        if state not in (PoolState.OPEN, PoolState.PAUSED):
            raise PoolClosedError(f"pool {self.pool.name!r} is {state.value}", pool=self.pool.name)

    def interrupt(self, record: Record, why: str, how: int = SHUT_RDWR) -> None:
        """Make blocked input and output on *record* end. The owner closes it, not we."""
        if record.stream is not None:
            record.stream.interrupt(how, why)
        elif record.raw is not None:
            interrupt(record.raw, how)

    # -- telling

    def flush(self) -> None:
        """Tell what has been written down, in its order, unless another thread is at it."""
        teller = Teller()
        try:
            while True:
                with self._lock:
                    news = self.listeners.take_turn(teller)
                if news is None:
                    return
                self.listeners.announce(news)
        except BaseException:
            del teller  # a traceback must not keep others from telling the rest
            raise

    def tell_closed(self, record: Record) -> None:
        """With the key in hand and the place still taken: the last that is heard of a connection."""
        if record.is_begun and self.listeners.by_kind[ConnectionClosed]:
            name, endpoint = self.pool.name, record.host.endpoint
            reason = record.fate or CloseReason.BROKEN  # without one: its dial failed
            self.listeners.tell(ConnectionClosed(name, self.now(), record.id, endpoint, reason))

    def _tell_lost(self, record: Record, tenure: Tenure) -> None:
        where, origin = describe_tenure(tenure), tenure[2]
        stack = "" if origin is None else origin.stack()
        logger.warning(
            "pool %r: connection %d was not given back by %s%s",
            self.pool.name,
            record.id,
            where,
            f"; taken at:\n{stack}" if stack else "",
        )
        if self.listeners.by_kind[LoanLost]:
            self.listeners.tell(LoanLost(self.pool.name, self.now(), record.id, where))

    def sleep_on(self) -> None:
        """Nothing more is due: upkeep need not look any more."""
        self.books.alarm_at = math.inf
        self.books.is_alarm_new = True


def _do(interrupts: list[BaseException], deed: Callable[..., object], *args: object) -> None:
    """Do *deed*; what interrupts it (Ctrl-C in a handler) is kept for later."""
    try:
        deed(*args)
    except BaseException as error:  # noqa: BLE001 - raised again by the caller
        interrupts.append(error)


def _raise_first(interrupts: list[BaseException]) -> None:
    """Raise the first of what was kept for later, if anything was."""
    try:
        if interrupts:
            raise interrupts[0]
    finally:
        interrupts.clear()  # else it refers to itself, through its traceback, and keeps every key on the way
