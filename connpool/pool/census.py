"""All living pools, and what a forked child must do about what it inherits."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any, Final

from connpool.model.states import CloseReason
from connpool.pool.record import Phase
from connpool.wire.io import is_stream
from connpool.wire.look import abandon

if TYPE_CHECKING:
    from connpool.pool.lending import Lender
    from connpool.pool.pool import ConnectionPool

__all__ = ["POOLS", "disown"]

POOLS: Final[weakref.WeakSet[ConnectionPool]] = weakref.WeakSet()
_INHERITED: Final[list[Any]] = []  # foreign transports: even their finalisers might say goodbye to the server


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
