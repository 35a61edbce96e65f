"""How long things took: what a pool's percentiles are made of."""

from __future__ import annotations

from connpool.model.histogram import RecentHistogram

__all__ = ["MANY", "Timings"]

MANY = 256  # are counted in one go: one by one each would cost its hand-off a microsecond


class Timings:
    """Waits, dials and holds of one pool. With the pool's lock held, but for the appends."""

    def __init__(self, now: float) -> None:
        self.new_waits: list[float] = []  # seconds, still to be counted in
        self.new_holds: list[float] = []  # likewise; appended to without the lock
        self.waits = RecentHistogram(now)
        self.dials = RecentHistogram(now)
        self.holds = RecentHistogram(now)

    def is_behind(self) -> bool:
        """Whether there is much to be counted in."""
        return len(self.new_waits) >= MANY or len(self.new_holds) >= MANY

    def catch_up(self, now: float, n_checkouts: int) -> None:
        """Count in what is new. *n_checkouts*: all there ever were, those that did not wait included."""
        self.waits.turn(now, n_checkouts)
        self.dials.turn(now)
        self.holds.turn(now)
        waits, self.new_waits = self.new_waits, []
        for seconds in waits:
            self.waits.record(seconds)
        holds, self.new_holds = self.new_holds, []
        for seconds in holds:
            self.holds.record(seconds)
