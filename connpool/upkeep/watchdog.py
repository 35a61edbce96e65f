"""The watchdog of calls on TLS in which the system waits: none lasts longer than it may."""

from __future__ import annotations

from typing import Final

from connpool.clock import now
from connpool.pool.census import KEPT
from connpool.upkeep.reaper import REAPER
from connpool.wire.modes import WATCHED

__all__ = ["WATCHDOG", "Watchdog"]

PERIOD: Final = 0.1  # seconds between two looks; a call lasts two of them at most


class Watchdog:
    """Looks at such calls in the background, as long as there are any. See ``WatchedCalls``."""

    name = "calls on TLS"

    def begin(self) -> bool:
        """See to it that there is a look before long. False: there can be none."""
        WATCHED.is_watched = True
        if not REAPER.watch(self, now() + PERIOD):
            WATCHED.is_watched = False
        return WATCHED.is_watched

    def _pace(self) -> float:
        return 0.0

    def _take_turn(self, *, is_leap: bool) -> None:
        WATCHED.cut_short()
        WATCHED.is_watched = False  # said first, and looked after that: a call that begins does the reverse
        if WATCHED.calls:
            self.begin()

    def _start_clean(self) -> None:
        WATCHED.calls.clear()
        WATCHED.is_watched = False

    def _close_at_exit(self, until: float) -> None:
        """Nothing is open."""


WATCHDOG: Final = Watchdog()
KEPT.add(WATCHDOG)
WATCHED.begin = WATCHDOG.begin
