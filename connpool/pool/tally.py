"""What has happened in one pool so far, counted."""

from __future__ import annotations

from collections import Counter

from connpool.model.states import CloseReason

__all__ = ["Tally"]


class Tally:
    """Counts that only grow. With the pool's lock held."""

    __slots__ = ("closed", "connect_failures", "departed", "lost", "past_uses", "timeouts")

    def __init__(self) -> None:
        self.closed: Counter[CloseReason] = Counter()
        self.connect_failures = 0
        self.departed = 0  # left the pool open: taken or detached
        self.lost = 0  # loans
        self.past_uses = 0  # loans of connections that are gone
        self.timeouts = 0
