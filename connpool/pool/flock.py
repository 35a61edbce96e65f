"""All objects of a kind, for what concerns them all at once: a fork, or the end of the program."""

from __future__ import annotations

import signal
import weakref
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

__all__ = ["Flock", "undisturbed"]

T = TypeVar("T")


class Flock(Generic[T]):
    """A set that keeps none of its members alive. Any thread may change it and go through it, without a lock.

    A ``WeakSet`` cannot be gone through while another thread adds to it.
    """

    __slots__ = ("__weakref__", "_members")

    def __init__(self) -> None:
        self._members: dict[weakref.ref[T], None] = {}  # each use of it is one step

    def add(self, member: T) -> None:
        """Count *member* in; it is compared and hashed by identity."""
        self._members[weakref.ref(member, self._forget)] = None

    def discard(self, member: T) -> None:
        """Count *member* no longer, if it was counted in."""
        self._members.pop(weakref.ref(member), None)

    def _forget(self, ref: weakref.ref[T]) -> None:
        self._members.pop(ref, None)  # an iteration may keep one alive that was taken away

    def __iter__(self) -> Iterator[T]:
        """Those that are there at this moment, kept alive until the last of them was looked at."""
        there = [ref() for ref in list(self._members)]
        return iter([member for member in there if member is not None])


def undisturbed(deed: Callable[[], None]) -> Callable[[], None]:
    """Have *deed*, a hook of a forked child, done to its end before a signal handler may strike.

    What a handler raises in a hook is swallowed, and the child would go on with what is left undone.
    """

    def do() -> None:
        before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            deed()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    return do
