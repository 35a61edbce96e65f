"""The pool's bookkeeping of one open transport, and the one key that goes with it."""

from __future__ import annotations

import enum
import math
import sys
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from connpool.errors import UsageError
from connpool.model.states import CloseReason
from connpool.pool.origin import Origin
from connpool.wire.io import FileStream, Stream

if TYPE_CHECKING:
    from connpool.pool.hosts import Host
    from connpool.pool.pool import ConnectionPool
    from connpool.pool.sharing import Hold

__all__ = ["CLOSED", "OPEN", "Key", "Phase", "Record", "Tenure", "in_phase"]

#: One loan: since when, by which thread (its ident; its name, if it may end), taken where (if that is kept).
Tenure: TypeAlias = tuple[float, int | str, Origin | None]


class Phase(enum.Enum):
    """How far one transport has come. ``MOVES`` lists the only ways on.

    Whether an OPEN one is idle or lent is not written down anywhere: it is
    idle exactly while its key lies in its host's stack. That is what makes a
    checkout one pop and a return one append.
    """

    OPENING = "opening"  # holds a place; nothing is lent yet
    OPEN = "open"  # idle, lent, or being looked at
    CLOSING = "closing"  # being closed; still holds its place
    CLOSED = "closed"  # out of the pool for good


OPEN: Final = Phase.OPEN  # to ask an enum for its member costs 0.1 us on 3.11
CLOSED: Final = Phase.CLOSED

MOVES: Final[Mapping[Phase, frozenset[Phase]]] = {
    Phase.OPENING: frozenset({Phase.OPEN, Phase.CLOSING}),
    Phase.OPEN: frozenset({Phase.CLOSING, Phase.CLOSED}),  # straight to CLOSED: it left the pool open
    Phase.CLOSING: frozenset({Phase.CLOSED}),
    Phase.CLOSED: frozenset(),
}


NOT_OPEN: Final = -1  # stands for a number of loans


class Notes:
    """What is written down about few connections; most never need the memory."""

    __slots__ = (
        "extra",
        "hold",
        "is_replaced",
        "looked_at",
        "origin",
        "peer",
        "taker",
        "wants_another",
        "was_forgotten",
    )

    def __init__(self) -> None:
        self.extra: Any = None  # the user's own
        self.hold: Hold | None = None  # who shares it; kept when nobody does any more
        self.origin: Origin | None = None  # where the present loan was taken
        self.looked_at = -math.inf  # when it was validated last
        self.peer: str | None = None  # the name that it went over to TLS for
        self.taker: str | None = None  # name of the thread that took it and lost it
        self.was_forgotten = False  # its loan was dropped, not given back
        self.is_replaced = False  # another was opened in its stead
        self.wants_another = False  # closed for an error: to be replaced where that is wished


