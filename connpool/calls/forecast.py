"""How long a call would have to wait for each channel, as far as past calls tell."""

from __future__ import annotations

from collections.abc import Hashable
from heapq import heapify, heappop, heappush, heapreplace

from connpool.calls.line import Line
from connpool.calls.resource import Resource

__all__ = ["n_queued"]


class Outlook:
    """The calls that one channel has before it, if every waiting one goes where it waits least."""

    __slots__ = ("line", "n_calls", "n_queued", "usual", "wait")

    def __init__(self, line: Line, now: float, usual: float) -> None:
        self.line = line
        self.usual = usual  # seconds that a call takes on any of them
        self.wait = max(0.0, line.rest_until - now)  # seconds until a further call could begin
        self.n_calls = self.n_queued = 0
        run = line.run  # looked at once: a call may end meanwhile
        if run is not None:
            self.add(run[1])

    def add(self, method: Hashable) -> None:
        seconds = duration(self.line, method)
        self.wait += self.usual if seconds is None else seconds
        self.n_calls += 1


def n_queued(resource: Resource, now: float) -> dict[Line, int]:
    """How many of the calls that wait will come to each channel of *resource*. With the pool's lock held.

    For all at once: with many channels and a long queue it takes its time. A channel not named gets none.
    """
    if not resource.queue:
        return {}
    usual = _mean_of(list(resource.members.values())) or 0.0
    outlooks = [Outlook(line, now, usual) for line in resource.open_lines()]
    order = [(each.wait, each.n_calls, number) for number, each in enumerate(outlooks)]
    heapify(order)  # the least wait first: as a rule it suits whoever is next
    for ticket in resource.queue:
        unsuited = []
        while order and ticket.line is None:
            *_, number = order[0]
            if ticket.suits(outlooks[number].line):
                best = outlooks[number]
                best.add(ticket.method)
                best.n_queued += 1
                heapreplace(order, (best.wait, best.n_calls, number))
                break
            unsuited.append(heappop(order))
        for each in unsuited:
            heappush(order, each)
    return {each.line: each.n_queued for each in outlooks}


def duration(line: Line, method: Hashable) -> float | None:
    """Seconds that *method* takes on *line*, or else what others take there; None: nothing was called yet."""
    tally = line.took.get(method)
    mean = None if tally is None else tally.mean()
    return _mean_of([line]) if mean is None else mean


def _mean_of(lines: list[Line]) -> float | None:
    totals = [tally.total() for line in lines for tally in line.took.values()]
    count = sum(n for _, n in totals)
    return sum(seconds for seconds, _ in totals) / count if count else None
