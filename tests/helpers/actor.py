"""A thread that does, in order, what the test tells it meanwhile."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import Final

LIMIT: Final = 10.0  # seconds in which it must have done all of it


class Actor(threading.Thread):
    """Does what it is told until something goes wrong, which ``finish`` raises in the test."""

    def __init__(self, name: str) -> None:
        super().__init__(name=name, daemon=True)
        self._orders: queue.SimpleQueue[Callable[[], object] | None] = queue.SimpleQueue()
        self._failure: BaseException | None = None

    def order(self, order: Callable[[], object] | None) -> None:
        """Have it do *order* after what it has been told so far; None: end."""
        self._orders.put(order)

    def run(self) -> None:
        while (order := self._orders.get()) is not None:
            try:
                order()
            except BaseException as failure:
                self._failure = failure
                return

    def finish(self) -> None:
        """Let it do what it was told, and end.

        Raises:
            BaseException: what went wrong on it.
        """
        self.order(None)
        self.join(LIMIT)
        assert not self.is_alive(), f"thread {self.name!r} is stuck"
        if self._failure is not None:
            raise self._failure
