"""One member of a route and its connection: who may write on it, and what must be written first."""

from __future__ import annotations

import enum
import threading

from connpool import clock as real
from connpool.clock import Gate, SystemClock
from connpool.delivery.spool import Spool
from connpool.model.delivery import LinkInfo, LinkState, queue_of
from connpool.model.endpoint import Endpoint
from connpool.model.route import Member
from connpool.pool.connection import Connection
from connpool.pool.turns import Turns
from connpool.wire.framing import Framing
from connpool.wire.line import BROKEN, Line

__all__ = ["Link", "Outcome", "Strand"]

_wait = SystemClock().wait


class Outcome(enum.Enum):
    """What came of one attempt to send a message at once."""

    SENT = "sent"
    BEHIND = "behind"  # something else must be sent first
    BEGUN = "begun"  # a part of it is on its way; the rest is kept
    DEAD = "dead"  # there is no connection, or it has just been found broken


class Strand:
    """One connection of a link, from its opening to its close. The link's ``writing`` guards its counts."""

    __slots__ = ("conn", "decoder", "endpoint", "is_dropped", "line", "n_users")

    def __init__(self, conn: Connection, line: Line, endpoint: Endpoint, decoder: Framing) -> None:
        self.conn = conn
        self.line = line
        self.endpoint = endpoint
        self.decoder = decoder  # touched by the reading thread alone
        self.n_users = 0  # threads that read or write on it outside of ``writing``
        self.is_dropped = False  # nobody new may use it; the last user closes it


class Unfinished:
    """The rest of a message of which the peer has a part."""

    __slots__ = ("is_settled", "message", "position", "rest", "strand")

    def __init__(self, strand: Strand, rest: bytes, message: bytes, position: int) -> None:
        self.strand = strand
        self.rest = rest
        self.message = message
        self.position = position  # in the spool; 0: it is in none
        self.is_settled = position > 0  # it has got a position, or needs none


