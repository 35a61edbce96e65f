"""All that has upkeep in the background, and what a forked child must do about what it inherits."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final, Protocol

from connpool.model.states import CloseReason
from connpool.pool.flock import Flock
from connpool.pool.record import Phase
from connpool.wire.io import Stream, is_stream
from connpool.wire.look import abandon

if TYPE_CHECKING:
    from connpool.pool.lending import Lender

__all__ = ["KEPT", "Kept", "Timekeeper", "disown", "engage", "inherit", "keep", "watch", "wink"]


class Kept(Protocol):
    """What is kept up in the background: a pool, or anything else with something due now and then.

    It asks for its next turn with ``watch``. To be told of a fork and of the end of the program it gives
    itself to ``keep``. Nobody holds it but its users. Compared and hashed by identity.
    """

    name: str  # for messages

    def _pace(self) -> float | None:
        """Seconds that lie between two of its turns at least; None: they are given by hand."""

    def _take_turn(self, *, is_leap: bool) -> object:
        """Do what is due, and wait for nothing. *is_leap*: the machine slept. Runs on the thread of all."""

    def _start_clean(self) -> object:
        """In a forked child: begin anew; what is open belongs to the parent, and locks may be held."""

    def _close_at_exit(self, until: float) -> object:
        """The interpreter ends: close what lies idle, if that takes no time. *until*: all wait no longer."""


class Timekeeper(Protocol):
    """What gives turns in the background. It is of a higher floor, so it introduces itself."""

    def watch(self, kept: Kept, at: float) -> bool:
        """Give *kept* a turn at *at*, an instant of the system's clock; inf: no more. False: it cannot."""

    def wink(self, kept: Kept) -> None:
        """The same at once, for a finaliser: takes no lock."""


_engaged: Final[list[Timekeeper]] = []
KEPT: Final[Flock[Kept]] = Flock()
_INHERITED: Final[list[Any]] = []  # foreign: even their finalisers might say goodbye to the server


def engage(timekeeper: Timekeeper) -> None:
    """From now on *timekeeper* is told when a turn is due."""
    _engaged[:] = [timekeeper]


def keep(kept: Kept) -> None:
    """Count *kept* among what forks and the end of the program are told of."""
    _call_the_timekeeper()
    KEPT.add(kept)


def _call_the_timekeeper() -> None:
    """It is of a higher floor, so it is called by name, when there is first something to keep."""
    if not _engaged:
        import_module("connpool.upkeep")


def watch(kept: Kept, at: float) -> bool:
    """See to it that *kept* gets a turn of upkeep at *at*. False: nobody can."""
    _call_the_timekeeper()
    return all(timekeeper.watch(kept, at) for timekeeper in _engaged)


def wink(kept: Kept) -> None:
    """See to it that *kept* gets a turn soon, because a finaliser has found something; takes no lock."""
    for timekeeper in _engaged:
        timekeeper.wink(kept)


def inherit(thing: Any) -> None:
    """Keep *thing* untouched for ever: it is the parent's, in a forked child, or still lent, at the end."""
    _INHERITED.append(thing)


def disown(lender: Lender) -> None:
    """Let go of the parent's: sockets are closed without a goodbye, others never touched again."""
    lender.leave_to_parent()
    for record in list(lender.books.records()):
        record.condemn(CloseReason.STALE)
        record.phase = Phase.CLOSED  # its loan, if there is one, can no longer be given back
        if isinstance(record.stream, Stream):
            record.stream.let_go()
        if is_stream(record.raw):
            abandon(record.raw)
        else:
            inherit(record.raw)
    for host in lender.books.fleet.hosts.values():
        host.idle.clear()
