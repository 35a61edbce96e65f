"""A forked child starts clean: every pool is empty there, and the parent's sockets are left in peace."""

from __future__ import annotations

import os

from connpool.pool.census import KEPT
from connpool.pool.flock import undisturbed
from connpool.upkeep.reaper import REAPER

__all__: list[str] = []


def _start_clean() -> None:
    REAPER.start_clean()
    REAPER.hold_back(is_held=True)
    try:
        for kept in KEPT:
            kept._start_clean()
    finally:
        REAPER.hold_back(is_held=False)


os.register_at_fork(after_in_child=undisturbed(_start_clean))
