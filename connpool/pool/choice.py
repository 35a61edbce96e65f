"""Which hosts may serve a waiter, in whose turn, and which idle connection of one suits it."""

from __future__ import annotations

from connpool.pool.core import Books
from connpool.pool.hosts import Host
from connpool.pool.piles import look_through
from connpool.pool.record import Key
from connpool.pool.waiters import Waiter

__all__ = ["candidates", "pop_idle"]


def candidates(books: Books, waiter: Waiter, now: float) -> tuple[Host, ...]:
    """The hosts that may serve *waiter*, the one whose turn it is first."""
    fleet = books.fleet
    if not books.config.fail_fast:
        _retry_what_is_due(books, waiter, now)
    if waiter.pinned is not None:
        return tuple(h for h in (fleet.host(waiter.pinned, now),) if _may_serve(books, h, waiter, now))
    hosts: tuple[Host, ...] = ()
    for group in fleet.groups:
        hosts = tuple(host for host in group if _may_serve(books, host, waiter, now))
        if hosts:
            break
    if fleet.given:
        hosts += tuple(host for host in fleet.beside() if host.is_up())
    start = waiter.turn % len(hosts) if hosts else 0
    return hosts[start:] + hosts[:start]


def _may_serve(books: Books, host: Host, waiter: Waiter, now: float) -> bool:
    return host.endpoint not in waiter.tried and host.may_serve(now, books.config.max_connecting)


def _retry_what_is_due(books: Books, waiter: Waiter, now: float) -> None:
    """While *waiter* waits for endpoints to come back they may be dialled again, but first all others."""
    if now < waiter.again_at or not waiter.tried:
        return
    hosts = books.fleet.hosts
    due = [e for e in waiter.tried if e not in hosts or hosts[e].is_up()]
    if waiter.may_wait and not _has_others_to_try(books, waiter, now):
        due += [e for e in waiter.tried if e in hosts and hosts[e].is_due(now)]
    if due:
        waiter.forget_failures(due)


def _has_others_to_try(books: Books, waiter: Waiter, now: float) -> bool:
    """Whether there is a host that *waiter* has not tried, and may, be it when its patience is at an end."""
    if waiter.attempt is not None and now < waiter.patience_at:
        return True
    if waiter.pinned is not None:
        return False
    out = waiter.tried.keys() | waiter.dialled
    return any(
        host.endpoint not in out
        and books.has_place(host, now)
        and not any(record in host.opening for record in waiter.attempts)
        for group in books.fleet.groups
        for host in group
    )


def pop_idle(waiter: Waiter, host: Host, *, only_new: bool) -> Key | None:
    """The idle key of *host* that was released last and that suits *waiter*."""
    if waiter.is_plain and not only_new:
        try:
            return host.idle.pop()
        except IndexError:
            return None
    for key in reversed(look_through(host.idle)):
        record = key.record
        suits = not (
            (only_new and record.since < waiter.since)
            or (waiter.is_fresh_only and record.uses > 0)
            or waiter.refused.get(record) == record.since
        )
        if suits and host.withdraw(key):
            return key
    return None
