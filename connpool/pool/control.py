"""What an operator does to a pool at run time: shut, close, clear, steer, resize."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from typing import Any, TypeVar

from connpool.errors import (
    PoolClosedError,
    PoolExhaustedError,
    UnknownEndpointError,
    UsageError,
)
from connpool.model.checks import require_seconds
from connpool.model.endpoint import Endpoint
from connpool.model.request import Request
from connpool.model.route import Route
from connpool.model.states import POOL_MOVES, CloseReason, PoolState
from connpool.pool.core import Books
from connpool.pool.hosts import Host
from connpool.pool.jobs import Todo
from connpool.pool.lending import Lender
from connpool.pool.record import Key, Phase, Record
from connpool.pool.room import trim
from connpool.pool.snapshots import connection_info, idle_ones
from connpool.wire.io import SHUT_RDWR

__all__ = ["Control"]

T = TypeVar("T")


class Control:
    """The operator's side of one pool. See ``ConnectionPool`` for what each method promises."""

    def __init__(self, lender: Lender) -> None:
        self._lender = lender
        self._lock = lender._lock
        self._books = lender.books
        self._clock = lender.clock
        self._name = lender.pool.name

    def picture(self, draw: Callable[[Books], T]) -> T:
        """What *draw* makes of the books, at one instant."""
        if self._lender.is_inside():
            return draw(self._books)  # whoever we interrupted is half-way: a little blurred, never stuck
        with self._lock:
            return draw(self._books)

    # -- the end of a pool

    def shutdown(self, how: int) -> int:
        why = f"pool {self._name!r} was shut down"
        with self._lock:
            if self._books.state is PoolState.CLOSED:
                return self._books.n_lent()
            if self._books.state is not PoolState.SHUT_DOWN:
                self._go_locked(PoolState.SHUT_DOWN)
            self._lender.service.fail_all(PoolClosedError(why, pool=self._name))
            idle = idle_ones(self._books)
            busy = [
                r for r in self._books.records() if r.phase in (Phase.OPEN, Phase.OPENING) and r not in idle
            ]
            self._condemn_locked(busy, CloseReason.POOL_CLOSED)
        for record in busy:
            self._lender.interrupt(record, how, why)
        return len(busy)

    def reopen(self) -> None:
        with self._lock:
            if self._books.state is PoolState.CLOSED:
                raise PoolClosedError(f"pool {self._name!r} is closed for good", pool=self._name)
            if self._books.state is PoolState.SHUT_DOWN:
                self._go_locked(PoolState.OPEN)
        self._lender.serve()

    def close(self, timeout: float | None) -> int:
        deadline = None if timeout is None else self._clock.now() + timeout
        todo = Todo()
        with self._lock:
            if self._books.state is not PoolState.CLOSED:
                self._go_locked(PoolState.CLOSED)
                error = PoolClosedError(f"pool {self._name!r} was closed", pool=self._name)
                self._lender.service.fail_all(error)
            opening = [r for r in self._books.records() if r.phase is Phase.OPENING]
            self._condemn_locked(opening, CloseReason.POOL_CLOSED)
            self._lender.service.serve(self._clock.now(), todo)
        for record in opening:
            self._lender.interrupt(record, SHUT_RDWR, f"pool {self._name!r} was closed")
        self._lender.carry_out(todo)
        if deadline is not None and self._drain(deadline) > 0:
            self._interrupt_loans()
        self._lender.dialler.join()
        return self._books.n_lent()

    def _drain(self, deadline: float) -> int:
        """Wait until nothing is lent, or until *deadline*. Returns how many are lent then."""
        gate = threading.Lock()
        gate.acquire()
        with self._lock:
            self._books.drains.append(gate)
        while (lent := self._books.n_lent()) > 0:
            left = deadline - self._clock.now()
            if left <= 0 or not self._clock.wait(gate, left):
                return self._books.n_lent()
        return lent

    def _interrupt_loans(self) -> None:
        with self._lock:
            lent = [record for record in self._books.records() if record.phase is Phase.OPEN]
        for record in lent:
            self._lender.interrupt(record, SHUT_RDWR, f"pool {self._name!r} was closed")

    def _go_locked(self, to: PoolState) -> None:
        if to not in POOL_MOVES[self._books.state]:
            raise UsageError(f"pool {self._name!r} is {self._books.state.value}: it cannot become {to.value}")
        self._books.state = to
        self._books.publish(self._clock.now())  # from here on the fast path finds nothing

    def _condemn_locked(self, records: list[Record], reason: CloseReason) -> None:
        """Let *records* be closed when they come back, and call off what is being opened."""
        for record in records:
            record.condemn(reason)
            self._lender.call_off_locked(record)

    # -- new beginnings

    def clear(self, endpoint: Endpoint | None, *, interrupt: bool) -> None:
        with self._lock:
            hosts = self._known_locked(endpoint)
        self._renew(hosts, interrupt=interrupt, why=f"pool {self._name!r} was cleared")

    def _renew(self, hosts: list[Host], *, interrupt: bool, why: str) -> None:
        """Close what is open to *hosts*: idle ones now, lent ones when they come back."""
        todo = Todo()
        with self._lock:
            records = [record for host in hosts for record in host.records]
            # All of them first, idle ones too: one that is lent in this very moment is condemned as well.
            self._condemn_locked(records, CloseReason.STALE)
            for host in hosts:
                self._books.drain_idle(host, CloseReason.STALE, todo)
            lent = [record for record in records if record.phase is Phase.OPEN]
            self._lender.service.serve(self._clock.now(), todo)
        if interrupt:
            for record in lent:
                self._lender.interrupt(record, SHUT_RDWR, why)
        self._lender.carry_out(todo)

    def follow(self, route: Route | None) -> None:
        with self._lock:
            dropped = self._books.fleet.follow(route, self._clock.now())
            self._books.route = route
            self._books.publish(self._clock.now())
        self._renew(dropped, interrupt=False, why=f"the route of pool {self._name!r} was changed")

    def configure(self, settings: dict[str, Any]) -> None:
        todo = Todo()
        with self._lock:
            config = self._books.config.evolve(**settings)
            self._books.adopt_config(config)
            self._lender.service.looks_are_prompt = self._lender.connector.prompt or config.dial_in_caller
            self._books.publish(self._clock.now())
            trim(self._books, self._clock.now(), todo)
            self._lender.service.serve(self._clock.now(), todo)
        self._lender.carry_out(todo)

    def sweep(self) -> int:
        todo = Todo()
        with self._lock:
            now = self._clock.now()
            self._books.recover(todo)
            trim(self._books, now, todo)
            n_doomed = len(todo.doomed)
            self._lender.service.serve(now, todo)
        self._lender.carry_out(todo)
        return n_doomed

    # -- endpoints by hand

    def blacklist(self, endpoint: Endpoint, seconds: float | None) -> None:
        require_seconds("seconds", seconds, or_zero=True, or_none=True)
        with self._lock:
            for host in self._known_locked(endpoint):
                host.blacklist(self._clock.now(), math.inf if seconds is None else seconds, by_hand=True)
        self._lender.serve()

    def unblacklist(self, endpoint: Endpoint) -> None:
        with self._lock:
            for host in self._known_locked(endpoint):
                if not host.is_up():
                    host.lift(self._clock.now())
            for waiter in self._books.queue:
                waiter.tried.pop(endpoint, None)
        self._lender.serve()

    def _known_locked(self, endpoint: Endpoint | None) -> list[Host]:
        hosts = self._books.fleet.hosts
        if endpoint is None:
            return list(hosts.values())
        if endpoint not in hosts:
            known = ", ".join(map(str, hosts)) or "none"
            raise UnknownEndpointError(f"pool {self._name!r} knows no endpoint {endpoint} (it knows {known})")
        return [hosts[endpoint]]

    # -- transports from outside, and out

    def adopt(self, raw: Any, endpoint: Endpoint | None) -> None:
        todo = Todo()
        with self._lock:
            self._lender.check_open_locked()
            now = self._clock.now()
            books = self._books
            number = _descriptor(raw)
            if number == -1:
                raise UsageError(f"pool {self._name!r}: {raw!r} is closed already", pool=self._name)
            for record in books.records():
                if record.raw is raw or (number is not None and _descriptor(record.raw) == number):
                    raise UsageError(f"pool {self._name!r}: {raw!r} is in it already", pool=self._name)
            host = self._host_for_locked(endpoint, now)
            most = books.config.max_per_endpoint
            if books.fleet.is_full or (most is not None and len(host.records) >= most):
                raise PoolExhaustedError(
                    f"pool {self._name!r}: no place is free ({books.summary()})", pool=self._name
                )
            host.idle.append(books.adopt(host, raw, now))
            self._lender.service.serve(now, todo)
        self._lender.carry_out(todo)

    def _host_for_locked(self, endpoint: Endpoint | None, now: float) -> Host:
        fleet = self._books.fleet
        on_route = [host for host in fleet.hosts.values() if host.on_route]
        if endpoint is not None:
            return fleet.host(endpoint, now)
        return on_route[0] if len(on_route) == 1 else fleet.adopting_host(now)

    def take(self, request: Request) -> Any:
        """An idle transport, for good; None: none is usable. Dials nothing, waits for nothing."""
        refused: list[Key] = []
        taken: Any = None
        while taken is None and (key := self._pop_any(request)) is not None:
            record = key.record
            if self._books.idle_verdict(record, self._clock.now()) or not self._lender.dialler.is_usable(
                record
            ):
                record.condemn(CloseReason.BROKEN)
                self._lender.take_back(key)
            elif request.where is not None and not request.where(connection_info(record, is_idle=True)):
                refused.append(key)
            else:
                taken = self._lender.let_go(key)
        for key in reversed(refused):
            key.record.host.idle.append(key)
        if refused:
            self._lender.serve()
        return taken

    def _pop_any(self, request: Request) -> Key | None:
        fleet = self._books.fleet
        try:
            if request.endpoint is not None:
                return fleet.hosts[request.endpoint].idle.pop()
            return fleet.take_any(next(fleet.turns))
        except LookupError:  # nothing idle there, or nothing known of that endpoint
            return None


def _descriptor(raw: Any) -> int | None:
    """The descriptor of *raw*, -1 if it is closed, None if it has none."""
    fileno = getattr(raw, "fileno", None)
    number = fileno() if callable(fileno) else None
    return number if isinstance(number, int) else None
