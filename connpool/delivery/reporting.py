"""What happens to a spool, told to those who listen to the pool."""

from __future__ import annotations

import weakref

import attrs

from connpool import clock
from connpool.model.events import Event
from connpool.pool.pool import ConnectionPool

__all__ = ["Reporter"]


class Reporter:
    """Tells a spool's events in the name of a pool, which it does not keep alive."""

    __slots__ = ("_pool",)

    def __init__(self, pool: ConnectionPool) -> None:
        self._pool = weakref.ref(pool)

    def __call__(self, event: Event) -> None:
        pool = self._pool()
        if pool is None:
            return
        listeners = pool._lender.listeners
        if handlers := listeners.by_kind[type(event)]:
            at = pool._now() - (clock.now() - event.at)  # it may have happened before there was a broadcaster
            listeners.tell(attrs.evolve(event, pool=pool.name, at=at), handlers)
