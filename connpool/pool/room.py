"""Which idle connections are closed: there are too many, or another endpoint needs the place."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from connpool.model.states import CloseReason
from connpool.pool.core import Books
from connpool.pool.hosts import Host
from connpool.pool.jobs import Todo
from connpool.pool.piles import look_through
from connpool.pool.record import Key, Record
from connpool.pool.waiters import PATIENCE, Waiter

__all__ = [
    "evict_for",
    "evict_from",
    "evict_from_crowd",
    "evict_surplus",
    "longest_idle",
    "would_rather_dial",
]


def evict_surplus(books: Books, todo: Todo) -> None:
    """Let what is idle and more than ``max_size`` be closed. What is being closed already makes room."""
    hosts = books.fleet.hosts.values()
    _evict_oldest(books, hosts, sum(host.n_staying() for host in hosts) - books.config.max_size, todo)


def evict_from_crowd(books: Books, host: Host, todo: Todo) -> list[Record]:
    """Let idle ones of *host* above ``max_per_endpoint`` be closed. Returns what else is too many."""
    most = books.config.max_per_endpoint
    if most is None:
        return []
    staying = [record for record in host.records if record.fate is None]
    _evict_oldest(books, [host], len(staying) - most, todo)
    return sorted((record for record in staying if record.fate is None), key=lambda record: record.id)[most:]


def _evict_oldest(books: Books, hosts: Collection[Host], surplus: int, todo: Todo) -> None:
    """Let as many as that be closed of what is idle at *hosts*, as far as there are so many."""
    while surplus > 0 and any(host.idle for host in hosts):
        idle = [(key, host) for host in hosts for key in look_through(host.idle)]
        for key, host in sorted(idle, key=lambda found: found[0].record.since)[:surplus]:
            if host.withdraw(key):
                books.doom(key, CloseReason.SURPLUS, todo)
                surplus -= 1


def longest_idle(hosts: Iterable[Host]) -> tuple[Key, Host] | None:
    """The idle connection of *hosts* that was released first."""
    oldest: tuple[Key, Host] | None = None
    for host in hosts:
        try:
            key = host.idle[0]
        except IndexError:
            continue
        if oldest is None or key.record.since < oldest[0].record.since:
            oldest = key, host
    return oldest


def evict_for(books: Books, waiter: Waiter, hosts: tuple[Host, ...], now: float, todo: Todo) -> bool:
    """At the total limit: close an idle connection that serves nobody here, to make room."""
    wanted = [h for h in hosts if books.may_dial(h, now) and h.endpoint not in waiter.dialled]
    is_short = books.fleet.is_full and not all(books.is_at_limit(host) for host in wanted)
    if waiter.is_evicting():
        if is_short and now >= waiter.evict_again_at:  # it takes long: another, that nobody would get
            useless = [h for h in books.fleet.hosts.values() if h.on_route and h not in books.fleet.lending]
            evict_from(books, [h for h in useless if h not in hosts], waiter, now, todo)
        return True
    if is_short:
        others = [h for h in books.fleet.hosts.values() if waiter.is_fresh_only or h not in hosts]
        return evict_from(books, others, waiter, now, todo)
    if waiter.is_fresh_only:  # at the limit of an endpoint only one of its own makes room
        return evict_from(books, wanted, waiter, now, todo)
    return False


def evict_from(books: Books, hosts: Iterable[Host], waiter: Waiter, now: float, todo: Todo) -> bool:
    """Close what has been idle longest at *hosts*. False: nothing is."""
    while (found := longest_idle(hosts)) is not None:
        key, host = found
        if host.withdraw(key):
            waiter.eviction, waiter.evict_again_at = key.record, now + PATIENCE
            waiter.wake()  # it may sleep for longer than that
            books.doom(key, CloseReason.EVICTED, todo)
            return True
    return False


def would_rather_dial(books: Books, record: Record, now: float) -> bool:
    """Whether *record*, coming back, should make room instead of serving the oldest waiter.

    An endpoint that is back finds all places taken by the others. Whoever's
    turn is at it gets a connection to it, at the expense of one with more than its share.
    """
    fleet, waiter = books.fleet, books.queue.oldest
    if record.host not in fleet.rich or waiter is None or not waiter.is_plain:
        return False
    host = fleet.rota[waiter.turn % len(fleet.rota)]
    if host not in fleet.poor or waiter.attempt is not None or not books.has_place(host, now):
        return False
    return host.is_up() or not _is_making_room(books)  # one place is all that a probe needs


def _is_making_room(books: Books) -> bool:
    """Whether a place is about to be free."""
    return any(host.n_staying() < len(host.records) for host in books.fleet.hosts.values())
