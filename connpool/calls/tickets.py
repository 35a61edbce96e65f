"""Calls that wait for a channel, in order of arrival."""

from __future__ import annotations

import math
import threading
from collections.abc import Hashable
from typing import TYPE_CHECKING

from connpool.clock import open_gate, shut_gate

if TYPE_CHECKING:
    from connpool.calls.line import Key, Line
    from connpool.calls.resource import Resource
    from connpool.calls.switch import Switch

__all__ = ["Stub", "Ticket"]


class Ticket:
    """One call that wants a channel, or one thread that wants to take a certain channel out of the pool.

    How it stands is decided once, under the pool's lock: it is given a key, or an error, or it leaves.
    """

    __slots__ = (
        "alarm_at",
        "error",
        "gate",
        "has_left",
        "key",
        "line",
        "method",
        "number",
        "resource",
        "thread",
        "verdicts",
    )

    def __init__(self, resource: Resource, method: Hashable, number: float, line: Line | None = None) -> None:
        self.resource = resource
        self.method = method
        self.number = number  # in order of arrival
        self.line = line  # the one that is to be taken out; None: this is a call
        self.thread = threading.get_ident()
        self.verdicts: dict[Line, bool] | None = None  # what its filter said of each; None: it has none
        self.gate = shut_gate()
        self.key: Key | None = None
        self.error: BaseException | None = None
        self.has_left = False  # timed out or interrupted
        self.alarm_at = math.inf  # a rest that it waits for is over then

    def is_waiting(self) -> bool:
        """Whether nothing was decided yet. Without the lock a True may be out of date, a False never."""
        return self.key is None and self.error is None and not self.has_left

    def farewell_line(self) -> Line:
        """The line that is to be taken out."""
        assert self.line is not None
        return self.line

    def may_use(self, line: Line) -> bool:
        """Whether *line* is not on its way out, as far as this call is concerned."""
        return line.leaving is None or self.number < line.leaving.number

    def suits(self, line: Line) -> bool:
        """Whether *line* can serve it."""
        if self.line is not None:
            return line is self.line
        is_let_through = self.verdicts is None or self.verdicts.get(line, False)
        is_offered = is_let_through and self.method in line.took
        return is_offered and (line.leaving is None or self.may_use(line))

    def unjudged(self) -> list[Line]:
        """Channels that could serve it, if its filter let them through."""
        if self.verdicts is None:
            return []
        known = self.verdicts
        return [line for line in self.resource.open_lines() if self.method in line.took and line not in known]

    def wake(self) -> None:
        """Open its gate; harmless when it is open already."""
        open_gate(self.gate)


class Stub:
    """What the thread keeps of its ticket. If an interrupt drops it, the ticket is found and leaves."""

    __slots__ = ("switch", "ticket")

    def __init__(self, switch: Switch, ticket: Ticket) -> None:
        self.switch = switch
        self.ticket: Ticket | None = ticket  # None: it is over

    def __del__(self) -> None:
        ticket: Ticket | None = getattr(self, "ticket", None)
        if ticket is not None:
            self.switch.ticket_dropped(ticket)
