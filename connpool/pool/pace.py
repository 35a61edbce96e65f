"""How brief a loan must be for newcomers to overtake those who wait: with locks it is called barging."""

from __future__ import annotations

from typing import Final

__all__ = ["BRIEF", "Pace"]

BRIEF: Final = 50e-6  # seconds: loans so short that overtaking costs a waiter next to nothing
WORTH: Final = 3.0  # lags: what a loan must last for one to be a small price
LONGEST: Final = 1.5  # times ``grace``: loans that last longer let nobody pass, whatever the lag
WEIGHT: Final = 1 / 16  # of one hand-off in the average
MOST: Final = 1e-3  # seconds; a thread that was stopped says nothing about the others
LONG: Final = 0.01  # seconds; what takes longer is no brief loan that had to wait for the interpreter
MEMORY: Final = 1000  # hand-offs until a long loan is forgotten


class Pace:
    """What hand-offs cost just now, and when others may overtake the oldest waiter for it.

    From a hand-off until the thread that was served runs, nobody uses the connection. As a rule that lag is a
    small part of a loan: strict order costs nothing. But where threads queue for processors, or for the
    interpreter, it takes as long as a loan itself: the thread that gave back could have had another one.
    Where some loans are long, order is worth that: the thread that overtakes may be one that keeps it.

    Attributes:
        strict_for: Hand-offs for which lags count for nothing, because of a long loan.
        grace: Seconds for which a waiter that has come to the front may be overtaken.
        lag: Seconds from a hand-off until the thread is there, as a moving average.
        brief: Only loans shorter than this (seconds) let anybody pass. So what the oldest waiter loses is
            ``grace``, and then the rest of one such loan, of which several are under way as a rule.
    """

    __slots__ = ("brief", "grace", "lag", "strict_for")

    def __init__(self, grace: float) -> None:
        self.grace = grace
        self.lag = 0.0
        self.brief = BRIEF
        self.strict_for = 0

    def note_long(self) -> None:
        """Somebody waited for a long loan. The next must overtake nobody, and nobody knows which it is."""
        self.strict_for = MEMORY
        self.brief = BRIEF

    def note(self, seconds: float) -> None:
        """A thread was there *seconds* after it had been served. No lock: of two at once one is lost."""
        if self.strict_for > 0:  # of two at once it may become less
            self.strict_for -= 1
            self.brief = BRIEF  # again: a note that was under way meanwhile may have been the last to store
            return
        lag = self.lag
        lag += ((seconds if seconds < MOST else MOST) - lag) * WEIGHT
        self.lag = lag
        brief, longest = lag * WORTH, self.grace * LONGEST
        if brief > longest:
            brief = longest
        self.brief = brief if brief > BRIEF else BRIEF
