"""Why no channel takes a call: which error, and one sentence."""

from __future__ import annotations

from collections.abc import Hashable

from connpool.calls.line import Phase
from connpool.calls.tickets import Ticket
from connpool.errors import (
    CallError,
    ConnPoolError,
    FilteredOutError,
    MethodNotSupportedError,
    NoResourceError,
    UnknownChannelError,
    UsageError,
)

__all__ = ["objection", "refusal"]


def objection(pool: str, ticket: Ticket, now: float) -> ConnPoolError | None:
    """Why *ticket* waits in vain; None: it does not."""
    if ticket.line is not None:
        if ticket.line.phase is Phase.GONE:
            return UnknownChannelError(f"pool {pool!r}: channel {ticket.line.id} has gone", pool=pool)
        if ticket.line.is_run_by(ticket.thread):
            return UsageError(
                f"pool {pool!r}: channel {ticket.line.id} cannot be taken out by the very thread that calls,"
                " opens or closes it",
                pool=pool,
            )
        return None
    for line in ticket.resource.members.values():
        if line.is_live(now) and ticket.suits(line) and not line.is_run_by(ticket.thread):
            return None
    lines = [x for x in ticket.resource.members.values() if x.is_live(now) and ticket.may_use(x)]
    offering = [line for line in lines if ticket.method in line.took]
    verdicts = ticket.verdicts
    usable = offering if verdicts is None else [line for line in offering if verdicts.get(line, True)]
    if usable:
        if all(line.is_run_by(ticket.thread) for line in usable):
            return UsageError(
                f"pool {pool!r}: {ticket.method!r} of {ticket.resource.name!r} was called by the very call"
                " that it would have to wait for",
                pool=pool,
            )
        return None
    return refusal(
        pool, ticket.resource.name, ticket.method, has_lines=bool(lines), is_offered=bool(offering)
    )


def refusal(pool: str, name: Hashable, method: Hashable, *, has_lines: bool, is_offered: bool) -> CallError:
    """The error of a call that no channel can serve."""
    if not has_lines:
        return NoResourceError(f"pool {pool!r}: no channel offers {name!r}", pool=pool)
    if not is_offered:
        return MethodNotSupportedError(
            f"pool {pool!r}: no channel of {name!r} supports {method!r}", pool=pool
        )
    return FilteredOutError(
        f"pool {pool!r}: no channel of {name!r} that supports {method!r} passed the filter",
        pool=pool,
    )
