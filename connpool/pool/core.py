"""The books of one pool: places, hosts, counters, and what became of lost keys."""

from __future__ import annotations

import itertools
import math
import os
import random
import threading
from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from connpool.clock import Gate
from connpool.errors import ConnectError
from connpool.model.config import PoolConfig
from connpool.model.events import EndpointDown, EndpointUp, GroupSwitched
from connpool.model.route import Route
from connpool.model.states import POOL_CLOSED, CloseReason, PoolState
from connpool.pool.fleet import Fleet
from connpool.pool.hosts import Host, Underway
from connpool.pool.jobs import Todo
from connpool.pool.lifetimes import end_of_life, horizon, is_to_be_replaced, verdict
from connpool.pool.listeners import Listeners
from connpool.pool.pace import Pace
from connpool.pool.record import Key, Phase, Record, in_phase
from connpool.pool.reserve import Reserve
from connpool.pool.tally import Tally
from connpool.pool.timings import Timings
from connpool.pool.waiters import Waiter, WaitQueue
from connpool.wire.io import open_stream

if TYPE_CHECKING:
    from connpool.pool.pool import ConnectionPool
    from connpool.pool.sharing import Hold

__all__ = ["Books"]


CHANCE: Final = random.Random()  # of all pools that are given none of their own
os.register_at_fork(after_in_child=CHANCE.seed)  # parent and child must not dial in step
HANG_GRACE: Final = 0.25  # seconds by which a dial may outlast its timeout
JUST_OPENED: Final = 0.5  # seconds for which a new connection needs no look, however often others get one


