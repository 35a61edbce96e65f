"""What comes back to a pool: loans, dials and looks that are over, waits that were given up."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from connpool import clock as real
from connpool.clock import Clock
from connpool.model.config import PoolConfig
from connpool.model.endpoint import Endpoint
from connpool.model.events import CheckedIn
from connpool.model.states import CloseReason, PoolState
from connpool.pool.census import wink
from connpool.pool.desk import Desk
from connpool.pool.dialing import Dialler
from connpool.pool.failures import as_connect_error, drop_frames
from connpool.pool.hosts import Host
from connpool.pool.jobs import Dial, Todo
from connpool.pool.lifetimes import verdict
from connpool.pool.pace import LONG
from connpool.pool.piles import look_through
from connpool.pool.record import OPEN, Key, Phase, Record
from connpool.pool.room import would_rather_dial
from connpool.pool.timings import MANY
from connpool.pool.waiters import Outcome, Waiter
from connpool.wire.full_connector import FullConnector
from connpool.wire.io import TLSContext

if TYPE_CHECKING:
    from connpool.pool.pool import ConnectionPool

__all__ = ["Lender"]


class Lender(Desk):
    """A desk that takes back loans, and records what dials and looks have brought."""

    def __init__(
        self, pool: ConnectionPool, connector: FullConnector, clock: Clock, config: PoolConfig
    ) -> None:
        super().__init__(pool, connector, clock, config)
        self.dialler = Dialler(self, connector, pool.name)

    # -- what comes back

    def tell_checked_in(self, record: Record, now: float, held: float) -> None:
        """Tell of a return that does not come by way of ``receive_aloud``: of a share, of a farewell."""
        if not record.id or record.phase is not OPEN:
            return  # a file, of whose loan nothing was told, either; or what cannot come back
        timings = self.books.timings
        timings.new_holds.append(held)
        if now >= timings.count_at or len(timings.new_holds) >= MANY:
            self.count_in(now)
        if handlers := self.listeners.by_kind[CheckedIn]:
            self.listeners.tell(CheckedIn(self.pool.name, now, record.id, held), handlers)

    def count_in(self, now: float) -> None:
        """Count in how long things took since the last time."""
        if not self.is_inside():
            with self._lock:
                self.books.timings.catch_up(now, self.books.n_checkouts())

    def take_back(self, key: Key, at: float | None = None) -> None:
        """The long way of a return: reset it, hand it to a waiter, keep it, or close it.

        *at*: when it came back, if who sends it here knows.
        """
        record = key.record
        if record.phase is not OPEN:
            record.check_may_return()
        stream = record.stream
        if record.fate is None and stream is not None and not stream.is_clean():
            record.condemn(CloseReason.DIRTY if stream.has_unread() else CloseReason.BROKEN)
        if record.fate is None and self.connector.reset is not None:
            try:
                if not self.dialler.reset(record):
                    record.condemn(CloseReason.DIRTY)
            except BaseException:  # a reset that was interrupted has its connection closed, not forgotten
                record.condemn(CloseReason.DIRTY)
                self._settle(key, at)
                raise
        self._settle(key, at)
        if record.fate is CloseReason.BROKEN and self.service.looks_itself():
            self._look_at_siblings(record.host)

    def _look_at_siblings(self, host: Host) -> None:
        """One connection broke: those idle beside it are looked at now, not by their next holders."""
        for key in look_through(host.idle):
            if not host.withdraw(key):
                continue
            self.look_at(key)
            if key.record.fate is not None:
                self._settle(key)
            else:
                host.idle.append(key)
                self.serve()

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

    def _settle(self, key: Key, at: float | None = None) -> None:
        """A waiter gets it, or it lies idle, or it is closed."""
        record = key.record
        if self.is_inside():
            self._settle_inside(key)
            return
        with self._lock:
            now = self.now()
            service, reason = self.service, self.fate_locked(record, now)
            held, pace = (now if at is None else at) - record.since, self.books.pace
            is_brisk = held < pace.brief
            if held > LONG and self.books.queue:
                pace.note_long()
            if reason is None and self.books.fleet.poor and would_rather_dial(self.books, record, now):
                reason = CloseReason.EVICTED
            if reason is None:
                record.since = now
                if not service.hand_over(key, now, is_brisk=is_brisk):
                    record.host.idle.append(key)
                elif service.is_content(now):
                    return
            todo = Todo()
            if reason is not None:
                self.books.doom(key, reason, todo)
            service.serve(now, todo, is_brisk=is_brisk)
        self.carry_out(todo)

    def _settle_inside(self, key: Key) -> None:
        """A return by what interrupted a locked section: only what needs no lock."""
        record = key.record
        if record.fate is None:
            record.since = self.now()
            record.host.idle.append(key)
        else:  # recovered like a lost one, by whoever looks next
            self.books.lost.append(record)
            del key.record
            wink(self.pool)
        self.nudge()

    def fate_locked(self, record: Record, now: float) -> CloseReason | None:
        """Why a connection that is on nobody's hands must be closed; None: it is kept."""
        books = self.books
        if now < record.expires_at and not books.is_strict:
            return None
        reason = verdict(books.config, record, now)
        if reason is None and books.state is PoolState.CLOSED:
            reason = CloseReason.POOL_CLOSED
        if reason is None and books.is_oversized:
            reason = CloseReason.SURPLUS
        return reason

    def let_go(self, key: Key) -> Any:
        """The transport leaves the pool open. Returns it.

        Raises:
            UsageError: the process was forked since: it is the parent's.
        """
        record, todo = key.record, Todo()
        if record.phase is Phase.CLOSED:
            record.check_may_return()
        if record.stream is not None:
            record.stream.hand_out()
        with self._lock:
            raw, record.raw = record.raw, None
            try:
                self.books.forget(record)
            finally:  # Ctrl-C in the midst of it: the waiters are served all the same
                self.service.serve(self.now(), todo)
        self.carry_out(todo)
        return raw

    def upgraded(self, record: Record, context: TLSContext, name: str | None) -> None:
        """A loan speaks TLS now: it belongs to the TLS endpoint, on the route or not.

        Unless *context*, which has looked for *name*, has verified too little, or others went there under
        another name: then it is nobody's.
        """
        plain = record.host.endpoint
        if record.phase is not Phase.OPEN or plain.tls:
            return  # while it is being opened, the upgrade is how this pool opens
        if not plain.host or not self.connector.would_trust(plain, context, name):
            record.condemn(CloseReason.DIRTY)
            return
        with self._lock:
            host = self.books.fleet.host(Endpoint(plain.host, plain.port, tls=True), self.now())
            notes = record.noted()
            notes.peer = name or ""
            if _others_differ(host, notes.peer):  # a checkout could get either
                record.condemn(CloseReason.DIRTY)
                return
            host.records.add(record)
            old, record.host = record.host, host
            old.records.discard(record)
        self.serve()

    # -- what dials bring

    def record_dial(self, dial: Dial, error: BaseException | None, began: float) -> None:
        """A dial or look is over: its connection is idle, or its place is free, and waiters are told."""
        try:
            if error is not None and not dial.is_look and dial.key.record.raw is None:
                self.tell_closed(dial.key.record)
        finally:  # Ctrl-C in a handler: it is over all the same
            self._record_dial(dial, error, began)

    def _record_dial(self, dial: Dial, error: BaseException | None, began: float) -> None:
        key, record, books = dial.key, dial.key.record, self.books
        todo, failure = Todo(), None
        if error is not None and not dial.is_look and not self._was_called_off(dial, error):
            failure = as_connect_error(error, self.pool.name, record.host.endpoint)
            if dial.is_errand:
                drop_frames(failure)
        with self._lock:
            now = self.now()
            record.host.looks.pop(record, None)
            waiter = self.service.end_attempt(record)
            if waiter is not None:
                waiter.is_busy = False
            if error is None:
                if not dial.is_look:
                    self._admit_locked(dial, now, now - began)
                self._keep_locked(dial, waiter, now, todo)
            elif dial.is_look:
                books.doom(key, CloseReason.BROKEN, todo)
            else:
                if failure is not None and record not in record.host.hung:
                    self.service.blame(dial, failure, now)
                record.host.owed += dial.is_owed
                if record.raw is None:
                    books.forget(record)
                else:
                    books.doom(key, CloseReason.BROKEN, todo)
            if dial.replaces is not None:
                todo.doomed.append(dial.replaces)
            self.service.serve(now, todo)
        del dial.key, key  # whoever has it now may drop it at once, and is to be heard of then
        self.carry_out(todo)
        if dial.is_upkeep and (error is None or dial.is_look):
            self.pool._chores.turn(apart=True)  # it was one of a few at a time: the next may begin

    def _admit_locked(self, dial: Dial, now: float, seconds: float) -> None:
        """A dial has brought a connection."""
        books, host = self.books, dial.key.record.host
        books.admit(dial.key.record, now)
        host.succeed(now)
        self.service.come_back(host)
        books.timings.dials.turn(now)
        books.timings.dials.record(seconds)
        if dial.replaces is not None:
            dial.replaces.record.noted().is_replaced = True
        elif dial.is_upkeep and not dial.is_owed and host.owed:
            host.owed -= 1  # it was opened for another reason, but it is there

    def _keep_locked(self, dial: Dial, waiter: Waiter | None, now: float, todo: Todo) -> None:
        """What was opened, or found in order, goes to who waited for it, or lies idle."""
        record = dial.key.record
        reason = self.fate_locked(record, now)
        if dial.is_look and dial.is_upkeep:
            record.noted().looked_at = now  # and it has been idle all the time
        else:
            record.since = now
        if reason is not None:
            self.books.doom(dial.key, reason, todo)
        elif (
            dial.is_look and waiter is not None and waiter.is_waiting() and self.books.state is PoolState.OPEN
        ):
            self.service.give(waiter, dial.key, now)  # one look a checkout, however soon the next is due
        else:
            record.host.put_back(dial.key)

    @staticmethod
    def _was_called_off(dial: Dial, error: BaseException) -> bool:
        """Whether a dial failed for our own reasons, and says nothing of the endpoint."""
        is_haste = isinstance(error, TimeoutError) and real.now() >= dial.hurried_at
        return dial.cancel.is_set() or is_haste or (dial.is_errand and not isinstance(error, Exception))

    def abandon(self, waiter: Waiter) -> None:
        """Call off what is being opened for *waiter*, unless somebody else may use it."""
        with self._lock:
            record = waiter.attempt
            if waiter.is_waiting():  # it leaves before the dial ends, or another would be begun for it
                waiter.outcome = Outcome.LEFT
                self.books.queue.leave(waiter)
            if record is None or record.phase is not Phase.OPENING or len(self.books.queue) > 0:
                return
            self.condemn_locked([record], CloseReason.BROKEN)  # or it could be lent before we cut it off
        self.interrupt(record, "the request was cancelled")

    def condemn_locked(self, records: list[Record], reason: CloseReason) -> None:
        """Let *records* be closed when they come back, and call off what is being opened."""
        for record in records:
            record.condemn(reason)
            self.call_off_locked(record)

    def call_off_locked(self, record: Record) -> None:
        """Cancel the dial that is opening *record*, if one is."""
        underway = record.host.opening.get(record) or record.host.hung.get(record)
        if underway is not None:
            underway.cancel.set()


def _others_differ(host: Host, peer: str) -> bool:
    """Whether others went to *host* under another name than *peer*."""
    others = [other.notes.peer for other in host.records if other.notes is not None]
    return any(name not in (None, peer) for name in others)
