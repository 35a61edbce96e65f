"""The end of the program: no more upkeep, and no idle socket for the interpreter to complain about."""

from __future__ import annotations

from connpool.pool.census import KEPT
from connpool.upkeep.reaper import REAPER

__all__ = ["end"]


def end() -> None:
    """Runs after all non-daemon threads have ended, and after what the program registered later."""
    REAPER.end()
    for kept in KEPT:
        kept._close_at_exit()
