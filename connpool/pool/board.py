"""What the fast path of a checkout and of a return read instead of taking the lock."""

from __future__ import annotations

from typing import Protocol

from connpool.pool.fleet import Take

__all__ = ["Board"]


class Board(Protocol):
    """What the fast path reads without the lock. Only ``Books.publish`` writes it."""

    _take: Take  # an idle key of the next host, or IndexError
    _fresh_for: float  # seconds of idleness after which a connection is looked at
    _lend_until: float  # from this instant on a checkout takes the long way
    _return_until: float  # from this instant on a return takes the long way
    _brief_for: float  # who held a connection longer lets nobody overtake the oldest waiter
    _is_awaited: bool  # somebody sleeps who must hear of every return
