"""What becomes of tickets and keys that are dropped: by an interrupt, or because nobody waits any longer."""

from __future__ import annotations

from connpool.calls.ledger import Ledger
from connpool.calls.line import Key, Phase
from connpool.calls.tickets import Ticket
from connpool.model.states import CloseReason

__all__ = ["recover", "restore", "withdraw"]


def recover(ledger: Ledger, now: float) -> None:
    """Find again what interrupts have dropped."""
    while ledger.strays:
        withdraw(ledger, ledger.strays[0], now)
        ledger.strays.popleft()  # only now: an interrupt before has it done again
    while ledger.lost:
        dropped = ledger.lost[0]
        if hasattr(dropped, "line"):
            key = Key.__new__(Key)
            key.line = dropped.line  # a finaliser runs once, so another key takes the place of this one;
            del dropped.line  # and between the two stores no interrupt can strike
            restore(ledger, key, now)
        ledger.lost.popleft()


def withdraw(ledger: Ledger, ticket: Ticket, now: float) -> None:
    """*ticket* waits no longer; what it was given goes to the next."""
    ticket.has_left = True
    line = ticket.line
    if line is not None and line.leaving is ticket:
        line.leaving = None
        ledger.refresh(line, now)
    ticket.resource.dequeue(ticket)
    key, ticket.key = ticket.key, None
    if key is not None:
        restore(ledger, key, now)
    ledger.serve(ticket.resource, now)
    ledger.forget_empty(ticket.resource)  # it may have been the last to leave


def restore(ledger: Ledger, key: Key, now: float) -> None:
    """Put down a key that comes from nowhere."""
    line = key.line
    if line.phase is Phase.GONE:
        if line.unclosed:  # it was on its way out when an interrupt came
            ledger.todo.append(key)
    elif line.phase is Phase.DOWN:
        ledger.down.setdefault(line, key)
    elif line.phase is Phase.CLOSING:
        ledger.todo.append(key)
    elif line.fate is not None or line.phase is Phase.OPENING or line.is_begun():
        ledger.doom(key, CloseReason.LOST)  # what it was doing nobody knows
    else:
        line.run = None
        if line.leaving is not None and not line.leaving.is_waiting():
            line.leaving = None  # the thread that was to take it out has gone
        ledger.lay_down(key, now, was_used=False)
