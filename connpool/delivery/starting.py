"""Starting the one thread of its kind, whoever comes first, and waiting for its end."""

from __future__ import annotations

import threading
from contextlib import suppress
from typing import Final

from connpool.delivery.office import Office
from connpool.pool.turns import Turns
from connpool.wire import threads

__all__ = ["join", "start_once"]

GRACE: Final = 5.0  # seconds that the end waits for a thread, which may be in a handler of the user's


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


def join(thread: threading.Thread | None, timeout: float | None = None) -> None:
    """Wait a while, or *timeout* seconds, for the end of *thread*, if there is one and it is not us."""
    if thread is not None and thread is not threading.current_thread():
        with suppress(RuntimeError):  # it is only about to start: then it sees that it is over
            thread.join(GRACE if timeout is None else min(timeout, GRACE))
