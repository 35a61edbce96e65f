"""One turn of upkeep: what expires, what is to be opened, looked at, found again and warned about."""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Iterator
from typing import Final, TypeAlias

from connpool.model.events import LoanHeldLong
from connpool.model.states import CloseReason, PoolState
from connpool.pool.hosts import Host
from connpool.pool.jobs import Dial, Todo
from connpool.pool.lending import Lender
from connpool.pool.lifetimes import is_to_be_replaced, pause_of
from connpool.pool.origin import describe_thread
from connpool.pool.piles import look_through
from connpool.pool.record import Key, Phase, Record, Tenure
from connpool.pool.recovery import recover
from connpool.pool.room import evict_surplus, longest_idle
from connpool.pool.sharing import loans_of
from connpool.pool.snapshots import Names, describe_tenure, idle_ones, is_held, thread_name
from connpool.pool.unwinding import keeping_no_key

__all__ = ["Chores"]

Loan: TypeAlias = tuple[Record, int]  # of a shared one, with the number of the share; else 0

logger = logging.getLogger("connpool.pool")

NEVER: Final = math.inf


class Chores:
    """What the reaper does for one pool, and ``sweep`` by hand. Nothing of it waits for anything."""

    def __init__(self, lender: Lender) -> None:
        self._lender = lender
        self._lock = lender._lock
        self._books = lender.books
        self._warned: dict[Loan, float] = {}  # loans that last long, and since when

    @keeping_no_key
    def turn(self, *, apart: bool = False, is_leap: bool = False) -> int:
        """Do what is due. Returns how many connections are closed for it.

        Args:
            apart: Close on a thread of its own, and do not wait for it.
            is_leap: The machine slept: nothing is closed for having been idle meanwhile.
        """
        todo, books = Todo(), self._books
        if self._lender.is_inside():
            return 0
        with self._lock:
            now = self._lender.now()
            recover(books, todo)
            books.warm_reserve.look_again()
            self._lender.service.give_up_hung(now)
            if is_leap:
                self._forgive_locked(now)
            self._expire_locked(now, todo)
            if books.state is PoolState.OPEN:
                self._probe_locked(now, todo)  # first: the place that was made for it is not for the others
                self._make_good_locked(now, todo)
                self._refill_locked(now, todo)
            self._validate_locked(now, todo)
            hung = self._hung_looks_locked(now)
            overdue, back = self._review_loans_locked(now)
            n_doomed = len(todo.doomed) + sum(dial.replaces is not None for dial in todo.dials)
            self._lender.service.serve(now, todo)
            books.alarm_at = self._next_due_locked(now)
            books.is_alarm_new = True
        for record in hung:
            self._lender.interrupt(record, "looking at it took too long")
        self._lender.carry_out(todo, apart=apart)
        self._warn(overdue, back, now)
        return n_doomed

    def take_leave(self) -> None:
        """The pool is closed, and no turn comes after this: tell which of the long loans are back."""
        if self._warned:
            self.turn(apart=True)

    # -- expiry

    def _forgive_locked(self, now: float) -> None:
        """Let what is idle count as idle since a moment ago, so that it is looked at and not closed."""
        config = self._books.config
        limits = (config.look_after_idle, None if config.idle_timeout is None else config.idle_timeout / 2)
        age = min((limit for limit in limits if limit is not None), default=0.0)
        for host in self._hosts():
            for key in look_through(host.idle):
                key.record.since = max(key.record.since, now - age)

    def _expire_locked(self, now: float, todo: Todo) -> None:
        books = self._books
        for key, reason, is_missed in books.warm_reserve.worn_out(now):
            if key.record.host.withdraw(key):
                books.doom(key, reason, todo)
                self._replace_locked(key, now, todo, is_needed=is_missed)
        evict_surplus(books, todo)

    def _replace_locked(self, key: Key, now: float, todo: Todo, *, is_needed: bool) -> None:
        """Have another opened before *key*'s connection is closed, where one is wanted and may be."""
        books, record = self._books, key.record
        wanted = is_needed or is_to_be_replaced(record, books.config.revive)
        if not wanted or books.state is not PoolState.OPEN or record.fate is CloseReason.IDLE:
            return
        host = self._best_host(now, record.host)
        if host is not None:
            todo.doomed.remove(key)
            self._dial_locked(host, now, todo).replaces = key

    # -- opening

    def _make_good_locked(self, now: float, todo: Todo) -> None:
        """Open what is owed for connections that broke or expired."""
        for host in self._hosts():
            if not host.on_route or self._books.fleet.is_full:
                host.owed = 0  # nobody misses it
            while host.owed and self._books.warm_reserve.may_open_at(host, now):
                host.owed -= 1
                self._dial_locked(host, now, todo).is_owed = True

    def _refill_locked(self, now: float, todo: Todo) -> None:
        for _ in range(self._books.warm_reserve.n_missing()):
            host = self._best_host(now)
            if host is None:
                return
            self._dial_locked(host, now, todo)

    def _probe_locked(self, now: float, todo: Todo) -> None:
        """Dial each endpoint whose time out is over, once."""
        books = self._books
        for host in self._hosts():
            if not self._is_probed(host) or not host.is_due(now) or not books.may_dial(host, now):
                continue
            if books.is_at_limit(host):
                continue
            if not books.fleet.is_full:
                self._dial_locked(host, now, todo)
            elif not todo.doomed and not self._makes_room():
                self._make_room_locked(host, todo)  # and the next turn dials

    def _makes_room(self) -> bool:
        """Whether one that was to make room is still being closed."""
        return any(record.fate is CloseReason.EVICTED for record in self._books.records())

    def _make_room_locked(self, host: Host, todo: Todo) -> None:
        others = [other for other in self._hosts() if other is not host and len(other.records) > 1]
        found = longest_idle(others)
        if found is not None and found[1].withdraw(found[0]):
            self._books.doom(found[0], CloseReason.EVICTED, todo)

    def _best_host(self, now: float, preferred: Host | None = None) -> Host | None:
        """Where one more connection may be opened; None: nowhere."""
        reserve = self._books.warm_reserve
        if preferred is not None and reserve.may_open_at(preferred, now):
            return preferred
        ready = reserve.hosts()
        fit = [host for host in self._hosts() if host in ready and reserve.may_open_at(host, now)]
        return min(fit, key=lambda host: len(host.records), default=None)

    def _dial_locked(self, host: Host, now: float, todo: Todo) -> Dial:
        key, cancel = self._books.reserve(host, now, blames=True)
        dial = Dial(key, cancel, is_look=False)
        todo.dials.append(dial)
        return dial

    def _is_probed(self, host: Host) -> bool:
        config = self._books.config
        return config.reconnect and host.on_route and not config.dial_in_caller

    # -- looking

    def _validate_locked(self, now: float, todo: Todo) -> None:
        """Have idle ones looked at whose turn it is, a few of each endpoint at a time."""
        interval = self._books.config.keepalive_interval
        if interval is None or self._books.state is PoolState.CLOSED:
            return
        for host in self._hosts():
            free = self._books.config.max_connecting - len(host.looks)
            for key in look_through(host.idle):
                if free <= 0:
                    break
                if now - _seen_at(key.record) >= interval and host.withdraw(key):
                    free -= 1
                    host.looks[key.record] = now
                    todo.dials.append(Dial(key, threading.Event(), is_look=True))

    def _hung_looks_locked(self, now: float) -> list[Record]:
        """Connections that have been looked at for too long: they are cut off, and closed for it."""
        limit = self._books.config.connect_timeout
        hung = []
        for host in self._hosts():
            for record, began in list(host.looks.items()):
                if now - began >= limit:
                    record.condemn(CloseReason.BROKEN)
                    hung.append(record)
        return hung

    # -- loans

    def _review_loans_locked(
        self, now: float
    ) -> tuple[list[tuple[Record, Tenure]], list[tuple[Loan, float]]]:
        """Loans that have become long since the last turn, and long ones that have ended."""
        limit = self._books.config.warn_after
        idle = idle_ones(self._books)
        held: dict[Loan, Tenure] = {}
        for record in self._books.records() if limit is not None or self._warned else ():
            if is_held(record, idle):
                held |= {(record, number): tenure for number, tenure in loans_of(record).items()}
        warned = self._warned
        back = [(loan, t) for loan, t in warned.items() if loan not in held or held[loan][0] != t]
        for loan, _ in back:
            del warned[loan]
        overdue = []
        if limit is not None:
            overdue = [loan for loan in held if now - held[loan][0] >= limit and loan not in warned]
        warned |= {loan: held[loan][0] for loan in overdue}
        return [(loan[0], held[loan]) for loan in overdue], back

    def _warn(
        self, overdue: list[tuple[Record, Tenure]], back: list[tuple[Loan, float]], seen_at: float
    ) -> None:
        """Tell of loans, as they were when they were reviewed: some may be back by now."""
        name, now, names = self._lender.pool.name, self._lender.now(), Names()
        for record, tenure in overdue:
            since, thread, _ = tenure
            logger.warning(
                "pool %r: connection %d has been held for %.1f s by %s, which is here:\n%s",
                name,
                record.id,
                seen_at - since,
                describe_tenure(tenure, names),
                describe_thread(thread),
            )
            if self._lender.listeners.by_kind[LoanHeldLong]:
                where = thread_name(thread, names)
                self._lender.listeners.tell(LoanHeldLong(name, now, record.id, seen_at - since, where))
        for (record, _), since in back:
            logger.warning(
                "pool %r: connection %d is back after at most %.1f s", name, record.id, now - since
            )

    # -- when next

    def _next_due_locked(self, now: float) -> float:
        """The instant before which there is nothing to do, whatever is lent or given back until then."""
        books, config = self._books, self._books.config
        if books.state is PoolState.CLOSED:
            return NEVER
        soon = now + (pause_of(config) or 0.0)
        due = NEVER
        if any(host.looks or host.owed for host in self._hosts()) or self._warned or books.lost:
            due = soon
        if books.warm_reserve.can_grow(now):  # what was served after the refill has made it possible
            due = soon
        for host in self._hosts():
            due = min([due, *(books.hangs_at(record) for record in host.opening)])
            is_probed = self._is_probed(host) and books.state is PoolState.OPEN
            if not host.is_up() and (host.by_hand or is_probed):
                due = min(due, max(soon, host.retry_at or 0.0))
        idle = idle_ones(books)
        ready, has_spare = books.warm_reserve.hosts(), books.warm_reserve.n_ready() > config.min_idle
        for record in books.records():
            if record.phase is Phase.OPEN:
                is_spare = has_spare or record.host not in ready
                due = min(due, self._due_of(record, now, is_idle=record in idle, is_spare=is_spare))
        return max(due, soon)

    def _due_of(self, record: Record, now: float, *, is_idle: bool, is_spare: bool) -> float:
        config = self._books.config
        if not is_idle:  # it may come back this instant, or be lent on
            due = now + self._books.horizon
            if record.expires_at > now:
                due = min(due, record.expires_at)
            if config.warn_after is None:
                return due
            loans = loans_of(record).items()
            unknown = (tenure for number, tenure in loans if (record, number) not in self._warned)
            return min([due, *(since + config.warn_after for since, _, _ in unknown)])
        due = record.expires_at
        if config.idle_timeout is not None:
            due = min(due, (record.since if is_spare else now) + config.idle_timeout)
        if config.keepalive_interval is not None:
            due = min(due, _seen_at(record) + config.keepalive_interval)
        return min(due, now + config.warn_after) if config.warn_after is not None else due

    def _hosts(self) -> Iterator[Host]:
        return iter(list(self._books.fleet.hosts.values()))


def _seen_at(record: Record) -> float:
    """When *record* was in use or validated last."""
    return record.since if record.notes is None else max(record.since, record.notes.looked_at)
