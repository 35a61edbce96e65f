"""Opening, pausing and closing a pool."""

from __future__ import annotations

import math
from typing import Final

from connpool.clock import shut_gate
from connpool.errors import ConfigError, PoolClosedError, PoolPausedError, UsageError
from connpool.model.checks import require_flag, require_seconds
from connpool.model.events import PoolClosed, PoolPaused, PoolResumed
from connpool.model.states import POOL_MOVES, CloseReason, PoolState
from connpool.pool.census import inherit
from connpool.pool.jobs import Todo
from connpool.pool.lending import Lender
from connpool.pool.record import Phase, Record, in_phase
from connpool.pool.snapshots import idle_ones
from connpool.pool.unwinding import keeping_no_key
from connpool.wire.io import DIRECTIONS

__all__ = ["Doors"]

EXIT_GRACE: Final = 0.05  # seconds that the end of a program waits for a pool's lock


class Doors:
    """Whether one pool lends. See ``ConnectionPool`` for what each method promises."""

    def __init__(self, lender: Lender) -> None:
        self._lender = lender
        self._lock = lender._lock
        self._books = lender.books
        self._name = lender.pool.name

    # -- for a while

    @keeping_no_key
    def pause(self, *, fail: bool) -> None:
        require_flag("fail", fail)
        try:
            with self._lock:
                self._lender.check_open_locked()
                if self._books.state is PoolState.OPEN:
                    self._books.listeners.post(PoolPaused, self._name, self._lender.now())
                    self._go_locked(PoolState.PAUSED)
                self._books.pause_fails = fail
            self._lender.flush()  # before anybody tells what became of it
        finally:
            self._turn_away()

    def _turn_away(self) -> None:
        """Those who wait while the pool is paused fail, if that is what was said."""
        todo = Todo()
        with self._lock:
            if self._books.state is PoolState.PAUSED and self._books.pause_fails:
                error = PoolPausedError(f"pool {self._name!r} is paused", pool=self._name)
                self._lender.service.fail_all(error)
            self._lender.service.serve(self._lender.now(), todo)
        self._lender.carry_out(todo)

    @keeping_no_key
    def resume(self) -> None:
        try:
            with self._lock:
                self._lender.check_open_locked()
                if self._books.state is PoolState.PAUSED:
                    self._books.listeners.post(PoolResumed, self._name, self._lender.now())
                    self._go_locked(PoolState.OPEN)
                    self._books.expect(-math.inf)
            self._lender.flush()  # before anybody tells what it got
        finally:  # Ctrl-C, in a handler or before: the waiters are served all the same
            self._lender.serve()

    # -- the end of a pool

    @keeping_no_key
    def shutdown(self, how: int) -> int:
        if how not in DIRECTIONS:
            raise ConfigError(
                f"how must be socket.SHUT_RD, SHUT_WR or SHUT_RDWR, got {how!r}", pool=self._name
            )
        todo = Todo()
        why = f"pool {self._name!r} was shut down"
        with self._lock:
            if self._books.state is PoolState.CLOSED:
                return self._books.n_lent()
            now = self._lender.now()
            try:
                if self._books.state is not PoolState.SHUT_DOWN:
                    self._go_locked(PoolState.SHUT_DOWN)
                busy = self._busy_ones_locked()
                self._lender.condemn_locked(busy, CloseReason.POOL_CLOSED)
            finally:  # Ctrl-C or not: the waiters go
                self._lender.service.serve(now, todo)
        for record in busy:
            self._lender.interrupt(record, why, how)
        self._lender.carry_out(todo)
        return len(busy)

    @keeping_no_key
    def reopen(self) -> None:
        with self._lock:
            if self._books.state is PoolState.CLOSED:
                raise PoolClosedError(f"pool {self._name!r} is closed for good", pool=self._name)
            if self._books.state is PoolState.SHUT_DOWN:
                self._go_locked(PoolState.OPEN)
                self._books.expect(-math.inf)
        self._lender.serve()

    @keeping_no_key
    def close(self, timeout: float | None) -> int:
        require_seconds("timeout", timeout, or_zero=True, or_none=True)
        deadline = None if timeout is None else self._lender.now() + timeout
        todo = Todo()
        with self._lock:
            now = self._lender.now()
            try:
                if self._books.state is not PoolState.CLOSED:
                    self._go_locked(PoolState.CLOSED)
                # Whoever closes it once more finishes what Ctrl-C has cut short.
                self._books.listeners.post(PoolClosed, self._name, now)
                self._lender.sleep_on()
                opening = in_phase(self._books.records(), Phase.OPENING)
                self._lender.condemn_locked(opening, CloseReason.POOL_CLOSED)
            finally:  # Ctrl-C or not: the waiters go
                self._lender.service.serve(now, todo)
        for record in opening:
            self._lender.interrupt(record, f"pool {self._name!r} was closed")
        self._lender.carry_out(todo)
        if self._lender.pool._when_closed is not None:
            self._lender.pool._when_closed()
        if deadline is not None and self._drain(deadline) > 0:
            self._interrupt_loans()
        self._lender.dialler.join()
        return self._books.n_lent()

    def close_idle_at_exit(self) -> None:
        """The interpreter ends: close what lies idle, unless that might take long.

        What is still lent is held for good. Else the last collection might find it in a circle with its
        socket, whose own finaliser could run first, and complain.
        """
        todo = Todo()
        if not self._lender.connector.prompt or not self._lock.acquire(timeout=EXIT_GRACE):
            return
        try:
            self._books.drain_all(CloseReason.POOL_CLOSED, todo)
            for record in self._books.records():
                inherit(record.raw)
        finally:
            self._lock.release()
        self._lender.carry_out(todo)

    def _drain(self, deadline: float) -> int:
        """Wait until nothing is lent, or until *deadline*. Returns how many are lent then."""
        gate = shut_gate()
        with self._lock:
            self._books.drains.append(gate)
        while (lent := self._books.n_lent()) > 0:
            left = deadline - self._lender.now()
            if left <= 0 or not self._lender.clock.wait(gate, left):
                return self._books.n_lent()
        return lent

    def _interrupt_loans(self) -> None:
        with self._lock:
            lent = in_phase(self._books.records(), Phase.OPEN)
        for record in lent:
            self._lender.interrupt(record, f"pool {self._name!r} was closed")

    def _busy_ones_locked(self) -> list[Record]:
        """What is lent, looked at, or being opened."""
        idle = idle_ones(self._books)
        busy = in_phase(self._books.records(), Phase.OPEN, Phase.OPENING)
        return [record for record in busy if record not in idle]

    def _go_locked(self, to: PoolState) -> None:
        if to not in POOL_MOVES[self._books.state]:
            raise UsageError(f"pool {self._name!r} is {self._books.state.value}: it cannot become {to.value}")
        self._books.state = to
        self._books.publish(self._lender.now())  # from here on the fast path finds nothing
