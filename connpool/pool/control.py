"""What an operator does to a pool at run time: clear, steer, configure, listen, add what is open."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from io import UnsupportedOperation
from typing import Any, TypeVar

from connpool.errors import PoolExhaustedError, UnknownEndpointError, UsageError
from connpool.model.checks import require_flag, require_seconds
from connpool.model.endpoint import Endpoint
from connpool.model.events import Event, PoolCleared
from connpool.model.route import Route
from connpool.model.states import CloseReason
from connpool.pool.connection import Connection
from connpool.pool.core import Books
from connpool.pool.hosts import Host
from connpool.pool.jobs import Todo
from connpool.pool.lending import Lender
from connpool.pool.listeners import Handler
from connpool.pool.loan_events import LOAN_EVENTS
from connpool.pool.observed import observe
from connpool.pool.record import Phase, Record, in_phase
from connpool.pool.room import evict_from_crowd, evict_surplus
from connpool.pool.stock import Stock
from connpool.pool.unwinding import keeping_no_key

__all__ = ["Control"]

T = TypeVar("T")


class Control:
    """The operator's side of one pool. See ``ConnectionPool`` for what each method promises.

    Attributes:
        stock: What lies idle, for those who want nothing else.
    """

    def __init__(self, lender: Lender) -> None:
        self._lender = lender
        self._lock = lender._lock
        self._books = lender.books
        self._name = lender.pool.name
        self.stock = Stock(lender)

    def listen(self, handler: Handler, kinds: tuple[type[Event], ...]) -> Callable[[], None]:
        kinds = self._books.listeners.meant_by(kinds)
        with self._lock:
            self._books.listeners.add(handler, kinds)
        self.attend()
        pool, calls = self._lender.pool, [handler]

        def stop() -> None:
            try:
                call = calls.pop()
            except IndexError:  # somebody has called us before
                return
            pool._control.dismiss(call, kinds)  # by now it may be another control: see a forked child

        return stop

    def dismiss(self, handler: Handler, kinds: tuple[type[Event], ...]) -> None:
        with self._lock:
            self._books.listeners.remove(handler, kinds)
        self.attend()

    def attend(self) -> None:
        """Have loans go the way on which they are heard, if there is somebody to hear of them.

        Listeners of endpoints alone, say, do not make loans dearer.
        """
        with self._lock:
            books, pool = self._books, self._lender.pool
            books.is_heard = books.listeners.hear_of(*LOAN_EVENTS)
            observe(pool, is_heard=books.is_heard, is_tracked=books.config.track_origin)
            books.publish(self._lender.now())

    def picture(self, draw: Callable[[Books], T]) -> T:
        """What *draw* makes of the books, at one instant."""
        if self._lender.is_inside():
            return draw(self._books)  # whoever we interrupted is half-way: a little blurred, never stuck
        with self._lock:
            return draw(self._books)

    # -- new beginnings

    @keeping_no_key
    def clear(self, endpoint: Endpoint | None, *, interrupt: bool) -> None:
        require_flag("interrupt", interrupt)
        todo = Todo()
        with self._lock:
            hosts = self._known_locked(endpoint)
            cut = self._renew_locked(hosts, todo, interrupt=interrupt)
            self._books.listeners.post(PoolCleared, self._name, self._lender.now(), endpoint, interrupt)
            self._lender.service.serve(self._lender.now(), todo)
        self._cut_off(cut, todo, f"pool {self._name!r} was cleared")

    def _renew_locked(self, hosts: list[Host], todo: Todo, *, interrupt: bool) -> list[Record]:
        """Close what is open to *hosts*: idle ones now, lent ones when they come back.

        Returns what is to be cut off at once.
        """
        records = [record for host in hosts for record in host.records]
        # All of them first, idle ones too: one that is lent in this very moment is condemned as well.
        self._lender.condemn_locked(records, CloseReason.STALE)
        for host in hosts:
            self._books.drain_idle(host, CloseReason.STALE, todo)
        return in_phase(records, Phase.OPENING, *([Phase.OPEN] if interrupt else []))

    def _cut_off(self, cut: list[Record], todo: Todo, why: str) -> None:
        """Cut off what was condemned, and do what else was decided. No lock is held."""
        try:
            self._lender.flush()  # before its consequences are heard of
        finally:  # Ctrl-C in a handler: what was decided is done all the same
            for record in cut:
                self._lender.interrupt(record, why)
            self._lender.carry_out(todo)

    def begin_with(self, route: Route | None) -> None:
        """Follow *route*, the pool's first."""
        self.reroute(lambda _: route, is_first=True)

    @keeping_no_key
    def reroute(self, change: Callable[[Route | None], Route | None], *, is_first: bool = False) -> None:
        """Follow what *change* makes of the present route; of two at once the second builds on the first."""
        todo = Todo()
        with self._lock:
            now, route = self._lender.now(), change(self._books.route)
            try:
                dropped = self._books.fleet.follow(route, now)
                if is_first:  # it is no switch
                    self._books.active_group = self._books.fleet.active_group()
                cut = self._renew_locked(dropped, todo, interrupt=False)
                self._books.route = route
                if self._books.config.min_idle:
                    self._books.expect(-math.inf)
            finally:  # Ctrl-C or not: the waiters are served
                self._lender.service.serve(now, todo)
        self._cut_off(cut, todo, f"the route of pool {self._name!r} was changed")

    @keeping_no_key
    def configure(self, settings: dict[str, Any]) -> None:
        todo = Todo()
        with self._lock:
            now = self._lender.now()
            before = self._books.config.required_permissions
            config = self._books.config.evolve(**settings)
            is_stricter = not config.required_permissions <= before
            try:
                self._books.adopt_config(config)
                if not config.track_origin:
                    self._forget_origins_locked()
                observe(self._lender.pool, is_heard=self._books.is_heard, is_tracked=config.track_origin)
                self._books.publish(now)
                hosts, cut = self._known_locked(None), []
                if self._lender.connector.permissions is not None and is_stricter:
                    cut = self._renew_locked(hosts, todo, interrupt=False)
                for host in hosts:
                    crowd = evict_from_crowd(self._books, host, todo)
                    self._lender.condemn_locked(crowd, CloseReason.SURPLUS)
                evict_surplus(self._books, todo)
            finally:  # Ctrl-C or not: the waiters are served
                self._lender.service.serve(now, todo)
        self._cut_off(cut, todo, f"pool {self._name!r} requires more permissions")

    def _forget_origins_locked(self) -> None:
        """Nobody would replace them: loans to come would seem to be taken where earlier ones were."""
        for record in self._books.records():
            if record.notes is not None:
                record.notes.origin = None

    # -- endpoints by hand

    @keeping_no_key
    def blacklist(self, endpoint: Endpoint, seconds: float | None) -> None:
        require_seconds("seconds", seconds, or_zero=True, or_none=True)
        delay = math.inf if seconds is None else seconds
        with self._lock:
            now = self._lender.now()
            for host in self._known_locked(endpoint):
                host.blacklist(now, delay, by_hand=True)
            self._books.expect(now + delay)
        self._lender.serve()

    @keeping_no_key
    def unblacklist(self, endpoint: Endpoint) -> None:
        try:
            with self._lock:
                _lift(self._known_locked(endpoint), self._lender.now())
                for waiter in self._books.queue:
                    waiter.forget_failures([endpoint])
        finally:  # Ctrl-C: the waiters are served all the same
            self._lender.serve()

    def _known_locked(self, endpoint: Endpoint | None) -> list[Host]:
        hosts = self._books.fleet.hosts
        if endpoint is None:
            return list(hosts.values())
        if endpoint not in hosts:
            known = ", ".join(map(str, hosts)) or "none"
            raise UnknownEndpointError(
                f"pool {self._name!r} knows no endpoint {endpoint} (it knows {known})", pool=self._name
            )
        return [hosts[endpoint]]

    # -- transports from outside

    @keeping_no_key
    def adopt(self, raw: Any, endpoint: Endpoint | None) -> None:
        if raw is None:
            raise UsageError(f"pool {self._name!r}: None is no transport", pool=self._name)
        if isinstance(raw, Connection):
            raise UsageError(f"pool {self._name!r}: {raw!r} is a loan; add what it detaches", pool=self._name)
        todo = Todo()
        with self._lock:
            self._lender.check_open_locked()
            now = self._lender.now()
            books = self._books
            number = _descriptor(raw)
            if number == -1:
                raise UsageError(f"pool {self._name!r}: {raw!r} is closed already", pool=self._name)
            if _is_among(books.records(), raw, number):
                raise UsageError(f"pool {self._name!r}: {raw!r} is in it already", pool=self._name)
            host = books.fleet.adopting_host(endpoint, now)
            if books.fleet.is_full or books.is_at_limit(host):
                raise PoolExhaustedError(
                    f"pool {self._name!r}: no place is free ({books.summary()})", pool=self._name
                )
            key = books.adopt(host, raw, now)
        try:
            self._lender.dialler.tell_opening(key.record)
            self._lender.dialler.tell_opened(key.record, 0.0)
        except BaseException:  # Ctrl-C in a handler: as with a dial that is struck there
            key.record.condemn(CloseReason.BROKEN)
            self._lender.take_back(key)
            raise
        with self._lock:
            now = self._lender.now()
            reason = self._lender.fate_locked(key.record, now)  # the pool may be another since then
            if reason is None:
                host.idle.append(key)
            else:
                books.doom(key, reason, todo)
            self._lender.service.serve(now, todo)
        self._lender.carry_out(todo)


def _lift(hosts: list[Host], now: float) -> None:
    for host in hosts:
        if not host.is_up():
            host.lift(now)


def _is_among(records: Iterable[Record], raw: Any, number: int | None) -> bool:
    """Whether one of *records* has *raw*, or another object of the same descriptor."""
    for record in records:
        if record.raw is raw or (number is not None and _descriptor(record.raw) == number):
            return True
    return False


def _descriptor(raw: Any) -> int | None:
    """The descriptor of *raw*, -1 if it is closed, None if it has none."""
    try:
        fileno = getattr(raw, "fileno", None)
        number = fileno() if callable(fileno) else None
    except UnsupportedOperation:
        return None
    except Exception:  # noqa: BLE001 - foreign code: so database drivers say that it is closed
        return -1
    return number if isinstance(number, int) else None