class Books:
    """The state of one pool. With its lock held, but for what only counts or lists: that may be blurred.

    How many connections there are is not counted but read off the hosts' sets
    of records, so that there is no count an interrupt could leave wrong.
    """

    def __init__(
        self,
        pool: ConnectionPool,
        config: PoolConfig,
        listeners: Listeners,
        overtake_delay: float,
        *,
        has_reset: bool,
    ) -> None:
        self.pool = pool
        self.config = config
        self.listeners = listeners
        self.timings = Timings(pool._now())
        self.state = PoolState.OPEN
        self.route: Route | None = None
        self.pause_fails = False  # while it is paused checkouts fail instead of waiting
        self.drains: list[Gate] = []  # of threads that wait for the last loan to come back
        self.fleet = Fleet()
        self.warm_reserve = Reserve(self)
        self.queue = WaitQueue()
        self.rng = CHANCE
        self.pace = Pace(overtake_delay)
        self._has_reset = has_reset
        self._all_returns_are_long = has_reset
        self.return_until = -math.inf  # from this instant on a return takes the long way
        self.is_heard = False  # somebody listens to loans, so that all of them begin it
        self.is_oversized = False  # max_size was lowered: what comes back is closed
        self.is_strict = False  # what comes back may have to be closed though it has not expired
        self.lost: deque[Record | tuple[Hold, int]] = deque()  # what was dropped, as finalisers say
        self.holds: dict[Hold, None] = {}  # what is shared, in the order in which it became so
        self.tally = Tally()
        self.last_error: ConnectError | None = None  # of a dial; None: that endpoint was dialled since
        self._ids = itertools.count(1)
        self.next_change = math.inf
        self.hang_at = math.inf  # when the first of the dials under way should long have ended
        self.horizon = horizon(config)
        self.alarm_at = math.inf  # when upkeep must look at this pool at the latest
        self.is_alarm_new = False  # and the reaper does not know yet
        self.active_group: int | None = None

    # -- places

    def summary(self, n_leaving: int = 0) -> str:
        """The numbers that an error needs; may be asked without the lock.

        *n_leaving*: how many of those who stand in the queue are about to leave it.
        """
        n_waiting = max(0, len(self.queue) - n_leaving)
        return f"{self.size()} of {self.config.max_size} open, {self.n_lent()} in use, {n_waiting} waiting"

    def n_lent(self) -> int:
        """How many are lent, or being looked at. Idle ones are counted once, so it is never negative."""
        n_idle = self.n_idle()
        return max(0, sum(record.phase is Phase.OPEN for record in self.records()) - n_idle)

    def records(self) -> Iterator[Record]:
        for host in list(self.fleet.hosts.values()):
            yield from host.records.copy()

    def size(self) -> int:
        return sum(len(host.records) for host in list(self.fleet.hosts.values()))  # also without the lock

    def has_place(self, host: Host, now: float) -> bool:
        """Whether one more connection to *host* may be dialled now, total left aside."""
        return self.may_dial(host, now) and not self.is_at_limit(host)

    def may_dial(self, host: Host, now: float) -> bool:
        """Whether *host* may be dialled now, places left aside. A due one is probed by one dial alone."""
        is_reachable = host.is_up() or host.is_due(now)
        most = self.config.max_connecting
        return host.dialable and is_reachable and len(host.opening) < most and len(host.hung) < most

    def hangs_at(self, record: Record) -> float:
        """When a dial that is opening *record* should long have ended."""
        return record.opened_at + self.config.connect_timeout + HANG_GRACE

    def is_at_limit(self, host: Host) -> bool:
        """Whether ``max_per_endpoint`` allows *host* no more connections."""
        most = self.config.max_per_endpoint
        return most is not None and len(host.records) >= most

    def reserve(self, host: Host, now: float, *, blames: bool) -> tuple[Key, threading.Event]:
        """Take a place at *host* for a connection that is to be dialled."""
        key = Key(Record(next(self._ids), self.pool, host, now))
        cancel = threading.Event()
        host.opening[key.record] = Underway(cancel, blames)
        host.records.add(key.record)
        self.hang_at = min(self.hang_at, self.hangs_at(key.record))
        self.next_change = min(self.next_change, self.hang_at)
        self.count_places()
        return key, cancel

    def adopt(self, host: Host, raw: object, now: float) -> Key:
        """Take a place at *host* for a transport that is open already."""
        key = Key(Record(next(self._ids), self.pool, host, now))
        key.record.raw = raw
        key.record.stream = open_stream(raw)  # not private: its last owner may have it still
        host.records.add(key.record)
        self.count_places()
        self.admit(key.record, now)
        return key

    def admit(self, record: Record, now: float) -> None:
        """An opening record is open."""
        record.move(Phase.OPEN)
        record.uses = 0
        record.host.opening.pop(record, None)
        record.host.hung.pop(record, None)
        record.opened_at = record.since = now
        record.host.opened += 1
        if record.fate is None:
            record.live_until(end_of_life(self.config, record, self.rng))
        self.expect(now + self.horizon)

    def adopt_config(self, config: PoolConfig) -> None:
        """Go by *config* from now on; what is open gets the lifetime it would have had."""
        had = (self.config.max_lifetime, self.config.lifetime_jitter)
        self.config, self.horizon = config, horizon(config)
        self.hang_at = -math.inf  # whatever hangs is counted anew
        self.expect(-math.inf)
        for record in in_phase(self.records(), Phase.OPEN):
            if record.fate is None and had != (config.max_lifetime, config.lifetime_jitter):
                record.live_until(end_of_life(config, record, self.rng))
            if config.max_uses is not None and record.uses >= config.max_uses:
                record.condemn(CloseReason.USED_UP)  # while it is lent, too: its return need not ask again

    def expect(self, at: float) -> None:
        """See to it that upkeep looks at this pool at *at*, or sooner; nothing is due once it is closed."""
        if at < self.alarm_at and self.state is not POOL_CLOSED:
            self.alarm_at = at
            self.is_alarm_new = True

    def doom(self, key: Key, reason: CloseReason, todo: Todo) -> None:
        """Let *key*'s connection be closed; it keeps its place until that is done."""
        record = key.record
        record.host.opening.pop(record, None)  # its dial is over, and another may begin
        record.host.hung.pop(record, None)
        record.condemn(reason)
        record.move(Phase.CLOSING)
        todo.doomed.append(key)

    def forget(self, *records: Record) -> None:
        """Free the places of *records*: they are closed, were never opened, or have left the pool."""
        for record in records:
            is_first_time = record in record.host.records  # recovered records may come twice
            was = record.phase
            for noted in (record.host.opening, record.host.hung, record.host.looks):
                noted.pop(record, None)
            record.host.records.discard(record)  # this frees the place; what follows is bookkeeping
            record.phase = Phase.CLOSED
            if is_first_time:
                self._count_parting(record, was)
        self.count_places()
        self.fleet.forget_empty()
        while self.drains and self.n_lent() == 0:
            self.drains.pop().release()

    def _count_parting(self, record: Record, was: Phase) -> None:
        host = record.host
        if not record.was_open:
            return
        host.past_uses += record.uses
        if was is Phase.CLOSING and record.fate is not None:
            host.closed[record.fate] += 1
            self.tally.closed[record.fate] += 1
        else:
            self.tally.departed += 1
        self.tally.past_uses += record.uses
        if self.config.revive and is_to_be_replaced(record, self.config.revive):
            host.owed += 1
        if host.owed:
            self.expect(-math.inf)

    def idle_verdict(self, record: Record, now: float) -> CloseReason | None:
        """Why an idle one must not be lent: as ``verdict``, or because it was idle for too long."""
        reason = verdict(self.config, record, now)
        if reason is None and self.was_idle_long(record, now) and self.warm_reserve.can_spare(record.host):
            return CloseReason.IDLE
        return reason

    def was_idle_long(self, record: Record, now: float) -> bool:
        limit = self.config.idle_timeout
        return limit is not None and now - record.since >= limit

    def n_checkouts(self) -> int:
        """All loans there ever were."""
        return self.tally.past_uses + sum(max(0, record.uses) for record in self.records())

    def n_idle(self) -> int:
        return sum(len(host.idle) for host in list(self.fleet.hosts.values()))  # also without the lock

    def drain_idle(self, host: Host, reason: CloseReason, todo: Todo) -> None:
        """Let every idle connection of *host* be closed."""
        while host.idle:
            try:
                key = host.idle.pop()
            except IndexError:  # a checkout was faster
                return
            self.doom(key, reason, todo)

    def drain_all(self, reason: CloseReason, todo: Todo) -> None:
        for host in self.fleet.hosts.values():
            self.drain_idle(host, reason, todo)

    # -- the fast path's board

    def publish(self, now: float) -> None:
        """Tell the fast path how things stand, after anything but the queue has changed."""
        board, config = self.pool, self.config
        changes_at = self.fleet.refresh(now, config.max_connecting, lends=self.state is PoolState.OPEN)
        self.next_change = min(changes_at, self.hang_at)
        self._note_news(now)
        limits = (config.look_after_idle, config.idle_timeout)
        board._fresh_for = min((limit for limit in limits if limit is not None), default=math.inf)
        board._lend_until = -math.inf if config.max_uses is not None else self.next_change
        self.count_places()
        board._take = self.warm_reserve.guard(self.fleet.take)
        self.publish_queue()

    def _note_news(self, now: float) -> None:
        """Write down which endpoints have gone or come back since the last time, and the active group."""
        post, name = self.listeners.post, self.pool.name
        for host in list(self.fleet.hosts.values()):
            if host.is_up() is host.was_up:
                continue
            host.was_up = host.is_up()
            if host.was_up:
                n_failed = host.n_failed - host.n_failed_up
                post(EndpointUp, name, now, host.endpoint, now - host.down_at, number=n_failed)
                host.n_failed_up = host.n_failed
                self.fleet.forget_empty()
            else:
                host.down_at = now
                self.expect(now if host.retry_at is None else host.retry_at)
                post(EndpointDown, name, now, host.endpoint, host.reason_down, host.next_try_at)
        active = self.fleet.active_group()
        if active != self.active_group:
            post(GroupSwitched, name, now, self.active_group, active, number=len(self.fleet.groups))
            self.active_group = active

    def count_places(self) -> None:
        """After a place was taken or freed."""
        size, most = self.size(), self.config.max_size
        self.fleet.weigh(size, most)
        self.is_oversized = size > most and sum(host.n_staying() for host in self.fleet.hosts.values()) > most
        is_open = self.state is PoolState.OPEN
        self._all_returns_are_long = self._has_reset or not is_open or self.is_oversized
        self.is_strict = self.config.max_uses is not None or not is_open or self.is_oversized

    def publish_queue(self) -> None:
        """The part of the board that depends on the waiters."""
        board, oldest = self.pool, self.queue.oldest
        is_closed = self.state is POOL_CLOSED  # what slips past the closing is closed by who returns it
        board._is_awaited = is_closed or (oldest is not None and oldest.is_asleep)
        board._brief_for = math.inf if oldest is None else self.pace.brief
        if self._all_returns_are_long or board._is_awaited:
            self.return_until = -math.inf
        elif oldest is not None and oldest.front_at is not None:
            self.return_until = min(self.next_change, oldest.front_at + self.pace.grace)
        else:
            self.return_until = self.next_change
        board._return_until = -math.inf if self.is_heard else self.return_until

    def needs_look(self, record: Record, now: float, waiter: Waiter) -> bool:
        """Whether *record* must be looked at before *waiter* gets it."""
        idle_for = now - record.since
        is_just_open = record.uses == 0 and idle_for < JUST_OPENED
        return waiter.must_look or (idle_for >= self.pool._fresh_for and not is_just_open)
