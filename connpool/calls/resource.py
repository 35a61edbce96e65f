"""All channels of one resource, and the calls that wait for them."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Hashable, Iterator

from connpool.calls.line import OPEN, Key, Line
from connpool.calls.tickets import Ticket
from connpool.pool.piles import look_through

__all__ = ["Resource"]


class Resource:
    """One queue for all channels of a resource: a call waits for whichever is the first to be free.

    ``idle`` is popped from and appended to without the lock; the rest changes under it.
    """

    __slots__ = ("idle", "is_shrunk", "members", "name", "queue", "resting")

    def __init__(self, name: Hashable) -> None:
        self.name = name
        self.members: dict[int, Line] = {}  # those that are down included
        self.idle: deque[Key] = deque()  # the left end was called least recently
        self.resting: deque[Key] = deque()  # free, but not before their rest is over
        self.queue: deque[Ticket] = deque()  # the left end came first
        self.is_shrunk = False  # a channel is no longer there: somebody may wait in vain

    def open_lines(self) -> Iterator[Line]:
        """Those that are open, busy ones included."""
        return (line for line in list(self.members.values()) if line.phase is OPEN)

    def withdraw(self, line: Line) -> Key | None:
        """Take the key of *line* if it is free. None: somebody has it."""
        for pile in (self.idle, self.resting):
            for key in look_through(pile):
                if key.line is line and _remove(pile, key):
                    return key
        return None

    def take_for(self, ticket: Ticket) -> Key | None:
        """The key of the least recently called channel that is idle and suits *ticket*."""
        for key in look_through(self.idle):
            if ticket.suits(key.line) and _remove(self.idle, key):
                return key
        return None

    def put_back(self, key: Key) -> None:
        """Lay *key*, with which nothing was called, where it lay: before what was called after it."""
        mine = _called_at(key)
        before = sum(1 for other in look_through(self.idle) if _called_at(other) <= mine)
        self.idle.insert(before, key)

    def end_rests(self, now: float) -> None:
        """Lay down as idle those whose rest is over."""
        for key in list(self.resting):
            if key.line.rest_until <= now and _remove(self.resting, key):
                self.put_back(key)

    def enqueue(self, ticket: Ticket) -> None:
        """Queue up by number."""
        queue = self.queue
        if not queue or queue[-1].number < ticket.number:
            queue.append(ticket)
        else:
            queue.insert(sum(1 for other in queue if other.number < ticket.number), ticket)

    def ask_filters(self) -> None:
        """A channel is new, or can do more than before: have the filters of waiting calls asked about it."""
        for ticket in self.queue:
            if ticket.verdicts is not None:
                ticket.wake()

    def before(self, ticket: Ticket) -> Iterator[Ticket]:
        """Those that came before *ticket*."""
        return (other for other in self.queue if other.number < ticket.number)

    def finish(self, ticket: Ticket) -> None:
        """Let go a ticket of which something was decided."""
        ticket.wake()
        self.dequeue(ticket)

    def tidy(self) -> None:
        """Finish with those that an interrupt has left half done."""
        for ticket in list(self.queue):
            if not ticket.is_waiting():
                self.finish(ticket)

    def dequeue(self, ticket: Ticket) -> None:
        _remove(self.queue, ticket)


def _called_at(key: Key) -> float:
    return -math.inf if key.line.called_at is None else key.line.called_at


def _remove(pile: deque[Key] | deque[Ticket], thing: object) -> bool:
    """Take *thing* out of *pile*. False: a call on the fast path was quicker."""
    try:
        pile.remove(thing)  # type: ignore[arg-type]
    except ValueError:
        return False
    return True
