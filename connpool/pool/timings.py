"""How long things took: what a pool's percentiles are made of."""

from __future__ import annotations

from connpool.model.histogram import RecentHistogram

__all__ = ["MANY", "Timings"]

MANY = 256  # are counted in one go: one by one each would cost its hand-off a microsecond


class Timings:
    """Waits, dials and holds of one pool. With the pool's lock held, but for the appends."""

    def __init__(self, now: float) -> None:
        # Still to be counted in: when each ended, and its seconds.
        self.new_waits: list[tuple[float, float]] = []
        self.new_holds: list[tuple[float, float]] = []  # appended to without the lock
        self.waits = RecentHistogram(now)
        self.dials = RecentHistogram(now)
        self.holds = RecentHistogram(now)

    def is_behind(self) -> bool:
        """Whether there is much to be counted in."""
        return len(self.new_waits) >= MANY or len(self.new_holds) >= MANY

    def catch_up(self, now: float, n_checkouts: int) -> None:
        """Count in what is new. *n_checkouts*: all there ever were, those that did not wait included."""
        waits, self.new_waits = self.new_waits, []
        for at, seconds in waits:
            self.waits.turn(at, n_checkouts)
            self.waits.record(seconds)
        holds, self.new_holds = self.new_holds, []
        for at, seconds in holds:
            self.holds.turn(at)
            self.holds.record(seconds)
        self.waits.turn(now, n_checkouts)
        self.dials.turn(now)
        self.holds.turn(now)
