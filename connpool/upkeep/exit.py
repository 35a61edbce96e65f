"""The end of the program: no more upkeep, and no idle socket for the interpreter to complain about."""

from __future__ import annotations

import logging
from typing import Final

from connpool.clock import now
from connpool.pool.census import KEPT
from connpool.upkeep.reaper import REAPER

__all__ = ["end"]

EXIT_GRACE: Final = 10.0  # seconds that all together wait for what they were given to do in the background

logger = logging.getLogger("connpool.pool")


def end() -> None:
    """Runs after all non-daemon threads have ended, and after what the program registered later."""
    REAPER.end()
    until = now() + EXIT_GRACE
    for kept in reversed(list(KEPT)):  # what came later may be built on what came before
        try:
            kept._close_at_exit(until)
        except Exception:
            logger.exception("%r could not be closed", kept)
