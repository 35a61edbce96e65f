"""All endpoints of one pool, and which one a checkout turns to next."""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from operator import is_
from typing import Final, TypeAlias

from connpool.model.endpoint import Endpoint
from connpool.model.route import Route
from connpool.pool.hosts import Host
from connpool.pool.record import Key

__all__ = ["Fleet", "Missed", "Take"]

Take: TypeAlias = Callable[[], Key]

NOTHING: Final[deque[Key]] = deque()  # a stack that is always empty: its turn is one for the long way
NOBODY: Final[frozenset[Host]] = frozenset()  # each empty one would be 200 bytes of its own


class Missed(IndexError):
    """Nothing is idle at the host whose turn it was; carries the number of the turn."""

    def __init__(self, turn: int) -> None:
        super().__init__(turn)
        self.turn = turn


class Fleet:
    """All hosts of one pool: the route's groups, pinned ones, adopted connections."""

    def __init__(self) -> None:
        self.hosts: dict[Endpoint, Host] = {}
        self.groups: tuple[tuple[Host, ...], ...] = ()
        self.given: tuple[Host, ...] = ()  # of what was added to the pool
        self.turns = itertools.count()  # whose turn it is; every checkout takes one
        self.take: Take = NOTHING.pop  # one idle key of the next host, or IndexError
        self.is_single = False  # one stack is all there is: if it is empty there is nowhere else to look
        self.is_full = False  # no place is left: a turn that finds nothing takes from its neighbours
        self.rota: tuple[Host, ...] = ()  # the hosts of the active group that may be dialled, in turn
        self.poor = NOBODY  # of a full pool: hosts that came back and have less than their share
        self.rich = NOBODY  # hosts that have more than their share
        self._stacks: tuple[deque[Key], ...] = (NOTHING,)
        self.lending = NOBODY  # of which a plain checkout may get one just now

    def host(self, endpoint: Endpoint, now: float) -> Host:
        """The host of *endpoint*, made on first sight: a pinned one need not be on the route."""
        if endpoint not in self.hosts:
            self.hosts[endpoint] = Host(endpoint, now=now)
        return self.hosts[endpoint]

    def follow(self, route: Route | None, now: float) -> list[Host]:
        """Take *route* as the new one. Returns the hosts that are no longer on it."""
        listed = route.groups if route else ()
        groups = [tuple(self.host(endpoint, now) for endpoint in group.endpoints) for group in listed]
        before = [host for host in self.hosts.values() if host.on_route]
        self.groups = tuple(groups)
        wanted = {host for group in groups for host in group}
        for host in self.hosts.values():
            if host.on_route != (host in wanted):
                host.on_route = host in wanted
                host.lift(now)  # one that comes anew comes without a past
                host.was_up |= not host.on_route  # of one that leaves nothing more is told
                host.owed = 0
        self.forget_empty()
        return [host for host in before if not host.on_route]

    def forget_empty(self) -> None:
        """Drop hosts that are on no route, hold nothing and are not blacklisted, as listeners know."""
        for host in list(self.hosts.values()):
            is_empty = not host.on_route and not host.records and host.is_up() and host.was_up
            if is_empty and host.dialable:
                del self.hosts[host.endpoint]
                self.given = tuple(other for other in self.given if other is not host)

    def adopting_host(self, endpoint: Endpoint | None, now: float) -> Host:
        """The host of a connection that is added to the pool as one to *endpoint*."""
        on_route = [host for host in self.hosts.values() if host.on_route]
        if endpoint is None and len(on_route) == 1:
            return on_route[0]
        host = self.host(endpoint or Endpoint.callable("adopted"), now)
        if endpoint is None:
            host.dialable = False
        if host not in self.given:
            self.given += (host,)
        return host

    def beside(self) -> tuple[Host, ...]:
        """Hosts that lend beside the route: of what was added without an endpoint; without a route, all."""
        return tuple(host for host in self.given if host.records and not (self.groups and host.dialable))

    def refresh(self, now: float, max_connecting: int, *, lends: bool) -> float:
        """Set ``take`` for *now*. Returns the instant at which it must be done again.

        Blacklistings made by hand end by themselves; others end with a probe,
        for which the host takes its turn with an empty stack.
        """
        for host in self.hosts.values():
            if host.by_hand and host.is_due(now):
                host.lift(now)
        rota: tuple[Host, ...] = ()
        for group in self.groups if lends else ():
            rota = tuple(host for host in group if host.may_serve(now, max_connecting))
            if rota:
                break
        self.rota = rota  # in one go, for ``turn_of`` is asked without the lock
        besides = [host for host in self.beside() if host.is_up()] if lends and self.given else []
        stacks = [host.idle if host.is_up() else NOTHING for host in rota]
        stacks += [host.idle for host in besides]
        self._publish(tuple(stacks) or (NOTHING,), itertools.chain(filter(Host.is_up, rota), besides))
        waits = (h.retry_at for h in self.hosts.values() if h.retry_at is not None and h.retry_at > now)
        return min(waits, default=math.inf)

    def active_group(self) -> int | None:
        """The number of the first group with an endpoint that is up."""
        for number, group in enumerate(self.groups):
            if any(host.is_up() for host in group):
                return number
        return None

    def next_lending(self) -> list[Host]:
        """Hosts that lend as soon as the pool does: those up in the active group, and those beside it."""
        active = self.active_group()
        hosts = [] if active is None else [host for host in self.groups[active] if host.is_up()]
        return [*hosts, *self.beside()]

    def weigh(self, n_places: int, max_size: int) -> None:
        """See whether all places are taken, and which hosts then have less than their share of them."""
        self.is_full = n_places >= max_size
        poor = NOBODY
        if self.is_full and len(self.rota) > 1:
            share = max_size // len(self.rota)
            poor = frozenset(h for h in self.rota if len(h.records) < share and not h.opening)
            self.rich = frozenset(h for h in self.rota if poor and h.n_staying() > share)
        self.poor = poor  # in one go: checkouts ask for it without the lock

    def take_any(self, turn: int) -> Key:
        """An idle key of any host that lends just now, beginning with *turn*'s. IndexError: none."""
        stacks = self._stacks
        for i in range(len(stacks)):
            with suppress(IndexError):
                return stacks[(turn + i) % len(stacks)].pop()
        raise IndexError("nothing is idle")

    def turn_of(self, host: Host) -> int | None:
        """A turn that begins with *host*; None: it has none in the active group. Needs no lock."""
        rota = self.rota  # looked at once: it may be exchanged meanwhile
        return rota.index(host) if host in rota else None

    def _publish(self, stacks: tuple[deque[Key], ...], lending: Iterable[Host]) -> None:
        self.is_single = len(stacks) == 1 and stacks[0] is not NOTHING
        same = len(stacks) == len(self._stacks) and all(map(is_, stacks, self._stacks))
        if same:
            return
        self.lending = frozenset(lending)
        if len(stacks) == 1:
            self.take = stacks[0].pop
        else:
            self.take = self._rotation(stacks)
        self._stacks = stacks  # last: what an interrupt cuts short is done again

    def _rotation(self, stacks: tuple[deque[Key], ...]) -> Take:
        """Take from the stack whose turn it is. ``next`` and ``pop`` are one C call each.

        Where threads outnumber cores one turn in six finds nothing there: whoever was interrupted by the
        scheduler has it. So a stack is looked at before it is popped from, which is a third of an exception.
        """
        turns, n = self.turns, len(stacks)

        def take() -> Key:
            turn = next(turns)
            stack = stacks[turn % n]
            if stack:
                try:
                    return stack.pop()
                except IndexError:  # another thread was quicker
                    pass
            if self.is_full and not self.poor:
                for i in range(turn + 1, turn + n):
                    stack = stacks[i % n]
                    if stack:
                        with suppress(IndexError):
                            return stack.pop()
            raise Missed(turn)

        return take

    def has_idle(self) -> bool:
        """Whether anything is idle at any host, lent out just now or not."""
        for host in self.hosts.values():  # noqa: SIM110 - any() takes twice as long
            if host.idle:
                return True
        return False
