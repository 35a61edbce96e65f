"""How long things took: what a pool's percentiles are made of."""

from __future__ import annotations

from typing import Final

from connpool.model.histogram import RecentHistogram

__all__ = ["MANY", "Timings"]

MANY: Final = 256  # are counted in one go: one by one each would cost its hand-off a microsecond
OFTEN: Final = 1.0  # seconds after which even a few are


class Timings:
    """Waits, dials and holds of one pool. With the pool's lock held, but for the appends."""

    def __init__(self, now: float) -> None:
        self.new_waits: list[tuple[float, float]] = []  # to be counted in: when each ended, and its seconds
        self.new_holds: list[float] = []  # likewise, seconds alone; appended to without the lock
        self.count_at = now + OFTEN  # by then those are to be counted in
        self.waits = RecentHistogram(now)
        self.dials = RecentHistogram(now)
        self.holds = RecentHistogram(now)

    def is_behind(self) -> bool:
        """Whether there is much to be counted in."""
        return len(self.new_waits) >= MANY or len(self.new_holds) >= MANY

    def catch_up(self, now: float, n_checkouts: int) -> None:
        """Count in what is new. *n_checkouts*: all there ever were, those that did not wait included."""
        waits, self.new_waits = self.new_waits, []
        if waits and self.waits.is_full_at(waits[-1][0]):
            for at, seconds in waits:
                self.waits.turn(at, n_checkouts)
                self.waits.record(seconds)
        else:
            self.waits.record_all([seconds for _, seconds in waits])
        holds, self.new_holds = self.new_holds, []
        self.holds.turn(min(now, self.count_at))  # they ended before that, however late it is now
        self.holds.record_all(holds)
        self.waits.turn(now, n_checkouts)
        self.dials.turn(now)
        self.holds.turn(now)
        self.count_at = now + OFTEN
