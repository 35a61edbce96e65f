"""Which calls wait, which channels may be called and which must be closed: the decisions of one call pool."""

from __future__ import annotations

import itertools
import math
import random
from collections import deque
from collections.abc import Hashable, Iterator
from typing import Final

from connpool.calls.line import OPEN, Key, Line, Phase
from connpool.calls.refusals import objection
from connpool.calls.resource import Resource
from connpool.calls.tickets import Ticket
from connpool.clock import open_gate
from connpool.errors import PoolClosedError
from connpool.model.states import POOL_OPEN, CloseReason, PoolState
from connpool.pool.backoff import doubling

__all__ = ["Ledger"]

OFTEN: Final = 0.1  # seconds after which durations are counted in: until then they are a list
NEVER: Final = math.inf


class Ledger:
    """Everything is called with the pool's lock held, and calls nothing that may block or is foreign.

    What is to be closed or opened goes to ``todo``, to be carried out without the lock.
    After every change that frees a channel or takes one away, ``serve`` decides who gets what.
    """

    def __init__(self, name: str, revive_initial: float, revive_max: float) -> None:
        self.name = name
        self.state = PoolState.OPEN
        self.is_heard = False  # somebody listens
        self.lines: dict[int, Line] = {}  # by id; open, or to be opened again
        self.owned: dict[int, Line] = {}  # by the id, in Python's sense, of the channel; being opened, too
        self.resources: dict[Hashable, Resource] = {}
        self.idle: dict[Hashable, deque[Key]] = {}  # of each resource: what the fast path looks into
        self.down: dict[Line, Key] = {}
        self.lost: deque[Key] = deque()  # were dropped; appended to without the lock
        self.strays: deque[Ticket] = deque()  # their threads have gone; likewise
        self.todo: deque[Key] = deque()  # to be closed, or opened again
        self.numbers = itertools.count(1)  # of tickets, in order of arrival
        self.ids = itertools.count(1)
        self.rng = random.Random()
        self.back_off = revive_initial, revive_max

    # -- lines come and go

    def add(self, line: Line, name: Hashable) -> None:
        """Take in a new line, of resource *name*. Its key follows, with ``lay_down``."""
        if name not in self.resources:
            self.resources[name] = Resource(name)
        resource = self.resources[name]
        self.idle[name] = resource.idle
        line.resource, line.idle, line.waiting = resource, resource.idle, resource.queue
        line.id = next(self.ids)
        self.lines[line.id] = line
        resource.members[line.id] = line

    def admit(self, key: Key, rest: float, now: float, opened_at: float | None = None) -> None:
        """A line is open: it can be called from now on, or after *rest* seconds."""
        line = key.line
        line.move(Phase.OPEN)
        line.run = None
        line.opened_at = now if opened_at is None else opened_at
        line.failures = 0
        line.fate = None
        self.time(line)
        line.home().ask_filters()
        self.lay_down(key, now, rest)

    def time(self, line: Line) -> None:
        """Set when *line* grows too old."""
        born = line.opened_at or 0.0
        line.expires_at = NEVER if line.ttl is None else born + line.ttl

    def part(self, line: Line) -> None:
        """*line* leaves the pool, whatever becomes of its channel. May be done again, to be finished."""
        if line.phase is not Phase.GONE:
            line.move(Phase.GONE)
        line.brisk_until = line.open_until = -NEVER
        if self.owned.get(id(line.channel)) is line:
            del self.owned[id(line.channel)]
        self.down.pop(line, None)
        resource = line.resource
        if resource is None:
            return
        resource.members.pop(line.id, None)
        resource.is_shrunk = True
        self.forget_empty(resource)
        self.lines.pop(line.id, None)  # the last: until then upkeep finds what an interrupt has left undone

    def forget_empty(self, resource: Resource) -> None:
        """Drop *resource* if it has no channels, and nobody waits for any."""
        if not resource.members and not resource.queue and self.resources.get(resource.name) is resource:
            self.resources.pop(resource.name, None)
            self.idle.pop(resource.name, None)

    def condemn(self, line: Line, reason: CloseReason, now: float) -> None:
        """Have *line* closed: now if it is free, else when its call is over. Nobody queues for it now."""
        line.condemn(reason)
        line.home().is_shrunk = True
        key = line.home().withdraw(line)
        if key is not None:
            self.doom(key, reason)
        self.serve(line.home(), now)

    def doom(self, key: Key, reason: CloseReason) -> None:
        """Have the channel of *key*, which is in hand, closed."""
        line = key.line
        line.condemn(reason)
        line.run = None
        if line.resource is not None:
            line.resource.is_shrunk = True
        if line.phase is not Phase.CLOSING:
            line.move(Phase.CLOSING)
        self.todo.append(key)

    # -- keys come back

    def receive(self, key: Key, reason: CloseReason | None, rest: float, now: float) -> None:
        """A call is over. *reason*: for which its channel must be closed; *rest*: seconds it rests."""
        line = key.line
        if line.phase is not OPEN:
            return  # the parent's of a forked child
        if line.run is not None:
            line.called_at = line.run[2]
        for tally in line.took.values():
            tally.catch_up()
        line.run = None
        if reason is not None or line.fate is not None:
            self.doom(key, reason or CloseReason.BROKEN)
        else:
            self.lay_down(key, now, rest)
        self.serve(line.home(), now)

    def pass_on(self, key: Key) -> bool:
        """Give a key that is in good order to the first in the queue. False: it is not as simple as that."""
        line = key.line
        if not line.waiting or line.open_until == -NEVER or line.home().resting:
            return False  # with others at rest the next in the queue needs an alarm, too
        ticket = line.waiting[0]
        if not (ticket.is_waiting() and ticket.suits(line)):
            return False
        self.hand(ticket, key)
        return True

    def lay_down(self, key: Key, now: float, rest: float = 0.0, *, was_used: bool = True) -> None:
        """Put down the key of an open line that is free. If it *was_used*, others are called before it."""
        line = key.line
        if rest > 0:
            line.rest_until = now + rest
        if now >= line.expires_at:
            self.doom(key, CloseReason.EXPIRED)
        elif now < line.rest_until:
            line.home().resting.append(key)
        else:
            self.refresh(line, now)
            if was_used:
                line.idle.append(key)
            else:
                line.home().put_back(key)

    def refresh(self, line: Line, now: float) -> None:
        """Let calls take the fast path, unless there is a reason to look closer."""
        is_plain = not self.is_heard and line.fate is None and line.leaving is None
        is_plain = is_plain and self.state is POOL_OPEN
        line.open_until = line.expires_at if is_plain else -NEVER
        line.brisk_until = min(line.open_until, now + OFTEN) if line.rest_until <= now else -NEVER

    def record_close(self, key: Key, now: float) -> bool:
        """A channel is closed. Returns whether it is to be opened again."""
        line = key.line
        line.run = None
        if line.phase is Phase.GONE:
            return False
        if self._is_revived(line):
            line.move(Phase.DOWN)
            return True
        if line.leaving is not None:
            self.hand(line.leaving, key)
            return False
        self.part(line)
        if line.resource is not None:
            self.serve(line.resource, now)
        return False

    def _is_revived(self, line: Line) -> bool:
        is_wanted = line.is_to_be_revived() and line.leaving is None
        return is_wanted and line.resource is not None and self.state is POOL_OPEN

    def record_failure(self, key: Key, after: float | None, now: float) -> float | None:
        """An attempt to open it again has failed. Returns when the next is due; None: it is given up."""
        line = key.line
        line.move(Phase.DOWN)
        line.run = None
        line.failures += 1
        if after is None:
            after = doubling(line.failures, *self.back_off, self.rng)
        if line.leaving is not None:
            self.hand(line.leaving, key)
        elif self.state is not POOL_OPEN or after == NEVER:
            self.part(line)
            return None
        else:
            line.retry_at = now + after
            self.down[line] = key
        return now + after

    # -- who gets what

    def serve(self, resource: Resource, now: float) -> None:
        """Give free channels to those who wait for them, the oldest first; refuse those that wait in vain."""
        if resource.resting:
            resource.end_rests(now)
        if resource.queue:
            for ticket in list(resource.queue):
                if ticket.is_waiting():
                    if not resource.idle and not resource.resting:
                        break
                    self._serve_one(resource, ticket, now)
                else:
                    resource.finish(ticket)
            if resource.is_shrunk:
                self._review(resource, now)
            if resource.resting:
                self._set_alarms(resource)

    def _serve_one(self, resource: Resource, ticket: Ticket, now: float) -> None:
        while (key := resource.take_for(ticket)) is not None:
            if ticket.line is None and now >= key.line.expires_at:
                self.doom(key, CloseReason.EXPIRED)
                continue
            self.hand(ticket, key)
            return
        line = ticket.line
        if line is not None and not any(x.is_waiting() and x.suits(line) for x in resource.before(ticket)):
            key = resource.withdraw(line)  # it rests; that need not be waited for
            if key is not None:
                self.hand(ticket, key)

    def _review(self, resource: Resource, now: float) -> None:
        """A channel is no longer there: refuse the calls that wait in vain."""
        resource.is_shrunk = False
        for ticket in list(resource.queue):
            self.review(ticket, now)

    def review(self, ticket: Ticket, now: float) -> None:
        """Refuse *ticket* if it waits in vain."""
        if ticket.is_waiting() and (error := objection(self.name, ticket, now)) is not None:
            ticket.error = error
            ticket.resource.finish(ticket)

    def hand(self, ticket: Ticket, key: Key) -> None:
        """Give *key* to *ticket*."""
        if ticket.line is None:
            key.line.run = ticket.thread, ticket.method, NEVER  # it is that thread's from here on
        ticket.key = key
        open_gate(ticket.gate)
        ticket.resource.dequeue(ticket)  # the last: until then ``tidy`` finds what an interrupt leaves undone

    def _set_alarms(self, resource: Resource) -> None:
        """Have the oldest who could use it look again when a rest is over."""
        for key in resource.resting:
            for ticket in resource.queue:
                if ticket.suits(key.line):
                    if key.line.rest_until < ticket.alarm_at:
                        ticket.alarm_at = key.line.rest_until
                        ticket.wake()
                    break

    # -- upkeep and the end

    def expire(self, now: float) -> None:
        """Close what has grown too old, and what is condemned and lies idle: an interrupt came between."""
        for line in list(self.lines.values()):
            if line.phase is Phase.GONE:
                self.part(line)
            elif line.phase is OPEN and (now >= line.expires_at or line.fate is not None):
                self.condemn(line, CloseReason.EXPIRED, now)

    def due(self, now: float) -> Iterator[Key]:
        """Take out those that are to be opened again now."""
        for line, key in list(self.down.items()):
            if now >= line.retry_at:
                del self.down[line]
                yield key

    def next_due(self) -> float:
        """The instant before which upkeep has nothing to do."""
        ends = [x.expires_at for x in self.lines.values() if x.phase is OPEN and x.fate is None]
        return min([*ends, *(line.retry_at for line in self.down)], default=NEVER)

    def fail_all(self) -> None:
        """The pool closes: nobody waits any more."""
        for resource in list(self.resources.values()):
            for ticket in list(resource.queue):
                if ticket.is_waiting():
                    ticket.error = PoolClosedError(f"pool {self.name!r} was closed", pool=self.name)
                resource.finish(ticket)
