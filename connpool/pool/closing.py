"""Closing what may hang, on threads: nobody waits for each of many."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final, TypeAlias, TypeVar

from connpool.clock import Gate, shut_gate, wait

__all__ = ["CLOSE_GRACE", "close_all"]

CLOSE_GRACE: Final = 0.05  # seconds a caller waits for a close that it has handed to a thread

T = TypeVar("T")
#: Has a function called, with arguments, on a thread of its own; False: there is none to be had.
Start: TypeAlias = Callable[..., bool]


def close_all(pending: deque[T], close_one: Callable[[T], object], start: Start, *, apart: bool) -> None:
    """Have all of *pending* closed.

    Args:
        pending: Whoever closes one takes it out first.
        apart: Wait for none. Else for a moment, and as long as they get on.
    """
    if pending and not apart:
        _begin(pending, close_one, start)
    if pending and not start(_go_on, pending, close_one, start):
        _go_on(pending, close_one, start)


def _go_on(pending: deque[T], close_one: Callable[[T], object], start: Start) -> None:
    """Close all: while one hangs another thread goes on with the others."""
    while len(pending) > 1:
        _begin(pending, close_one, start)
    _close(pending, close_one)


def _begin(pending: deque[T], close_one: Callable[[T], object], start: Start) -> None:
    """Have them closed on a thread. Returns when they are, or when one of them takes long."""
    left = len(pending)
    done = shut_gate()  # an Event may turn Ctrl-C into a RuntimeError
    if not start(_close, pending, close_one, done):
        _close(pending, close_one, done)
    while not wait(done, CLOSE_GRACE) and len(pending) < left:
        left = len(pending)  # it is getting on


def _close(pending: deque[T], close_one: Callable[[T], object], done: Gate | None = None) -> None:
    try:
        while pending:
            close_one(pending.popleft())
    except IndexError:  # another thread took the last one
        pass
    finally:
        if done is not None:
            done.release()
