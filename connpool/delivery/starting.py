"""What threads of a broadcaster have in common: started once, by whoever comes first, and waited for."""

from __future__ import annotations

import threading
from contextlib import suppress
from typing import Final

from connpool.delivery.office import Office
from connpool.pool.turns import Turns
from connpool.wire import threads

__all__ = ["BREATH", "Starter", "join"]

BREATH: Final = 1.0  # seconds before what has failed unexpectedly, or for the pool alone, is tried again
GRACE: Final = 5.0  # seconds that the end waits for a thread, which may be in a handler of the user's


class Starter:
    """Starts one thread once, whoever comes first and however many come.

    With its turns in one object: a look for the thread, while another takes its place, finds the turns that
    go with it.
    """

    def __init__(self, thread: threading.Thread) -> None:
        self.thread = thread
        self._turns = Turns()

    def start(self, office: Office) -> None:
        """Start the thread, unless it was started before or somebody is at it.

        Where none can be had, or an interrupt comes first, upkeep sees to it later.
        """
        if self.thread.ident is not None:
            return
        turn = self._turns.try_take(0.0)
        if turn is None:
            return
        try:
            if self.thread.ident is None:
                threads.start(self.thread)
        finally:
            turn.end()
            if self.thread.ident is None:
                office.expect_soon()

    def is_left(self) -> bool:
        """Whether the thread was not started, and nobody is at it."""
        return self.thread.ident is None and self._turns.are_free()


def join(thread: threading.Thread | None, timeout: float | None = None) -> None:
    """Wait a while, or *timeout* seconds, for the end of *thread*, if there is one and it is not us."""
    if thread is not None and thread is not threading.current_thread():
        with suppress(RuntimeError):  # it is only about to start: then it sees that it is over
            thread.join(GRACE if timeout is None else min(timeout, GRACE))