class Link:
    """The way to one member of a route, alive or not.

    ``writing`` is held for what never waits: one look at the socket and one
    write of what the system takes at once. Whoever has to wait for the peer
    becomes the ``holder`` first, so that ``writing`` is free meanwhile. It guards all attributes
    below the first line; those above it are guarded by the office's lock.
    """

    def __init__(self, member: Member, now: float, spool: Spool | None) -> None:
        self.member = member
        self.queue = queue_of(member)
        self.spool = spool
        self.groups: tuple[int, ...] = ()
        self.state = LinkState.NEW
        self.endpoint = member.endpoints[0]
        self.since = now
        self.failures = 0
        self.retry_at: float | None = None
        self.last_error: BaseException | None = None
        self.is_tended = False  # a worker is at it, or about to be
        self.tended_since = now
        self.worker: threading.Thread | None = None
        self.is_stuck = False  # what waits for it cannot be read or framed, for reasons of our own
        self.is_wanted = False  # to be dialled as soon as may be, whatever ``retry_at`` says
        self.was_awaited = False  # a message has waited for its first dial: no other does
        self.n_tries = 0  # dials so far: whose turn it is in a list of endpoints
        # ------------------------------------------------------------------
        self.writing = threading.Lock()
        self.strand: Strand | None = None
        self.holder: str | None = None  # who waits for the peer: a thread's business, or nobody's
        self.is_flushing = False  # a worker sends what is queued: all others queue up behind
        self.unfinished: Unfinished | None = None
        self.begun: Unfinished | None = None  # the same without a spool: the holder's, whatever becomes of it
        self.own: set[int] = set()  # in the spool, but their senders are about to send them
        self.done: set[int] = set()  # sent, and about to leave the spool, or just gone
        self.taken = 0  # the last position that a worker has taken from the queue
        self._turns = Turns()  # of those who wait to become the holder
        self._freed: Gate = threading.Lock()  # opened when there is no holder any more
        self._freed.acquire()

    # -- sending at once

    def try_send(self, data: bytes, message: bytes, position: int = 0) -> Outcome:
        """Send *data* if nothing has to be sent before it, and as far as that needs no wait.

        Where it was begun the caller has to ``settle`` it if there is a spool; if there is none the caller
        is the holder from now on, and has to send ``begun.rest``.

        Args:
            data: The message as it goes over the wire.
            message: The same as the user gave it.
            position: Where it lies in the spool already; 0: nowhere.
        """
        with self.writing:
            strand = self.strand
            if strand is None:
                return Outcome.DEAD
            if (
                self.holder is not None
                or self.is_flushing
                or (self.spool is not None and self._has_older(position))
            ):
                return self._fall_behind(position)
            n_sent = strand.line.look_and_push(data)
            if n_sent == len(data):
                if position:
                    self.note_sent(position)
                return Outcome.SENT
            if n_sent == BROKEN:
                return Outcome.DEAD
            if n_sent == 0 and not strand.line.is_midway:
                return self._fall_behind(position)
            begun = Unfinished(strand, data[n_sent:], message, position)
            if self.spool is not None:
                self.unfinished = begun
                self.is_flushing = True
            else:
                self.begun = begun
                self.holder = "sender"
                strand.n_users += 1
            return Outcome.BEGUN

    def settle(self, position: int) -> None:
        """What was begun lies in the spool now, at *position*."""
        with self.writing:
            if self.unfinished is not None and not self.unfinished.is_settled:
                self.unfinished.position = position
                self.unfinished.is_settled = True

    def try_hold(self, position: int = 0) -> Strand | Outcome:
        """Become the holder if nothing has to be sent before the message at *position*."""
        with self.writing:
            strand = self.strand
            if strand is None:
                return Outcome.DEAD
            is_behind = self.spool is not None and self._has_older(position)
            if self.holder is not None or self.is_flushing or is_behind:
                return self._fall_behind(position)
            if not strand.line.is_alive():
                return Outcome.DEAD
            self.holder = "sender"
            strand.n_users += 1
            return strand

    def _fall_behind(self, position: int) -> Outcome:
        """The spool has it, or will: a worker sends it, and what comes after it until nothing is left."""
        if self.spool is not None:
            self.is_flushing = True
            self.own.discard(position)
        return Outcome.BEHIND

    def note_sent(self, position: int) -> None:
        """With ``writing`` held: the peer has what lies in the spool at *position*."""
        self.own.discard(position)
        self.done.add(position)

    def _has_older(self, position: int) -> bool:
        """Whether anything waits in the spool that must be sent before, or that somebody sends just now."""
        assert self.spool is not None
        if position and position <= self.taken:
            return True  # a worker has it in hand
        return self.spool.count(self.queue) > len(self.own) + len(self.done)

    # -- waiting for the peer

    def hold(self, who: str, timeout: float | None = None) -> Strand | None:
        """Become the holder, when it is one's turn. None: there is no connection any more, or time is up."""
        until = None if timeout is None else real.now() + timeout
        turn = self._turns.try_take(timeout)
        if turn is None:
            return None
        try:
            while True:
                with self.writing:
                    strand = self.strand
                    if strand is None:
                        return None
                    if self.holder is None:
                        strand.n_users += 1
                        self.holder = who
                        return strand
                left = None if until is None else until - real.now()
                if (left is not None and left <= 0) or not _wait(self._freed, left):
                    return None
        finally:
            turn.end()

    def free(self, strand: Strand) -> Strand | None:
        """Be the holder no more. Returns *strand* if the caller has to close it."""
        with self.writing:
            self.holder = self.begun = None
            to_close = self._leave(strand)
            try:
                self._freed.release()
            except RuntimeError:  # it is open
                pass
        return to_close

    # -- a connection's beginning and end

    def adopt(self, strand: Strand, *, is_behind: bool) -> None:
        """Have *strand* from now on. Only the worker does this, while there is none: it needs no lock.

        Args:
            is_behind: Something waits in the spool, to be sent first.
        """
        self.unfinished = None
        self.is_flushing = is_behind
        self.strand = strand

    def drop(self, strand: Strand) -> tuple[bool, Strand | None]:
        """Let nobody use *strand* any more, and have everybody who waits at it stop.

        Returns:
            Whether it was in use until now; and *strand* if the caller has to close it.
        """
        with self.writing:
            if self.strand is not strand:
                return False, None
            self.strand = None
            self.unfinished = None  # if it is in the spool, it begins anew from there
            strand.is_dropped = True
            to_close = strand if strand.n_users == 0 else None
        strand.line.end()
        return True, to_close

    def enter(self, strand: Strand) -> bool:
        """Use *strand* for reading. False: it is at its end."""
        with self.writing:
            if strand.is_dropped:
                return False
            strand.n_users += 1
            return True

    def leave(self, strand: Strand) -> Strand | None:
        """Use it no more. Returns it if the caller has to close it."""
        with self.writing:
            return self._leave(strand)

    def _leave(self, strand: Strand) -> Strand | None:
        strand.n_users -= 1
        return strand if strand.is_dropped and strand.n_users == 0 else None

    # -- for people

    def describe(self, unsent: int) -> LinkInfo:
        """With the office's lock held."""
        return LinkInfo(
            endpoint=self.endpoint,
            member=self.queue,
            groups=self.groups,
            state=self.state,
            since=self.since,
            failures=self.failures,
            retry_at=self.retry_at,
            last_error=self.last_error,
            unsent=unsent,
        )
