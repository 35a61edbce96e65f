"""All living pools, and what a forked child must do about what it inherits."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any, Final, Protocol

from connpool.model.states import CloseReason
from connpool.pool.record import Phase
from connpool.wire.io import is_stream
from connpool.wire.look import abandon

if TYPE_CHECKING:
    from connpool.pool.lending import Lender
    from connpool.pool.pool import ConnectionPool

__all__ = ["POOLS", "Timekeeper", "disown", "engage", "watch", "wink"]


class Timekeeper(Protocol):
    """Who looks after pools in the background. It is of a higher floor, so it introduces itself."""

    def watch(self, pool: ConnectionPool, at: float) -> bool:
        """Give *pool* a turn of upkeep at *at*, an instant of its clock; inf: no more. False: it cannot."""

    def wink(self, pool: ConnectionPool) -> None:
        """The same at once, for a finaliser: takes no lock."""


_engaged: Final[list[Timekeeper]] = []
POOLS: Final[weakref.WeakSet[ConnectionPool]] = weakref.WeakSet()
_INHERITED: Final[list[Any]] = []  # foreign transports: even their finalisers might say goodbye to the server


def engage(timekeeper: Timekeeper) -> None:
    """From now on *timekeeper* is told when pools need upkeep."""
    _engaged[:] = [timekeeper]


def watch(pool: ConnectionPool, at: float) -> bool:
    """See to it that *pool* gets a turn of upkeep at *at*. False: nobody can."""
    return all(timekeeper.watch(pool, at) for timekeeper in _engaged)


def wink(pool: ConnectionPool) -> None:
    """A key of *pool* was dropped; takes no lock."""
    for timekeeper in _engaged:
        timekeeper.wink(pool)


def disown(lender: Lender) -> None:
    """Let go of the parent's: sockets are closed without a goodbye, others never touched again."""
    for record in list(lender.books.records()):
        record.condemn(CloseReason.STALE)
        record.phase = Phase.CLOSED  # its loan, if there is one, can no longer be given back
        if is_stream(record.raw):
            abandon(record.raw)
        else:
            _INHERITED.append(record.raw)
    for host in lender.books.fleet.hosts.values():
        host.idle.clear()
