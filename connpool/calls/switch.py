"""Deciding under the lock and acting without it: what every way through a call pool has in common."""

from __future__ import annotations

import _thread
import logging
import math
import threading
import weakref
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from connpool.calls.ledger import Ledger
from connpool.calls.line import Key, Line, Phase
from connpool.calls.recovery import recover, restore
from connpool.calls.tickets import Ticket
from connpool.calls.workers import Workers
from connpool.clock import Clock
from connpool.errors import PoolClosedError, UsageError
from connpool.model.call_events import CALL_EVENTS
from connpool.model.events import Event
from connpool.model.states import POOL_OPEN, CloseReason, PoolState
from connpool.pool.census import inherit, watch, wink
from connpool.pool.listeners import Handler, Listeners
from connpool.pool.unwinding import keeping_no_key

if TYPE_CHECKING:
    from connpool.calls.call_pool import CallPool

__all__ = ["Switch"]

logger = logging.getLogger("connpool.calls")

NEVER: Final = math.inf
NOBODY: Final[dict[type[Event], tuple[Handler, ...]]] = dict.fromkeys(CALL_EVENTS, ())


class Switch:
    """The lock of a call pool, what it guards, and what is done in consequence.

    It guards the ledger. It is re-entrant only so that a signal handler or a finaliser that
    strikes in the middle of a locked section can be told from another thread: see ``is_inside``.
    """

    def __init__(self, pool: CallPool, clock: Clock, revive_initial: float, revive_max: float) -> None:
        self.pool = weakref.ref(pool)
        self.name = pool.name
        self.clock = clock
        self._make_lock()
        self.ledger = Ledger(pool.name, revive_initial, revive_max)
        self.listeners = Listeners(pool.name, NOBODY)
        self.workers = Workers(self)

    def _make_lock(self) -> None:
        self._lock = threading.RLock()
        # Whether this very thread is in a locked section, interrupted by what asks.
        self.is_inside: Callable[[], bool] = self._lock._is_owned  # type: ignore[attr-defined]

    # -- doors

    def check_outside(self) -> None:
        """Refuse what came upon this thread in the midst of a locked section.

        Raises:
            UsageError: a signal handler or a finaliser uses the pool that it interrupted.
        """
        if self.is_inside():
            raise UsageError(
                f"call pool {self.name!r} cannot be used by what has interrupted it", pool=self.name
            )

    def is_wanted(self) -> bool:
        """Whether channels are still to be opened."""
        return self.ledger.state is POOL_OPEN and self.pool() is not None

    def check_open(self) -> None:
        """Refuse what needs a pool that is not at its end.

        Raises:
            PoolClosedError: it is.
        """
        if self.ledger.state is not POOL_OPEN:
            raise PoolClosedError(f"call pool {self.name!r} is closed", pool=self.name)

    # -- keys

    def serve(self, line: Line) -> None:
        """A channel has become free while somebody waits, or in the moment in which it was condemned."""
        if self.is_inside():
            return  # whoever was interrupted does so
        try:
            with self._lock:
                if line.fate is None:
                    self.ledger.serve(line.home(), self.clock.now())
                else:
                    self.ledger.condemn(line, line.fate, self.clock.now())
            self.carry_out()
        except BaseException:
            self.wink()
            raise

    def pass_on(self, key: Key) -> None:
        """A call is over that leaves nothing to be done but to serve the next."""
        with self._lock:
            if self.ledger.pass_on(key):
                return
            key.line.idle.append(key)
        self.serve(key.line)

    def receive(self, key: Key, reason: CloseReason | None, rest: float) -> None:
        """The long way back of a key."""
        if self.is_inside():
            self.ledger.lost.append(key)  # its channel is closed: whatever it did was cut short
            return
        with self._lock:
            self.ledger.receive(key, reason, rest, self.clock.now())
        self.carry_out()

    def put_down(self, key: Key) -> None:
        """A key that was taken for a call that it cannot serve, or whose turn it is not."""
        self.check_outside()
        with self._lock:
            now = self.clock.now()
            if key.line.is_live(now):
                key.line.idle.appendleft(key)  # where it lay
            else:
                restore(self.ledger, key, now)
            self.ledger.serve(key.line.home(), now)
        self.carry_out()

    def give_up(self, key: Key) -> None:
        """A call of this thread has raised. *key*, if it still has it, is lost.

        Its finaliser may be long in coming: the traceback of an interrupt keeps frames that have it.
        """
        line = getattr(key, "line", None)  # None: it was found again
        if line is None:
            return
        if line.is_run_by(threading.get_ident()):
            self.key_dropped(key)
        elif line.waiting and line.idle:  # what was raised kept us from serving the queue
            self.wink()

    def key_dropped(self, key: Key) -> None:
        """A finaliser's report; it may come at any moment, in any thread, so it takes no lock."""
        self.ledger.lost.append(key)
        with suppress(IndexError):
            key.line.waiting[0].wake()  # looks for itself
        self.wink()

    def ticket_dropped(self, ticket: Ticket) -> None:
        """Likewise: the thread of *ticket* waits no longer."""
        self.ledger.strays.append(ticket)
        with suppress(IndexError):
            ticket.resource.queue[0].wake()
        self.wink()

    # -- consequences

    def carry_out(self, *, apart: bool = False) -> None:
        """Close and open what was decided upon. No lock is held. *apart*: wait for none of it."""
        if self.ledger.todo:
            self.workers.close_all(apart=apart)
        if self.workers.openings:
            self.workers.open_all()

    @keeping_no_key
    def turn(self, *, apart: bool = False) -> int:
        """One turn of upkeep. Returns how many channels are closed for it."""
        if self.is_inside():
            return 0
        ledger = self.ledger
        with self._lock:
            now = self.clock.now()
            recover(ledger, now)
            ledger.expire(now)
            self.workers.openings.extend(ledger.due(now))
            for resource in list(ledger.resources.values()):
                resource.tidy()
                ledger.serve(resource, now)
            n_doomed = len(ledger.todo)
        self.carry_out(apart=apart)
        with self._lock:
            due = ledger.next_due()
        if ledger.todo or self.workers.openings or ledger.lost or ledger.strays:
            due = now
        self.remind(due)
        return n_doomed

    def remind(self, at: float) -> None:
        """Have upkeep look at this pool at *at*."""
        pool = self.pool()
        if pool is not None and at != NEVER:
            watch(pool, at)

    def wink(self) -> None:
        """The same soon, for finalisers: takes no lock."""
        pool = self.pool()
        if pool is not None:
            wink(pool)

    def sleep_on(self) -> None:
        """Nothing more is due, unless something is left to be closed."""
        pool = self.pool()
        if pool is not None:
            watch(pool, self.clock.now() if self.ledger.todo else NEVER)

    def tell(self, kind: Callable[..., Event], *fields: object) -> None:
        """Let those hear of something who listen for it. No lock is held."""
        handlers = self.listeners.by_kind[kind]  # type: ignore[index]
        if handlers:
            self.listeners.tell(kind(self.name, self.clock.now(), *fields), handlers)

    # -- the end

    def disown(self) -> None:
        """In a forked child: never touch the parent's channels again. Calls that were under way may end."""
        self._make_lock()  # a thread that is not here may hold the old one
        for resource in list(self.ledger.resources.values()):
            for ticket in list(resource.queue):
                ticket.error = UsageError(
                    f"call pool {self.name!r}: the process was forked while this call waited", pool=self.name
                )
                ticket.wake()
        for line in list(self.ledger.lines.values()):
            line.phase = Phase.GONE
            line.brisk_until = line.open_until = -NEVER
            line.unclosed.clear()  # it is not for this process to close it
            inherit(line.channel)

    def forget(self) -> None:
        """The pool itself was dropped unclosed, says its finaliser: have its channels closed."""
        if not any(line.unclosed for line in list(self.ledger.lines.values())):
            return
        self.ledger.state = PoolState.CLOSED
        with suppress(RuntimeError):  # can't start new thread
            _thread.start_new_thread(self._close_forgotten, ())

    def _close_forgotten(self) -> None:
        for line in list(self.ledger.lines.values()):
            self.workers.close_channel(line)
            line.phase = Phase.GONE
