"""What is to be done by the clock, on a thread of its own: a disk may be slow, and so may a peer."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable

from connpool.pool.turns import Turn, Turns
from connpool.wire import threads

__all__ = ["Errand"]


class Errand:
    """One thing of that kind. One thread is at it at a time, and another errand does not wait for that.

    Attributes:
        at: When it is due.
        thread: Which thread is at it, or was the last.
    """

    __slots__ = ("at", "thread", "turns")

    def __init__(self) -> None:
        self.at = math.inf
        self.thread: threading.Thread | None = None
        self.turns = Turns()

    def is_under_way(self) -> bool:
        """Whether another thread than the caller's is at it."""
        return not self.turns.are_free() and self.thread is not threading.current_thread()

    def do_apart(self, run: Callable[[Turn], None], name: str) -> None:
        """Have a thread called *name* do it, unless one is at it. Where none can be had it stays due.

        Args:
            run: Does it, and ends the turn that it is given.
        """
        turn = self.turns.try_take(0.0)
        if turn is None:
            return
        thread = self.thread = threading.Thread(target=run, args=(turn,), name=name, daemon=True)
        try:
            threads.start(thread)
        finally:
            if thread.ident is None:  # none can be had, or an interrupt came first: the next turn tries again
                turn.end()
