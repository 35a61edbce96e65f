"""How brief a loan must be for others to overtake who waits."""

from __future__ import annotations

from typing import Final

__all__ = ["BRIEF", "Pace"]

BRIEF: Final = 50e-6  # seconds: loans so short that overtaking costs a waiter next to nothing
WORTH: Final = 3.0  # lags: what a loan must last for one to be a small price
LONGEST: Final = 1.5  # times ``grace``: loans that last longer let nobody pass, whatever the lag
WEIGHT: Final = 1 / 16  # of one hand-off in the average
MOST: Final = 1e-3  # seconds; a thread that was stopped says nothing about the others


class Pace:
    """What hand-offs cost just now, and when others may overtake the oldest waiter for it.

    From a hand-off until the thread that was served runs, nobody uses the connection. As a rule that lag is a
    small part of a loan: strict order costs nothing. But where threads queue for processors, or for the
    interpreter, it takes as long as a loan itself, in which who gave back could have had another one.

    Attributes:
        grace: Seconds for which who has come to the front may be overtaken.
        lag: Seconds from a hand-off until the thread is there, as a moving average.
        brief: Only loans shorter than this (seconds) let anybody pass. So what the oldest waiter loses is
            ``grace``, and then the rest of one such loan, of which several are under way as a rule.
    """

    __slots__ = ("brief", "grace", "lag")

    def __init__(self, grace: float) -> None:
        self.grace = grace
        self.lag = 0.0
        self.brief = BRIEF

    def note(self, seconds: float) -> None:
        """A thread was there *seconds* after it had been served. No lock: of two at once one is lost."""
        lag = self.lag
        lag += ((seconds if seconds < MOST else MOST) - lag) * WEIGHT
        self.lag = lag
        brief, longest = lag * WORTH, self.grace * LONGEST
        if brief > longest:
            brief = longest
        self.brief = brief if brief > BRIEF else BRIEF
