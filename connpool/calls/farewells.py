"""Taking channels out of a pool, open."""

from __future__ import annotations

import itertools
import math
from typing import Final

from connpool.calls.line import Key, Line
from connpool.calls.queueing import wait
from connpool.calls.recovery import withdraw
from connpool.calls.snapshots import describe
from connpool.calls.switch import Switch
from connpool.calls.tickets import Stub, Ticket
from connpool.model.channel import ChannelInfo

__all__ = ["take_out"]

_early: Final = itertools.count(-1, -1)  # numbers of tickets that come before all that wait


def take_out(
    switch: Switch, lines: list[Line], deadline: float | None, *, is_polite: bool
) -> list[ChannelInfo]:
    """Wait for the keys of *lines*, then let all of them go, or none.

    *is_polite*: who waits already may still use them first.
    """
    ledger = switch.ledger
    stubs: list[Stub] = []  # an interrupt that drops them has all of it undone
    try:
        with switch._lock:
            for line in lines:
                if line.leaving is None:  # else somebody is quicker
                    number = next(ledger.numbers) if is_polite else next(_early)
                    stubs.append(Stub(switch, Ticket(line.home(), None, number, line)))
                    _say_farewell(line, stubs[-1].ticket)
            now = switch.clock.now()
            for line in lines:
                ledger.serve(line.home(), now)
        tickets = [stub.ticket for stub in stubs if stub.ticket is not None]
        for ticket in tickets:
            _await_key(switch, ticket, deadline)
        with switch._lock:
            infos = _let_go(switch, tickets)
        for stub in stubs:
            stub.ticket = None
    except BaseException:
        with switch._lock:
            for stub in stubs:
                if stub.ticket is not None:
                    withdraw(ledger, stub.ticket, switch.clock.now())
                    stub.ticket = None
        raise
    finally:
        switch.carry_out()
    return infos


def _say_farewell(line: Line, ticket: Ticket | None) -> None:
    """Nobody who comes after *ticket* queues for *line*."""
    line.leaving = ticket
    line.open_until = line.brisk_until = -math.inf
    line.home().is_shrunk = True


def _await_key(switch: Switch, ticket: Ticket, deadline: float | None) -> None:
    assert ticket.line is not None
    with switch._lock:
        parked = switch.ledger.down.pop(ticket.line, None)
        if parked is not None:
            ticket.key = parked
    if parked is None:
        wait(switch, ticket, deadline)


def _let_go(switch: Switch, tickets: list[Ticket]) -> list[ChannelInfo]:
    """With the lock held: nothing of them is the pool's any more."""
    ledger, now = switch.ledger, switch.clock.now()
    keys: list[Key] = [ticket.key for ticket in tickets if ticket.key is not None]
    for key in keys:
        key.line.run = None
    infos = [describe(ledger, key.line, now) for key in keys]
    for key in keys:
        ledger.part(key.line)
        key.line.unclosed.clear()  # it is the caller's to close
        ledger.serve(key.line.home(), now)
    return infos
