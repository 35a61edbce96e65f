"""Starting the one thread of its kind, whoever comes first."""

from __future__ import annotations

import threading

from connpool.delivery.office import Office
from connpool.pool.turns import Turns
from connpool.wire import threads

__all__ = ["start_once"]


def start_once(thread: threading.Thread | None, starts: Turns, office: Office) -> None:
    """Start *thread*, if there is to be one, unless it was started before or somebody is at it.

    Where none can be had, or an interrupt comes first, upkeep sees to it later.

    Args:
        starts: Turns to start it.
    """
    if thread is None or thread.ident is not None:
        return
    turn = starts.try_take(0.0)
    if turn is None:
        return
    try:
        if thread.ident is None:
            threads.start(thread)
    finally:
        turn.end()
        if thread.ident is None:
            office.expect_soon()
