"""What is decided under the lock and done without it: dials, looks and closes."""

from __future__ import annotations

import math

from connpool.pool.record import Key, Record, Tenure
from connpool.wire.waiting import Cancel

__all__ = ["Dial", "Todo"]


class Dial:
    """One attempt to make a key lendable: opening its transport, or looking at it.

    Holds the key, so a dial that gets lost on its way to a thread frees its place.
    """

    __slots__ = (
        "cancel",
        "hurried_at",
        "is_errand",
        "is_look",
        "is_owed",
        "key",
        "number",
        "replaces",
    )

    def __init__(self, key: Key, cancel: Cancel, number: int = 0, *, is_look: bool) -> None:
        self.key = key
        self.cancel = cancel
        self.number = number  # of the checkout it was begun for; 0: upkeep has begun it
        self.is_look = is_look
        self.is_errand = False  # run by the thread that asked for it
        self.hurried_at = math.inf  # from then on a time-out is its caller's, who has less time than a dial
        self.replaces: Key | None = None  # what is closed when this one is open
        self.is_owed = False  # makes good for one that was lost; if it fails another is due

    @property
    def is_upkeep(self) -> bool:
        """Whether it was begun for no checkout."""
        return self.number == 0


class Todo:
    """What was decided under the lock, to be done without it."""

    __slots__ = ("dials", "doomed", "gone", "lost")

    def __init__(self) -> None:
        self.dials: list[Dial] = []
        self.doomed: list[Key] = []  # CLOSING, to be closed and then forgotten
        self.gone: list[Record] = []  # their places are free: to be told
        self.lost: list[tuple[Record, Tenure]] = []  # loans that were dropped: to be told

    def __bool__(self) -> bool:
        return bool(self.dials or self.doomed or self.gone or self.lost)
