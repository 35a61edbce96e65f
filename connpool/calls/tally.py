"""How long the calls of one method on one channel took."""

from __future__ import annotations

from collections import deque

from connpool.model.channel import MethodStats
from connpool.model.histogram import Histogram

__all__ = ["Tally"]


class Tally:
    """Counts the calls of one method on one channel.

    ``new`` is appended to by whoever holds the channel's key, without the lock; all the
    rest is done with the lock held. A deque, because what is appended while it is emptied is not lost.
    """

    __slots__ = ("_count", "_histogram", "_sum", "new")

    def __init__(self) -> None:
        self.new: deque[float] = deque()  # seconds of calls that are not counted in yet
        self._count = 0
        self._sum = 0.0
        self._histogram = Histogram()

    def catch_up(self) -> None:
        """Count in what is new."""
        if not self.new:
            return
        fresh = [self.new.popleft() for _ in range(len(self.new))]
        self._histogram.record_all(fresh)
        self._sum += sum(fresh)
        self._count += len(fresh)

    def mean(self) -> float | None:
        """Seconds that a call takes; None: there was none."""
        self.catch_up()
        return self._sum / self._count if self._count else None

    def total(self) -> tuple[float, int]:
        """Seconds of all calls, and how many there were."""
        self.catch_up()
        return self._sum, self._count

    def stats(self) -> MethodStats | None:
        """What users are told; None: it was never called."""
        mean = self.mean()
        if mean is None:
            return None
        return MethodStats(self._count, mean, self._histogram.percentiles().p99)
