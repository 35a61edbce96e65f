"""Taking channels out of a pool, open."""

from __future__ import annotations

import itertools
import math
import threading
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from typing import Final

from connpool.calls.line import Key, Line, Phase
from connpool.calls.queueing import wait
from connpool.calls.recovery import withdraw
from connpool.calls.snapshots import describe_all
from connpool.calls.switch import Switch
from connpool.calls.tickets import Stub, Ticket
from connpool.errors import CallTimeoutError, PoolClosedError, UnknownChannelError, UsageError
from connpool.model.channel import ChannelInfo

__all__ = ["take_out"]

_early: Final = itertools.count(-1, -1)  # numbers of tickets that come before all that wait


def take_out(
    switch: Switch, lines: Sequence[Line], deadline: float | None, *, is_polite: bool
) -> list[ChannelInfo]:
    """Wait for the keys of *lines*, then let all of them go, or none.

    *is_polite*: calls that wait already may still use them first.
    """
    stubs: list[Stub] = []
    try:
        with switch._lock:
            _say_farewell(switch, lines, stubs, is_polite=is_polite)
        tickets = [stub.ticket for stub in stubs if stub.ticket is not None]
        for ticket in tickets:
            _await_key(switch, ticket, deadline)
        with switch._lock:
            infos = _let_go(switch, tickets)
        switch.carry_out()
    except BaseException:
        _think_better(switch, stubs)
        raise
    claims = [ticket.farewell_line().unclosed for ticket in tickets]
    list(map(deque.clear, claims))  # in one go, which no interrupt divides: they are the caller's now
    for stub in stubs:
        stub.ticket = None
    return infos


def drain(switch: Switch, lines: Sequence[Line], deadline: float) -> None:
    """Wait until the calls that run on *lines*, or wait for them, are over, or until *deadline*.

    Not for the one that makes this very thread wait.
    """
    here = threading.get_ident()
    lines = [line for line in lines if not line.is_run_by(here)]
    stubs: list[Stub] = []
    try:
        with switch._lock:
            # Those whose call is still to have its time.
            taken = tuple(line for line in lines if line.leaving is not None)
            _say_farewell(switch, lines, stubs, is_polite=True)
            numbers = switch.ledger.numbers
            stubs += [Stub(switch, Ticket(each.home(), None, next(numbers), each)) for each in taken]
        for stub in stubs:
            if stub.ticket is not None:
                with suppress(UnknownChannelError):  # another thread was quicker
                    wait(switch, stub.ticket, deadline)
    except (CallTimeoutError, PoolClosedError, UsageError):  # or another closes it at once, or it was forked
        pass
    finally:
        _think_better(switch, stubs)


def _say_farewell(switch: Switch, lines: Sequence[Line], stubs: list[Stub], *, is_polite: bool) -> None:
    """With the lock held: no call that comes from now on queues for *lines*.

    *stubs* are filled for them; an interrupt that drops those has all of it undone.
    """
    ledger = switch.ledger
    for line in lines:
        if line.leaving is None and line.phase is not Phase.GONE:  # else somebody was quicker
            ticket = Ticket(line.home(), None, next(ledger.numbers) if is_polite else next(_early), line)
            stubs.append(Stub(switch, ticket))
            line.leaving = ticket
            line.open_until = line.brisk_until = -math.inf
            line.home().is_shrunk = True
    for line in lines:
        ledger.serve(line.home(), switch.clock.now())


def _think_better(switch: Switch, stubs: list[Stub]) -> None:
    """What the caller has not got stays in the pool, or is closed if it has left it."""
    with switch._lock:
        for stub in stubs:
            _tear_up(switch, stub)
    switch.carry_out()


def _tear_up(switch: Switch, stub: Stub) -> None:
    if stub.ticket is not None:
        withdraw(switch.ledger, stub.ticket, switch.clock.now())
        stub.ticket = None


def _await_key(switch: Switch, ticket: Ticket, deadline: float | None) -> None:
    with switch._lock:
        parked = switch.ledger.down.pop(ticket.farewell_line(), None)
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
    infos = describe_all([key.line for key in keys], now)
    for key in keys:
        ledger.part(key.line)
        ledger.serve(key.line.home(), now)
    return infos
