"""Calls on TLS in which the system waits: that none lasts longer than it may."""

from __future__ import annotations

from typing import Final

from connpool.clock import now
from connpool.pool.census import KEPT
from connpool.upkeep.reaper import REAPER
from connpool.wire.modes import MINDED

__all__ = ["MINDER", "Minder"]

PERIOD: Final = 0.1  # seconds between two looks; a call lasts two of them at most


class Minder:
    """Looks at such calls in the background as long as there are any. See ``Minded``."""

    name = "calls on TLS"

    def begin(self) -> bool:
        """See to it that somebody looks before long. False: nobody can."""
        MINDED.is_minded = True
        if not REAPER.watch(self, now() + PERIOD):
            MINDED.is_minded = False
        return MINDED.is_minded

    def _pace(self) -> float:
        return 0.0

    def _take_turn(self, *, is_leap: bool) -> None:
        MINDED.cut_short()
        MINDED.is_minded = False  # said first, and looked after that: a call that begins does the reverse
        if MINDED.calls:
            self.begin()

    def _start_clean(self) -> None:
        MINDED.calls.clear()
        MINDED.is_minded = False

    def _close_at_exit(self, until: float) -> None:
        """Nothing is open."""


MINDER: Final = Minder()
KEPT.add(MINDER)
MINDED.begin = MINDER.begin
