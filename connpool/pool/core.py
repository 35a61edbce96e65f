"""The books of one pool: places, hosts, counters, and what became of lost keys."""

from __future__ import annotations

import itertools
import math
import random
import threading
from collections import Counter, deque
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final, Protocol

from connpool.clock import Gate
from connpool.model.config import PoolConfig
from connpool.model.histogram import Histogram
from connpool.model.route import Route
from connpool.model.states import CloseReason, PoolState
from connpool.pool.hosts import Fleet, Host, Take
from connpool.pool.jobs import Todo
from connpool.pool.record import Key, Phase, Record
from connpool.pool.waiters import Waiter, WaitQueue

if TYPE_CHECKING:
    from connpool.pool.pool import ConnectionPool

__all__ = ["Board", "Books"]


BRIEF: Final = 50e-6  # seconds: loans so short that overtaking costs a waiter next to nothing
JUST_OPENED: Final = 0.5  # seconds for which a new connection needs no look, however often others get one


class Board(Protocol):
    """What the fast path reads without the lock. Only ``Books.publish`` writes it."""

    _take: Take  # an idle key of the next host, or IndexError
    _fresh_for: float  # seconds of idleness after which a connection is looked at
    _lend_until: float  # from this instant on a checkout takes the long way
    _return_until: float  # from this instant on a return takes the long way
    _brief_for: float  # who held a connection longer lets nobody overtake the oldest waiter
    _is_awaited: bool  # somebody sleeps who must hear of every return


