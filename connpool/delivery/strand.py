"""One connection of a link, and what is on its way over it."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from connpool.delivery.spool import ID_SIZE
from connpool.model.endpoint import Endpoint
from connpool.pool.connection import Connection
from connpool.wire.framing import Framing
from connpool.wire.line import Line

__all__ = ["BEHIND", "NO_ID", "SENT", "Claim", "Outcome", "Parcel", "Strand", "Unfinished"]

NO_ID = bytes(ID_SIZE)  # of what is sent once or never


class Outcome(enum.Enum):
    """What came of one attempt to send a message at once."""

    SENT = "sent"
    BEHIND = "behind"  # something else must be sent first
    BEGUN = "begun"  # a part of it is on its way; the rest is kept
    DEAD = "dead"  # there is no connection, or it has just been found broken


SENT: Final = Outcome.SENT  # to ask an enum for its member costs 0.15 us on 3.11
BEHIND: Final = Outcome.BEHIND


class Claim:
    """What a thread is about to do, noted wherever others have to wait for it.

    An interrupt may tear the thread away between any two steps. Then one flag gives up all that it
    was about, wherever that is noted; nobody has to undo it step by step.
    """

    is_given_up = False
    thread = 0  # of which it is; told before it becomes a holder's, for whoever comes from within


class Parcel(Claim):
    """One message on its way, which is the business of the thread that sends it.

    Attributes:
        data: The message as it goes over the wire.
        id: The same wherever it goes; made when it is first needed.
        begun: What has to be finished by the sender itself, by the link's queue.
        reached: Which endpoints of members have it that are lists, or were waited for, by the link's queue:
            the links may have gone over to others since.
    """

    id = NO_ID
    begun: Mapping[str, Unfinished] = MappingProxyType({})
    reached: Mapping[str, Endpoint] = MappingProxyType({})

    def __init__(self, message: bytes) -> None:
        self.message = message  # the rest has defaults, of the class: one is made for each message
        self.data = message

    def has_reached(self, queue: str, endpoint: Endpoint) -> None:
        """Of the member whose queue that is, *endpoint* has it."""
        self.reached = {**self.reached, queue: endpoint}


class Strand:
    """One connection of a link, from its opening to its close. The link's ``writing`` guards it."""

    __slots__ = (
        "__weakref__",
        "conn",
        "decoder",
        "endpoint",
        "holder",
        "is_dropped",
        "is_heard",
        "is_midway",
        "line",
        "n_readers",
        "why",
    )

    def __init__(self, conn: Connection, line: Line, endpoint: Endpoint, decoder: Framing) -> None:
        self.conn = conn
        self.line = line
        self.endpoint = endpoint
        self.decoder = decoder  # touched by the reading thread alone
        self.holder: Claim | None = None  # what waits for the peer; it writes without ``writing``
        self.is_midway = False  # the peer may have a part of a message, and only its sender the rest
        self.n_readers = 0
        self.is_dropped = False  # nobody new may use it; the last user closes it
        self.is_heard = False  # all was read that came, and told
        self.why: BaseException | None = None  # it was dropped; None: by hand

    @property
    def is_held(self) -> bool:
        """Whether somebody waits for the peer; a thread that was torn away from it does not."""
        return self.holder is not None and not self.holder.is_given_up

    def is_held_by(self, thread: int) -> bool:
        """Whether *thread* does."""
        return self.is_held and self.holder is not None and self.holder.thread == thread

    @property
    def is_torn(self) -> bool:
        """Whether nobody can finish what was begun, so that nothing may be sent any more."""
        return self.is_midway and not self.is_held

    @property
    def is_taken_down(self) -> bool:
        """Whether it was dropped for another reason than its end: nobody wants what may still come."""
        return self.is_dropped and self.line.error is None

    @property
    def is_over(self) -> bool:
        """Whether it is to be closed."""
        return self.is_dropped and self.n_readers == 0 and not self.is_held


class Unfinished:
    """The rest of a message of which the peer has a part."""

    __slots__ = ("is_placed", "parcel", "position", "rest", "strand")

    def __init__(self, strand: Strand, rest: bytes, parcel: Parcel, position: int) -> None:
        self.strand = strand
        self.rest = rest
        self.parcel = parcel
        self.position = position  # in the spool; 0: it is in none
        self.is_placed = position > 0  # it has got a position, or needs none

    @property
    def is_settled(self) -> bool:
        """Whether its sender has nothing more to do about it."""
        return self.is_placed or self.parcel.is_given_up
