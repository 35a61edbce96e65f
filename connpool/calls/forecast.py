"""How long a call would have to wait for each channel, as far as past calls tell."""

from __future__ import annotations

from collections.abc import Hashable

from connpool.calls.line import Line
from connpool.calls.resource import Resource

__all__ = ["n_queued"]


class Outlook:
    """The calls that one channel has before it, if every waiting one goes where it waits least."""

    __slots__ = ("line", "n_calls", "n_queued", "wait")

    def __init__(self, line: Line, now: float) -> None:
        self.line = line
        self.wait = max(0.0, line.rest_until - now)  # seconds until a further call could begin
        self.n_calls = self.n_queued = 0
        run = line.run  # looked at once: a call may end meanwhile
        if run is not None:
            self.add(run[1])

    def add(self, method: Hashable) -> None:
        self.wait += duration(self.line, method)
        self.n_calls += 1


def n_queued(resource: Resource, now: float) -> dict[Line, int]:
    """How many of the calls that wait will come to each channel of *resource*. With the pool's lock held.

    For all at once: with many channels and a long queue it takes its time. A channel not named gets none.
    """
    if not resource.queue:
        return {}
    outlooks = {each: Outlook(each, now) for each in resource.open_lines()}
    for ticket in resource.queue:
        suiting = [outlooks[each] for each in outlooks if ticket.line is None and ticket.suits(each)]
        if suiting:
            best = min(suiting, key=lambda outlook: (outlook.wait, outlook.n_calls))
            best.add(ticket.method)
            best.n_queued += 1
    return {each: outlook.n_queued for each, outlook in outlooks.items()}


def duration(line: Line, method: Hashable) -> float:
    """Seconds that *method* takes on *line*; of what was never called there: what others take."""
    tally = line.took.get(method)
    mean = None if tally is None else tally.mean()
    if mean is None:
        mean = _mean_of([line])
    if mean is None:
        mean = _mean_of(list(line.home().members.values()))
    return mean or 0.0


def _mean_of(lines: list[Line]) -> float | None:
    totals = [tally.total() for line in lines for tally in line.took.values()]
    count = sum(n for _, n in totals)
    return sum(seconds for seconds, _ in totals) / count if count else None