class Record:
    """What the pool knows of one transport.

    ``phase``, ``fate`` and ``host`` change under the pool's lock only. ``since``, ``holder``
    and ``uses`` belong to whoever holds the key.
    """

    __slots__ = (
        "expires_at",
        "fate",
        "holder",
        "host",
        "id",
        "is_begun",
        "notes",
        "opened_at",
        "phase",
        "pool",
        "raw",
        "since",
        "stream",
        "uses",
    )

    def __init__(self, id: int, pool: ConnectionPool, host: Host, now: float) -> None:
        self.id = id
        self.pool = pool
        self.host = host
        self.raw: Any = None
        self.phase = Phase.OPENING
        self.opened_at = now
        self.expires_at = -math.inf  # a record that is not open is never lent
        self.since = now  # lent since, or idle since
        self.holder = 0  # ident of the thread that took it last
        self.uses = NOT_OPEN  # loans, the present one included
        self.stream: Stream | FileStream | None = None  # over ``raw``, if that is a socket; for all holders
        self.is_begun = False  # somebody was told that it is being opened
        self.fate: CloseReason | None = None  # why it must not be lent again
        self.notes: Notes | None = None  # what few connections have

    @property
    def was_open(self) -> bool:
        """Whether it counts as opened."""
        return self.uses != NOT_OPEN

    @property
    def is_shared(self) -> bool:
        hold = None if self.notes is None else self.notes.hold
        return hold is not None and hold.key is not None

    @property
    def tenure(self) -> Tenure:
        """Its present loan, where nobody shares it."""
        notes = self.notes
        if notes is None:
            return self.since, self.holder, None
        return self.since, notes.taker or self.holder, notes.origin

    def noted(self) -> Notes:
        """The notes on it, to be written."""
        if self.notes is None:
            self.notes = Notes()
        return self.notes

    def move(self, to: Phase) -> None:
        """Go on to phase *to*.

        Raises:
            UsageError: ``MOVES`` does not allow it; nothing changed.
        """
        if to not in MOVES[self.phase]:
            raise UsageError(
                f"connection {self.id} is {self.phase.value}: it cannot become {to.value}",
                pool=self.pool.name,
            )
        self.phase = to

    def check_may_return(self) -> None:
        """Refuse a loan that is none of this pool's any more.

        Raises:
            UsageError: it is closed, or the parent's of a forked child.
        """
        if self.phase is not OPEN:
            raise UsageError(
                f"connection {self.id} of pool {self.pool.name!r} cannot be given back here:"
                f" it is {self.phase.value}, or belongs to the process that this one was forked from",
                pool=self.pool.name,
            )

    def condemn(self, reason: CloseReason) -> None:
        """See to it that this connection is closed, not lent, when it comes back.

        The first reason stands. One plain store makes it effective, so any
        thread may do it without the lock.
        """
        if self.fate is None:
            self.fate = reason
        self.expires_at = -math.inf

    def live_until(self, at: float) -> None:
        """Let it grow no older than that; one that is condemned stays so."""
        self.expires_at = at
        if self.fate is not None:  # looked at after that: ``condemn`` stores this first
            self.expires_at = -math.inf

    def streaming(self) -> Stream | FileStream:
        """The buffered view of the transport.

        Raises:
            UsageError: what the connector opened is not a socket.
        """
        if self.stream is None:
            kind = type(self.raw).__name__
            raise UsageError(
                f"a {kind} is not a socket: it has its own input and output, on raw", pool=self.pool.name
            )
        return self.stream


class Key:
    """The right to use one record. Exactly one exists per record until that is closed.

    It lies in a host's idle stack, in a loan, or in the hands of the thread
    that opens, looks at or closes the transport. Wherever an interrupt or a
    forgotten ``release`` drops it, the finaliser reports the record, and the
    pool's next turn recovers the place. That is why no step of a checkout needs
    to be undone by hand. The key of a loan loses its record then: a finaliser that
    the collector calls later may still try to use the loan, and must find it ended.
    """

    __slots__ = ("record",)

    _is_over = staticmethod(sys.is_finalizing)  # a class outlives what its module has imported

    def __init__(self, record: Record) -> None:
        self.record = record

    def __del__(self) -> None:
        try:
            self._report()
        except Exception:
            if self._is_over():
                return  # the interpreter has taken apart what this needs
            me: Any = self
            record = getattr(me, "record", None)  # None: all but the warning was done
            lost = record if type(me) is Key else getattr(me, "hold", None)  # None: a share that has ended
            if record is not None and lost is not None:  # told by no function's call: the stack may be full
                record.pool._lender.books.lost.append(record if lost is record else (lost, me.number))
                try:
                    record.pool._lender.books.queue.waiters[0].gate.release()
                except (IndexError, RuntimeError):
                    pass
                del me.record
            raise
        except BaseException:  # Ctrl-C: from the beginning, since nobody else would do it
            self._report()
            raise

    def renewed(self) -> Key:
        """Another key instead of this one, which the collector may have in hand: see docs/locking.md."""
        key = Key(self.record)
        self.__class__ = _SpentKey  # with its record: whoever looks without the lock may still see it
        return key

    def drop(self) -> None:
        """Do now what the finaliser would do, and never again."""
        try:
            self.__del__()
        finally:
            if hasattr(self, "record"):
                del self.record

    def _report(self) -> None:
        """Tell the pool that it was dropped; twice does no harm."""
        record = getattr(self, "record", None)  # None: interrupted before it was anybody's
        if record is not None and record.phase is not CLOSED:
            record.pool._key_dropped(self)


class _SpentKey(Key):
    """One that another has taken the place of: its end is nobody's concern."""

    __slots__ = ()

    def __del__(self) -> None:
        pass


def in_phase(records: Iterable[Record], *phases: Phase) -> list[Record]:
    """Those of *records* that are in one of *phases*."""
    return [record for record in records if record.phase in phases]