class Books:
    """The state of one pool. Every method is called with the pool's lock held.

    How many connections there are is not counted but read off the hosts' sets
    of records, so that there is no count an interrupt could leave wrong.
    """

    def __init__(
        self, pool: ConnectionPool, config: PoolConfig, overtake_delay: float, *, has_reset: bool
    ) -> None:
        self.pool = pool
        self.config = config
        self.state = PoolState.OPEN
        self.route: Route | None = None
        self.drains: list[Gate] = []  # of threads that wait for the last loan to come back
        self.fleet = Fleet()
        self.queue = WaitQueue()
        self.rng = random.Random()
        self.overtake_delay = overtake_delay
        self._has_reset = has_reset
        self._all_returns_are_long = has_reset
        self.is_oversized = False  # max_size was lowered: what comes back is closed
        self.is_strict = False  # what comes back may have to be closed though it has not expired
        self.lost: deque[Record] = deque()  # keys that were dropped; finalisers append without the lock
        self.departed = 0  # left the pool open: taken or detached
        self.closed: Counter[CloseReason] = Counter()
        self.past_uses = 0  # loans of connections that are gone
        self.timeouts = 0
        self.connect_failures = 0
        self.lost_loans = 0
        self.last_error: BaseException | None = None
        self.new_waits: list[float] = []  # seconds, still to be counted in
        self.waits = Histogram()
        self.dials = Histogram()
        self._ids = itertools.count(1)
        self.next_change = math.inf

    # -- places

    def summary(self, n_leaving: int = 0) -> str:
        """The numbers that an error needs; may be asked without the lock.

        *n_leaving*: how many of those who stand in the queue are about to leave it.
        """
        n_waiting = max(0, len(self.queue) - n_leaving)
        return f"{self.size()} of {self.config.max_size} open, {self.n_lent()} in use, {n_waiting} waiting"

    def n_lent(self) -> int:
        """How many are lent, or being looked at. Idle ones are counted once, so it is never negative."""
        n_idle = sum(len(host.idle) for host in self.fleet.hosts.values())
        return max(0, sum(record.phase is Phase.OPEN for record in self.records()) - n_idle)

    def records(self) -> Iterator[Record]:
        for host in list(self.fleet.hosts.values()):
            yield from host.records.copy()

    def size(self) -> int:
        return sum(len(host.records) for host in self.fleet.hosts.values())

    def has_place(self, host: Host, now: float) -> bool:
        """Whether one more connection to *host* may be dialled now, total left aside."""
        return self.may_dial(host, now) and not self.is_at_limit(host)

    def may_dial(self, host: Host, now: float) -> bool:
        """Whether *host* may be dialled now, places left aside. A due one is probed by one dial alone."""
        is_reachable = host.is_up() or host.is_due(now)
        return host.dialable and is_reachable and len(host.opening) < self.config.max_connecting

    def is_at_limit(self, host: Host) -> bool:
        """Whether ``max_per_endpoint`` allows *host* no more connections."""
        most = self.config.max_per_endpoint
        return most is not None and len(host.records) >= most

    def reserve(self, host: Host, now: float) -> tuple[Key, threading.Event]:
        """Take a place at *host* for a connection that is to be dialled."""
        key = Key(Record(next(self._ids), self.pool, host, now))
        cancel = threading.Event()
        host.opening[key.record] = cancel
        host.records.add(key.record)
        self.count_places()
        return key, cancel

    def adopt(self, host: Host, raw: object, now: float) -> Key:
        """Take a place at *host* for a transport that is open already."""
        key = Key(Record(next(self._ids), self.pool, host, now))
        key.record.raw = raw
        host.records.add(key.record)
        self.count_places()
        self.admit(key.record, now)
        return key

    def admit(self, record: Record, now: float) -> None:
        """An opening record is open."""
        record.move(Phase.OPEN)
        record.was_open = True
        record.host.opening.pop(record, None)
        record.opened_at = record.since = now
        if record.fate is None:
            record.expires_at = self._end_of_life(record)

    def adopt_config(self, config: PoolConfig) -> None:
        """Go by *config* from now on; what is open gets the lifetime it would have had."""
        had = (self.config.max_lifetime, self.config.lifetime_jitter)
        self.config = config
        if had != (config.max_lifetime, config.lifetime_jitter):
            for record in self.records():
                if record.phase is Phase.OPEN and record.fate is None:
                    record.expires_at = self._end_of_life(record)

    def _end_of_life(self, record: Record) -> float:
        lifetime = self.config.max_lifetime
        if lifetime is None:
            return math.inf
        return record.opened_at + lifetime * (1 - self.config.lifetime_jitter * self.rng.random())

    def doom(self, key: Key, reason: CloseReason, todo: Todo) -> None:
        """Let *key*'s connection be closed; it keeps its place until that is done."""
        key.record.condemn(reason)
        key.record.move(Phase.CLOSING)
        todo.doomed.append(key)

    def forget(self, record: Record) -> None:
        """Free the place of *record*: it is closed, or has left the pool."""
        is_first_time = record in record.host.records  # recovered records may come twice
        was = record.phase
        record.host.opening.pop(record, None)
        record.host.records.discard(record)  # this frees the place; what follows is bookkeeping
        self.count_places()
        record.phase = Phase.CLOSED
        if is_first_time and record.was_open:
            self.past_uses += record.uses
            if was is Phase.CLOSING and record.fate is not None:
                self.closed[record.fate] += 1
            else:
                self.departed += 1
        self.fleet.forget_empty()
        if self.drains and self.n_lent() == 0:
            while self.drains:
                self.drains.pop().release()

    def verdict(self, record: Record, now: float) -> CloseReason | None:
        """Why *record* must not be lent (again); None: it may be."""
        config = self.config
        if record.fate is not None:
            return record.fate
        if now >= record.expires_at:
            return CloseReason.EXPIRED
        if config.max_uses is not None and record.uses >= config.max_uses:
            return CloseReason.USED_UP
        return None

    def idle_verdict(self, record: Record, now: float) -> CloseReason | None:
        """The same for an idle one, which may also have been idle for too long."""
        limit = self.config.idle_timeout
        if limit is not None and now - record.since >= limit:
            return CloseReason.IDLE
        return self.verdict(record, now)

    def drain_idle(self, host: Host, reason: CloseReason, todo: Todo) -> None:
        """Let every idle connection of *host* be closed."""
        while host.idle:
            try:
                key = host.idle.pop()
            except IndexError:  # a checkout was faster
                return
            self.doom(key, reason, todo)

    def count_waits(self) -> Histogram:
        """All waits, up to date. Counting them one by one would cost each hand-off a microsecond."""
        new, self.new_waits = self.new_waits, []
        for seconds in new:
            self.waits.record(seconds)
        return self.waits

    def drain_all(self, reason: CloseReason, todo: Todo) -> None:
        for host in self.fleet.hosts.values():
            self.drain_idle(host, reason, todo)

    # -- lost keys

    def recover(self, todo: Todo) -> None:
        """Free the places of records whose key was dropped, by an interrupt or by its holder."""
        while self.lost:
            self._recover_one(self.lost[0], todo)
            self.lost.popleft()  # only now: an interrupt before has it recovered again

    def _recover_one(self, record: Record, todo: Todo) -> None:
        if record.phase is Phase.CLOSED:
            return
        key = Key(record)
        for waiter in self.queue:
            if waiter.attempt is record:
                waiter.attempt = None
        if record.phase is Phase.OPEN and record.fate is None:
            self.lost_loans += 1
        if record.raw is None:  # nothing was opened, or it is closed already
            self.forget(record)
        elif record.phase is Phase.CLOSING:
            todo.doomed.append(key)
        else:
            self.doom(key, CloseReason.LOST, todo)

    # -- the fast path's board

    def publish(self, now: float) -> None:
        """Tell the fast path how things stand, after anything but the queue has changed."""
        board: Board = self.pool
        config = self.config
        self.next_change = self.fleet.refresh(now, lends=self.state is PoolState.OPEN)
        board._take = self.fleet.take
        limits = (config.look_after_idle, config.idle_timeout)
        board._fresh_for = min((limit for limit in limits if limit is not None), default=math.inf)
        board._lend_until = -math.inf if config.max_uses is not None else self.next_change
        self.count_places()
        self.publish_queue()

    def count_places(self) -> None:
        """After a place was taken or freed."""
        size = self.size()
        self.fleet.weigh(size, self.config.max_size)
        self.is_oversized = size > self.config.max_size
        is_open = self.state is PoolState.OPEN
        self._all_returns_are_long = self._has_reset or not is_open or self.is_oversized
        self.is_strict = self.config.max_uses is not None or not is_open or self.is_oversized

    def publish_queue(self) -> None:
        """The part of the board that depends on who waits."""
        board: Board = self.pool
        oldest = self.queue.oldest
        is_closed = self.state is PoolState.CLOSED  # what slips past the closing is closed by who returns it
        board._is_awaited = is_closed or (oldest is not None and oldest.is_asleep)
        board._brief_for = math.inf if oldest is None else BRIEF
        if self._all_returns_are_long or board._is_awaited:
            board._return_until = -math.inf
        elif oldest is not None and oldest.front_at is not None:
            board._return_until = min(self.next_change, oldest.front_at + self.overtake_delay)
        else:
            board._return_until = self.next_change

    def is_dry(self, now: float) -> bool:
        """Whether nothing at all can be done for a plain waiter: no idle connection, no place, no news."""
        fleet = self.fleet
        return (
            fleet.is_full
            and not fleet.has_idle()
            and not self.lost
            and now < self.next_change
            and fleet.has_host_up()
        )

    def needs_look(self, record: Record, now: float, waiter: Waiter) -> bool:
        """Whether *record* must be looked at before *waiter* gets it."""
        idle_for = now - record.since
        is_just_open = record.uses == 0 and idle_for < JUST_OPENED
        return waiter.must_look or (idle_for >= self.pool._fresh_for and not is_just_open)
