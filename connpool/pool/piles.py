"""Looking through a pile that others take from and add to, with no lock."""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable
from contextlib import suppress
from typing import TypeVar

__all__ = ["look_through"]

T = TypeVar("T", bound=Hashable)


def look_through(pile: deque[T]) -> list[T]:
    """What lies in *pile*, from left to right, though others use it meanwhile.

    Whatever lies there all the time is among it; what comes or goes just now may be, once. Others
    may take anything, but add at the right end only.
    """
    try:
        return list(pile)  # with the GIL, one step
    except RuntimeError:  # without it, one step for each, and somebody came in between
        return _pick_through(pile)


def _pick_through(pile: deque[T]) -> list[T]:
    """One by one from the right: what is taken on the left has others seen twice, not passed over."""
    found: dict[T, None] = {}
    for place in reversed(range(len(pile))):
        with suppress(IndexError):  # there are fewer by now
            found[pile[place]] = None
    return list(reversed(found))
